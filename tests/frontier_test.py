"""The study of two composed values: its figures, what it says of them, its picture, and a tiny run of it."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from softq.studies import frontier as module
from softq.studies.by_seed import file_of
from softq.studies.frontier import FIGURES, PICTURE, SCORES, TABLE, Recipe, frontier, levels
from softq.studies.frontier_plot import picture
from softq.studies.frontier_text import Place, document, gained, markdown, over_seeds, undominated
from softq.training.events import OutputError
from softq.worlds.guidebook import guidebook

WORLD = guidebook(0)
TINY = Recipe(
    demonstrations=64,
    fine_tuning=2,
    samples=2,
    batch=4,
    steps_of_names=2,
    steps_of_brevity=1,
    levels_of_names=2,
    levels_of_brevity=2,
    answers=1,
    top_k=3,
)


def found(wobble: float = 0.01) -> dict[int, list[Place]]:
    """Two weights of each: names gain 0.5 of names alone, brevity 20 letters, and together each costs some of the other."""
    names = {(0, 0): 1.5, (0, 2): 1.4, (4, 0): 2.0, (4, 2): 1.8, (8, 0): 1.9, (8, 2): 1.5}
    letters = dict(zip(names, (110.0, 90.0, 112.0, 94.0, 115.0, 95.0), strict=True))
    return {
        seed: [
            Place(float(one), float(other), right + wobble * seed, letters[one, other], 0.1 * one)
            for (one, other), right in names.items()
        ]
        for seed in range(3)
    }


def test_the_rewards_by_hand() -> None:
    prompt = WORLD.prompts[0]
    answer = WORLD.demonstration(prompt, Random(1))
    assert SCORES["names"](WORLD, prompt, answer) == pytest.approx(WORLD.right_names(prompt, answer))
    assert SCORES["brevity"](WORLD, prompt, ("Its", "dish", ".")) == pytest.approx(10 - 1.0)
    assert levels(8.0, 4) == [0.0, 2.0, 4.0, 8.0]


def test_what_nothing_beats_is_the_frontier() -> None:
    assert undominated(found()) == [(4.0, 0.0), (4.0, 2.0), (0.0, 2.0)]
    assert over_seeds(found())[4.0, 2.0]["names"].mean == pytest.approx(1.81)
    assert gained(found(), (4.0, 0.0), (0.0, 0.0), "names").mean == pytest.approx(0.5)
    assert gained(found(), (4.0, 2.0), (4.0, 0.0), "letters").mean == pytest.approx(-18.0)


def test_what_was_found_is_what_is_said() -> None:
    page = markdown(found(), Recipe(), 60.0)
    assert "By 4 nats a name: +0.50 ±0.00 right names of three (shows), by 8: +0.40 ±0.00." in page
    assert "By 2 nats for ten letters: −20.0 ±0.0 letters (shows)." in page
    assert "brevity at 2 moves the right names by −0.20 ±0.00 (a loss: shows)" in page
    assert "at the weights (4, 0), (4, 2), (0, 2)." in page
    assert page.count("| yes |") == 3
    assert json.loads(document(found(), Recipe()))["frontier"] == [[4.0, 0.0], [4.0, 2.0], [0.0, 2.0]]


def test_the_picture_is_whole_and_better_is_up_and_to_the_right() -> None:
    root = ET.fromstring(picture(found()))
    dots = {}
    for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
        told = circle.find("{http://www.w3.org/2000/svg}title")
        if told is not None and told.text:
            dots[told.text.split(":")[0]] = float(circle.attrib["cx"]), float(circle.attrib["cy"])
    assert len(dots) == 6
    free, names, short = (dots[f"{a} nats a name, {b} for ten letters"] for a, b in ((0, 0), (4, 0), (0, 2)))
    assert names[1] < free[1] < short[1]
    assert names[0] < free[0] < short[0]


def test_the_study_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(WORLD, prompts=WORLD.prompts[:5], held_out=WORLD.held_out[:3])
    monkeypatch.setattr(module, "guidebook", lambda seed: small)
    monkeypatch.setattr(module, "LONGEST", 8)
    place = tmp_path / "study"
    list(frontier(place, [3], TINY, processes=1))
    assert all((place / name).exists() for name in (TABLE, FIGURES, PICTURE))
    written = json.loads(file_of(place, 3, module.weighed).read_text())
    weights = [(one["names_weight"], one["brevity_weight"]) for one in written["places"]]
    assert weights == [(0, 0), (0, 16), (8, 0), (8, 16)]
    assert written["places"][0]["kl"] == pytest.approx(0, abs=1e-5)
    assert len({one["letters"] for one in written["places"]}) > 1
    before = file_of(place, 3, module.weighed).stat().st_mtime_ns
    list(frontier(place, [3], TINY, processes=1))
    assert file_of(place, 3, module.weighed).stat().st_mtime_ns == before
    with pytest.raises(OutputError, match="holds another study"):
        list(frontier(place, [3], TINY._replace(answers=2), processes=1))
