"""Reward against compute, as SVG text: a point with its interval for each decoder, and curves of what else it buys."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from softq.inspection.plot import LETTER, STYLE, number, ticks

WIDTH, HEIGHT = 760, 430
LEFT, RIGHT, TOP, BOTTOM = 58.0, 96.0, 58.0, 52.0  # px around the points
HIGH = 12.0  # px of a name
PLACES = [(side * 9, down, end) for down in (4, -10, 18, -24, 32, -38, 46) for side, end in ((1, "start"), (-1, "end"))]
"""Where a name may stand beside its point, in px, and which of its ends is there; the first free one is taken."""

MORE = (
    ".plot .name{paint-order:stroke;stroke:#fff;stroke-width:3px;stroke-linejoin:round}"
    ".plot .bar{stroke:#0072b2;stroke-width:1.4}.plot .kin{stroke:#0072b2;stroke-width:1.2;opacity:.45}"
    "@media (prefers-color-scheme:dark){.plot .bar,.plot .kin{stroke:#56b4e9}.plot .name{stroke:#12181f}}"
)


class Point(NamedTuple):
    """What a decoder came to."""

    name: str
    compute: float
    reward: float
    interval: tuple[float, float] | None = None
    kind: str = ""  # points of one kind, such as a decoder at several settings, are joined


class Curve(NamedTuple):
    """What others come to, by compute: (compute, reward) of each."""

    name: str
    points: Sequence[tuple[float, float]]


class Frame(NamedTuple):
    """What the picture shows: log10 of compute across, reward up."""

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, compute: float) -> float:
        """px."""
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(compute) - self.x[0]) / (self.x[1] - self.x[0])

    def down(self, reward: float) -> float:
        """px."""
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.y[1] - reward) / (self.y[1] - self.y[0])


def compute_plot(points: Sequence[Point], curves: Sequence[Curve], *, title: str, reward: str, compute: str) -> str:
    """The picture; compute on a logarithmic axis. `reward` and `compute` say what the axes are."""
    frame = _frame(points, curves)
    kinds = ("other", "second")
    body = [*_grid(frame)]
    for curve, kind in zip(curves, kinds, strict=False):
        body += _curve(frame, curve, kind)
    body += [*_kin(frame, points), *_points(frame, points), *_names(frame, points)]
    head = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{escape(title)}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" {head}>',
            f"<style>{STYLE}{MORE}</style>",
            f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="8"/>',
            _text(16, 24, title, "title"),
            *_legend(curves, kinds),
            *body,
            _text(LEFT, TOP - 10, reward, "soft"),
            _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, compute, "soft", "middle"),
            "</svg>",
            "",
        ]
    )


def _frame(points: Sequence[Point], curves: Sequence[Curve]) -> Frame:
    """All points with their intervals, with a little room."""
    both = [(point.compute, value) for point in points for value in (point.reward, *(point.interval or ()))]
    both += [pair for curve in curves for pair in curve.points]
    xs, ys = [math.log10(x) for x, _ in both], [y for _, y in both]
    across, up = max(xs) - min(xs) or 1.0, max(ys) - min(ys) or 1.0
    return Frame((min(xs) - 0.05 * across, max(xs) + 0.05 * across), (min(ys) - 0.08 * up, max(ys) + 0.08 * up))


def _grid(frame: Frame) -> Iterator[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for value in ticks(*frame.y, 6):
        y = frame.down(value)
        yield f'<path class="{"grid" if value else "zero"}" d="M{_px(LEFT)} {_px(y)}H{_px(right)}"/>'
        yield _text(LEFT - 6, y + 3.8, number(value), "soft", "end")
    for value in _decades(*frame.x):
        x = frame.across(value)
        yield f'<path class="grid" d="M{_px(x)} {_px(TOP)}V{_px(bottom)}"/>'
        yield _text(x, bottom + 15, number(value), "soft", "middle")


def _decades(low: float, high: float) -> list[float]:
    """Round numbers from 10^low to 10^high: 1, 2 and 5 times powers of ten, powers alone where that is enough."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    every = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    within = [value for value in every if low <= math.log10(value) <= high]
    tens = [value for value in within if math.log10(value) % 1 < 1e-9]
    return tens if len(tens) > 3 else within


def _curve(frame: Frame, curve: Curve, kind: str) -> Iterator[str]:
    path = "L".join(f"{_px(frame.across(x))} {_px(frame.down(y))}" for x, y in sorted(curve.points))
    yield f'<path class="{kind} line" d="M{path}h0" stroke-linecap="round"/>'


def _points(frame: Frame, points: Sequence[Point]) -> Iterator[str]:
    for point in points:
        x, y = frame.across(point.compute), frame.down(point.reward)
        if point.interval is not None:
            low, high = map(frame.down, point.interval)
            yield f'<path class="bar" d="M{_px(x)} {_px(low)}V{_px(high)}M{_px(x - 3)} {_px(low)}h6M{_px(x - 3)} {_px(high)}h6"/>'
        yield f'<circle class="first" cx="{_px(x)}" cy="{_px(y)}" r="4.2"/>'


def _kin(frame: Frame, points: Sequence[Point]) -> Iterator[str]:
    """A line through the points of each kind."""
    for kind in dict.fromkeys(point.kind for point in points if point.kind):
        of = sorted((point for point in points if point.kind == kind), key=lambda point: point.compute)
        path = "L".join(f"{_px(frame.across(point.compute))} {_px(frame.down(point.reward))}" for point in of)
        if len(of) > 1:
            yield f'<path class="kin" d="M{path}"/>'


def _names(frame: Frame, points: Sequence[Point]) -> Iterator[str]:
    """Each name beside its point, on no other point or name where that can be had."""
    taken = [_around(frame, point) for point in points]
    for point in points:
        x, y = frame.across(point.compute), frame.down(point.reward)
        width = LETTER * len(point.name)
        boxes = [_box(x + dx, y + dy, width, end) for dx, dy, end in PLACES]
        free = [n for n, box in enumerate(boxes) if not any(_overlap(box, other) for other in taken)]
        n = free[0] if free else 0
        taken.append(boxes[n])
        dx, dy, end = PLACES[n]
        yield _text(x + dx, y + dy, point.name, "name", end)


Box = tuple[float, float, float, float]  # left, top, right, bottom, in px


def _box(x: float, y: float, width: float, end: str) -> Box:
    left = x if end == "start" else x - width
    return left, y - HIGH + 2, left + width, y + 2


def _around(frame: Frame, point: Point) -> Box:
    """A point with its interval."""
    x, y = frame.across(point.compute), frame.down(point.reward)
    high, low = (frame.down(value) for value in reversed(point.interval or (point.reward, point.reward)))
    return x - 4.5, min(high, y - 4.5), x + 4.5, max(low, y + 4.5)


def _overlap(one: Box, other: Box) -> bool:
    """Whether two boxes overlap, or one leaves the picture."""
    apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    return not apart or one[2] > WIDTH - 4 or one[0] < LEFT


def _legend(curves: Sequence[Curve], kinds: Sequence[str]) -> Iterator[str]:
    x = 16.0 + LEFT + 130
    for curve, kind in zip(curves, kinds, strict=False):
        yield f'<path class="{kind} line" d="M{_px(x)} {_px(TOP - 14)}h20"/>'
        yield _text(x + 26, TOP - 10, curve.name)
        x += 26 + LETTER * len(curve.name) + 16


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "") -> str:
    how = "".join(f' {key}="{value}"' for key, value in (("class", kind), ("text-anchor", anchor)) if value)
    return f'<text x="{_px(x)}" y="{_px(y)}"{how}>{escape(words)}</text>'


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
