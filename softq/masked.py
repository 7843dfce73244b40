"""Sums and means under a mask. Nobody else divides by a mask."""

import torch
from torch import Tensor


def total(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Σ of the values where mask is True; a value outside, even nan, does not count."""
    chosen = torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))
    return chosen.sum() if dim is None else chosen.sum(dim)


def mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of the values where mask is True; 0 where nothing is."""
    count = mask.sum() if dim is None else mask.sum(dim)
    return total(values, mask, dim) / count.clamp(min=1)


def share(mask: Tensor) -> Tensor:
    """Weights of a mean: 1/(number of True) where True, 0 elsewhere; the shape of the mask, float64.

    Float64 so that a loss in any dtype gets weights that are exact for it; whoever multiplies casts.
    """
    return mask.double() / mask.sum().clamp(min=1)


def product(weight: Tensor, values: Tensor) -> Tensor:
    """weight · value, and 0 where the weight is 0, whatever the value: 0 · log 0 = 0."""
    return weight * torch.where(weight == 0, torch.zeros((), dtype=values.dtype, device=values.device), values)
