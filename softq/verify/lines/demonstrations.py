"""Completions to imitate."""

import math
from collections.abc import Mapping

from softq.objectives.demonstrations import sft
from softq.objectives.margins import dpo
from softq.objectives.sums import weighted_sum
from softq.verify.inputs import SHOWN_STEPS, Family
from softq.verify.line import PAIRS, Line, equal

LINES: Mapping[str, Line] = {
    "sft": Line(
        sft(),
        rests=math.inf,
        equals=equal("0 · dpo + sft is sft on the chosen", weighted_sum([(dpo(), 0.0), (sft(), 1.0)]), sft(), PAIRS),
    ),
}

FAMILIES = (
    Family("sft", "sft", {}, "-log pi(y_t)", "one value per token", SHOWN_STEPS, {"golden": (2, "sft")}),
)  # fmt: skip
