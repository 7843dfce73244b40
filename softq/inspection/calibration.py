"""Is σ(margin) the probability that the label is right: Bradley and Terry's model, which dpo fits, checked against the labels.

Every label says "chosen", so a pair is read from its confident side: confidence σ(|margin|) in ½…1, and right is 1 where the
margin is positive, ½ where it is 0, else 0. Read both ways round, each pair would say the same twice.
Expected calibration error = Σ_bins (pairs of the bin / pairs) · |share right - mean confidence| (arXiv 1706.04599), with bins
of about equal size. Of few pairs it is above 0 by chance too: a bin's share is off by about ½/√pairs of the bin.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from softq.data.intervals import share
from softq.inspection.accuracy import buckets, by_source, half_ties, measured
from softq.inspection.figures import Figure, Finding, bootstrapped
from softq.inspection.shelf import Shelf

BINS = 10
MUCH = 0.05  # a mean confidence that is off by more is told


class Bin(NamedTuple):
    """One point of the reliability curve."""

    confidence: float  # mean σ(|margin|) of its pairs
    right: float  # share of them whose label agrees
    low: float  # Wilson's 95 % interval of that share
    high: float
    pairs: int
    least: float  # the least σ(|margin|) of its pairs
    most: float


def confidence(margin: np.ndarray) -> np.ndarray:
    """σ(|margin|): margins in reward units [P] -> [P], ½…1."""
    return 1 / (1 + np.exp(-np.abs(margin)))


def curve(margin: np.ndarray, bins: int = BINS) -> list[Bin]:
    """The reliability curve of margins [P] in reward units, the least confident bin first; no bin is empty."""
    sure, right, which = confidence(margin), half_ties(margin), buckets(np.abs(margin), bins)
    found = []
    for of in (which == number for number in np.unique(which)):
        value, low, high = share(float(right[of].sum()), int(of.sum()))
        ends = float(sure[of].min()), float(sure[of].max())
        found.append(Bin(float(sure[of].mean()), value, low, high, int(of.sum()), *ends))
    return found


def expected_error(sure: np.ndarray, right: np.ndarray, which: np.ndarray) -> float:
    """Σ_bins |Σ_{pairs of the bin} (right - sure)| / P: [P] each, `which` the bin, from 0."""
    return float(np.abs(np.bincount(which, weights=right - sure)).sum() / len(sure))


def curves(shelf: Shelf) -> dict[str, list[Bin]]:
    """The reliability curve of all pairs ("") and of each source by name. {} without pairs, a reference or a known β."""
    if not _fit(shelf):
        return {}
    pairs = measured(shelf)
    margin, source = pairs["margin"].to_numpy(), np.array([name or "unnamed" for name in pairs["source"].to_pylist()])
    names = sorted({*source.tolist()})
    each = {name: curve(margin[source == name]) for name in names} if len(names) > 1 else {}
    return {"": curve(margin), **each} if len(margin) else {}


def figures(shelf: Shelf) -> list[Figure]:
    """Expected calibration error and overconfidence, of all pairs and of each source. A reward in nats has none: without β,
    σ(margin) is no probability that was ever fitted."""
    return _figures(measured(shelf)) if _fit(shelf) else []


def _fit(shelf: Shelf) -> bool:
    return shelf.kind == "pairs" and shelf.compared and shelf.facts["beta"] is not None


def _figures(pairs: pa.Table) -> list[Figure]:
    margin = pairs["margin"].to_numpy()
    if not len(margin):
        return []
    return [
        _error("calibration/error", margin),
        _over("calibration/overconfidence", margin),
        *by_source(pairs, lambda name, rows: _error(f"calibration/error/{name}", margin[rows])),
        *by_source(pairs, lambda name, rows: _over(f"calibration/overconfidence/{name}", margin[rows])),
    ]


def _error(name: str, margin: np.ndarray) -> Figure:
    sure, right, which = confidence(margin), half_ties(margin), buckets(np.abs(margin), BINS)
    drawn = bootstrapped(lambda rows: expected_error(sure[rows], right[rows], which[rows]), len(margin))
    meaning = (
        f"expected calibration error: |share right - confidence σ(|margin|)|, mean over {which.max() + 1} bins of pairs"
    )
    return Figure(name, expected_error(sure, right, which), "share", len(margin), meaning, drawn)


def _over(name: str, margin: np.ndarray) -> Figure:
    excess = confidence(margin) - half_ties(margin)
    drawn = bootstrapped(lambda rows: float(excess[rows].mean()), len(margin))
    meaning = "mean confidence σ(|margin|) less the share of pairs that are right: above 0 the rewards are too sure"
    return Figure(name, float(excess.mean()), "share", len(margin), meaning, drawn)


def findings(shelf: Shelf) -> list[Finding]:
    """Rewards that are too sure, or not sure enough."""
    if not _fit(shelf):
        return []
    over = next((figure for figure in _figures(measured(shelf)) if figure.name == "calibration/overconfidence"), None)
    if over is None or over.interval is None:
        return []
    low, high = over.interval
    told = f"the rewards' mean confidence is {{}} by {abs(over.value):.1%} ({{:.1%}} to {{:.1%}}) of {over.of} pairs"
    if low > MUCH:
        act = "read margins as an order, not as probabilities; fewer epochs or label smoothing make them less sure"
        return [Finding("calibration/too_sure", "watch", told.format("too high", low, high), act)]
    if high < -MUCH:
        act = "margins are smaller than the labels allow: usual early in training or of a small β; a σ of them is too near ½"
        return [Finding("calibration/not_sure", "expected", told.format("too low", -high, -low), act)]
    return []
