"""Pairs whose sides are each held to a point of their own."""

from collections.abc import Mapping
from math import inf

from softq.objectives.sides import apo_down, apo_zero, bco_pair, nca, sppo_hard
from softq.verify.inputs import PAIR_STEPS, PER_PAIR, Family
from softq.verify.line import LOG_2, Line

POINTS = "each completion is held to a log-ratio of its own, and in general no distribution has them all; "

LINES: Mapping[str, Line] = {
    "nca": Line(
        nca(beta=0.5),
        why=POINTS + "one has for β = 1 and pairs drawn from the reference: π_ref · 2P(it wins)",
        at_reference=2 * LOG_2,
        rests=inf,  # βL_w would have to reach log 2, and the reference's 57 % leave room for L_w = 0.55 only
        free=False,
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
    ),
    "apo_zero": Line(
        apo_zero(beta=0.5),
        why="it saturates: inside, what loses most of its pairs always loses mass to what wins most",
        at_reference=1.0,
        rests=inf,
        free=False,
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
