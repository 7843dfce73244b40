"""Batches: what data becomes for each method, and which records a step draws."""

from collections import Counter

import numpy as np
import pytest
import torch

from softq.data.encode import Completion, Encoded
from softq.data.store import Records, Store
from softq.objectives import METHODS
from softq.training.source import Order, batch_of, batches, conversion, usable


def completion(prompt: list[int], answer: list[int], ended: bool = True) -> Completion:
    ids = np.array(prompt + answer)
    return Completion(ids, np.arange(1, len(ids)) >= len(prompt), ended)


PAIRS = [
    Encoded("a:1", (completion([5, 6], [7, 2]), completion([5, 6], [8, 8], False)), {"weight": (2.0,)}),
    Encoded("a:2", (completion([9], [4, 2]), completion([9], [3, 2])), {"weight": (0.5,)}),
]
GROUPS = [Encoded("g:1", tuple(completion([5], [n, 2]) for n in (3, 4, 7)), {"reward": (0.1, 0.9, -1.0)})]
LABELS = [
    Encoded("l:1", (completion([5, 6], [7, 2]),), {"label": (1.0,)}),
    Encoded("l:2", (completion([9], [8, 8, 2]),), {"label": (0.0,)}),
    Encoded("l:3", (completion([4], [3, 2]),), {"label": (1.0,)}),
]


def stored(directory, records) -> Records:
    with Store(directory / "data") as store:
        for record in records:
            store.add(record)
        store.finish({})
    return Records(directory / "data")


# What data becomes


def test_pairs() -> None:
    batch = batch_of(PAIRS, [11, 4], METHODS["dpo"]())
    assert batch.tokens.ids.tolist() == [[5, 6, 7, 2], [5, 6, 8, 8], [9, 4, 2, 0], [9, 3, 2, 0]]
    assert batch.tokens.action.int().tolist() == [[0, 1, 1], [0, 1, 1], [1, 1, 0], [1, 1, 0]]
    assert batch.tokens.ended.tolist() == [True, False, True, True]
    assert batch.tokens.prompt.tolist() == [11, 11, 4, 4]
    assert (batch.pairs.chosen.tolist(), batch.pairs.rejected.tolist()) == ([0, 2], [1, 3])
    assert {name: column.tolist() for name, column in batch.columns.items()} == {"weight": [2.0, 0.5]}


def test_pairs_as_demonstrations_and_as_labels() -> None:
    sft = batch_of(PAIRS, [0, 1], METHODS["sft"]())
    assert sft.tokens.ids.tolist() == [[5, 6, 7, 2], [9, 4, 2, 0]]
    assert (sft.feedback, sft.columns) == (None, {})
    kto = batch_of(PAIRS, [0, 1], METHODS["kto"]())
    assert kto.labels.good.tolist() == [True, False, True, False]
    assert kto.labels.mismatched.tolist() == [4, 5, 6, 7]
    # A record's prompt with the completions of the next: 5 6 | 4 2, 5 6 | 3 2, 9 | 7 2, 9 | 8 8.
    assert kto.tokens.ids[4:].tolist() == [[5, 6, 4, 2], [5, 6, 3, 2], [9, 7, 2, 0], [9, 8, 8, 0]]
    assert kto.tokens.action[4:].int().tolist() == [[0, 1, 1], [0, 1, 1], [1, 1, 0], [1, 1, 0]]
    assert kto.tokens.ended.tolist() == [True, False, True, True, True, True, True, False]
    assert kto.tokens.prompt.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_labels_of_single_completions() -> None:
    batch = batch_of(LABELS, [7, 8, 9], METHODS["kto"]())
    assert batch.labels.row.tolist() == [0, 1, 2]
    assert batch.labels.good.tolist() == [True, False, True]
    assert batch.labels.mismatched.tolist() == [3, 4, 5]
    assert batch.tokens.ids.tolist() == [
        [5, 6, 7, 2, 0], [9, 8, 8, 2, 0], [4, 3, 2, 0, 0],
        [5, 6, 8, 8, 2], [9, 3, 2, 0, 0], [4, 7, 2, 0, 0],
    ]  # fmt: skip
    assert batch.tokens.action.int().tolist() == [
        [0, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0],
        [0, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0],
    ]  # fmt: skip
    assert batch.tokens.prompt.tolist() == [7, 8, 9, 7, 8, 9]
    alone = batch_of(LABELS[1:2], [3], METHODS["kto"]())  # nothing to mismatch it with
    assert (alone.labels.good.tolist(), alone.labels.mismatched.tolist(), len(alone.tokens.ids)) == ([False], [], 1)


def test_a_completion_under_another_prompt_is_no_longer_than_the_data() -> None:
    """5 6 | 8 8 2 would be five tokens, where no record has more than four: a model may have no place for them."""
    whole, cut = (batch_of(LABELS, [7, 8, 9], METHODS["kto"](), max_length=n) for n in (5, 4))
    assert cut.tokens.ids.tolist() == [row[:4] for row in whole.tokens.ids.tolist()]
    assert cut.tokens.action.sum(-1).tolist() == [2, 3, 2, 2, 2, 2]
    assert whole.tokens.action.sum(-1).tolist() == [2, 3, 2, 3, 2, 2]
    assert (cut.tokens.ended.tolist(), whole.tokens.ended.tolist()) == ([True] * 3 + [False, True, True], [True] * 6)
    assert cut.labels.mismatched.tolist() == [3, 4, 5]
    (drawn,) = batches(LABELS, METHODS["kto"](), batch_size=3, max_length=4)(None)  # pyright: ignore[reportArgumentType]
    assert drawn.tokens.ids.shape[1] == 4


def test_groups_and_their_best_as_a_demonstration() -> None:
    batch = batch_of(GROUPS, [3], METHODS["infonca"]())
    assert batch.columns["reward"].tolist() == pytest.approx([0.1, 0.9, -1.0])
    assert batch.tokens.prompt.tolist() == [3, 3, 3]
    sft = batch_of(GROUPS, [3], METHODS["sft"]())
    assert (sft.tokens.ids.tolist(), sft.columns) == ([[5, 4, 2]], {})


def test_stored_log_probs_stand_at_the_first_action() -> None:
    sums = [(-3.1, -4.2), (-1.0, -2.5)]
    records = [pair._replace(columns={"ref_logps": said}) for pair, said in zip(PAIRS, sums, strict=True)]
    batch = batch_of(records, [0, 1], METHODS["dpo"]())
    expected = torch.tensor([[0, -3.1, 0], [0, -4.2, 0], [-1.0, 0, 0], [-2.5, 0, 0]], dtype=torch.float64)
    assert batch.columns["ref_logp"].dtype == torch.float64
    assert batch.columns["ref_logp"].equal(expected)
    assert set(batch.columns) == {"ref_logp"}
    group = GROUPS[0]._replace(columns={**GROUPS[0].columns, "ref_logps": (-1.0, -2.0, -3.0)})
    assert batch_of([group], [0], METHODS["infonca"]()).columns["ref_logp"].tolist() == [[-1, 0], [-2, 0], [-3, 0]]
    assert batch_of([group], [0], METHODS["sft"]()).columns["ref_logp"].tolist() == [[-2, 0]]  # of the best


def test_rows_know_their_source() -> None:
    def from_two(records, first=3, second=0):
        return [record._replace(source=source) for record, source in zip(records, (first, second, 1), strict=False)]

    def sources(records, method):
        return batch_of(records, list(range(len(records))), METHODS[method]()).columns["source"].tolist()

    assert sources(from_two(PAIRS), "dpo") == [3, 3, 0, 0]
    assert sources(from_two(PAIRS), "sft") == [3, 0]
    assert sources(from_two(PAIRS), "kto") == [3, 3, 0, 0, 0, 0, 3, 3]  # a mismatched row is the completion's
    assert sources(from_two(LABELS), "kto") == [3, 0, 1, 0, 1, 3]
    assert sources(from_two(GROUPS), "infonca") == [3, 3, 3]
    assert "source" not in batch_of(PAIRS, [0, 1], METHODS["dpo"]()).columns


SERVES = {
    ("pairs", "dpo"): None,
    ("groups", "infonca"): None,
    ("rows", "sft"): None,
    ("labels", "kto"): None,
    ("pairs", "infonca"): "pairs are read as groups of two: the chosen completions score 1, the rejected ones 0",
    ("pairs", "sft"): "pairs are read as demonstrations: the chosen completions, the rejected ones are not used",
    ("pairs", "kto"): "pairs are read as labels: the chosen completions are good, the rejected ones bad",
    ("groups", "sft"): "groups are read as demonstrations: the completion with the highest score of each",
    ("labels", "sft"): "labels are read as demonstrations: the good completions, the bad ones are not used",
}
REFUSED = {
    ("groups", "dpo"): "dpo takes pairs, the data holds groups: "
    "make pairs of them: softq data FILE --pairs best-worst --to pairs.jsonl",
    ("groups", "kto"): "kto takes labels, the data holds groups: "
    "make labels of them: softq data FILE --unpair SCORE --to labels.jsonl",
    ("labels", "dpo"): "dpo takes pairs, the data holds labels: give rows with `prompt`, `chosen` and `rejected`",
    (
        "rows",
        "kto",
    ): "kto takes labels, the data holds rows: give rows with `prompt`, `completion` and `label`",
    (
        "labels",
        "infonca",
    ): "infonca takes groups, the data holds labels: give rows with `prompt`, `completions` and `scores`",
    (
        "prompts",
        "sft",
    ): "sft takes rows, the data holds prompts: give rows with `prompt` and `completion`, or `messages`",
    ("steps", "kto"): "kto takes labels, the data holds steps: labels of steps serve no method yet",
}


def test_what_is_converted_is_said_and_what_can_not_serve_is_refused() -> None:
    assert {(kind, name): conversion(kind, METHODS[name](), name) for kind, name in SERVES} == SERVES
    for (kind, name), message in REFUSED.items():
        with pytest.raises(ValueError) as error:
            conversion(kind, METHODS[name](), name)
        assert str(error.value) == message


def test_pairs_as_groups_have_the_scores_1_and_0() -> None:
    batch = batch_of(PAIRS, [4, 7], METHODS["infonca"]())
    assert batch.columns["reward"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert batch.tokens.prompt.tolist() == [4, 4, 7, 7]


def test_labels_without_a_baseline_are_the_rows_of_those_with_one() -> None:
    plain = METHODS["kto"]()._replace(takes="labels")
    with_baseline, alone = (batch_of(LABELS, [0, 1, 2], method) for method in (METHODS["kto"](), plain))
    count = len(alone.labels.row)
    assert (len(alone.tokens.ids), len(alone.labels.mismatched), len(with_baseline.tokens.ids)) == (count, 0, 2 * count)
    assert alone.labels.good.equal(with_baseline.labels.good)
    assert alone.tokens.action.sum(-1).tolist() == with_baseline.tokens.action.sum(-1).tolist()[:count]


def test_bad_completions_are_no_demonstrations(tmp_path) -> None:
    records = stored(tmp_path, LABELS)
    assert [record.where for record in usable(records, "labels", METHODS["sft"]())] == ["l:1", "l:3"]
    assert usable(records, "labels", METHODS["kto"]()) is records
    pairs = stored(tmp_path / "pairs", PAIRS)
    assert usable(pairs, "pairs", METHODS["sft"]()) is pairs


# Which records a step draws


def order(counts: list[int], weights: list[float], batch_size: int = 4, seed: int = 0) -> Order:
    """Of as many records of each source, one source after the other."""
    sources = np.repeat(np.arange(len(counts)), counts).tolist()
    return Order.of([PAIRS[0]._replace(source=source) for source in sources], weights, batch_size, seed)


def passed(drawn: Order, epoch: int) -> list[int]:
    """The numbers of a pass."""
    steps = range(epoch * drawn.steps_a_pass, (epoch + 1) * drawn.steps_a_pass)
    return [number for step in steps for number in drawn.step(step)]


def test_each_epoch_draws_every_record_once_in_steps_of_like_size() -> None:
    drawn = Order.of(PAIRS[:1] * 33, (), 16, 7)
    steps = [drawn.step(step) for step in range(drawn.steps(2))]
    assert [len(step) for step in steps] == [11] * 6
    for epoch in (steps[:3], steps[3:]):
        assert sorted(n for step in epoch for n in step) == list(range(33))
    assert sorted(steps[0]) != sorted(steps[3])
    assert [len(Order.of(PAIRS[:1] * 10, (), 4, 0).step(step)) for step in range(3)] == [4, 3, 3]
    assert [drawn.steps(epochs) for epochs in (0.3, 1, 1.1, 3)] == [1, 3, 4, 9]


def test_a_step_is_a_function_of_the_seed_and_its_number() -> None:
    for weights in ([1.0, 1.0], [2.0, 0.5]):
        drawn = order([10, 7], weights)
        steps = [drawn.step(step) for step in range(12)]
        assert [order([10, 7], weights).step(step) for step in reversed(range(12))] == steps[::-1]
        assert [order([10, 7], weights, seed=1).step(step) for step in range(12)] != steps


def test_weights_of_one_are_as_no_weights() -> None:
    for weights in ([1.0, 1.0], []):
        assert [order([10, 7], weights).step(n) for n in range(9)] == [order([17], []).step(n) for n in range(9)]


@pytest.mark.parametrize(("weights", "expected"), [
    ([2.0, 1.0], [2, 1]),
    ([1.0, 3.0], [1, 3]),
    ([0.5, 1.0], [0.5, 1]),
    ([2.5, 0.25], [2.5, 0.25]),
])  # fmt: skip
def test_weights_say_how_often_a_record_is_seen_in_a_pass(weights, expected) -> None:
    drawn = order([8, 12], weights)
    assert drawn.records == 8 * expected[0] + 12 * expected[1]
    assert drawn.steps_a_pass == -(-drawn.records // 4)
    for epoch in range(3):
        numbers = passed(drawn, epoch)
        assert len(set(numbers)) == len(numbers) == drawn.records  # copies have numbers of their own
        times = Counter(number % 20 for number in numbers)
        for source, records in enumerate((range(8), range(8, 20))):
            seen = [times[n] for n in records]
            assert sum(seen) == len(records) * expected[source]
            assert set(seen) <= {int(expected[source]), -int(-expected[source] // 1)}


def test_a_half_is_another_half_in_each_pass() -> None:
    drawn = order([40, 40], [0.5, 1.0])
    halves = [frozenset(n for n in passed(drawn, epoch) if n < 40) for epoch in range(6)]
    assert {len(half) for half in halves} == {20}
    assert len(set(halves)) == 6
    assert len(frozenset.union(*halves)) > 35


def test_the_order_of_records_of_a_store(tmp_path) -> None:
    records = [PAIRS[n % 2]._replace(source=n % 2, columns={}) for n in range(6)]
    both = [Order.of(those, (2.0, 1.0), 2, 0) for those in (records, stored(tmp_path, records))]
    assert [both[0].step(n) for n in range(5)] == [both[1].step(n) for n in range(5)]
    part = Order.of(stored(tmp_path / "part", records).take([0, 2, 3]), (2.0, 1.0), 9, 0)
    assert sorted(n % 3 for n in part.step(0)) == [0, 0, 1, 1, 2]


def test_the_source_yields_what_is_drawn() -> None:
    source = batches(PAIRS * 3, METHODS["dpo"](), batch_size=4, epochs=1.5, seed=1)
    seen = [batch.tokens.prompt.unique().tolist() for batch in source(None)]  # pyright: ignore[reportArgumentType]
    drawn = Order.of(PAIRS * 3, (), 4, 1)
    assert seen == [sorted(drawn.step(step)) for step in range(3)]


def test_copies_of_a_record_are_records_of_their_own() -> None:
    records = [PAIRS[0]._replace(source=0), PAIRS[1]._replace(source=1)]
    (batch,) = batches(records, METHODS["dpo"](), batch_size=4, weights=[2.0, 1.0])(None)  # pyright: ignore[reportArgumentType]
    by_prompt = dict(zip(batch.tokens.prompt.tolist(), batch.tokens.ids.tolist(), strict=True))
    assert by_prompt == {0: [5, 6, 8, 8], 2: [5, 6, 8, 8], 1: [9, 3, 2, 0]}  # the last row of each: its rejected one
    assert sorted(batch.columns["source"].tolist()) == [0, 0, 0, 0, 1, 1]
