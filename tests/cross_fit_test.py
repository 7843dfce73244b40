"""softq score --cross-fit: what judges a label never saw its prompt; labels that were swapped are found."""

import json
from pathlib import Path

import numpy as np
import pytest
from calls import called

from softq.data.encode import Completion, Encoded
from softq.inspection import noise
from softq.inspection.shelf import Shelf
from softq.reading import cross_fit as reading
from softq.reading.cross_fit import Fold, folds_of
from softq.reading.run import scored
from softq.reading.tables import Asked
from softq.training.events import Note, OutputError
from softq.training.run import run
from softq.training.settings import build

FIT = ("beta=0.2", "learning_rate=1e-2", "num_train_epochs=2", "batch_size=4")


def trained(model: Path, file: Path, out: Path) -> Path:
    values = {"model": str(model), "data": [str(file)], "output": str(out), "eval_fraction": 0.0, "max_length": 2048}
    given = {name: value for name, _, value in (each.partition("=") for each in FIT)}
    for _ in run("dpo", *build("dpo", {**values, **given})):
        pass
    return out


def told(asked: Asked) -> str:
    return "\n".join(event.text for event in scored(asked) if isinstance(event, Note))


def asked(model: Path, file: Path, output: Path, folds: int = 2, fit: tuple[str, ...] = FIT, **more) -> Asked:
    return Asked(str(model), (str(file),), output, reference=str(model), cross_fit=folds, fit=fit, **more)


def test_folds_keep_prompts_together_and_are_even() -> None:
    def pair(prompt: int, said: int) -> Encoded:
        ids, action = np.array([prompt, 7, said]), np.array([False, True])
        return Encoded("", (Completion(ids, action, True), Completion(np.array([prompt, 7, said + 1]), action, True)))

    prompts = [n % 10 for n in range(40)] + [99] * 5
    records = [pair(prompt, n) for n, prompt in enumerate(prompts)]
    fold = folds_of(records, 3, seed=0)
    assert all(len({int(fold[n]) for n in range(45) if prompts[n] == prompt}) == 1 for prompt in prompts)
    assert sorted(np.bincount(fold).tolist()) in ([12, 16, 17], [13, 16, 16])
    assert fold.tolist() == folds_of(records, 3, seed=0).tolist() != folds_of(records, 3, seed=1).tolist()
    with pytest.raises(ValueError, match="--cross-fit 12: the data has 11 different prompts"):
        folds_of(records, 12, seed=0)


def test_margins_are_those_of_softq_train_on_the_other_folds(
    model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    told(asked(model_directory, pairs_file, tmp_path / "out", folds=2))
    table = Shelf(tmp_path / "out").table("noise")
    fold, margin = table["fold"].to_numpy(), table["margin"].to_numpy()
    assert table["record"].to_pylist() == list(range(20))
    rows = pairs_file.read_text().splitlines()
    for k in (0, 1):
        others = tmp_path / f"others{k}.jsonl"
        others.write_text("".join(row + "\n" for n, row in enumerate(rows) if fold[n] != k))
        policy = trained(model_directory, others, tmp_path / f"trained{k}")
        told(Asked(str(policy), (str(pairs_file),), tmp_path / f"scores{k}"))
        expected = Shelf(tmp_path / f"scores{k}").table("pairs")["margin"].to_numpy()
        assert margin[fold == k] == pytest.approx(expected[fold == k], abs=1e-5)
        assert np.abs(margin[fold == k]).min() > 1e-3


def test_swapped_labels_are_found(model_directory: Path, tmp_path: Path) -> None:
    swapped, rows = {3, 11, 24, 30, 41, 58}, []
    for n in range(60):
        good, bad = f" the cat sat {n % 7}", f" a dog ran {n % 5}"
        chosen, rejected = (bad, good) if n in swapped else (good, bad)
        rows.append({"prompt": f"Say {n}:", "chosen": chosen, "rejected": rejected})
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told(asked(model_directory, file, tmp_path / "out", folds=3))
    shelf = Shelf(tmp_path / "out")
    finding = noise.findings(shelf)[0]
    assert (finding.name, set(finding.records)) == ("noise/suspected", swapped)
    rate = noise.facts(shelf)
    assert rate is not None
    assert rate["rate"] == pytest.approx(0.1, abs=0.02)
    worst = noise.ranked(shelf)["where"].to_pylist()[:6]
    assert {int(where.rpartition(":")[2]) - 1 for where in worst} == swapped


def test_a_fold_that_is_done_is_not_trained_again(
    model_directory: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, other = (asked(model_directory, pairs_file, tmp_path / name) for name in ("whole", "other"))
    told(whole)
    events = scored(other)
    next(event for event in events if isinstance(event, Fold))
    events.close()
    assert noise.facts(Shelf(tmp_path / "other")) is None
    seen = []
    real = reading.trained
    monkeypatch.setattr(reading, "trained", lambda *given: seen.append(1) or real(*given))
    told(other)
    assert len(seen) == 1
    tables = [Shelf(tmp_path / name).table("noise") for name in ("whole", "other")]
    assert tables[0].equals(tables[1])
    assert "labels were cross-fitted before" in told(other)
    assert len(seen) == 1
    with pytest.raises(OutputError, match="holds a cross-fit of other folds; give another directory, or --overwrite"):
        told(whole._replace(cross_fit=3))
    told(whole._replace(cross_fit=3, overwrite=True))
    assert set(Shelf(tmp_path / "whole").table("noise")["fold"].to_pylist()) == {0, 1, 2}


def test_the_settings_are_those_of_the_policys_own_run(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    policy = trained(model_directory, pairs_file, tmp_path / "policy")
    events = Asked(str(policy), (str(pairs_file),), tmp_path / "out", cross_fit=2, fit=("max_steps=1",))
    assert f"cross-fit: 2 trainings of dpo from {model_directory}: beta 0.2, learning_rate 0.01" in told(events)
    said = noise.facts(Shelf(tmp_path / "out"))
    assert said is not None
    assert (said["beta"], said["start"]["model"]) == (0.2, str(model_directory))
    settings = said["settings"]
    assert (settings["learning_rate"], settings["batch_size"], settings["max_steps"]) == (0.01, 4, 1)


@pytest.mark.parametrize(
    ("given", "told_so"),
    [
        ({"folds": 1}, "--cross-fit 1: expected at least 2 folds"),
        ({"folds": 0}, "--fit beta=0.2: read with --cross-fit only"),
        ({"fit": ("output=x",)}, "--fit output=x: expected NAME=VALUE, NAME one of beta, learning_rate"),
        ({"fit": ("beta",)}, "--fit beta: expected NAME=VALUE"),
        ({"fit": ("learning_rate=fast",)}, "--learning-rate: 'fast' is not valid"),
        ({"folds": 21}, "--cross-fit 21: the data has 20 different prompts"),
    ],
)
def test_what_can_not_be_is_said_before_anything_is_scored(
    given: dict, told_so: str, model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=told_so):
        told(asked(model_directory, pairs_file, tmp_path / "out", **given))
    assert not (tmp_path / "out").exists()


def test_labels_are_not_cross_fitted(model_directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text('{"prompt": "Say", "completion": " aa", "label": true}\n')
    with pytest.raises(ValueError, match="--cross-fit reads pairs, and the data holds labels"):
        told(asked(model_directory, file, tmp_path / "out"))


def test_by_the_command_line(
    model_directory: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, model = tmp_path / "out", str(model_directory)
    words = ["score", "--policy", model, "--reference", model, "--data", str(pairs_file), "--output", str(out)]
    code, said, wrote = called([*words, "--cross-fit", "2", "--fit", "max_steps=1", "learning_rate=1e-3"], capsys)
    assert (code, f"written to {out}" in said, "fold 2 of 2: " in wrote) == (0, True, True)
