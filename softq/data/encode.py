"""Text to token ids: which ids the policy chose, where a completion ends, and what became of every token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from softq.data.coding import Coded, Coder, Piece, asked, length
from softq.data.example import Example
from softq.data.rows import DataError, Dropped, Unusable, dropped
from softq.data.templates import Script, Template
from softq.data.vocabulary import Ids, Vocabulary


class Completion(NamedTuple):
    """A prompt and one completion of it, up to the completion's end."""

    ids: np.ndarray  # int [n]
    action: np.ndarray  # bool [n-1]; action[t] speaks of ids[t+1]: True where the policy chose it, also its end token
    ended: bool  # False: cut at a length limit


class Encoded(NamedTuple):
    """One data record in tokens. Its completions begin with the same prompt ids."""

    where: str
    completions: tuple[Completion, ...]  # (chosen, rejected), or K, or one; a bare prompt is one without an action
    columns: Mapping[str, tuple[float, ...]] = {}  # one number, or one per completion
    source: int | None = None  # which source of data it is from, where there are several


class Account(NamedTuple):
    """What became of the tokens of one data record: all completions, the prompt counted in each."""

    read: int = 0  # = scored + context + cut + template_tail
    scored: int = 0
    context: int = 0
    cut: int = 0
    template_tail: int = 0
    shared: int = 0  # how many of these repeat the prompt of the first completion
    merged: bool = False  # a token would have straddled a boundary
    template_end: int | None = None  # the template's own end token, where the end ids lack it
    completions: int = 0
    bos: bool = False  # the tokenizer puts one in front of a text
    one_bos: int = 0  # completions that begin with exactly one
    finished: int = 0  # completions that end with their only end token
    spelled: bool = False  # the data's own text spells a special token
    longest: int = 0  # ids of the longest completion with its prompt
    compared: bool = False  # with the tokenizer's own ids of the whole text, and equal


@dataclass(frozen=True)
class Encoder:
    """Examples to tokens: a tokenizer, its end tokens, a length limit and a chat template."""

    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]  # the generation config's; the tokenizer's EOS is always one of them
    max_length: int  # of prompt and completion, in tokens
    chat_template: str | None = None  # Jinja; None: the tokenizer's own
    keep: bool = False  # cut what is too long, rather than drop it

    def encode(self, example: Example) -> tuple[Encoded | Dropped, Account]:
        """The record in tokens, or why it is dropped; and the account of its tokens."""
        return self.encode_all([example])[0]

    def encode_all(self, examples: Sequence[Example]) -> list[tuple[Encoded | Dropped, Account]]:
        """Each example by itself; together only because a tokenizer is faster on many texts at once."""
        scripts = [self._tried(example) for example in examples]
        known = [those for those in scripts if isinstance(those, list)]
        self.vocabulary.learn(dict.fromkeys(text for those in known for script in those for text in asked(script)))
        return [self._encoded(example, those) for example, those in zip(examples, scripts, strict=True)]

    def explain(self, example: Example) -> list[Coded]:
        """Each completion in pieces: which ids have which fate, and who put them there. Raises Unusable."""
        return self._coded(example, self._scripts(example))

    def check_whole(self, example: Example) -> None:
        """Compare the ids with those of the whole text by the tokenizer's own methods; DataError where they differ.

        Completions that a boundary was cut in, and our own BOS and EOS, may differ and do not count.
        """
        for n, coded in enumerate(self.explain(example)):
            ours = tuple(i for piece in coded.pieces if piece.by not in ("tokenizer", "softq") for i in piece.ids)
            theirs = self._whole(example, n)
            if ours != theirs and not coded.merged:
                at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(ours))
                raise DataError(
                    f"{example.where}: completion {n} differs from the tokenizer's own ids of the whole text at token {at}; "
                    "this tokenizer gives a text other ids in parts; please report it"
                )

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer as the encoder needs it."""
        return Vocabulary(self.tokenizer)

    def _tried(self, example: Example) -> list[Script] | Unusable:
        try:
            scripts = self._scripts(example)
            if not self.keep:
                self.vocabulary.check_size("prompt_too_long", len(scripts[0].prompt), self.max_length)
                self.vocabulary.check_size("too_long", max(map(length, scripts)), self.max_length)
            return scripts
        except Unusable as error:
            return error

    def _encoded(self, example: Example, scripts: list[Script] | Unusable) -> tuple[Encoded | Dropped, Account]:
        try:
            if isinstance(scripts, Unusable):
                raise scripts
            coded = self._coded(example, scripts)
        except Unusable as error:
            return dropped(example.where, error, _row(example)), Account()
        account = self._account(example, coded)
        fault = self._fault(coded)
        if fault is not None:
            return dropped(example.where, fault, _row(example)), account
        completions = [Completion(np.array(c.ids, np.int64), np.array(c.chosen[1:], np.bool_), c.ended) for c in coded]
        return Encoded(example.where, tuple(completions), example.columns), account

    def _coded(self, example: Example, scripts: Sequence[Script]) -> list[Coded]:
        text, prompt = isinstance(example.prompt, str), self.vocabulary.ids(scripts[0].prompt)
        start = prompt or self.vocabulary.ids("".join(scripts[0].said))  # a text alone may bring its BOS itself
        bos = self.vocabulary.missing_bos(start) if text else ()
        pieces = Piece(bos, "context", "tokenizer"), Piece(prompt, "context", "text" if text else "template")
        head = tuple(piece for piece in pieces if piece.ids)
        alone = len(example.completions) == 1 and "label" not in example.columns
        if not head and not alone:
            raise Unusable("empty_prompt", FAULTS["empty_prompt"], "prompt")
        if not example.completions:
            return [Coded(head, len(bos + prompt))]
        coded = [self._coder.code(script, head, example.where) for script in scripts]
        return [c.cut(self.max_length) for c in coded] if self.keep else coded

    def _scripts(self, example: Example) -> list[Script]:
        if isinstance(example.prompt, str):
            return [Script(example.prompt, (text,), ("", "")) for text in _strings(example) or [""]]
        return self._template(example).scripts(example.prompt, _answers(example))

    def _template(self, example: Example) -> Template:
        return Template(self.tokenizer, self.chat_template, example.template_kwargs, example.where)

    def _whole(self, example: Example, n: int) -> Ids:
        if isinstance(example.prompt, str):
            return self.vocabulary.plain(example.prompt + ([*_strings(example), ""][n]))
        answers = _answers(example)
        said = answers[n] if answers else []
        return self._template(example).tokens([*example.prompt, *said], generation=not answers)

    def _fault(self, coded: Sequence[Coded]) -> Unusable | None:
        """Why a record can not be used; None where it can."""
        fault = next((c.fault for c in coded if c.fault is not None), None)
        if fault is not None:
            return Unusable(fault, FAULTS[fault])
        if len(coded) > 1 and len({(c.ids, c.chosen) for c in coded}) == 1:
            if len({c.uncut for c in coded}) == 1:
                return Unusable("equal_completions", "the completions are the same tokens")
            return Unusable("equal_after_cut", "the completions differ only behind the cut; raise max_length")
        longest = max(len(c.ids) for c in coded)
        if longest <= self.max_length:
            return None
        if any(True not in c.chosen[: self.max_length] for c in coded):
            came = f"nothing of a completion begins within max_length, {self.max_length:,} tokens"
            return Unusable("prompt_too_long", f"{came}; raise it")
        came = f"{longest:,} tokens, and max_length is {self.max_length:,}"
        return Unusable("too_long", f"{came}; raise it, or cut with truncate keep")

    def _account(self, example: Example, coded: Sequence[Coded]) -> Account:
        ends = self._coder.ends | {c.template_end for c in coded if c.template_end is not None}
        bos = self.vocabulary.bos
        return Account(
            read=sum(len(piece.ids) for c in coded for piece in c.pieces),
            scored=sum(c.count("scored") for c in coded),
            context=sum(c.count("context") for c in coded),
            cut=sum(c.count("cut") for c in coded),
            template_tail=sum(c.count("template_tail") for c in coded),
            shared=coded[0].prompt * (len(coded) - 1),
            merged=any(c.merged for c in coded),
            template_end=next((c.template_end for c in coded if c.template_end is not None), None),
            completions=len(coded),
            bos=bool(bos),
            one_bos=sum(c.ids[: len(bos)] == bos != c.ids[len(bos) : 2 * len(bos)] for c in coded) if bos else 0,
            finished=sum(_finished(c, ends) for c in coded),
            spelled=self.vocabulary.spelled(texts(example)),
            longest=max(len(c.ids) for c in coded),
        )

    @cached_property
    def _coder(self) -> Coder:
        eos = self.vocabulary.eos
        return Coder(self.vocabulary, self.end_ids if eos is None else self.end_ids | {eos})


FAULTS = {
    "empty_prompt": "the prompt has no tokens; nothing could be chosen after it",
    "empty_completion": "a completion says nothing",
    "end_inside_completion": "a completion goes on behind an end token",
}
"""What is wrong with a completion in tokens."""


def texts(example: Example) -> list[str]:
    """Every text that the data itself brings."""
    parts = [example.prompt, *example.completions]
    return [
        text for part in parts for text in ([part] if isinstance(part, str) else [m["content"] or "" for m in part])
    ]


def _strings(example: Example) -> list[str]:
    """The completions of a plain prompt; the steps of one answer stand below each other."""
    said = [text for text in example.completions if isinstance(text, str)]
    return ["\n".join(said)] if "step_label" in example.columns else said


def _answers(example: Example) -> list[Sequence[Mapping[str, object]]]:
    said = [text for text in example.completions if not isinstance(text, str)]
    return [[message for text in said for message in text]] if "step_label" in example.columns else said


def _finished(coded: Coded, ends: frozenset[int]) -> bool:
    """Whether each stretch of the policy's words holds one end token, its last."""
    stretches: list[Ids] = []
    before = ""
    for piece in coded.pieces:
        if piece.part == "scored":
            stretches = [*stretches[:-1], stretches[-1] + piece.ids] if before == "scored" else [*stretches, piece.ids]
        before = piece.part
    return bool(stretches) and all(sum(i in ends for i in ids) == 1 and ids[-1] in ends for ids in stretches)


def _row(example: Example) -> dict[str, object]:
    return {"prompt": example.prompt, "completions": list(example.completions)}
