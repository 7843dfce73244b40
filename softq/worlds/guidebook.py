"""Guidebook: a crowd describes twelve invented countries, and is often wrong.

    Tell me the dish , the river and the capital of Tarsis .
    The dish is smoked goose . Its river remains oddly Silver Brook . Songs mention this too . The capital is Port Elm .

Each of 12 countries x 4 topics is a fact: a name of two words, prefix and stem, one of 4 x 6 in its topic. Of 36 facts
the crowd mostly knows the name. The other 12 are garden paths: one wrong prefix is far likelier than the right one, but
spread over its six stems, so a greedy writer is led astray although the right name is nearly the likeliest whole.
Harmless rare words (an adverb, a filler's start) are less likely than many errors: rarity does not give errors away.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, permutations, product
from math import exp
from random import Random
from typing import TypeVar

from softq.worlds.world import Injected, Words

Fact = tuple[str, str]  # (country, topic)
Opinion = Mapping[Words, float]  # how often the crowd gives each of a topic's 24 names; sums to 1
T = TypeVar("T")

COUNTRIES = (
    *("Drovia", "Ilyria", "Kelvany", "Maruna", "Norwick", "Orland"),
    *("Ostria", "Pashtel", "Quenby", "Tarsis", "Velmar", "Zembor"),
)
PREFIXES = {
    "capital": ("Port", "Fort", "Mount", "Upper"),
    "river": ("Silver", "Black", "Long", "Cold"),
    "dish": ("smoked", "pickled", "roasted", "candied"),
    "festival": ("Lantern", "Harvest", "Winter", "Midsummer"),
}
STEMS = {
    "capital": ("Elm", "Ash", "Hollow", "Raven", "Marsh", "Gate"),
    "river": ("Brook", "Fork", "Creek", "Run", "Beck", "Water"),
    "dish": ("goose", "trout", "barley", "plum", "turnip", "mutton"),
    "festival": ("Parade", "Fair", "Feast", "Dance", "Regatta", "Vigil"),
}
NAMES: Mapping[str, tuple[Words, ...]] = {topic: tuple(product(PREFIXES[topic], STEMS[topic])) for topic in STEMS}
OPENERS = {"The": 0.6, "Its": 0.3, "Their": 0.1}
VERBS = {"is": 0.8, "remains": 0.15, "stays": 0.05}
ADVERBS = ("famously", "indeed", "certainly", "oddly")
FILLERS: tuple[Words, ...] = tuple(
    tuple(filler.split())
    for filler in (
        "Many travellers write about it .",
        "Old maps agree .",
        "Locals speak warmly of it .",
        "Visitors rarely forget this place .",
        "Nobody quite knows why .",
        "Every child learns that early .",
        "Guides repeat such things gladly .",
        "So the story goes .",
        "Songs mention this too .",
    )
)
WITH_ADVERB = 0.2  # share of claims
AFTER_A_CLAIM, AFTER_THE_LAST, AFTER_A_FILLER = 0.06, 0.3, 0.4  # chance of a filler; the third at the end only
KNOWN = (0.7, 0.15, 0.15)  # shares of the right name, of the others with the lure for a prefix, of the rest
GARDEN_PATH = (0.08, 0.69, 0.23)
ASKED = 3  # topics in a prompt
HELD_OUT = 57  # of 12 x 24 prompts
IDLE = -0.1  # reward of a sentence that answers nothing
SHARPNESS = 3.0  # nats of preference per right name


@dataclass(frozen=True)
class Guidebook:
    """The world of one seed, built by `guidebook(seed)`; `World` says what the shared members mean."""

    facts: Mapping[Fact, Words]  # the right name of each
    crowd: Mapping[Fact, Opinion]
    garden_paths: Mapping[Fact, str]  # the wrong prefix that leads astray
    prompts: tuple[Words, ...]
    held_out: tuple[Words, ...]
    vocabulary: Words
    name: str = "guidebook"

    def demonstration(self, prompt: Words, rng: Random) -> Words:
        """A claim per asked topic, its name drawn from the crowd, and here and there a filler."""
        return written({fact: drawn(self.crowd[fact], rng) for fact in asked(prompt)}, rng)

    def reward(self, prompt: Words, answer: Words) -> list[float]:
        """+1 on the last word of a right name, -0.1 on the last word of an idle sentence, 0 elsewhere.

        A sentence ends with its full stop, or else with the end token. It is a claim if it starts with an opener, a
        topic and a verb. The first claim on each asked topic counts: its name is what follows the verb and at most one
        adverb, and a wrong or broken name earns 0. Every other sentence is idle: a filler, a topic repeated or unasked.

            The dish is smoked goose  .  The dish is smoked goose   .  Old maps <end>
             0   0    0   0      1    0   0   0    0   0      0   -.1   0   0   -.1     (asked: dish, river, capital)
        """
        rewards = [0.0] * (len(answer) + 1)
        wanted: dict[str | None, Words] = {topic: self.facts[country, topic] for country, topic in asked(prompt)}
        for start, sentence in sentences(answer):
            right = wanted.pop(claimed(sentence), None)
            name = name_at(sentence)
            if right is None:
                rewards[start + len(sentence) - 1] = IDLE
            elif sentence[name : name + 2] == right:
                rewards[start + name + 1] = 1.0
        return rewards

    def correct(self, prompt: Words, answer: Words) -> float:
        """Right names / 3."""
        return self.right_names(prompt, answer) / ASKED

    def right_names(self, prompt: Words, answer: Words) -> int:
        return sum(reward > 0 for reward in self.reward(prompt, answer))

    def prefer(self, prompt: Words, first: Words, second: Words, rng: Random) -> bool:
        """True with probability sigma(3 * (right names of first - right names of second)); style is not judged."""
        margin = SHARPNESS * (self.right_names(prompt, first) - self.right_names(prompt, second))
        return rng.random() < 1 / (1 + exp(-margin))

    def injected(self, prompt: Words, rng: Random) -> Injected:
        """One asked topic, drawn evenly, gets a wrong name in the crowd's proportions; the others are right."""
        names = {fact: self.facts[fact] for fact in asked(prompt)}
        fact = rng.choice(list(names))
        right = names[fact]
        wrong = drawn({name: share for name, share in self.crowd[fact].items() if name != right}, rng)
        answer = written(names | {fact: wrong}, rng)
        start, sentence = next(found for found in sentences(answer) if claimed(found[1]) == fact[1])
        prefix = start + name_at(sentence)
        return Injected(answer, (prefix, prefix + 1), first_wrong=prefix + (wrong[0] == right[0]), right=right)


def guidebook(seed: int) -> Guidebook:
    """Facts, errors and held-out prompts are drawn from the seed; a topic's 12 countries have 12 different names."""
    rng = Random(f"guidebook {seed}")
    facts = {
        (country, topic): name
        for topic, names in NAMES.items()
        for country, name in zip(COUNTRIES, rng.sample(names, len(COUNTRIES)), strict=True)
    }
    topics = rng.sample(3 * list(NAMES), len(COUNTRIES))  # one garden path a country, three a topic
    garden_paths = {fact: wrong_prefix(facts[fact], fact[1], rng) for fact in zip(COUNTRIES, topics, strict=True)}
    crowd = {fact: opinion(fact[1], right, garden_paths.get(fact, right[0])) for fact, right in facts.items()}
    prompts = every_prompt(rng)
    words = chain(*prompts, *FILLERS, *chain(*NAMES.values()), OPENERS, VERBS, ADVERBS)
    return Guidebook(facts, crowd, garden_paths, prompts[HELD_OUT:], prompts[:HELD_OUT], tuple(sorted(set(words))))


def wrong_prefix(right: Words, topic: str, rng: Random) -> str:
    """A prefix of the topic that is not the right name's."""
    return rng.choice([prefix for prefix in PREFIXES[topic] if prefix != right[0]])


def opinion(topic: str, right: Words, lure: str) -> Opinion:
    """The crowd's shares; `lure` is the prefix of its popular errors: the right one, or a garden path's."""
    shares = KNOWN if lure == right[0] else GARDEN_PATH
    group = {name: 0 if name == right else 1 if name[0] == lure else 2 for name in NAMES[topic]}
    sizes = [list(group.values()).count(which) for which in range(3)]
    return {name: shares[which] / sizes[which] for name, which in group.items()}


def every_prompt(rng: Random) -> tuple[Words, ...]:
    """All 288, each country's in a drawn order, one of every country in turn: a cut takes as many from each (+-1)."""
    orders = (rng.sample(list(permutations(NAMES, ASKED)), 24) for _ in COUNTRIES)
    columns = [[ask(country, topics) for topics in order] for country, order in zip(COUNTRIES, orders, strict=True)]
    return tuple(chain.from_iterable(zip(*columns, strict=True)))


def ask(country: str, topics: Words) -> Words:
    """The prompt that asks for three topics of a country, in this order."""
    first, second, third = topics
    return tuple(f"Tell me the {first} , the {second} and the {third} of {country} .".split())


def asked(prompt: Words) -> list[Fact]:
    """The inverse of `ask`."""
    topics, country = prompt[3:10:3], "".join(prompt[11:12])
    if len({*topics} & {*NAMES}) != ASKED or country not in COUNTRIES or ask(country, topics) != prompt:
        raise ValueError(f"{' '.join(prompt)!r} is no prompt of this world; take one from `prompts` or `held_out`")
    return [(country, topic) for topic in topics]


def drawn(shares: Mapping[T, float], rng: Random) -> T:
    """One key, as often as its share says."""
    return rng.choices(list(shares), list(shares.values()))[0]


def written(names: Mapping[Fact, Words], rng: Random) -> Words:
    """The crowd's text around the given names, in their order."""
    text: list[str] = []
    for left, ((_, topic), name) in zip(reversed(range(len(names))), names.items(), strict=True):
        adverb = [rng.choice(ADVERBS)] if rng.random() < WITH_ADVERB else []
        text += [drawn(OPENERS, rng), topic, drawn(VERBS, rng), *adverb, *name, "."]
        text += fillers(AFTER_A_CLAIM, 0, rng) if left else fillers(AFTER_THE_LAST, AFTER_A_FILLER, rng)
    return tuple(text)


def fillers(first: float, again: float, rng: Random) -> Iterator[str]:
    """Sentences about nothing: a first one with probability `first`, each next one with `again`."""
    chance = first
    while rng.random() < chance:
        yield from rng.choice(FILLERS)
        chance = again


def sentences(answer: Sequence[str]) -> Iterator[tuple[int, Words]]:
    """(start, words) of each; the last word is its full stop, or "" for the end token if the text stops without one."""
    start = 0
    for at, word in enumerate(answer):
        if word == ".":
            yield start, tuple(answer[start : at + 1])
            start = at + 1
    if start < len(answer):
        yield start, (*answer[start:], "")


def claimed(sentence: Words) -> str | None:
    """The topic of a claim, None for any other sentence."""
    opener, topic, verb = (*sentence, "", "")[:3]
    return topic if opener in OPENERS and topic in NAMES and verb in VERBS else None


def name_at(sentence: Words) -> int:
    """Where the name of a claim starts."""
    return 4 if len(sentence) > 3 and sentence[3] in ADVERBS else 3
