"""Batches: what data becomes for each method, and which records a step draws."""

import numpy as np
import pytest

from softq.data.encode import Completion, Encoded
from softq.objectives import METHODS
from softq.training.source import batch_of, batches, conversion, drawn, steps_of


def completion(prompt: list[int], answer: list[int]) -> Completion:
    ids = np.array(prompt + answer)
    return Completion(ids, np.arange(1, len(ids)) >= len(prompt), True)


PAIRS = [
    Encoded("a:1", (completion([5, 6], [7, 2]), completion([5, 6], [8, 8, 2])), None, {"weight": 2.0}),
    Encoded("a:2", (completion([9], [4, 2]), completion([9], [3, 2])), None, {"weight": 0.5}),
]
GROUPS = [Encoded("g:1", tuple(completion([5], [n, 2]) for n in (3, 4, 7)), (0.1, 0.9, -1.0), {})]


def test_pairs() -> None:
    batch = batch_of(PAIRS, [11, 4], METHODS["dpo"]())
    assert batch.tokens.ids.tolist() == [[5, 6, 7, 2, 0], [5, 6, 8, 8, 2], [9, 4, 2, 0, 0], [9, 3, 2, 0, 0]]
    assert batch.tokens.action.int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert batch.tokens.prompt.tolist() == [11, 11, 4, 4]
    assert (batch.pairs.chosen.tolist(), batch.pairs.rejected.tolist()) == ([0, 2], [1, 3])
    assert batch.columns["weight"].tolist() == [2.0, 0.5]


def test_pairs_as_demonstrations_and_as_labels() -> None:
    sft = batch_of(PAIRS, [0, 1], METHODS["sft"]())
    assert sft.tokens.ids.tolist() == [[5, 6, 7, 2], [9, 4, 2, 0]]
    assert sft.feedback is None
    kto = batch_of(PAIRS, [0, 1], METHODS["kto"]())
    assert kto.labels.good.tolist() == [True, False, True, False]
    assert kto.labels.mismatched.tolist() == [4, 5, 6, 7]
    # A record's prompt with the completions of the next: 5 6 | 4 2, 5 6 | 3 2, 9 | 7 2, 9 | 8 8 2.
    assert kto.tokens.ids[4:].tolist() == [[5, 6, 4, 2, 0], [5, 6, 3, 2, 0], [9, 7, 2, 0, 0], [9, 8, 8, 2, 0]]
    assert kto.tokens.action[4:].int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert kto.tokens.prompt.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_groups_and_their_best_as_a_demonstration() -> None:
    batch = batch_of(GROUPS, [3], METHODS["infonca"]())
    assert batch.columns["reward"].tolist() == pytest.approx([0.1, 0.9, -1.0])
    assert batch.tokens.prompt.tolist() == [3, 3, 3]
    assert batch_of(GROUPS, [3], METHODS["sft"]()).tokens.ids.tolist() == [[5, 4, 2]]


def test_what_can_not_serve_a_method_is_refused_and_what_is_converted_is_said() -> None:
    assert conversion("pairs", METHODS["dpo"]()) is None
    assert "good" in (conversion("pairs", METHODS["kto"]()) or "")
    with pytest.raises(ValueError, match=r"dpo takes pairs, the data holds groups: give rows with `prompt`, `chosen`"):
        conversion("groups", METHODS["dpo"](), "dpo")
    with pytest.raises(ValueError, match="infonca takes groups"):
        conversion("pairs", METHODS["infonca"](), "infonca")


def test_each_epoch_draws_every_record_once_in_steps_of_like_size() -> None:
    steps = [drawn(33, 16, 7, step) for step in range(steps_of(33, 16, 2))]
    assert [len(step) for step in steps] == [11] * 6
    for epoch in (steps[:3], steps[3:]):
        assert sorted(n for step in epoch for n in step) == list(range(33))
    assert steps[0] != steps[3]
    assert steps == [drawn(33, 16, 7, step) for step in range(6)]
    assert steps[0] != drawn(33, 16, 8, 0)
    assert [len(drawn(10, 4, 0, step)) for step in range(3)] == [4, 3, 3]


def test_the_source_yields_what_is_drawn() -> None:
    source = batches(PAIRS * 3, METHODS["dpo"](), batch_size=4, epochs=1.5, seed=1)
    seen = [batch.tokens.prompt.unique().tolist() for batch in source(None)]  # pyright: ignore[reportArgumentType]
    assert seen == [sorted(drawn(6, 4, 1, step)) for step in range(3)]
