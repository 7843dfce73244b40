"""How far TRL's loss and gradient are from ours, and from the formula that a case gives for them."""

from typing import NamedTuple

import torch
from cases import Case
from steps import halves, loss
from torch import Tensor
from trainers import Step, Trainers

from softq.verify.vectors import method_of

AGREES = 1e-6
REALLY = 1e-3
"""A difference that is documented must be seen: by how much at least."""


class Measured(NamedTuple):
    """The largest difference of loss and gradient, relative where the number is above 1."""

    ours: float
    formula: float = 0.0


def measured(case: Case, trainers: Trainers, seed: int) -> Measured:
    """One case on the step of this seed."""
    step, method = case.draw(seed), method_of({"method": case.ours, "parameters": case.parameters})
    parts = halves(step) if case.halved else [step]
    theirs = torch.stack([trainers.loss(case.trainer, case.settings, part) for part in parts]).mean()
    ours = apart(theirs, loss(method, step), step)
    if case.theirs is None:
        return Measured(ours)
    return Measured(ours, apart(theirs, case.theirs(step, lambda each: loss(method, each)), step))


def apart(one: Tensor, other: Tensor, step: Step) -> float:
    """The largest difference of two losses and of their gradients by the leaf."""
    a, b = (torch.cat([each.detach().flatten(), slope(each, step)]) for each in (one, other))
    return relative(a, b)


def relative(a: Tensor, b: Tensor) -> float:
    """The largest |a - b| / max(1, |b|); inf if anything is nan."""
    return float(((a - b).abs() / b.abs().clamp(min=1)).nan_to_num(nan=torch.inf, posinf=torch.inf).max())


def slope(value: Tensor, step: Step) -> Tensor:
    """The gradient by the leaf, flat."""
    return torch.autograd.grad(value, step.leaf, retain_graph=True)[0].flatten().to(value.dtype)
