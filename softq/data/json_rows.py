"""JSON lines and JSON arrays to rows, one at a time, by our own reader, so that a message can name the row."""

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from io import BufferedReader
from json.decoder import scanstring  # type: ignore[reportAttributeAccessIssue]
from typing import Any

from softq.data.rows import DataError, Dropped, Row, Unusable, came, dropped, excerpt

BLANKS = " \t\r\n"  # what JSON allows between its parts
CHUNK = 1 << 20  # bytes that are read at once from an array
DEEPEST = 100  # levels of nesting; whoever walks through a row later may recurse


def json_rows(stream: BufferedReader, name: str) -> Iterator[Row | Dropped]:
    """The rows of an array of objects, of one object a line, or of a single object; the first character tells."""
    first, line = _seek(stream, 1)
    if first == b"[":
        yield from _array(stream, name, line)
        return
    head = stream.readline()
    following, after = _seek(stream, line + 1)
    if head.rstrip()[-1:] in (b"{", b"[", b":", b",") and following not in (b"", b"{"):  # no line of its own
        yield _single(_Window(stream, line, head + b"\n" * (after - line - 1)), name, f"{name}:{line}")
        return
    if not following:
        _refuse_table(head, name)
    yield from _lines([head] if head else [], name, line)
    yield from _lines(stream, name, after)


def decode(text: str) -> Any:
    """The one JSON value in a text; Unusable says what is wrong with it."""
    try:
        value, stop = _parse(text, len(text) - len(text.lstrip(BLANKS)))
        after = text[stop:].lstrip(BLANKS)
        if after:
            raise json.JSONDecodeError("expecting one JSON object a line", text, len(text) - len(after))
    except json.JSONDecodeError as error:
        kind = _BrokenOff if _breaks_off(error) else Unusable
        raise kind("malformed_json", f"{_malformed(error, f'column {error.pos + 1}')}; repair the row") from error
    _check(value, text)
    return value


def check_utf8(text: str, field: str = "") -> None:
    """Refuse bytes that were no UTF-8, which errors="surrogateescape" has made into half surrogates."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte, before = ord(text[error.start]) & 0xFF, text[max(0, error.start - 20) : error.start]
        message = f"not UTF-8 (byte 0x{byte:02x} after {before!r}); save the file as UTF-8"
        raise Unusable("bad_encoding", message, field) from error


def cut_off(name: str, where: str) -> DataError:
    """The file is not whole: what came behind can not even be counted, so that no row can be dropped for it."""
    return DataError(f"{name}: the file ends in the middle of a row ({where}); it seems truncated; copy it again")


class _BrokenOff(Unusable):
    """JSON that is right as far as it goes."""


class _Window:
    """A part of a long JSON text that moves on through its file, and where it stands in it."""

    def __init__(self, stream: BufferedReader, line: int, head: bytes = b"") -> None:
        self._stream, self._utf8 = stream, codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._line, self._column = line, 0  # of the first character of the window
        self._text, self._at, self._ended = self._utf8.decode(head), 0, False
        self.taken = ""  # the text of the latest value

    def mark(self) -> str:
        """The next character that is no blank; "" at the end."""
        while True:
            self._at += len(_BLANK.match(self._text, self._at)[0])  # type: ignore[index]
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def skip(self) -> None:
        """Go on behind the character that `mark` gave."""
        self._at += 1

    def value(self) -> Any:
        """The next value. Unusable: it is skipped; JSONDecodeError: nothing behind it can be trusted."""
        self.mark()
        while True:
            try:
                value, stop, fault = self._try()
            except json.JSONDecodeError as error:
                if self._ended or not _breaks_off(error):
                    raise
                self._more()
                continue
            if self._ended or stop + 2 < len(self._text):  # else a number may go on: 1.|5, 1e+|5
                break
            self._more()
        self.taken, self._at = self._text[self._at : stop], stop
        if fault:
            raise fault
        _check(value, self.taken)
        return value

    def refusal(self, error: json.JSONDecodeError, name: str, where: str) -> DataError:
        """The line for a syntax error."""
        lines = self._text.count("\n", 0, error.pos)
        column = error.pos - self._text.rfind("\n", 0, error.pos) + (0 if lines else self._column)
        place = f"line {self._line + lines}, column {column}"
        if _breaks_off(error):
            return cut_off(name, place)
        return DataError(f"{where}: {_malformed(error, place)}; repair the file")

    def expected(self, what: str) -> json.JSONDecodeError:
        """The syntax error that something else than `what` came."""
        return json.JSONDecodeError(f"expecting {what}", self._text, self._at)

    def _try(self) -> tuple[Any, int, Unusable | None]:
        try:
            return *_parse(self._text, self._at), None
        except Unusable as fault:
            return None, _end(self._text, self._at), fault

    def _more(self) -> None:
        """Read on; as much again as is there, so that a long value is not parsed once a chunk."""
        lines, last = self._text.count("\n", 0, self._at), self._text.rfind("\n", 0, self._at)
        self._line, self._column = self._line + lines, self._at - last - 1 + (0 if lines else self._column)
        self._text, self._at = self._text[self._at :], 0
        data = self._stream.read(max(CHUNK, len(self._text)))
        self._ended = not data
        self._text += self._utf8.decode(data, self._ended)


def _lines(lines: Iterable[bytes], name: str, first: int) -> Iterator[Row | Dropped]:
    for number, line in enumerate(lines, first):
        if line.isspace():
            continue
        try:
            value = _row(decode(line.decode("utf-8", "surrogateescape").rstrip(BLANKS)))
        except Unusable as fault:
            if isinstance(fault, _BrokenOff) and not line.endswith(b"\n"):
                raise cut_off(name, f"line {number}") from fault
            yield dropped(f"{name}:{number}", fault, line[:1000].decode("utf-8", "surrogateescape"))
        else:
            yield Row(f"{name}:{number}", value)


def _array(stream: BufferedReader, name: str, line: int) -> Iterator[Row | Dropped]:
    window, index, where = _Window(stream, line), 0, name
    window.mark()
    window.skip()
    try:
        open_ = window.mark() != "]"
        while open_:
            where = f"{name}[{index}]"
            yield _element(window, where)
            open_, index = window.mark() == ",", index + 1
            if open_:
                window.skip()
        if window.mark() != "]":
            raise window.expected("',' or ']' after the element")
        window.skip()
        where = name
        if window.mark():
            raise window.expected("nothing after the array")
    except json.JSONDecodeError as error:
        raise window.refusal(error, name, where) from error


def _single(window: _Window, name: str, where: str) -> Row | Dropped:
    """The one object of a file that is printed over several lines."""
    try:
        row = _element(window, where)
        if window.mark():
            raise window.expected("a list of rows, or one row a line")
    except json.JSONDecodeError as error:
        raise window.refusal(error, name, name) from error
    _refuse_table(window.taken.encode("utf-8", "replace"), name)
    return row


def _element(window: _Window, where: str) -> Row | Dropped:
    try:
        return Row(where, _row(window.value()))
    except Unusable as fault:
        return dropped(where, fault, window.taken)


def _row(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unusable("bad_type", f"the row is {came(value)}; expected an object with named fields")
    return value


def _refuse_table(text: bytes, name: str) -> None:
    """Refuse a file whose only value holds all rows in one of its fields, or all values of a column in each."""
    try:
        value = decode(text.decode())
    except (Unusable, UnicodeDecodeError):
        return  # whoever reads it as a row says so
    fields = value if isinstance(value, dict) else {}
    inside = next((field for field in _ROWS if _objects(fields.get(field))), None)
    lengths = {len(column) if isinstance(column, list) else 0 for column in fields.values()}
    columns = len(fields) > 1 and len(lengths) == 1 and 0 not in lengths and not any(map(_objects, fields.values()))
    if inside or columns:
        found = f"an object with all rows in its field '{inside}'" if inside else "an object of columns"
        raise DataError(f"{name}: the file is {found}; expected a list of rows, or one row a line; write it so")


def _objects(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _parse(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at `at`, and where it stops."""
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:  # more digits than Python's limit
        raise Unusable("malformed_json", "a whole number has thousands of digits; repair the row") from error


def _end(text: str, at: int) -> int:
    """Where a value stops that can not be parsed: behind its last bracket, or its last digit."""
    if text[at] not in "{[":
        return _SCALAR.match(text, at).end()  # type: ignore[union-attr]
    depth = 0
    while found := _MARK.search(text, at):
        at = scanstring(text, found.end())[1] if found[0] == '"' else found.end()
        depth += (found[0] in "{[") - (found[0] in "]}")
        if not depth:
            return at
    raise json.JSONDecodeError("expecting a bracket", text, len(text))


def _check(value: object, text: str) -> None:
    """What the JSON grammar allows, and we do not; the text tells quickly that there is nothing to look for."""
    check_utf8(text)
    if text.count("{") + text.count("[") > DEEPEST:
        _check_depth(value)
    if "\\u" in text and _HALF.search(text):
        _check_surrogates(value)


def _check_depth(value: object) -> None:
    level: list[Any] = [[value]]
    for _ in range(DEEPEST + 1):
        items = [item for inner in level for item in (inner.values() if isinstance(inner, dict) else inner)]
        level = [item for item in items if isinstance(item, dict | list)]
        if not level:
            return
    raise _too_deep()


def _check_surrogates(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        message = f"{half} is half a surrogate pair and no character; repair the escape"
        raise Unusable("bad_encoding", message) from error


def _too_deep() -> Unusable:
    return Unusable("too_deep", f"nested deeper than {DEEPEST} levels; flatten the row")


def _breaks_off(error: json.JSONDecodeError) -> bool:
    """Whether the text is right up to its end, so that only the rest is missing."""
    rest = error.doc[error.pos :].strip(BLANKS)
    if error.msg.startswith("Invalid \\u"):
        return len(rest) <= 5 and rest.isalnum()  # u12, and even u1234: the parser looks one character further
    return error.msg.startswith("Unterminated string") or any(whole.startswith(rest) for whole in _WHOLE)


def _malformed(error: json.JSONDecodeError, place: str) -> str:
    found = error.doc[error.pos : error.pos + 20].strip()
    problem = error.msg[0].lower() + error.msg[1:]
    return f"malformed JSON at {place} ({problem}; found {repr(found) if found else 'the end'})"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        message = f"field {excerpt(twice)!r} appears twice in one object; keep one of them"
        raise Unusable("repeated_field", message, excerpt(twice))
    return fields


def _seek(stream: BufferedReader, line: int) -> tuple[bytes, int]:
    """Go to the line of the next character that is no blank: that character, and the number of its line."""
    while head := stream.peek():
        text = head.lstrip(BLANKS.encode())
        blank = head[: len(head) - len(text)]
        skipped = stream.read(blank.rfind(b"\n") + 1 if text else len(blank))
        line += skipped.count(b"\n")
        if text:
            return text[:1], line
    return b"", line


_DECODER = json.JSONDecoder(object_pairs_hook=_once)
_BLANK = re.compile(f"[{BLANKS}]*")
_MARK = re.compile(r'["{}\[\]]')
_SCALAR = re.compile(r"[^\s,\]}]*")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_WHOLE = ("true", "false", "null", "NaN", "Infinity", "-Infinity", ".", "e+", "e-", "E+", "E-")
_ROWS = ("data", "rows", "train", "examples")  # fields under which whole files are found
