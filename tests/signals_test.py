"""Ctrl-C and SIGTERM: the first lets a run finish its step and save, the second ends it at once; --resume goes on."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from calls import called

from softq.cli.main import main
from softq.cli.signals import asked
from softq.training import checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from kill_resume import ended, started

INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.fixture
def earlier() -> Iterator[list[int]]:
    """Handlers that were there before, which note their signals."""
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in (INT, TERM)}
    yield came
    for number, handler in before.items():
        signal.signal(number, handler)


def test_before_anybody_asks_the_earlier_handlers_act(earlier: list[int]) -> None:
    with asked() as stop:
        signal.raise_signal(TERM)
        signal.raise_signal(INT)
        assert earlier == [TERM, INT]
        assert stop() == 0
        assert stop() == 0


@pytest.mark.parametrize(("first", "second"), [(INT, INT), (TERM, TERM), (INT, TERM), (TERM, INT)])
def test_the_first_is_noted_and_the_second_obeyed(earlier: list[int], first: int, second: int) -> None:
    with asked() as stop:
        assert stop() == 0
        signal.raise_signal(first)
        assert earlier == []
        assert (stop(), stop()) == (first, first)
        signal.raise_signal(second)
        assert earlier == [second]
        assert stop() == first


def test_handlers_are_put_back(earlier: list[int]) -> None:
    def fails() -> None:
        with asked() as stop:
            stop()
            raise RuntimeError

    handlers = [signal.getsignal(number) for number in (INT, TERM)]
    for call in (fails, fails):
        with pytest.raises(RuntimeError):
            call()
        assert [signal.getsignal(number) for number in (INT, TERM)] == handlers
    signal.raise_signal(INT)
    assert earlier == [INT]


def test_a_second_ctrl_c_is_pythons_own() -> None:
    before = signal.signal(INT, signal.default_int_handler)
    try:
        with asked() as stop:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(INT)
            stop()
            signal.raise_signal(INT)
            assert stop() == INT
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(INT)
    finally:
        signal.signal(INT, before)


def words_of(model: Path, data: Path, output: Path) -> list[str]:
    words = ["train", "dpo", "--model", str(model), "--data", str(data), "--output", str(output), "--batch-size", "4"]
    words += ["--learning-rate", "3e-3", "--eval-fraction", "0.2", "--eval-steps", "7", "--max-steps", "60"]
    return [*words, "--num-train-epochs", "99", "--save-every", "0", "--logging-steps", "1000"]


@pytest.fixture(scope="module")
def whole(model_directory: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nobody stopped."""
    output = tmp_path_factory.mktemp("whole") / "run"
    with pytest.raises(SystemExit) as end:
        main(words_of(model_directory, pairs_file, output))
    assert not end.value.code
    return output


def sent(words: list[str], log: Path, number: int, when: Callable[[], bool]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process that gets a signal: a fork of this one, with Ctrl-C as in a fresh one."""
    process = started(words, log, partial(signal.signal, INT, signal.default_int_handler))
    late = time.monotonic() + 60
    while time.monotonic() < late and not when():
        time.sleep(0.002)
    os.kill(process, number)
    return ended(process), log.read_text(), Path(f"{log}.err").read_text()


@pytest.mark.parametrize(("number", "code"), [(TERM, 143), (INT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_run_that_is_stopped_says_so_and_goes_on(
    number: int,
    code: int,
    whole: Path,
    model_directory: Path,
    pairs_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    output = tmp_path / "run"
    words, metrics = words_of(model_directory, pairs_file, output), output / "metrics.jsonl"
    ended_with, out, err = sent(
        words, tmp_path / "log", number, lambda: metrics.exists() and metrics.read_text().count("\n") >= 3
    )
    assert (ended_with, err) == (code, "")
    (step,) = checkpoint.steps(output)
    assert 3 <= step < 60
    assert checkpoint.damaged(checkpoint.at(output, step)) is None
    assert out.splitlines()[-1] == f"stopped after step {step}, saved; the same command with --resume goes on"
    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["finished"], manifest["stopped"]) == (False, {"step": step, "signal": number})
    assert not (output / "model.safetensors").exists()
    lines = (whole / "metrics.jsonl").read_text()
    assert lines.startswith(metrics.read_text())
    assert called([*words, "--resume"], capsys)[0] == 0
    assert metrics.read_text() == lines
    assert (output / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["finished"]
    assert "stopped" not in manifest
