"""softq.data.gathered: rows in the order of their numbers in any form, and what is left when something stops it."""

import json
from contextlib import suppress
from pathlib import Path

import pytest

from softq.data.files import read_rows
from softq.data.gathered import Gathered
from softq.data.rows import DataError, Row

ROWS = {2: [{"a": "c"}], 0: [{"a": "x"}, {"a": "y"}], 1: [], 3: [{"a": "d"}]}
"""By their numbers, as they come."""


def names(home: Path) -> list[str]:
    return sorted(file.name for file in home.iterdir())


def stopped(out: Gathered, rows: list[dict]) -> None:
    """Rows come, and then Ctrl-C."""
    with suppress(KeyboardInterrupt), out:
        out.add(5, rows)
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["out.jsonl", "out.json.gz", "out.csv", "out.parquet"])
def test_rows_stand_in_order_and_nothing_else_is_left(name: str, tmp_path: Path) -> None:
    with Gathered(tmp_path / name) as out:
        for number, rows in ROWS.items():
            out.add(number, rows)
            assert names(tmp_path) == ["out.part.jsonl"]
        kept = [json.loads(line)["a"] for line in out.part.read_text().splitlines()]
        assert kept == ["c", "x", "y", "d"], "as they came, before the end"
        assert out.numbers == 4
    assert names(tmp_path) == [name]
    found = [row.value["a"] for row in read_rows(tmp_path / name) if isinstance(row, Row)]
    assert found == ["x", "y", "c", "d"]


def test_what_came_stays_after_an_error_and_is_not_replaced_unasked(tmp_path: Path) -> None:
    out = Gathered(tmp_path / "out.CSV")
    stopped(out, [{"a": 1}])
    assert names(tmp_path) == ["out.part.jsonl"]
    assert json.loads(out.part.read_text()) == {"a": 1}
    with pytest.raises(ValueError, match=r"out\.part\.jsonl has rows of a call that was stopped; move it away"):
        Gathered(tmp_path / "out.csv")
    with Gathered(tmp_path / "out.csv", overwrite=True) as out:
        out.add(0, [{"a": 2}])
    assert (tmp_path / "out.csv").read_text().split() == ["a", "2"]
    assert names(tmp_path) == ["out.csv"]


def test_what_the_file_can_not_hold_is_kept(tmp_path: Path) -> None:
    """A column of Parquet has one type."""
    with pytest.raises(DataError, match=r"out\.parquet: "), Gathered(tmp_path / "out.parquet") as out:
        out.add(0, [{"a": 1}, {"a": {"b": "c"}}])
    assert names(tmp_path) == ["out.part.jsonl"]
    assert len(out.part.read_text().splitlines()) == 2


def test_no_row_is_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"out\.jsonl: there is no row to write"),
        Gathered(tmp_path / "out.jsonl") as out,
    ):
        out.add(0, [])
    stopped(Gathered(tmp_path / "out.jsonl"), [])
    assert names(tmp_path) == []
