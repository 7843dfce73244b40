"""Scalar functions that turn a margin into a loss. Tensors in, the same shape out."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def logistic(z: Tensor) -> Tensor:
    """h(z) = -log σ(z); finite for any finite z."""
    return F.softplus(-z)


def smoothed_logistic(z: Tensor, label_smoothing: float | Tensor) -> Tensor:
    """(1-ε) h(z) + ε h(-z): logistic loss under labels that are flipped with probability ε."""
    return (1 - label_smoothing) * logistic(z) + label_smoothing * logistic(-z)


def positive(name: str, value: float) -> float:
    """A number above 0, checked: at 0 nothing is learned, below it the opposite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; expected {name} > 0 and finite")
    return value


def not_negative(name: str, value: float) -> float:
    """A number of at least 0, checked: below it a part of the loss would push the other way."""
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}; expected {name} ≥ 0 and finite")
    return value


def finite(name: str, value: float) -> float:
    """A number of either sign, checked to be one: neither infinite nor nan."""
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}; expected a finite number")
    return value


def fraction(name: str, value: float) -> float:
    """A number from 0 to 1, checked."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; expected 0 ≤ {name} ≤ 1")
    return value


def flip_rate(label_smoothing: float) -> float:
    """The share of flipped labels, checked: 0 ≤ ε < 1/2."""
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing}; expected 0 ≤ label_smoothing < 0.5")
    return label_smoothing


def one_of(name: str, value: str, known: Iterable[str]) -> str:
    """A choice by name, checked."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    return value


def group_log_softmax(values: Tensor, group: Tensor) -> Tensor:
    """[B] log of the softmax of each value within its group; group [B] holds numbers 0..G-1."""
    groups = int(group.max()) + 1
    highest = torch.full((groups,), -torch.inf, dtype=values.dtype, device=values.device)
    highest = highest.scatter_reduce(0, group, values.detach(), "amax")
    shifted = values - highest[group]
    normaliser = torch.zeros_like(highest).index_add(0, group, shifted.exp()).log()
    return shifted - normaliser[group]


def group_sum(values: Tensor, group: Tensor) -> Tensor:
    """[B] -> [G]: the sum of each group."""
    return values.new_zeros(int(group.max()) + 1).index_add(0, group, values)


def group_mean(values: Tensor, of: Tensor, groups: int) -> Tensor:
    """[N] -> [G]: the mean of the values of each group, `of` [N] being their groups; 0 of a group that has none."""
    total = values.new_zeros(groups).index_add(0, of, values)
    return total / of.bincount(minlength=groups).clamp(min=1)


def group_pairs(group: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers (i, j) of all ordered pairs of rows of one group [B], each row with itself too: Σ n² of them."""
    order = group.argsort(stable=True)
    size = group.bincount()
    rows = size[group[order]]
    i = order.repeat_interleave(rows)
    nth = torch.arange(len(i), device=group.device) - (rows.cumsum(0) - rows).repeat_interleave(rows)
    return i, order[(size.cumsum(0) - size)[group[i]] + nth]
