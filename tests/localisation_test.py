"""Where errors are: edits of a right answer, and whether the lowest token is one of theirs, by hand."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from softq.data.store import write_json
from softq.inspection.columns import schema
from softq.inspection.localisation import Errors, above, edited, edits, figures, findings, hits, lower
from softq.inspection.shelf import FACTS, Shelf, put

RIGHT = [1, 2, 3, 4, 5, 6, 7, 8]
WRONG = [1, 2, 9, 4, 5, 6, 9, 8]  # two errors


def test_the_share_above_is_the_area_under_the_curve() -> None:
    assert above(np.array([1.0]), np.array([2.0, 3.0])) == [1]
    assert above(np.array([4.0]), np.array([2.0, 3.0])) == [0]
    assert above(np.array([2.0, 5.0]), np.array([3.0, 2.0])) == pytest.approx([(0.5 + 1) / 2, 0])


def test_top1_and_auc_by_hand() -> None:
    of = Errors(
        row=np.array([0, 0, 0, 1, 1]),
        wrong=np.array([False, True, True, True, False]),
        first=np.array([False, True, False, True, False]),
    )
    values = np.array([0.0, 2.0, -1.0, 0.5, -0.5])
    assert hits(values, of).tolist() == [True, False]
    assert hits(-values, of).tolist() == [True, True]
    assert hits(np.zeros(5), of).tolist() == [False, True]  # of equal ones the first
    assert lower(values, of) == pytest.approx([0, 0])  # the others: 0, -1, -0.5
    assert lower(-values, of) == pytest.approx([1, 1])


def test_what_is_an_edit() -> None:
    def by(rejected: list[int]) -> list[bool] | None:
        found = edited(np.array(RIGHT), np.array(rejected))
        return None if found is None else found.tolist()

    assert by(WRONG) == [False, False, True, False, False, False, True, False]
    assert by([*RIGHT, 9]) == [False] * 8 + [True]
    assert by([2, 1, *RIGHT[2:]]) == [False, True] + [False] * 6  # the same tokens in another order
    assert by([9, 9, 9, *RIGHT[3:]]) is None  # more than a quarter
    assert by(RIGHT[:-2]) is None  # nothing of it is wrong


def shelf(directory: Path, pairs: list[tuple[list[int], list[float]]], many: int = 1) -> Shelf:
    """RIGHT against each, with rewards, `many` times over; log π is as good as chance, log π_ref the opposite of reward."""
    rows = []
    for n, (ids, rewards) in enumerate(pairs * many):
        for k, (said, reward) in enumerate(((RIGHT, [0.0] * 8), (ids, rewards))):
            rows += [
                {"record": n, "completion": k, "position": t, "token": token, "reward": r, "ref_logp": -r, "logp": -1.0}
                for t, (token, r) in enumerate(zip(said, reward, strict=True))
            ]
    names = schema("tokens", True).names
    put(directory, "tokens", 0, {name: [row.get(name) for row in rows] for name in names}, compared=True)
    facts = {
        "format": "softq scores 1",
        "finished": True,
        "kind": "pairs",
        "reference": "r",
        "parts": 1,
        "unit": "nats",
    }
    write_json(directory / FACTS, facts)
    return Shelf(directory)


PAIRS = [
    (WRONG, [0.1, 0.2, -0.5, 0.3, 0.4, 0.5, -0.1, 0.6]),
    ([9] * 8, [-9.0] * 8),  # no edit: left out
    ([*RIGHT[:7], 9], [-1.0, *[0.7] * 6, -0.6]),
]


def test_figures_of_pairs_by_hand(tmp_path: Path) -> None:
    of = shelf(tmp_path, PAIRS)
    read = edits(of.table("tokens"))
    assert read.record.tolist() == [0, 2]
    assert read.errors.row.tolist() == [0] * 8 + [1] * 8
    assert np.flatnonzero(read.errors.first).tolist() == [2, 6, 15]
    found = {figure.name.removeprefix("localisation/"): figure for figure in figures(of)}
    assert found["reward/top1"].value == pytest.approx(1 / 2)
    # Of the 13 others only -1.0 is below the three errors.
    assert found["reward/auc"][1:4] == (pytest.approx(12 / 13), "", 3)
    assert found["ref_logp/auc"].value == pytest.approx(1 / 13)
    assert found["logp/auc"].value == pytest.approx(1 / 2)
    assert found["chance"].value == pytest.approx((2 / 8 + 1 / 8) / 2)
    assert findings(of) == []  # of three errors nothing is told


def test_what_is_told(tmp_path: Path) -> None:
    (found,) = findings(shelf(tmp_path / "knows", PAIRS, 10))
    assert (found.level, found.act) == ("expected", "")
    assert "in 30 errors of 20 rejected completions" in found.told
    assert "on a wrong token in 50% (lowest log-prob of the reference: 0%, chance: 19%); AUC 0.92" in found.told
    assert list(found.records) == list(range(2, 30, 3))
    turned = [(ids, [-reward for reward in rewards]) for ids, rewards in PAIRS]
    (found,) = findings(shelf(tmp_path / "not", turned, 10))
    assert (found.level, found.name) == ("expected", "localisation")
    assert "do not read single tokens as blame" in found.act


def test_data_without_edits_has_no_figures(tmp_path: Path) -> None:
    assert figures(shelf(tmp_path, PAIRS[1:2])) == []


def test_a_table_of_nothing() -> None:
    empty = pa.table({field.name: pa.array([], field.type) for field in schema("tokens", True)})
    assert len(edits(empty).record) == 0
