"""The contract list: every method with the settings the lab runs it at, and what is stated of it beside its fixed point.

A new method adds one line, and a method without one fails the tests. `Method.fixed_point` states where training ends; a line
whose method has none says why.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

from softq.lm.score import Models
from softq.mdp.tabular import every_trajectory, random_table, token_tree
from softq.objectives import METHODS
from softq.objectives.policy_gradient import grpo
from softq.objectives.sums import weighted_sum
from softq.records import Batch, Method, Pairs
from softq.verify.tables import TREE, models, some_models, some_step

LOG_2 = math.log(2)
UNSTATED = "nothing is stated of it"


class Equal(NamedTuple):
    """Two methods that must give the same loss and gradient."""

    says: str
    one: tuple[Method, Batch]
    other: tuple[Method, Batch]
    of: Models


class Line(NamedTuple):
    """A method, and what is stated of it; what is None is not stated."""

    method: Method
    name: str = ""  # in CONTRACT, and of its conformance vectors; a method of one's own has none
    why: str = ""  # why it has no fixed point
    at_reference: float | None = None  # its loss where the policy is the reference, without margins and soft labels
    rests: float | None = (
        None  # the margin in nats at which one hard pair of single tokens comes to rest; inf: it grows for ever
    )
    free: bool | None = None  # whether pairs that are not connected leave the mass between them free
    equals: tuple[Equal, ...] = ()


def _without(batch: Batch, *names: str) -> Batch:
    return Batch(batch.tokens, batch.feedback, {k: v for k, v in batch.columns.items() if k not in names})


def _with(batch: Batch, **columns: list[float]) -> Batch:
    added = {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}
    return Batch(batch.tokens, batch.feedback, {**batch.columns, **added})


dpo, ipo, tdpo2, wpo, aot, kto, infonca, sft = (
    METHODS[name] for name in ("dpo", "ipo", "tdpo2", "wpo", "aot", "kto", "infonca", "sft")
)
PAIRS = _without(some_step(dpo()), "margin", "label_probability")
PLAIN = _without(PAIRS, "weight")
UNIFORM = models(torch.zeros(len(TREE.prefixes), TREE.vocabulary, dtype=torch.float64), random_table(TREE, 1))
SHORT = token_tree([(0,)], vocabulary=4, horizon=1)
ONE_TOKEN = Batch(every_trajectory(SHORT), Pairs(torch.tensor([0, 2, 1]), torch.tensor([1, 3, 2])))
ONE_PAIR = Batch(PAIRS.tokens, Pairs(PAIRS.pairs.chosen[:1], PAIRS.pairs.rejected[:1]))
BEST_OF_TWO = Batch(PLAIN.tokens, None, {"reward": torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 0], dtype=torch.float64)})


def _equal(says: str, one: Method, other: Method, batch: Batch, of: Models | None = None) -> tuple[Equal, ...]:
    return (Equal(says, (one, batch), (other, batch), of or some_models()),)


_LINES: Mapping[str, Line] = {
    "dpo": Line(
        dpo(beta=0.7),
        at_reference=LOG_2,
        rests=math.inf,
        free=True,
        equals=_equal("dpo + 0 · sft is dpo", weighted_sum([(dpo(beta=0.7), 1.0), (sft(), 0.0)]), dpo(beta=0.7), PAIRS),
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
                (dpo(beta=0.7), _with(PAIRS, label_probability=[0.8] * 4)),
                some_models(),
            ),
        ),
    ),
    "ipo": Line(
        ipo(beta=0.5),
        at_reference=1.0,
        rests=1.0,
        free=True,
        equals=_equal(
            "of one token, the mean is the sum",
            ipo(beta=0.5),
            ipo(beta=0.5, length_average=False),
            ONE_TOKEN,
            some_models(tree=SHORT),
        ),
    ),
    "ipo_sum": Line(ipo(beta=0.5, length_average=False), at_reference=1.0, rests=1.0, free=True),
    "tdpo2": Line(
        tdpo2(beta=0.5),
        why="its stop-gradient makes its field no gradient, and no distribution where it vanishes is known in closed form",
        at_reference=LOG_2,
        rests=math.inf,
        free=False,
        equals=_equal("tdpo2 with α = 0 is dpo", tdpo2(beta=0.5, alpha=0.0), dpo(beta=0.5), PAIRS),
    ),
    "wpo": Line(
        wpo(beta=0.5),
        rests=math.inf,
        free=True,
        equals=_equal("at a uniform policy every weight is 1: dpo", wpo(beta=0.5), dpo(beta=0.5), PAIRS, UNIFORM),
    ),
    "aot": Line(
        aot(beta=0.5, label_smoothing=0.1),
        at_reference=LOG_2,
        rests=math.log(9) / 0.5,
        free=True,
        equals=_equal(
            "on one pair aot is cdpo", aot(label_smoothing=0.1), dpo(beta=0.01, label_smoothing=0.1), ONE_PAIR
        ),
    ),
    "aot_hard": Line(
        aot(beta=0.5),
        why="without label smoothing every sorted margin grows for ever",
        at_reference=LOG_2,
        rests=math.inf,
        free=True,
    ),
    "kto": Line(
        kto(beta=0.5),
        why="it saturates: inside, what is judged bad always loses mass to what is judged good",
        at_reference=0.5,
        rests=math.inf,
    ),
    "infonca": Line(
        infonca(beta=0.5, alpha=0.5),
        at_reference=LOG_2,
        rests=4.0,
        equals=(
            Equal(
                "of two completions, the better one sure: dpo",
                (infonca(beta=0.7, alpha=0.001), BEST_OF_TWO),
                (dpo(beta=0.7), PLAIN),
                some_models(),
            ),
        ),
    ),
    "sft": Line(
        sft(),
        rests=math.inf,
        equals=_equal("0 · dpo + sft is sft on the chosen", weighted_sum([(dpo(), 0.0), (sft(), 1.0)]), sft(), PAIRS),
    ),
    "dpo+sft": Line(
        weighted_sum([(dpo(beta=0.3), 0.8), (sft(), 0.2)]),
        why="a sum of losses rests between where its summands do; nothing is known in closed form",
        rests=math.inf,
        free=False,
    ),
    "grpo": Line(
        grpo(),
        why="its advantages are those of sampled groups, divided by their spread: a direction, not a loss of the policy alone",
    ),
}

CONTRACT: Mapping[str, Line] = {name: line._replace(name=name) for name, line in _LINES.items()}
