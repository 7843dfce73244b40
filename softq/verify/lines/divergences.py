"""Pairs compared by the derivative of an f-divergence."""

import math
from collections.abc import Mapping

from softq.objectives.divergences import alpha_dpo, forward_kl_dpo, js_dpo
from softq.objectives.margins import dpo
from softq.verify.inputs import FAR, PAIR_STEPS, PER_PAIR, Family
from softq.verify.line import LOG_2, PAIRS, Line, equal

LINES: Mapping[str, Line] = {
    "forward_kl_dpo": Line(forward_kl_dpo(beta=2.0), at_reference=LOG_2, rests=math.inf, free=False),
    "js_dpo": Line(js_dpo(beta=0.7), at_reference=LOG_2, rests=math.inf, free=False),
    "alpha_dpo": Line(
        alpha_dpo(beta=1.0),
        at_reference=LOG_2,
        rests=math.inf,
        free=False,
        equals=(
            *equal("α = 0 is the forward KL", alpha_dpo(beta=0.7, alpha=0.0), forward_kl_dpo(beta=0.7), PAIRS),
            *equal("α = 1 is dpo", alpha_dpo(beta=0.7, alpha=1.0), dpo(beta=0.7), PAIRS),
            *equal("and α → 1 goes there", alpha_dpo(beta=0.7, alpha=1 - 1e-12), dpo(beta=0.7), PAIRS),
        ),
    ),
}

AHEAD = {
    **FAR,
    "ref_logp": [*FAR["ref_logp"][:5], [-10003.0], *FAR["ref_logp"][6:]],
    "chosen": [0, 3, 4, 7],
    "rejected": [1, 2, 5, 6],
}
STEPS = {**PAIR_STEPS, "extreme margins": AHEAD}
"""No chosen completion lies far below the reference: there scores are clamped, and a loss is no number to compare."""

FAMILIES = (
    Family("forward_kl_dpo", "forward_kl_dpo", {"beta": 0.5}, "h(beta*(exp(-L_l) - exp(-L_w)))", PER_PAIR, STEPS,
           {"golden": (1, "sigmoid+forward_kl")}),
    Family("js_dpo", "js_dpo", {"beta": 0.5}, "h(beta*(log s(L_w) - log s(L_l)))", PER_PAIR, PAIR_STEPS,
           {"golden": (1, "sigmoid+js_divergence")}),
    Family("alpha_dpo", "alpha_dpo", {"beta": 0.5, "alpha": 0.5},
           "h(beta*(exp((alpha-1)*L_w) - exp((alpha-1)*L_l))/(alpha-1)), exponents at most 80", PER_PAIR, STEPS,
           {"golden": (1, "sigmoid+alpha_divergence")}),
)  # fmt: skip
