"""The account of the data as findings: what was written down of every row when it was read. Nothing is looked for again."""

from collections.abc import Iterator, Sequence
from typing import Literal

from softq.data.ledger import Ledger, place
from softq.inspection.figures import Finding
from softq.inspection.shelf import Shelf, taken

MANY = 0.01  # of the rows: where more have a fault, there is something to be done


def findings(shelf: Shelf) -> list[Finding]:
    """Rows that were dropped, by reason; repetitions; boundaries inside a token; special tokens in the text; completions without
    their one end. Of each the first rows by name: ledger.parquet has all that were dropped."""
    ledger = Ledger.of(shelf.facts["ledger"])
    found = [*_dropped(ledger), *_repeated(ledger), *_odd(shelf, ledger), *_unended(ledger)]
    told = f"{ledger.used:,} of {ledger.rows:,} rows are used"
    return [Finding("ledger/rows", "expected", told), *found]


def _dropped(ledger: Ledger) -> Iterator[Finding]:
    for reason, count in sorted(ledger.dropped.items(), key=lambda item: -item[1]):
        told = f"{_part(count, ledger.rows)} rows are dropped as {reason}: {_first(ledger, reason, count)}"
        act = "ledger.parquet names every one, and says why"
        yield Finding(f"ledger/dropped/{reason}", _level(count, ledger.rows), told, act)


def _repeated(ledger: Ledger) -> Iterator[Finding]:
    if ledger.duplicates:
        told = f"{_part(ledger.duplicates, ledger.used)} rows repeat the texts of an earlier one"
        act = "keep one of each, or they count several times; softq data FILE --check names them"
        yield Finding("ledger/duplicates", _level(ledger.duplicates, ledger.used), told, act)


def _odd(shelf: Shelf, ledger: Ledger) -> Iterator[Finding]:
    faults = {
        "merged": ("have a token across the end of the prompt, split there", "end prompts where a token ends"),
        "spelled": ("spell a special token in their own text", "see whether a template was applied before"),
    }
    for name, (what, act) in faults.items():
        if count := getattr(ledger, name):
            told = f"{_part(count, ledger.used)} rows {what}: {_first(ledger, name, count)}"
            records = _records(shelf, ledger.examples[name])
            yield Finding(f"ledger/{name}", _level(count, ledger.used), told, act, records)


def _unended(ledger: Ledger) -> Iterator[Finding]:
    count = ledger.completions - ledger.finished
    if count:
        told = f"{_part(count, ledger.completions)} completions do not end with their only end token"
        act = "raise --max-length where they were cut; else look at what stands behind the end token"
        yield Finding("ledger/unended", _level(count, ledger.completions), told, act)


def _level(count: int, of: int) -> Literal["watch", "act"]:
    return "act" if count > MANY * of else "watch"


def _part(count: int, of: int) -> str:
    return f"{count:,} of {of:,} ({count / of:.1%})"


def _first(ledger: Ledger, name: str, count: int) -> str:
    rows = ledger.examples.get(name, [])
    return ", ".join(rows) + ", …" * (count > len(rows))


def _records(shelf: Shelf, rows: Sequence[str]) -> list[int]:
    """The records of some rows by name, as ledger.parquet has them."""
    table = taken(shelf.directory / "ledger.parquet", ["file", "row", "record"])
    number = {(file, row): record for file, row, record in zip(*table.to_pydict().values(), strict=True)}
    return [number[place(row)] for row in rows]
