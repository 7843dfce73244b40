"""The reference's own completions under the policy: E_ref[βL] = -β KL(π_ref‖π) ≤ 0 (arXiv 2404.12358, eq 16).

Both sides are estimated from the same fresh samples, the right one with each state's divergence exact: they must agree, whatever
the policy is. Where they do not, samples and scores are not of one model.
"""

import numpy as np

from softq.data.intervals import mean
from softq.inspection.figures import Figure, Finding
from softq.inspection.shelf import Shelf

OFF = 4  # standard errors from which on chance is ruled out


def figures(shelf: Shelf) -> list[Figure]:
    """Both sides, and their difference, with normal intervals; none unless there are samples."""
    meanings = {
        "reward": "mean reward of the reference's own completions, which is 0 at most",
        "forced": "-β Σ KL(π_ref‖π) along them: the same, estimated state by state",
        "off": "the first less the second: 0 but for chance",
    }
    unit, found = str(shelf.facts["unit"]), []
    for (name, told), values in zip(meanings.items(), _sides(shelf), strict=True):
        if len(values):
            sure = mean(values)
            interval = None if sure is None else (sure.low, sure.high)
            found.append(Figure(f"fresh/{name}", float(values.mean()), unit, len(values), told, interval))
    return found


def findings(shelf: Shelf) -> list[Finding]:
    """A warning where the two sides are apart by more than chance."""
    off = _sides(shelf)[2]
    if len(off) < 2 or not abs(off.mean()) > OFF * off.std(ddof=1) / len(off) ** 0.5:
        return []
    told = f"the reference's own completions have a mean reward that is {off.mean():+.3g} off -β KL(π_ref‖π)"
    return [
        Finding("fresh/off", "act", told, "score again in --dtype float32 and --layout plain, and report what differs")
    ]


def _sides(shelf: Shelf) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[N] each: rewards, what is forced, and their difference. Empty without samples."""
    if not shelf.facts.get("fresh"):
        return np.zeros(0), np.zeros(0), np.zeros(0)
    table = shelf.table("fresh", ["reward", "kl_from_ref"])
    reward, kl = (table[name].to_numpy() for name in ("reward", "kl_from_ref"))
    forced = -(shelf.facts["beta"] or 1.0) * kl
    return reward, forced, reward - forced
