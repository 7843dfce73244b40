"""Numbers with their 95 % intervals, for what is counted and measured in data."""

import math
from typing import NamedTuple

import numpy as np

Z = 1.959964  # P(|standard normal| < Z) = 0.95


class Interval(NamedTuple):
    """A number, and what it may as well have been."""

    value: float
    low: float
    high: float

    def beyond(self, centre: float, by: float) -> bool:
        """Whether the whole interval is further than that from the centre, on one side of it."""
        return self.low > centre + by or self.high < centre - by


def share(wins: float, n: int) -> Interval:
    """p = wins / n with Wilson's interval (1927): all q with |p - q| ≤ Z √(q (1 - q) / n). A tie may be half a win."""
    p = wins / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))


def mean(values: np.ndarray) -> Interval | None:
    """mean ± Z sd / √n; None for less than two values."""
    n = len(values)
    return _normal(float(values.mean()), float(values.var(ddof=1)) / n) if n > 1 else None


def paired_effect(differences: np.ndarray) -> Interval | None:
    """Cohen's d of paired measurements: d = mean / sd of the differences ± Z √(1/n + d²/2n); None if all are equal."""
    n = len(differences)
    if n < 2 or not np.ptp(differences):
        return None
    d = float(differences.mean() / differences.std(ddof=1))
    return _normal(d, 1 / n + d**2 / (2 * n))


def effect(a: np.ndarray, b: np.ndarray) -> Interval | None:
    """Cohen's d of two samples: (mean a - mean b) / pooled sd ± Z √((n+m)/nm + d²/2(n+m)) (Hedges and Olkin, 1985)."""
    n, m = len(a), len(b)
    if not n or not m or not (np.ptp(a) or np.ptp(b)):
        return None
    squares = ((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()
    d = float((a.mean() - b.mean()) / math.sqrt(squares / (n + m - 2)))
    return _normal(d, (n + m) / (n * m) + d**2 / (2 * (n + m)))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's: the correlation of the ranks, where equal values share their mean rank; None where all are equal."""
    if not len(a) or not np.ptp(a) or not np.ptp(b):
        return None
    x, y = (ranks - ranks.mean() for ranks in (_ranks(a), _ranks(b)))
    return float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]


def _normal(value: float, variance: float) -> Interval:
    return Interval(value, value - Z * math.sqrt(variance), value + Z * math.sqrt(variance))
