"""Groups of scored completions of one token each, and a method's loss on them as a function of their log-ratios."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from softq.records import Batch, Method, Tokens


def numbers(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def groups(*rewards: list[float]) -> Batch:
    """Groups of completions of one token each, with these scores."""
    count = torch.tensor([len(group) for group in rewards])
    one = torch.ones(int(count.sum()), dtype=torch.bool)
    ids = torch.ones(len(one), 2, dtype=torch.int64)
    tokens = Tokens(ids, one[:, None], one, torch.arange(len(rewards)).repeat_interleave(count))
    return Batch(tokens, None, {"reward": numbers(*itertools.chain(*rewards))})


def values(method: Method, ratio: Tensor, batch: Batch) -> Tensor:
    """The loss of each group, or row, from the log-ratios [B]."""
    scored = {"logp": ratio[:, None], "ref_logp": torch.zeros(len(ratio), 1, dtype=ratio.dtype)}
    return method.terms[0].loss(scored, batch)


def loss_of(method: Method, batch: Batch) -> Callable[[Tensor], Tensor]:
    return lambda ratio: (values(method, ratio, batch) * method.terms[0].weigh(batch)).sum()
