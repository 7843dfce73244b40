"""Pairs whose sides are each held to a point of their own."""

from collections.abc import Mapping
from math import inf

from softq.objectives.rankings import nca_k, sppo
from softq.objectives.sides import apo_down, apo_zero, bco_pair, nca, sppo_hard
from softq.objectives.sums import weighted_sum
from softq.objectives.unpaired import apo_unpaired
from softq.records import Batch, Method
from softq.verify.inputs import PAIR_STEPS, PER_PAIR, Family
from softq.verify.line import BEST_OF_TWO, JUDGED, LOG_2, PLAIN, Equal, Line
from softq.verify.tables import some_models

POINTS = "each completion is held to a log-ratio of its own, and in general no distribution has them all; "


def _same(says: str, method: Method, other: Method, step: Batch) -> tuple[Equal, ...]:
    return (Equal(says, (method, PLAIN), (other, step), some_models()),)


LINES: Mapping[str, Line] = {
    "nca": Line(
        nca(beta=0.5),
        why=POINTS + "one has for β = 1 and pairs drawn from the reference: π_ref · 2P(it wins)",
        at_reference=2 * LOG_2,
        rests=inf,  # βL_w would have to reach log 2, and the reference's 57 % leave room for L_w = 0.55 only
        free=False,
        equals=_same(
            "it is nca_k of two, the better one sure", nca(beta=0.5), nca_k(beta=0.5, alpha=0.001), BEST_OF_TWO
        ),
    ),
    "bco_pair": Line(
        bco_pair(beta=0.5),
        why=POINTS + "the compromise is not known in closed form",
        at_reference=2 * LOG_2,
        rests=inf,
        free=False,
    ),
    "sppo_hard": Line(
        sppo_hard(beta=0.5),
        why=POINTS + "the compromise is not known in closed form",
        at_reference=2.0,
        rests=1.5003357794672743,  # the root of 1/(2β) - L_w (1-p) + L_l p, p the chosen one's mass, 57 % in the reference
        free=False,
        equals=_same(
            "it is twice sppo with win rates 1 and 0",
            sppo_hard(beta=0.5),
            weighted_sum([(sppo(beta=0.5), 2.0)]),
            BEST_OF_TWO,
        ),
    ),
    "apo_zero": Line(
        apo_zero(beta=0.5),
        why="it saturates: inside, what loses most of its pairs always loses mass to what wins most",
        at_reference=1.0,
        rests=inf,
        free=False,
        equals=_same(
            "it is twice apo_unpaired on its sides one by one",
            apo_zero(beta=0.5),
            weighted_sum([(apo_unpaired(beta=0.5), 2.0)]),
            JUDGED,
        ),
    ),
    # of one pair with all the mass, what is far wrong gets worse: no margin is stated, but the reference is pushed away from
    "apo_down": Line(
        apo_down(beta=0.5),
        why="it is bounded and not convex: all mass gathers at one completion, and at which depends on where it starts",
        at_reference=1.0,
        free=False,
    ),
}

STEPS = {name: PAIR_STEPS[name] for name in ("golden", "uneven lengths", "weights", "extreme margins")}

FAMILIES = (
    Family("nca", "nca", {"beta": 0.5}, "h(beta*L_w) + h(-beta*L_w)/2 + h(-beta*L_l)/2", PER_PAIR, STEPS,
           {"golden": (1, "nca_pair")}),
    Family("bco_pair", "bco_pair", {"beta": 0.5}, "h(beta*L_w) + h(-beta*L_l)", PER_PAIR, STEPS,
           {"golden": (1, "bco_pair")}),
    Family("sppo_hard", "sppo_hard", {"beta": 0.5}, "(L_w - 1/(2*beta))^2 + (L_l + 1/(2*beta))^2", PER_PAIR, STEPS,
           {"golden": (1, "sppo_hard")}),
    Family("apo_zero", "apo_zero", {"beta": 0.5}, "1 - s(beta*L_w) + s(beta*L_l)", PER_PAIR, STEPS,
           {"golden": (1, "apo_zero")}),
    Family("apo_down", "apo_down", {"beta": 0.5}, "s(beta*L_w) + 1 - s(beta*m)", PER_PAIR, STEPS,
           {"golden": (1, "apo_down")}),
)  # fmt: skip
