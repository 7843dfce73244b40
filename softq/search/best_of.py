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
    mass, total, below = _classes(logp, score)
    share = logp - mass  # within the class
    return n * total + _log1mexp(n * (total - below)) + share


def divergence(logp: Tensor, score: Tensor, n: int) -> float:
    """KL(best of n ‖ one draw) in nats, exactly: Σ_c P_n(c) log P_n(c)/p_c. It ends at -log p(best class), however large n is."""
    after = law(logp, score, n)
    there = after > -torch.inf
    return float((after[there].exp() * (after - logp)[there]).sum())


def bound(n: int) -> float:
    """log n - (n-1)/n ≥ KL(best of n ‖ one draw) (arXiv 2401.01879): reached where no two answers tie and none is likely."""
    return math.log(n) - (n - 1) / n


def _classes(logp: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p_c, log F(c) and log F_(c) of each answer's class, each [B]."""
    _, of = score.unique(return_inverse=True)  # classes in ascending order
    p = torch.zeros(int(of.max()) + 1, dtype=logp.dtype).index_add(0, of, logp.exp())
    total = p.cumsum(0)
    below = torch.cat([total.new_zeros(1), total[:-1]])
    return p.log()[of], total.log()[of], below.log()[of]


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^-x) of x ≥ 0."""
    return torch.where(x > math.log(2), torch.log1p(-(-x).exp()), torch.log(-torch.expm1(-x)))
