"""A scored data set on disk: tables in parts of Parquet, each written whole, and read a part at a time.

DIRECTORY/score.json              what was scored, and how
DIRECTORY/pairs/00000.parquet …   or rows/: as `columns` has them
DIRECTORY/tokens/00000.parquet …  of the same records, part by part
DIRECTORY/fresh/00000.parquet …   likewise, if it was asked for
DIRECTORY/ledger.parquet          a row a row of the data: used, or dropped for a reason
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from softq.data.rows import DataError
from softq.inspection.columns import SIDES, schema
from softq.inspection.pair import ScoredPair

FACTS = "score.json"
FORMAT = "softq scores 1"


Key = Sequence[tuple[str, str, int]] | None
"""What rows to take, as pyarrow has it: (column, "=", number) of each."""


def put(directory: Path, table: str, part: int, columns: Mapping[str, Any], *, compared: bool) -> None:
    """Write one part of a table: the whole file or none of it."""
    of = schema(table, compared)
    arrays = [pa.array(columns[name], kind, from_pandas=True) for name, kind in zip(of.names, of.types, strict=True)]
    file = place(directory, table, part)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    try:
        pq.write_table(pa.table(arrays, schema=of), partial, compression="zstd")
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def place(directory: Path, table: str, part: int) -> Path:
    """The file of a part."""
    return directory / table / f"{part:05d}.parquet"


def taken(file: Path, columns: list[str] | None = None, key: Key = None) -> pa.Table:
    """What is in a file of a table: some columns, and the rows of a key. DataError where it is gone or damaged."""
    try:
        with file.open("rb") as opened:
            return pq.read_table(opened, columns=columns, filters=key)
    except FileNotFoundError as error:
        raise DataError(f"{file} is gone: run what wrote it again, which scores only what is missing") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{file} is damaged: remove it and run what wrote it again, which scores only what is missing"
        ) from error


class Shelf:
    """A scored data set, opened: `facts`, and its tables. ValueError where there is none, or it is not finished; DataError where
    a file of it is damaged or gone."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.facts = facts(self.directory)
        if not self.facts["finished"]:
            raise ValueError(f"{directory}: its scoring is not finished; run the same softq score again")

    @property
    def kind(self) -> str:
        """ "pairs" or "rows": which table there is beside "tokens"."""
        return "pairs" if self.facts["kind"] == "pairs" else "rows"

    @property
    def compared(self) -> bool:
        """Whether there was a reference."""
        return self.facts["reference"] is not None

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A whole table, or some of its columns. One of tokens may be large: see `parts`."""
        return pa.concat_tables(self.parts(name, columns))

    def parts(self, name: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """A table part by part; parts of two tables hold the same records."""
        for part in range(self.facts["parts"]):
            yield taken(place(self.directory, name, part), columns)

    def pair(self, record: int, completion: int = 0) -> ScoredPair:
        """A record of pairs, or one completion of one of rows, with its tokens: what a notebook shows. ValueError where it is not
        there."""
        pairs = self.kind == "pairs"
        key = [("record", "=", record), *([] if pairs else [("completion", "=", completion)])]
        for part in range(self.facts["parts"]):
            rows = taken(place(self.directory, self.kind, part), key=key).to_pylist()
            if rows:
                tokens = taken(place(self.directory, "tokens", part), key=key).to_pylist()
                named = dict(enumerate(SIDES)) if pairs else {completion: "completion"}
                sides = {name: [t for t in tokens if t["completion"] == k] for k, name in named.items()}
                return ScoredPair(rows[0], sides, self.facts["unit"])
        what = "" if pairs else f" with a completion {completion}"
        raise ValueError(
            f"{self.directory} holds no record {record}{what}: they go from 0 to {self.facts['records'] - 1}"
        )


def facts(directory: Path) -> Mapping[str, Any]:
    """What `score.json` says. ValueError where there is none, DataError where it is damaged or of something else."""
    if not (directory / FACTS).is_file():
        raise ValueError(f"{directory} holds no {FACTS}: give the output of softq score")
    said = said_of(directory)
    if said is None or said["format"] != FORMAT:
        raise DataError(f"{directory / FACTS} is not {FORMAT!r}, or damaged: score again, into another directory")
    return said


def said_of(there: Path) -> Mapping[str, Any] | None:
    """What the score.json of a directory says, if softq score wrote it."""
    try:
        found = json.loads((there / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(found, Mapping) and str(found.get("format", "")).startswith("softq scores ")
    return found if ours and isinstance(found.get("parts"), int) else None
