"""Differential information: what a policy has that its reference has not, as a distribution over completions.

    q(y|x) = π(y|x) / (π_ref(y|x) W),   W = Σ_y π(y|x)/π_ref(y|x),   log q = L - log W with L = log π/π_ref

(arXiv 2505.23761.) A low entropy H(q) says that training reinforced a few completions, a high one that it spread its change over
many. q is of whole completions: one that was cut at a length limit has none.

With the policy's own samples y_i, W = E_π[1/π_ref] and q is their law weighed by 1/π_ref(y_i). These weights are so uneven that
the estimate rests on few samples: read it with its effective sample size. Everything is in nats, by logarithms: 1/π_ref is large.
"""

from typing import NamedTuple

import numpy as np

from softq.inspection.figures import Figure, bootstrapped
from softq.inspection.shelf import Shelf

COLUMNS = ["record", "ended", "logp", "ref_logp"]


class Information(NamedTuple):
    """Of one prompt."""

    log_w: float  # nats, log W
    entropy: float  # nats, H(q)
    effective: float  # how many samples, of even weight, the estimate rests on; all completions where it is exact


def exact(logp: np.ndarray, ref_logp: np.ndarray) -> Information:
    """Of all completions [Y] of a prompt, with log π and log π_ref of each. ValueError where π is no distribution over them."""
    if abs(_log_sum(logp)) > 1e-6:
        raise ValueError(
            f"the completions have {np.exp(_log_sum(logp)):.6g} of the policy's mass, not 1: give all of them"
        )
    ratio = logp - ref_logp
    log_w = _log_sum(ratio)
    log_q = ratio - log_w
    return Information(log_w, float(-_product(np.exp(log_q), log_q).sum()), float(len(logp)))


def estimated(logp: np.ndarray, ref_logp: np.ndarray, drawn: int) -> Information:
    """Self-normalised, of whole completions [N] that were sampled from the policy at temperature 1; each draw has its row.

    H(q) = log W - E_q[L], with log W as the logarithm of a mean: biased down in a small sample. The mean is over all `drawn`
    ≥ N samples, those that were cut too, which have no weight: else the policy's mass on them would be taken for W's.
    """
    log_w = _log_sum(-ref_logp) - float(np.log(drawn))
    weight = np.exp(-ref_logp - _log_sum(-ref_logp))
    entropy = log_w - float((weight * (logp - ref_logp)).sum())
    return Information(log_w, entropy, float(1 / (weight**2).sum()))


def figures(shelf: Shelf) -> list[Figure]:
    """Means over prompts with two whole completions at least, of rows that the policy itself sampled.

    Of any other data the numbers say nothing. None without a reference, or of pairs.
    """
    if not shelf.compared or shelf.kind != "rows":
        return []
    table = shelf.table("rows", COLUMNS)
    record, whole, logp, ref_logp = (table[name].to_numpy() for name in COLUMNS)
    known = np.isfinite(logp) & np.isfinite(ref_logp)
    record, whole, logp, ref_logp = (values[known] for values in (record, whole, logp, ref_logp))
    found = [
        estimated(logp[mine & whole], ref_logp[mine & whole], int(mine.sum()))
        for mine in (record == one for one in np.unique(record))
        if (mine & whole).sum() > 1
    ]
    if not found:
        return []
    meanings = {
        "log_w": ("nats", "log Σ π/π_ref over completions of a prompt, estimated from the policy's samples"),
        "entropy": ("nats", "entropy of q = π/π_ref over its sum: low, a few completions were reinforced"),
        "effective": ("completions", "effective sample size of a prompt's estimate; near 1 it rests on one completion"),
    }
    columns = np.array(found).T
    return [
        Figure(
            f"information/{name}",
            float(values.mean()),
            unit,
            len(found),
            meaning,
            bootstrapped(lambda rows, values=values: float(values[rows].mean()), len(found)),
        )
        for (name, (unit, meaning)), values in zip(meanings.items(), columns, strict=True)
    ]


def _log_sum(values: np.ndarray) -> float:
    high = values.max()
    return float(high + np.log(np.exp(values - high).sum()))


def _product(weight: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What has no weight does not count, whatever its value."""
    return np.where(weight > 0, weight * np.where(weight > 0, values, 0.0), 0.0)
