"""The study of "From r to Q*": what it measures, against the world's truth and against one text at a time; what it says of it."""

import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from softq.lm.load import load, load_reward_model
from softq.records import Tree
from softq.search.answer import Answer as Found_answer
from softq.studies import decoding, r_to_q, small_model
from softq.studies.by_seed import file_of
from softq.studies.credit import anyhow, injections, led_astray, localised, said_of
from softq.studies.decoding import Tried, decoded, plan, row
from softq.studies.formal import PHRASE, SAID, formal
from softq.studies.r_to_q import FIGURES, PAGE, Found, Recipe, law
from softq.studies.r_to_q_claims import ARMS, Claim, claims, searched
from softq.studies.r_to_q_plot import pictures
from softq.studies.r_to_q_text import markdown
from softq.studies.small_model import crowd_pairs, fine_tune, ids_of
from softq.worlds.guidebook import FILLERS, IDLE, NAMES, asked, guidebook

WORLD = replace(guidebook(0), held_out=guidebook(0).held_out[:3])
TINY = Recipe(64, 2, 16, 4, 2, 1e-3, 2, 1e-4, 2, 1.0, 4, 5, 30)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the world that hardly knows it."""
    place = tmp_path_factory.mktemp("start")
    fine_tune(WORLD, place, 0, answers=64, steps=2)
    return place


def test_a_reward_models_word_on_a_token_is_the_change_of_its_reward(start: Path) -> None:
    loaded = load(str(start), "start")
    torch.manual_seed(0)
    judge = load_reward_model(str(start))
    cases = injections(WORLD, 2, 0)
    for (prompt, case), said in zip(cases, said_of(cases, loaded, judge), strict=True):
        ids = [*ids_of(prompt, loaded.tokenizer), *ids_of(case.answer, loaded.tokenizer), loaded.tokenizer.eos_token_id]
        with torch.no_grad():
            model: Any = judge.policy
            path = model.values(Tree(torch.tensor(ids), torch.arange(len(ids)) - 1))
        assert said.judged == pytest.approx((path[len(prompt) :] - path[len(prompt) - 1 : -1]).tolist(), abs=1e-5)
        assert len(said.judged) == len(said.reward) == len(case.answer) + 1
    assert "control_rm_auc" in localised(said_of(cases, loaded, judge))
    assert "control_rm_auc" not in localised(said_of(cases, loaded))


def test_errors_drawn_at_random_are_other_names_of_the_topic() -> None:
    for number, (prompt, case) in enumerate(injections(WORLD, 60, 0)):
        other = anyhow(case, Random(number))
        (names,) = (names for names in NAMES.values() if case.right in names)
        name = tuple(other.answer[at] for at in other.span)
        assert name in names
        assert name != case.right
        assert other.corrected == case.corrected
        assert other.answer[other.first_wrong] != case.corrected[other.first_wrong]
        assert other.answer[: other.first_wrong] == case.corrected[: other.first_wrong]
        (fact,) = (fact for fact in asked(prompt) if WORLD.facts[fact] == case.right)
        assert led_astray(WORLD, prompt, case) == (fact in WORLD.garden_paths)


def test_decoders_are_judged_by_the_truth(start: Path) -> None:
    loaded = load(str(start), "start")
    right = [injections(replace(WORLD, held_out=(prompt,)), 1, 0)[0][1].corrected for prompt in WORLD.held_out]
    short = [answer[: answer.index(".") + 1] for answer in right]

    def answers(words: list[tuple[str, ...]]) -> list[Found_answer]:
        end: Any = loaded.tokenizer.eos_token_id
        ids = [(*ids_of(said, loaded.tokenizer), end) for said in words]
        return [Found_answer(n, -1, said, True, 0.0, 0.0) for n, said in enumerate(ids)]

    tried = Tried("beam", "beam", {"beams": 7, "length_penalty": 1.0})
    mixed = [right[0], short[1], short[2]]
    found = row(WORLD, loaded, tried, [(answers(right), 30), (answers(mixed), 60)], answers(mixed))
    idle = [_idle(prompt, answer) for prompt, answer in zip(WORLD.held_out, right, strict=True)]
    first = [sum(WORLD.reward(prompt, answer)) for prompt, answer in zip(WORLD.held_out, short, strict=True)]
    assert (found["size"], found["evaluations"], found["cut"]) == (7, 15, 0)
    assert found["right"] == pytest.approx((4 + 2 / 3) / 6)
    assert found["reward"] == pytest.approx((9 + sum(idle) + 3 + idle[0] + first[1] + first[2]) / 6)
    assert found["length"] == pytest.approx(sum(len(words) + 1 for words in (*right, *mixed)) / 6)
    assert (found["alike"], found["gain"]) == (pytest.approx(4 / 6), pytest.approx(0))


def _idle(prompt: tuple[str, ...], answer: tuple[str, ...]) -> float:
    return sum(value for value in WORLD.reward(prompt, answer) if value < 0)


def test_both_models_are_searched_and_sampling_is_drawn_anew(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "LONGEST", 4)
    monkeypatch.setattr(decoding, "WIDTHS", (2,))
    rows = list(decoded(WORLD, load(str(start), "start"), 0))
    families = {one.family for one in plan(True)}
    assert {one["family"] for one in rows if one["policy"] == "dpo"} == families
    assert {one["family"] for one in rows if one["policy"] == "sft"} == {one.family for one in plan(False)} != families
    same = {(one["policy"], one["family"], one["size"]): one for one in rows}
    for family in ("beam", "any sample"):
        assert same["dpo", family, 1]["reward"] == same["sft", family, 1]["reward"], "untrained, the two are one model"
    assert all(one["length"] <= 4 for one in rows)


def test_the_law_of_samples_of_the_reference(start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_model, "LONGEST", 12)
    loaded = load(str(start), "start")
    same = law(WORLD, loaded, TINY, 0)
    assert (same["samples"], same["reward"], same["kl"]) == (30, 0, 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    moved = law(WORLD, loaded, TINY._replace(fresh=300, beta=2.0), 0)
    assert moved["kl"] < -0.5
    assert abs(moved["reward"] - moved["kl"]) < 4 * moved["error"]
    half = law(WORLD, loaded, TINY._replace(fresh=300), 0)
    assert half["kl"] == pytest.approx(moved["kl"] / 2)


def made(seed: int) -> Found:
    """What a seed might come to: small differences between seeds, large ones between what is compared."""
    noise = 0.001 * seed
    scores = {"localisation": 0.98, "control": 0.9, "control_dpo": 0.95, "control_rm": 0.5}
    credit = {f"{name}_{figure}": value + noise for name, value in scores.items() for figure in ("auc", "top1")}
    search = [
        {"policy": policy, "family": one.family, "size": next(iter(one.settings.values()), 1)}
        | {"reward": 2 + noise + 0.1 * (policy == "dpo" and one.family == "beam" and bool(one.settings)), "right": 0.7}
        | {"length": 19.0, "cut": 0.0, "evaluations": 90.0, "alike": 0.5, "gain": None}
        for policy in ("dpo", "sft")
        for one in plan(policy == "dpo")
    ]
    for at in search:
        at["each"] = {name: [at[name] - 0.5, at[name] + 0.5] for name in ("reward", "length")}
    formal = [
        {**at, "length": 19.0 + at["size"], "each": {"reward": [2.0, 2.2], "length": [at["size"], 40.0 + seed]}}
        for at in search
    ]
    falling = {
        arm: [{"step": s, "chosen": -0.1 * s * ("first" in arm), "rejected": -0.3 * s} for s in (0, 1)] for arm in ARMS
    }
    kinds = ("plausible", "random", "garden path")
    return Found(
        dict.fromkeys(kinds, credit),
        search,
        falling,
        {"samples": 10, "reward": -1.5, "kl": -1.4, "error": 0.1},
        formal,
        60.0,
    )


def test_what_is_said_follows_the_differences() -> None:
    found = {seed: made(seed) for seed in range(3)}
    said = {claim.said: claim for claim in claims(found)}
    assert said["a few beams help the policy"].spread.mean == pytest.approx(0.1)
    assert said["… and the model before it (control)"].spread.mean == pytest.approx(0)
    assert said["log π/π_ref finds the crowd's own errors better than log π"].spread.mean == pytest.approx(0.03)
    assert searched(found, "search", ("dpo", "beam", 5), "reward") == {
        seed: pytest.approx(2.1 + 0.001 * seed) for seed in range(3)
    }
    page = markdown(found, TINY)
    shows = page[page.index("**Shows**") : page.index("**Does not show**")]
    assert "a few beams help the policy" in shows
    assert "fine-tuned on the chosen answers first, chosen answers fall" in shows
    assert "… and the model before it (control)" not in shows
    assert "| 0 | 10 | −1.5000 | −1.4000 | 1.0 |" in page
    for name, picture in pictures(found).items():
        assert ET.fromstring(picture).tag.endswith("svg"), name


def test_the_interval_over_prompts_is_of_these_worlds_alone() -> None:
    """By hand: of two seeds the mean of the two means, whose variances add."""
    open_ = Claim("", "", {0: 1.0, 1: 3.0}, "reward", {0: [0.0, 1.0, 2.0], 1: [2.0, 3.0, 4.0]})
    error = math.sqrt(1 / 3 + 1 / 3) / 2
    assert open_.here == pytest.approx((2 - 1.96 * error, 2 + 1.96 * error))
    assert open_.spread.interval is not None
    assert open_.spread.interval[0] < 0 < open_.spread.interval[1]
    assert open_.verdict == "shows in these worlds"
    assert open_._replace(prompts={0: [-9.0, 1.0, 11.0], 1: [3.0, 3.0]}).verdict == "unclear"
    assert open_._replace(prompts={}).verdict == "unclear"
    assert open_._replace(values={0: 2.0, 1: 2.0}).verdict == "shows"


def test_claims_of_the_set_phrase_are_of_its_own_rows() -> None:
    said = {claim.said: claim for claim in claims({seed: made(seed) for seed in range(3)})}
    longer = said["with a set phrase, many beams lengthen, with transformers' length penalty"]
    assert longer.spread.values == {seed: pytest.approx(7.5) for seed in range(3)}, "(20 - 5 + 40 - 40) / 2"
    assert said["many beams lengthen, with transformers' length penalty"].spread.mean == 0


def test_a_few_answers_begin_with_a_set_phrase() -> None:
    """As often as is said, with the crowd's own answer behind it; and pairs are of such answers."""
    idle = sum(IDLE for _ in FILLERS)
    rng, plain = Random(0), 0
    for _ in range(2000):
        prompt = rng.choice(WORLD.prompts)
        answer = formal(WORLD, prompt, rng)
        begins = answer[: len(PHRASE)] == PHRASE
        plain += not begins
        if begins:
            behind = answer[len(PHRASE) :]
            assert sum(WORLD.reward(prompt, answer)) == pytest.approx(sum(WORLD.reward(prompt, behind)) + idle)
    assert 1 - plain / 2000 == pytest.approx(SAID, abs=0.01)
    pairs = list(crowd_pairs(WORLD, 400, 0, partial(formal, WORLD)))
    assert {pair.chosen[: len(PHRASE)] == PHRASE for pair in pairs} == {True, False}


def test_the_study_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "LONGEST", 2)
    monkeypatch.setattr(decoding, "DRAWS", 1)
    monkeypatch.setattr(decoding, "WIDTHS", (2, 5, 20))
    monkeypatch.setattr(small_model, "LONGEST", 3)
    monkeypatch.setattr(r_to_q, "guidebook", lambda seed: WORLD)
    list(r_to_q.r_to_q(tmp_path / "out", [0], TINY, processes=1))
    figures = json.loads((tmp_path / "out" / FIGURES).read_text())
    of = figures["seeds"]["0"]
    assert {(row["policy"], row["family"]) for row in of["formal"]} == {
        (policy, one.family) for policy in ("dpo", "sft") for one in decoding.beams(True)
    }
    assert all("each" not in row for row in (*of["formal"], *of["search"]))
    assert [point["step"] for point in of["falling"]["crowd"]] == [0, 1, 2]
    assert all(math.isfinite(point["chosen"]) for arm in of["falling"].values() for point in arm)
    assert of["falling"]["crowd"][-1] != of["falling"]["style"][-1] != of["falling"]["style, chosen first"][-1]
    before = (tmp_path / "out" / PAGE).read_text()
    stamp = file_of(tmp_path / "out", 0, r_to_q.searched).stat().st_mtime_ns
    list(r_to_q.r_to_q(tmp_path / "out", [0], TINY, processes=1))
    assert (tmp_path / "out" / PAGE).read_text() == before
    assert file_of(tmp_path / "out", 0, r_to_q.searched).stat().st_mtime_ns == stamp
