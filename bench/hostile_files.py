"""Hostile rows in files of every kind, and files that are wrong as a whole."""

import csv
import datetime
import decimal
import gzip
import io
import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hostile_rows import APART, EOS, PIECES, TOLD, Case, Line, damaged, good, slots, spoiled, written

from softq.data.files import EXTENSIONS
from softq.data.formats import FORMATS

ROWS = 30  # of a file
RARE = 83  # one file in so many holds a text of megabytes


def json_lines(lines: list[Line], ascii: bool, newline: bytes) -> bytes:
    """One row a line."""
    return b"".join(
        (line.raw if line.raw is not None else written(line.value, ascii).encode("utf-8", "surrogatepass")) + newline
        for line in lines
    )


def json_array(lines: list[Line], ascii: bool, newline: bytes) -> bytes:
    """All rows in one list."""
    rows = (written(line.value, ascii).encode("utf-8", "surrogatepass") for line in lines)
    return b"[" + (b"," + newline).join(rows) + b"]" + newline


def cells(lines: list[Line], delimiter: str, newline: str, more: Sequence[str]) -> bytes:
    """A table; what has no column makes its row longer than the header."""
    text = io.StringIO()
    header = [*dict.fromkeys([*lines[0].value, *more])]
    writer = csv.writer(text, delimiter=delimiter, lineterminator=newline, quoting=csv.QUOTE_ALL)
    writer.writerow(header)
    for line in lines:
        row = line.value if isinstance(line.value, dict) else {f"cell {n}": "x" for n in range(len(header) + 1)}
        rest = [value for name, value in row.items() if name not in header]
        writer.writerow([_cell(row.get(name)) for name in header] + [_cell(value) for value in rest])
    return text.getvalue().encode("utf-8", "surrogatepass")


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) and type(value) is str else written(value)


def columns(lines: list[Line], more: Sequence[tuple[str, int]], options: dict[str, Any]) -> bytes:
    """A Parquet file; a column whose values have no common type holds them as JSON. `more` are columns of ARRAYS."""
    rows = [line.value if isinstance(line.value, dict) else {} for line in lines]
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name.isprintable() and name]
    found = {name: array([row.get(name) for row in rows]) for name in names}
    for name, n in more:
        if name not in found:
            found[name] = ARRAYS[n](len(rows))
    file = io.BytesIO()
    pq.write_table(pa.table(found), file, **options)
    return file.getvalue()


def array(values: list[Any]) -> Any:
    """A column of a table."""
    try:
        found = pa.array(values)
        parquet(pa.table({"a": found}))  # not every type can be written
        return found
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        texts = [None if value is None else value if type(value) is str else written(value) for value in values]
        return pa.array([None if t is None else t.encode("utf-8", "backslashreplace").decode() for t in texts])


def _of(type: Any, *values: Any) -> Callable[[int], Any]:
    """A column of a type: null in its first row, then these values again and again."""
    return lambda n: pa.array([None, *(values[i % len(values)] for i in range(n - 1))], type)


def _list_of(levels: int) -> Callable[[int], Any]:
    kind, value = pa.int64(), 1
    for _ in range(levels):
        kind, value = pa.list_(kind), [value]
    return _of(kind, value, None)


def _bad_text(n: int) -> Any:
    return pa.array([None, *[b"\xff\xfe", b"ok", b"\xed\xa0\x80"][: n - 1], *[b"x"] * (n - 4)][:n]).view(pa.string())


ARRAYS: list[Callable[[int], Any]] = [
    _of(pa.binary(), b"x", b"\xff", None),
    _of(pa.large_binary(), b""),
    _of(pa.decimal128(9, 2), decimal.Decimal("1.50"), None),
    _of(pa.date32(), datetime.date(2024, 1, 2), 10**8),
    _of(pa.timestamp("ns"), 1, 10**18, None),
    _of(pa.timestamp("us", "Europe/Paris"), 1, -(10**17)),
    _of(pa.timestamp("s"), 10**12),
    _of(pa.time64("ns"), 1, None),
    _of(pa.duration("us"), 10**18),
    _of(pa.float16(), np.float16(0.5), np.float16("nan")),
    _of(pa.float64(), math.nan, math.inf, 1.0, -1.0, None),
    _of(pa.uint64(), 2**64 - 1),
    _of(pa.bool_(), True, None),
    _of(pa.null(), None),
    _of(pa.list_(pa.null()), [None, None], []),
    _of(pa.list_(pa.float64()), [1.0, None], [math.nan, -1.0], [0.5, 0.5], []),
    _of(pa.list_(pa.list_(pa.string())), [["q", "a"]], [["q"]], [None], [[None, "a"]]),
    _of(pa.map_(pa.string(), pa.int64()), [("a", 1)], [("a", 1), ("a", 2)], []),
    _of(pa.map_(pa.int64(), pa.string()), [(1, "a")]),
    _of(pa.struct([("a", pa.binary()), ("role", pa.string())]), {"a": b"x"}, {"role": "x"}, None),
    _of(
        pa.list_(pa.struct([("type", pa.string()), ("function", pa.struct([("x", pa.date32())]))])),
        [{"type": "x"}],
        [None],
    ),
    _of(pa.large_string(), "x", ""),
    _of(pa.string(), *TOLD),
    _of(pa.string(), *PIECES),
    lambda n: _of(pa.string(), "x", "y", None)(n).dictionary_encode(),
    _list_of(45),
    _bad_text,
]
"""Columns of types that JSON has not, or that are no use."""

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data, 1, mtime=0),
    ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}


def cases(rows: int, seed: int, large: bool = False) -> Iterator[Case]:
    """About so many rows in files of all kinds; each kind of file meets each format in turn."""
    rows += rows // 64  # a damaged line may take its neighbour with it
    count = max(len(EXTENSIONS), rows // ROWS)
    for n in range(count):
        ending, format = EXTENSIONS[n % len(EXTENSIONS)], [*FORMATS][(n + n // len(EXTENSIONS)) % len(FORMATS)]
        size = rows * (n + 1) // count - rows * n // count
        yield case(n, ending, format, size, seed, _megabytes(n, large))


def _megabytes(n: int, large: bool) -> int:
    """How many characters of text one row of the n-th file has."""
    return 0 if n % RARE != 5 else 50_000_000 if large and n == 5 else 1_000_000 * (1 + n // RARE % 5)


def case(number: int, ending: str, format: str, size: int, seed: int, long: int = 0) -> Case:
    """One file, by the seed and its number alone."""
    draw = random.Random(f"{seed} {number}")
    kind, chat = "." + ending.split(".")[1], draw.random() < 0.5 and format != "openrlhf"
    odd_table = kind == ".parquet" and draw.random() < 0.5
    lines = [good(draw, format, chat)]
    column = {"weight": draw.random()} if draw.random() < 0.2 else {}
    while len(lines) < size:
        line, chance = good(draw, format, chat), draw.random()
        line = line._replace(value={**line.value, **column})
        if chance > 0.3:
            line = spoiled(draw, line, kind == ".parquet" and not odd_table)
        if chance > 0.8 and kind in (".jsonl", ".ndjson"):
            line = Line(line.value, None, _damaged_line(draw, line, lines[-1]))
        lines.append(line)
    lines[0] = lines[0]._replace(value={**lines[0].value, **column})
    if long:
        at = 1 + draw.randrange(size - 1)
        lines[at] = Line(_with_long(draw, good(draw, format, chat).value, long))
    return _case(draw, number, ending, format, lines, odd_table)


def _case(draw: random.Random, number: int, ending: str, format: str, lines: list[Line], odd_table: bool) -> Case:
    kind, pack = "." + ending.split(".")[1], PACK[ending.removeprefix("." + ending.split(".")[1])]
    ascii, newline = draw.random() < 0.5, draw.choice(["\n", "\r\n"])
    if kind in (".csv", ".tsv"):
        more, mark = draw.sample(APART, draw.randint(0, 3)), "," if kind == ".csv" else "\t"
        loose, key = draw.random() < 0.3, draw.random()

        def table(those: list[Line]) -> bytes:
            data = cells(those, mark, newline, more)
            start = len(cells(those[:1], mark, newline, more))
            spoil = random.Random(key)
            return pack(data[:start] + damaged(spoil, data[start:], data) if loose else data)

        return Case(number, ending, format, lines, table, exact=not loose, wrong=loose)
    if kind == ".parquet":
        more = [(draw.choice(APART), draw.randrange(len(ARRAYS))) for _ in range(draw.randint(0, 3))]
        options = {"compression": draw.choice(["none", "snappy", "zstd"]), "row_group_size": draw.choice([7, 1000])}
        kept = [line._replace(texts=None) for line in lines] if odd_table or more else lines
        return Case(number, ending, format, kept, lambda those: pack(columns(those, more, options)))
    shape, mark = json_array if kind == ".json" else json_lines, b"\xef\xbb\xbf" if draw.random() < 0.1 else b""
    return Case(number, ending, format, lines, lambda those: pack(mark + shape(those, ascii, newline.encode())))


def _damaged_line(draw: random.Random, line: Line, before: Line) -> bytes:
    """A line of damaged bytes, which is neither several lines nor blank."""
    data, other = (written(one.value, draw.random() < 0.5).encode("utf-8", "surrogatepass") for one in (line, before))
    found = damaged(draw, data, other).replace(b"\n", b" ")
    return b"x" if not found or found.isspace() else found


def _with_long(draw: random.Random, row: Any, size: int) -> Any:
    places = [(container, key) for container, key in slots(row) if isinstance(container[key], str)]
    container, key = draw.choice(places)
    piece = draw.choice(["x", "word ", " ", "\n", "天", "😀", EOS, "[", "a b\n"])
    container[key] = container[key] + piece * (size // len(piece))
    return row


# Files that are wrong as a whole

GOOD = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
TABLE = pa.table({"prompt": ["a"] * 9, "chosen": ["b"] * 9, "rejected": ["c"] * 9})


def parquet(table: Any, **options: Any) -> bytes:
    """A table as a Parquet file."""
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


@cache
def faults() -> dict[str, tuple[str, bytes]]:
    """What is wrong -> the name and the content of a file that must be refused in one line."""
    gz, zst = PACK[".gz"], PACK[".zst"]
    table = parquet(TABLE)
    return {
        "empty": ("a.jsonl", b""),
        "blank lines": ("a.jsonl", b" \n\r\n\t\n"),
        "empty array": ("a.json", b"[ ]"),
        "header alone": ("a.csv", b"prompt,chosen,rejected\n"),
        "no rows in Parquet": ("a.parquet", parquet(TABLE.slice(0, 0))),
        "packed emptiness": ("a.jsonl.gz", gz(b"")),
        "line cut": ("a.jsonl", GOOD + GOOD[:-9]),
        "array cut": ("a.json", b"[" + GOOD + b"," + GOOD[:-9]),
        "quotes open": ("a.csv", b'prompt,chosen,rejected\na,b,c\na,"b,c\n'),
        "gzip cut": ("a.jsonl.gz", gz(GOOD * 9)[:-9]),
        "gzip with junk": ("a.jsonl.gz", gz(GOOD * 9) + b"junk"),
        "Zstandard cut": ("a.jsonl.zst", zst(GOOD * 9)[:-3]),
        "Zstandard broken": ("a.csv.zst", zst(GOOD)[:6] + b"\xff" * 9),
        "Parquet cut": ("a.parquet", table[:-20]),
        "Parquet without a foot": ("a.parquet", table[:-4] + b"XXXX"),
        "Parquet's first bytes alone": ("a.parquet", b"PAR1"),
        "Parquet of many levels": ("a.parquet", parquet(pa.table({"a": _list_of(101)(9)}))),
        "packed Parquet cut": ("a.parquet.zst", zst(table)[:-5]),
        "gzip by another name": ("a.jsonl", gz(GOOD)),
        "not gzip": ("a.jsonl.gz", GOOD),
        "not Parquet": ("a.parquet", GOOD),
        "Parquet by another name": ("a.csv", table),
        "packed twice": ("a.jsonl.gz", gz(gz(GOOD))),
        "zip": ("a.jsonl", b"PK\x03\x04" + bytes(99)),
        "UTF-16": ("a.jsonl", GOOD.decode().encode("utf-16")),
        "UTF-32": ("a.csv", "prompt,chosen\na,b\n".encode("utf-32")),
        "NUL bytes": ("a.jsonl", bytes(999)),
        "Git LFS": ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "web page": ("a.jsonl", b"<!doctype html><html>"),
        "prose": ("a.json", b"once upon a time\nthere was a file\n"),
        "JSON by the name of CSV": ("a.csv", GOOD),
        "CSV by the name of JSON": ("a.jsonl", b"prompt,chosen,rejected\na,b,c\n"),
        "semicolons": ("a.csv", b"prompt;chosen;rejected\na;b;c\n"),
        "a column twice": ("a.csv", b"prompt,chosen,chosen\na,b,c\n"),
        "a column twice in Parquet": ("a.parquet", parquet(pa.table([["a"], ["b"], ["c"]], ["prompt", "chosen", "chosen"]))),
        "header no UTF-8": ("a.csv", b"prompt,chosen,r\xe9jected\na,b,c\n"),
        "rows in a field": ("a.json", b'{"data": [' + GOOD + b"]}"),
        "an object of columns": ("a.json", b'{"prompt": ["a", "b"], "chosen": ["c", "d"]}'),
        "array with a syntax error": ("a.json", b"[" + GOOD + b",{]"),
        "array and more": ("a.json", b"[" + GOOD + b"] x"),
        "unknown fields": ("a.jsonl", b'{"foo": "a", "bar": "b"}\n' * 3),
        "misspelt field": ("a.jsonl", GOOD.replace(b"chosen", b"chosn") * 3),
        "fields that are no names": ("a.jsonl", b'{"\\n\\u001b[2J": 1, "\\u2028": 2}\n' * 3),
        "numbers": ("a.jsonl", b"1\n2\n3\n"),
        "deep nesting alone": ("a.jsonl", b"[" * 5000 + b"]" * 5000 + b"\n"),
        "all rows malformed": ("a.jsonl", b"{]\n" * 200),
        "all rows dropped": ("a.jsonl", b'{"prompt": 1, "chosen": "b", "rejected": "c"}\n' * 3),
        "unknown kind of file": ("a.txt", GOOD),
    }  # fmt: skip


def chances(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Files that were whole and then were damaged, cut, or called otherwise."""
    for n in range(count):
        draw = random.Random(f"{seed} damaged {n}")
        ending = EXTENSIONS[n % len(EXTENSIONS)]
        made = case(n, ending, draw.choice([*FORMATS]), 8, seed)
        data = made.content(made.lines)
        how = draw.randrange(4)
        if how == 0:
            data = data[: draw.randrange(len(data))]
        elif how == 1:
            ending = draw.choice(EXTENSIONS)
        elif how == 2:
            at = draw.randrange(len(data))
            data = data[:at] + data[at + draw.randint(1, 99) :]
        else:
            data = damaged(draw, data, data[::-1])
        yield f"damaged{n}{ending}", data
