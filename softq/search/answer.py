"""What a search gives back, and when an answer is at its end."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from softq.lm.growing import Growing


class Answer(NamedTuple):
    """A completion that was found."""

    prompt: int  # the number of its prompt
    node: int  # its last, in the forest
    tokens: tuple[int, ...]  # its end token included, if it has one
    ended: bool  # False: cut at the limit
    score: float  # what it was ranked by
    logp: float  # Σ log π of the voice, nats


class Limits(NamedTuple):
    """Where answers end."""

    tokens: int  # at most so many
    ends: frozenset[int] = frozenset()  # any of these ends an answer, and belongs to it
    stopped: Callable[[Sequence[int]], bool] | None = (
        None  # of the tokens of an answer so far: whether a text in it ends it
    )

    def ended(self, forest: Growing, parents: Tensor, tokens: Tensor) -> Tensor:
        """[n] bool: whether an answer ends with each of these tokens, said behind these nodes."""
        found = torch.isin(tokens, torch.tensor([*self.ends], dtype=torch.int64))
        if self.stopped is not None:
            said = zip(parents.tolist(), tokens.tolist(), strict=True)
            texts = [self.stopped([*forest.answer(node), token]) for node, token in said]
            found |= torch.tensor(texts, dtype=torch.bool)
        return found


def answer(forest: Growing, node: int, ended: bool, score: float | None = None) -> Answer:
    """The answer that ends at a node; its log-probability is read from the nodes' own, and is its score where none is given."""
    path = forest.answered(node)
    logp = float(forest.column("logp")[path].sum())
    return Answer(
        int(forest.prompt[node]), node, tuple(forest.answer(node)), ended, logp if score is None else score, logp
    )


def best(answers: Sequence[Answer], n: int) -> list[Answer]:
    """The n of the highest scores, the first found first where they tie."""
    return sorted(answers, key=lambda each: -each.score)[:n]
