"""Pairs compared as two distributions."""

import math
from collections.abc import Mapping

from softq.objectives.margins import dpo
from softq.objectives.transport import aot, aot_unpaired
from softq.verify.inputs import SIDES_STEPS, SORTED_STEPS, Family
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
    "aot_unpaired": Line(  # unconnected pairs: slots that cross hold the mass between them, others leave it free
        aot_unpaired(beta=0.5, label_smoothing=0.1),
        at_reference=LOG_2,
        rests=math.log(9) / 0.5,
        equals=equal(
            "on one pair aot_unpaired is cdpo",
            aot_unpaired(label_smoothing=0.1),
            dpo(beta=0.01, label_smoothing=0.1),
            ONE_PAIR,
        ),
    ),
    "aot_unpaired_hard": Line(
        aot_unpaired(beta=0.5),
        why="without label smoothing the chosen side grows away from the rejected one for ever",
        at_reference=LOG_2,
        rests=math.inf,
        equals=equal("on one pair it is dpo", aot_unpaired(), dpo(beta=0.01), ONE_PAIR),
    ),
}

FAMILIES = (
    Family("aot", "aot", {"beta": 0.5, "label_smoothing": 0.1},
           "d=sort(LP_w-LP_l)-sort(LPref_w-LPref_l), ascending: (1-eps)*h(beta*d) + eps*h(-beta*d), eps=label_smoothing",
           "one value per sorted slot, ascending (not per pair)", SORTED_STEPS, {"golden": (1, "aot_eps0.1")}),
    Family("aot_hard", "aot", {"beta": 0.5}, "d=sort(LP_w-LP_l)-sort(LPref_w-LPref_l), ascending: h(beta*d)",
           "one value per sorted slot, ascending (not per pair)", SORTED_STEPS, {"golden": (1, "aot")}),
    Family("aot_unpaired", "aot_unpaired", {"beta": 0.5, "label_smoothing": 0.1},
           "d=sort(L_w)-sort(L_l), ascending: (1-eps)*h(beta*d) + eps*h(-beta*d), eps=label_smoothing",
           "one value per sorted slot, ascending (not per pair)", SIDES_STEPS, {"golden": (1, "aot_unpaired_eps0.1")}),
    Family("aot_unpaired_hard", "aot_unpaired", {"beta": 0.5}, "d=sort(L_w)-sort(L_l), ascending: h(beta*d)",
           "one value per sorted slot, ascending (not per pair)", SIDES_STEPS, {"golden": (1, "aot_unpaired")}),
)  # fmt: skip
