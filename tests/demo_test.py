"""The demo: its measures by hand, and the whole tour on a small scale."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from softq.inspection.localisation import figures
from softq.inspection.shelf import Shelf
from softq.reading.run import scored
from softq.reading.tables import Asked
from softq.studies import demo as study
from softq.studies.credit import Answer, localised
from softq.studies.demo import Result, demo, examples
from softq.training.events import OutputError
from softq.worlds.world import Injected


def answer(prompt: str, span: tuple[int, int], wrong: int, reward: list[float], before: list[float]) -> Answer:
    words = tuple("abcdefgh"[: len(reward) - 1])
    return Answer(
        (prompt,),
        Injected(words, span, wrong, ("x", "y")),
        reward,
        before,
        [r + b for r, b in zip(reward, before, strict=True)],
    )


def test_localised_by_hand() -> None:
    """Two answers of three tokens. By reward both lowest tokens are hits; by log-prob before, one of them is."""
    answers = [
        answer("p", (0, 1), 1, [0.0, -2.0, 1.0], [-1.0, -0.5, -0.1]),
        answer("q", (0, 1), 0, [0.5, -0.5, 0.7], [-0.2, -0.3, -0.9]),
    ]
    found = localised(answers)
    assert found["localisation_top1"] == 1
    assert found["control_top1"] == 0.5
    # First wrong words score -2.0 and 0.5, the others 0.0, 1.0, -0.5, 0.7: 4 and 2 of 4 are above them.
    assert found["localisation_auc"] == pytest.approx(6 / 8)
    # Before: -0.5 and -0.2 against -1.0, -0.1, -0.3, -0.9: 2 and 1 of 4 above.
    assert found["control_auc"] == pytest.approx(3 / 8)


def test_examples_are_the_first_to_different_questions() -> None:
    first, again, other = (answer(p, (0, 1), 0, [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]) for p in ("p", "p", "q"))
    assert [id(a) for a in examples([first, again, other])] == [id(first), id(other)]


def test_the_whole_tour_on_a_small_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "demo"
    for pairs in (20, 60):  # a rerun replaces its own files
        small = {"DEMONSTRATIONS": 200, "PAIRS": pairs, "STEPS": pairs // 10, "INJECTED": 10, "SAMPLES": 1}
        for name, value in small.items():
            monkeypatch.setattr(study, name, value)
        *_, result = demo(out, 3)
    assert isinstance(result, Result)
    found = json.loads((out / "demo.json").read_text())
    keys = {"seconds", "accuracy_before", "accuracy_after", "localisation_top1", "localisation_auc", "control_top1"}
    assert {*keys, "control_auc", "pairs", "finished"} <= set(found)
    assert found["finished"]
    assert all(0 <= found[key] <= 1 for key in found if key.endswith(("top1", "auc")) or "accuracy" in key)
    assert (out / "answers.svg").read_text().startswith("<svg")
    assert len((out / "pairs.jsonl").read_text().splitlines()) == 60
    assert _read_again(out) == pytest.approx([found["localisation_auc"], found["control_auc"]], abs=2e-3)
    for name in ("sft", "dpo"):
        assert AutoModelForCausalLM.from_pretrained(out / name).config.hidden_size == 64


def _read_again(out: Path) -> list[float]:
    """AUC by reward and by the reference, of the pairs that the demo leaves, by `softq score` and what is measured on it."""
    for _ in scored(Asked(str(out / "dpo"), (str(out / "injected.jsonl"),), out / "scores")):
        pass
    found = {figure.name: figure for figure in figures(Shelf(out / "scores"))}
    assert found["localisation/reward/auc"].of == 10
    return [found[f"localisation/{name}/auc"].value for name in ("reward", "ref_logp")]


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="no earlier demo's"):
        next(demo(tmp_path, 0))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
