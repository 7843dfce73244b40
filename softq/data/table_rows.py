"""CSV and Parquet to rows: cells become what the same row holds as JSON, and what a table fills up is left out."""

import csv
import datetime
import decimal
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader, FileIO, TextIOWrapper
from shutil import copyfileobj
from typing import Any

from softq.data.json_rows import DEEPEST, check_utf8, decode
from softq.data.rows import DataError, Dropped, Row, Unusable, came, dropped

NUMBERS = (
    "weight margin label_probability score score_chosen score_rejected ref_chosen_logps ref_rejected_logps".split()
)
FLAGS = ("label", "kto_tag")
JSON = "completions scores labels messages conversations tools chat_template_kwargs ref_logps history".split()
CHATS = ("prompt", "chosen", "rejected", "completion")
BATCH = 1024  # rows of a Parquet file that are held at once


def csv_rows(stream: BufferedReader, name: str, delimiter: str) -> Iterator[Row | Dropped]:
    """The rows of a table whose first line names the columns; empty numbers, labels and JSON are absent."""
    csv.field_size_limit(2**31 - 1)  # the module's only limit, for the whole process; rows are as long as users like
    with TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="") as text:
        yield from _table(_Latest(text), name, delimiter)


class _Latest:
    """Lines, and the one that came last."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines, self.latest = lines, ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.latest = next(self._lines)
        return self.latest


def _table(lines: _Latest, name: str, delimiter: str) -> Iterator[Row | Dropped]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    cells: list[str] | None = []
    while cells is not None:
        start = reader.line_num + 1
        try:
            cells = next(reader, None)
            if not header:
                header = _header(cells or [], name, delimiter)
            elif cells:
                yield Row(f"{name}:{start}", _typed(cells, header))
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                message = f"the file ends inside the quotes of a row (line {start})"
                raise DataError(f"{name}: {message}; close the quotes, or copy the file again") from error
            fault = Unusable("malformed_csv", f"malformed CSV ({error}); repair the row")
            if not header:
                raise DataError(f"{name}:{start}: {fault}") from error
            yield dropped(f"{name}:{start}", fault, lines.latest)
        except Unusable as fault:
            yield dropped(f"{name}:{start}", fault, delimiter.join(cells or []))


def parquet_rows(stream: BufferedReader, name: str) -> Iterator[Row | Dropped]:
    """The rows of a Parquet file; what is null in it is absent, but for the content of a message."""
    import pyarrow as pa  # here, since it takes a tenth of a second that readers of JSON need not wait
    import pyarrow.parquet as pq

    with tempfile.TemporaryFile() as unpacked:
        source: Any = stream
        if not isinstance(stream.raw, FileIO):  # Parquet is read from its end, and no packed file can be
            copyfileobj(stream, unpacked)
            source = unpacked
        try:
            file = pq.ParquetFile(source, page_checksum_verification=True)
            _check_names(file.schema_arrow.names, name)
            groups = range(file.num_row_groups)  # one by one: a reader of several keeps those that it has read
            batches = (batch for n in groups for batch in file.iter_batches(BATCH, row_groups=[n]))
            for index, read in enumerate(read for batch in batches for read in _batch(batch)):
                yield table_row(f"{name}[{index}]", read)
        except (pa.ArrowException, OSError, UnicodeError) as error:
            problem = " ".join(str(error).split())[:200]
            raise DataError(f"{name}: damaged or truncated Parquet file ({problem}); copy it again") from error


def _header(cells: list[str], name: str, delimiter: str) -> list[str]:
    other = {";": "semicolons", ",": "commas", "\t": "tabs"}
    found = next((mark for mark in other if len(cells) == 1 and mark != delimiter and mark in cells[0]), None)
    if found:
        raise DataError(
            f"{name}: the header has {other[found]}; expected {other[delimiter]} between columns; save it so"
        )
    try:
        check_utf8("".join(cells))
    except Unusable as fault:
        raise DataError(f"{name}: the header is {fault}") from fault
    _check_names(cells, name)
    return cells


def _check_names(names: list[str], name: str) -> None:
    twice = next((column for column in names if names.count(column) > 1), None)
    if twice is not None:
        raise DataError(f"{name}: the column {twice!r} appears twice; rename or remove one of them")


def _typed(cells: list[str], header: list[str]) -> dict[str, Any]:
    if len(cells) != len(header):
        expected = f"{len(header)} as in the header; quote cells that hold the separator"
        raise Unusable("ragged_row", f"the row has {len(cells)} cells; expected {expected}")
    row: dict[str, Any] = {}
    for field, cell in zip(header, cells, strict=True):
        check_utf8(cell, field)
        kind = _KINDS.get(field)
        if cell.strip() or kind is None or kind is _chat:
            try:
                row[field] = kind(cell) if kind else cell
            except Unusable as fault:
                raise Unusable(fault.reason, fault.message, fault.field or field) from fault
    return row


def _number(cell: str) -> float | str:
    try:
        return cell if "_" in cell else float(cell)
    except ValueError:
        return cell


def _flag(cell: str) -> bool | str:
    return {"true": True, "1": True, "false": False, "0": False}.get(cell.strip().lower(), cell)


def _json(cell: str) -> Any:
    _check_python(cell)
    try:
        return decode(cell)
    except Unusable as fault:
        if fault.reason != "malformed_json":
            raise
        return cell


def _chat(cell: str) -> Any:
    """A text, unless it is the JSON of messages."""
    _check_python(cell)
    if not cell.lstrip().startswith(("[", "{")):
        return cell
    try:
        value = decode(cell)
    except Unusable:
        return cell
    messages = value if isinstance(value, list) else [value]
    chat = all(isinstance(message, dict) and ("role" in message or "from" in message) for message in messages)
    return value if messages and chat else cell


def _check_python(cell: str) -> None:
    """Refuse what str() makes of messages: it would be taken for a text."""
    if cell.startswith(("[{'role'", "[{'content'", "[{'from'", "[{'value'")):
        raise Unusable("bad_type", "the messages are printed by Python; expected JSON; write the cell with json.dumps")


_KINDS: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(NUMBERS, _number),
    **dict.fromkeys(FLAGS, _flag),
    **dict.fromkeys(JSON, _json),
    **dict.fromkeys(CHATS, _chat),
}


def _batch(batch: Any) -> Iterator[dict[str, Any] | Unusable]:
    """The rows of a batch; one by one if one of them can not be read."""
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
    except (KeyError, ValueError, OverflowError) as error:
        if len(batch) > 1:
            for index in range(len(batch)):
                yield from _batch(batch.slice(index, 1))
        elif isinstance(error, UnicodeDecodeError):
            yield Unusable("bad_encoding", f"not UTF-8 ({error.reason}); save the text as UTF-8")
        else:
            reason = "repeated_field" if isinstance(error, KeyError) else "bad_type"
            yield Unusable(reason, f"{str(error)[:200]}; repair the row")


def table_row(where: str, read: Any) -> Row | Dropped:
    """A row of a typed table, in the types of JSON and without the nulls of what was not there."""
    if isinstance(read, Unusable):
        return dropped(where, read, "")
    try:
        if not isinstance(read, dict):
            raise Unusable("bad_type", f"the row is {came(read)}; expected an object with named fields")
        return Row(where, {field: _plain(value, field) for field, value in read.items() if value is not None})
    except Unusable as fault:
        return dropped(where, fault, read)


def _plain(value: Any, field: str, depth: int = 1) -> Any:
    """A value in the types of JSON. A table gives each struct all fields of its kind: those that are null go."""
    if value is None or isinstance(value, str | int | float):
        return value
    if depth > DEEPEST:
        raise Unusable("too_deep", f"nested deeper than {DEEPEST} levels; flatten the row", field)
    if isinstance(value, list):
        return [_plain(item, field, depth + 1) for item in value]
    if isinstance(value, dict):
        kept = {"content"} if value.get("role") is not None else set()
        return {
            name: _plain(item, field, depth + 1) for name, item in value.items() if item is not None or name in kept
        }
    if isinstance(value, _PRINTED):
        return str(value)
    message = f"field '{field}' holds {type(value).__name__}; expected text, numbers, lists or objects; convert it"
    raise Unusable("bad_type", message, field)


_PRINTED = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID)
