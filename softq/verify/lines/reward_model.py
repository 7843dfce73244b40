"""Pairs compared by an explicit reward."""

from collections.abc import Mapping
from math import inf
from typing import Any

import torch

from softq.mdp.tabular import random_table
from softq.objectives.margins import dpo
from softq.objectives.reward_model import rm
from softq.verify.inputs import PER_PAIR, UNEVEN, Family
from softq.verify.line import SHORT, SINGLE_TOKENS, Line, equal
from softq.verify.tables import models

ENDS = "its end is a reward, not a distribution: the law `reward model` of the small examples proves it"
LEVEL = models(random_table(SHORT, 9), torch.zeros(1, SHORT.vocabulary, dtype=torch.float64), SHORT)

LINES: Mapping[str, Line] = {
    "rm": Line(
        rm(),
        why=ENDS,
        rests=inf,
        free=True,
        equals=equal(
            "of single tokens, dpo at β = 1 with a uniform reference", rm(), dpo(beta=1.0), SINGLE_TOKENS, LEVEL
        ),
    ),
    "rm_centred": Line(rm(center=0.01), why=ENDS, free=False),
}

VALUES = [
    [0.2, -0.5],
    [1.25],
    [0.7, 0.1, -2.0],
    [1.1, -0.4, 0.9, 0.05],
    [-0.6],
    [2.0, 0.3],
    [-1.2, 1.3, 0.8],
    [0.45, -2.6],
]
STEP: Mapping[str, Any] = {
    "prompt": UNEVEN["prompt"],
    "value": VALUES,
    "chosen": UNEVEN["chosen"],
    "rejected": UNEVEN["rejected"],
}
STEPS: Mapping[str, Mapping[str, Any]] = {
    "uneven lengths": STEP,
    "weights": {**STEP, "weight": [1.0, 0.5, 2.0, 0.0]},
    "margins": {**STEP, "margin": [0.5, 0.0, 1.5, -0.25]},
    "soft labels": {**STEP, "label_probability": [0.9, 0.6, 1.0, 0.3]},
    "extreme rewards": {**STEP, "value": [[1e4], [-1e4], [2e4], [-2e4], [0.0], [1e4], [3e3], [3e3]]},
}

FAMILIES = (
    Family("rm", "rm", {"center": 0.0}, "h(r_w - r_l), r the last value of a row", PER_PAIR, STEPS),
    Family("rm_centred", "rm", {"center": 0.01}, "h(r_w - r_l) + center*(r_w + r_l)^2", PER_PAIR, STEPS),
)
