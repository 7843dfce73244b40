"""Rows of dots with bars along one axis: how several things compare under several headings. SVG text, always the same."""

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, STEP, GAP, LEFT, TOP, BOTTOM, RIGHT = 640.0, 17.0, 14.0, 150.0, 62.0, 42.0, 24.0  # px
COLOURS = (("#d55e00", "#f0a030"), ("#0072b2", "#56b4e9"), ("#5b6b7a", "#9aa7b3"), ("#009e73", "#35c49b"))
"""Of Okabe and Ito's palette, on light and on dark; the shapes differ too."""
STYLE = (
    ".dots text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;fill:#1f2933;"
    "font-variant-numeric:tabular-nums}"
    ".dots .soft{fill:#5b6b7a}.dots .paper{fill:#fff;stroke:#d9e0e6}.dots .grid{stroke:#e6ebef}.dots .bar{stroke-width:2}"
    "@media (prefers-color-scheme:dark){.dots text{fill:#e6edf3}.dots .soft{fill:#9aa7b3}"
    ".dots .paper{fill:#12181f;stroke:#30363d}.dots .grid{stroke:#262e37}}"
)

Ends = tuple[float, float, float]
"""Low end of an interval, mean, high end."""


def dots(
    rows: Mapping[str, Mapping[str, Ends]], *, title: str, axis: str, ticks: Sequence[float], digits: int = 1
) -> str:
    """Heading -> name -> its ends. At most as many names as COLOURS; `ticks` are where the axis has lines, both ends included."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    height = TOP + sum(STEP * len(row) + GAP for row in rows.values()) + BOTTOM

    def across(value: float) -> float:
        inside = min(max(value, ticks[0]), ticks[-1])
        return LEFT + (WIDTH - LEFT - RIGHT) * (inside - ticks[0]) / (ticks[-1] - ticks[0])

    body = [_text(16, 24, title, "")]
    for tick in ticks:
        x = across(tick)
        body.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP - 8:.1f}" x2="{x:.1f}" y2="{height - BOTTOM:.1f}"/>')
        body.append(_text(x, height - BOTTOM + 16, f"{tick:.{digits}f}", "soft", "middle"))
    at = LEFT
    for number, name in enumerate(names):
        body += [_mark(number, at + 5, 42), _text(at + 16, 46, name, "")]
        at += 34 + 6.6 * len(name)
    y = TOP + GAP / 2
    for heading, row in rows.items():
        body.append(_text(LEFT - 12, y + STEP * (len(row) - 1) / 2 + 4, heading, "", "end"))
        for name, (low, mean, high) in row.items():
            number = names.index(name)
            ends = f'x1="{across(low):.1f}" x2="{across(high):.1f}" y1="{y:.1f}" y2="{y:.1f}"'
            body += [f'<line class="bar c{number}" {ends}/>', _mark(number, across(mean), y)]
            y += STEP
        y += GAP
    body.append(_text(LEFT, height - 8, axis, "soft"))
    head = f'viewBox="0 0 {WIDTH:g} {height:g}" width="{WIDTH:g}" height="{height:g}" role="img" aria-label="{escape(title)}"'
    card = f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1:g}" height="{height - 1:g}" rx="8"/>'
    opened = f'<svg xmlns="http://www.w3.org/2000/svg" class="dots" {head}>'
    return "\n".join([opened, f"<style>{STYLE}{_colours(len(names))}</style>", card, *body, "</svg>"]) + "\n"


def _colours(count: int) -> str:
    light = "".join(f".dots .c{n}{{stroke:{day};fill:{day}}}" for n, (day, _) in enumerate(COLOURS[:count]))
    dark = "".join(f".dots .c{n}{{stroke:{night};fill:{night}}}" for n, (_, night) in enumerate(COLOURS[:count]))
    return f"{light}@media (prefers-color-scheme:dark){{{dark}}}"


def _mark(number: int, x: float, y: float) -> str:
    if number == 1:
        return f'<circle class="c1" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    if number == 2:
        return f'<path class="c2" d="M{x - 4.5:.1f} {y + 4:.1f}h9l-4.5 -8z"/>'
    turned = f' transform="rotate(45 {x:.1f} {y:.1f})"' if number == 3 else ""
    return f'<rect class="c{number}" x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"{turned}/>'


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
