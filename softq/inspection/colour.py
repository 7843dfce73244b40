"""Tokens coloured by a number each, as an SVG picture."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH = 880
LETTER = 8.4  # width of one letter of the 14 px monospace font
LINE = 26
LOW, HIGH = (214, 69, 65), (46, 134, 193)


class Line(NamedTuple):
    """One line of text: words, a number each (None: not coloured), which word to frame and which to underline."""

    label: str
    words: Sequence[str]
    values: Sequence[float | None]
    framed: int | None = None
    underlined: Sequence[int] = ()


def shade(value: float, scale: float) -> tuple[int, int, int]:
    """Red below 0, white at 0, blue above; full colour at |value| = scale."""
    strength = min(1.0, abs(value) / scale)
    end = LOW if value < 0 else HIGH
    red, green, blue = (round(255 + strength * (side - 255)) for side in end)
    return red, green, blue


def ink(colour: tuple[int, int, int]) -> str:
    """The text colour that can be read on a background."""
    red, green, blue = colour
    return "#ffffff" if 0.3 * red + 0.59 * green + 0.11 * blue < 140 else "#1f2933"


def picture(title: str, lines: Sequence[Line], caption: Sequence[str]) -> str:
    """An SVG of coloured lines. Each label has its own scale: the largest |value| among its lines."""
    scales: dict[str, float] = {}
    for line in lines:
        largest = max((abs(value) for value in line.values if value is not None), default=0.0)
        scales[line.label] = max(scales.get(line.label, 1e-12), largest)
    parts, top = [_text(24, 38, title, "title")], 62.0
    for line in lines:
        body, height = _line(line, scales[line.label], top)
        parts += body
        top += height
    for text in caption:
        parts.append(_text(24, top + 18, text, "caption"))
        top += 20
    height = top + 24
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
            f'height="{height:.0f}" role="img" aria-label="{escape(title)}">',
            "<style>text{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:14px;fill:#1f2933}"
            "text.title{font-family:system-ui,sans-serif;font-size:19px;font-weight:600}"
            "text.label,text.caption{font-family:system-ui,sans-serif;font-size:12.5px;fill:#627282}</style>",
            f'<rect width="{WIDTH}" height="{height:.0f}" rx="10" fill="#ffffff" stroke="#d9e0e6"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _line(line: Line, scale: float, top: float) -> tuple[list[str], float]:
    """The elements of one line, wrapped, and its height."""
    left = 176.0
    x, y = left, top
    parts = [_text(24, y + 15, line.label, "label")]
    for n, (word, value) in enumerate(zip(line.words, line.values, strict=True)):
        width = LETTER * len(word) + 6
        if x + width > WIDTH - 20:
            x, y = left, y + LINE
        colour = (255, 255, 255) if value is None else shade(value, scale)
        frame = ' stroke="#1f2933" stroke-width="2"' if n == line.framed else ""
        if value is not None:
            fill = "#{:02x}{:02x}{:02x}".format(*colour)
            parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="21" rx="4" fill="{fill}"{frame}/>')
        parts.append(f'<text x="{x + 3:.1f}" y="{y + 15:.1f}" style="fill:{ink(colour)}">{escape(word)}</text>')
        if n in line.underlined:
            parts.append(f'<path d="M{x + 3:.1f} {y + 24.5:.1f}h{width - 6:.1f}" stroke="#1f2933" stroke-width="2"/>')
        x += width + 2
    return parts, y - top + LINE + 8


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}">{escape(words)}</text>'
