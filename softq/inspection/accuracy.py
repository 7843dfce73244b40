"""Does the policy hold the chosen completion for the better one: a pair is right where its score is positive.

Strict: margin > 0, a tie is wrong, as RewardBench counts. With half-ties: a tie is half right, what a fair coin would make of it.
Scores [P]: the margin (needs a reference), and three that need none, under RewardBench's names (arXiv 2403.13787):
`sum` Σ log π, `avg` Σ log π / tokens, `norm` -‖log π of the tokens‖₂, each of the chosen one less the rejected one's.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa

from softq.data.intervals import share
from softq.inspection.columns import SIDES
from softq.inspection.figures import Figure, Finding, bootstrapped
from softq.inspection.shelf import Shelf

MATCHED = 0.1  # completions as long as each other: they differ by at most this share of the longer one
BUCKETS = 5
WORST = 50  # records that a finding names

FREE: Mapping[str, str] = {
    "sum": "Σ log π",
    "avg": "Σ log π a token",
    "norm": "-‖log π of the tokens‖₂",
}


def half_ties(margin: np.ndarray) -> np.ndarray:
    """1 right, ½ tied, 0 wrong: [P] -> [P]."""
    return (np.sign(margin) + 1) / 2


def buckets(values: np.ndarray, count: int = BUCKETS) -> np.ndarray:
    """Which of `count` buckets of about equal size, from 0: [P] -> [P]. Equal values share one, so there may be fewer."""
    edges = np.quantile(values, np.linspace(0, 1, count + 1)[1:-1]) if len(values) else values
    return np.unique(np.searchsorted(np.unique(edges), values, side="right"), return_inverse=True)[1]


def matched(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """|n_w - n_l| ≤ 0.1 · max(n_w, n_l): two lengths [P] -> [P] bool."""
    return np.abs(chosen - rejected) <= MATCHED * np.maximum(chosen, rejected)


def reweighted(right: np.ndarray, difference: np.ndarray, bucket: np.ndarray) -> float:
    """Accuracy if the longer completion were chosen as often as the shorter one: in each bucket of |n_w - n_l| (mean where the
    chosen one is longer + mean where it is shorter) / 2, weighed by the bucket's pairs. All arrays [P]. Buckets where only one of
    the two occurs say nothing and are left out, equal lengths stay as they are; nan where nothing is left. A score that only
    counts tokens comes to ½."""
    total = pairs = 0.0
    for of in (bucket == number for number in np.unique(bucket[difference != 0])):
        sides = [right[of & (np.sign(difference) == sign)] for sign in (1, -1)]
        if all(map(len, sides)):
            count = sum(map(len, sides))
            total, pairs = total + count * float(np.mean([side.mean() for side in sides])), pairs + count
    same = right[difference == 0]
    return (total + float(same.sum())) / (pairs + len(same)) if pairs + len(same) else np.nan


def mean_figure(name: str, values: np.ndarray, meaning: str) -> Figure:
    """A share of pairs: the mean of `values` [P] in 0…1, with its bootstrap interval. Where all are 0 or all are 1 a resampling
    always is too, so the interval is Wilson's (1927)."""
    if not len(values):
        return Figure(name, np.nan, "share", 0, meaning)
    sure = values.mean() in (0, 1)
    interval = (
        share(float(values.sum()), len(values))[1:]
        if sure
        else bootstrapped(lambda rows: float(values[rows].mean()), len(values))
    )
    return Figure(name, float(values.mean()), "share", len(values), meaning, interval)


def norms(shelf: Shelf) -> np.ndarray:
    """-‖log π‖₂ of the chosen less the rejected one's, in the order of the pairs: [P] nats. Reads the tokens part by part."""
    parts = shelf.parts("tokens", ["record", "completion", "logp"])
    found = {key: value for part in parts for key, value in _norms(part)}
    records = shelf.table("pairs", ["record"])["record"].to_pylist()
    return np.array([found[number, 0] - found[number, 1] for number in records])


def _norms(tokens: pa.Table) -> Iterator[tuple[tuple[int, int], float]]:
    record, completion, logp = (tokens[name].to_numpy() for name in ("record", "completion", "logp"))
    keys, row = np.unique(np.stack([record, completion]), axis=1, return_inverse=True)
    totals = np.bincount(row.ravel(), weights=logp.astype(np.float64) ** 2)
    for number, which, total in zip(*keys.tolist(), totals.tolist(), strict=True):
        yield (number, which), -(total**0.5)


def free_margins(shelf: Shelf) -> dict[str, np.ndarray]:
    """The three reference-free scores of the pairs, by name: [P] each."""
    table = shelf.table("pairs", [f"{side}_{name}" for side in SIDES for name in ("logp", "tokens")])
    (w, n), (low, m) = ([table[f"{side}_{name}"].to_numpy() for name in ("logp", "tokens")] for side in SIDES)
    return {"sum": w - low, "avg": w / n - low / m, "norm": norms(shelf)}


def figures(shelf: Shelf) -> list[Figure]:
    """Accuracy of the implicit reward (with a reference) whole, by length, source and margin; and of the three scores without."""
    if shelf.kind != "pairs":
        return []
    free = [
        mean_figure(
            f"accuracy/free/{name}",
            margin[np.isfinite(margin)] > 0,
            f"pairs right by {FREE[name]}; a tie is wrong",
        )
        for name, margin in free_margins(shelf).items()
    ]
    return [*implicit(measured(shelf)), *free] if shelf.compared else free


def measured(shelf: Shelf) -> pa.Table:
    """record, source, margin and lengths of the pairs whose margin is a number. Needs a reference."""
    table = shelf.table("pairs", ["record", "source", "margin", "chosen_tokens", "rejected_tokens"])
    return table.filter(pa.array(np.isfinite(table["margin"].to_numpy())))


def implicit(pairs: pa.Table) -> list[Figure]:
    """The figures of the implicit reward, from the columns of `measured`: `whole`, and those of their parts."""
    margin, chosen, rejected = (pairs[name].to_numpy() for name in ("margin", "chosen_tokens", "rejected_tokens"))
    right, difference = half_ties(margin), chosen.astype(np.int64) - rejected

    def of(name: str, rows: np.ndarray) -> Figure:
        return mean_figure(f"accuracy/source/{name}", right[rows], f"pairs of {name}; a tie is half right")

    return [
        *whole(pairs),
        *_bucketed("length", right, difference, lambda a, b: f"chosen less rejected from {a:.0f} to {b:.0f} tokens"),
        *_bucketed("margin", right, np.abs(margin), lambda a, b: f"rewards that differ by {a:.3g} to {b:.3g}"),
        *by_source(pairs, of),
    ]


def whole(pairs: pa.Table) -> list[Figure]:
    """Strict, with half-ties, ties, length-matched and reweighted, of all pairs."""
    margin, chosen, rejected = (pairs[name].to_numpy() for name in ("margin", "chosen_tokens", "rejected_tokens"))
    right, difference = half_ties(margin), chosen.astype(np.int64) - rejected
    bucket = buckets(np.abs(difference))
    even = reweighted(right, difference, bucket)
    drawn = bootstrapped(lambda rows: reweighted(right[rows], difference[rows], bucket[rows]), len(right))
    as_long = right[matched(chosen, rejected)]
    told = "; a tie is half right"
    return [
        mean_figure(
            "accuracy/strict", margin > 0, "pairs whose chosen completion has the higher reward; a tie is wrong"
        ),
        mean_figure("accuracy/half_ties", right, f"pairs whose chosen completion has the higher reward{told}"),
        mean_figure("accuracy/ties", margin == 0, "pairs whose completions have the same reward"),
        mean_figure("accuracy/length_matched", as_long, f"pairs whose lengths differ by a tenth at most{told}"),
        Figure(
            "accuracy/length_reweighted",
            even,
            "share",
            len(right),
            f"pairs weighed as if the longer completion were chosen as often as the shorter one{told}",
            drawn if np.isfinite(even) else None,
        ),
    ]


def _bucketed(name: str, right: np.ndarray, by: np.ndarray, told: Callable[[float, float], str]) -> Iterator[Figure]:
    """One figure a bucket of `by`, the lowest first."""
    bucket = buckets(by)
    for number in np.unique(bucket):
        here = by[bucket == number]
        meaning = f"pairs of {told(here.min(), here.max())}; a tie is half right"
        yield mean_figure(f"accuracy/{name}/{number + 1}", right[bucket == number], meaning)


def by_source(pairs: pa.Table, measure: Callable[[str, np.ndarray], Figure]) -> list[Figure]:
    """`measure(name, rows)` of each source, in the order of their names; nothing where there is one source only."""
    source = np.array([name or "unnamed" for name in pairs["source"].to_pylist()])
    names = sorted({*source.tolist()})
    return [measure(name, np.flatnonzero(source == name)) for name in names] if len(names) > 1 else []


def findings(shelf: Shelf) -> list[Finding]:
    """Rewards that say the contrary of the labels, or nothing, or that chance may have made, or that count tokens."""
    if shelf.kind != "pairs" or not shelf.compared:
        return []
    pairs = measured(shelf)
    known = {figure.name: figure for figure in whole(pairs)}
    return [each for each in (_contrary(known, pairs), _tied(known), _chance(known), _lengths(known)) if each]


def _contrary(known: Mapping[str, Figure], pairs: pa.Table) -> Finding | None:
    every = known["accuracy/half_ties"]
    if every.interval is None or every.interval[1] >= 0.5:
        return None
    margin = pairs["margin"].to_numpy()
    worst = pairs["record"].to_numpy()[np.argsort(margin, kind="stable")[:WORST]]
    return Finding(
        "accuracy/contrary",
        "act",
        f"the reward prefers the rejected completion: {_told(every)} of {every.of} pairs are right",
        "see whether chosen and rejected, or policy and reference, are swapped",
        worst.tolist(),
    )


def _tied(known: Mapping[str, Figure]) -> Finding | None:
    ties = known["accuracy/ties"]
    if not ties.value > 0.5:
        return None
    told = f"{ties.value:.1%} of {ties.of} pairs have two completions of the same reward"
    return Finding(
        "accuracy/tied", "act", told, "see whether the policy is the reference, or the completions are the same"
    )


def _chance(known: Mapping[str, Figure]) -> Finding | None:
    every, ties = known["accuracy/half_ties"], known["accuracy/ties"]
    if every.interval is None or not every.interval[0] <= 0.5 <= every.interval[1] or ties.value > 0.5:
        return None
    return Finding(
        "accuracy/chance",
        "watch",
        f"the reward ranks {_told(every)} of {every.of} pairs right, which a coin might do too",
        "score more pairs if these are few; else nothing that generalises was learned: train longer, or look at the data",
    )


def _lengths(known: Mapping[str, Figure]) -> Finding | None:
    every, even = known["accuracy/half_ties"], known["accuracy/length_reweighted"]
    if every.interval is None or even.interval is None or not even.interval[1] < every.interval[0]:
        return None
    return Finding(
        "accuracy/length",
        "watch",
        f"{_told(every)} of the pairs are right, but {_told(even)} if the longer completion were not the likelier choice",
        "the reward goes by length: normalise by it (simpo, or ld_alpha), or balance the data's lengths",
    )


def _told(figure: Figure) -> str:
    low, high = figure.interval or (np.nan, np.nan)
    return f"{figure.value:.1%} ({low:.1%} to {high:.1%})"
