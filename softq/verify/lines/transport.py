"""Pairs compared as two distributions."""

import math
from collections.abc import Mapping

from softq.objectives.margins import dpo
from softq.objectives.transport import aot
from softq.verify.inputs import SORTED_STEPS, Family
from softq.verify.line import LOG_2, ONE_PAIR, Line, equal

LINES: Mapping[str, Line] = {
    "aot": Line(
        aot(beta=0.5, label_smoothing=0.1),
        at_reference=LOG_2,
        rests=math.log(9) / 0.5,
        free=True,
        equals=equal(
            "on one pair aot is cdpo", aot(label_smoothing=0.1), dpo(beta=0.01, label_smoothing=0.1), ONE_PAIR
        ),
    ),
    "aot_hard": Line(
        aot(beta=0.5),
        why="without label smoothing every sorted margin grows for ever",
        at_reference=LOG_2,
        rests=math.inf,
        free=True,
    ),
}

FAMILIES = (
    Family("aot", "aot", {"beta": 0.5, "label_smoothing": 0.1},
           "d=sort(LP_w-LP_l)-sort(LPref_w-LPref_l), ascending: (1-eps)*h(beta*d) + eps*h(-beta*d), eps=label_smoothing",
           "one value per sorted slot, ascending (not per pair)", SORTED_STEPS, {"golden": (1, "aot_eps0.1")}),
    Family("aot_hard", "aot", {"beta": 0.5}, "d=sort(LP_w-LP_l)-sort(LPref_w-LPref_l), ascending: h(beta*d)",
           "one value per sorted slot, ascending (not per pair)", SORTED_STEPS, {"golden": (1, "aot")}),
)  # fmt: skip
