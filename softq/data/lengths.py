"""How long the texts of a data set are: histograms in bounded memory."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from softq.data.example import Example, characters
from softq.data.rows import Dropped
from softq.data.stream import Item

QUANTILES = (0.5, 0.9, 0.99)
EXACT = 1024  # longer ones are counted in steps of a 128th part at most, so that memory does not grow
TOO_LONG = ("too_long", "prompt_too_long", "equal_after_cut")  # what rows are dropped for
NAMES = {"pairs": ("chosen", "rejected"), "steps": ("steps",)}


@dataclass
class Lengths:
    """Counts of lengths by name, in tokens, or in characters where nothing was tokenised."""

    kind: str
    limit: int | None  # in tokens; None: nothing was tokenised
    too_long: int = 0  # rows that do not fit into it, whether they were dropped or cut
    counts: dict[str, Counter[int]] = field(default_factory=dict)
    longest: dict[str, int] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """What is counted."""
        return "characters" if self.limit is None else "tokens"

    def add(self, item: Item) -> None:
        """Enters one row. A row that was dropped after it was tokenised counts as a whole."""
        self.too_long += self.limit is not None and _too_long(item, self.limit)
        for name, length in self._of(item):
            self.counts.setdefault(name, Counter())[_rounded(length)] += 1
            self.longest[name] = max(self.longest.get(name, 0), length)

    def quantiles(self, name: str) -> dict[str, int]:
        """Lengths that so many parts of the rows do not exceed: the least, or less than a 128th part above it."""
        counts, longest = self.counts[name], self.longest[name]
        total, found, below = sum(counts.values()), {}, 0
        for length in sorted(counts):
            below += counts[length]
            most = min(length + _step(length) - 1, longest)
            found |= {f"p{q * 100:g}": most for q in QUANTILES if below >= q * total and f"p{q * 100:g}" not in found}
        return {**found, "max": longest}

    def bins(self, name: str) -> list[tuple[int, int, int]]:
        """(from, to, count): rows with from ≤ length < to; each bin twice as wide as the one before."""
        counts: Counter[int] = Counter()
        for length, count in self.counts[name].items():
            counts[max(length.bit_length(), 4)] += count
        low, high = (min(counts), max(counts)) if counts else (0, -1)
        return [(0 if bits == 4 else 1 << (bits - 1), 1 << bits, counts[bits]) for bits in range(low, high + 1)]

    def as_dict(self) -> Mapping[str, Any]:
        """Ready for JSON."""
        parts = {name: {**self.quantiles(name), "bins": self.bins(name)} for name in self.counts}
        return {"unit": self.unit, "too_long": None if self.limit is None else self.too_long, **parts}

    def _of(self, item: Item) -> list[tuple[str, int]]:
        if self.limit is not None:
            whole = [("whole", item.account.longest)] if item.account.longest else []
            if item.encoded is None:
                return whole
            lengths = [int(c.action.sum()) for c in item.encoded.completions]
            first = item.encoded.completions[0].action
            prompt = int(first.argmax()) + 1 if first.any() else len(first) + 1
            return [("prompt", prompt), *self._said(lengths), *whole]
        if not isinstance(item.example, Example):
            return []
        lengths = [characters(completion) for completion in item.example.completions]
        prompt = characters(item.example.prompt)
        return [("prompt", prompt), *self._said(lengths), ("whole", prompt + max(lengths, default=0))]

    def _said(self, lengths: list[int]) -> list[tuple[str, int]]:
        names = NAMES.get(self.kind, ("completion",) * len(lengths))
        return list(zip(names, lengths, strict=False)) if self.kind != "prompts" else []


def _too_long(item: Item, limit: int) -> bool:
    """Some rows are not tokenised at all: their characters are too many for the limit."""
    named = isinstance(item.example, Dropped) and item.example.reason in TOO_LONG
    return named or item.account.longest > limit or item.account.cut > 0


def _rounded(length: int) -> int:
    return length - length % _step(length)


def _step(length: int) -> int:
    """How many lengths are counted as one: 8 from 1,024 on, 16 from 2,048 on, ..."""
    return 1 << max(length.bit_length() - EXACT.bit_length() + 3, 0) if length >= EXACT else 1
