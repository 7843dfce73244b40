"""DPO with an anchor for the chosen side."""

from collections.abc import Mapping
from math import exp, inf, log1p

from softq.objectives.anchored import dpo_anchor, dpop, rpo
from softq.objectives.demonstrations import sft
from softq.objectives.margins import dpo
from softq.objectives.sums import weighted_sum
from softq.verify.inputs import PAIR_STEPS, PER_PAIR, Family
from softq.verify.line import LOG_2, PAIRS, SHORT, SINGLE_TOKENS, Line, equal
from softq.verify.tables import some_models

BETWEEN = "a sum of losses rests between where its summands do; nothing is known in closed form"

LINES: Mapping[str, Line] = {
    "dpop": Line(
        dpop(beta=0.5, penalty=5.0),
        why="each completion is chosen at times and then may not fall: the penalty and its kink keep margins from the labels'",
        at_reference=LOG_2,
        rests=inf,
        free=False,
        equals=equal("dpop with λ = 0 is dpo", dpop(beta=0.5, penalty=0.0), dpo(beta=0.5), PAIRS),
    ),
    "rpo": Line(
        rpo(beta=0.5, alpha=0.6),
        why=BETWEEN,
        rests=inf,
        free=False,
        equals=(
            *equal("rpo with α = 0 is dpo", rpo(beta=0.5, alpha=0.0), dpo(beta=0.5), PAIRS),
            *equal(
                "of one token, each chosen once, rpo is dpo + α · sft",
                rpo(beta=0.5, alpha=0.6),
                weighted_sum([(dpo(beta=0.5), 1.0), (sft(), 0.6)]),
                SINGLE_TOKENS,
                some_models(tree=SHORT),
            ),
        ),
    ),
    "dpo_anchor": Line(
        dpo_anchor(beta=0.5, delta=0.3),
        why=BETWEEN,
        at_reference=LOG_2 + log1p(exp(0.3)),
        rests=inf,
        free=False,
        equals=equal("with the anchor far below, it is dpo", dpo_anchor(beta=0.5, delta=-1e4), dpo(beta=0.5), PAIRS),
    ),
}

STEPS = {name: PAIR_STEPS[name] for name in ("uneven lengths", "weights", "extreme margins")}

FAMILIES = (
    Family("dpop", "dpop", {"beta": 0.5, "penalty": 5.0}, "h(beta*(m - penalty*max(0, -L_w)))", PER_PAIR,
           {"golden": PAIR_STEPS["golden"], **STEPS}, {"golden": (1, "dpop")}),
    Family("rpo", "rpo", {"beta": 0.5, "alpha": 0.6}, "h(beta*m) - alpha*LP_w/len_w",
           "dpo: one value per pair; nll: one value per pair", STEPS),
    Family("dpo_anchor", "dpo_anchor", {"beta": 0.5, "delta": 0.3}, "h(beta*m) + h(beta*L_w - delta)",
           "dpo: one value per pair; anchor: one value per pair", STEPS),
)  # fmt: skip
