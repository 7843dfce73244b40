"""Accuracy of the implicit reward: every count by hand, and what a score that only counts tokens comes to."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from shelves import Shelved, shelf_of

from softq.inspection import accuracy
from softq.inspection.accuracy import buckets, figures, findings, half_ties, implicit, matched, mean_figure, reweighted
from softq.inspection.figures import Figure


def named(found: list[Figure]) -> dict[str, Figure]:
    return {figure.name: figure for figure in found}


def pairs(margin: list[float], chosen: list[int], rejected: list[int], source: list[str] | None = None) -> pa.Table:
    columns = {"margin": margin, "chosen_tokens": chosen, "rejected_tokens": rejected}
    return pa.table({"record": range(len(margin)), "source": source or ["a"] * len(margin), **columns})


def test_a_tie_is_wrong_or_half_right_and_counted() -> None:
    found = named(implicit(pairs([2.0, 0.5, 0.0, -1.0], [3, 3, 3, 3], [3, 3, 3, 3])))
    assert found["accuracy/strict"].value == 0.5
    assert found["accuracy/half_ties"].value == 0.625
    assert found["accuracy/ties"].value == 0.25
    assert {found[f"accuracy/{name}"].of for name in ("strict", "half_ties", "ties")} == {4}


def test_intervals_are_those_of_a_share_and_never_a_point() -> None:
    right = np.arange(400) % 4 > 0
    low, high = mean_figure("x", right, "").interval or (0, 0)
    assert (low, high) == pytest.approx((0.75 - 0.0424, 0.75 + 0.0424), abs=0.006)
    low, high = mean_figure("x", np.ones(3), "").interval or (0, 0)
    assert (low, high) == pytest.approx((0.4385, 1.0), abs=1e-3)
    assert np.isnan(mean_figure("x", np.array([]), "").value)


def test_matched_lengths_differ_by_a_tenth_of_the_longer_one_at_most() -> None:
    assert matched(np.array([10, 9, 100, 8]), np.array([9, 10, 89, 10])).tolist() == [True, True, False, False]
    found = named(implicit(pairs([1.0, -1.0, 1.0, 1.0], [10, 9, 100, 8], [9, 10, 89, 10])))["accuracy/length_matched"]
    assert (found.value, found.of) == (0.5, 2)


def test_what_only_counts_tokens_is_right_half_the_time_once_reweighted() -> None:
    difference = np.array([1, 1, 1, -1, 9, 9, 9, -9, 30])
    bucket = buckets(np.abs(difference), 2)
    right = half_ties(difference.astype(float))
    assert right.mean() == pytest.approx(7 / 9)
    assert reweighted(right, difference, bucket) == pytest.approx(0.5)
    assert reweighted(1 - right, difference, bucket) == pytest.approx(0.5)
    assert reweighted(np.ones(9), difference, bucket) == 1
    assert np.isnan(reweighted(np.ones(2), np.array([1, 2]), np.array([0, 0])))


def test_reweighted_by_hand() -> None:
    right, difference = np.array([1.0, 0, 1, 0, 0, 1]), np.array([2, 2, 2, -2, 0, 5])
    expected = (4 * (2 / 3 + 0) / 2 + 0) / 5  # the lone pair of 5 tokens has no counterpart
    assert reweighted(right, difference, np.array([1, 1, 1, 1, 0, 2])) == pytest.approx(expected)


def test_buckets_are_about_equal_and_equal_values_share_one() -> None:
    assert np.bincount(buckets(np.arange(100.0))).tolist() == [20] * 5
    assert buckets(np.array([3.0, 3, 3, 3])).tolist() == [0, 0, 0, 0]
    assert buckets(np.array([5.0, 1, 9]), 3).tolist() == [1, 0, 2]


def test_by_length_margin_and_source() -> None:
    length = [*range(-5, 0), *range(1, 6)]
    margin = [-0.1, -0.2, -0.3, -0.4, -5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    table = pairs(margin, [10 + d for d in length], [10] * 10, ["b"] * 5 + ["a"] * 5)
    found = named(implicit(table))
    assert [found[f"accuracy/length/{n}"].value for n in range(1, 6)] == [0, 0, 0.5, 1, 1]
    assert "from -5 to -4 tokens" in found["accuracy/length/1"].meaning
    assert [found[f"accuracy/margin/{n}"].value for n in range(1, 6)] == [0, 0, 0.5, 1, 1]
    assert "differ by 9 to 10" in found["accuracy/margin/5"].meaning
    assert [found[f"accuracy/source/{name}"].value for name in "ab"] == [1, 0]
    assert not [name for name in named(implicit(pairs([1.0], [1], [1]))) if "source" in name]


LOGP = [
    Shelved([-1.0, -1.0, -1.0], [-2.0], 1.0),  # sum: rejected; avg: chosen; norm: √3 < 2: chosen
    Shelved([-0.1, -2.1], [-1.5, -1.5], -1.0),  # sum, avg: chosen; norm: 2.1024 < 2.1213: chosen
    Shelved([-3.0], [-1.0, -1.0], 2.0),  # none
    Shelved([-1.0], [-1.0], float("nan")),  # a tie, and a margin that is no number
]


def test_scores_without_a_reference_are_rewardbenchs(tmp_path: Path) -> None:
    found = named(figures(shelf_of(tmp_path, LOGP, compared=False)))
    assert {name: figure.value for name, figure in found.items()} == {
        "accuracy/free/sum": 0.25,
        "accuracy/free/avg": 0.5,
        "accuracy/free/norm": 0.5,
    }
    assert findings(shelf_of(tmp_path, LOGP, compared=False)) == []


def test_a_margin_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    strict = named(figures(shelf_of(tmp_path, LOGP)))["accuracy/strict"]
    assert (strict.value, strict.of) == (pytest.approx(2 / 3), 3)


def shelved(margin: np.ndarray, longer: np.ndarray) -> list[Shelved]:
    lengths = ([-1.0] * 8, [-1.0] * 4)
    return [Shelved(*(lengths if more else lengths[::-1]), value) for value, more in zip(margin, longer, strict=True)]


def test_findings_say_swapped_tied_long_and_chance(tmp_path: Path) -> None:
    n = np.arange(40)
    swapped = findings(shelf_of(tmp_path / "1", shelved(np.where(n < 30, -1.0 - n, 1.0), n % 2 == 0)))
    assert [(each.name, each.level) for each in swapped] == [("accuracy/contrary", "act")]
    assert list(swapped[0].records[:2]) == [29, 28]
    assert "25.0% (" in swapped[0].told
    tied = findings(shelf_of(tmp_path / "2", shelved(np.where(n < 30, 0.0, 1.0), n % 2 == 0)))
    assert [each.name for each in tied] == ["accuracy/tied"]
    long = findings(shelf_of(tmp_path / "3", shelved(np.where(n < 36, 1.0, -1.0), n < 36)))
    assert [(each.name, each.level) for each in long] == [("accuracy/length", "watch")]
    good = findings(shelf_of(tmp_path / "4", shelved(np.where(n % 8 == 0, -1.0, 1.0), n % 3 == 0)))
    assert good == []
    coin = findings(shelf_of(tmp_path / "5", shelved(np.where(n % 9 < 5, 1.0, -1.0), n % 2 == 0)))
    assert [(each.name, each.level) for each in coin] == [("accuracy/chance", "watch")]
    assert len(swapped[0].records) <= accuracy.WORST
