"""Small line plots as SVG text: panels side by side over one kind of axis, a legend, few ticks. Nothing but text is made.

The picture is a card of its own colour, so that it can be read on any page; where the reader's system is dark, so is the card.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Literal, NamedTuple

EDGE, TICKS, GAP = 12.0, 40.0, 12.0  # px: around everything, for the numbers left of a panel, between panels
LEGEND, TITLE, TOP, BOTTOM = 20.0, 39.0, 46.0, 40.0  # px: base lines from above; where panels begin and end
LETTER = 6.7  # px, what a letter of the legend takes in a wide font
MOST = {"x": 5, "y": 4}  # ticks
STYLE = (
    ".plot text{font:11px system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;fill:#1f2933;"
    "font-variant-numeric:tabular-nums}"
    ".plot .title{font-weight:600}.plot .soft{fill:#5b6b7a}.plot .paper{fill:#fff;stroke:#d9e0e6}.plot path{fill:none}"
    ".plot .grid{stroke:#e6ebef}.plot .zero{stroke:#9aa7b3}"
    ".plot .first{stroke:#0072b2}.plot .second{stroke:#d55e00;stroke-dasharray:5 2.5}.plot .other{stroke:#cdd5db}"
    ".plot .line{stroke-width:1.9;stroke-linejoin:round}.plot .other.line{stroke-width:4.5}"
    ".plot circle{stroke:#fff;stroke-width:1.2}.plot circle.first{fill:#0072b2}.plot circle.second{fill:#d55e00}"
    "@media (prefers-color-scheme:dark){.plot text{fill:#e6edf3}.plot .soft{fill:#9aa7b3}"
    ".plot .paper{fill:#12181f;stroke:#30363d}.plot .grid{stroke:#262e37}.plot .zero{stroke:#5b6773}"
    ".plot .first{stroke:#56b4e9}.plot .second{stroke:#f0a030}.plot .other{stroke:#45505b}"
    ".plot circle{stroke:#12181f}.plot circle.first{fill:#56b4e9}.plot circle.second{fill:#f0a030}}"
)
"""Blue, and vermilion dashed, are told apart without colour too (Okabe and Ito's palette); grey is for comparison."""

Kind = Literal["first", "second", "other"]


class Series(NamedTuple):
    """A curve. What is not finite is left out, as a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    kind: Kind = "first"  # "other" is grey, broad and behind, and cut off where it leaves the range of the rest
    dots: Sequence[tuple[float, float]] = ()  # points (x, y) to mark on it


class Panel(NamedTuple):
    """Curves over one range."""

    title: str  # what y is, with its unit
    series: Sequence[Series]


class Frame(NamedTuple):
    """Where a panel is in the picture, in px, and what it shows of x and y."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, x: float) -> float:
        """px from the panel's left side."""
        return self.width * (x - self.x[0]) / (self.x[1] - self.x[0])

    def down(self, y: float) -> float:
        """px from the panel's upper side; what is far outside stays near enough to be a number in any viewer."""
        part = (self.y[1] - y) / (self.y[1] - self.y[0])
        return self.height * min(max(part, -50.0), 50.0)


def plot(
    panels: Sequence[Panel], *, axis: str, label: str, title: str = "", width: int = 420, height: int = 180
) -> str:
    """The picture: panels side by side; `axis` says what x is, with its unit; `label` is read to who can not see it.

    The legend names each curve once, after the title.
    """
    each = (width - 2 * EDGE - (len(panels) - 1) * GAP) / len(panels)
    body = []
    for number, panel in enumerate(panels):
        left = EDGE + number * (each + GAP)
        x, y = ranges(panel.series)
        frame = Frame(left + TICKS, TOP, each - TICKS, height - TOP - BOTTOM, x, y)
        body += [_text(left + TICKS, TITLE, panel.title, "soft"), *_grid(frame), *_curves(frame, panel.series)]
    named: dict[str, Kind] = {series.name: series.kind for panel in panels for series in panel.series if series.name}
    head = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{escape(label)}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" {head}>',
            f"<style>{STYLE}</style>",
            f'<rect class="paper" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>',
            *_legend(title, named),
            *body,
            _text(width / 2, height - 11, axis, "soft", "middle"),
            "</svg>",
            "",
        ]
    )


def ranges(series: Sequence[Series]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ranges of x and y to show: all of what is not grey, and a little more of y. One value alone is shown with 0."""
    main = [one for one in series if one.kind != "other"] or list(series)
    points = [
        (x, y) for one in main for x, y in zip(one.x, one.y, strict=True) if math.isfinite(x) and math.isfinite(y)
    ]
    if not points:
        raise ValueError("a panel without a finite point can not be drawn")
    (left, right), (low, high) = (_wide(values) for values in zip(*points, strict=True))
    more = 0.06 * (high - low)
    return (left, right), (low - more, high + more)


def _wide(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    return (min(low, 0.0), max(high, 0.0)) if low else (-1.0, 1.0)


def ticks(low: float, high: float, most: int) -> list[float]:
    """So many round numbers from low to high at most, 1, 2 or 5 · 10^k apart; 0 is one if it is inside. One alone is no scale:
    where there would be but one, it is the next finer numbers."""
    power, finer = math.floor(math.log10((high - low) / most)) - 1, list[float]()
    for step in (scale * 10.0**exponent for exponent in range(power, power + 4) for scale in (1, 2, 5)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        found = [float(f"{n * step:.12g}") for n in range(first, last + 1)]
        if len(found) <= most:
            return found if len(found) > 1 else finer
        finer = found
    raise AssertionError("some step is wide enough")


def number(value: float) -> str:
    """A tick's number, short: 0.05, −600, 4,000, 2e7."""
    size = abs(value)
    if value and not 1e-3 <= size < 1e5:
        mantissa, power = f"{size:.3e}".split("e")
        text = f"{float(mantissa):g}e{int(power)}"
    else:
        text = f"{size:,.6f}".rstrip("0").rstrip(".")
    return f"−{text}" if value < 0 else text


def _grid(frame: Frame) -> Iterator[str]:
    right, bottom = frame.left + frame.width, frame.top + frame.height
    for value in ticks(*frame.y, MOST["y"]):
        y = frame.top + frame.down(value)
        yield f'<path class="{"grid" if value else "zero"}" d="M{_px(frame.left)} {_px(y)}H{_px(right)}"/>'
        yield _text(frame.left - 5, y + 3.8, number(value), "soft", "end")
    for value in ticks(*frame.x, MOST["x"]):
        x = frame.left + frame.across(value)
        yield f'<path class="{"grid" if value else "zero"}" d="M{_px(x)} {_px(frame.top)}V{_px(bottom)}"/>'
        yield _text(x, bottom + 13, number(value), "soft", "middle")


def _curves(frame: Frame, series: Sequence[Series]) -> Iterator[str]:
    """The curves, in a picture inside the picture, which cuts them off; the first one on top."""
    box = f'x="{_px(frame.left)}" y="{_px(frame.top)}" width="{_px(frame.width)}" height="{_px(frame.height)}"'
    yield f"<svg {box}>"
    for one in sorted(series, key=lambda one: one.kind != "other"):
        yield f'<path class="{one.kind} line" d="{_path(frame, one)}"/>'
        for x, y in one.dots:
            yield f'<circle class="{one.kind}" cx="{_px(frame.across(x))}" cy="{_px(frame.down(y))}" r="3.4"/>'
    yield "</svg>"


def _path(frame: Frame, one: Series) -> str:
    parts, drawing = list[str](), False
    for x, y in zip(one.x, one.y, strict=True):
        finite = math.isfinite(x) and math.isfinite(y)
        if finite:
            parts.append(f"{'L' if drawing else 'M'}{_px(frame.across(x))} {_px(frame.down(y))}")
        drawing = finite
    return "".join(parts)


def _legend(title: str, named: Mapping[str, Kind]) -> Iterator[str]:
    x = EDGE
    if title:
        yield _text(x, LEGEND, title, "title")
        x += LETTER * len(title) + 14
    for name, kind in named.items():
        yield f'<path class="{kind} line" d="M{_px(x)} {_px(LEGEND - 4)}h20"/>'
        yield _text(x + 25, LEGEND, name)
        x += 25 + LETTER * len(name) + 12


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "") -> str:
    how = "".join(f' {key}="{value}"' for key, value in (("class", kind), ("text-anchor", anchor)) if value)
    return f'<text x="{_px(x)}" y="{_px(y)}"{how}>{escape(words)}</text>'


def _px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
