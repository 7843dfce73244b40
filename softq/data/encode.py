"""Text to token ids: which ids the policy chose, where a completion ends, and what became of every token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from softq.data.formats import Dropped, Example
from softq.data.rows import DataError, Unusable
from softq.data.templates import Script, Template
from softq.data.vocabulary import Ids, Vocabulary


class Completion(NamedTuple):
    """A prompt and one completion of it, up to the completion's end."""

    ids: np.ndarray  # int64 [n]
    action: np.ndarray  # bool [n-1]; action[t] speaks of ids[t+1]: True where the policy chose it, also its end token
    ended: bool  # False: cut at a length limit


class Encoded(NamedTuple):
    """One data record in tokens. Its completions begin with the same prompt ids."""

    where: str
    completions: tuple[Completion, ...]  # (chosen, rejected), or K
    scores: tuple[float, ...] | None
    columns: Mapping[str, float]


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


class _Coded(NamedTuple):
    """One completion in tokens, before it is known whether the record can be used."""

    ids: Ids = ()
    chosen: tuple[bool, ...] = ()  # per id
    read: int = 0
    tail: int = 0
    merged: bool = False
    template_end: int | None = None
    fault: str | None = None


class _Turn(NamedTuple):
    """What stands before some words, and the words; the last turn is the template's tail and has no words."""

    context: Ids
    words: Ids
    merged: bool


@dataclass(frozen=True)
class Encoder:
    """Examples to tokens: a tokenizer, its end tokens, a length limit and a chat template."""

    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]  # the generation config's; the tokenizer's EOS is always one of them
    max_length: int  # of prompt and completion, in tokens
    chat_template: str | None = None  # Jinja; None: the tokenizer's own

    def encode(self, example: Example) -> tuple[Encoded | Dropped, Account]:
        """The record in tokens, or why it is dropped; and the account of its tokens."""
        try:
            scripts = self._scripts(example)
            prompt = self._vocabulary.ids(scripts[0].prompt)
            if isinstance(example.prompt, str) and prompt[: len(self._vocabulary.bos)] != self._vocabulary.bos:
                prompt = self._vocabulary.bos + prompt
            coded = [self._code(script, prompt, example.where) for script in scripts]
        except Unusable as error:
            return Dropped(example.where, str(error)), Account()
        account = _account(coded, len(prompt))
        reason = self._reason(prompt, coded)
        if reason is not None:
            return Dropped(example.where, reason), account
        completions = tuple(
            Completion(np.array(c.ids, np.int64), np.array(c.chosen[1:], np.bool_), True) for c in coded
        )
        return Encoded(example.where, completions, example.scores, example.columns), account

    def _scripts(self, example: Example) -> list[Script]:
        if isinstance(example.prompt, str):
            texts = [text for text in example.completions if isinstance(text, str)]
            return [Script(example.prompt, (text,), ("", "")) for text in texts]
        template = Template(self.tokenizer, self.chat_template, example.template_kwargs, example.where)
        return template.scripts(example.prompt, [said for said in example.completions if not isinstance(said, str)])

    def _reason(self, prompt: Ids, coded: Sequence[_Coded]) -> str | None:
        reasons = {
            "empty_prompt": not prompt,
            **{c.fault: True for c in coded if c.fault is not None},
            "equal_completions": len({(c.ids, c.chosen) for c in coded}) == 1,
            "too_long": any(len(c.ids) > self.max_length for c in coded),
        }
        return next((reason for reason, holds in reasons.items() if holds), None)

    def _code(self, script: Script, prompt: Ids, where: str) -> _Coded:
        """prompt, context, words, context, words, ..., end: the ids of a script up to the end of its last words."""
        *spoken, (tail, _, _) = turns = self._turns(script)
        closing, template_end = self._closing(tail)
        ends = self._ends if template_end is None else self._ends | {template_end}
        if not closing and not _until(spoken[-1].words, ends):
            if self._vocabulary.eos is None:
                advice = "set its eos_token, or close each completion with an end token"
                raise DataError(f"{where}: nothing ends the completion and the tokenizer has no EOS token; {advice}")
            closing = (self._vocabulary.eos,)
            tail = closing + tail
        ids = prompt + spoken[0].context
        chosen, rest = (False,) * len(ids), ()
        for turn, following in zip(spoken, [*(turn.context for turn in spoken[1:]), tail], strict=True):
            said = _until(turn.words, ends) or turn.words + (closing if following[: len(closing)] == closing else ())
            ids, chosen = ids + rest + said, chosen + (False,) * len(rest) + (True,) * len(said)
            rest = (turn.words + following)[len(said) :]
        read = len(prompt) + len(tail) + sum(len(turn.context + turn.words) for turn in spoken)
        fault = self._fault([turn.words for turn in spoken], ends)
        return _Coded(ids, chosen, read, len(rest), any(turn.merged for turn in turns), template_end, fault)

    def _turns(self, script: Script) -> list[_Turn]:
        """The ids of each stretch of a script, each in the context of the text before it."""
        pairs = list(zip(script.between, (*script.said, ""), strict=True))
        befores = accumulate(("".join(pair) for pair in pairs[:-1]), initial=script.prompt)
        turns = []
        for before, (context, words) in zip(befores, pairs, strict=True):
            ids, merged = self._vocabulary.after(before, context + words)
            n = self._vocabulary.within(before, context, ids)
            turns.append(_Turn(ids[:n], ids[n:], merged))
        return turns

    def _closing(self, tail: Ids) -> tuple[Ids, int | None]:
        """The head of the tail that ends a completion, and its end token if the end ids lack it.

        That is up to the first end id; without one, up to the last added token, which must be the template's own end.
        """
        found = _until(tail, self._ends)
        added = [n for n, i in enumerate(tail) if i in self._vocabulary.added]
        if found or not added:
            return found, None
        return tail[: added[-1] + 1], tail[added[-1]]

    def _fault(self, words: Sequence[Ids], ends: frozenset[int]) -> str | None:
        """Words that say nothing, or that go on after an end token."""
        said = [_until(ids, ends) for ids in words]
        rests = [[i for i in ids[len(until) :] if i not in ends] for ids, until in zip(words, said, strict=True)]
        if any(until and self._vocabulary.text(rest).strip() for until, rest in zip(said, rests, strict=True)):
            return "end_inside_completion"
        blank = not any(self._vocabulary.text([i for i in ids if i not in ends]).strip() for ids in words)
        return "empty_completion" if blank else None

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer)

    @cached_property
    def _ends(self) -> frozenset[int]:
        eos = self._vocabulary.eos
        return self.end_ids if eos is None else self.end_ids | {eos}


def _account(coded: Sequence[_Coded], prompt: int) -> Account:
    scored = sum(sum(c.chosen) for c in coded)
    return Account(
        read=sum(c.read for c in coded),
        scored=scored,
        context=sum(len(c.ids) for c in coded) - scored,
        template_tail=sum(c.tail for c in coded),
        shared=prompt * (len(coded) - 1),
        merged=any(c.merged for c in coded),
        template_end=next((c.template_end for c in coded if c.template_end is not None), None),
    )


def _until(ids: Ids, ends: frozenset[int]) -> Ids:
    """The ids up to and including the first end; none where there is no end."""
    return next((ids[: n + 1] for n, i in enumerate(ids) if i in ends), ())
