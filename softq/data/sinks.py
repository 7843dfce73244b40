"""What a file of rows looks like: JSON lines, a JSON array, CSV or Parquet, row by row into a stream of bytes."""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
from pyarrow import parquet

from softq.data.rows import DataError

DEEPEST = 100  # more levels than a row has
BATCH = 1000  # rows of a Parquet file that are held at a time; the first of them decide its types
JSONL = "write .jsonl, which takes any row"

_LINE_ENDS = re.compile("[\x85\u2028\u2029]")  # ends of lines for str.splitlines, though not in JSON
_MESSAGES = ("prompt", "chosen", "rejected", "completion", "completions", "messages")
_LOOSE = {**dict.fromkeys(_MESSAGES, 1), "chat_template_kwargs": 0}
"""How many levels of objects may come back with their fields in another order and without their nulls.

A message may; below it a chat template may print what it finds. Of the other fields, which nobody reads, all may.
"""


class Sink(Protocol):
    """A form of file: rows with their numbers, from 1, and then its end."""

    def write(self, row: Mapping[str, Any], number: int) -> None:
        """The next row."""
        ...

    def end(self) -> None:
        """What comes behind the last row."""
        ...

    def close(self) -> None:
        """Let go of the stream, also where the end was not reached."""
        ...


class Lines:
    """One JSON object a line."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, row: Mapping[str, Any], number: int) -> None:
        """The next row."""
        self._stream.write(_line(row, number) + b"\n")

    def end(self) -> None:
        """Nothing comes behind the last line."""

    def close(self) -> None:
        """Nothing is held."""


class Array(Lines):
    """A JSON array, an element a line."""

    def write(self, row: Mapping[str, Any], number: int) -> None:
        """The next element."""
        self._stream.write((b"[\n" if number == 1 else b",\n") + _line(row, number))

    def end(self) -> None:
        """The bracket."""
        self._stream.write(b"\n]\n")


class Table(Lines):
    """CSV with a header. A string is a cell as it is, nothing an empty cell, and anything else is JSON."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        self._names: list[str] = []

    def write(self, row: Mapping[str, Any], number: int) -> None:
        """The next row, with the fields of the first."""
        self._names = self._names or list(row)
        lacks, adds = sorted(set(self._names) - set(row)), sorted(set(row) - set(self._names))
        if lacks or adds:
            changes = [f"{verb} {', '.join(names)}" for verb, names in (("lacks", lacks), ("adds", adds)) if names]
            raise DataError(f"row {number} {' and '.join(changes)}; CSV has one header for all rows; {JSONL}")
        cells = [_cell(row[name], name, number) for name in self._names]
        text = io.StringIO(newline="")
        csv.writer(text).writerows([self._names, cells] if number == 1 else [cells])  # \r\n: so both are quoted
        self._stream.write(text.getvalue().encode())


class Columns:
    """Parquet, in batches of rows, with the types of the first; what is written is compared with what was given.

    Arrow gives every object of a field all the fields that one of them has, as nulls. Tools, whose parameters have names
    of their own, are therefore JSON in a string.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._rows: list[Mapping[str, Any]] = []
        self._first = 1  # the number of the first of them
        self._writer: Any = None

    def write(self, row: Mapping[str, Any], number: int) -> None:
        """The next row."""
        if isinstance(row.get("tools"), list):
            row = {**row, "tools": _cell(row["tools"], "tools", number)}
        self._rows.append(row)
        if len(self._rows) == BATCH:
            self._flush()

    def end(self) -> None:
        """The last batch."""
        if self._rows:
            self._flush()

    def close(self) -> None:
        """Parquet's own account of the file."""
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        types = dict.fromkeys(names)
        if self._writer is not None:
            types = {field.name: field.type for field in self._writer.schema}
        for name in (name for name in names if name not in types):
            where = next(i for i, row in enumerate(self._rows) if name in row)
            raise self._refusal(where, name, f"is not among those of the first {BATCH} rows")
        table = pa.table({name: self._column(name, type) for name, type in types.items()})
        if self._writer is None:
            self._writer = parquet.ParquetWriter(self._stream, table.schema, compression="zstd")
        self._writer.write_table(table)
        self._rows, self._first = [], self._first + len(self._rows)

    def _column(self, name: str, type: Any) -> Any:
        values = [row.get(name) for row in self._rows]
        array = _array(values, type)
        if array is None:
            rest = f"those before it, which are {type}" if type else "those before it, or Parquet at all"
            raise self._refusal(_misfit(values, type), name, f"does not fit {rest}")
        if _childless(array.type):
            raise self._refusal(0, name, "is or holds an object without fields, as in every row, which Parquet can not")
        for where, (value, held) in enumerate(zip(values, array.to_pylist(), strict=True)):
            if not _same(value, held, _LOOSE.get(name, DEEPEST)):
                raise self._refusal(where, name, f"would be changed by Parquet to {held!r:.200}")
        return array

    def _refusal(self, where: int, name: str, problem: str) -> DataError:
        return DataError(f"row {self._first + where}: field '{name}' {problem}; {JSONL}")


def _gzip(stream: BinaryIO) -> Any:
    return gzip.GzipFile("", "wb", 6, stream, mtime=0)  # without name and time: the same rows make the same bytes


def _zstd(stream: BinaryIO) -> Any:
    return pa.CompressedOutputStream(stream, "zstd")


FORMS: Mapping[str, Callable[[BinaryIO], Sink]] = {".jsonl": Lines, ".json": Array, ".csv": Table, ".parquet": Columns}
PACKINGS: Mapping[str, Callable[[BinaryIO], Any]] = {"": lambda stream: stream, ".gz": _gzip, ".zst": _zstd}
EXTENSIONS = {
    form + packing: (FORMS[form], PACKINGS[packing])
    for form in FORMS
    for packing in PACKINGS
    if form != ".parquet" or not packing  # it is compressed within
}


def _json(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _LINE_ENDS.sub(lambda end: f"\\u{ord(end[0]):04x}", text).encode()


def _line(row: Mapping[str, Any], number: int) -> bytes:
    try:
        return _json(row)
    except (TypeError, ValueError, RecursionError):
        for name, value in row.items():
            _cell({name: value}, name, number)
        raise


def _cell(value: Any, name: str, number: int) -> str:
    try:
        cell = (value or "") if value is None or isinstance(value, str) else _json(value).decode()
        cell.encode()
    except (TypeError, ValueError, RecursionError) as error:
        advice = "repair or remove it, or write .parquet"
        raise DataError(f"row {number}: field '{name}' can not be written as JSON: {error}; {advice}") from error
    return cell


def _array(values: list[Any], type: Any) -> Any:
    """The values as one Arrow array, or None: they do not go together."""
    try:
        return pa.array(values, type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None


def _misfit(values: list[Any], type: Any) -> int:
    """The first value that does not fit the type, or those before it."""
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _array(values[: middle + 1], type) is None else (middle + 1, high)
    return low


def _childless(type: Any) -> bool:
    """Whether the type holds an object without fields."""
    inner = [type.field(i).type for i in range(type.num_fields)]
    return (pa.types.is_struct(type) and not inner) or any(map(_childless, inner))


def _same(given: Any, held: Any, loose: int) -> bool:
    """Whether a value came through, where a null that Parquet adds to an object is as good as nothing."""
    if isinstance(given, Mapping) and isinstance(held, Mapping):
        names = [name for name in held if held[name] is not None]
        present = [name for name in given if given[name] is not None or loose <= 0]
        alike = set(present) == set(names) if loose > 0 else present == names
        return alike and all(_same(given[name], held[name], loose - 1) for name in present)
    if isinstance(given, list | tuple) and isinstance(held, list):
        return len(given) == len(held) and all(_same(g, h, loose) for g, h in zip(given, held, strict=True))
    return given == held or (given != given and held != held)
