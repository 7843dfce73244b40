"""Pairs of given log-ratios as a step, and what a method makes of them."""

import torch
from torch import Tensor

from softq.records import Batch, Method, Pairs, Tokens


def numbers(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def step(rows: Tensor, action: Tensor, pairs: Pairs) -> tuple[dict[str, Tensor], Batch]:
    """Log-ratios [B, T] under a reference of 0 everywhere, one prompt."""
    ids = torch.zeros(len(rows), rows.shape[1] + 1, dtype=torch.int64)
    same = torch.zeros(len(rows), dtype=torch.int64)
    tokens = Tokens(ids, action, torch.ones(len(rows), dtype=torch.bool), same)
    return {"logp": rows, "ref_logp": torch.zeros_like(rows)}, Batch(tokens, pairs)


def of_ratios(chosen: Tensor, rejected: Tensor) -> tuple[dict[str, Tensor], Batch]:
    """Pairs of single tokens with log-ratios [P] and [P]."""
    rows = torch.cat([chosen, rejected])[:, None]
    order = torch.arange(len(rows)).view(2, -1)
    return step(rows, torch.ones_like(rows, dtype=torch.bool), Pairs(order[0], order[1]))


def losses(method: Method, chosen: Tensor, rejected: Tensor | None = None) -> Tensor:
    """The loss of each pair [P]; without `rejected`, of margins."""
    return method.terms[0].loss(*of_ratios(chosen, torch.zeros_like(chosen) if rejected is None else rejected))


def slopes(method: Method, chosen: Tensor, rejected: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The gradient of each pair's loss by its two log-ratios: [P], [P]."""
    w = chosen.clone().requires_grad_()
    low = (torch.zeros_like(chosen) if rejected is None else rejected).clone().requires_grad_()
    found = torch.autograd.grad(losses(method, w, low).sum(), [w, low])
    return found[0], found[1]


def same(found: Tensor, wanted: Tensor, within: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=within, atol=within)
