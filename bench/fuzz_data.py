"""Hostile preference data, read as `softq data` reads it: no row is lost, and nothing but DataError is ever raised.

    python bench/fuzz_data.py [--rows 10000] [--seed 0] [--only FILE] [--large]

Files of every kind and format. Each begins with a good row; of the rest some are good, some are wrong in one way or in
several, and some are damaged bytes. A file is read without a tokenizer and with one, and then
- every row is used or dropped for a reason of REASONS, in one printable line, and the ledger's own check passes;
- as many rows come out as went in, and without a tokenizer each good row is used, with all that it says;
- the ids of a row that is used decode to its text, and are no more than max_length.
Then come files that are wrong as a whole, made by hand and by chance: only these may be refused, by a DataError. The same
seed gives the same files; the exit code is 1 if anything of this is violated, and the row that did it is shown.
"""

import argparse
import copy
import csv
import datetime
import decimal
import gzip
import io
import json
import math
import random
import re
import sys
import tempfile
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from softq.data.encode import Encoder
from softq.data.example import Example, Text
from softq.data.files import EXTENSIONS
from softq.data.formats import FORMATS, Reading
from softq.data.ledger import Ledger
from softq.data.review import Review
from softq.data.rows import DataError, Dropped
from softq.data.sources import sources
from softq.data.stream import Item, stream
from softq.data.templates import CHATML

REASONS = {
    *("malformed_json", "malformed_csv", "ragged_row", "bad_encoding", "repeated_field", "too_deep"),  # of a file's row
    *("bad_type", "bad_value", "missing_field", "unknown_role", "unsupported_content", "mixed_format", "mixed_columns"),
    *("no_shared_prompt", "later_user_turn", "empty_prompt", "empty_completion", "equal_completions"),
    *("template_refuses", "template_mismatch", "inseparable_boundary", "end_inside_completion"),  # these of tokens
    *("too_long", "prompt_too_long", "equal_after_cut"),
}
"""Why a row may be dropped."""

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
ROWS = 30  # of a file
LIMIT = 64  # max_length
RARE = 83  # one file in so many holds a text of megabytes
EOS, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
STRICT = """\
{%- if tools %}{{ '<|im_start|>tools\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif -%}
{%- for message in messages -%}
{%- if message['role'] not in ('system', 'user', 'assistant') -%}
{{ raise_exception('no such role: ' + message['role']) }}
{%- endif -%}
{%- if message['role'] == 'system' and not loop.first %}{{ raise_exception('the system speaks first') }}{% endif -%}
{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}
{%- for call in message['tool_calls'] or [] %}{{ '\n' + (call | tojson) }}{% endfor -%}
{{ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""
"""A template that refuses roles, and that shows whatever it is given."""

WORDS = "the sky is blue and black night long river stone yes no maybe 12 345 naïve 天空 שלום 👩‍👩‍👧 e\u0301".split()
PIECES = [
    *("", " ", "\n", "\n\n", "\r\n", "\r", "\t", "  ", "\x00", "\x01", "\x1b[31m", "\x85", "\xa0", "\u2028", "\u2029"),
    *("\ufeff", "\ufffd", "\ufffe", "\U0010ffff", "\u200b", "\u202e", "\ue000words\ue000", "\u0301", "😀", "\u3000"),
    *(
        EOS,
        START,
        END,
        f"{END}\n{START}assistant\n",
        f"{EOS}{EOS}",
        f"x{EOS}y",
        "<|im_end",
        "\n\nHuman:",
        "\n\nAssistant:",
    ),
    *(
        '"',
        '""',
        "'",
        ",",
        ";",
        "\\",
        "\\u0000",
        "{",
        "[",
        "]",
        "null",
        "NaN",
        "[1, 2]",
        '{"a": 1}',
        "{{ x }}",
        "{% endfor %}",
    ),
    *(
        "[{'role': 'user', 'content': 'x'}]",
        '[{"role": "user"}]',
        '[{"from": "gpt", "value": "x"}]',
        "=1+1",
        "<html>",
        "%s",
    ),
]
HALVES = ["\ud800", "\udfff", "a\udc80b", "\ude00\ud83d"]


class Raw(str):
    """JSON text that no Python value is written as."""


def nested(levels: int, open_: str = "[", close: str = "]", inside: str = "") -> Raw:
    """A value in so many lists or objects."""
    return Raw(open_ * levels + inside + close * levels)


ODD: list[Any] = [
    *(None, True, False, 0, -1, 2, 1.5, 10**30, -(2**63), 1e308, 5e-324, math.nan, math.inf, -math.inf),
    *(Raw("1e999"), Raw("-0"), Raw("9" * 5000), Raw("-" + "1" * 4300), Raw('"\\ud83d\\ude00"')),
    *(
        "",
        " ",
        "\n\t",
        "true",
        "1",
        "0.5",
        [],
        {},
        [None],
        [[]],
        [{}],
        {"": ""},
        {"a": None},
        [[["x"]]],
        ["x", 1, None],
    ),
    *(nested(99), nested(101), nested(500), nested(990), nested(5000), nested(400, '{"a":', "}", "1")),
    *(
        nested(5000, '{"a":', "}", "1"),
        nested(3000, '[{"a":', "}]", "0"),
        [0] * 300,
        {f"field {n}": n for n in range(300)},
    ),
    *([{"role": "user", "content": "x"}], {"role": "assistant", "content": None}, {"from": "gpt", "value": "x"}),
    *([{"type": "text", "text": "x"}], [{"type": "image"}], Raw('{"a": 1, "a": 2}'), {"role": ["user"], "content": {}}),
]
TOLD = [  # JSON in a string, which some fields may hold
    *('{"enable_thinking": false}', '{"a": 1, "a": 2}', "[", "NaN", "[NaN]", '"x"', "{}", '{"a": Infinity}'),
    *(str(nested(levels)) for levels in (90, 500, 990, 5000)),
    *(f'[{{"a": {nested(levels)}}}]' for levels in (90, 900, 970)),
    *('{"x": "\\ud800"}', '[{"name": "\\udfff"}]', '{"\\ud800": 1}', '{"\\u0000": 1}'),
]
KWARGS = [
    *("tokenize", "chat_template", "add_generation_prompt", "continue_final_message", "return_dict", "padding"),
    *("truncation", "max_length", "return_tensors", "return_assistant_tokens_mask", "tokenizer_kwargs", "documents"),
    *("conversation", "messages", "tools", "self", "bos_token", "sanitize_control_tokens", "enable_thinking", ""),
]
VALUES = [
    True,
    False,
    None,
    0,
    5,
    -1,
    "max_length",
    "pt",
    "np",
    "x",
    [],
    {},
    [1],
    [{"a": 1}],
    {"max_length": 3},
    [None],
]
NAMES = [
    *(
        "weight",
        "margin",
        "label_probability",
        "ref_logps",
        "reference_logps",
        "ref_chosen_logps",
        "ref_rejected_logps",
    ),
    *("tools", "chat_template_kwargs", "system", "history", "input", "label", "kto_tag", "score", "odd", "x" * 3000),
    *(
        "messages",
        "conversations",
        "text",
        "prompt",
        "completion",
        "chosen",
        "where",
        "",
        " prompt",
        "a\nb",
        "\x1b[2J",
        "😀",
    ),
]
APART = ["odd", "weight", "margin", "system", "history", "tools", "chat_template_kwargs", "ref_logps", "score"]
"""Columns that a table may have beside the others without another format in its first row."""


class Line(NamedTuple):
    """One row of a file that is to be written."""

    value: Any
    texts: tuple[str, ...] | None = None  # of a good row: all that it says
    raw: bytes | None = None  # what stands in JSON lines in place of the value


@dataclass
class Case:
    """One file."""

    number: int
    ending: str
    format: str
    lines: list[Line]
    content: Callable[[list[Line]], bytes]
    exact: bool = True  # it holds a row for each line
    wrong: bool = False  # it may be refused


# Good rows


def good(draw: random.Random, format: str, chat: bool) -> Line:
    """A row that is right."""
    ask, yes, no = (phrase(draw) + f" {name}{draw.randrange(10**6)}" for name in ("ask", "yes", "no"))
    if format in ("hh", "implicit"):  # its marks have a meaning there
        ask, yes, no = (text.replace("\n\n", " ") for text in (ask, yes, no))
    prompt, better, worse = ([user(ask)], [said(yes)], [said(no)]) if chat else (ask, yes, no)
    talk = {"messages": [user(ask), said(yes)]} if chat else {"conversations": [human(ask), gpt(yes)]}
    pair, asked = {"chosen": better, "rejected": worse}, {"instruction": ask, "input": draw.choice(["", "more"])}
    rows: dict[str, dict[str, Any]] = {
        "preference": {"prompt": prompt, **pair},
        "sharegpt": {"conversations": [human(ask)], "chosen": gpt(yes), "rejected": gpt(no)},
        "alpaca": {**asked, "chosen": yes, "rejected": no, "history": [["q", "a"]]},
        "openrlhf": {"input": ask, "chosen": yes, "rejected": no},
        "hh": {name: f"\n\nHuman: {ask}\n\nAssistant: {text}" for name, text in (("chosen", yes), ("rejected", no))},
        "implicit": {
            name: [user(ask), said(text)] if chat else f"so {ask} {text}"
            for name, text in zip(pair, (yes, no), strict=True)
        },
        "groups": {"prompt": prompt, "completions": [better, worse], "scores": [1, draw.random()]},
        "ultrafeedback": {
            "instruction": ask,
            "completions": [{"response": yes, "overall_score": 4.5}, {"response": no, "overall_score": 1.0}],
        },
        "stepwise": {"prompt": prompt, "completions": [better, worse], "labels": [True, False]},
        "unpaired": {"prompt": prompt, "completion": better, "label": draw.random() < 0.5},
        "openrlhf-kto": {"input": ask, "output": yes, "label": draw.random() < 0.5},
        "alpaca-kto": {**asked, "output": yes, "kto_tag": draw.random() < 0.5},
        "sharegpt-kto": {**talk, "label" if chat else "kto_tag": draw.random() < 0.5},
        "alpaca-sft": {**asked, "output": yes},
        "openrlhf-sft": {"input": ask, "output": yes},
        "prompt-completion": {"prompt": prompt, "completion": better},
        "language-modeling": talk if chat else {"text": f"{ask} {yes}"},
        "prompt-only": {"prompt": prompt},
    }
    row = rows[format]
    whole = written(row, False)
    return Line(row, tuple(text for text in (ask, yes, no) if json.dumps(text, ensure_ascii=False)[1:-1] in whole))


def phrase(draw: random.Random) -> str:
    """A few words, with anything between them."""
    words = [draw.choice(WORDS) for _ in range(draw.randint(1, 4))]
    return " ".join(words) + (draw.choice(PIECES) if draw.random() < 0.3 else "")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def human(text: str) -> dict[str, Any]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, Any]:
    return {"from": "gpt", "value": text}


# Bad rows


def spoiled(draw: random.Random, line: Line, tame: bool = False) -> Line:
    """A row that went wrong in one place or in a few; tame: every value keeps its type, or is null."""
    value = copy.deepcopy(line.value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        ways = TAME if tame else WAYS
        value = draw.choice(ways)(draw, value) if isinstance(value, dict) else value
    return Line(value)


def slots(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a value, as its container and its key."""
    found: list[tuple[Any, Any]] = []
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        found += [(value, key), *slots(item)]
    return found


def _odd(draw: random.Random, row: Any) -> Any:
    container, key = draw.choice(slots(row) or [(row, "odd")])
    container[key] = copy.deepcopy(draw.choice(ODD))
    return row


def _null(draw: random.Random, row: Any) -> Any:
    container, key = draw.choice(slots(row) or [(row, "odd")])
    container[key] = None
    return row


def _gone(draw: random.Random, row: Any) -> Any:
    places = slots(row)
    if places:
        container, key = draw.choice(places)
        del container[key]
    return row


def _misspelt(draw: random.Random, row: Any) -> Any:
    places = [(container, key) for container, key in slots(row) if isinstance(container, dict)]
    if places:
        container, key = draw.choice(places)
        other = draw.choice([key[:-1], key.upper(), key[1:] + key[:1], f" {key}", f"{key}\n", f"{key}\x00", key + "s"])
        container[other] = container.pop(key)
    return row


def _added(draw: random.Random, row: Any) -> Any:
    kwargs = {draw.choice(KWARGS): draw.choice(VALUES) for _ in range(draw.randint(1, 3))}
    value = draw.choice([draw.choice(ODD), draw.choice(TOLD), kwargs, [kwargs], draw.choice(VALUES)])
    name = draw.choice(["tools", "chat_template_kwargs"]) if draw.random() < 0.3 else draw.choice(NAMES)
    row[name] = copy.deepcopy(value)
    return row


def _text(draw: random.Random, row: Any) -> Any:
    """Another text, or a text with something in it."""
    places = [(container, key) for container, key in slots(row) if isinstance(container[key], str)]
    if places:
        container, key = draw.choice(places)
        text, piece = container[key], draw.choice(PIECES)
        at = draw.randint(0, len(text))
        container[key] = draw.choice([piece, text[:at] + piece + text[at:], text + piece, piece + text, piece * 40])
    return row


def _half(draw: random.Random, row: Any) -> Any:
    places = [(container, key) for container, key in slots(row) if isinstance(container[key], str)]
    if places:
        container, key = draw.choice(places)
        container[key] += draw.choice(HALVES)
    return row


def _equal(draw: random.Random, row: Any) -> Any:
    places = slots(row)
    if places:
        (container, key), (other, name) = draw.choice(places), draw.choice(places)
        container[key] = copy.deepcopy(other[name])
    return row


def _same(draw: random.Random, row: Any) -> Any:
    """One text in the place of another."""
    places = [(container, key) for container, key in slots(row) if isinstance(container[key], str)]
    if places:
        (container, key), (other, name) = draw.choice(places), draw.choice(places)
        container[key] = other[name]
    return row


def _message(draw: random.Random, row: Any) -> Any:
    places = [(container, key) for container, key in slots(row) if isinstance(container[key], dict)]
    if not places:
        return _odd(draw, row)
    container, key = draw.choice(places)
    message = container[key]
    role, content = ("from", "value") if "from" in message else ("role", "content")
    call = {"type": "function", "function": {"name": "f", "arguments": draw.choice([*ODD, *TOLD])}}
    parts = [{"type": "text", "text": draw.choice(PIECES)}, {"type": draw.choice(["text", "image", 1])}]
    change: dict[str, Any] = draw.choice([
        {role: draw.choice(["User", "bot", "system", "tool", "developer", "model", "", "x" * 5000, "gpt", "\n"])},
        {content: None, "tool_calls": [call]},
        {content: draw.choice(PIECES), "tool_calls": draw.choice([[call, call], call, "f()", [None], 1])},
        {content: parts[: draw.randint(0, 2)]},
        {"name": draw.choice(ODD), "reasoning_content": draw.choice(PIECES), "weight": 0},
    ])  # fmt: skip
    message.update(copy.deepcopy(change))
    if draw.random() < 0.3:
        message.pop(draw.choice([role, content]), None)
    return row


def _longer(draw: random.Random, row: Any) -> Any:
    """A list with one of its items twice, or without its first, or turned round."""
    places = [(container, key) for container, key in slots(row) if isinstance(container[key], list)]
    if places:
        container, key = draw.choice(places)
        items = container[key]
        container[key] = draw.choice([[*items, *items[:1]], items[1:], items[::-1], items * 3])
    return row


def _other_format(draw: random.Random, row: Any) -> Any:
    return good(draw, draw.choice([*FORMATS]), draw.random() < 0.5).value


def _twice(draw: random.Random, row: Any) -> Any:
    pairs = [(name, value) for name, value in row.items() for _ in range(draw.choice((1, 1, 2)))]
    pairs += [("odd", 1), ("odd", 2)] if len(pairs) == len(row) else []
    return Raw("{" + ", ".join(f"{json.dumps(name)}: {written(value)}" for name, value in pairs) + "}")


def _no_object(draw: random.Random, row: Any) -> Any:
    return copy.deepcopy(draw.choice(ODD))


WAYS = [_odd, _odd, _null, _gone, _misspelt, _added, _added, _text, _text, _half, _equal, _message, _message, _longer]
WAYS += [_other_format, _twice, _no_object]
TAME = [_null, _text, _text, _same, _longer, _gone]


def damaged(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """Bytes with a few changed, lost, or put in."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5))):
        at, size = draw.randint(0, len(found)), draw.randint(0, 4)
        piece = draw.choice(BYTES) if draw.random() < 0.6 else other[at : at + draw.randint(0, 40)]
        found[at : at + size] = piece
    if draw.random() < 0.1:
        found = found[: draw.randint(0, len(found))]
    return bytes(found)


BYTES = [
    *(b"\x00", b"\x01", b"\x1f", b"\x7f", b"\x80", b"\xff", b"\xfe\xff", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\xaf"),
    *(
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf0\x80\x80\x80",
        b"\xe2\x80\xa8",
        b"\xef\xbb\xbf",
        b"\xe2\x80",
        b"\xc3",
    ),
    *(
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\\",
        b"\\u",
        b"\\ud800",
        b"\\x",
        b"'",
        b"1e",
        b"nul",
        b"//",
        b"\r",
        b" ",
    ),
    *(b"\t", b"\v", b"\f", b"\x85", b"\xc2\x85", b"\xc2\xa0", b"NaN", b"-", b"0x1", b"{}", b"[]", b'""', b"\\u0000"),
]


# Files


def written(value: Any, ascii: bool = True) -> str:
    """A value as JSON; what is raw as it stands."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(k, ensure_ascii=ascii)}: {written(v, ascii)}" for k, v in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(written(item, ascii) for item in value) + "]"
    return json.dumps(value, ensure_ascii=ascii)


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
        "a column twice in Parquet": (
            "a.parquet",
            parquet(pa.table([["a"], ["b"], ["c"]], ["prompt", "chosen", "chosen"])),
        ),
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
    }


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


# What becomes of a file


class Trip(NamedTuple):
    """What came of reading a file."""

    items: list[Item]
    ledger: Ledger | None = None  # None: the reading did not end
    refused: str = ""  # the DataError
    escaped: str = ""  # what else was raised


def travel(file: Path, encoder: Encoder | None) -> Trip:
    """Read a file as `softq data` does."""
    items: list[Item] = []
    try:
        of = sources(str(file))
        review = Review(stream(of, Reading(), encoder), of, encoder.max_length if encoder else None)
        items.extend(review.items())
        json.dumps([review.ledger.as_dict(), review.lengths.as_dict(), [*review.other]], ensure_ascii=False).encode()
    except DataError as error:
        return Trip(items, refused=str(error).replace(f"{file.parent}/", ""))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a tokenizer is no Exception
        frame = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        return Trip(items, escaped=f"{type(error).__name__} at {at}: {str(error)[:200]!r}")
    return Trip(items, review.ledger)


def faults_of(case: Case, trip: Trip, encoder: Encoder | None) -> Iterator[tuple[int | None, str]]:
    """What is wrong with a trip: the number of the row, and what."""
    if trip.escaped or (trip.refused and not case.wrong):
        yield None, trip.escaped or f"refused: {trip.refused}"
        return
    if trip.ledger is None:
        return
    if len(trip.items) != trip.ledger.rows or (case.exact and len(trip.items) != len(case.lines)):
        yield None, f"{len(case.lines)} rows went in, {len(trip.items)} came out, the ledger has {trip.ledger.rows}"
        return
    for n, item in enumerate(trip.items):
        line = case.lines[n] if case.exact else Line(None)
        if isinstance(item.example, Dropped):
            yield from ((n, what) for what in of_dropped(item.example, line, encoder))
        else:
            yield from ((n, what) for what in of_used(item.example, item, line, encoder))


def of_dropped(row: Dropped, line: Line, encoder: Encoder | None) -> Iterator[str]:
    """What is wrong with a row that was dropped."""
    if row.reason not in REASONS:
        yield f"dropped for an unknown reason, {row.reason!r}"
    if CONTROLS.search(row.message + row.excerpt):
        yield f"control characters in a message: {row.message!r}, of {row.excerpt!r}"
    if line.texts is not None and encoder is None:
        yield f"a good row was dropped: {row.reason}: {row.message}"


def of_used(example: Example, item: Item, line: Line, encoder: Encoder | None) -> Iterator[str]:
    """What is wrong with a row that was used."""
    if encoder is None:
        said = [_flat(example.prompt), *(_flat(example.prompt) + _flat(text) for text in example.completions)]
        lost = [text for text in line.texts or () if not any(text in whole for whole in said)]
        if lost:
            yield f"it lost {lost[0]!r}"
        return
    if item.encoded is None:
        yield "it has no ids"
        return
    account = item.account
    if account.read != account.scored + account.context + account.cut + account.template_tail:
        yield f"its account is uneven: {account}"
    for n, (ids, action, ended) in enumerate(item.encoded.completions):
        if len(ids) > LIMIT or len(action) != len(ids) - 1 or (example.completions and not action.any()):
            yield f"completion {n} has {len(ids)} ids, {len(action)} actions, {action.sum()} of them chosen"
        text = encoder.tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = rendered(example, n, encoder)
        if not same(str(text), whole, ended or not example.completions):
            yield f"completion {n} decodes to {str(text)!r}; expected {whole!r}"
        text = encoder.tokenizer.decode(ids[1:][action].tolist(), clean_up_tokenization_spaces=False)
        own, chosen = words(example, n), bare(str(text) if ended else str(text).rstrip("\ufffd"))
        if own is not None and chosen != (own if ended else own[: len(chosen)]):
            yield f"of completion {n} the policy chose {str(text)!r}; expected {own!r}"


def rendered(example: Example, n: int, encoder: Encoder) -> str:
    """All that a completion is, by the account of strings and of transformers alone."""
    steps = "step_label" in example.columns
    said = example.completions if steps else example.completions[n : n + 1]
    if isinstance(example.prompt, str):
        return example.prompt + "\n".join(map(str, said))
    messages = [dict(message) for part in (example.prompt, *said) for message in part if not isinstance(message, str)]
    while said and messages[-1]["role"] != "assistant":  # what others say after the policy's last words
        messages.pop()
    options = {**example.template_kwargs, "tokenize": False, "add_generation_prompt": not said}
    return str(encoder.tokenizer.apply_chat_template(messages, chat_template=encoder.chat_template, **options))


def same(text: str, whole: str, ended: bool) -> bool:
    """Whether decoded ids are the text: all of it with an end, or, where they were cut, its beginning."""
    if not ended:
        return whole.startswith(text.rstrip("\ufffd"))
    closed = text.endswith((EOS, END)) and whole.startswith(text) and not bare(whole[len(text) :])
    return text == whole or closed or text == whole + EOS


def words(example: Example, n: int) -> str | None:
    """What the policy said in a completion, without white space and ends.

    None where a template puts more to it, or where the first token, which may be half a character, is given.
    """
    said = example.completions if "step_label" in example.columns else example.completions[n : n + 1]
    if isinstance(example.prompt, str):
        return bare("".join(map(str, said))) if example.prompt and said else None
    spoken = [message for part in said for message in part if not isinstance(message, str)]
    own = [message for message in spoken if message["role"] == "assistant"]
    return None if any(message.get("tool_calls") for message in own) else bare("".join(m["content"] or "" for m in own))


def bare(text: str) -> str:
    """A text without white space and ends."""
    return "".join(text.replace(EOS, "").replace(END, "").split())


def _flat(text: Text) -> str:
    return text if isinstance(text, str) else "".join(message["content"] or "" for message in text)


def culprit(case: Case, file: Path, encoder: Encoder | None) -> int | None:
    """The first row that does alone, behind the good one, what all did together."""
    for n in range(1, len(case.lines)):
        file.write_bytes(case.content([case.lines[0], case.lines[n]]))
        trip = travel(file, encoder)
        if trip.escaped or trip.refused:
            return n
    return None


@cache
def encoders() -> list[Encoder]:
    """A byte-level BPE of a few words, with two templates, dropping and cutting what is too long."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    bpe.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[EOS, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(WORDS), "system user assistant tools"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS)
    return [
        Encoder(tokenizer, frozenset(), LIMIT, template, keep)
        for template in (STRICT, CHATML)
        for keep in (True, False)
    ]


@dataclass
class Totals:
    """What became of the files of one kind."""

    files: int = 0
    rows: int = 0
    used: Counter = field(default_factory=Counter)  # with tokens or without -> rows
    dropped: dict[bool, Counter] = field(default_factory=lambda: {False: Counter(), True: Counter()})


@dataclass
class Found:
    """Everything that is reported."""

    seed: int
    kinds: dict[str, Totals] = field(default_factory=lambda: defaultdict(Totals))
    refused: dict[str, str] = field(default_factory=dict)  # what is wrong -> the message
    damaged: Counter = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def enter(self, case: Case, folder: Path) -> None:
        """Read one file without a tokenizer and with one."""
        totals, file = self.kinds[case.ending], folder / f"rows{case.ending}"
        totals.files += 1
        for encoder in (None, encoders()[case.number % len(encoders())]):
            file.write_bytes(case.content(case.lines))
            trip, tokens = travel(file, encoder), encoder is not None
            totals.rows += 0 if tokens else len(trip.items)
            for item in trip.items:
                if isinstance(item.example, Dropped):
                    totals.dropped[tokens][item.example.reason] += 1
                else:
                    totals.used[tokens] += 1
            if trip.refused and case.wrong:
                self.damaged["loose tables refused"] += not tokens
            for n, what in faults_of(case, trip, encoder):
                row = culprit(case, file, encoder) if n is None and not case.wrong else n
                self._violation(case, row, what, tokens)

    def enter_faults(self, folder: Path, count: int) -> None:
        """Read files that are wrong as a whole."""
        for what, (name, data) in faults().items():
            trip = self._read(what, folder / name, data, None)
            empty = trip.ledger is not None and trip.ledger.used == 0  # `softq data` says so itself
            self.refused[what] = "all rows dropped" if empty else trip.refused
            if not trip.refused and not empty:
                self.violations.append(f"seed {self.seed}: a file with the fault {what!r} was not refused")
        for n, (name, data) in enumerate(chances(count, self.seed)):
            for encoder in (None, encoders()[n % len(encoders())]):
                trip = self._read(name, folder / name, data, encoder)
                self.damaged["refused" if trip.refused else "read"] += encoder is None

    def _read(self, what: str, file: Path, data: bytes, encoder: Encoder | None) -> Trip:
        file.write_bytes(data)
        trip = travel(file, encoder)
        unknown = {i.example.reason for i in trip.items if isinstance(i.example, Dropped)} - REASONS
        if trip.escaped or unknown or CONTROLS.search(trip.refused):
            self.violations.append(f"seed {self.seed}, {what}: {trip.escaped or unknown or repr(trip.refused)}")
        return trip

    def _violation(self, case: Case, row: int | None, what: str, tokens: bool) -> None:
        line = case.lines[row] if row is not None and case.exact else None
        shown = "" if line is None else repr(line.raw) if line.raw is not None else written(line.value)
        shown = shown if len(shown) <= 500 else f"{shown[:350]} … {shown[-150:]}"
        place = f"seed {self.seed}, --only {case.number} ({case.format}{case.ending}), row {row}"
        self.violations.append(f"{place}{', in tokens' if tokens else ''}: {what}\n    {shown}")

    def lines(self) -> Iterator[str]:
        """The report."""
        yield "| file | files | rows | used | dropped | used in tokens | dropped in tokens |"
        yield "|---|---|---|---|---|---|---|"
        for ending in sorted(self.kinds, key=EXTENSIONS.index):
            total = self.kinds[ending]
            parts = " | ".join(f"{total.used[tokens]} | {_told(total.dropped[tokens])}" for tokens in (False, True))
            yield f"| {ending} | {total.files} | {total.rows} | {parts} |"
        yield ""
        yield "| wrong as a whole | said |"
        yield "|---|---|"
        yield from (f"| {what} | {said.replace('|', '¦')} |" for what, said in self.refused.items())
        yield ""
        yield f"damaged by chance: {_told(self.damaged) or 'none'}"
        yield f"violations: {len(self.violations)}"
        yield from self.violations


def _told(counts: Counter) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def fuzz(rows: int, seed: int, numbers: Iterable[int] = (), large: bool = False) -> Found:
    """Read about so many hostile rows; of some files only, if they are named by their numbers."""
    found, only = Found(seed), set(numbers)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        for one in cases(rows, seed, large):
            if not only or one.number in only:
                found.enter(one, Path(name))
        if not only:
            found.enter_faults(Path(name), rows // 50)
    return found


def main() -> None:
    """Print the report; exit 1 on a violation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", default=(), metavar="FILE", help="numbers of files")
    parser.add_argument("--large", action="store_true", help="with a row of 50 MB")
    options = parser.parse_args()
    found = fuzz(options.rows, options.seed, options.only, options.large)
    print("\n".join(line.encode("utf-8", "backslashreplace").decode() for line in found.lines()))
    sys.exit(bool(found.violations))


if __name__ == "__main__":
    main()
