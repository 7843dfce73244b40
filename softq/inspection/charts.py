"""Where the marks of small charts are, in px of a picture of their own: the page's templates draw them.

Charts are plain numbers and paths here, never markup, so that no name in them can be markup either.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from softq.inspection.plot import number, ticks

WIDTH, HEIGHT = 320.0, 190.0  # px
LEFT, RIGHT, TOP, BOTTOM = 44.0, 8.0, 10.0, 26.0  # px, what stands around the curves
POINTS = 150  # of a curve; where there are more, each is the mean of several
WHISKER = 120.0  # px

Point = tuple[float, float]


class Scale(NamedTuple):
    """From a range of values to px."""

    low: float
    high: float
    start: float  # px of low
    end: float  # px of high

    def __call__(self, value: float) -> float:
        return round(self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low), 1)

    def marks(self, most: int) -> list[tuple[float, str, bool]]:
        """Where ticks are, what they say, and whether they are 0."""
        return [(self(value), number(value), value == 0) for value in ticks(self.low, self.high, most)]


def curve(chart: Mapping[str, Any], other: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """A chart of the report's curves, `other` the same of a second policy, dashed. None where no point is a number."""
    lines = [(one, kind) for kind, of in (("own", chart), ("theirs", other)) for one in (of["lines"] if of else ())]
    thin = [(one["name"], kind, *_thinned(one["points"])) for one, kind in lines]
    known = [(x, y) for *_, points in thin for x, y in points if not math.isnan(y)]
    if not known:
        return None
    across, down = scales(known)
    drawn = [
        {"name": name, "kind": kind, "path": _path(points, across, down), "last": _last(points), "each": each}
        for name, kind, each, points in thin
    ]
    names = list(dict.fromkeys(line["name"].split(",")[0] for line in drawn))
    for line in drawn:  # "chosen, held out" has the colour of "chosen" and is broad and pale
        name, *more = line["name"].split(",")
        line |= {"colour": names.index(name) % 4 + 1, "beside": bool(more)}
    return {"lines": drawn, "x": across.marks(4), "y": down.marks(4), "each": max(each for _, _, each, _ in thin)}


def scales(points: Sequence[Point]) -> tuple[Scale, Scale]:
    """The scales on which all points are seen, with a little room above and below them."""
    (left, right), (low, high) = (_wide(values) for values in zip(*points, strict=True))
    room = 0.06 * (high - low)
    return Scale(left, right, LEFT, WIDTH - RIGHT), Scale(low - room, high + room, HEIGHT - BOTTOM, TOP)


def _wide(values: Sequence[float]) -> Point:
    low, high = min(values), max(values)
    return (low, high) if high - low > 1e-9 * max(abs(low), abs(high)) else (low - 1, high + 1)


def _thinned(points: Iterable[Sequence[float | None]]) -> tuple[int, list[Point]]:
    """How many points make one, and the means of so many at a time; nan where any of them is no number."""
    known = [(float(x), math.nan if y is None else float(y)) for x, y in points if x is not None]
    each = max(1, -(-len(known) // POINTS))
    groups = [known[at : at + each] for at in range(0, len(known), each)]
    return each, [(sum(x for x, _ in of) / len(of), sum(y for _, y in of) / len(of)) for of in groups]


def _path(points: Sequence[Point], across: Scale, down: Scale) -> str:
    parts, drawing = [], False
    for x, y in points:
        if not math.isnan(y):  # h0: a point alone is a dot, by the round end of a line
            parts.append(f"L{across(x):g} {down(y):g}" if drawing else f"M{across(x):g} {down(y):g}h0")
        drawing = not math.isnan(y)
    return "".join(parts)


def _last(points: Sequence[Point]) -> float | None:
    return next((y for _, y in reversed(points) if not math.isnan(y)), None)


def reliability(bins: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The share of right labels over what σ(margin) says: dots of an area like their count, with intervals."""
    low = 0.5 if min(each[0] for each in bins) >= 0.5 else 0.0
    across, down = Scale(low, 1, 40, 250), Scale(0 if low == 0 else min(0.4, *(each[4] for each in bins)), 1, 224, 14)
    most = max(each[2] for each in bins)
    dots = [
        {
            "x": across((a + b) / 2),
            "y": down(rate),
            "low": down(rate_low),
            "high": down(rate_high),
            "r": round(2 + 4 * math.sqrt(count / most), 1),
            "told": f"σ(margin) {(a + b) / 2:.2f}: {rate:.0%} of {count} labels agree [{rate_low:.0%}, {rate_high:.0%}]",
        }
        for a, b, count, rate, rate_low, rate_high in bins
        if count
    ]
    start = max(across.low, down.low)
    same = (across(start), down(start), across(1), down(1))
    return {"dots": dots, "x": across.marks(5), "y": down.marks(6), "same": same}


def whiskers(figures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | None]:
    """For each figure its dot and interval on an axis which figures of one unit share: shares 0…1, the others with 0 inside."""
    ranges: dict[str, list[float]] = {}
    for figure in figures:
        if figure["value"] is not None and figure["interval"]:
            ranges.setdefault(figure["unit"], [0.0]).extend([figure["value"], *_finite(figure["interval"])])
    return [_whisker(figure, ranges.get(figure["unit"])) for figure in figures]


def _whisker(figure: Mapping[str, Any], values: Sequence[float] | None) -> dict[str, Any] | None:
    interval = _finite(figure["interval"] or ())
    if figure["value"] is None or len(interval) < 2 or values is None:
        return None
    share = figure["unit"] == "share" and max(values) <= 1 and min(values) >= 0
    low, high = (0.0, 1.0) if share else _wide(values)
    across = Scale(low, high, 5, WHISKER - 5)
    return {
        "x": across(figure["value"]),
        "low": across(interval[0]),
        "high": across(interval[1]),
        "zero": across(0.5 if share else 0),
    }


def _finite(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
