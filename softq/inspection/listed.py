"""The records of a scored data set as a page lists them: columns of numbers, the orders to read them in, and which are shown.

All figures are of all records. A page carries SHOWN of them at most, and so many as have TOKENS tokens: the first of each
order in turn, in the order of the data.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from softq.inspection import noise
from softq.inspection.columns import SIDES, schema
from softq.inspection.packed import Item
from softq.inspection.shelf import Shelf

SHOWN = 10_000  # records
TOKENS = 1_500_000  # of all shown completions together
DIGITS = 4
TEXTS = ("where", "source", "prompt")


class Order(NamedTuple):
    """A way to sort the records: by which column, and what stands first."""

    name: str
    by: str
    descending: bool
    told: str


ORDERS = {
    "pairs": (
        Order("most wrong", "margin", False, "the reward prefers the rejected completion by the most"),
        Order("most wrong", "preference", False, "the policy prefers the rejected completion by the most, a token"),
        Order("most surprising", "chosen_surprise", True, "chosen completions that the policy would least have said"),
        Order("most displaced", "chosen_moved", False, "chosen completions that lost the most log-probability"),
        Order("suspected noise", "noise", True, "pairs whose label is the likeliest to be wrong"),
        Order("most right", "margin", True, "the reward prefers the chosen completion by the most"),
        Order("in the data's order", "record", False, "as they stand in the data"),
    ),
    "rows": (
        Order("lowest reward", "chosen_reward", False, "completions that the reward likes least"),
        Order("most surprising", "chosen_surprise", True, "completions that the policy would least have said"),
        Order("most displaced", "chosen_moved", False, "completions that lost the most log-probability"),
        Order("highest reward", "chosen_reward", True, "completions that the reward likes most"),
        Order("in the data's order", "record", False, "as they stand in the data"),
    ),
}


class Listed(NamedTuple):
    """Records [N] that are shown, of how many; numbers by column, None where the column does not apply."""

    kind: str
    of: int
    items: list[Item]
    columns: Mapping[str, np.ndarray | None]
    texts: Mapping[str, list[str | None]]

    @property
    def orders(self) -> list[Order]:
        """The orders whose column there is; of two with one name the first."""
        there = [order for order in ORDERS[self.kind] if self.columns.get(order.by) is not None]
        return list({order.name: order for order in reversed(there)}.values())[::-1]

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON: an array a column, or null; null too where a number is none."""
        numbers = {
            name: None if values is None else _rounded(values)
            for name, values in self.columns.items()
            if not name.startswith("rejected_" if self.kind == "rows" else "completion")
        }
        columns = {"record": numbers.pop("record"), **self.texts, **numbers}
        return {"of": self.of, "columns": columns, "orders": [order._asdict() for order in self.orders]}


def listed(shelf: Shelf) -> Listed:
    """The records that are shown."""
    columns = numbers(shelf)
    whole = Listed(shelf.kind, len(columns["record"]), [], columns, {})  # pyright: ignore[reportArgumentType]
    rows = chosen(whole)
    kept = {name: None if values is None else values[rows] for name, values in columns.items()}
    items = [
        Item(record, (0, 1) if shelf.kind == "pairs" else (completion,))
        for record, completion in zip(kept["record"].tolist(), kept["completion"].tolist(), strict=True)  # pyright: ignore[reportOptionalMemberAccess]
    ]
    return Listed(shelf.kind, whole.of, items, kept, _texts(shelf, rows))


def at(shelf: Shelf, items: Sequence[Item | None]) -> dict[str, list[Any] | None]:
    """The columns of these items of a shelf, ready for JSON; null where there is none."""
    columns = numbers(shelf)
    of = zip(columns["record"].tolist(), columns["completion"].tolist(), strict=True)  # pyright: ignore[reportOptionalMemberAccess]
    place = {key: n for n, key in enumerate(of)}
    rows = [None if item is None else place[item.record, item.completions[0]] for item in items]
    return {
        name: None
        if values is None
        else [None if row is None else value for row, value in zip(rows, _at(values, rows), strict=True)]
        for name, values in columns.items()
        if not name.startswith("rejected_" if shelf.kind == "rows" else "completion")
    }


def _at(values: np.ndarray, rows: Sequence[int | None]) -> list[int | float | None]:
    return _rounded(values[np.array([row or 0 for row in rows], dtype=np.int64)])


def numbers(shelf: Shelf) -> dict[str, np.ndarray | None]:
    """The columns of all records, in the order of the tables; those of rows are called chosen_…"""
    sides = SIDES if shelf.kind == "pairs" else ("",)
    names = {f"{side}_{name}" if side else name for side in sides for name in ("tokens", "logp", "ref_logp", "reward")}
    names |= (
        {"record", "margin", "shared", "ches", "ln_ches"}
        if shelf.kind == "pairs"
        else {"record", "completion", "score"}
    )
    there = [name for name in schema(shelf.kind, shelf.compared).names if name in names]
    table = shelf.table(shelf.kind, there)
    of = {name: table[name].to_numpy() for name in there}
    found: dict[str, np.ndarray | None] = {"record": of["record"]}
    found["completion"] = of.get("completion", np.zeros(len(of["record"]), dtype=np.int64))
    for side, before in zip(SIDES, [f"{side}_" for side in SIDES] if shelf.kind == "pairs" else [""], strict=False):
        logp, ref, tokens = (of.get(before + name) for name in ("logp", "ref_logp", "tokens"))
        found |= {f"{side}_tokens": tokens, f"{side}_reward": of.get(before + "reward")}
        with np.errstate(invalid="ignore"):
            found[f"{side}_moved"] = None if ref is None or logp is None else logp - ref
        found[f"{side}_surprise"] = None if logp is None or tokens is None else -logp / np.maximum(tokens, 1)
    for name in ("margin", "shared", "ches", "ln_ches", "score"):
        found[name] = _there(of.get(name))
    if shelf.kind == "pairs" and not shelf.compared:
        with np.errstate(invalid="ignore"):
            found["preference"] = found["rejected_surprise"] - found["chosen_surprise"]  # pyright: ignore[reportOptionalOperand]
    found["noise"] = _noise(shelf, of["record"])
    return found


def _noise(shelf: Shelf, record: np.ndarray) -> np.ndarray | None:
    """The probability that a pair's label is wrong, where labels were cross-fitted; nan of a pair that was not."""
    wrong = noise.chances(shelf)
    return None if wrong is None else np.array([wrong.get(number, np.nan) for number in record.tolist()])


def chosen(whole: Listed, shown: int = SHOWN, tokens: int = TOKENS) -> np.ndarray:
    """Which rows are shown, ascending: the first of each order, one of each in turn, while there is room."""
    size = sum(values for side in SIDES if (values := whole.columns.get(f"{side}_tokens")) is not None)
    size = np.asarray(size, dtype=np.int64)
    if whole.of <= shown and size.sum() <= tokens:
        return np.arange(whole.of)
    ranked = [_by(whole, order) for order in whole.orders]
    turns = np.stack(ranked, 1).ravel()
    first = np.sort(np.unique(turns, return_index=True)[1])
    rows = turns[first][:shown]
    room = np.searchsorted(size[rows].cumsum(), tokens, "right")
    return np.sort(rows[: max(int(room), 1)])


def _by(of: Listed, order: Order) -> np.ndarray:
    values = np.asarray(of.columns[order.by], dtype=np.float64)
    return np.argsort(-values if order.descending else values, kind="stable")


def first(of: Listed, name: str, count: int) -> Sequence[int]:
    """The places, among those shown, of the first records of an order."""
    order = next((order for order in of.orders if order.name == name), of.orders[0])
    return _by(of, order)[:count].tolist()


def _texts(shelf: Shelf, rows: np.ndarray) -> dict[str, list[str | None]]:
    found: dict[str, list[str | None]] = {name: [] for name in TEXTS}
    for part, here in _cut(shelf, rows):
        table = part.take(here)
        for name in TEXTS:
            found[name] += table[name].to_pylist()
    return found


def _cut(shelf: Shelf, rows: np.ndarray) -> Iterator[tuple[Any, np.ndarray]]:
    """Each part of the table with those of its rows that are wanted."""
    start = 0
    for part in shelf.parts(shelf.kind, list(TEXTS)):
        here = rows[(rows >= start) & (rows < start + len(part))] - start
        start += len(part)
        yield part, here


def _there(values: np.ndarray | None) -> np.ndarray | None:
    """A column in which nothing is known is none."""
    return None if values is None or not np.isfinite(values).any() else values


def _rounded(values: np.ndarray) -> list[int | float | None]:
    if values.dtype.kind in "iu":
        return values.tolist()
    return [round(value, DIGITS) if np.isfinite(value) else None for value in values.tolist()]
