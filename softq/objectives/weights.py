"""How much each value of a loss counts. Only this file averages, always over a whole optimiser step.

A weight function sees the step before it is cut into micro-batches, so the cut can not change the gradient.
"""

import torch
from torch import Tensor

from softq import masked
from softq.records import Batch, Labels, Pairs, group_of


def per_pair(batch: Batch) -> Tensor:
    """[P]: the column `weight` over its sum, or 1/P each. Sums to 1, or is 0 where no pair of the step has a weight."""
    weight = batch.columns.get("weight")
    if weight is None:
        return masked.share(torch.ones_like(batch.pairs.chosen, dtype=torch.bool))
    if not bool((weight >= 0).all()):
        raise ValueError("column 'weight' has a value that is negative or nan; expected weights ≥ 0")
    whole = weight.double().sum()
    return weight.double() / torch.where(whole > 0, whole, 1)


def per_slot(batch: Batch) -> Tensor:
    """[P]: 1/P each, whatever pair ends in which slot. Sums to 1."""
    return masked.share(torch.ones_like(batch.pairs.chosen, dtype=torch.bool))


def per_label(batch: Batch) -> Tensor:
    """[U]: 1/U each. Sums to 1."""
    return masked.share(torch.ones_like(batch.labels.good))


def per_row(batch: Batch) -> Tensor:
    """[B]: 1/B each. Sums to 1."""
    return masked.share(torch.ones_like(batch.tokens.ended))


def per_group(batch: Batch) -> Tensor:
    """[G]: 1/G each. Sums to 1."""
    groups = int(group_of(batch.tokens.prompt).max()) + 1
    return masked.share(torch.ones(groups, dtype=torch.bool, device=batch.tokens.ids.device))


def per_token(batch: Batch) -> Tensor:
    """[B, T]: 1 over the number of tokens. Sums to 1."""
    return masked.share(batch.tokens.action)


def per_demonstrated_token(batch: Batch) -> Tensor:
    """[B, T]: 1 over the number of tokens that are shown as good (see `_demonstrations`). Sums to 1."""
    return masked.share(batch.tokens.action & _demonstrations(batch)[:, None])


def per_row_then_token(batch: Batch) -> Tensor:
    """[B, T]: 1/(B |y|), the mean over rows of their token means. Sums to 1."""
    return _mean_of_means(batch.tokens.action)


def per_demonstration(batch: Batch) -> Tensor:
    """[B, T]: 1/(D |y|), the mean over the D rows that are shown as good of their token means. Sums to 1."""
    return _mean_of_means(batch.tokens.action & _demonstrations(batch)[:, None])


def _mean_of_means(action: Tensor) -> Tensor:
    """[B, T]: of the actions, a row's among themselves and the rows that have any among each other."""
    per_token = action.double() / action.sum(-1, keepdim=True).clamp(min=1)
    return per_token / action.any(-1).sum().clamp(min=1)


def _demonstrations(batch: Batch) -> Tensor:
    """[B] bool: the rows that a policy should imitate: the chosen, the good, of scored ones a group's first best; or all."""
    rows = torch.zeros_like(batch.tokens.ended)
    if isinstance(batch.feedback, Pairs):
        rows[batch.feedback.chosen] = True
    elif isinstance(batch.feedback, Labels):
        rows[batch.feedback.row[batch.feedback.good]] = True
    elif "reward" in batch.columns:
        rows[_first_best(group_of(batch.tokens.prompt), batch.columns["reward"])] = True
    else:
        rows[:] = True
    return rows


def _first_best(group: Tensor, reward: Tensor) -> Tensor:
    """[G] row numbers."""
    falling = reward.argsort(descending=True, stable=True)
    size = group.bincount()
    return falling[group[falling].argsort(stable=True)][size.cumsum(0) - size]
