"""Pairs compared by their margin."""

import math
from collections.abc import Mapping

from softq.objectives.demonstrations import sft
from softq.objectives.margins import discopop, dpo, exo, hinge, ipo, robust
from softq.objectives.sums import weighted_sum
from softq.verify.inputs import DPO_STEPS, PAIR_STEPS, PER_PAIR, TOKENS_2, Family
from softq.verify.line import LOG_2, PAIRS, SHORT, SINGLE_TOKENS, Equal, Line, also, equal
from softq.verify.tables import some_models

LOCAL_MINIMUM = -0.11856989268826373
"""Of (1-k) h(u) + k e^{-u}, k = σ(u/0.05), in u: where its slope changes from down to up."""

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
    "robust": Line(
        robust(beta=0.7, label_smoothing=0.2),
        at_reference=LOG_2,
        rests=math.inf,
        free=True,
        equals=equal("robust with ε = 0 is dpo", robust(beta=0.7, label_smoothing=0.0), dpo(beta=0.7), PAIRS),
    ),
    "hinge": Line(
        hinge(beta=0.5),
        why="a hard pair stops anywhere from a margin of 1/β on, and on soft labels the least of corners has no gradient",
        at_reference=1.0,
        rests=2.0 + 1e-9,  # just behind the corner
        free=True,
    ),
    "exo": Line(
        exo(beta=0.7, label_smoothing=0.1),
        why="each pair is flat far from where it rests, so it is not convex: no distribution is known where soft labels balance",
        at_reference=math.log(0.5) - 0.5 * math.log(0.9 * 0.1),
        rests=math.log(9) / 0.7,
        free=True,
    ),
    "discopop": Line(
        discopop(beta=0.5),
        why="it is not convex: a hard pair stops at the local minimum, or past the local maximum grows for ever",
        at_reference=0.5 * LOG_2 + 0.5,
        rests=LOCAL_MINIMUM / 0.5,
        free=True,
    ),
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
    Family("robust", "robust", {"beta": 0.5, "label_smoothing": 0.1},
           "((1-eps)*h(beta*m) - eps*h(-beta*m))/(1-2*eps), eps=label_smoothing", PER_PAIR, PAIR_STEPS,
           {"golden": (1, "robust")}),
    Family("hinge", "hinge", {"beta": 0.5}, "max(0, 1 - beta*m)", PER_PAIR, PAIR_STEPS, {"golden": (1, "hinge")}),
    Family("exo", "exo", {"beta": 0.5, "label_smoothing": 0.001},
           "q*log(q/(1-eps)) + (1-q)*log((1-q)/eps), q=s(beta*m), eps=label_smoothing", PER_PAIR, PAIR_STEPS,
           {"golden": (1, "exo_pair")}),
    Family("discopop", "discopop", {"beta": 0.5, "tau": 0.05}, "(1-k)*h(u) + k*exp(-u), u=beta*m, k=s(u/tau)", PER_PAIR,
           PAIR_STEPS, {"golden": (1, "discopop")}),
)  # fmt: skip
