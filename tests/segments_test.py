"""Sentences, lines and steps, and the reward of each."""

import itertools

import numpy as np
import pytest

from softq.inspection.credit import Actions
from softq.inspection.segments import _by_record, segments

TEXT = ["Two", " plus", " two", ".", " It", " is", " 4", ".5", "!", "\n", "\n", "2", ")", " Done", "<end>"]


def of(*completions: list[str]) -> Actions:
    """Completions of one record each, the rewards 1, 2, 4, … so that each sum tells its tokens; all ended."""
    row = np.repeat(np.arange(len(completions)), [len(each) for each in completions])
    end = np.concatenate([np.arange(len(each)) == len(each) - 1 for each in completions])
    reward = np.concatenate([2.0 ** np.arange(len(each)) for each in completions])
    text = [piece for each in completions for piece in each]
    return Actions(row + 7, np.zeros_like(row), row, np.zeros(len(row), dtype=bool), end, reward, text)


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("sentence", ["Two plus two.", " It is 4.5!\n\n", "2) Done<end>"]),
        ("line", ["Two plus two. It is 4.5!\n\n", "2) Done<end>"]),
        ("step", ["Two plus two. It is 4.5!\n\n", "2) Done<end>"]),
    ],
)
def test_cuts(by: str, expected: list[str]) -> None:
    found = segments(of(TEXT), by)
    assert found.text == expected
    assert found.tokens.sum() == len(TEXT)
    bounds = np.cumsum([0, *found.tokens])
    assert found.reward.tolist() == [2.0**b - 2.0**a for a, b in itertools.pairwise(bounds)]


def test_a_step_is_no_line_and_completions_do_not_run_together() -> None:
    found = segments(of(["a", "\n", "b", "\n- ", "c", "<end>"], ["d", ".", "<end>"]), "step")
    assert found.text == ["a\nb", "\n- c<end>", "d.<end>"]
    assert found.record.tolist() == [7, 7, 8]
    assert segments(of(["a", "\n", "b", "<end>"]), "step").text == ["a\nb<end>"]
    assert segments(of(["<end>"], ["", "。", "x", "<end>"]), "sentence").text == ["<end>", "。", "x<end>"]


@pytest.mark.parametrize("by", ["sentence", "line", "step"])
def test_white_space_before_a_completion_is_no_segment(by: str) -> None:
    assert segments(of(["\n", "\n", "1", ".", "\n", "\n", "2", "<end>"]), by).text == ["\n\n1.\n\n", "2<end>"]


def test_a_cut_that_is_none_is_told() -> None:
    with pytest.raises(ValueError, match="by='word' is no way to cut a completion: give one of sentence, line, step"):
        segments(of(["a"]), "word")


def test_a_record_has_the_means_of_its_completions() -> None:
    two = of(["a", "\n", "b", "<end>"], ["c", "\n", "d", "\n", "e", "<end>"], ["f", "<end>"])
    found = segments(two._replace(record=np.zeros_like(two.record)), "line")
    # Lines of 1 + 2 and 4 + 8; of 3, 12 and 48; of one line, which has no largest.
    assert list(_by_record(found)) == [(pytest.approx(6 / 3), pytest.approx((12 / 15 + 48 / 63) / 2))]
