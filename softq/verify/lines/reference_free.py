"""Pairs compared by log π alone, or by a share of the reference."""

from collections.abc import Mapping
from math import inf

import torch

from softq.mdp.tabular import every_trajectory, random_table, token_tree
from softq.objectives.demonstrations import sft
from softq.objectives.margins import dpo
from softq.objectives.reference_free import alphapo, cpo, gamma_dpo, orpo, simpo, slic
from softq.objectives.sums import weighted_sum
from softq.records import Batch, Pairs
from softq.verify.inputs import PAIR_STEPS, PER_PAIR, Family
from softq.verify.line import PAIRS, SHORT, SINGLE_TOKENS, Line, equal
from softq.verify.tables import models, some_models

BARE = models(random_table(SHORT, 0), torch.zeros(1, 4, dtype=torch.float64), SHORT)
"""A policy beside a reference that is uniform over completions."""

COIN = token_tree([(0,)], vocabulary=2, horizon=1)
TOSS = Batch(every_trajectory(COIN), Pairs(torch.tensor([0]), torch.tensor([1])))
"""Two completions of one token with all the mass: the log-odds of one are the log-odds of the other, turned."""

BETWEEN = "a sum of losses rests between where its summands do; nothing is known in closed form"

LINES: Mapping[str, Line] = {
    "gamma_dpo": Line(
        gamma_dpo(beta=0.7, gamma=0.4),
        rests=inf,
        free=True,
        equals=equal("gamma_dpo with γ = 1 is dpo", gamma_dpo(beta=0.7, gamma=1.0), dpo(beta=0.7), PAIRS),
    ),
    "dpo_free": Line(
        gamma_dpo(beta=0.7, gamma=0.0),
        rests=inf,
        free=True,
        equals=equal(
            "beside a uniform reference, completions being equally long, it is dpo",
            gamma_dpo(beta=0.7, gamma=0.0),
            dpo(beta=0.7),
            SINGLE_TOKENS,
            BARE,
        ),
    ),
    "simpo": Line(
        simpo(beta=2.0, gamma=0.5),
        rests=inf,
        free=True,
        equals=equal(
            "of one token, with γ = 0, simpo is dpo without a reference",
            simpo(beta=0.7, gamma=0.0),
            gamma_dpo(beta=0.7, gamma=0.0),
            SINGLE_TOKENS,
            some_models(tree=SHORT),
        ),
    ),
    "alphapo": Line(
        alphapo(beta=2.0, gamma=0.5, alpha=0.25),
        why="the constant that makes probabilities of its scores is not known in closed form",
        rests=inf,
        free=False,
        equals=equal(
            "alphapo with α near 0 is simpo",
            alphapo(beta=0.7, gamma=0.2, alpha=1e-12),
            simpo(beta=0.7, gamma=0.2),
            SINGLE_TOKENS,
            some_models(tree=SHORT),
        ),
    ),
    "cpo": Line(
        cpo(beta=0.5, alpha=0.6),
        why=BETWEEN,
        rests=inf,
        free=False,
        equals=equal(
            "beside a uniform reference, completions being equally long, cpo is dpo + α · sft",
            cpo(beta=0.7, alpha=0.6),
            weighted_sum([(dpo(beta=0.7), 1.0), (sft(), 0.6)]),
            SINGLE_TOKENS,
            BARE,
        ),
    ),
    "orpo": Line(
        orpo(beta=0.3),
        why=BETWEEN,
        rests=inf,
        free=False,
        equals=equal(
            "of two completions with all the mass, orpo is λ · dpo without a reference, β = 2, + sft",
            orpo(beta=0.3),
            weighted_sum([(gamma_dpo(beta=2.0, gamma=0.0), 0.3), (sft(), 1.0)]),
            TOSS,
            some_models(tree=COIN),
        ),
    ),
    "slic": Line(slic(delta=1.0, alpha=0.1), why=BETWEEN, rests=inf, free=False),
}

STEPS = {name: PAIR_STEPS[name] for name in ("golden", "uneven lengths", "weights", "extreme margins")}
PARTS = "the first: one value per pair; sft: one value per token"

FAMILIES = (
    Family("gamma_dpo", "gamma_dpo", {"beta": 0.5, "gamma": 0.5}, "h(beta*((LP_w-LP_l) - gamma*(LPref_w-LPref_l)))",
           PER_PAIR, STEPS, {"golden": (1, "dpo_gamma")}),
    Family("dpo_free", "gamma_dpo", {"beta": 0.5, "gamma": 0.0}, "h(beta*(LP_w-LP_l))", PER_PAIR, STEPS,
           {"golden": (1, "cpo_preference")}),
    Family("simpo", "simpo", {"beta": 0.5, "gamma": 0.25}, "h(beta*(LP_w/len_w - LP_l/len_l) - gamma)", PER_PAIR, STEPS,
           {"golden": (1, "simpo")}),
    Family("alphapo", "alphapo", {"beta": 0.5, "gamma": 0.25, "alpha": 0.25},
           "h(beta*(r_w-r_l) - gamma), r=(1-exp(min(-alpha*LP/len, 80)))/alpha", PER_PAIR,
           {**STEPS, "alpha below 0": PAIR_STEPS["uneven lengths"]}, {},
           {"alpha below 0": {"alpha": -0.5}, "extreme margins": {"alpha": 1e-4}}),
    Family("cpo", "cpo", {"beta": 0.5, "alpha": 0.6},
           "(mean of h(beta*(LP_w-LP_l))) + alpha*(mean of -log pi(y_t) over the tokens of chosen rows)", PARTS, STEPS,
           {"golden": (1, "cpo_preference")}, {"golden": {"alpha": 0.0}}),
    Family("orpo", "orpo", {"beta": 0.3},
           "beta*(mean of h(o_w-o_l)) + (mean of -log pi(y_t) over the tokens of chosen rows), p=min(LP/len, -1e-7), "
           "o=p-log(1-exp(p))", PARTS, STEPS),
    Family("slic", "slic", {"delta": 1.0, "alpha": 0.1}, "max(0, delta - LP_w + LP_l) - alpha*LP_w",
           "slic: one value per pair; nll: one value per pair", STEPS),
)  # fmt: skip
