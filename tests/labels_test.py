"""What is said before training on labels: how many, how the classes weigh, and which weight would mend it."""

import json
from pathlib import Path

import pytest

from softq.training.events import Evaluated, Note, Progress
from softq.training.run import run
from softq.training.settings import Call, build


@pytest.fixture
def labels_file(tmp_path: Path) -> Path:
    """Twelve good and four bad answers."""
    rows = [{"prompt": f"Say {n}:", "completion": f" {n}", "label": n % 4 > 0} for n in range(16)]
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def said(name: str, model: Path, data: Path, output: Path, **more) -> list[str]:
    """The notes of a dry run."""
    values = {
        "model": str(model),
        "data": [str(data)],
        "output": str(output),
        "eval_fraction": 0,
        "batch_size": 4,
        **more,
    }
    settings, method, understood = build(name, values)
    events = list(run(name, settings, method, understood, Call(dry=True)))
    return [event.text for event in events if isinstance(event, Note)]


TIMES = "times as much as bad"
OUT = "outside 1 to 1.5"


@pytest.mark.parametrize(
    ("name", "more", "balance"),
    [
        ("kto", {}, f"1 of good, 1 of bad; good weigh 3 {TIMES}, {OUT}: --undesirable-weight 2.4 makes it 1.25"),
        ("kto", {"undesirable_weight": 2.4}, f"1 of good, 2.4 of bad; good weigh 1.25 {TIMES}"),
        (
            "kto",
            {"undesirable_weight": 4},
            f"1 of good, 4 of bad; good weigh 0.75 {TIMES}, {OUT}: --desirable-weight 1.67 makes it 1.25",
        ),
        ("kto", {"undesirable_weight": 2, "baseline": "running"}, f"1 of good, 2 of bad; good weigh 1.5 {TIMES}"),
        ("sft+kto", {"kto.undesirable_weight": 3}, f"1 of good, 3 of bad; good weigh 1 {TIMES}"),
        (
            "kto+sft",
            {"kto.undesirable_weight": 9},
            f"1 of good, 9 of bad; good weigh 0.333 {TIMES}, {OUT}: --kto.desirable-weight 3.75 makes it 1.25",
        ),
        ("bco", {}, None),
    ],
)
def test_labels_are_counted_and_weighed(
    name: str, more: dict, balance: str | None, model_directory: Path, labels_file: Path, tmp_path: Path
) -> None:
    notes = said(name, model_directory, labels_file, tmp_path / "out", **more)
    assert "labels: 12 good, 4 bad" in notes
    assert [note for note in notes if "weigh" in note] == ([f"class weights: {balance}"] if balance else [])
    paired = [note for note in notes if note.startswith("mismatched completions")]
    assert len(paired) == ("kto" in name)
    assert all("next record of its step, in an order drawn from --seed 42" in note for note in paired)


def test_pairs_are_as_many_good_as_bad(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    assert "labels: 20 good, 20 bad" in said("bco", model_directory, pairs_file, tmp_path / "out")
    assert not any("labels" in note for note in said("dpo", model_directory, pairs_file, tmp_path / "out"))


def test_labels_of_one_kind_are_told(model_directory: Path, tmp_path: Path) -> None:
    data = tmp_path / "good.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"Say {n}:", "completion": " 1", "label": True}) + "\n" for n in range(4))
    )
    (balance,) = (note for note in said("kto", model_directory, data, tmp_path / "out") if "class weights" in note)
    assert balance.endswith("; every label is good: there is nothing to tell apart")


@pytest.mark.parametrize("baseline", ["batch", "running", "dataset"])
def test_a_step_of_one_record_is_refused_before_training(
    baseline: str, model_directory: Path, labels_file: Path, tmp_path: Path
) -> None:
    """Sixteen records in steps of three: five of three and one of one would be six of two or three, which is right."""
    given = {"baseline": baseline}
    said("kto", model_directory, labels_file, tmp_path / "out", batch_size=3, **given)
    with pytest.raises(
        ValueError, match=r"--batch-size 1 cuts 16 record\(s\) into steps of as few as 1: .* at least two records"
    ):
        said("kto", model_directory, labels_file, tmp_path / "out", batch_size=1, **given)
    rows = labels_file.read_text().splitlines()[:3]
    labels_file.write_text("\n".join(rows) + "\n")
    with pytest.raises(ValueError, match=r"--batch-size 2 cuts 3 record\(s\) into steps of as few as 1"):
        said("kto", model_directory, labels_file, tmp_path / "out", batch_size=2, **given)


def test_a_run_logs_what_its_method_remembers(model_directory: Path, labels_file: Path, tmp_path: Path) -> None:
    values = {
        "model": str(model_directory),
        "data": [str(labels_file)],
        "output": str(tmp_path / "out"),
        "max_steps": 2,
    }
    settings, method, understood = build("kto", {**values, "baseline": "dataset", "batch_size": 4, "eval_fraction": 0})
    steps = [e.metrics for e in run("kto", settings, method, understood) if isinstance(e, Progress)]
    assert [step["kl_dataset_count"] for step in steps] == [4, 8]
    assert steps[1]["kl_dataset"] == pytest.approx((steps[0]["kl"] + steps[1]["kl"]) / 2)
    line = json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[-1])
    assert line["kl_dataset"] == steps[1]["kl_dataset"]


def test_no_row_of_a_run_is_longer_than_its_longest_record(model_directory: Path, tmp_path: Path) -> None:
    """20 tokens of prompt and 3 of answer, and 2 and 21: crosswise 20 and 21, of which 3 fit, and 2 and 3. 24 + 6 are scored."""
    data = tmp_path / "crossed.jsonl"
    rows = [{"prompt": "q" * n, "completion": "q" * (22 - n), "label": n > 9} for n in (20, 2)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": str(model_directory),
        "data": [str(data)],
        "eval_data": [str(data)],
        "output": str(tmp_path / "out"),
    }
    settings, method, understood = build("kto", {**values, "max_length": 23, "batch_size": 2, "max_steps": 1})
    events = list(run("kto", settings, method, understood))
    assert [event.metrics["num_tokens"] for event in events if isinstance(event, Progress)] == [30]
    assert [event.metrics["eval_num_tokens"] for event in events if isinstance(event, Evaluated)] == [30]
