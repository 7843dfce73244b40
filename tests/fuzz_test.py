"""A little of bench/fuzz_data.py: hostile rows in every kind of file, and every fault of a whole file on the command line."""

import sys
from pathlib import Path

import pytest
from cli_test import called

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
from fuzz_data import CONTROLS, fuzz
from hostile_files import cases, faults


def test_nothing_is_lost_and_nothing_breaks() -> None:
    found = fuzz(300, seed=1)
    assert not found.violations, "\n".join(found.violations)
    assert sum(total.rows for total in found.kinds.values()) > 250
    assert all(total.used[False] or total.dropped[False] for total in found.kinds.values())


def test_a_seed_gives_the_same_files() -> None:
    one, other = ([case.content(case.lines) for case in cases(90, seed=2)] for _ in range(2))
    assert one == other


@pytest.mark.parametrize("fault", faults())
def test_a_file_that_is_wrong_as_a_whole(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    name, content = faults()[fault]
    (tmp_path / name).write_bytes(content)
    code, _, said = called(["data", str(tmp_path / name), "--json"], capsys)
    assert code == 3
    assert said.startswith(f"softq: {tmp_path / name}" if fault != "all rows dropped" else "softq: all 3 rows")
    assert said.endswith("\n")
    assert not CONTROLS.search(said[:-1])
