"""One completion in tokens: pieces of ids, each with its fate and with who put it there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from softq.data.rows import DataError
from softq.data.templates import Script
from softq.data.vocabulary import Ids, Vocabulary

KEPT = ("context", "scored")


class Piece(NamedTuple):
    """A stretch of ids that share a fate."""

    ids: Ids
    part: str  # "context", "scored", "cut" or "template_tail"
    by: str  # who put them there: "text", "template", "tokenizer" (its BOS) or "softq" (EOS where nothing ends a text)


@dataclass(frozen=True)
class Coded:
    """One completion in tokens, before it is known whether the record can be used."""

    pieces: tuple[Piece, ...]
    prompt: int = 0  # so many of the first ids are the prompt's
    merged: bool = False  # a token would have straddled a boundary
    template_end: int | None = None  # the template's own end token, where the end ids lack it
    fault: str | None = None
    ended: bool = True

    @cached_property
    def ids(self) -> Ids:
        """Prompt and completion, up to its end."""
        return sum((piece.ids for piece in self.pieces if piece.part in KEPT), ())

    @cached_property
    def chosen(self) -> tuple[bool, ...]:
        """Per id: whether the policy chose it."""
        kept = (piece for piece in self.pieces if piece.part in KEPT)
        return sum(((piece.part == "scored",) * len(piece.ids) for piece in kept), ())

    @property
    def uncut(self) -> Ids:
        """Prompt and completion, with what was cut from it."""
        return sum((piece.ids for piece in self.pieces if piece.part != "template_tail"), ())

    def count(self, *parts: str) -> int:
        """How many ids have one of these fates."""
        return sum(len(piece.ids) for piece in self.pieces if piece.part in parts)

    def cut(self, length: int) -> "Coded":
        """The first ids, at most `length`, up to the last one that the policy chose; itself if none is among them."""
        within = self.chosen[:length]
        if len(self.ids) <= length or True not in within:
            return self
        room = len(within) - within[::-1].index(True)
        pieces: list[Piece] = []
        for piece in self.pieces:
            n = len(piece.ids) if piece.part not in KEPT else min(room, len(piece.ids))
            room -= n if piece.part in KEPT else 0
            pieces += [piece._replace(ids=piece.ids[:n]), Piece(piece.ids[n:], "cut", piece.by)]
        return replace(self, pieces=_whole(pieces), ended=False)


class _Turn(NamedTuple):
    """What stands before some words, and the words; the last turn is the template's tail and has no words."""

    context: Ids
    words: Ids
    merged: bool


@dataclass(frozen=True)
class Coder:
    """Scripts to pieces: a vocabulary and its end tokens."""

    vocabulary: Vocabulary
    ends: frozenset[int]

    def code(self, script: Script, head: tuple[Piece, ...], where: str) -> Coded:
        """prompt, context, words, context, words, ..., end: the ids of a script up to the end of its last words.

        `head` is the prompt. Without one, the text's first token has nothing before it, and is nobody's choice.
        """
        *spoken, (tail, _, _) = turns = self._turns(script)
        by = head[-1].by if head else "text"
        closing, template_end = self._closing(self._own(script, tail))
        ends = self.ends if template_end is None else self.ends | {template_end}
        closer = "template"
        if not closing and not until(spoken[-1].words, ends):
            closing, closer = (self._eos(where),), "softq"
            tail = closing + tail
        pieces, rest = [*head, Piece(spoken[0].context, "context", by)], ()
        for turn, following in zip(spoken, [*(turn.context for turn in spoken[1:]), tail], strict=True):
            said = until(turn.words, ends)
            close = closing if not said and following[: len(closing)] == closing else ()
            words = said or turn.words
            pieces += [Piece(rest, "context", by), Piece(words, "scored", "text"), Piece(close, "scored", closer)]
            rest = (turn.words + following)[len(words + close) :]
        kept = _whole([*pieces, Piece(rest, "template_tail", by)])
        kept = kept if head else _begun(kept)
        fault = self._fault([turn.words for turn in spoken], ends)
        fault = fault if any(piece.part == "context" for piece in kept) else "empty_prompt"
        prompt = sum(len(piece.ids) for piece in head)
        return Coded(kept, prompt, any(turn.merged for turn in turns), template_end, fault)

    def _eos(self, where: str) -> int:
        if self.vocabulary.eos is None:
            advice = "set its eos_token, or close each completion with an end token"
            raise DataError(f"{where}: nothing ends the completion and the tokenizer has no EOS token; {advice}")
        return self.vocabulary.eos

    def _turns(self, script: Script) -> list[_Turn]:
        """The ids of each stretch of a script, each in the context of the text before it."""
        turns = []
        for before, context, words in stretches(script):
            ids, merged = self.vocabulary.after(before, context + words)
            n = self.vocabulary.within(before, context, ids)
            turns.append(_Turn(ids[:n], ids[n:], merged))
        return turns

    def _own(self, script: Script, tail: Ids) -> Ids:
        """The ids of the tail before what others say in it."""
        if not script.others:
            return tail
        *_, (before, text, _) = stretches(script)
        return tail[: self.vocabulary.within(before, text.removesuffix(script.others), tail)]

    def _closing(self, tail: Ids) -> tuple[Ids, int | None]:
        """The head of the tail that ends a completion, and its end token if the end ids lack it.

        That is up to the first end id; without one, up to the last added token, which must be the template's own end.
        """
        found = until(tail, self.ends)
        added = [n for n, i in enumerate(tail) if i in self.vocabulary.added]
        if found or not added:
            return found, None
        return tail[: added[-1] + 1], tail[added[-1]]

    def _fault(self, words: Sequence[Ids], ends: frozenset[int]) -> str | None:
        """Words that say nothing, or that go on after an end token."""
        said = [until(ids, ends) for ids in words]
        rests = [[i for i in ids[len(first) :] if i not in ends] for ids, first in zip(words, said, strict=True)]
        if any(first and self.vocabulary.text(rest).strip() for first, rest in zip(said, rests, strict=True)):
            return "end_inside_completion"
        blank = not any(self.vocabulary.text([i for i in ids if i not in ends]).strip() for ids in words)
        return "empty_completion" if blank else None


def stretches(script: Script) -> list[tuple[str, str, str]]:
    """(before, context, words): the stretches of a script, each behind all text before it; the last has no words."""
    pairs = list(zip(script.between, (*script.said, ""), strict=True))
    befores = accumulate(("".join(pair) for pair in pairs[:-1]), initial=script.prompt)
    return [(before, *pair) for before, pair in zip(befores, pairs, strict=True)]


def asked(script: Script) -> list[str]:
    """Every text of which a script's ids are made."""
    cuts = [(before, before + context, before + context + words) for before, context, words in stretches(script)]
    return [text for cut in cuts for text in cut]


def length(script: Script) -> int:
    """The characters of a script, without its tail."""
    return len(script.prompt) + sum(map(len, (*script.said, *script.between[:-1])))


def until(ids: Ids, ends: frozenset[int]) -> Ids:
    """The ids up to and including the first end; none where there is no end."""
    return next((ids[: n + 1] for n, i in enumerate(ids) if i in ends), ())


def _begun(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """The first id as context."""
    first, *rest = pieces
    return _whole([Piece(first.ids[:1], "context", first.by), first._replace(ids=first.ids[1:]), *rest])


def _whole(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    return tuple(piece for piece in pieces if piece.ids)
