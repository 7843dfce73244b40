"""Rows to examples: one parser per shape of row. Each takes the row as a `Field` and raises `Unusable` by name."""

import re
from itertools import takewhile

from softq.data.example import Example, Message, Text, agreement
from softq.data.fields import Field
from softq.data.rows import Unusable

USER, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
SCORES = ("score_chosen", "score_rejected")

_EDGE = re.compile(r"(?<=\S)(?=\s)|(?<=[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])(?![\u3099\u309a\ufe00-\ufe0f])")
"""Where a text may be cut: before white space, and behind a character (with its marks) of a script without it."""


def preference(row: Field) -> Example:
    """prompt, chosen, rejected."""
    said, chosen = row.member("prompt").value, row.member("chosen").value
    if isinstance(said, str) and isinstance(chosen, list):
        return _repeated_prompt(row)
    prompt = row.member("prompt").prompt()
    return _pair(prompt, *(row.member(name).completion(prompt) for name in ("chosen", "rejected")))


def implicit(row: Field) -> Example:
    """chosen, rejected: the prompt is what both begin with, up to a message, or to the end of a word in plain text.

    A completion keeps at least one message, or one word.
    """
    if isinstance(row.member("chosen").value, str):
        return _implicit_text(*(row.member(name).string() for name in ("chosen", "rejected")))
    chosen, rejected = (row.member(name).messages() for name in ("chosen", "rejected"))
    most = min(len(chosen), len(rejected)) - 1
    shared = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    if shared == 0:
        raise Unusable(
            "no_shared_prompt", "chosen and rejected begin with different messages; expected a shared prompt"
        )
    return _pair(chosen[:shared], chosen[shared:], rejected[shared:])


def hh(row: Field) -> Example:
    """The prompt is everything up to and including the last assistant mark before which both dialogues agree."""
    chosen, rejected = (row.member(name).string() for name in ("chosen", "rejected"))
    mark = chosen.rfind(ASSISTANT, 0, agreement(chosen, rejected))
    if mark < 0:
        raise Unusable("no_shared_prompt", "chosen and rejected share no text up to an assistant's turn")
    prompt = chosen[: mark + len(ASSISTANT)]
    completions = chosen[len(prompt) :], rejected[len(prompt) :]
    if any(USER in completion for completion in completions):
        raise Unusable("later_user_turn", "a completion goes on with a turn of the human; its end can not be told")
    return _pair(prompt, *completions)


def sharegpt(row: Field) -> Example:
    """conversations, chosen, rejected, with the system's words in a field of their own."""
    prompt = _system(row) + [turn.said() for turn in row.member("conversations").items("a list of messages")]
    answers = [row.member(name) for name in ("chosen", "rejected")]
    completions = [_answer(answer) for answer in answers]
    return _pair(prompt, *completions)


def sharegpt_label(row: Field) -> Example:
    """conversations (or messages) that end with an answer, and whether it is good: kto_tag or label."""
    prompt, answer = _last_answer(_turns(row))
    return _labelled(prompt, answer, row.member("kto_tag" if "kto_tag" in row.object() else "label"))


def conversation(row: Field) -> Example:
    """messages, conversations or a text to imitate: what the assistant says, from its first words on."""
    if "text" in row.object():
        return Example("", "", (row.member("text").string(),))
    turns = _turns(row)
    prompt = list(takewhile(lambda turn: turn["role"] != "assistant", turns))
    if len(prompt) == len(turns):
        raise Unusable("empty_completion", "no message is the assistant's; expected one or more")
    return Example("", prompt, (turns[len(prompt) :],))


def alpaca(row: Field) -> Example:
    """instruction, input, chosen, rejected: a conversation in which each has its role."""
    return _pair(_asked(row), *([_said(row.member(name))] for name in ("chosen", "rejected")))


def alpaca_label(row: Field) -> Example:
    """instruction, input, output, and kto_tag: whether the output is good."""
    return _labelled(_asked(row), [_said(row.member("output"))], row.member("kto_tag"))


def alpaca_answer(row: Field) -> Example:
    """instruction, input, output."""
    return Example("", _asked(row), ([_said(row.member("output"))],))


def ultrafeedback(row: Field) -> Example:
    """instruction, completions: objects with a response and its overall_score (or fine-grained_score, score)."""
    answers = row.member("completions").items("a list of objects with response and overall_score")
    named = [
        name for name in ("overall_score", "fine-grained_score", "score") if answers and name in answers[0].object()
    ]
    scores = [answer.member((named or ["overall_score"])[0]).number() for answer in answers]
    prompt = [{"role": "user", "content": row.member("instruction").string()}]
    return _group(prompt, [[_said(answer.member("response"))] for answer in answers], scores)


def groups(row: Field) -> Example:
    """prompt, completions, scores."""
    prompt = row.member("prompt").prompt()
    completions = [item.completion(prompt) for item in row.member("completions").items("a list of completions")]
    return _group(prompt, completions, [item.number() for item in row.member("scores").items("a list of numbers")])


def unpaired(row: Field) -> Example:
    """prompt, completion, label."""
    prompt = row.member("prompt").prompt()
    return _labelled(prompt, row.member("completion").completion(prompt), row.member("label"))


def demonstration(row: Field) -> Example:
    """prompt, completion."""
    prompt = row.member("prompt").prompt()
    return Example("", _prompted(prompt), (row.member("completion").completion(prompt),))


def prompt_only(row: Field) -> Example:
    """prompt."""
    return Example("", _prompted(row.member("prompt").prompt()), ())


def stepwise(row: Field) -> Example:
    """prompt, completions (the steps of one answer), labels (whether each is right)."""
    prompt = row.member("prompt").prompt()
    steps = [item.completion(prompt) for item in row.member("completions").items("a list of steps")]
    labels = [float(item.truth()) for item in row.member("labels").items("a list of true and false")]
    if not steps or len(labels) != len(steps):
        came = f"{len(steps)} steps and {len(labels)} labels"
        raise Unusable("bad_type", f"{came}; expected one step or more and one label for each", "labels")
    return Example("", _prompted(prompt), tuple(steps), {"step_label": tuple(labels)})


def _implicit_text(chosen: str, rejected: str) -> Example:
    """Plain texts are cut at the end of the last shared word."""
    agree = agreement(chosen, rejected)
    edges = [m.start() for m in _EDGE.finditer(chosen, 0, agree + 1) if 0 < m.start() <= agree]
    for at in reversed(edges):
        whole = at < agree or bool(_EDGE.match(rejected, at))  # a word of the rejected one must not be cut either
        if whole and chosen[at:].strip() and rejected[at:].strip():
            return _pair(chosen[:at], chosen[at:], rejected[at:])
    if not chosen.strip() or not rejected.strip():
        empty = "chosen" if not chosen.strip() else "rejected"
        raise Unusable("empty_completion", f"field '{empty}' is blank", empty)
    raise Unusable("no_shared_prompt", "chosen and rejected share no first word; give the prompt in a field of its own")


def _repeated_prompt(row: Field) -> Example:
    """`prompt` is a string beside whole dialogues that begin with it, as UltraFeedback's pairs ship them."""
    parsed = implicit(row)
    if row.value["prompt"] not in [message["content"] for message in parsed.prompt if not isinstance(message, str)]:
        raise row.member("chosen").wrong("a string, as the prompt is, or a dialogue that begins with it")
    return parsed


def _pair(prompt: Text, chosen: Text, rejected: Text) -> Example:
    return Example("", _prompted(prompt), (chosen, rejected))


def _labelled(prompt: Text, completion: Text, label: Field) -> Example:
    return Example("", _prompted(prompt), (completion,), {"label": (float(label.truth()),)})


def _group(prompt: Text, completions: list[Text], scores: list[float]) -> Example:
    if len(completions) < 2 or len(scores) != len(completions):
        came = f"{len(completions)} completions and {len(scores)} scores"
        raise Unusable("bad_type", f"{came}; expected two completions or more and one score for each", "completions")
    return Example("", _prompted(prompt), tuple(completions), {"reward": tuple(scores)})


def _prompted(prompt: Text) -> Text:
    if prompt == []:
        raise Unusable("empty_prompt", "the prompt holds no message", "prompt")
    return prompt


def _turns(row: Field) -> list[Message]:
    name = "messages" if "messages" in row.object() else "conversations"
    return _system(row) + [turn.message() for turn in row.member(name).items("a list of messages")]


def _last_answer(turns: list[Message]) -> tuple[list[Message], list[Message]]:
    if not turns or turns[-1]["role"] != "assistant":
        raise Unusable("empty_completion", "the last message is not the assistant's")
    return turns[:-1], turns[-1:]


def _answer(answer: Field) -> list[Message]:
    said = [_said(answer)] if isinstance(answer.value, str) else [answer.said()]
    if said[0]["role"] != "assistant":
        message = f"field '{answer.name}' is said by {said[0]['role']!r}; expected 'gpt' or 'assistant'"
        raise Unusable("unknown_role", message, answer.name)
    return said


def _asked(row: Field) -> list[Message]:
    """Alpaca's question as messages: system, history, then instruction and input."""
    fields = row.object()
    asked = row.member("instruction").string()
    more = row.member("input").string() if fields.get("input") is not None else ""
    history = [turn.items("a question and its answer") for turn in _listed(row, "history")]
    told: list[Message] = []
    for turn in history:
        if len(turn) != 2:
            raise Unusable("bad_type", "field 'history' holds a turn that is no question with its answer", "history")
        told += [{"role": "user", "content": turn[0].string()}, _said(turn[1])]
    question = "\n".join(part for part in (asked, more) if part)
    return [*_system(row), *told, {"role": "user", "content": question}]


def _listed(row: Field, name: str) -> list[Field]:
    return row.member(name).items() if row.object().get(name) is not None else []


def _system(row: Field) -> list[Message]:
    said = row.object().get("system")
    return [{"role": "system", "content": row.member("system").string()}] if said else []


def _said(answer: Field) -> Message:
    return {"role": "assistant", "content": answer.string()}
