"""The tokens of scored records, packed to be carried in a page: blocks of compressed JSON, and every text once.

A block is BLOCK records. Numbers are integers in units of 1e-4 (nats or reward), a rank is itself; what is no number is null.
"""

import base64
import gzip
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from softq.inspection.columns import SIDES
from softq.inspection.shelf import Shelf, place, taken

BLOCK = 16
UNIT = 10_000
HELD = 2  # parts of the tables in memory
REAL = ("logp", "ref_logp", "reward", "entropy", "kl")
COMPARED = ("ref_logp", "reward", "kl", "top_ref_logp")
LISTS = ("top_logp", "top_ref_logp")

Packed = dict[str, Any]
"""One completion: a list for each column of tokens."""


class Item(NamedTuple):
    """What stands in a block at one place: a record, and which of its completions."""

    record: int
    completions: tuple[int, ...]  # of a pair (0, 1), of rows one


class Strings:
    """Texts, each once: `all` in the order of their numbers."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._number: dict[str, int] = {}

    def numbers(self, texts: pa.Array) -> np.ndarray:
        """The number of each text."""
        coded = texts.dictionary_encode()
        known = np.array([self._of(text or "") for text in coded.dictionary.to_pylist()], dtype=np.int64)
        return known[coded.indices.to_numpy()] if len(known) else known

    def _of(self, text: str) -> int:
        if text not in self._number:
            self._number[text] = len(self.all)
            self.all.append(text)
        return self._number[text]


def blocks(shelf: Shelf, items: Iterable[Item | None], strings: Strings) -> Iterator[str]:
    """Base64 of gzip of the JSON of BLOCK items each, in their order; null stands for an item that is None.

    In the order of the tables each part is read once, and few are held in memory.
    """
    parts, held = _Parts(shelf, strings), []
    for item in items:
        held.append(None if item is None else parts.item(item))
        if len(held) == BLOCK:
            yield _pressed(held)
            held = []
    if held:
        yield _pressed(held)


def unpacked(block: str) -> list[dict[str, Packed] | None]:
    """What is in a block."""
    return json.loads(gzip.decompress(base64.b64decode(block)))


def _pressed(held: Sequence[Any]) -> str:
    text = json.dumps(held, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode("ascii")


class _Parts:
    """The parts of the table of tokens, each as columns, by the records that they hold."""

    def __init__(self, shelf: Shelf, strings: Strings) -> None:
        self.shelf, self.strings = shelf, strings
        self.held: OrderedDict[int, _Part] = OrderedDict()
        self.of: dict[int, int] = {}
        for number, table in enumerate(shelf.parts(shelf.kind, ["record"])):
            self.of |= dict.fromkeys(table["record"].to_pylist(), number)

    def item(self, item: Item) -> dict[str, Packed]:
        number = self.of[item.record]
        if number not in self.held:
            if len(self.held) >= HELD:
                self.held.popitem(last=False)
            self.held[number] = _Part(self.shelf, number, self.strings)
        return {
            side: self.held[number].side(item.record, completion)
            for side, completion in zip(SIDES, item.completions, strict=False)
        }


class _Part:
    """One part: a column a name, in integers."""

    def __init__(self, shelf: Shelf, number: int, strings: Strings) -> None:
        of = taken(place(shelf.directory, "tokens", number))
        here = {name: of[name].combine_chunks() for name in of.column_names}
        self.key = here["record"].to_numpy() * 2**15 + here["completion"].to_numpy()
        self.columns: Mapping[str, np.ndarray] = {
            "text": strings.numbers(here["text"]),
            **{name: whole(_floats(here[name])) for name in REAL if name in here},
            "rank": here["rank"].to_numpy(),
            "top": _wide(strings.numbers(here["top_text"].flatten()), len(of)),
            **{name: _wide(whole(_floats(here[name].flatten())), len(of)) for name in LISTS if name in here},
        }

    def side(self, record: int, completion: int) -> Packed:
        key = record * 2**15 + completion
        rows = slice(int(np.searchsorted(self.key, key)), int(np.searchsorted(self.key, key, "right")))
        said = {name: column[rows].tolist() for name, column in self.columns.items()}
        return said | {name: None for name in COMPARED if name not in said}


def whole(values: np.ndarray) -> np.ndarray:
    """In units of 1e-4; of numbers that are not finite, None."""
    finite = np.isfinite(values)
    found = np.rint(np.where(finite, values, 0).astype(np.float64) * UNIT).astype(np.int64)
    if finite.all():
        return found
    found = found.astype(object)
    found[~finite] = None
    return found


def _floats(column: pa.Array) -> np.ndarray:
    """Of null, nan."""
    return column.to_numpy(zero_copy_only=False)


def _wide(values: np.ndarray, rows: int) -> np.ndarray:
    return values.reshape(rows, -1) if rows else values
