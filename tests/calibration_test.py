"""Reliability of σ(margin): curve and error by hand, and of labels that are drawn from it."""

from pathlib import Path

import numpy as np
import pytest
from shelves import Shelved, shelf_of

from softq.data.intervals import share
from softq.inspection.accuracy import half_ties
from softq.inspection.calibration import Bin, confidence, curve, curves, expected_error, figures, findings


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def shelved(margin: list[float], source: str = "a") -> list[Shelved]:
    return [Shelved([-1.0], [-1.0], value, source=source) for value in margin]


def drawn(count: int, scale: float = 1.0) -> np.ndarray:
    """Margins whose labels are right with probability σ(|margin|), then multiplied by `scale`."""
    rng = np.random.default_rng(0)
    size = rng.exponential(1.5, count)
    return scale * np.where(rng.random(count) < 1 / (1 + np.exp(-size)), size, -size)


EIGHT = [logit(0.6)] * 3 + [-logit(0.6)] + [logit(0.9)] * 2 + [-logit(0.9)] * 2


def test_a_curve_by_hand() -> None:
    low, high = curve(np.array(EIGHT), 2)
    assert low == pytest.approx(Bin(0.6, *share(3, 4), 4, 0.6, 0.6))
    assert high == pytest.approx(Bin(0.9, *share(2, 4), 4, 0.9, 0.9))
    (tied,) = curve(np.zeros(4))
    assert (tied.confidence, tied.right, tied.pairs) == (0.5, 0.5, 4)


def test_the_error_by_hand() -> None:
    margin = np.array(EIGHT)
    sure, right = confidence(margin), half_ties(margin)
    assert expected_error(sure, right, np.repeat([0, 1], 4)) == pytest.approx((0.15 + 0.4) / 2)
    assert expected_error(sure, right, np.zeros(8, int)) == pytest.approx(abs(0.625 - 0.75))


def test_labels_drawn_from_the_margins_lie_on_the_diagonal(tmp_path: Path) -> None:
    for scale, sign in ((1.0, 0), (3.0, 1), (0.2, -1)):
        margin = drawn(4000, scale)
        shelf = shelf_of(tmp_path / str(scale), shelved(margin.tolist()))
        found = {each.name: each for each in figures(shelf)}
        over = found["calibration/overconfidence"]
        low, high = over.interval or (0, 0)
        assert (low > 0) - (high < 0) == sign
        assert over.value == pytest.approx(float((confidence(margin) - half_ties(margin)).mean()))
        names = [(each.name, each.level) for each in findings(shelf)]
        assert (
            names
            == {
                0: [],
                1: [("calibration/too_sure", "watch")],
                -1: [("calibration/not_sure", "expected")],
            }[sign]
        )
        inside = [bin.low <= bin.confidence <= bin.high for bin in curve(margin)]
        assert sum(inside) >= 9 if sign == 0 else sum(inside) <= 5
        assert (found["calibration/error"].value < 0.03) == (sign == 0)


def test_by_source(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path, [*shelved([logit(0.8)] * 4, "b"), *shelved([logit(0.7)] * 3 + [-logit(0.7)], "a")])
    found = {each.name: each.value for each in figures(shelf)}
    assert found["calibration/error/b"] == pytest.approx(0.2)
    assert found["calibration/overconfidence/b"] == pytest.approx(-0.2)
    assert found["calibration/error/a"] == pytest.approx(0.05)
    assert found["calibration/overconfidence/a"] == pytest.approx(-0.05)
    assert [*curves(shelf)] == ["", "a", "b"]
    assert [bin.pairs for bin in curves(shelf)[""]] == [4, 4]


def test_nothing_without_beta_a_reference_or_pairs(tmp_path: Path) -> None:
    for name, asked in (("beta", {"beta": None}), ("bare", {"compared": False})):
        shelf = shelf_of(tmp_path / name, shelved([1.0, 2.0]), **asked)
        assert (figures(shelf), findings(shelf), curves(shelf)) == ([], [], {})
    nan = shelf_of(tmp_path / "nan", shelved([float("nan")]))
    assert (figures(nan), findings(nan), curves(nan)) == ([], [], {})
