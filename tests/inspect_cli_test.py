"""softq inspect: scores and runs become a page, a text or JSON; runs are scored once; mistakes are one line."""

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from calls import called, snapshot
from scored import scored

from softq.data.store import write_json
from softq.inspection.figures import bootstrapped
from softq.inspection.shelf import Shelf
from softq.reading import held_out
from softq.training.run import run
from softq.training.settings import Call, build

EVIL = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are tested elsewhere."""
    monkeypatch.setattr(bootstrapped, "__kwdefaults__", {"seed": 0, "draws": 20})


@pytest.fixture(scope="module")
def trained(model_directory: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of dpo that held out six of its twenty pairs, with checkpoints at steps 1 and 2 of 3."""
    out = tmp_path_factory.mktemp("trained") / "out"
    values = {"model": str(model_directory), "data": [str(pairs_file)], "output": str(out), "beta": 0.2}
    values |= {"max_steps": 3, "learning_rate": 1e-2, "batch_size": 4, "eval_fraction": 0.3, "save_every": 1, "keep": 3}
    settings, method, understood = build("dpo", values)
    for _ in run("dpo", settings, method, understood, Call()):
        pass
    return out


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """Two scored pairs; a token of the first is HTML."""
    pairs = [
        ([(EVIL, -0.5, -1.0), ("\u202e b", -1.0, -1.0)], [("c", -1.0, -2.0)]),
        ([("d", -0.5, -1.0)], [("e", -3.0, -1.0)]),
    ]
    return scored(tmp_path / "scores", pairs).directory


def test_a_run_is_scored_on_what_it_held_out_and_once(
    trained: Path, pairs_file: Path, capsys: pytest.CaptureFixture
) -> None:
    code, said, told = called(["inspect", str(trained), "--json"], capsys)
    assert code == 0, told
    assert "scoring 6 of 6 held-out records" in told
    of = json.loads(said)
    metrics = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in metrics if "eval_loss" in line][-1]
    columns = of["pairs"]["columns"]
    mean = {name: sum(columns[name]) / 6 for name in ("chosen_reward", "rejected_reward", "margin")}
    assert mean["chosen_reward"] == pytest.approx(last["eval_rewards/chosen"], abs=2e-4)
    assert mean["margin"] == pytest.approx(last["eval_rewards/margins"], abs=2e-4)
    assert all(where.startswith(f"{pairs_file}:") for where in columns["where"])
    assert of["facts"]["beta"] == 0.2
    assert of["method"]["name"] == "dpo"
    assert ["train: learning_rate", "0.01"] in of["settings"]
    curves = {(curve["title"], line["name"]): line["points"] for curve in of["curves"] for line in curve["lines"]}
    assert curves["Margin", "margin"] == [
        [line["step"], pytest.approx(line["rewards/margins"], rel=1e-5)] for line in metrics if "loss" in line
    ]
    trend = curves["Margin, by checkpoint", "margin"]
    assert [step for step, _ in trend] == [1, 2, 3]
    assert trend[-1][1] == pytest.approx(mean["margin"], abs=1e-4)
    assert trend[0][1] != pytest.approx(mean["margin"], abs=1e-4)
    before = snapshot(trained / "inspect")
    code, again, told = called(["inspect", str(trained), "--json"], capsys)
    assert (code, again) == (0, said)
    assert "scored before" in told
    assert snapshot(trained / "inspect") == before


def test_what_is_newer_than_its_scores_is_scored_again(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out, "MOST", 3)
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("inspect", "report.html"))
    assert called(["inspect", str(copy), "--json"], capsys)[0] == 0
    assert Shelf(copy / "inspect").facts["records"] == 3
    assert Shelf(copy / "inspect" / "checkpoints" / "step-00000001").facts["records"] == 3
    os.utime(copy / "manifest.json", (2e9, 2e9))
    code, _, told = called(["inspect", str(copy), "--json"], capsys)
    assert code == 0
    assert "scoring 3 of 6 held-out records" in told


def test_scores_without_a_run_have_the_curve_along_completions_alone(
    shelf: Path, capsys: pytest.CaptureFixture
) -> None:
    code, said, _ = called(["inspect", str(shelf), "--json"], capsys)
    of = json.loads(said)
    (along,) = of["curves"]
    assert (code, along["from"], along["x"], of["method"]) == (0, "the scores", "per cent of the completion", None)
    assert {line["name"]: line["points"] for line in along["lines"]} == {
        "chosen": [[5, 0.5], [55, 0]],  # the means of .5 and .5, and of 0
        "rejected": [[5, -0.5]],  # of 1 and -2
    }
    assert "blocks" not in of
    assert of["pairs"]["columns"]["margin"] == [-0.25, 1.25]


def test_scores_that_were_changed_by_hand_are_bad_data(shelf: Path, capsys: pytest.CaptureFixture) -> None:
    facts = json.loads((shelf / "score.json").read_text())
    del facts["ledger"]
    write_json(shelf / "score.json", facts)
    code, said, told = called(["inspect", str(shelf), "--json"], capsys)
    assert (code, said) == (3, "")
    assert "score.json has no 'ledger', so it was changed: score again" in told


def test_the_curves_of_another_library_s_run(shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    policy = tmp_path / "theirs" / "checkpoint-5"
    policy.mkdir(parents=True)
    write_json(policy / "trainer_state.json", {"log_history": [{"step": 5, "rewards/chosen": 0.5}]})
    facts = json.loads((shelf / "score.json").read_text())
    write_json(shelf / "score.json", {**facts, "policy": {"model": str(policy.parent), "fingerprint": "p"}})
    curves = json.loads(called(["inspect", str(shelf), "--json"], capsys)[1])["curves"]
    assert [(curve["title"], curve["from"]) for curve in curves] == [
        ("Reward", "trainer_state.json"),
        ("Displacement: Δ log π against the reference", "trainer_state.json"),
        ("Δ log π of a token, by its place in the completion", "the scores"),
    ]


def test_a_page_is_written_whole_and_holds_data_as_text(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code, said, _ = called(["inspect", str(shelf)], capsys)
    assert (code, said) == (0, f"written to {shelf / 'report.html'}\n")
    page = (shelf / "report.html").read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")
    assert EVIL not in page
    code, said, _ = called(["inspect", str(shelf), "--output", str(tmp_path / "there.html")], capsys)
    assert (code, (tmp_path / "there.html").read_text(encoding="utf-8") == page) == (0, True)
    assert [path.name for path in shelf.iterdir() if path.name.startswith(".")] == []


def test_json_to_a_file(shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code, said, _ = called(["inspect", str(shelf), "--json", "--output", str(tmp_path / "x.json")], capsys)
    assert (code, said) == (0, f"written to {tmp_path / 'x.json'}\n")
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["facts"]["records"] == 2


def test_the_text_says_the_verdict_and_the_most_wrong_pair(
    shelf: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    code, said, _ = called(["inspect", str(shelf), "--text"], capsys)
    assert code == 0
    assert "\x1b" not in said
    assert "policy against sft on pairs.jsonl" in said
    assert "50.0%" in said
    assert said.index("some/pairs.jsonl:1  margin -0.25") < said.index("some/pairs.jsonl:2  margin 1.25")
    assert f"chosen {EVIL}\\u202e b\n" in said  # 0.25 is less than half of the largest, 1
    assert "rejected c[+0.5]\n" in said
    assert "e[-1]" in said


def test_two_policies_beside_each_other(shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = tmp_path / "other"
    shutil.copytree(shelf, other)
    code, said, _ = called(["inspect", str(shelf), "--compare", str(other), "--json"], capsys)
    of = json.loads(said)
    assert code == 0
    assert of["other"]["pairs"]["columns"]["margin"] == of["pairs"]["columns"]["margin"]
    assert "blocks" not in of["other"]
    facts = json.loads((other / "score.json").read_text())
    write_json(other / "score.json", {**facts, "content": "else"})
    pairs = pq.read_table(other / "pairs" / "00000.parquet")
    pq.write_table(pairs.set_column(1, "where", [["else.jsonl:1", "else.jsonl:2"]]), other / "pairs" / "00000.parquet")
    code, _, told = called(["inspect", str(shelf), "--compare", str(other)], capsys)
    assert (code, told.count("\n")) == (2, 1)
    assert "have no pairs in common" in told


def test_mistakes_are_one_line(
    shelf: Path, trained: Path, model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(shelf, unfinished)
    facts = json.loads((shelf / "score.json").read_text())
    write_json(unfinished / "score.json", {**facts, "finished": False})
    nothing = tmp_path / "nothing"
    shutil.copytree(trained, nothing, ignore=shutil.ignore_patterns("inspect"))
    manifest = json.loads((nothing / "manifest.json").read_text())
    stopped = tmp_path / "stopped"
    shutil.copytree(nothing, stopped)
    write_json(stopped / "manifest.json", {**manifest, "finished": False})
    moved = tmp_path / "moved"
    shutil.copytree(nothing, moved)
    write_json(moved / "manifest.json", {**manifest, "data": {**manifest["data"], "content": ["then"]}})
    gone = tmp_path / "gone"
    shutil.copytree(nothing, gone)
    write_json(gone / "manifest.json", {**manifest, "settings": {**manifest["settings"], "data": ["gone.jsonl"]}})
    write_json(nothing / "manifest.json", {**manifest, "data": {**manifest["data"], "held_out": 0}})
    for words, code, expected in [
        ([tmp_path / "no"], 2, "no such directory; give the output of softq score"),
        ([tmp_path], 2, "holds neither a score.json nor a manifest.json"),
        ([model_directory], 2, "is a model, not scores of one: softq score --policy"),
        ([unfinished], 2, "its scoring is not finished; run the same softq score again"),
        ([nothing], 2, "held no records out, so there is nothing to read it on; softq score --policy"),
        ([stopped], 2, "is not finished (stopped); softq train … --resume"),
        ([moved], 2, "is not what it was trained on any more"),
        ([gone], 3, "gone.jsonl"),
        ([gone], 3, "run softq inspect in the directory where softq train ran"),
        ([shelf, "--text", "--json"], 2, "not allowed with"),
        ([shelf, "--text", "--output", "x"], 2, "leave out --output"),
        ([shelf, "--output", tmp_path], 2, "is a directory; give a file"),
        ([shelf, "--output", tmp_path / "no" / "x.html"], 2, "there is no directory"),
    ]:
        got, said, told = called(["inspect", *map(str, words)], capsys)
        assert (got, said) == (code, ""), told
        assert told.count("\n") == 1, told
        assert expected in told


def test_a_pipe_or_a_device_is_not_replaced(shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    os.mkfifo(tmp_path / "pipe")
    code, _, told = called(["inspect", str(shelf), "--output", str(tmp_path / "pipe")], capsys)
    assert (code, (tmp_path / "pipe").is_fifo()) == (2, True)
    assert "no file; give a file" in told


@pytest.mark.parametrize("name", ["score.json", "pairs/00000.parquet", "tokens/00000.parquet"])
def test_damaged_scores_are_bad_data_in_one_line(name: str, shelf: Path, capsys: pytest.CaptureFixture) -> None:
    text = (shelf / name).read_bytes()
    for damage in (b"", b"[]", text[: len(text) // 2], b"\xff" * 99):
        (shelf / name).write_bytes(damage)
        code, said, told = called(["inspect", str(shelf)], capsys)
        assert (code, said, told.count("\n")) == (3, "", 1), told
        assert f"{shelf / name} is" in told
    assert not (shelf / "report.html").exists()


def test_a_part_that_was_removed_is_scored_again(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("inspect"))
    code, said, _ = called(["inspect", str(copy), "--json"], capsys)
    (copy / "inspect" / "tokens" / "00000.parquet").unlink()
    again = called(["inspect", str(copy), "--json"], capsys)
    assert (code, again[:2]) == (0, (0, said))
    assert "6 of 6 records scored" in again[2]


def test_a_damaged_checkpoint_is_passed_over_aloud(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("inspect"))
    (copy / "checkpoints" / "step-00000001" / "model.safetensors").write_bytes(b"junk")
    code, said, told = called(["inspect", str(copy), "--json"], capsys)
    assert code == 0, told
    assert "step-00000001 is passed over: model.safetensors is not what was written" in told
    trend = next(curve for curve in json.loads(said)["curves"] if curve["title"] == "Margin, by checkpoint")
    assert [step for step, _ in trend["lines"][0]["points"]] == [2, 3]
