"""The law that what is trained is what the data says: action tokens, decoded, against the text of the rows themselves."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from softq.data.example import Example, Message
from softq.data.formats import Reading, renames
from softq.data.stream import stream
from softq.data.vocabulary import Vocabulary
from softq.records import Labels, Pairs
from softq.verify.law import Finding
from softq.verify.model import OnModel

SHOWN = 40  # characters of a text in a note
PLAIN = {"role", "content", "name"}
BROKEN = "\ufffd"  # what a character that was cut in two decodes to
SILENT = "this tokenizer does not give back the text that it reads, so tokens can not be compared with it"


class _Said(NamedTuple):
    """One stretch of consecutive actions, as text."""

    words: str  # without its end token
    begins: str  # its first token alone
    start: int  # the number of that token in its row
    closed: bool  # it ends with an end token
    inside: bool  # an end token stands before its last


def boundary(on: OnModel) -> Finding | str:
    """How many rows train something else than a completion of their record with its end token."""
    examples, vocabulary = _examples(on), Vocabulary(on.loaded.tokenizer)
    faults, silent, rows = [], 0, 0
    for row, record, sides in _rows(on):
        rows += 1
        found = [_fault(on, vocabulary, row, examples[record], side) for side in sides]
        if "" in found:  # it is one of them
            continue
        silent += SILENT in found
        faults += [f"{examples[record].where}: {found[0]}"] if SILENT not in found else []
    if silent == rows:
        return SILENT
    note = f"{rows - silent} of {rows} rows read back" + f"; of the others, {SILENT}" * bool(silent)
    return Finding(len(faults), 0, faults[0] if faults else note)


def _examples(on: OnModel) -> Sequence[Example]:
    """The first records as the data spells them: the encoded ones keep no text."""
    places = [(record.source or 0, record.where) for record in on.records]
    reading = Reading(on.settings.format, renames(on.settings.rename))
    found: dict[tuple[int, str], Example] = {}
    for item in stream(on.data.train.sources, reading).items:
        if isinstance(item.example, Example) and (item.source, item.example.where) in places:
            found[item.source, item.example.where] = item.example
        if len(found) == len(places):
            break
    if lost := next((where for source, where in places if (source, where) not in found), None):
        raise ValueError(f"{lost} is not in the data any more: it changed while this was running")
    return [found[place] for place in places]


def _rows(on: OnModel) -> Iterator[tuple[int, int, Sequence[int]]]:
    """(row, its record, which of the record's completions it may be), without rows under another record's prompt."""
    feedback = on.batch.feedback
    others = set(feedback.mismatched.tolist()) if isinstance(feedback, Labels) else set()
    side: Mapping[int, int] = {}
    if isinstance(feedback, Pairs):
        side = dict.fromkeys(feedback.chosen.tolist(), 0) | dict.fromkeys(feedback.rejected.tolist(), 1)
    for row, record in enumerate(on.batch.tokens.prompt.tolist()):
        if row not in others:
            yield row, record, [side[row]] if row in side else range(len(on.records[record].completions))


def _fault(on: OnModel, vocabulary: Vocabulary, row: int, example: Example, side: int) -> str:
    """Why a row is not this completion of its record; nothing where it is."""
    tokens = on.batch.tokens
    said, ended = _said(vocabulary, tokens.ids[row].tolist(), tokens.action[row], on.ends), bool(tokens.ended[row])
    if said is None:
        return SILENT
    if not said:
        return "none of its tokens is trained"
    if any(stretch.inside for stretch in said):
        return f"what is trained, {_short(said)}, goes on behind an end token"
    if ended and not said[-1].closed:
        return f"what is trained, {_short(said)}, lacks the end token"
    completion = example.completions[side]
    if isinstance(example.prompt, str) and isinstance(completion, str):
        ends = [text for i in on.ends if (text := vocabulary.text([i]))]
        wanted = _in_context(vocabulary, example.prompt, completion, ends)
        if wanted is None:
            return SILENT
        right = _is_text(said, wanted, ended, begins=not example.prompt)
    else:
        answers = [message for message in completion if not isinstance(message, str) and message["role"] == "assistant"]
        wanted = "".join(message.get("content") or "" for message in answers)
        right = _are_answers(vocabulary, said, answers, ended)
    return "" if right else f"what is trained is {_short(said)}, the completion is {wanted[:SHOWN]!r}"


def _said(vocabulary: Vocabulary, ids: list[int], action: Tensor, ends: frozenset[int]) -> list[_Said] | None:
    """Each stretch of actions, in the context of all before it; None where more ids do not decode to more text."""
    edges = torch.nn.functional.pad(action.int(), (1, 1)).diff()
    found = []
    for first, last in zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist(), strict=True):
        start, closed = first + 1, ids[last] in ends  # action t is ids[t + 1]
        stop = last if closed else last + 1
        before, whole = vocabulary.text(ids[:start]), vocabulary.text(ids[:stop])
        if not whole.startswith(before):
            return None
        inside = any(i in ends for i in ids[start:stop])
        found.append(_Said(whole[len(before) :], vocabulary.text(ids[start : start + 1]), start, closed, inside))
    return found


def _in_context(vocabulary: Vocabulary, prompt: str, completion: str, ends: Sequence[str]) -> str | None:
    """What the tokenizer makes of a completion behind its prompt, up to an end token that it spells; None: not to be told."""
    before, whole = (vocabulary.text(vocabulary.plain(text)) for text in (prompt, prompt + completion))
    if not whole.startswith(before):
        return None
    text = whole[len(before) :]
    return text[: min((text.index(end) for end in ends if end in text), default=len(text))]


def _is_text(said: Sequence[_Said], wanted: str, ended: bool, *, begins: bool) -> bool:
    """Whether one stretch says a text, or the beginning of it where it was cut. begins: there is no prompt, and so the
    first token, which has nothing before it, is nobody's choice."""
    (words, _, start, _, _), *more = said
    if more:
        return False
    if not ended:
        return wanted.startswith(words.rstrip(BROKEN))
    if begins:  # a tokenizer may put a space in front of a text, which it shows behind BOS
        return words in (wanted, f" {wanted}") or (start == 1 and wanted.endswith(words))
    return words == wanted


def _are_answers(vocabulary: Vocabulary, said: Sequence[_Said], answers: Sequence[Message], ended: bool) -> bool:
    """Whether stretches say the assistant's messages: white space apart, which templates trim, but no token of it in front.

    A message that brings more than a content, such as thoughts or calls of tools, is shown with it.
    """
    if len(said) > len(answers) or (ended and len(said) < len(answers)):
        return False
    for n, (stretch, message) in enumerate(zip(said, answers, strict=False)):
        content = message.get("content") or ""
        words, cut = _squeezed(stretch.words), n == len(said) - 1 and not ended
        spellings = {content, *(vocabulary.text(vocabulary.plain(text)) for text in (content, content.strip()))}
        wanted = {_squeezed(text) for text in spellings}
        if set(message) - PLAIN or not content.strip():
            right = cut or any(text in words for text in wanted)
        else:
            right = words in wanted or (cut and any(text.startswith(words.rstrip(BROKEN)) for text in wanted))
        if not right or (not stretch.begins.strip() and content[:1].strip()):
            return False
    return True


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _short(said: Sequence[_Said]) -> str:
    words = " … ".join(stretch.words for stretch in said)
    return repr(words if len(words) <= SHOWN else f"{words[: SHOWN // 2]}…{words[-SHOWN // 2 :]}")
