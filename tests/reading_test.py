"""softq score: tables that hold what training logs, made once, whole or not at all, by one process or several."""

import json
import math
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from calls import called
from transformers import AutoModelForCausalLM, AutoTokenizer

import softq
from softq.inspection.shelf import Shelf, place
from softq.reading import score as scoring
from softq.reading.run import Asked, Part, scored
from softq.training.events import Note, OutputError
from softq.training.run import run
from softq.training.settings import Call, build


@pytest.fixture(scope="module")
def trained(model_directory: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of ours after a few steps of dpo."""
    out = tmp_path_factory.mktemp("trained") / "out"
    values = {"model": str(model_directory), "data": [str(pairs_file)], "output": str(out), "beta": 0.2}
    settings, method, understood = build("dpo", {**values, "max_steps": 3, "learning_rate": 1e-2, "batch_size": 4})
    for _ in run("dpo", settings, method, understood, Call()):
        pass
    return out


def told(asked: Asked) -> str:
    return "\n".join(event.text for event in scored(asked) if isinstance(event, Note))


def test_the_tables_hold_what_training_logs(
    trained: Path, model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    said = told(Asked(str(trained), (str(pairs_file),), tmp_path / "out"))
    assert f"reference {model_directory}, as {trained} was trained with" in said
    assert "β = 0.2" in said
    shelf = Shelf(tmp_path / "out")
    pairs, tokens = shelf.table("pairs"), shelf.table("tokens")
    loaded = softq.load(str(trained), str(model_directory))
    data = softq.read(pairs_file, loaded.tokenizer, max_length=2048)
    dpo = softq.METHODS["dpo"](beta=0.2)
    batch = softq.training.source.batch_of(list(data.records), range(len(data.records)), dpo)
    with torch.no_grad():
        whole = softq.score(loaded.models, batch.tokens, dpo.needs)
    ratio = 0.2 * (whole["logp"] - whole["ref_logp"])
    rewards = ratio.sum(-1).tolist()
    assert pairs["chosen_reward"].to_pylist() == pytest.approx(rewards[::2], abs=1e-5)
    assert pairs["rejected_reward"].to_pylist() == pytest.approx(rewards[1::2], abs=1e-5)
    assert tokens["reward"].to_pylist() == pytest.approx(ratio[batch.tokens.action].tolist(), abs=1e-5)
    assert pairs["where"].to_pylist() == [record.where for record in data.records]
    assert max(map(abs, rewards)) > 1e-3


def test_texts_are_the_files(trained: Path, pairs_file: Path, tmp_path: Path) -> None:
    told(Asked(str(trained), (str(pairs_file),), tmp_path / "out"))
    rows = [json.loads(line) for line in Path(pairs_file).read_text().splitlines()]
    for row, pair in zip(rows, Shelf(tmp_path / "out").table("pairs").to_pylist(), strict=True):
        assert (pair["prompt"], pair["chosen_text"]) == (row["prompt"], row["chosen"])
        assert pair["rejected_text"] == row["rejected"]


def test_a_scoring_that_was_stopped_goes_on_to_the_same_tables(
    trained: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "PART", 3)
    monkeypatch.setattr("softq.reading.run.PART", 3)
    whole, other = (Asked(str(trained), (str(pairs_file),), tmp_path / name) for name in ("whole", "other"))
    parts = sum(isinstance(event, Part) for event in scored(whole))
    assert parts > 2
    events = scored(other)
    for event in events:
        if isinstance(event, Part):
            break
    events.close()
    with pytest.raises(ValueError, match="not finished; run the same softq score again"):
        Shelf(tmp_path / "other")
    assert "1 of" in told(other)
    for table in ("pairs", "tokens"):
        for n in range(parts):
            files = [place(tmp_path / name, table, n) for name in ("whole", "other")]
            assert pq.read_table(files[0]).equals(pq.read_table(files[1]))


def test_scores_of_something_else_are_not_mixed(trained: Path, pairs_file: Path, tmp_path: Path) -> None:
    told(Asked(str(trained), (str(pairs_file),), tmp_path / "out"))
    with pytest.raises(OutputError, match=r"holds scores of another beta \(0.2, now 0.5\)"):
        told(Asked(str(trained), (str(pairs_file),), tmp_path / "out", beta=0.5))
    told(Asked(str(trained), (str(pairs_file),), tmp_path / "out", beta=0.5, overwrite=True))
    assert Shelf(tmp_path / "out").facts["beta"] == 0.5
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty, and softq score did not write what is there"):
        told(Asked(str(trained), (str(pairs_file),), tmp_path / "mine"))


def test_a_reference_that_changed_since_is_refused(
    trained: Path, model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    moved, policy = tmp_path / "moved", tmp_path / "policy"
    shutil.copytree(model_directory, moved)
    shutil.copytree(trained, policy)
    manifest = json.loads((policy / "manifest.json").read_text())
    manifest["settings"]["model"] = str(moved)
    (policy / "manifest.json").write_text(json.dumps(manifest))
    told(Asked(str(policy), (str(pairs_file),), tmp_path / "same"))
    model = AutoModelForCausalLM.from_pretrained(moved)
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    model.save_pretrained(moved)
    with pytest.raises(ValueError, match="has changed since the policy was trained with it"):
        told(Asked(str(policy), (str(pairs_file),), tmp_path / "out"))
    told(Asked(str(policy), (str(pairs_file),), tmp_path / "given", reference=str(moved)))


def test_a_foreign_policy_is_compared_with_nothing_unless_told(
    model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(model_directory, foreign)
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps({**config, "_name_or_path": "their/sft"}))
    said = told(Asked(str(foreign), (str(pairs_file),), tmp_path / "out"))
    assert "no reference: what compares with one is left out" in said
    assert "give --reference their/sft if that is what it was trained from" in said
    assert "rewards are in nats" in said
    shelf = Shelf(tmp_path / "out")
    assert not shelf.compared
    assert "margin" not in shelf.table("pairs").column_names
    assert AutoTokenizer.from_pretrained(foreign).eos_token == "<eos>"


def test_a_uniform_reference_has_no_states_to_compare(trained: Path, pairs_file: Path, tmp_path: Path) -> None:
    told(Asked(str(trained), (str(pairs_file),), tmp_path / "out", reference="uniform"))
    pairs = Shelf(tmp_path / "out").table("pairs")
    assert pairs["ches"].null_count == pairs.num_rows
    tokens, vocabulary = pairs["chosen_tokens"].to_pylist(), AutoTokenizer.from_pretrained(trained)
    expected = [-count * math.log(len(vocabulary)) for count in tokens]
    assert pairs["chosen_ref_logp"].to_pylist() == pytest.approx(expected, rel=1e-6)


def test_labels_are_rows_with_their_score(trained: Path, tmp_path: Path) -> None:
    lines = [{"prompt": "Say", "completion": f" {word}", "label": word == "aa"} for word in ("aa", "bb")]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told(Asked(str(trained), (str(tmp_path / "labels.jsonl"),), tmp_path / "out"))
    shelf = Shelf(tmp_path / "out")
    assert shelf.kind == "rows"
    assert shelf.table("rows")["score"].to_pylist() == [1.0, 0.0]
    assert shelf.table("rows")["text"].to_pylist() == [" aa", " bb"]


def test_dropped_rows_are_in_the_ledger(trained: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "", "rejected": "c"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told(Asked(str(trained), (str(tmp_path / "pairs.jsonl"),), tmp_path / "out"))
    ledger = pq.read_table(tmp_path / "out" / "ledger.parquet").to_pylist()
    assert [(line["row"], line["record"], line["reason"]) for line in ledger] == [
        (1, 0, None),
        (2, None, "empty_completion"),
    ]


def test_by_the_command_line(trained: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    words = ["score", "--policy", str(trained), "--data", str(pairs_file), "--output", str(out)]
    code, said, _ = called(words, capsys)
    assert (code, f"written to {out}" in said) == (0, True)
    code, _, wrong = called([*words[:-1], str(pairs_file)], capsys)
    assert (code, wrong.count("\n")) == (2, 1)
    assert "is a file; give a directory" in wrong


@pytest.mark.parametrize(
    ("given", "told_so"),
    [
        ({"beta": float("nan")}, "--beta nan: expected a number above 0"),
        ({"max_length": 0}, "--max-length 0: expected at least 2"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    given: dict, told_so: str, trained: Path, pairs_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=told_so):
        told(Asked(str(trained), (str(pairs_file),), tmp_path / "out", **given))
    assert not (tmp_path / "out").exists()
