"""Rows of preference data, good ones and ones that are wrong in every way that we could think of."""

import copy
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from softq.data.formats import FORMATS

EOS, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
WORDS = "the sky is blue and black night long river stone yes no maybe 12 345 naïve 天空 שלום 👩‍👩‍👧 e\u0301".split()
PIECES = [
    "", " ", "\n", "\n\n", "\r\n", "\r", "\t", "  ", "\x00", "\x01", "\x1b[31m", "\x85", "\xa0", "\u2028", "\u2029",
    "\ufeff", "\ufffd", "\ufffe", "\U0010ffff", "\u200b", "\u202e", "\ue000words\ue000", "\u0301", "😀", "\u3000",
    EOS, START, END, f"{END}\n{START}assistant\n", f"{EOS}{EOS}", f"x{EOS}y", "<|im_end", "\n\nHuman:",
    "\n\nAssistant:", '"', '""', "'", ",", ";", "\\", "\\u0000", "{", "[", "]", "null", "NaN", "[1, 2]", '{"a": 1}',
    "{{ x }}", "{% endfor %}", "[{'role': 'user', 'content': 'x'}]", '[{"role": "user"}]',
    '[{"from": "gpt", "value": "x"}]', "=1+1", "<html>", "%s",
]  # fmt: skip
HALVES = ["\ud800", "\udfff", "a\udc80b", "\ude00\ud83d"]


class Raw(str):
    """JSON text that no Python value is written as."""


def nested(levels: int, open_: str = "[", close: str = "]", inside: str = "") -> Raw:
    """A value in so many lists or objects."""
    return Raw(open_ * levels + inside + close * levels)


ODD: list[Any] = [
    None, True, False, 0, -1, 2, 1.5, 10**30, -(2**63), 1e308, 5e-324, math.nan, math.inf, -math.inf,
    Raw("1e999"), Raw("-0"), Raw("9" * 5000), Raw("-" + "1" * 4300), Raw('"\\ud83d\\ude00"'), "", " ", "\n\t",
    "true", "1", "0.5", [], {}, [None], [[]], [{}], {"": ""}, {"a": None}, [[["x"]]], ["x", 1, None],
    nested(99), nested(101), nested(500), nested(990), nested(5000), nested(400, '{"a":', "}", "1"),
    nested(5000, '{"a":', "}", "1"), nested(3000, '[{"a":', "}]", "0"), [0] * 300,
    {f"field {n}": n for n in range(300)},
    [{"role": "user", "content": "x"}], {"role": "assistant", "content": None}, {"from": "gpt", "value": "x"},
    [{"type": "text", "text": "x"}], [{"type": "image"}], Raw('{"a": 1, "a": 2}'), {"role": ["user"], "content": {}},
]  # fmt: skip
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
    True, False, None, 0, 5, -1, "max_length", "pt", "np", "x", [], {}, [1], [{"a": 1}], {"max_length": 3}, [None],
]  # fmt: skip
NAMES = [
    "weight", "margin", "label_probability", "ref_logps", "reference_logps", "ref_chosen_logps",
    "ref_rejected_logps",
    "tools", "chat_template_kwargs", "system", "history", "input", "label", "kto_tag", "score", "odd", "x" * 3000,
    "messages", "conversations", "text", "prompt", "completion", "chosen", "where", "", " prompt", "a\nb", "\x1b[2J",
    "😀",
]  # fmt: skip
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
    b"\x00", b"\x01", b"\x1f", b"\x7f", b"\x80", b"\xff", b"\xfe\xff", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\xaf",
    b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf0\x80\x80\x80", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\xe2\x80",
    b"\xc3", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u", b"\\ud800", b"\\x", b"'", b"1e", b"nul", b"//",
    b"\r", b" ",
    b"\t", b"\v", b"\f", b"\x85", b"\xc2\x85", b"\xc2\xa0", b"NaN", b"-", b"0x1", b"{}", b"[]", b'""', b"\\u0000",
]  # fmt: skip


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
