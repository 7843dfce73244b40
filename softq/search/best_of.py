"""Best of N: many samples, of which a score keeps the best; and the law of what is kept, exactly."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from softq.search.answer import Answer, best

Score = Callable[[Sequence[Answer]], Tensor]
"""[n] answers -> [n]: higher is better."""


def best_of(samples: Sequence[Sequence[Answer]], score: Score, *, n: int = 1) -> list[list[Answer]]:
    """The n best of each prompt's samples by a score, which becomes theirs, best first; of ties the first drawn."""
    each = [answer for answers in samples for answer in answers]
    scores = iter(score(each).tolist())
    return [best([answer._replace(score=next(scores)) for answer in answers], n) for answers in samples]


def law(logp: Tensor, score: Tensor, n: int) -> Tensor:
    """The log-probability of each of B answers to be the best of n that are drawn independently: [B], [B] -> [B].

    logp: of drawing each, all that can be drawn. With classes c of equal score, F(c) = P(score ≤ c) and F_(c) = P(score < c):
    P_n(c) = F(c)^n - F_(c)^n, and within a class in proportion to the draw, since of ties the first drawn is kept.
    """
    part, total = _classes(logp, score)
    return (n - 1) * total + _power(part, n) + logp


def divergence(logp: Tensor, score: Tensor, n: int) -> float:
    """KL(best of n ‖ one draw) in nats, exactly: Σ_c P_n(c) log P_n(c)/p_c. It ends at -log p(best class), however large n is."""
    after = law(logp, score, n)
    return float((after.exp() * (after - logp)).sum())


def bound(n: int) -> float:
    """log n - (n-1)/n ≥ KL(best of n ‖ one draw) (arXiv 2401.01879): reached where no two answers tie and none is likely."""
    return math.log(n) - (n - 1) / n


def _classes(logp: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """log p_c/F(c) and log F(c) of each answer's class, each [B]: the lowest has p = F, the best F = 1, whatever was rounded."""
    _, of = score.unique(return_inverse=True)  # classes in ascending order
    most = logp.new_full((int(of.max()) + 1,), -torch.inf).scatter_reduce(0, of, logp, "amax")
    mass = torch.zeros_like(most).index_add(0, of, (logp - most[of]).exp()).log() + most
    total = mass.logcumsumexp(0)
    return (mass - total)[of], (total - total[-1])[of]


def _power(log_part: Tensor, n: int) -> Tensor:
    """log (1 - (1-r)^n)/r of r = e^log_part in (0, 1]. It goes to log n as r goes to 0, and r may be too small for a number."""
    part = log_part.exp()
    whole = torch.log(-torch.expm1(n * torch.log1p(-part))) - log_part
    return torch.where(n * part < 1e-12, math.log(n), whole)
