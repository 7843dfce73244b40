"""The study of implicit and explicit rewards under shift: its pairs, its figures, what it says of them, its picture."""

import json
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from softq.cli.study import POLICIES
from softq.cli.study import run as study
from softq.objectives import METHODS
from softq.studies import generalisation as module
from softq.studies import shifts
from softq.studies.by_seed import file_of
from softq.studies.generalisation import FIGURES, PICTURE, TABLE, Found, Recipe, generalisation
from softq.studies.generalisation_text import KINDS, SHIFTED, behind, loss_of, markdown, picture, under_shift
from softq.studies.shifts import CROWD, reworded, written_by
from softq.studies.small_model import Compared, Said, fine_tune
from softq.training.events import Note, OutputError, RunError
from softq.worlds.guidebook import ADVERBS, FILLERS, asked, claimed, guidebook, sentences

WORLD = guidebook(0)
TINY = Recipe(demonstrations=64, fine_tuning=2, pairs=12, batch=4, steps=2, judged=6)


def rng() -> Random:
    return Random("test")


# --- the pairs ---


@pytest.mark.parametrize("kind", CROWD)
def test_pairs_are_labelled_by_the_truth(kind: str) -> None:
    for pair in CROWD[kind](WORLD, 40, rng()):
        prompt = next(one for one in (*WORLD.prompts, *WORLD.held_out) if pair.prompt in (one, reworded(one)))
        assert WORLD.right_names(prompt, pair.chosen) > WORLD.right_names(prompt, pair.rejected)


def test_each_kind_differs_from_training_in_what_it_says_and_in_nothing_else() -> None:
    made = {kind: make(WORLD, 60, rng()) for kind, make in CROWD.items()}
    assert {pair.prompt for pair in made["same"]} <= set(WORLD.prompts)
    assert {pair.prompt for pair in made["questions"]} <= set(WORLD.held_out)
    assert not {pair.prompt for pair in made["wording"]} & {*WORLD.prompts, *WORLD.held_out}
    assert [(pair.chosen, pair.rejected) for pair in made["wording"]] == [(p.chosen, p.rejected) for p in made["same"]]
    assert {pair.prompt for pair in made["style"]} <= set(WORLD.prompts)
    for pair in made["style"]:
        for answer in (pair.chosen, pair.rejected):
            topics = [topic for _, sentence in sentences(answer) if (topic := claimed(sentence))]
            assert topics == [topic for _, topic in reversed(asked(pair.prompt))]
            assert sum(word in ADVERBS for word in answer) == 3
    idle = sum(" ".join(filler) in " ".join(pair.chosen) for pair in made["style"] for filler in FILLERS)
    assert 45 < idle < 135  # half of 180 claims


def test_reworded_prompts_have_the_words_of_the_world() -> None:
    prompt = WORLD.prompts[0]
    said = reworded(prompt)
    assert said[:3] == ("of", prompt[-2], ",")
    assert Counter(said) == Counter([*prompt, ","])
    assert set(said) <= set(WORLD.vocabulary)


def test_answers_of_a_policy_are_paired_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties and answers that do not end are left out; prompts are of those that were trained on."""

    def said(world: Any, loaded: Any, samples: int, seed: int) -> list[Said]:
        answers = []
        for prompt in world.held_out:
            assert prompt in WORLD.prompts
            right = " ".join(f"The {t} is {' '.join(WORLD.facts[c, t])} ." for c, t in asked(prompt)).split()
            cut, none = Said(prompt, tuple(right), False), Said(prompt, (), True)
            answers += [none, Said(prompt, tuple(right), True), cut, none, none]
        return answers

    monkeypatch.setattr(shifts, "sampled", said)
    pairs = written_by(WORLD, SimpleNamespace(), 30, 1)  # pyright: ignore[reportArgumentType]
    assert len(pairs) == 5  # one of each prompt
    assert all(WORLD.right_names(*pair[:2]) == 3 for pair in pairs)
    assert all(pair.rejected == () for pair in pairs)
    monkeypatch.setattr(shifts, "sampled", lambda *_: [])
    with pytest.raises(RunError, match="it is trained too little"):
        written_by(WORLD, SimpleNamespace(), 30, 1)  # pyright: ignore[reportArgumentType]


# --- figures ---


def found(explicit: dict[str, float], seeds: int = 3, wobble: float = 0.001) -> dict[int, Found]:
    """Seeds whose implicit reward is right in 90 % everywhere, the explicit one by so much more."""
    return {
        seed: Found(
            {
                "implicit": dict.fromkeys(KINDS, 0.9),
                "explicit": {kind: 0.9 + explicit.get(kind, 0.0) + wobble * (seed - 1) for kind in KINDS},
            },
            dict.fromkeys(KINDS, 100),
            60.0,
        )
        for seed in range(seeds)
    }


def test_the_figures_by_hand() -> None:
    of = found({"questions": 0.05, "style": -0.01, "same": 0.02}, wobble=0.0)
    mean, most = under_shift(of)
    assert behind(of, "style") == pytest.approx(dict.fromkeys(range(3), -0.01))
    assert mean == pytest.approx(dict.fromkeys(range(3), 0.04 / len(SHIFTED)))
    assert most == pytest.approx(dict.fromkeys(range(3), 0.05))
    assert loss_of(of, "explicit")[0] == pytest.approx(0.02 - 0.04 / len(SHIFTED))
    assert loss_of(of, "implicit")[0] == pytest.approx(0.0)
    assert under_shift(found({"trained": 0.5}, wobble=0.0))[0] == pytest.approx(
        dict.fromkeys(range(3), 0.0)
    )  # told apart


@pytest.mark.parametrize(
    ("lead", "wobble", "verdict"), [(0.03, 0.001, "shows"), (-0.03, 0.001, "does not show"), (0.01, 0.02, "unclear")]
)
def test_what_was_found_is_what_is_said(lead: float, wobble: float, verdict: str) -> None:
    page = markdown(found(dict.fromkeys(SHIFTED, lead), wobble=wobble), Recipe())
    assert f"Verdict: **{verdict}**." in page
    assert f"here the difference is {'+' if lead > 0 else '−'}{abs(100 * lead):.1f} ±" in page
    assert page.count("| 300 |") == len(KINDS)
    assert all(said in page for said, _ in KINDS.values())


def test_the_picture_is_whole_and_its_marks_stand_where_the_figures_are() -> None:
    root = ET.fromstring(picture(found({"style": 0.06}, wobble=0.0)))
    space = "{http://www.w3.org/2000/svg}"
    texts = [node.text for node in root.iter(f"{space}text")]
    assert all(label in texts for _, label in KINDS.values())
    dots = [float(node.attrib["cx"]) for node in root.iter(f"{space}circle")][: len(KINDS)]
    squares = [float(n.attrib["x"]) + 3.6 for n in root.iter(f"{space}rect") if n.attrib["class"] == "implicit"]
    style = [*KINDS].index("style")
    assert dots[style] > max(squares[: len(KINDS)]) + 50
    assert [x for n, x in enumerate(dots) if n != style] == pytest.approx(squares[: len(KINDS) - 1], abs=0.2)


# --- the study itself ---


def test_the_study_goes_on_where_it_was_and_judges_both_rewards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some(world: Any, loaded: Any, count: int, seed: int) -> list[Compared]:
        return CROWD["same"](world, count, Random(seed))

    monkeypatch.setattr(module, "written_by", some)
    place = tmp_path / "study"
    events = list(generalisation(place, [3], TINY, processes=1))
    assert isinstance(events[-1], Note)
    assert all((place / name).exists() for name in (TABLE, FIGURES, PICTURE))
    written = Found(**json.loads(file_of(place, 3, module.compared).read_text()))
    assert set(written.right) == {"implicit", "explicit"}
    for right in written.right.values():
        assert list(right) == list(KINDS)
        assert all(0 <= share <= 1 and (6 * share) % 1 == pytest.approx(0, abs=1e-9) for share in right.values())
    before = file_of(place, 3, module.compared).stat().st_mtime_ns
    list(generalisation(place, [3], TINY, processes=1))
    assert file_of(place, 3, module.compared).stat().st_mtime_ns == before
    with pytest.raises(OutputError, match="holds another study"):
        list(generalisation(place, [3], TINY._replace(steps=3), processes=1))


def test_accuracy_is_strict_and_of_the_reward_that_is_trained(tmp_path: Path) -> None:
    """At the start the implicit reward is 0 of everything: nothing but ties, none of them right."""
    fine_tune(WORLD, tmp_path, 0, answers=64, steps=1)
    loaded = module.load(str(tmp_path), "start")
    pairs = module._encoded(CROWD["same"](WORLD, 8, rng()), loaded)
    assert module.accuracy(loaded, METHODS["dpo"](), pairs) == 0.0
    torch.manual_seed(0)
    model = module.load_reward_model(str(tmp_path))
    right = module.accuracy(model, METHODS["rm"](), pairs)
    turned = [pair._replace(completions=pair.completions[::-1]) for pair in pairs]
    assert right + module.accuracy(model, METHODS["rm"](), turned) == pytest.approx(1.0)


def test_the_command_knows_which_options_are_whose(tmp_path: Path) -> None:
    assert set(METHODS) - set(POLICIES) == {"rm", "value", "soft_value"}
    with pytest.raises(ValueError, match="--methods is read by family; generalisation has methods of its own"):
        study(["generalisation", "--output", str(tmp_path / "a"), "--methods", "dpo"])
    with pytest.raises(ValueError, match="--methods: rm trains a reward model, which answers nothing; leave it out"):
        study(["family", "--output", str(tmp_path / "a"), "--methods", "rm"])
