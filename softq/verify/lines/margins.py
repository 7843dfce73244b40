"""Pairs compared by their margin."""

import math
from collections.abc import Mapping

from softq.objectives.demonstrations import sft
from softq.objectives.margins import dpo, ipo
from softq.objectives.sums import weighted_sum
from softq.verify.inputs import DPO_STEPS, PAIR_STEPS, PER_PAIR, TOKENS_2, Family
from softq.verify.line import LOG_2, PAIRS, SHORT, SINGLE_TOKENS, Equal, Line, also, equal
from softq.verify.tables import some_models

LINES: Mapping[str, Line] = {
    "dpo": Line(
        dpo(beta=0.7),
        at_reference=LOG_2,
        rests=math.inf,
        free=True,
        equals=equal("dpo + 0 · sft is dpo", weighted_sum([(dpo(beta=0.7), 1.0), (sft(), 0.0)]), dpo(beta=0.7), PAIRS),
    ),
    "cdpo": Line(
        dpo(beta=0.7, label_smoothing=0.2),
        at_reference=LOG_2,
        rests=math.log(4) / 0.7,
        free=True,
        equals=(
            Equal(
                "one ε for all pairs is label_probability 1 - ε for each",
                (dpo(beta=0.7, label_smoothing=0.2), PAIRS),
                (dpo(beta=0.7), also(PAIRS, label_probability=[0.8] * 4)),
                some_models(),
            ),
        ),
    ),
    "ipo": Line(
        ipo(beta=0.5),
        at_reference=1.0,
        rests=1.0,
        free=True,
        equals=equal(
            "of one token, the mean is the sum",
            ipo(beta=0.5),
            ipo(beta=0.5, length_average=False),
            SINGLE_TOKENS,
            some_models(tree=SHORT),
        ),
    ),
    "ipo_sum": Line(ipo(beta=0.5, length_average=False), at_reference=1.0, rests=1.0, free=True),
}

FAMILIES = (
    Family("dpo", "dpo", {"beta": 0.5}, "h(beta*m)", PER_PAIR,
           {**DPO_STEPS, "golden tokens": TOKENS_2}, {"golden": (1, "sigmoid"), "golden tokens": (2, "dpo")}),
    Family("cdpo", "dpo", {"beta": 0.5, "label_smoothing": 0.1}, "(1-eps)*h(beta*m) + eps*h(-beta*m), eps=label_smoothing",
           PER_PAIR, PAIR_STEPS, {"golden": (1, "cdpo")}),
    Family("ipo", "ipo", {"beta": 0.5}, "(L_w/len_w - L_l/len_l - 1/(2*beta))^2", PER_PAIR, PAIR_STEPS,
           {"golden": (1, "ipo")}),
    Family("ipo_sum", "ipo", {"beta": 0.5, "length_average": False}, "(m - 1/(2*beta))^2", PER_PAIR, PAIR_STEPS,
           {"golden": (1, "ipo_sum")}),
)  # fmt: skip
