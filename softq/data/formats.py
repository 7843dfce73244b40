"""The known formats of preference data: a name, a shape and a parser each; which one rows are in; their further fields."""

import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, NamedTuple

from softq.data import parsers
from softq.data.example import Example, Text
from softq.data.fields import TRUTH, Field, form
from softq.data.rows import DataError, Dropped, Row, Unusable, dropped
from softq.records import COLUMNS

OPTIONS = ("chat_template_kwargs", "tools")
RESERVED = set(
    "conversation messages tools chat_template add_generation_prompt continue_final_message tokenize padding truncation "
    "max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs sanitize_control_tokens".split()
)
"""Arguments of `apply_chat_template` that are not the data's to give."""

COMMON = ("preference", "groups", "unpaired", "prompt-completion")  # to be advised; there are many more
LOOKED = 100  # rows that may be bad before one shows the format


class Format(NamedTuple):
    """A named shape of rows."""

    kind: str  # "pairs", "groups", "labels", "rows" (demonstrations), "prompts" or "steps"
    fields: tuple[str, ...]  # what the parser reads; all of `marks` and perhaps more
    marks: tuple[str, ...]  # fields that a row of this format has
    parse: Callable[[Field], Example]
    fits: Callable[[Mapping[str, Any]], bool] = lambda row: True  # beyond the names
    renamed: Mapping[str, str] = {}  # the parser's name -> the row's


def _judged(row: Mapping[str, Any]) -> bool:
    """Whether it says good or bad; a label that is a word for neither is the name of a class."""
    label = row.get("label")
    return "kto_tag" in row or ("label" in row and (not isinstance(label, str) or label.lower() in TRUTH))


def _dialogues(row: Mapping[str, Any]) -> bool:
    return all(isinstance(row[name], str) and parsers.ASSISTANT in row[name] for name in ("chosen", "rejected"))


def _unprompted(row: Mapping[str, Any]) -> bool:
    """No field beside chosen and rejected holds what may be the prompt, a text or messages; messages bring their own."""
    beside = (value for name, value in row.items() if name not in ("chosen", "rejected", *OPTIONS))
    texts = (isinstance(value, list) or (isinstance(value, str) and " " in value.strip()) for value in beside)
    return not isinstance(row["chosen"], str) or not (any(texts) or any(name in row for name in CALLED["prompt"]))


CALLED = {
    "prompt": ("question", "query", "instruction", "input", "context", "problem", "user"),
    "chosen": ("preferred", "winner", "better", "accepted", "chosen_response", "response_chosen"),
    "rejected": ("dispreferred", "loser", "worse", "rejected_response", "response_rejected"),
    "completion": ("response", "answer", "output", "generation"),
    "completions": ("responses", "answers", "generations"),
    "scores": ("rewards", "ratings"),
    "kto_tag": ("label",),
}
"""What others call our fields: only to advise, never to assume."""

_ALPACA = ("instruction", "input", "system", "history")
_TALK = ("conversations", "messages", "system")

FORMATS: dict[str, Format] = {
    "preference": Format("pairs", ("prompt", "chosen", "rejected"), ("prompt", "chosen", "rejected"), parsers.preference),
    "sharegpt": Format("pairs", (*_TALK, "chosen", "rejected"), ("conversations", "chosen", "rejected"), parsers.sharegpt),
    "alpaca": Format("pairs", (*_ALPACA, "chosen", "rejected"), ("instruction", "chosen", "rejected"), parsers.alpaca),
    "openrlhf": Format(
        "pairs", ("input", "chosen", "rejected"), ("input", "chosen", "rejected"), parsers.preference,
        renamed={"prompt": "input"},
    ),
    "hh": Format("pairs", ("chosen", "rejected"), ("chosen", "rejected"), parsers.hh, _dialogues),
    "implicit": Format("pairs", ("chosen", "rejected"), ("chosen", "rejected"), parsers.implicit, _unprompted),
    "groups": Format(
        "groups", ("prompt", "completions", "scores"), ("prompt", "completions", "scores"), parsers.groups
    ),
    "ultrafeedback": Format(
        "groups", ("instruction", "completions"), ("instruction", "completions"), parsers.ultrafeedback
    ),
    "stepwise": Format(
        "steps", ("prompt", "completions", "labels"), ("prompt", "completions", "labels"), parsers.stepwise
    ),
    "unpaired": Format(
        "labels", ("prompt", "completion", "label"), ("prompt", "completion", "label"), parsers.unpaired
    ),
    "openrlhf-kto": Format(
        "labels", ("input", "output", "label"), ("input", "output", "label"), parsers.unpaired,
        lambda row: "instruction" not in row, {"prompt": "input", "completion": "output"},
    ),
    "alpaca-kto": Format(
        "labels", (*_ALPACA, "output", "kto_tag"), ("instruction", "output", "kto_tag"), parsers.alpaca_label
    ),
    "sharegpt-kto": Format(
        "labels", (*_TALK, "kto_tag", "label"), (), parsers.sharegpt_label,
        lambda row: _judged(row) and ("conversations" in row or "messages" in row),
    ),
    "alpaca-sft": Format("rows", (*_ALPACA, "output"), ("instruction", "output"), parsers.alpaca_answer),
    "openrlhf-sft": Format(
        "rows", ("input", "output"), ("input", "output"), parsers.demonstration,
        renamed={"prompt": "input", "completion": "output"},
    ),
    "prompt-completion": Format("rows", ("prompt", "completion"), ("prompt", "completion"), parsers.demonstration),
    "language-modeling": Format(
        "rows", ("text", *_TALK), (), parsers.conversation,
        lambda row: any(name in row for name in ("text", "messages", "conversations")),
    ),
    "prompt-only": Format("prompts", ("prompt",), ("prompt",), parsers.prompt_only),
}  # fmt: skip
"""Tried in this order: the first that fits a row is its format. TRL's data set types under TRL's names, and others'."""

EACH = {"ref_logps"}  # columns of a file with one number per completion; the others have one per record
LARGEST = 3.4028234663852886e38  # of float32, in which they are read
BOUNDS = {
    "weight": (0.0, math.inf, "a number ≥ 0"),
    "label_probability": (0.0, 1.0, "a number from 0 to 1"),
    "ref_logps": (-math.inf, 1e-3, "a log-probability, a number ≤ 0"),  # a little above by rounding
}
SPELLED = {"ref_logps": ("ref_logps", "reference_logps", "ref_chosen_logps", "ref_rejected_logps")}


class Reading(NamedTuple):
    """How rows are to be read."""

    format: str | None = None  # None: detected
    rename: Mapping[str, str] = {}  # our name -> the file's
    reads: Sequence[str] | None = None  # the columns that are read; None: every one that is known
    reader: str = "this method"  # who reads them, for messages
    forced: bool = False  # the format is the user's word: no row is told that it is in another


def detect(row: Mapping[str, Any]) -> str | None:
    """The name of the format that a row is in."""
    return next((name for name, format in FORMATS.items() if _matches(format, row)), None)


def parse_rows(rows: Iterable[Row | Dropped], reading: Reading) -> tuple[str, Iterator[Example | Dropped]]:
    """The format of the rows, and each of them as text in the shape of the first; bad ones are dropped by name."""
    rows = (_renamed(row, reading.rename) for row in rows)
    if reading.format is not None:
        return known(reading.format), _parsed(rows, reading._replace(format=known(reading.format), forced=True))
    rows, looked = iter(rows), []
    for row in rows:
        looked.append(row)
        found = detect(row.value) if isinstance(row, Row) else None
        if found is not None and isinstance(row, Row):
            _check_meant(row, found)
            return found, _parsed(_chained(looked, rows), reading._replace(format=found))
        if len(looked) == LOOKED:
            break
    raise _undetected(looked)


def known(format: str) -> str:
    """The name of a format, checked; underscores are as good as hyphens."""
    name = format.replace("_", "-")
    if name not in FORMATS:
        of_kind = [other for other, format in FORMATS.items() if format.kind == name]
        near = get_close_matches(name, of_kind or FORMATS, n=1)
        advice = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(of_kind or FORMATS)}"
        raise ValueError(f"format '{format}' is unknown; {advice}")
    return name


def renames(pairs: Sequence[str]) -> dict[str, str]:
    """ours=theirs -> {ours: theirs}."""
    bad = next((pair for pair in pairs if not all(pair.partition("="))), None)
    if bad is not None:
        raise ValueError(f"--rename {bad!r} is not valid: expected OURS=THEIRS, such as prompt=question")
    return {ours: theirs for ours, _, theirs in (pair.partition("=") for pair in pairs)}


def _matches(format: Format, row: Mapping[str, Any]) -> bool:
    return all(mark in row for mark in format.marks) and format.fits(row)


def _chained(looked: list[Row | Dropped], rows: Iterator[Row | Dropped]) -> Iterator[Row | Dropped]:
    yield from looked
    yield from rows


def _parsed(rows: Iterable[Row | Dropped], reading: Reading) -> Iterator[Example | Dropped]:
    first: Example | None = None
    for row in rows:
        if isinstance(row, Dropped):
            yield row
            continue
        try:
            example = _example(row, reading)
            first = first or example
            _check_alike(example, first)
        except Unusable as error:
            yield dropped(row.where, error, row.value)
            continue
        yield example


def _example(row: Row, reading: Reading) -> Example:
    format = FORMATS[reading.format or ""]
    other = None if reading.forced or _matches(format, row.value) else detect(row.value)
    if other is not None and other != reading.format and not _poorer(FORMATS[other], format):
        raise Unusable("mixed_format", f"the row is in format '{other}'; expected '{reading.format}'; split the data")
    value = row.value
    if format.renamed:
        value = {**value, **{ours: value[theirs] for ours, theirs in format.renamed.items() if theirs in value}}
    example = format.parse(Field("", value))._replace(where=row.where)
    _check_said(example)
    return _with_extra(example, format, Field("", row.value), reading)


def _poorer(other: Format, format: Format) -> bool:
    """Whether a row that fits the other format only lacks a field: a preference without `rejected` is no bare prompt."""
    return other.kind != format.kind and set(other.marks) < set(format.marks)


def _check_said(example: Example) -> None:
    """Each completion says something, and not all say the same."""
    if any(_blank(completion) for completion in example.completions):
        raise Unusable("empty_completion", "a completion says nothing")
    several = len(example.completions) > 1 and "step_label" not in example.columns
    if several and all(one == other for one, other in pairwise(example.completions)):
        raise Unusable("equal_completions", "the completions are the same text")


def _blank(completion: Text) -> bool:
    if isinstance(completion, str):
        return not completion.strip()
    return not any(message.get("tool_calls") or (message["content"] or "").strip() for message in completion)


def _with_extra(example: Example, format: Format, row: Field, reading: Reading) -> Example:
    """The example with the fields beside its texts: template options, columns that are read, the others."""
    fields = row.object()
    chat = not isinstance(example.prompt, str)
    other = {name: value for name, value in fields.items() if name not in format.fields}
    options = _options(row) if chat else {}
    other = {name: value for name, value in other.items() if not (chat and name in OPTIONS)}
    columns = dict(example.columns)
    for name in (name for name, column in COLUMNS.items() if column.given):
        spellings = [spelled for spelled in SPELLED.get(name, (name,)) if fields.get(spelled) is not None]
        if spellings and reading.reads is not None and name not in reading.reads:
            advice = f"remove it, or name it otherwise with --rename other={spellings[0]}"
            came = f"column '{spellings[0]}' is known but {reading.reader} does not read it"
            raise DataError(f"{example.where}: {came}; {advice}")
        if spellings:
            columns[name] = _column(name, [row.member(spelled) for spelled in spellings], example)
        other = {key: value for key, value in other.items() if key not in SPELLED.get(name, (name,))}
    return example._replace(template_kwargs=options, columns=columns, other=other)


def _column(name: str, fields: list[Field], example: Example) -> tuple[float, ...]:
    numbers = tuple(number for field in fields for number in field.numbers())
    expected = len(example.completions) if name in EACH else 1
    if len(numbers) != expected:
        came = "1 number" if len(numbers) == 1 else f"{len(numbers)} numbers"
        message = f"field '{fields[0].name}' holds {came}; expected {expected}"
        raise Unusable("bad_type", message, fields[0].name)
    low, high, bounds = BOUNDS.get(name, (-math.inf, math.inf, ""))
    for number in numbers:
        if not low <= number <= high or abs(number) > LARGEST:
            bounds = f"a number of at most {LARGEST:.1e}" if low <= number <= high else bounds
            raise Unusable("bad_value", f"field '{fields[0].name}' is {number:g}; expected {bounds}", fields[0].name)
    return numbers


def _options(row: Field) -> Mapping[str, Any]:
    """What the row hands to the chat template; a null is as good as nothing."""
    given = {name: row.member(name).parsed() for name in OPTIONS if row.object().get(name)}
    options = given["chat_template_kwargs"].object() if "chat_template_kwargs" in given else {}
    ours = next((name for name in options if name in RESERVED), None)
    if ours is not None:
        message = f"field 'chat_template_kwargs.{ours}' is no variable of a chat template; leave it out"
        raise Unusable("bad_value", message, f"chat_template_kwargs.{ours}")
    tools = [tool.value for tool in given["tools"].items("a list of tools")] if "tools" in given else []
    return {**options, "tools": tools} if tools else options


def _check_alike(example: Example, first: Example) -> None:
    """Every record is in the form of the first, and has the columns that it has."""
    here, there = form(example.prompt), form(first.prompt)
    if here != there:
        raise Unusable(
            "mixed_format", f"the prompt is {here}; expected {there} as in {first.where}; split the data", "prompt"
        )
    for name in sorted(set(example.columns) ^ set(first.columns)):
        has, lacks = ("has", "has not") if name in example.columns else ("lacks", "has")
        message = f"the row {has} field '{name}', which {first.where} {lacks}; give it in every row or in none"
        raise Unusable("mixed_columns", message, name)


def _renamed(row: Row | Dropped, rename: Mapping[str, str]) -> Row | Dropped:
    """The row with the file's names exchanged for ours; one that a name of ours displaces is called 'displaced NAME'."""
    if not rename or isinstance(row, Dropped):
        return row
    lost = next((ours for ours, theirs in rename.items() if theirs not in row.value and ours in row.value), None)
    if lost is not None:  # to take the field that has our name would not be what was asked for
        message = f"field '{rename[lost]}' is missing, which --rename takes as {lost}"
        return dropped(row.where, Unusable("missing_field", message, rename[lost]), row.value)
    taken = {ours: theirs for ours, theirs in rename.items() if theirs in row.value}
    rest = {name: value for name, value in row.value.items() if name not in taken.values()}
    kept = {f"displaced {name}" if name in taken else name: value for name, value in rest.items()}
    return Row(row.where, {**kept, **{ours: row.value[theirs] for ours, theirs in taken.items()}})


def _undetected(looked: list[Row | Dropped]) -> DataError:
    """None of the first rows is in a known format: what they hold, and what may have been meant."""
    first = next((row for row in looked if isinstance(row, Row)), looked[0])
    if isinstance(first, Dropped):
        return DataError(f"{first.where}: {first.message}; none of the first {len(looked)} rows can be read")
    came = ", ".join(name[:40] for name in list(first.value)[:12]) or "none"
    guess = _meant(first.value, FORMATS)
    if guess:
        return DataError(f"{first.where}: unknown format; the fields are {came}; did you mean --rename {guess}?")
    if {"chosen", "rejected"} <= set(first.value):
        advice = "--rename prompt=FIELD says which is the prompt; --format implicit takes what both texts begin with"
        return DataError(f"{first.where}: chosen and rejected are texts beside {came}; {advice}")
    shapes = "; ".join(", ".join(FORMATS[name].marks) for name in COMMON)
    advice = f"--rename OURS=THEIRS to fit {shapes}; or messages (docs/data.md has all formats)"
    return DataError(f"{first.where}: unknown format; the fields are {came}; {advice}")


def _check_meant(row: Row, found: str) -> None:
    """Refuse a format that leaves fields aside which, but for their spelling, would make a richer one."""
    earlier = list(FORMATS)[: list(FORMATS).index(found)]
    richer = [name for name in earlier if set(FORMATS[name].marks) > set(FORMATS[found].marks)]
    guess = _meant(row.value, richer)
    if guess:
        raise DataError(f"{row.where}: did you mean --rename {guess}? If not, force --format {found}")


def _meant(row: Mapping[str, Any], names: Iterable[str]) -> str:
    """The renames that make the row fit a format: each missing field has one that is spelled like it, or is its synonym."""
    for format in (FORMATS[name] for name in names):
        missing = [mark for mark in format.marks if mark not in row]
        free = [name for name in row if name not in format.marks]
        near = {mark: _alike(mark, free) for mark in missing}
        if missing and all(near.values()):
            return " ".join(shlex.quote(f"{mark}={name}") for mark, name in near.items())
    return ""


def _alike(mark: str, names: list[str]) -> str:
    near = get_close_matches(mark, names, n=1, cutoff=0.75)
    return next((name for name in (*near, *names) if name in near or name in CALLED.get(mark, ())), "")
