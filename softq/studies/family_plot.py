"""True reward against KL, one point a method with its intervals, as an SVG picture: text, and nothing but text is made."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import product
from statistics import median
from textwrap import wrap
from typing import NamedTuple

from softq.studies.arms import START, Arms, Results, shape_of
from softq.studies.claims import less, values
from softq.studies.seeds import spread
from softq.studies.trial import Trial

WIDTH, HEIGHT = 940.0, 740.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 22.0, 110.0, 92.0  # px around the panel
LETTER, LINE = 6.3, 13.0  # px: the mean width of a letter of a label, and its height
FAR = 1.2  # the cost of a px between a label and its mark; hiding a square px of another label costs 4
NEAREST = 1e-6  # nats; a logarithmic axis has no 0
WIDE, LOST = 20.0, 0.3  # how far out a point may be: KL by the median, reward lost by the most that was gained
HEAP = 6.0  # px: marks that are nearer share a label
SHAPES: Mapping[str, tuple[str, str, str]] = {
    "margins": ("margins, divergences", "#0072b2", "circle"),
    "divergences": ("margins, divergences", "#0072b2", "circle"),
    "lengths": ("lengths", "#009e73", "square"),
    "sides": ("sides", "#d55e00", "diamond"),
    "reference_free": ("reference-free", "#cc79a7", "up"),
    "anchored": ("anchored", "#e69f00", "down"),
    "token_level": ("token level", "#1f2933", "cross"),
    "distillation": ("token level", "#1f2933", "cross"),
    "unpaired": ("labels, transport", "#56b4e9", "hexagon"),
    "transport": ("labels, transport", "#56b4e9", "hexagon"),
    "rankings": ("groups", "#8c6bb1", "star"),
    "regression": ("groups", "#8c6bb1", "star"),
}
"""File of `softq.objectives` -> its name in the legend, a colour (Okabe and Ito's, and a violet), a mark of its own."""
OTHER = ("demonstrations", "#7b8794", "ring")
STYLE = (
    ".family text{font:11.5px system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;fill:#1f2933;"
    "font-variant-numeric:tabular-nums}"
    ".family .title{font-size:17px;font-weight:600}.family .soft{fill:#5b6b7a}.family .paper{fill:#fff;stroke:#d9e0e6}"
    ".family .grid{stroke:#e9edf1}.family .start{stroke:#7b8794;stroke-dasharray:2 4}.family .bar{stroke-width:1;opacity:.32}"
    ".family .lead{stroke:#9aa7b3;stroke-width:.7}.family .path{fill:none;stroke:#c3ccd4;stroke-width:5;stroke-linejoin:round;"
    "stroke-linecap:round}.family .halo{stroke:#fff;stroke-width:3px;paint-order:stroke;stroke-linejoin:round}"
)


class Point(NamedTuple):
    """One method: where it is, its intervals, and its shape."""

    name: str
    shape: str
    x: float  # KL, nats
    y: float  # true reward
    x_interval: tuple[float, float]
    y_interval: tuple[float, float]


class Box(NamedTuple):
    """A rectangle in px."""

    left: float
    top: float
    width: float
    height: float

    def overlap(self, other: "Box") -> float:
        """The area that both cover."""
        wide = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        high = min(self.top + self.height, other.top + other.height) - max(self.top, other.top)
        return max(wide, 0.0) * max(high, 0.0)


class Tag(NamedTuple):
    """A label: what it is of, in px, and its lines."""

    anchor: tuple[float, float]
    lines: tuple[str, ...]
    kind: str  # a class of STYLE


class Scale(NamedTuple):
    """From KL, on a logarithmic axis, and reward to px."""

    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, kl: float, reward: float) -> tuple[float, float]:
        """(x, y) in px."""
        low, high = (math.log(end) for end in self.x)
        across = max(0.0, (math.log(max(kl, NEAREST)) - low) / (high - low))
        down = (self.y[1] - reward) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), TOP + down * (HEIGHT - TOP - BOTTOM)


def picture(results: Results, arms: Arms) -> str:
    """The picture: every method by its defaults; the broad grey line is dpo over its β."""
    points = [found for name in arms.default if (found := point(results, arms, name))]
    start = spread(values(results, START, "reward")).mean
    scale, far = scaled(points, start)
    near = [point for point in points if point not in far]
    line = [found for _, one in sorted(arms.beta.get("dpo", {}).items()) if (found := _on(results, one))]
    tags = [
        *_tags(scale, near),
        *(Tag(scale.at(kl, reward), (told,), "soft halo") for kl, reward, told in line if told),
    ]
    label = "True reward against KL from the reference, one point a method, with 95 % intervals"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="family" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" width="{WIDTH:.0f}" '
            f'height="{HEIGHT:.0f}" role="img" aria-label="{label}">',
            f"<style>{STYLE}</style>",
            f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1:.0f}" height="{HEIGHT - 1:.0f}" rx="10"/>',
            *_heads(len(results[START])),
            *_legend(points),
            *_axes(scale, start),
            *_path([scale.at(kl, reward) for kl, reward, _ in line]),
            *(part for point in near for part in _bars(scale, point)),
            *_marks(scale, near),
            *_labels(tags),
            *_beyond(far),
            "</svg>",
            "",
        ]
    )


def point(results: Results, arms: Arms, name: str) -> Point | None:
    """A method by its defaults; None where no training of it came to an end."""
    trial = arms.default[name].name
    if not (reward := values(results, trial, "reward")):
        return None
    kl, gain = spread(values(results, trial, "kl")), spread(less(reward, values(results, START, "reward")))
    y, half = spread(reward).mean, _half(gain.interval)
    return Point(
        name,
        shape_of(name),
        kl.mean,
        y,
        (kl.mean - _half(kl.interval), kl.mean + _half(kl.interval)),
        (y - half, y + half),
    )


def placed(tags: Sequence[Tag]) -> list[Box]:
    """A box for each label: near its own mark, off the other labels and marks as far as there is room.

    Each in turn takes the cheapest place around its anchor, given where the others are; four rounds of that.
    """
    marks = [Box(x - 6, y - 6, 12, 12) for x, y in (tag.anchor for tag in tags)]
    boxes: list[Box | None] = [None] * len(tags)
    for _ in range(4):
        for n, tag in enumerate(tags):
            others = [box for k, box in enumerate(boxes) if box and k != n]
            boxes[n] = _cheapest(tag, others, marks)
    return [box for box in boxes if box]


def _cheapest(tag: Tag, others: Sequence[Box], marks: Sequence[Box]) -> Box:
    """The place of a label that hides least, and of such the nearest."""
    best, least = None, math.inf
    for place in sorted(_around(tag), key=lambda box: _distance(box, tag.anchor)):
        if best is not None and FAR * _distance(place, tag.anchor) >= least:
            break
        wide = Box(place.left - 3, place.top - 1, place.width + 6, place.height + 2)
        hidden = 4 * sum(map(wide.overlap, others)) + 2 * sum(map(wide.overlap, marks))
        cost = hidden + FAR * _distance(place, tag.anchor)
        best, least = (place, cost) if cost < least else (best, least)
    if best is None:
        raise ValueError(f"no label like {tag.lines} has room around {tag.anchor}")
    return best


def _around(tag: Tag) -> Iterator[Box]:
    """Places of a label around its anchor, inside the panel."""
    width, height = LETTER * max(map(len, tag.lines)), LINE * len(tag.lines)
    for away, turn in product((0, 8, 16, 26, 38, 52, 70, 92, 118, 148, 180), range(24)):
        across, down = math.cos(turn * math.pi / 12), math.sin(turn * math.pi / 12)
        x, y = tag.anchor[0] + across * (9 + away), tag.anchor[1] + down * (9 + away)
        left, top = (
            x - width * (1 - across) / 2,
            y - height * (1 - down) / 2,
        )  # the side that faces the anchor is at (x, y)
        if LEFT + 3 < left < WIDTH - RIGHT - width and TOP < top < HEIGHT - BOTTOM - height:
            yield Box(left, top, width, height)


def _distance(place: Box, anchor: tuple[float, float]) -> float:
    return math.dist(anchor, _facing(place, anchor))


def _facing(place: Box, anchor: tuple[float, float]) -> tuple[float, float]:
    """The point of a box that is nearest to the anchor."""
    x, y = anchor
    return min(max(x, place.left), place.left + place.width), min(max(y, place.top), place.top + place.height)


def scaled(points: Sequence[Point], start: float) -> tuple[Scale, list[Point]]:
    """What to show, and the points that are too far out for it: of reward what lost no more than LOST of what the best one
    gained, of KL what is within WIDE of the median. What is hardly any distance from the start is shown at the left."""
    lowest = start - LOST * (max([point.y for point in points], default=start) - start)
    middle = median([max(point.x, NEAREST) for point in points]) if points else 1.0
    far = [point for point in points if point.y < lowest or point.x > middle * WIDE]
    near = [point for point in points if point not in far]
    kl = [max(point.x, middle / WIDE) for point in near] or [1.0]
    reward = [start, *(point.y for point in near)]
    room = 0.1 * (max(reward) - min(reward)) or 0.1
    return Scale((min(kl) / 1.2, max(kl) * 1.4), (min(reward) - room, max(reward) + room)), far


def _heads(seeds: int) -> Iterator[str]:
    yield _text(24, 32, "Every preference objective in one small world", "title")
    told = f"true reward of its answers against KL from the reference; bars: 95 % intervals over {seeds} worlds"
    yield _text(24, 51, told, "soft")


def _legend(points: Sequence[Point]) -> Iterator[str]:
    """The shapes that are there, in a row under the head."""
    x = 30.0
    for name, colour, mark in dict.fromkeys(_style(point.shape) for point in points):
        yield _mark(mark, colour, x, 74)
        yield _text(x + 10, 78, name, "soft")
        x += 32 + 6.1 * len(name)


def _style(shape: str) -> tuple[str, str, str]:
    return SHAPES.get(shape, OTHER)


def _axes(scale: Scale, start: float) -> Iterator[str]:
    """Lines and numbers, what they are of, and where all methods start."""
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for kl in (m * 10.0**power for power, m in product(range(-3, 4), (1, 2, 5))):
        if scale.x[0] <= kl <= scale.x[1]:
            x, _ = scale.at(kl, start)
            yield f'<path class="grid" d="M{x:.1f} {TOP:.1f}V{bottom:.1f}"/>'
            yield _text(x, bottom + 16, f"{kl:g}", "soft", "middle")
    step = 0.1 if scale.y[1] - scale.y[0] < 1 else 0.5
    for number in range(math.ceil(scale.y[0] / step), math.floor(scale.y[1] / step) + 1):
        _, y = scale.at(1.0, number * step)
        yield f'<path class="grid" d="M{LEFT:.1f} {y:.1f}H{right:.1f}"/>'
        yield _text(LEFT - 8, y + 4, f"{number * step:.1f}".replace("-", "−"), "soft", "end")
    _, y = scale.at(1.0, start)
    yield f'<path class="start" d="M{LEFT:.1f} {y:.1f}H{right:.1f}"/>'
    yield _text(right - 4, y - 6, f"the fine-tuned model, from which all start: {start:.2f}", "soft", "end")
    told = "KL of whole answers from the reference, nats (logarithmic): to the left, near to where it started"
    yield _text((LEFT + right) / 2, bottom + 35, told, "soft", "middle")
    yield _text(LEFT - 34, TOP - 6, "true reward (at most 3)", "soft")


def _path(places: Sequence[tuple[float, float]]) -> Iterator[str]:
    """dpo over its β, in px."""
    if places:
        yield f'<path class="path" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>'


def _on(results: Results, one: Trial) -> tuple[float, float, str] | None:
    """KL, reward and label of a training with another β than its default; no label by its default, which is a point."""
    reward, kl = values(results, one.name, "reward"), values(results, one.name, "kl")
    return (spread(kl).mean, spread(reward).mean, one.label if one.settings else "") if reward else None


def _bars(scale: Scale, point: Point) -> Iterator[str]:
    """Its intervals, cut off at the panel's sides."""
    _, colour, _ = _style(point.shape)
    x, y = scale.at(point.x, point.y)
    left, right = (scale.at(min(max(end, scale.x[0]), scale.x[1]), point.y)[0] for end in point.x_interval)
    high, low = (scale.at(point.x, min(max(end, scale.y[0]), scale.y[1]))[1] for end in reversed(point.y_interval))
    yield f'<path class="bar" stroke="{colour}" d="M{left:.1f} {y:.1f}H{right:.1f}M{x:.1f} {high:.1f}V{low:.1f}"/>'


def _marks(scale: Scale, points: Sequence[Point]) -> Iterator[str]:
    for point in points:
        _, colour, mark = _style(point.shape)
        yield _mark(mark, colour, *scale.at(point.x, point.y))


def _beyond(far: Sequence[Point]) -> Iterator[str]:
    """What is outside of the ranges, in words."""
    told = [
        f"{one.name} {one.y:.2f} at {one.x:.{0 if one.x > 10 else 1}f}" for one in sorted(far, key=lambda one: -one.y)
    ]
    lines = wrap(f"Beyond the picture, reward at KL: {', '.join(told)}".replace("-", "−"), 145) if told else []
    for n, line in enumerate(reversed(lines)):
        yield _text(24, HEIGHT - 15 - 16 * n, line, "soft")


def _tags(scale: Scale, points: Sequence[Point]) -> Iterator[Tag]:
    """A label for every heap of marks that lie on one another: a line a method."""
    left = list(points)
    while left:
        heap = [left.pop(0)]
        for one in heap:  # which grows
            heap += [other for other in left if math.dist(scale.at(one.x, one.y), scale.at(other.x, other.y)) < HEAP]
            left = [other for other in left if other not in heap]
        places = [scale.at(one.x, one.y) for one in heap]
        middle = sum(x for x, _ in places) / len(heap), sum(y for _, y in places) / len(heap)
        yield Tag(
            middle, tuple(f"{one.name} (KL {one.x:.2f})" if one.x < scale.x[0] else one.name for one in heap), "halo"
        )


def _labels(tags: Sequence[Tag]) -> Iterator[str]:
    """Labels, and a line to each that stands apart from its mark."""
    for tag, place in zip(tags, placed(tags), strict=True):
        x, y = _facing(place, tag.anchor)
        if math.dist(tag.anchor, (x, y)) > 12:
            yield f'<path class="lead" d="M{tag.anchor[0]:.1f} {tag.anchor[1]:.1f}L{x:.1f} {y:.1f}"/>'
        side = (
            "start" if tag.anchor[0] < place.left else "end" if tag.anchor[0] > place.left + place.width else "middle"
        )
        at = place.left + {"start": 0.0, "middle": place.width / 2, "end": place.width}[side]
        for n, line in enumerate(tag.lines):
            yield _text(at, place.top + LINE * (n + 1) - 3, line, tag.kind, side)


def _mark(mark: str, colour: str, x: float, y: float) -> str:
    """A mark of about 9 px, with a white rim."""
    corners = {"square": (4, 45), "diamond": (4, 0), "up": (3, -90), "down": (3, 90), "hexagon": (6, 0)}
    if mark in corners:
        sides, turn = corners[mark]
        path = _polygon(x, y, [5.6] * sides, turn)
    elif mark == "star":
        path = _polygon(x, y, [6.4, 2.9] * 5, -90)
    elif mark == "cross":
        path = f"M{x - 4.2:.1f} {y - 4.2:.1f}l8.4 8.4m0 -8.4l-8.4 8.4"
        return f'<path d="{path}" stroke="#fff" stroke-width="4.6"/><path d="{path}" stroke="{colour}" stroke-width="2.4"/>'
    else:
        fill = "#fff" if mark == "ring" else colour
        return (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.8" fill="{fill}" stroke="{colour if mark == "ring" else "#fff"}"/>'
        )
    return f'<path d="{path}" fill="{colour}" stroke="#fff"/>'


def _polygon(x: float, y: float, radii: Sequence[float], turn: float) -> str:
    """Corners around (x, y), the first at `turn` degrees."""
    at = [(r, math.radians(turn + 360 * n / len(radii))) for n, r in enumerate(radii)]
    return "M" + "L".join(f"{x + r * math.cos(a):.1f} {y + r * math.sin(a):.1f}" for r, a in at) + "Z"


def _half(interval: tuple[float, float] | None) -> float:
    return 0.0 if interval is None else (interval[1] - interval[0]) / 2


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    where = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{where}>{escape(words)}</text>'
