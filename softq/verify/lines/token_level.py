"""Pairs whose loss reads more of a state than the token taken."""

import math
from collections.abc import Mapping

from softq.objectives.margins import dpo
from softq.objectives.token_level import tdpo2, wpo
from softq.verify.inputs import LOGIT_STEPS, LOGITS, PER_PAIR, Family
from softq.verify.line import LOG_2, PAIRS, UNIFORM, Line, equal

LINES: Mapping[str, Line] = {
    "tdpo2": Line(
        tdpo2(beta=0.5),
        why="its stop-gradient makes its field no gradient, and no distribution where it vanishes is known in closed form",
        at_reference=LOG_2,
        rests=math.inf,
        free=False,
        equals=equal("tdpo2 with α = 0 is dpo", tdpo2(beta=0.5, alpha=0.0), dpo(beta=0.5), PAIRS),
    ),
    "wpo": Line(
        wpo(beta=0.5),
        rests=math.inf,
        free=True,
        equals=equal("at a uniform policy every weight is 1: dpo", wpo(beta=0.5), dpo(beta=0.5), PAIRS, UNIFORM),
    ),
}

FAMILIES = (
    Family("tdpo2", "tdpo2", {"beta": 0.5, "alpha": 0.5},
           "h(beta*(m - alpha*(K_l - stopgrad(K_w)))), K=sum_t KL(ref||pi)", PER_PAIR,
           {**LOGIT_STEPS, "alpha 1": LOGITS}, {"golden": (2, "tdpo2")}, {"alpha 1": {"alpha": 1.0}}),
    Family("wpo", "wpo", {"beta": 0.5},
           "stopgrad(min(1, w_w*w_l))*h(beta*m), w=exp(mean_t[log pi - log sum_v pi^2])", PER_PAIR, LOGIT_STEPS,
           {"golden": (2, "wpo_official")}),
)  # fmt: skip
