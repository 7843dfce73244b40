"""Guidebook: rewards computed by hand, then laws and frequencies."""

from collections import Counter
from math import exp
from random import Random

import pytest

from softq.worlds.guidebook import NAMES, Guidebook, asked, guidebook
from softq.worlds.world import Injected

PROMPT = tuple("Tell me the dish , the river and the capital of Tarsis .".split())
TARSIS = Guidebook(
    facts={
        ("Tarsis", "dish"): ("smoked", "goose"),
        ("Tarsis", "river"): ("Silver", "Brook"),
        ("Tarsis", "capital"): ("Port", "Elm"),
        ("Tarsis", "festival"): ("Winter", "Fair"),
    },
    crowd={},
    garden_paths={},
    prompts=(),
    held_out=(),
    vocabulary=(),
)
DISH, RIVER, CAPITAL = (
    "The dish is smoked goose . ",
    "Its river remains oddly Silver Brook . ",
    "The capital is Port Elm . ",
)


def near(expected: float, draws: int, spread: float = 0.5):
    """Four standard errors of a mean of `draws` numbers."""
    return pytest.approx(expected, abs=4 * spread / draws**0.5)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (DISH + RIVER + CAPITAL, {4: 1, 11: 1, 17: 1}),
        (CAPITAL + DISH + RIVER, {4: 1, 10: 1, 17: 1}),  # the order asked for is not judged
        (DISH + "Old maps agree . " + RIVER + CAPITAL, {4: 1, 9: -0.1, 15: 1, 21: 1}),
        ("The dish is smoked trout . Its river is Cold Brook . The capital is Elm Port .", {}),
        ("The dish is Silver Brook . Its river is smoked goose .", {}),  # right names under wrong topics
        (DISH + DISH, {4: 1, 11: -0.1}),
        ("The dish is smoked trout . " + DISH, {11: -0.1}),  # only the first claim counts
        ("The dish is . " + DISH, {9: -0.1}),
        ("The festival is Winter Fair . " + DISH, {5: -0.1, 10: 1}),  # right, but not asked
        ("dish is smoked goose . Old dish is smoked goose . " + DISH, {4: -0.1, 10: -0.1, 15: 1}),
        ("The dish smoked goose . " + DISH, {4: -0.1, 9: 1}),  # no verb, no claim
        ("The dish is oddly indeed smoked goose .", {}),
        ("The dish is roasted smoked goose .", {}),
        ("The dish is smoked goose smoked goose .", {4: 1}),
        ("The dish is smoked", {}),
        ("The dish is smoked goose", {4: 1}),
        ("The dish is smoked goose . Old maps", {4: 1, 8: -0.1}),  # unfinished: the end token pays
        ("The dish", {2: -0.1}),
        ("", {}),
        (". . The", {0: -0.1, 1: -0.1, 3: -0.1}),
        ("what ? " * 50 + ". " + CAPITAL, {100: -0.1, 105: 1}),
    ],
)
def test_reward_by_hand(answer, expected):
    words = tuple(answer.split())
    assert TARSIS.reward(PROMPT, words) == [expected.get(at, 0) for at in range(len(words) + 1)]
    assert TARSIS.reward(PROMPT, list(words)) == TARSIS.reward(PROMPT, words)
    assert TARSIS.correct(PROMPT, words) == pytest.approx(sum(reward == 1 for reward in expected.values()) / 3)


def test_reward_depends_on_nothing_later():
    world, rng = guidebook(0), Random(0)
    for prompt in world.held_out:
        babble = tuple(rng.choices((*world.vocabulary, *20 * (".",)), k=10))
        answer = babble + world.demonstration(prompt, rng) + babble
        whole = world.reward(prompt, answer)
        for cut in range(len(answer)):
            assert world.reward(prompt, answer[:cut])[:cut] == whole[:cut]


def test_judge_is_bradley_terry_in_right_names_only():
    rng, draws = Random(0), 20_000
    none, one, three = (
        tuple(text.split()) for text in ("Old maps agree .", DISH + "Old maps agree .", DISH + RIVER + CAPITAL)
    )
    for first, second, nats in ((one, none, 3), (none, one, -3), (one, tuple(DISH.split()), 0), (none, three, -9)):
        wins = sum(TARSIS.prefer(PROMPT, first, second, rng) for _ in range(draws)) / draws
        chance = 1 / (1 + exp(-nats))
        assert wins == near(chance, draws, (chance * (1 - chance)) ** 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_crowd_shares(seed):
    world = guidebook(seed)
    assert len(world.facts) == len(world.crowd) == 48
    assert Counter(topic for _, topic in world.garden_paths) == dict.fromkeys(NAMES, 3)
    for fact, right in world.facts.items():
        lure = world.garden_paths.get(fact, right[0])
        shares = Counter()
        for name, share in world.crowd[fact].items():
            shares["right" if name == right else "lured" if name[0] == lure else "rest"] += share
        garden = {"right": 0.08, "lured": 0.69, "rest": 0.23}
        known = {"right": 0.7, "lured": 0.15, "rest": 0.15}
        assert shares == pytest.approx(garden if fact in world.garden_paths else known)
        assert (lure != right[0]) == (fact in world.garden_paths)
        assert set(world.crowd[fact]) == set(NAMES[fact[1]])
    for topic in NAMES:
        assert len({name for fact, name in world.facts.items() if fact[1] == topic}) == 12


@pytest.mark.parametrize("seed", range(5))
def test_prompts(seed):
    world = guidebook(seed)
    assert (len(world.prompts), len(world.held_out), len({*world.prompts, *world.held_out})) == (231, 57, 288)
    assert {fact for prompt in world.prompts for fact in asked(prompt)} == set(world.facts)
    assert set(Counter(prompt[11] for prompt in world.held_out).values()) == {4, 5}
    assert all(len(prompt) == 13 for prompt in world.prompts + world.held_out)


def test_a_world_is_a_function_of_its_seed():
    assert guidebook(3) == guidebook(3) != guidebook(4)
    world = guidebook(0)
    assert world.facts["Tarsis", "dish"] == ("candied", "mutton")
    assert " ".join(world.held_out[0]) == "Tell me the festival , the river and the dish of Drovia ."
    assert " ".join(world.demonstration(world.held_out[0], Random(5))) == (
        "Its festival remains Winter Parade . So the story goes . The river is Black Water . "
        "The dish is smoked mutton . Visitors rarely forget this place ."
    )


def test_demonstrations_read_as_the_crowd_writes():
    world, rng, rounds = guidebook(1), Random(1), 20
    prompts = rounds * (world.prompts + world.held_out)
    answers = [world.demonstration(prompt, rng) for prompt in prompts]
    draws, claims = len(answers), 3 * len(answers)
    words = Counter(word for answer in answers for word in answer)
    assert set(words) <= set(world.vocabulary)
    assert world.vocabulary == tuple(sorted({*words, *(word for prompt in prompts for word in prompt)}))
    assert len(world.vocabulary) == 109
    starts = {"The": 0.6, "Its": 0.3, "Their": 0.1}
    verbs = {"is": 0.8, "remains": 0.15, "stays": 0.05}
    adverbs = dict.fromkeys(("famously", "indeed", "certainly", "oddly"), 0.05)
    for word, share in (starts | verbs | adverbs).items():
        assert words[word] / claims == near(share, claims, (share * (1 - share)) ** 0.5)
    idle = words["."] / draws - 3
    middle = sum(answer[: max(map(answer.index, NAMES.keys() & answer))].count(".") for answer in answers) / draws - 2
    assert middle == near(2 * 0.06, draws, (2 * 0.06 * 0.94) ** 0.5)
    assert idle - middle == near(0.3 / (1 - 0.4), draws, spread=0.95)
    rewards = [world.reward(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    right = sum(world.correct(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)) / draws
    assert right == near((36 * 0.7 + 12 * 0.08) / 48, claims)
    assert sum(map(sum, rewards)) / draws == pytest.approx(3 * right - 0.1 * idle)
    assert all(reward[-1] == 0 for reward in rewards)


def test_injected_error_is_the_only_one_and_is_the_crowds():
    world, rng = guidebook(2), Random(2)
    lured: dict[bool, list[bool]] = {True: [], False: []}
    for prompt in 60 * world.held_out:
        injected = world.injected(prompt, rng)
        first, second = injected.span
        wrong = injected.answer[first : second + 1]
        fact = next(fact for fact in asked(prompt) if wrong in NAMES[fact[1]])
        right = world.facts[fact]
        mended = injected.answer[:first] + right + injected.answer[second + 1 :]
        assert world.correct(prompt, injected.answer) == pytest.approx(2 / 3)
        assert world.correct(prompt, mended) == 1
        assert injected.first_wrong == (second if wrong[0] == right[0] else first)
        assert injected.corrected == mended
        lured[fact in world.garden_paths].append(wrong[0] == world.garden_paths.get(fact, right[0]))
    for garden_path, share in ((True, 0.69 / 0.92), (False, 0.15 / 0.3)):
        draws = len(lured[garden_path])
        assert sum(lured[garden_path]) / draws == near(share, draws)
    assert len(lured[True]) / (60 * 57) == near(0.25, 60 * 57)


def test_what_is_refused():
    for prompt in (
        PROMPT[:-1],
        (*PROMPT, "."),
        tuple("Tell me the dish , the dish and the river of Tarsis .".split()),
        (),
    ):
        with pytest.raises(ValueError, match="no prompt of this world"):
            TARSIS.reward(prompt, ())
    with pytest.raises(ValueError, match="leaves the answer"):
        Injected(("a", "b"), span=(1, 2), first_wrong=1, right=("c", "d"))
    with pytest.raises(ValueError, match="expected a position in span"):
        Injected(("a", "b"), span=(1,), first_wrong=0, right=("c",))
    with pytest.raises(ValueError, match="give one for each"):
        Injected(("a", "b"), span=(1,), first_wrong=1, right=("c", "d"))
