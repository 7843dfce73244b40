"""One scored pair, or completion, as a notebook shows it: its completions side by side, their tokens coloured by reward.

The HTML stands by itself: its styles are inline, it has no script, and what the data says is text.
"""

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from typing import Any, NamedTuple

from softq.inspection.colour import ink, shade

SEEN = {"\n": "⏎\n", "\t": "⇥"}  # white space that is shown
CELL = "vertical-align:top;text-align:left;padding:6px 12px 6px 0;white-space:normal;min-width:12em"
TOKEN = "border-radius:3px;padding:1px 0;white-space:pre-wrap"
SOFT = "color:#627282;font-size:12px"


class ScoredPair(NamedTuple):
    """A pair: what stands of it in "pairs" or "rows", and its tokens, one mapping a token as in "tokens"."""

    row: Mapping[str, Any]
    sides: Mapping[str, Sequence[Mapping[str, Any]]]  # "chosen" and "rejected", or "completion"
    unit: str

    def _repr_html_(self) -> str:
        """For notebooks: a token's colour is its reward, or its log π where there is no reference."""
        by = "reward" if any("reward" in token for side in self.sides.values() for token in side) else "logp"
        unit = self.unit if by == "reward" else "nats"
        values = [abs(_known(token[by])) for side in self.sides.values() for token in side]
        scale = max(values, default=0.0) or 1.0
        cells = "".join(self._side(name, by, scale) for name in self.sides)
        legend = f"colour: {'β log π/π_ref' if by == 'reward' else 'log π'} of a token, red below 0, blue above, "
        where = escape(str(self.row.get("where") or f"record {self.row['record']}"))
        return (
            '<div style="font-family:system-ui,sans-serif;font-size:14px;line-height:1.7;color:#1f2933;background:#fff;'
            'padding:8px;max-width:70em;overflow-x:auto">'
            f'<div style="{SOFT}">{where}{self._margin()}</div>'
            f'<div dir="auto" style="white-space:pre-wrap;margin:4px 0">{escape(self.row["prompt"] or "")}</div>'
            f'<table style="border-collapse:collapse;background:none"><tr style="background:none">{cells}</tr></table>'
            f'<div style="{SOFT}">{legend}full at {scale:.3g} {unit}</div></div>'
        )

    def _margin(self) -> str:
        margin = self.row.get("margin")
        return "" if margin is None else f" · margin {margin:+.3g} {self.unit}"

    def _side(self, name: str, by: str, scale: float) -> str:
        tokens = self.sides[name]
        total = f" · {by} {sum(_known(token[by]) for token in tokens):+.3g}" if tokens else ""
        said = "".join(_token(token, by, scale) for token in tokens)
        head = f'<div style="{SOFT}">{escape(name)} · {len(tokens)} tokens{total}</div>'
        return f'<td style="{CELL}">{head}<div dir="auto">{said}</div></td>'


def _known(value: float | None) -> float:
    """0 of what is no finite number: such a token has no colour."""
    return value if value is not None and isfinite(value) else 0.0


def _token(token: Mapping[str, Any], by: str, scale: float) -> str:
    """A token on its colour; its numbers show where the pointer rests."""
    colour = shade(_known(token[by]), scale)
    names = ("reward", "running", "logp", "ref_logp", "entropy", "kl")
    numbers = ", ".join(f"{name} {token[name]:.3g}" for name in names if token.get(name) is not None)
    text = "".join(SEEN.get(sign, sign) for sign in token["text"] or "")
    style = f"{TOKEN};background:rgb{colour};color:{ink(colour)}"
    return f'<span style="{style}" title="{escape(numbers)}">{escape(text)}</span>'
