"""The command line as a person meets it: help, dry runs, and one line and an exit code for each mistake."""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from calls import called


def test_importing_softq_and_its_help_load_nothing_heavy() -> None:
    code = (
        "import sys, softq\n"
        "from softq.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "usage: softq VERB" in out
    assert out.strip().endswith("[]")


def test_the_face_of_the_package() -> None:
    import softq

    assert {"load", "score", "train", "METHODS", "Batch", "Tokens", "Method"} <= set(dir(softq))
    assert all(getattr(softq, name) is not None for name in dir(softq))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = softq.nothing  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("columns", [80, 120])
def test_methods_lists_every_method(
    columns: int, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a line of its own with its paper; no word is cut; what is coupled says so."""
    from softq.objectives import METHODS

    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = called(["methods"], capsys)
    assert code == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= columns
    starts = [next(n for n, line in enumerate(lines) if line.split()[:1] == [name]) for name in METHODS]
    assert "2305.18290" in lines[starts[0]]
    for name, start in zip(METHODS, starts, strict=True):
        method = METHODS[name]()
        block = [lines[start], *itertools.takewhile(lambda line: line.startswith("  "), lines[start + 1 :])]
        words = " ".join(block).split()
        assert set(METHODS[name].__kwdefaults__ or ()) <= {word.partition("=")[0] for word in words}, name
        assert {readout.name for readout in method.needs} <= set(words), name
        assert ("coupled" in words) == method.coupled, name
        assert method.takes.partition("+")[0] in {word.strip(",") for word in words}, name


def test_the_page_of_a_method(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = called(["methods", "kto", "--beta", "0.3"], capsys)
    assert code == 0
    for said in (
        "arXiv 2402.01306",
        "beta=0.3",
        "labels: prompt",
        "the gradient of a record depends",
        "scores/*",
    ):
        assert said in " ".join(out.split()), said
    (tmp_path / "own_page.py").write_text(
        "from softq import METHODS\n\n\ndef mine(size: float):\n    'Mine: as ipo.'\n    return METHODS['ipo'](beta=size)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, _ = called(["methods", "own_page:mine", "--size", "0.5", "--pages", str(tmp_path / "made")], capsys)
    assert code == 0
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"own_page.mine.md", "own_page.mine.svg"}
    assert "at 1 nats" in (tmp_path / "made/own_page.mine.md").read_text(encoding="utf-8")
    for words, said in (
        (["kt"], "no method 'kt'; did you mean kto?"),
        (["dpo+sft"], "dpo+sft is a sum; its summands have pages: softq methods dpo"),
        (["dpo", "--learning-rate", "1"], "--learning-rate: no setting of dpo"),
        (["dpo", "--pages", str(tmp_path / "own_page.py")], "is a file; expected a directory"),
        (["own_page:mine"], "--size is missing"),
        (["--page", "x"], "softq methods takes no '--page'"),
    ):
        code, _, err = called(["methods", *words], capsys)
        assert (code, len(err.splitlines())) == (2, 1), words
        assert said in err


def test_help_of_train_names_every_setting(capsys: pytest.CaptureFixture) -> None:
    code, out, _ = called(["train", "dpo", "--help"], capsys)
    assert code == 0
    for flag in ("--beta", "--label-smoothing", "--learning-rate", "--chat-template", "--dry-run", "--config"):
        assert flag in out


def test_yaml_is_read_flags_win_and_print_config_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("method: dpo\nmodel: m\ndata: [a.jsonl]\noutput: o\nlearning_rate: 5e-7\nbeta: 0.2\n")
    words = [
        "train",
        "--config",
        str(config),
        "--beta",
        "0.3",
        "--bf16",
        "--data",
        "b.jsonl",
        "c.jsonl",
        "--print-config",
    ]
    code, out, _ = called(words, capsys)
    assert code == 0
    shown = yaml.safe_load(out)
    assert (shown["beta"], shown["learning_rate"], shown["bf16"], shown["data"]) == (
        0.3,
        5e-7,
        True,
        ["b.jsonl", "c.jsonl"],
    )
    config.write_text(out)
    code, again, _ = called(["train", "--config", str(config), "--print-config"], capsys)
    assert again == out


def test_a_sum_on_the_command_line(capsys: pytest.CaptureFixture) -> None:
    words = [
        "train",
        "dpo+sft",
        "--weights",
        "0.8,0.2",
        "--dpo.beta=0.4",
        "--model",
        "m",
        "--data",
        "d",
        "--output",
        "o",
    ]
    code, out, _ = called([*words, "--print-config"], capsys)
    shown = yaml.safe_load(out)
    assert (code, shown["dpo.beta"], shown["weights"]) == (0, 0.4, [0.8, 0.2])


def test_a_dry_run_says_everything_and_writes_nothing(
    model_directory: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    words = [
        "train",
        "dpo",
        "--model",
        str(model_directory),
        "--data",
        str(pairs_file),
        "--output",
        str(out),
        "--dry-run",
    ]
    code, said, _ = called(words, capsys)
    assert code == 0
    assert "20 used" in said
    assert "exactly 0" in said
    assert "loss 0.6931" in said
    assert not out.exists()


def mistakes(model: Path, pairs: Path, directory: Path) -> dict[str, tuple[list[str], int, str]]:
    """Name -> (what was typed, exit code, what the one line must say)."""
    broken = directory / "broken.jsonl"
    broken.write_text('{"prompt": "x", "chosen": }\n')
    typed = directory / "typed.jsonl"
    typed.write_text(json.dumps({"prompt": "x", "chosen": "y", "rejected": 3}) + "\n")
    lost = directory / "lost.jsonl"
    lost.write_text(json.dumps({"prompt": "x", "chosen": "y"}) + "\n")
    strange = directory / "strange.jsonl"
    strange.write_text(json.dumps({"question": "x", "answer": "y"}) + "\n")
    column = directory / "column.jsonl"
    column.write_text(json.dumps({"prompt": "x", "chosen": " y", "rejected": " z", "margin": 1.0}) + "\n")
    judged = directory / "judged.jsonl"
    judged.write_text(json.dumps({"prompt": "x", "completion": " y", "label": True}) + "\n")
    chat = directory / "chat.jsonl"
    turn = [{"role": "user", "content": "x"}]
    said = {
        "prompt": turn,
        "chosen": [{"role": "assistant", "content": "y"}],
        "rejected": [{"role": "assistant", "content": "z"}],
    }
    chat.write_text(json.dumps(said) + "\n")
    full = directory / "full"
    full.mkdir()
    (full / "mine.txt").write_text("x")
    run = ["--model", str(model), "--output", str(directory / "out")]
    good = [*run, "--data", str(pairs)]
    return {
        "no verb": (["trian"], 2, "no verb 'trian'"),
        "no method": (["train", *good], 2, "which method?"),
        "unknown method": (["train", "dpoo", *good], 2, "did you mean dpo?"),
        "unknown flag": (["train", "dpo", *good, "--learning-rat", "1"], 2, "did you mean --learning-rate?"),
        "another method's flag": (["train", "ipo", *good, "--label-smoothing", "0.1"], 2, "no such setting"),
        "wrong number": (["train", "dpo", *good, "--beta", "big"], 2, "--beta: 'big' is not valid"),
        "missing value": (["train", "dpo", *good, "--beta"], 2, "--beta: expected one argument"),
        "missing output": (["train", "dpo", "--model", "m", "--data", "d"], 2, "--output is missing"),
        "no config": (["train", "dpo", *good, "--config", "none.yaml"], 2, "--config none.yaml: No such file"),
        "full output": (["train", "dpo", *good, "--output", str(full)], 2, "is not empty (it holds mine.txt)"),
        "no file": (["train", "dpo", *run, "--data", str(pairs.with_name("pair.jsonl"))], 3, "pairs.jsonl"),
        "not JSON": (["train", "dpo", *run, "--data", str(broken)], 3, "broken.jsonl:1"),
        "wrong type": (["train", "dpo", *run, "--data", str(typed)], 3, "typed.jsonl:1: field 'rejected'"),
        "missing field": (["train", "dpo", *run, "--data", str(lost), "--format", "preference"], 3, "lost.jsonl:1"),
        "unknown format": (["train", "dpo", *run, "--data", str(strange)], 3, "question, answer"),
        "unread column": (
            ["train", "ipo", *run, "--data", str(column)],
            3,
            "'margin' is known but ipo does not read it",
        ),
        "no template": (["train", "dpo", *run, "--data", str(chat)], 3, "--chat-template FILE|chatml"),
        "wrong kind": (["train", "dpo", *run, "--data", str(judged)], 2, "dpo takes pairs, the data holds labels"),
        "reference of sft": (["train", "sft", *good, "--reference", "m"], 2, "--reference: sft reads no reference"),
        "no model": (["train", "dpo", *good, "--model", str(directory / "nothing")], 2, "nothing"),
        "negative beta": (["train", "dpo", *good, "--beta=-1"], 2, "beta is -1.0; expected beta > 0"),
        "no weight": (["train", "dpo+sft", *good, "--weights", "0,0"], 2, "one of them above 0"),
        "unread lora": (["train", "dpo", *good, "--lora-r", "4"], 2, "--lora-r is read with --use-peft only"),
        "unread split": (
            ["train", "dpo", *good, "--eval-data", str(pairs), "--eval-fraction", "0.2"],
            2,
            "nothing is held out",
        ),
        "two precisions": (["train", "dpo", *good, "--bf16", "--dtype", "bfloat16"], 2, "--bf16 is autocast"),
        "nothing to verify": (["train", "dpo", *good, "--layout", "plain", "--verify-layout"], 2, "nothing to compare"),
        "unknown data format": (["train", "dpo", *good, "--format", "csv"], 2, "format 'csv' is unknown"),
        "one record": (["train", "kto", *good, "--batch-size", "1"], 2, "at least two records"),
    }


def test_each_mistake_is_one_line_with_its_exit_code(
    model_directory: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name, (words, code, said) in mistakes(model_directory, pairs_file, tmp_path).items():
        given, _, err = called(words, capsys)
        lines = [line for line in err.splitlines() if line.startswith("softq: ")]
        assert (given, len(lines)) == (code, 1), f"{name}: exit {given}, said {err!r}"
        assert said in lines[0], f"{name}: {lines[0]}"
        assert not (tmp_path / "out").exists(), name


def test_help_is_quick() -> None:
    """Far above what it takes, so that it fails only if something heavy is imported."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "softq", "--help"], capture_output=True, check=True)
    assert time.monotonic() - began < 2
