"""What measures come to: figures with their intervals, and findings with what to do about them."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

DRAWS = 1000  # resamplings of a bootstrap interval


class Figure(NamedTuple):
    """One number of a data set or a policy."""

    name: str  # "accuracy/strict"
    value: float  # nan where it is not defined
    unit: str
    of: int  # how many pairs, completions or tokens
    meaning: str  # one sentence
    interval: tuple[float, float] | None = None  # 95 %


class Finding(NamedTuple):
    """Something to know about, in words."""

    name: str
    level: Literal["expected", "watch", "act"]
    told: str  # what is seen, with its numbers
    act: str = ""  # what to do
    records: Sequence[int] = ()  # which records of the data, the worst first


def as_json(item: Figure | Finding) -> dict[str, Any]:
    """Ready for JSON: what is no number is null."""
    return {name: _plain(value) for name, value in item._asdict().items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def bootstrapped(
    statistic: Callable[[np.ndarray], float], count: int, *, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float] | None:
    """The 95 % percentile interval of a statistic of `count` independent records: it is asked of row numbers [count], drawn with
    replacement. None below two records. Efron and Tibshirani, 1993."""
    if count < 2:
        return None
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, count, count)) for _ in range(draws)]
    low, high = np.nanquantile(values, [0.025, 0.975]) if not np.isnan(values).all() else (np.nan, np.nan)
    return float(low), float(high)
