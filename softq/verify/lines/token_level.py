"""Pairs whose loss reads more of a state than the token taken."""

import math
from collections.abc import Mapping

from softq.objectives.demonstrations import sft
from softq.objectives.margins import dpo
from softq.objectives.token_level import bmc, cringe, tdpo1, tdpo2, wpo
from softq.records import Batch
from softq.verify.inputs import CRINGE_STEPS, DIFF_STEPS, DRIFT_STEPS, LOGIT_STEPS, LOGITS, PER_PAIR, Family
from softq.verify.line import LOG_2, PAIRS, SHORT, SINGLE_TOKENS, UNIFORM, Line, equal
from softq.verify.tables import some_models


def _with_diff(value: float) -> Batch:
    """A step in which every token differs, or none."""
    action = PAIRS.tokens.action
    return Batch(PAIRS.tokens, PAIRS.feedback, {**PAIRS.columns, "diff": value * action.double()})


LINES: Mapping[str, Line] = {
    "tdpo1": Line(
        tdpo1(beta=0.5),
        at_reference=LOG_2,
        rests=math.inf,
        free=True,
        equals=equal(
            "of one token, both sides diverge alike: dpo",
            tdpo1(beta=0.5),
            dpo(beta=0.5),
            SINGLE_TOKENS,
            some_models(tree=SHORT),
        ),
    ),
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
    "bmc": Line(
        bmc(beta=0.5),
        why="a completion's score depends on what it is compared with, so no scores satisfy all pairs of a population at once",
        at_reference=LOG_2,
        rests=math.inf,
        free=False,
        equals=(
            *equal("where nothing differs: dpo", bmc(beta=0.5), dpo(beta=0.5), _with_diff(0.0)),
            *equal("with δ = 0: dpo", bmc(beta=0.5, delta=0.0), dpo(beta=0.5), _with_diff(1.0)),
            *equal(
                "where all differs, with δ = 1: dpo of 2β", bmc(beta=0.5, delta=1.0), dpo(beta=1.0), _with_diff(1.0)
            ),
        ),
    ),
    "cringe": Line(
        cringe(k=2, alpha=0.3, bar=0.5, tau=1.5),
        why="gated likelihood of the chosen and contrast of the rejected balance at no distribution that is known in closed form",
        rests=math.inf,
        free=False,
        equals=equal(
            "of one token, with an open gate and no contrast: sft",
            cringe(alpha=1e-12, bar=1e3),
            sft(),
            SINGLE_TOKENS,
            some_models(tree=SHORT),
        ),
    ),
}

FAMILIES = (
    Family("tdpo1", "tdpo1", {"beta": 0.5}, "h(beta*(m - (K_l - K_w))), K=sum_t KL(ref||pi)", PER_PAIR, DRIFT_STEPS,
           {"golden": (2, "tdpo1")}),
    Family("tdpo2", "tdpo2", {"beta": 0.5, "alpha": 0.5},
           "h(beta*(m - alpha*(K_l - stopgrad(K_w)))), K=sum_t KL(ref||pi)", PER_PAIR,
           {**LOGIT_STEPS, "alpha 1": LOGITS}, {"golden": (2, "tdpo2")}, {"alpha 1": {"alpha": 1.0}}),
    Family("wpo", "wpo", {"beta": 0.5},
           "stopgrad(min(1, w_w*w_l))*h(beta*m), w=exp(mean_t[log pi - log sum_v pi^2])", PER_PAIR, LOGIT_STEPS,
           {"golden": (2, "wpo_official")}),
    Family("bmc", "bmc", {"beta": 0.5, "delta": 2.0},
           "lambda_t=1+diff_t*min(stopgrad(1/pi_t),delta); h(beta*(sum lambda*l)_w - beta*(sum lambda*l)_l)", PER_PAIR,
           DIFF_STEPS, {"golden": (2, "bmc_given_masks"), "golden difflib": (2, "bmc_difflib_masks")}),
    Family("cringe", "cringe", {"k": 2, "alpha": 0.3, "bar": 0.5, "tau": 1.5},
           "g*(-LP_w + alpha*sum_t C_t(y_l)), g=stopgrad(s((bar - (LP_w - LP_l))/tau)), C=sum_c stopgrad(p_c)*h(z_c - z_taken) "
           "over the k largest other logits z_c, p=softmax of these", PER_PAIR, CRINGE_STEPS, {},
           {"one other token": {"k": 1}, "all other tokens": {"k": 5}}),
)  # fmt: skip
