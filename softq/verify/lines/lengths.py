"""Pairs whose completions differ in length."""

import math
from collections.abc import Mapping

import torch

from softq.mdp.tabular import every_trajectory, token_tree
from softq.objectives.lengths import dpo_norm, ld_dpo, rdpo
from softq.objectives.margins import dpo
from softq.records import Batch, Method, Pairs
from softq.verify.inputs import PAIR_STEPS, PER_PAIR, TOKENS_2, Family
from softq.verify.line import LOG_2, PAIRS, Equal, Line, equal
from softq.verify.tables import some_models

TWO_TOKENS = token_tree([(0,)], vocabulary=3, horizon=2)
LEVEL = Batch(every_trajectory(TWO_TOKENS), Pairs(torch.tensor([0, 4, 7]), torch.tensor([1, 2, 5])))


def _of_two_tokens(says: str, one: Method, other: Method) -> tuple[Equal, ...]:
    return equal(says, one, other, LEVEL, some_models(tree=TWO_TOKENS))


LINES: Mapping[str, Line] = {
    "dpo_norm": Line(
        dpo_norm(beta=0.7),
        at_reference=LOG_2,
        rests=math.inf,
        free=True,
        equals=_of_two_tokens("where all have two tokens, dpo at β/2", dpo_norm(beta=0.7), dpo(beta=0.35)),
    ),
    "rdpo": Line(
        rdpo(beta=0.7),
        rests=math.inf,
        free=True,
        equals=(
            *_of_two_tokens("of equal lengths, dpo", rdpo(beta=0.7), dpo(beta=0.7)),
            *equal("rdpo with α = 0 is dpo", rdpo(beta=0.7, alpha=0.0), dpo(beta=0.7), PAIRS),
        ),
    ),
    "ld_dpo": Line(
        ld_dpo(beta=0.7),
        why="the score of a completion depends on what it is compared with: no one distribution gives all pairs their margins",
        at_reference=LOG_2,
        rests=math.inf,
        free=True,
        equals=(
            *_of_two_tokens("of equal lengths, dpo", ld_dpo(beta=0.7), dpo(beta=0.7)),
            *equal("ld_dpo with α = 1 is dpo", ld_dpo(beta=0.7, alpha=1.0), dpo(beta=0.7), PAIRS),
        ),
    ),
}

FAMILIES = (
    Family("dpo_norm", "dpo_norm", {"beta": 0.5}, "h(beta*(L_w/len_w - L_l/len_l))", PER_PAIR, PAIR_STEPS,
           {"golden": (1, "sigmoid_norm")}),
    Family("rdpo", "rdpo", {"beta": 0.5, "alpha": 0.05}, "h(beta*m + alpha*(len_w - len_l))", PER_PAIR, PAIR_STEPS,
           {"golden": (1, "rdpo")}),
    Family("ld_dpo", "ld_dpo", {"beta": 0.5, "alpha": 0.5},
           "h(beta*(D_w - D_l)), D=sum_{t<=n} log pi/ref + alpha*sum_{t>n} log pi/ref, n=min(len_w, len_l)", PER_PAIR,
           {**{name: step for name, step in PAIR_STEPS.items() if name != "golden"}, "golden tokens": TOKENS_2},
           {"golden tokens": (2, "ld_dpo")}),
)  # fmt: skip
