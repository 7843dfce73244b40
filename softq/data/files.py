"""A data file to rows: what it is by its name and by its first bytes, compressed or not, and who reads it."""

import difflib
import gzip
import os
import zlib
from collections.abc import Iterator
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, NamedTuple

from softq.data.json_rows import decode, json_rows
from softq.data.rows import DataError, Dropped, Row, Unusable, excerpt
from softq.data.table_rows import csv_rows, parquet_rows

READERS = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".csv": lambda stream, name: csv_rows(stream, name, ","),
    ".tsv": lambda stream, name: csv_rows(stream, name, "\t"),
    ".parquet": parquet_rows,
}
PACKED = (".gz", ".zst")
EXTENSIONS = tuple(rows + packed for packed in ("", *PACKED) for rows in READERS)
EXPECTED = f"{', '.join(READERS)}, each also with .gz or .zst"
BUFFER = 1 << 18  # bytes; larger than one line, as a rule


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row | Dropped]:
    """The rows of one file in order, one at a time. A row that is wrong is dropped; a file that is wrong raises.

    JSON lines and CSV count lines from 1, blank ones too; JSON arrays and Parquet count rows from 0.
    """
    name = os.fspath(path)
    check_file(name)
    kind, rows = _kind(name), 0
    try:
        with BufferedReader(FileIO(name), BUFFER) as file:
            for row in READERS[kind.rows](_content(file, name, kind), name):
                rows += 1
                yield row
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name}: damaged gzip file ({error}); copy or compress it again") from error
    except OSError as error:
        if error.errno is None and kind.packed == ".zst":
            raise DataError(f"{name}: damaged Zstandard file ({error}); copy or compress it again") from error
        raise _unreadable(name, error) from error
    if not rows:
        raise _empty(name)


def check_file(path: str | os.PathLike[str]) -> None:
    """Refuse what is not there, and what is no data file by its name."""
    name = os.fspath(path)
    file = Path(name)
    try:
        if file.is_dir():
            raise DataError(f"{name}: is a directory; name a file in it ({EXPECTED})")
        if not file.exists():
            names = [near.name for near in file.parent.iterdir()] if file.parent.is_dir() else []
            near = " or ".join(difflib.get_close_matches(file.name, names))
            raise DataError(f"{name}: no such file; {f'did you mean {near}?' if near else 'check the name'}")
    except OSError as error:
        raise _unreadable(name, error) from error
    if not name.lower().endswith(EXTENSIONS):
        raise DataError(f"{name}: unknown file type; expected one of {EXPECTED}")


class _Kind(NamedTuple):
    """What a file should be by its name."""

    stem: str
    rows: str  # a name of READERS
    packed: str  # one of PACKED, or ""


class _Found(NamedTuple):
    """What a file is by its first bytes."""

    what: str
    ending: str = ""  # the extension it should have, if we read it
    advice: str = "convert it"


_WIDE = _Found("UTF-16 or UTF-32 text", advice="save it as UTF-8")
MAGIC = {
    b"\x1f\x8b": _Found("a gzip file", ".gz"),
    b"\x28\xb5\x2f\xfd": _Found("a Zstandard file", ".zst"),
    b"PAR1": _Found("a Parquet file", ".parquet"),
    b"PK\x03\x04": _Found("a zip archive", advice="unpack it"),
    b"BZh": _Found("a bzip2 file", advice="unpack it"),
    b"\xfd7zXZ": _Found("an xz file", advice="unpack it"),
    b"SQLite format 3": _Found("an SQLite database", advice="export the table as CSV"),
    b"ARROW1": _Found("an Arrow file", advice="write it as Parquet"),
    b"version https://git-lfs": _Found("a pointer to a file in Git LFS", advice="fetch it with git lfs pull"),
    b"\xff\xfe": _WIDE,
    b"\xfe\xff": _WIDE,
}
TEXT = {
    b"{": _Found("JSON lines", ".jsonl"),
    b"[": _Found("a JSON array", ".json"),
    b"<": _Found("a web page or XML", advice="download the file itself"),
}


def _kind(name: str) -> _Kind:
    rest, packed = os.path.splitext(name)
    if packed.lower() not in PACKED:
        rest, packed = name, ""
    stem, rows = os.path.splitext(rest)
    return _Kind(os.path.basename(stem), rows.lower(), packed.lower())


def _content(file: Any, name: str, kind: _Kind) -> Any:
    """The bytes of the rows, when they are what the name says."""
    head = file.peek()
    if not head:
        raise _empty(name)
    expected = ".parquet" if kind.rows == ".parquet" else ""
    _refuse_other(head, kind.packed or expected, name, kind)
    if kind.packed:
        file = BufferedReader(_unpacked(file, kind.packed), BUFFER)
        _refuse_other(file.peek(), expected, name, kind)
    if file.peek().startswith(b"\xef\xbb\xbf"):
        file.read(3)
    if not expected:
        _refuse_other_text(file.peek(), name, kind)
    return file


def _unpacked(file: Any, packed: str) -> Any:
    if packed == ".gz":
        return gzip.GzipFile(fileobj=file)
    import pyarrow as pa  # here, since it takes a tenth of a second that readers of other files need not wait

    return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")


def _refuse_other(head: bytes, expected: str, name: str, kind: _Kind) -> None:
    """Refuse what begins otherwise than a file with the ending `expected`; "" stands for text."""
    found = next((found for magic, found in MAGIC.items() if head.startswith(magic)), None)
    if found is None and b"\0" in head[:4]:
        found = _WIDE if head[:4].strip(b"\0") else _Found("filled with NUL bytes", advice="copy it again")
    if found is None and expected:
        found = _text(head)
        if expected in PACKED:
            found = _Found("not compressed", kind.rows if kind.rows != ".parquet" else found.ending)
    elif found is None or found.ending == expected != "":
        return
    packed = "" if expected in PACKED else kind.packed  # what it is in already
    if packed and found.ending in PACKED:
        found = _Found("compressed twice", advice="decompress it once")
    raise _other(found, name, kind, packed)


def _refuse_other_text(head: bytes, name: str, kind: _Kind) -> None:
    """Refuse JSON that is named as a table, and text that is named as JSON."""
    line = head.lstrip().split(b"\n", 1)[0]
    table, other_json = kind.rows in (".csv", ".tsv"), line[:1] not in (b"", b"{", b"[")
    if line[:1] in TEXT if table else other_json and not _is_json(line):
        found = _text(head)
        what = f"{found.what} (it begins with {excerpt(line[:40].decode('utf-8', 'replace'))!r})"
        raise _other(found._replace(what=what), name, kind, kind.packed)


def _is_json(line: bytes) -> bool:
    try:
        decode(line.decode("utf-8", "replace"))
    except Unusable:
        return False
    return True


def _text(head: bytes) -> _Found:
    line = head.lstrip().split(b"\n", 1)[0]
    table = _Found("a table with tabs", ".tsv") if b"\t" in line else _Found("a table with commas", ".csv")
    other = table if b"\t" in line or b"," in line else _Found("some other text")
    return TEXT.get(line[:1], other)


def _other(found: _Found, name: str, kind: _Kind, packed: str) -> DataError:
    """The line for a file that is not what its name says."""
    ending = kind.rows + found.ending if found.ending in PACKED else found.ending + packed
    advice = f"rename it to {kind.stem}{ending}" if found.ending else found.advice
    return DataError(f"{name}: is {found.what}; expected {kind.rows}{kind.packed} as its name says; {advice}")


def _empty(name: str) -> DataError:
    return DataError(f"{name}: the file is empty; expected at least one row")


def _unreadable(name: str, error: OSError) -> DataError:
    return DataError(f"{name}: can not be read: {error.strerror or error}")
