"""A line of the contract list: a method as the lab runs it, and what is stated of it; and steps to state it on."""

import math
from typing import NamedTuple

import torch

from softq.lm.score import Models
from softq.mdp.tabular import every_trajectory, random_table, token_tree
from softq.objectives.margins import dpo
from softq.records import Batch, Labels, Method, Pairs
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


def without(batch: Batch, *names: str) -> Batch:
    """The batch without these columns."""
    return Batch(batch.tokens, batch.feedback, {k: v for k, v in batch.columns.items() if k not in names})


def also(batch: Batch, **columns: list[float]) -> Batch:
    """The batch with these columns."""
    added = {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}
    return Batch(batch.tokens, batch.feedback, {**batch.columns, **added})


PAIRS = without(some_step(dpo()), "margin", "label_probability")
PLAIN = without(PAIRS, "weight")
UNIFORM = models(torch.zeros(len(TREE.prefixes), TREE.vocabulary, dtype=torch.float64), random_table(TREE, 1))
SHORT = token_tree([(0,)], vocabulary=4, horizon=1)
SINGLE_TOKENS = Batch(every_trajectory(SHORT), Pairs(torch.tensor([0, 2, 1]), torch.tensor([1, 3, 2])))
ONE_PAIR = Batch(PAIRS.tokens, Pairs(PAIRS.pairs.chosen[:1], PAIRS.pairs.rejected[:1]))
BEST_OF_TWO = Batch(PLAIN.tokens, None, {"reward": torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 0], dtype=torch.float64)})
JUDGED = Batch(PLAIN.tokens, Labels(torch.arange(8), BEST_OF_TWO.columns["reward"] > 0, torch.arange(0)))
"""The pairs one by one: the chosen are good, the rejected bad."""


def equal(says: str, one: Method, other: Method, batch: Batch, of: Models | None = None) -> tuple[Equal, ...]:
    """Two methods that are the same on a step, as `Line.equals`."""
    return (Equal(says, (one, batch), (other, batch), of or some_models()),)
