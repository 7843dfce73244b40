"""Rows to text: each known format of preference data, as a test of its shape and a parser into an `Example`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from softq.data.fields import Field, Text, form
from softq.data.rows import DataError, Row
from softq.records import COLUMNS

USER, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
OPTIONS = ("chat_template_kwargs", "tools")


class Example(NamedTuple):
    """One data record as text: a prompt and its completions, all strings or all lists of messages."""

    where: str
    prompt: Text
    completions: tuple[Text, ...]  # pairs: (chosen, rejected); groups: K of them
    scores: tuple[float, ...] | None = None  # groups only
    template_kwargs: Mapping[str, Any] = {}  # the row's chat_template_kwargs, and its tools under "tools"
    columns: Mapping[str, float] = {}  # the record's numbers that the method reads
    other: tuple[str, ...] = ()  # names of further fields, which nobody reads


class Dropped(NamedTuple):
    """A row that is not used, and why, in one word."""

    where: str
    reason: str


class Format(NamedTuple):
    """A named shape of rows."""

    kind: str  # "pairs" or "groups"
    fields: tuple[str, ...]
    shape: str  # what the fields hold, for messages
    matches: Callable[[Mapping[str, Any]], bool]
    parse: Callable[[Mapping[str, Any], str], Example | Dropped]


def detect(row: Mapping[str, Any], where: str) -> str:
    """The name of the format that a row is in."""
    found = next((name for name, format in FORMATS.items() if format.matches(row)), None)
    if found is None:
        known = "; ".join(f"{name}: {format.shape}" for name, format in FORMATS.items())
        came = ", ".join(row) or "none"
        raise DataError(f"{where}: unknown format; the fields are {came}; rename them to fit one of: {known}")
    return found


def parse_rows(
    rows: Iterable[Row], format: str, *, reads: Sequence[str] = (), method: str = "this method"
) -> Iterator[Example | Dropped]:
    """Rows of one format as text, each in the shape of the first; `reads` are the columns that the method reads."""
    if format not in FORMATS:
        raise DataError(f"format '{format}' is unknown; expected one of {', '.join(FORMATS)}")
    first: Example | None = None
    for where, row in rows:
        _check_format(row, where, format)
        parsed = FORMATS[format].parse(row, where)
        if isinstance(parsed, Example):
            extra = [name for name in row if name not in FORMATS[format].fields]
            parsed = _with_extra(parsed, Field(where, "", row), extra, reads, method)
            first = first or parsed
            _check_alike(parsed, first)
        yield parsed


def _preference(row: Mapping[str, Any], where: str) -> Example | Dropped:
    fields = Field(where, "", row)
    if isinstance(row.get("prompt"), str) and isinstance(row.get("chosen"), list):
        return _repeated_prompt(row, where)
    prompt = fields.member("prompt").prompt()
    chosen, rejected = (fields.member(name).completion(prompt) for name in ("chosen", "rejected"))
    return Dropped(where, "empty_prompt") if prompt == [] else Example(where, prompt, (chosen, rejected))


def _repeated_prompt(row: Mapping[str, Any], where: str) -> Example | Dropped:
    """`prompt` is a string beside whole dialogues that begin with it, as UltraFeedback ships them."""
    parsed = _implicit(row, where)
    shared = [] if isinstance(parsed, Dropped) else row["chosen"][: len(parsed.prompt)]
    if row["prompt"] not in [message.get("content") for message in shared]:
        expected = "a string, as the prompt is, or a dialogue that begins with it"
        raise Field(where, "chosen", row["chosen"]).wrong(expected)
    return parsed


def _implicit(row: Mapping[str, Any], where: str) -> Example | Dropped:
    """The prompt is the messages with which both dialogues begin; a completion keeps at least one message."""
    fields = Field(where, "", row)
    chosen, rejected = (fields.member(name).messages() for name in ("chosen", "rejected"))
    most = min(len(chosen), len(rejected)) - 1
    shared = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    if shared == 0:
        return Dropped(where, "no_shared_prompt")
    return Example(where, chosen[:shared], (chosen[shared:], rejected[shared:]))


def _hh(row: Mapping[str, Any], where: str) -> Example | Dropped:
    """The prompt is everything up to and including the last assistant mark before which both dialogues agree."""
    fields = Field(where, "", row)
    chosen, rejected = (fields.member(name).string() for name in ("chosen", "rejected"))
    turns = chosen.split(ASSISTANT)
    heads = [ASSISTANT.join(turns[:n]) + ASSISTANT for n in range(1, len(turns))]
    prompt = next((head for head in reversed(heads) if rejected.startswith(head)), None)
    if prompt is None:
        return Dropped(where, "no_shared_prompt")
    completions = chosen[len(prompt) :], rejected[len(prompt) :]
    if any(USER in completion for completion in completions):
        return Dropped(where, "later_user_turn")
    return Example(where, prompt, completions)


def _sharegpt(row: Mapping[str, Any], where: str) -> Example | Dropped:
    fields = Field(where, "", row)
    prompt = [turn.said() for turn in fields.member("conversations").items("a list of messages")]
    answers = [fields.member(name) for name in ("chosen", "rejected")]
    for answer in answers:
        if answer.said()["role"] != "assistant":
            came = f"field '{answer.name}.from' is {answer.value['from']!r}"
            raise DataError(f"{where}: {came}; expected 'gpt' or 'assistant'")
    completions = tuple([answer.said()] for answer in answers)
    return Example(where, prompt, completions) if prompt else Dropped(where, "empty_prompt")


def _groups(row: Mapping[str, Any], where: str) -> Example | Dropped:
    fields = Field(where, "", row)
    prompt = fields.member("prompt").prompt()
    completions = tuple(item.completion(prompt) for item in fields.member("completions").items("a list of completions"))
    scores = tuple(item.number() for item in fields.member("scores").items("a list of numbers"))
    if len(completions) < 2 or len(scores) != len(completions):
        came = f"{len(completions)} completions and {len(scores)} scores"
        raise DataError(f"{where}: {came}; expected two completions or more and one score for each")
    return Dropped(where, "empty_prompt") if prompt == [] else Example(where, prompt, completions, scores)


def _dialogues(row: Mapping[str, Any], of: type) -> bool:
    bare = "prompt" not in row and "conversations" not in row
    return bare and all(isinstance(row.get(name), of) for name in ("chosen", "rejected"))


FORMATS: dict[str, Format] = {
    "preference": Format(
        "pairs",
        ("prompt", "chosen", "rejected"),
        "prompt, chosen and rejected, as strings or as messages",
        lambda row: {"prompt", "chosen", "rejected"} <= row.keys(),
        _preference,
    ),
    "implicit": Format(
        "pairs",
        ("chosen", "rejected"),
        "chosen and rejected, lists of messages that begin alike",
        lambda row: _dialogues(row, list),
        _implicit,
    ),
    "hh": Format(
        "pairs",
        ("chosen", "rejected"),
        r"chosen and rejected, texts with '\n\nHuman:' and '\n\nAssistant:' turns",
        lambda row: _dialogues(row, str) and ASSISTANT in row["chosen"] and ASSISTANT in row["rejected"],
        _hh,
    ),
    "sharegpt": Format(
        "pairs",
        ("conversations", "chosen", "rejected"),
        "conversations, chosen and rejected, messages with 'from' and 'value'",
        lambda row: {"conversations", "chosen", "rejected"} <= row.keys(),
        _sharegpt,
    ),
    "groups": Format(
        "groups",
        ("prompt", "completions", "scores"),
        "prompt, a list of completions and a list of scores",
        lambda row: {"prompt", "completions", "scores"} <= row.keys(),
        _groups,
    ),
}
"""Tried in this order: the first that matches the first row is the format of the data."""


def _check_format(row: Mapping[str, Any], where: str, format: str) -> None:
    """A row that is plainly in another format is refused by name; the rest is left to the parser and its messages."""
    if FORMATS[format].matches(row):
        return
    found = next((name for name, other in FORMATS.items() if other.matches(row)), None)
    if found is not None:
        expected = f"'{format}' ({FORMATS[format].shape}) as in the rows before"
        raise DataError(f"{where}: the row is in format '{found}'; expected {expected}; split the data")


def _check_alike(example: Example, first: Example) -> None:
    here, there = form(example.prompt), form(first.prompt)
    if here != there:
        raise DataError(f"{example.where}: the prompt is {here}; expected {there} as in {first.where}; split the data")
    for name in sorted(set(example.columns) ^ set(first.columns)):
        missing, has = (example, first) if name in first.columns else (first, example)
        came = f"field '{name}' is missing, but {has.where} has it"
        raise DataError(f"{missing.where}: {came}; give it in every row or in none")


def _with_extra(example: Example, fields: Field, extra: Sequence[str], reads: Sequence[str], method: str) -> Example:
    """The example with the fields beside its texts: template options, columns that are read, names of the others."""
    chat = not isinstance(example.prompt, str)
    extra = [name for name in extra if not (chat and name in OPTIONS)]
    for name in extra:
        if name in COLUMNS and name not in reads:
            advice = "remove it or rename it"
            raise DataError(f"{fields.where}: column '{name}' is known but {method} does not read it; {advice}")
    columns = {name: _column(fields.member(name)) for name in extra if name in reads}
    other = tuple(name for name in extra if name not in reads)
    return example._replace(template_kwargs=_options(fields) if chat else {}, columns=columns, other=other)


def _column(field: Field) -> float:
    number = field.number()
    if field.name == "weight" and number < 0:
        raise DataError(f"{field.where}: field 'weight' is {number:g}; expected a number ≥ 0")
    return number


def _options(fields: Field) -> Mapping[str, Any]:
    """What the row hands to the chat template; a null is as good as nothing."""
    given = {name: fields.member(name) for name in OPTIONS if fields.value.get(name) is not None}
    options = given["chat_template_kwargs"].object() if "chat_template_kwargs" in given else {}
    tools = [tool.value for tool in given["tools"].items("a list of tools")] if "tools" in given else []
    return {**options, "tools": tools} if tools else options
