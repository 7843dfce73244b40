"""Weighted sums."""

import math
from collections.abc import Mapping

from softq.objectives.demonstrations import sft
from softq.objectives.margins import dpo
from softq.objectives.sums import weighted_sum
from softq.verify.inputs import PAIR_STEPS, TOKENS_2, Family
from softq.verify.line import Line

LINES: Mapping[str, Line] = {
    "dpo+sft": Line(
        weighted_sum([(dpo(beta=0.3), 0.8), (sft(), 0.2)]),
        why="a sum of losses rests between where its summands do; nothing is known in closed form",
        rests=math.inf,
        free=False,
    ),
}

FAMILIES = (
    Family("dpo+sft", "dpo+sft", {"weights": [0.8, 0.2], "dpo": {"beta": 0.5}, "sft": {}},
           "0.8*(mean of h(beta*m)) + 0.2*(mean of -log pi(y_t) over the tokens of chosen rows)",
           "dpo: one value per pair; sft: one value per token",
           {**PAIR_STEPS, "golden tokens": TOKENS_2}),
)  # fmt: skip
