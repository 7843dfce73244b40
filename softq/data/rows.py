"""Files to rows: JSON lines and JSON arrays, plain or gzipped, by our own reader, so that a message can name the row."""

import difflib
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple

EXTENSIONS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


class DataError(ValueError):
    """Bad data, in one line: file, row, field, what came, what was expected, what to do."""


class Unusable(Exception):
    """A record that can not be used, though nothing is wrong with its form; the message is the reason in one word."""


class Row(NamedTuple):
    """One data record as it stands in a file."""

    where: str  # "pairs.jsonl:17" (line, from 1) or "pairs.json[17]" (element of the array, from 0)
    value: Mapping[str, Any]


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    """The rows of one file in order; JSON lines are streamed. Blank lines are skipped, line numbers stay true."""
    file = Path(path)
    empty = True
    try:
        _check(file)
        with gzip.open(file, "rb") if file.suffix.lower() == ".gz" else file.open("rb") as lines:
            for where, value in _values(lines, file):
                if not isinstance(value, dict):
                    raise DataError(f"{where}: the row is {came(value)}; expected an object with named fields")
                empty = False
                yield Row(where, value)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file}: damaged gzip file ({error}); copy or compress it again") from error
    except OSError as error:
        raise DataError(f"{file}: can not be read: {error.strerror}") from error
    if empty:
        raise DataError(f"{file}: the file is empty; expected at least one row")


def came(value: object) -> str:
    """What a JSON value is, for messages."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")


def _check(file: Path) -> None:
    if file.is_dir():
        raise DataError(f"{file}: is a directory; name a file in it ({', '.join(EXTENSIONS)})")
    if not file.exists():
        names = [near.name for near in file.parent.iterdir()] if file.parent.is_dir() else []
        near = difflib.get_close_matches(file.name, names)
        advice = f"did you mean {' or '.join(near)}?" if near else "check the name"
        raise DataError(f"{file}: no such file; {advice}")
    if not file.name.lower().endswith(EXTENSIONS):
        raise DataError(f"{file}: unknown file type; expected one of {', '.join(EXTENSIONS)}")


def _values(lines: BufferedIOBase, file: Path) -> Iterator[tuple[str, Any]]:
    array = file.name.lower().removesuffix(".gz").endswith(".json")  # it may hold either; its first character tells
    for number, line in enumerate(lines, 1):
        text = _text(line, file, number)
        if not text.strip():
            continue
        if array and text.lstrip().startswith("["):
            yield from _elements(text + _text(lines.read(), file, number + 1), file, number)
            return
        array = False
        where = f"{file}:{number}"
        value, stop = _decode(text, _skip(text, 0), where, number)
        if stop < len(text):
            raise _malformed(where, text, stop, number, "expecting one JSON object a line")
        yield where, value


def _elements(text: str, file: Path, line: int) -> Iterator[tuple[str, Any]]:
    """The elements of a JSON array one by one; `line` is the line of the file on which the text begins."""
    at, index = _skip(text, _skip(text, 0) + 1), 0
    closed = text[at : at + 1] == "]"
    at += closed
    while not closed:
        where = f"{file}[{index}]"
        value, at = _decode(text, at, where, line)
        yield where, value
        if text[at : at + 1] not in ("]", ","):
            raise _malformed(where, text, at, line, "expecting ',' or ']' after the element")
        closed, at, index = text[at] == "]", _skip(text, at + 1), index + 1
    if text[at:].strip():
        raise _malformed(str(file), text, at, line, "expecting nothing after the array")


def _text(data: bytes, file: Path, line: int) -> str:
    try:
        return data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line += before.count(b"\n")
        byte = error.start - before.rfind(b"\n")
        found = f"line {line}, byte {byte} is 0x{data[error.start]:02x}"
        raise DataError(f"{file}: not UTF-8 ({found}); save the file as UTF-8") from error


def _decode(text: str, at: int, where: str, line: int) -> tuple[Any, int]:
    """The JSON value that begins at `at`, and where the next thing after it begins."""
    try:
        value, stop = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _malformed(where, text, error.pos, line, error.msg) from error
    except ValueError as error:
        raise DataError(f"{where}: {error}; repair the row") from error
    if "\\ud" in text[at:stop].lower():
        _check_surrogates(value, where)
    return value, _skip(text, stop)


def _check_surrogates(value: object, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(f"{where}: {half} is half a surrogate pair and no character; repair the escape") from error


def _malformed(where: str, text: str, at: int, line: int, problem: str) -> DataError:
    column = at - text.rfind("\n", 0, at)
    found = repr(text[at : at + 20].strip()) if text[at:].strip() else "the end"
    place = f"line {line + text.count(chr(10), 0, at)}, column {column}"
    return DataError(
        f"{where}: malformed JSON at {place} ({problem[0].lower() + problem[1:]}; found {found}); repair the row"
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field '{twice}' appears twice in one object")
    return fields


def _skip(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


_DECODER = json.JSONDecoder(object_pairs_hook=_once)
_BLANK = re.compile(r"[ \t\r\n]*")
