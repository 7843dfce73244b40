"""Weighted sums."""

import math
from collections.abc import Mapping

from softq.objectives.demonstrations import sft
from softq.objectives.margins import dpo
from softq.objectives.sides import bco_pair
from softq.objectives.sums import weighted_sum
from softq.objectives.unpaired import bco, kto
from softq.verify.inputs import LABEL_STEPS, PAIR_STEPS, TOKENS_2, Family
from softq.verify.line import LOG_2, Line

LINES: Mapping[str, Line] = {
    "dpo+sft": Line(
        weighted_sum([(dpo(beta=0.3), 0.8), (sft(), 0.2)]),
        why="a sum of losses rests between where its summands do; nothing is known in closed form",
        rests=math.inf,
        free=False,
    ),
    "dpo+bco_pair+sft": Line(
        weighted_sum([(dpo(beta=0.3), 0.8), (bco_pair(beta=0.3), 0.2), (sft(), 1.0)]),
        why="MPO's sum (arXiv 2411.10442) rests between where its summands do; nothing is known in closed form",
        rests=math.inf,
        free=False,
    ),
    "bco+kto": Line(
        weighted_sum([(bco(beta=0.3), 1.0), (kto(beta=0.3, baseline="running"), 0.5)]),
        why="neither summand has a fixed point that is known",
        at_reference=LOG_2 + 0.25,
        rests=math.inf,
    ),
}

FAMILIES = (
    Family("dpo+sft", "dpo+sft", {"weights": [0.8, 0.2], "dpo": {"beta": 0.5}, "sft": {}},
           "0.8*(mean of h(beta*m)) + 0.2*(mean of -log pi(y_t) over the tokens of chosen rows)",
           "dpo: one value per pair; sft: one value per token",
           {**PAIR_STEPS, "golden tokens": TOKENS_2}),
    Family("dpo+bco_pair+sft", "dpo+bco_pair+sft",
           {"weights": [0.8, 0.2, 1.0], "dpo": {"beta": 0.1}, "bco_pair": {"beta": 0.1}, "sft": {}},
           "0.8*(mean of h(beta*m)) + 0.2*(mean of h(beta*L_w) + h(-beta*L_l)) + mean of -log pi(y_t) over tokens of chosen rows",
           "dpo, bco_pair: one value per pair; sft: one value per token", {"golden tokens": TOKENS_2}),
    Family("bco+kto", "bco+kto",
           {"weights": [1.0, 0.5], "bco": {"beta": 0.5}, "kto": {"beta": 0.5, "baseline": "running"}},
           "mean of h(+-(beta*L-delta)) + 0.5*(mean of s(-+beta*(L-max(0, kl_running))))", "one value per label",
           {"remembered": {**LABEL_STEPS["uneven lengths"], "delta": 0.3, "kl_running": 0.6}}),
)  # fmt: skip
