"""Single completions judged good or bad."""

import math
from collections.abc import Mapping

from softq.objectives.unpaired import kto
from softq.verify.inputs import LABEL_STEPS, Family
from softq.verify.line import Line

LINES: Mapping[str, Line] = {
    "kto": Line(
        kto(beta=0.5),
        why="it saturates: inside, what is judged bad always loses mass to what is judged good",
        at_reference=0.5,
        rests=math.inf,
    ),
}

FAMILIES = (
    Family("kto", "kto", {"beta": 0.5},
           "good: l_g*s(-beta*(L-z0)), bad: l_b*s(beta*(L-z0)), z0=stopgrad(max(0, mean L of mismatched)), "
           "l_g=desirable_weight, l_b=undesirable_weight", "one value per label", LABEL_STEPS, {"golden": (1, "kto")},
           {"class weights": {"desirable_weight": 1.5, "undesirable_weight": 0.8}}),
)  # fmt: skip
