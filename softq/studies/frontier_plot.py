"""Right names against letters, one point a pair of weights, as an SVG picture: text, and nothing but text is made."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from softq.inspection.plot import ticks
from softq.studies.frontier_text import FREE, Results, over_seeds, undominated

WIDTH, HEIGHT = 640.0, 430.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 24.0, 74.0, 56.0  # px around the panel
SHADES = (
    ("#56b4e9", "#56b4e9"),
    ("#009e73", "#2fc79a"),
    ("#e69f00", "#f0b030"),
    ("#d55e00", "#ff8a4a"),
    ("#cc79a7", "#e29bc4"),
)
"""Okabe and Ito's, by the weight of names from none to most, in light and in the dark."""


def _shaded(dark: int) -> str:
    colours = [(n, pair[dark]) for n, pair in enumerate(SHADES)]
    return "".join(f".frontier .s{n}{{stroke:{of}}}.frontier circle.s{n}{{fill:{of}}}" for n, of in colours)


STYLE = (
    ".frontier text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;fill:#1f2933;"
    "font-variant-numeric:tabular-nums}"
    ".frontier .soft{fill:#5b6b7a}.frontier .title{font-weight:600}.frontier .paper{fill:#fff;stroke:#d9e0e6}"
    ".frontier .grid{stroke:#e9edf1}.frontier .line{fill:none;stroke-width:1.8}.frontier .bar{opacity:.45}"
    ".frontier .edge{fill:none;stroke:#cdd5db;stroke-width:11;stroke-linejoin:round;stroke-linecap:round}"
    ".frontier .free{fill:none;stroke:#1f2933;stroke-width:1.6}"
    f"{_shaded(0)}"
    "@media (prefers-color-scheme:dark){.frontier text{fill:#e6edf3}.frontier .soft{fill:#9aa7b3}"
    ".frontier .paper{fill:#12181f;stroke:#30363d}.frontier .grid{stroke:#262e37}.frontier .edge{stroke:#3a444e}"
    f".frontier .free{{stroke:#e6edf3}}{_shaded(1)}}}"
)


class Scale(NamedTuple):
    """From letters and right names to px; fewer letters are on the right, so that better is up and to the right."""

    letters: tuple[float, float]
    names: tuple[float, float]

    def at(self, letters: float, names: float) -> tuple[float, float]:
        """(x, y) in px."""
        across = (self.letters[1] - letters) / (self.letters[1] - self.letters[0])
        down = (self.names[1] - names) / (self.names[1] - self.names[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), TOP + down * (HEIGHT - TOP - BOTTOM)


def picture(found: Results) -> str:
    """The picture: a line a weight of names, along it the weight of brevity grows; the broad grey line is the frontier."""
    figures = over_seeds(found)
    points = {of: (one["letters"].mean, one["names"].mean) for of, one in figures.items()}
    ends = [end for one in figures.values() for end in one["names"].interval or (one["names"].mean,) * 2]
    scale = Scale(_wide([letters for letters, _ in points.values()]), _wide(ends))
    edge = [scale.at(*points[of]) for of in undominated(found)]
    body = [*_axes(scale), *_path("edge", edge)]
    shades = {weight: min(n, len(SHADES) - 1) for n, weight in enumerate(sorted({of[0] for of in points}))}
    for weight, shade in shades.items():
        line = [of for of in points if of[0] == weight]
        body += _path(f"line s{shade}", [scale.at(*points[of]) for of in line])
        for of in line:
            x, y = scale.at(*points[of])
            low, high = figures[of]["names"].interval or (points[of][1],) * 2
            tops = [scale.at(points[of][0], end)[1] for end in (high, low)]
            body.append(f'<line class="bar s{shade}" x1="{x:.1f}" y1="{tops[0]:.1f}" x2="{x:.1f}" y2="{tops[1]:.1f}"/>')
            told = escape(
                f"{of[0]:g} nats a name, {of[1]:g} for ten letters: {points[of][1]:.2f} right, {points[of][0]:.1f} letters"
            )
            body.append(f'<circle class="s{shade}" cx="{x:.1f}" cy="{y:.1f}" r="4.2"><title>{told}</title></circle>')
    x, y = scale.at(*points[FREE])
    body += [
        f'<circle class="free" cx="{x:.1f}" cy="{y:.1f}" r="8"/>',
        _words(x + 12, y + 20, "the model itself", "soft"),
    ]
    label = "Right names against letters of answers, by the weights of two values, and their frontier"
    head = f'viewBox="0 0 {WIDTH:g} {HEIGHT:g}" width="{WIDTH:g}" height="{HEIGHT:g}" role="img" aria-label="{label}"'
    card = f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1:g}" height="{HEIGHT - 1:g}" rx="8"/>'
    first = f'<svg xmlns="http://www.w3.org/2000/svg" class="frontier" {head}>'
    return "\n".join([first, f"<style>{STYLE}</style>", card, *_heads(shades, len(found)), *body, "</svg>", ""])


def _heads(shades: dict[float, int], seeds: int) -> Iterator[str]:
    yield _words(16, 26, "Two values, composed at decode time", "title")
    yield _words(16, 48, "nats a right name:", "soft")
    x = 144.0
    for weight, shade in shades.items():
        yield f'<circle class="s{shade}" cx="{x:.1f}" cy="44" r="4.2"/>'
        yield _words(x + 9, 48, f"{weight:g}")
        x += 46
    yield f'<line class="edge" x1="{x + 8:.1f}" y1="44" x2="{x + 30:.1f}" y2="44"/>'
    yield _words(x + 42, 48, f"frontier; bars: 95 % over {seeds} seeds", "soft")


def _axes(scale: Scale) -> Iterator[str]:
    for value in ticks(*scale.letters, 6):
        x = scale.at(value, scale.names[0])[0]
        yield f'<line class="grid" x1="{x:.1f}" y1="{TOP:.1f}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM:.1f}"/>'
        yield _words(x, HEIGHT - BOTTOM + 17, f"{value:g}", "soft", "middle")
    for value in ticks(*scale.names, 5):
        y = scale.at(scale.letters[1], value)[1]
        yield f'<line class="grid" x1="{LEFT:.1f}" y1="{y:.1f}" x2="{WIDTH - RIGHT:.1f}" y2="{y:.1f}"/>'
        yield _words(LEFT - 8, y + 4, f"{value:g}", "soft", "end")
    yield _words(
        (LEFT + WIDTH - RIGHT) / 2,
        HEIGHT - 16,
        "letters of an answer, fewer to the right: along a line brevity weighs more",
        "soft",
        "middle",
    )
    yield _words(16, TOP - 8, "right names of 3", "soft")


def _path(kind: str, points: Sequence[tuple[float, float]]) -> Iterator[str]:
    if len(points) > 1:
        yield f'<path class="{kind}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>'


def _wide(values: Sequence[float]) -> tuple[float, float]:
    """Their range and a little more; of one value, something around it."""
    low, high = min(values), max(values)
    more = 0.07 * (high - low) or 1.0
    return low - more, high + more


def _words(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
