"""What comes out of a file: a row, or a row that is dropped; and the two ways in which data is refused."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

EXCERPT = 200  # characters of a row that are shown
_CONTROLS = dict.fromkeys([*range(32), *range(127, 160), 0x2028, 0x2029], " ")


class DataError(ValueError):
    """Bad data, in one line: file, row, field, what came, what was expected, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message.translate(_CONTROLS))


class Unusable(Exception):
    """One record can not be used: it is dropped by name, and the data goes on."""

    def __init__(self, reason: str, message: str = "", field: str = "") -> None:
        message = message.translate(_CONTROLS)
        super().__init__(message or reason)
        self.reason, self.message, self.field = reason, message, field


class Row(NamedTuple):
    """One data record as it stands in a file."""

    where: str  # "pairs.jsonl:17" (line, from 1) or "pairs.json[17]" (element, from 0; also rows of tables)
    value: Mapping[str, Any]


class Dropped(NamedTuple):
    """A row that is not used, and why."""

    where: str
    reason: str  # one word, such as too_long
    message: str = ""  # what came, what was expected, what to do
    field: str = ""
    excerpt: str = ""  # the beginning of the row


def dropped(where: str, fault: Unusable, row: object) -> Dropped:
    """The row that a fault makes unusable."""
    return Dropped(where, fault.reason, fault.message, fault.field, excerpt(row))


def came(value: object) -> str:
    """What a JSON value is, for messages."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")


def excerpt(value: object) -> str:
    """The first 200 characters of a raw line, or of a row as JSON: one line that can be printed and stored."""
    text = value[:EXCERPT] if isinstance(value, str) else ""
    for piece in () if isinstance(value, str) else _pieces(value):
        text += piece
        if len(text) >= EXCERPT:
            break
    return text.encode("utf-8", "backslashreplace").decode()[:EXCERPT].translate(_CONTROLS).strip()


def _pieces(value: object) -> Iterator[str]:
    """JSON bit by bit, with long strings cut: the reader stops early, so that nobody dumps a row of 50 MB."""
    if isinstance(value, Mapping):
        yield "{"
        for index, (name, item) in enumerate(value.items()):
            yield f"{', ' if index else ''}{json.dumps(str(name)[:EXCERPT], ensure_ascii=False)}: "
            yield from _pieces(item)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "["
        for index, item in enumerate(value):
            yield ", " if index else ""
            yield from _pieces(item)
        yield "]"
    else:
        short = value[:EXCERPT] if isinstance(value, str | bytes) else value
        yield json.dumps(short, ensure_ascii=False, default=str)
