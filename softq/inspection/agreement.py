"""Do two policies give credit to the same tokens of the same data, and do they rank its pairs alike?

Of each completion, over its tokens: the rank correlation of both rewards (Spearman, ties by their mean rank), and that of their
signs, mean sgn(r) sgn(r'). Both are free of β, so of the unit: 1 says the same, 0 nothing, -1 the opposite. Of pairs: the rank
correlation of both margins, and which ones only one of the two has right.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from softq.inspection.figures import Figure, Finding, bootstrapped
from softq.inspection.shelf import Shelf

KEYS = ["record", "completion", "position", "token"]
WORST = 50  # records that a finding names


class Agreement(NamedTuple):
    """Of each completion [C] of two scored data sets; nan where it is not defined, as where one token has no rank."""

    record: np.ndarray
    rank: np.ndarray  # rank correlation of the tokens' rewards
    sign: np.ndarray  # correlation of their signs


def agreement(tokens: pa.Table, other: pa.Table) -> Agreement:
    """Of the same part of both tables of tokens."""
    record, completion = (tokens[name].to_numpy() for name in KEYS[:2])
    new = (np.diff(record, prepend=-1) != 0) | (np.diff(completion, prepend=-1) != 0)
    row = new.cumsum() - 1
    one, two = (of["reward"].to_numpy().astype(np.float64) for of in (tokens, other))
    sign = np.bincount(row, np.sign(one) * np.sign(two)) / np.bincount(row)
    return Agreement(record[new], correlation(ranks(one, row), ranks(two, row), row), sign)


def ranks(values: np.ndarray, row: np.ndarray) -> np.ndarray:
    """[N] the rank of each value in its row, from 0; equal ones share their mean rank. Rows stand in order."""
    order = np.lexsort((values, row))
    ordered, at = values[order], row[order]
    start = (np.diff(ordered, prepend=np.nan) != 0) | (np.diff(at, prepend=-1) != 0)
    tie = start.cumsum() - 1
    place = np.arange(len(row)) - np.searchsorted(row, at)
    found = np.empty(len(row))
    found[order] = (np.bincount(tie, place) / np.bincount(tie))[tie]
    return found


def correlation(one: np.ndarray, two: np.ndarray, row: np.ndarray) -> np.ndarray:
    """[C] Pearson's, of two values [N] in each row; nan where one of them does not vary."""
    count = np.bincount(row)
    a, b = (values - (np.bincount(row, values) / count)[row] for values in (one, two))
    above, size = np.bincount(row, a * b), np.sqrt(np.bincount(row, a * a) * np.bincount(row, b * b))
    return np.divide(above, size, out=np.full(len(count), np.nan), where=size > 0)


def matched(shelf: Shelf, other: Shelf) -> None:
    """ValueError unless both score the same tokens, each against a reference."""
    for each in (shelf, other):
        if not each.compared:
            raise ValueError(
                f"{each.directory} has no reference, so no rewards to compare; score it with --reference R"
            )
    if any(shelf.facts[name] != other.facts[name] for name in ("content", "parts")):
        raise ValueError(
            f"{shelf.directory} and {other.directory} do not hold the same tokens; score both policies on the same files, with "
            "the same settings and tokenizer"
        )


def read(shelf: Shelf, other: Shelf) -> Iterator[Agreement]:
    """Part by part. ValueError where the data differ."""
    matched(shelf, other)
    columns = [*KEYS, "reward"]
    for one, two in zip(shelf.parts("tokens", columns), other.parts("tokens", columns), strict=True):
        if one.num_rows:
            yield agreement(one, two)


def figures(shelf: Shelf, other: Shelf) -> list[Figure]:
    """Means over completions, with intervals over records; of pairs also their margins. ValueError where the data differ."""
    record, rank, sign = (np.concatenate(column) for column in zip(*read(shelf, other), strict=True))
    found = [
        _mean("rank", record, rank, "mean rank correlation of both policies' rewards over the tokens of a completion"),
        _mean("sign", record, sign, "mean product of the signs of both policies' rewards of a token"),
    ]
    if shelf.kind != "pairs":
        return found
    _, one, two = _margins(shelf, other)
    number, alone = np.arange(len(one)), np.zeros(len(one), dtype=int)
    a, b = ranks(one, alone), ranks(two, alone)

    def correlated(rows: np.ndarray) -> float:
        return float(correlation(a[rows], b[rows], alone)[0])

    meaning = "rank correlation of both policies' margins over pairs"
    return [
        *found,
        Figure("agreement/margin", correlated(number), "", len(one), meaning, bootstrapped(correlated, len(one))),
        _mean("flipped", number, (one > 0) != (two > 0), "share of pairs that only one of the two policies has right"),
        _mean("gained", number, 1.0 * (two > 0) - (one > 0), "accuracy of the second policy less that of the first"),
    ]


def findings(shelf: Shelf, other: Shelf) -> list[Finding]:
    """Which pairs only one of the two has right, by the second's margin, the surest first. ValueError where the data differ."""
    matched(shelf, other)
    if shelf.kind != "pairs":
        return []
    record, one, two = _margins(shelf, other)
    found = []
    for name, mine, told in (
        ("lost", (one > 0) & (two <= 0), "right by the first policy and wrong by the second"),
        ("won", (one <= 0) & (two > 0), "wrong by the first policy and right by the second"),
    ):
        worst = np.flatnonzero(mine)[np.argsort(-np.abs(two[mine]), kind="stable")][:WORST]
        if len(worst):
            said = f"{mine.sum()} of {len(one)} pairs are {told}"
            found.append(Finding(f"agreement/{name}", "expected", said, records=record[worst].tolist()))
    return found


def _margins(shelf: Shelf, other: Shelf) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Records [P] and both margins, where both are numbers."""
    tables = [of.table("pairs", ["record", "margin"]) for of in (shelf, other)]
    one, two = (table["margin"].to_numpy() for table in tables)
    there = np.isfinite(one) & np.isfinite(two)
    return tables[0]["record"].to_numpy()[there], one[there], two[there]


def _mean(name: str, record: np.ndarray, values: np.ndarray, meaning: str) -> Figure:
    """A mean over what is a number; the interval draws records."""
    there = ~np.isnan(values)
    at = np.unique(record, return_inverse=True)[1]
    total, count = (np.bincount(at[there], of[there], at.max() + 1) for of in (values, np.ones(len(at))))

    def mean(rows: np.ndarray) -> float:
        return float(total[rows].sum() / count[rows].sum()) if count[rows].sum() else float("nan")

    interval = bootstrapped(mean, len(total))
    return Figure(
        f"agreement/{name}",
        mean(np.arange(len(total))),
        "share" if name == "flipped" else "",
        int(there.sum()),
        meaning,
        interval,
    )
