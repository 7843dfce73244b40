"""softq train, as a person calls it: files of other libraries, options of a call, sweeps, and what comes of them."""

import json
from pathlib import Path

import pytest
import yaml
from calls import called

from softq.cli.show import Show
from softq.training.events import Progress
from softq.training.json_schema import json_schema


@pytest.fixture
def trl_file(model_directory: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    document = {
        "model_name_or_path": str(model_directory),
        "dataset_name": str(pairs_file),
        "output_dir": str(tmp_path / "out"),
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [0.8, 0.2],
        "beta": 0.3,
        "learning_rate": "5e-4",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "tensorboard",
        "logging_steps": 1,
        "dataloader_num_workers": 4,
        "neftune_noise_alpha": 5,
        "push_to_hub": True,
        "hub_model_id": "me/tuned",
    }
    path = tmp_path / "trl.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_config_of_trl_is_migrated_and_run(
    trl_file: Path, model_directory: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code, printed, _ = called(["train", "--from-trl", str(trl_file), "--print-config"], capsys)
    assert code == 0
    notes = [line for line in printed.splitlines() if line.startswith("#")]
    assert any("neftune_noise_alpha" in line for line in notes)
    assert any("dataloader_num_workers" in line for line in notes)
    assert "# not taken from the file: give --push-to-hub me/tuned" in notes
    ours = yaml.safe_load(printed)
    assert (ours["method"], ours["weights"], ours["dpo.beta"]) == ("dpo+sft", [0.8, 0.2], 0.3)
    assert (ours["batch_size"], ours["max_steps"], ours["learning_rate"]) == (4, 3, 5e-4)
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(json_schema()).validate(ours)
    (tmp_path / "run.yaml").write_text(printed)
    code, said, error = called(["train", "--config", "run.yaml", "--output", "printed"], capsys)
    assert (code, error) == (0, "")
    code, said, error = called(["train", "--from-trl", str(trl_file)], capsys)
    assert (code, error) == (0, "")
    assert "neftune_noise_alpha" in said
    assert [f"step {n}/3" in said for n in (1, 2, 3)] == [True] * 3  # logging_steps: 1
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == (tmp_path / "printed" / "metrics.jsonl").read_text()
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 3
    assert list((tmp_path / "out" / "tensorboard").rglob("events.out.tfevents.*"))
    assert not (tmp_path / "printed" / "tensorboard").exists()


def test_samples_seeds_resume_and_schema(
    model_directory: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["train", "dpo", "--model", str(model_directory), "--data", str(pairs_file), "--max-steps", "2"]
    words += ["--batch-size", "4", "--eval-fraction", "0.2", "--output", str(tmp_path / "sweep")]
    code, said, error = called([*words, "--seeds", "0,1", "--samples", "1"], capsys)
    assert (code, error) == (0, "")
    figures = json.loads((tmp_path / "sweep" / "seeds.json").read_text())
    each = {}
    for seed in (0, 1):
        output = tmp_path / "sweep" / f"seed-{seed}"
        each[seed] = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])["eval_loss"]
        (sample,) = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
        assert (sample["step"], set(sample)) == (
            2,
            {"step", "prompt", "completion", "ended", "tokens", "logp", "reward"},
        )
        assert repr(sample["completion"][:200]) in said
    assert str(figures).count(str(each[0])) == 1
    assert "95 %" in said
    code, said, error = called([*words, "--seeds", "0-2", "--resume"], capsys)
    assert (code, error) == (0, "")
    assert said.count("finished already, passed over") == 2
    for wrong, message in {
        "--resume --overwrite": "--resume goes on with a run: leave out --overwrite",
        "--resume --dry-run": "--resume goes on with a run: leave out --dry-run",
        "--seeds 1,1": "--seeds:",
        "--report-to paper": "--report-to paper: no such tracker",
        "--config a.yaml --from-trl b.yaml": "--config and --from-trl: give one of them",
        "--samples many": "argument --samples: 'many' is not a count",
    }.items():
        code, _, error = called([*words, *wrong.split()], capsys)
        assert (code, error.count("\n")) == (2, 1)
        assert message in error
    code, said, _ = called(["train", "--json-schema"], capsys)
    assert json.loads(said) == json_schema()


def test_a_dry_run_writes_nothing_and_estimates(
    model_directory: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["train", "dpo", "--model", str(model_directory), "--data", str(pairs_file), "--batch-size", "4"]
    code, said, _ = called([*words, "--output", str(tmp_path / "out"), "--dry-run"], capsys)
    assert code == 0
    assert "estimate: " in said
    assert " for 5 steps, " in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--shard", "--shard: there is one process to share among"),
        ("--samples 2 --eval-fraction 0", "--samples 2: nothing is held out to answer"),
        ("--best loss", "--best loss: expected a metric of the evaluation"),
        ("--dtype nf4", "--dtype nf4: 4-bit weights can not be trained themselves; add --use-peft"),
        ("--reference-every 5", "--reference-every is read with --reference-mixup only"),
        ("--reference-mixup 0.5 --cache-reference", "--cache-reference: a reference that moves can not be kept"),
        ("--verify-layout --layout plain", "--verify-layout compares a layout with plain"),
    ],
)
def test_what_can_not_be_is_one_line(
    more: str, message: str, model_directory: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["train", "dpo", "--model", str(model_directory), "--data", str(pairs_file)]
    code, _, error = called([*words, "--output", str(tmp_path / "out"), *more.split()], capsys)
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith(f"softq: {message}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("tdpo2", "tdpo2 reads kl_from_ref of the reference, and --cache-reference keeps its log-probs alone"),
        ("kto", "kto scores completions under each other's prompts, another pairing each step"),
        ("sft", "--cache-reference: sft reads no reference; leave it out"),
    ],
)
def test_what_a_cache_can_not_serve_is_refused(
    method: str, message: str, model_directory: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["train", method, "--model", str(model_directory), "--data", str(pairs_file), "--cache-reference"]
    code, _, error = called([*words, "--output", str(tmp_path / "out")], capsys)
    assert code == 2
    assert error.startswith(f"softq: {message}")


def test_a_file_without_an_output_names_none(
    model_directory: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["train", "dpo", "--model", str(model_directory), "--data", str(pairs_file), "--print-config"]
    code, printed, _ = called(words, capsys)
    assert (code, "output" in yaml.safe_load(printed)) == (0, False)
    (tmp_path / "run.yaml").write_text(printed)
    code, _, error = called(["train", "--config", str(tmp_path / "run.yaml")], capsys)
    assert (code, error) == (2, "softq: --output is missing\n")


def test_a_tracker_that_is_not_installed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said, error = called("train dpo --model m --data d --output o --report-to trackio".split(), capsys)
    assert (code, said) == (2, "")
    assert error == "softq: --report-to trackio: trackio is not installed; pip install 'softq[trackio]'\n"


def test_the_time_left_goes_by_the_steps_of_this_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed after step 1,000 of 2,000, two seconds a step."""
    clock = iter(range(0, 10_000, 2))
    monkeypatch.setattr("softq.cli.show.time.monotonic", lambda: now[0])
    now, said = [0.0], []
    shown = Show(10)
    monkeypatch.setattr(shown, "say", said.append)
    events = []
    for step in range(1001, 1051):
        events.append(Progress(step, 2000, {"loss": 1.0}))

    def ticking():
        for event in events:
            now[0] = float(next(clock))
            yield event

    shown.all(ticking())
    assert said[-1].endswith("  1900 s left")
