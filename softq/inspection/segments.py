"""Completions cut into sentences, lines or steps of reasoning, and the reward of each: credit at the grain at which people read.

The reward of a segment is the sum of its tokens' rewards, so the segments of a completion sum to its reward. A token belongs to
the segment in which its first visible character stands; the end token to the last one.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from softq.inspection.credit import COLUMNS, Actions, actions
from softq.inspection.figures import Figure, bootstrapped
from softq.inspection.shelf import Shelf

CUTS: Mapping[str, re.Pattern[str]] = {
    "sentence": re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|[。！？]+\s*|\s*\n\s*"),
    "line": re.compile(r"\s*\n\s*"),
    "step": re.compile(r"\s*\n\s*\n\s*|\s*\n\s*(?=(?:step\s+)?\d+[.):]|[-*•]\s)", re.IGNORECASE),
}
"""What stands between two segments: after a sentence's sign and a space, so "e.g. " cuts too; after a line; before an empty line,
or a line that begins with a number or a bullet."""


class Segments(NamedTuple):
    """The segments of some completions, in order: arrays [G], and `text` a list."""

    record: np.ndarray
    completion: np.ndarray
    row: np.ndarray  # which completion of these, from 0
    tokens: np.ndarray  # how many
    reward: np.ndarray  # their sum
    text: list[str]


def segments(of: Actions, by: str) -> Segments:
    """Cut completions by one of CUTS. ValueError where it is none of them."""
    if by not in CUTS:
        raise ValueError(f"by={by!r} is no way to cut a completion: give one of {', '.join(CUTS)}")
    bounds = [*np.flatnonzero(np.diff(of.row, prepend=-1)), len(of.row)]
    cut = [numbers(of.text[a:b], of.end[a:b], CUTS[by]) for a, b in itertools.pairwise(bounds)]
    new = np.concatenate([np.diff(each, prepend=-1) > 0 for each in cut]) if cut else np.zeros(0, dtype=bool)
    at, first = new.cumsum() - 1, np.flatnonzero(new)
    last = [*first[1:], len(of.row)]
    return Segments(
        of.record[first],
        of.completion[first],
        of.row[first],
        np.bincount(at),
        np.bincount(at, of.reward),
        ["".join(of.text[a:b]) for a, b in zip(first, last, strict=True)],
    )


def numbers(text: list[str], end: np.ndarray, cut: re.Pattern[str]) -> np.ndarray:
    """[T] which segment each token of one completion is in, from 0, without gaps."""
    said = "".join(piece for piece, ends in zip(text, end, strict=True) if not ends)
    blank = len(said) - len(said.lstrip())  # what stands before any text is no segment
    starts = [0, *(match.end() for match in cut.finditer(said) if blank <= match.start() and match.end() < len(said))]
    offset = np.cumsum([0, *map(len, text[:-1])])
    lead = [len(piece) - len(piece.lstrip()) if piece.strip() else 0 for piece in text]
    # White space alone goes with what it follows.
    seen = [
        max(at - 1, 0) if piece.isspace() else at + skip for at, skip, piece in zip(offset, lead, text, strict=True)
    ]
    found = np.maximum.accumulate(np.searchsorted(starts, np.minimum(seen, max(len(said) - 1, 0)), "right"))
    return np.unique(found, return_inverse=True)[1]


def read(shelf: Shelf, by: str) -> Iterator[Segments]:
    """The segments of a scored data set, part by part. It must have a reference."""
    for tokens, table in zip(shelf.parts("tokens", COLUMNS), shelf.parts(shelf.kind), strict=True):
        yield segments(actions(tokens, table), by)


def figures(shelf: Shelf) -> list[Figure]:
    """How many segments completions have, and how much of a completion's credit is in its largest, with intervals over records.

    None without a reference.
    """
    return [figure for by in CUTS for figure in _figures(shelf, by)] if shelf.compared else []


def _figures(shelf: Shelf, by: str) -> list[Figure]:
    found = [values for of in read(shelf, by) if len(of.row) for values in _by_record(of)]
    if not found:
        return []
    count, largest = np.array(found).T

    def mean(values: np.ndarray) -> float:
        there = values[~np.isnan(values)]
        return float(there.mean()) if len(there) else float("nan")

    told = {
        "count": (count, f"{by}s", f"{by}s of a completion"),
        "largest": (
            largest,
            "share",
            f"share of Σ|reward of a {by}| that a completion's largest {by} has; of two or more",
        ),
    }
    return [
        Figure(
            f"segments/{by}/{name}",
            mean(values),
            unit,
            int((~np.isnan(values)).sum()),
            meaning,
            bootstrapped(lambda rows, values=values: mean(values[rows]), len(values)),
        )
        for name, (values, unit, meaning) in told.items()
    ]


def _by_record(of: Segments) -> Iterator[tuple[float, float]]:
    """Of each record the mean number of segments, and the mean share of the largest, over its completions."""
    size, first = np.abs(of.reward), np.unique(of.row, return_index=True)[1]
    count, record = np.bincount(of.row), of.record[first]
    highest = np.maximum.reduceat(size, first)
    with np.errstate(invalid="ignore"):
        share = np.where(count > 1, highest / np.bincount(of.row, size), np.nan)
    for one in np.unique(record):
        mine = record == one
        there = share[mine][~np.isnan(share[mine])]
        yield float(count[mine].mean()), float(there.mean()) if len(there) else float("nan")
