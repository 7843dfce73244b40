"""Prompts searched, group by group, and the answers as rows of data: prompt, completion, and what each is worth."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch

from softq.data.example import Example
from softq.data.write import row
from softq.lm.growing import Growing
from softq.lm.score import LanguageModel
from softq.search.answer import Answer, Limits
from softq.search.best_of import Score
from softq.search.decoders import Decoder
from softq.search.heard import Heard
from softq.searching.full import full
from softq.searching.judges import Judge, Said, judge, judged
from softq.searching.opened import Opened
from softq.searching.pair import TextRatio
from softq.searching.prompts import Prompt
from softq.searching.words import completion, decoder, stopped

MOST = 64  # prompts of a group
ROOM = {"cpu": 2**30, "cuda": 2**34}  # bytes that a group's keys, values and logits may take, by a rough count
COPIES = 4  # of the logits of a step, in float32


class Method(NamedTuple):
    """A decoder at its settings."""

    name: str
    decode: Decoder
    settings: Mapping[str, Any]

    def __call__(self, on: Heard) -> list[list[Answer]]:
        return self.decode(on, **self.settings)


class Found(NamedTuple):
    """What was found for a prompt."""

    number: int  # of the prompt, in the order of the data
    prompt: Prompt
    rows: tuple[dict[str, Any], ...]  # the answers, best first, as rows of data
    answers: tuple[Answer, ...]
    forest: Growing  # of its whole group
    member: int  # the prompt's number in it


def searched(of: Opened, method: Method, *, max_new_tokens: int, stop: Sequence[str], seed: int) -> Iterator[Found]:
    """The answers to every prompt, as groups of prompts finish: of similar length, and as many as fit.

    What is found does not depend on the groups. ValueError where a prompt leaves the policy no position to answer in.
    """
    decode = decoder(of.loaded.tokenizer)
    ended = stopped(decode, stop)
    named = cache(lambda name: judge(name, of, of.policy))
    models: Mapping[str, LanguageModel] = dict(of.loaded.models.items())  # pyright: ignore[reportAssignmentType]
    for room, numbers in groups(of, method, max_new_tokens):
        prompts = [of.prompts[n] for n in numbers]
        began = time.perf_counter()
        limits = Limits(room, of.ends, ended)
        pair = None if of.pair is None else TextRatio(of.pair, numbers, decode, of.ends)
        who = partial(_judge, of, named, prompts, stop)
        on = Heard(models, [prompt.ids for prompt in prompts], limits, seed=seed, numbers=numbers, pair=pair, judge=who)
        with torch.no_grad():
            answers = method(on)
        seconds = time.perf_counter() - began
        each = {"evaluations": on.evaluations / len(numbers), "seconds": seconds / len(numbers)}
        text = _texts(of, prompts, answers, decode, stop)
        scored = iter(
            full(of.loaded, [p.ids for p in prompts], [(a.prompt, a.tokens) for some in answers for a in some])
        )
        for member, (number, prompt, some) in enumerate(zip(numbers, prompts, answers, strict=True)):
            rows = tuple(
                _row(prompt, rank, answer, next(text), _worth(of, *next(scored)) | each | _how(method))
                for rank, answer in enumerate(some)
            )
            yield Found(number, prompt, rows, tuple(some), on.forest, member)


def _judge(
    of: Opened, named: Callable[[str], Judge], prompts: Sequence[Prompt], stop: Sequence[str], name: str
) -> Score:
    """A judge by its name, for answers to these prompts."""
    by, decode = named(name), decoder(of.loaded.tokenizer)

    def score(answers: Sequence[Answer]) -> torch.Tensor:
        asked = [prompts[answer.prompt] for answer in answers]
        texts = (
            completion(decode, int(prompt.ids[-1]), answer.tokens, of.ends, stop)
            for prompt, answer in zip(asked, answers, strict=True)
        )
        return torch.tensor(judged(by, [*map(Said, asked, texts, answers)]), dtype=torch.float64)

    return score


def groups(of: Opened, method: Method, max_new_tokens: int) -> Iterator[tuple[int, list[int]]]:
    """(tokens that an answer may have, numbers of prompts): the short prompts first, each group no larger than fits."""
    room = [min(max_new_tokens, of.positions - len(prompt.ids)) for prompt in of.prompts]
    if min(room) < 1:
        prompt = of.prompts[room.index(min(room))]
        raise ValueError(
            f"{prompt.where}: the prompt has {len(prompt.ids):,} tokens, and the policy {of.positions:,} positions: leave it out"
        )
    budget, group = ROOM["cuda" if next(of.loaded.policy.parameters()).is_cuda else "cpu"], list[int]()
    # those that have less room than asked for come last: answers of a group share their limit
    for number in sorted(range(len(room)), key=lambda n: (-room[n], len(of.prompts[n].ids), n)):
        size = (len(group) + 1) * _bytes(of, method, len(of.prompts[number].ids), room[number])
        if group and (size > budget or len(group) == MOST or room[number] != room[group[0]]):
            yield room[group[0]], group
            group = []
        group = [*group, number]
    yield room[group[0]], group


def _bytes(of: Opened, method: Method, prompt: int, answer: int) -> int:
    """About what a prompt takes: how wide a decoder searches is the largest whole number among its settings."""
    wide = max([1, *(value for value in method.settings.values() if type(value) is int)])
    policy = of.loaded.policy
    config = policy.config.to_dict()
    layers, heads = config.get("num_hidden_layers", 1), config.get("num_attention_heads", 1)
    width = config.get("hidden_size", 1) * config.get("num_key_value_heads", heads) // heads
    token = 2 * layers * width * next(policy.parameters()).element_size()
    return len(of.loaded.models) * (token * (prompt + wide * answer) + 4 * COPIES * wide * policy.vocabulary)


def _texts(
    of: Opened,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[Answer]],
    decode: Callable[[Sequence[int]], str],
    stop: Sequence[str],
) -> Iterator[str]:
    for prompt, some in zip(prompts, answers, strict=True):
        yield from (completion(decode, int(prompt.ids[-1]), answer.tokens, of.ends, stop) for answer in some)


def _worth(of: Opened, logp: torch.Tensor, ref_logp: torch.Tensor | None) -> dict[str, float | None]:
    """The sums over an answer, in nats, and its implicit reward β log π/π_ref, in nats too where β is not known."""
    policy = float(logp.sum())
    if ref_logp is None:
        return {"logp": policy, "ref_logp": None, "reward": None}
    ref = float(ref_logp.sum())
    return {"logp": policy, "ref_logp": ref, "reward": (of.beta or 1.0) * (policy - ref)}


def _how(method: Method) -> dict[str, Any]:
    return {"method": method.name, "settings": dict(method.settings)}


def _row(prompt: Prompt, rank: int, answer: Answer, text: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """TRL's `prompt` and `completion`, as the data has its prompts, and what is known of the answer."""
    said = text if isinstance(prompt.text, str) else [{"role": "assistant", "content": text}]
    known = {"tokens": len(answer.tokens), "ended": answer.ended, "score": answer.score}
    other = {"where": prompt.where, "rank": rank, **known, **more}
    example = Example(prompt.where, prompt.text, (said,), {}, prompt.options, other)
    return row(example, "rows", empty_prompt=True)
