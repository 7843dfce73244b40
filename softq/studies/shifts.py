"""Pairs of answers that differ from those a reward was learned from: in the question, in the style, in who wrote them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from random import Random

from softq.lm.load import Loaded
from softq.studies.ground import judged_by_truth
from softq.studies.small_model import Compared, sampled
from softq.training.events import RunError
from softq.worlds.guidebook import ADVERBS, FILLERS, OPENERS, VERBS, Guidebook, asked, drawn
from softq.worlds.world import Words

SAMPLES = 12  # answers a prompt
IDLE = 0.5  # chance of a filler behind a claim, in the other style


def same(world: Guidebook, count: int, rng: Random) -> list[Compared]:
    """New pairs of the crowd's answers to the questions that were trained on."""
    return [judged_by_truth(world, world.prompts, rng) for _ in range(count)]


def questions(world: Guidebook, count: int, rng: Random) -> list[Compared]:
    """Pairs of the crowd's answers to questions that were held out."""
    return [judged_by_truth(world, world.held_out, rng) for _ in range(count)]


def wording(world: Guidebook, count: int, rng: Random) -> list[Compared]:
    """The questions that were trained on with the country first: "of Tarsis , Tell me the dish , the river and the capital ."."""
    return [pair._replace(prompt=reworded(pair.prompt)) for pair in same(world, count, rng)]


def style(world: Guidebook, count: int, rng: Random) -> list[Compared]:
    """Answers that know as much as the crowd's, written otherwise: in reverse order, with adverbs and fillers, both of a pair."""

    return [_judged(world, rng, partial(styled, world)) for _ in range(count)]


def styled(world: Guidebook, prompt: Words, rng: Random) -> Words:
    """An answer in that style."""
    return tuple(word for sentence in _styled(world, prompt, rng) for word in sentence)


CROWD: Mapping[str, Callable[[Guidebook, int, Random], list[Compared]]] = {
    "same": same,
    "questions": questions,
    "wording": wording,
    "style": style,
}
"""What needs no model to make."""


def written_by(world: Guidebook, loaded: Loaded, count: int, seed: int) -> list[Compared]:
    """Pairs of what a policy answers, at T = 1, to questions that were trained on; fewer than `count` where answers tie or do not
    end. RunError where there are none.
    """
    rng = Random(f"policy {seed}")
    asked_for = tuple(rng.sample(world.prompts, min(len(world.prompts), max(1, 2 * count // SAMPLES))))
    said = sampled(replace(world, held_out=asked_for), loaded, SAMPLES, seed)
    pairs = []
    for prompt in asked_for:
        answers = [one.answer for one in said if one.prompt == prompt and one.ended]
        for first, second in zip(answers[::2], answers[1::2], strict=False):
            pairs += _in_order(world, prompt, first, second)
    if not pairs:
        raise RunError(
            "no two answers of the policy differ in how many names they have right: it is trained too little"
        )
    return pairs[:count]


def reworded(prompt: Words) -> Words:
    """The same words, the country first."""
    *question, of, country, stop = prompt
    return (of, country, ",", *question, stop)


def _styled(world: Guidebook, prompt: Words, rng: Random) -> Iterator[Words]:
    for country, topic in reversed(asked(prompt)):
        name = drawn(world.crowd[country, topic], rng)
        yield (rng.choice([*OPENERS]), topic, rng.choice([*VERBS]), rng.choice(ADVERBS), *name, ".")
        if rng.random() < IDLE:
            yield rng.choice(FILLERS)


def _judged(world: Guidebook, rng: Random, write: Callable[[Words, Random], Words]) -> Compared:
    while True:
        prompt = rng.choice(world.prompts)
        if pair := _in_order(world, prompt, write(prompt, rng), write(prompt, rng)):
            return pair[0]


def _in_order(world: Guidebook, prompt: Words, first: Words, second: Words) -> Sequence[Compared]:
    """The pair with the answer first that has more names right; none where they have as many."""
    better = world.right_names(prompt, first) - world.right_names(prompt, second)
    if not better:
        return ()
    return (Compared(prompt, first, second) if better > 0 else Compared(prompt, second, first),)
