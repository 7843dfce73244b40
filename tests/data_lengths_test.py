"""Lengths as histograms: against all lengths sorted, within their bound where they are rounded, in little memory."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softq.data.encode import Account, Completion, Encoded
from softq.data.example import Example
from softq.data.lengths import EXACT, QUANTILES, Lengths
from softq.data.rows import Dropped
from softq.data.stream import Item

small = st.lists(st.integers(0, EXACT - 1), min_size=1, max_size=60)
large = st.lists(st.one_of(st.integers(0, 3000), st.integers(0, 10**9)), min_size=1, max_size=60)


def text(prompt: int, *completions: int) -> Item:
    """A row of plain texts of these lengths."""
    return Item(0, Example("f:1", "p" * prompt, tuple("c" * n for n in completions)))


def tokens(prompt: int, *completions: int) -> Item:
    """An encoded row with so many tokens in each part."""
    coded = []
    for n in completions:
        action = np.zeros(prompt + n - 1, dtype=bool)
        action[prompt - 1 :] = True
        coded.append(Completion(np.zeros(prompt + n, np.int64), action, True))
    account = Account(longest=prompt + max(completions, default=0))
    return Item(0, Example("f:1", "", ()), Encoded("f:1", tuple(coded)), account)


def whole(lengths: list[int], limit: int | None = 10**9) -> Lengths:
    """Rows of which no more is known than how long they are."""
    found = Lengths("pairs", limit)
    for n in lengths:
        found.add(Item(0, Dropped("f:1", "equal_completions"), None, Account(longest=n)))
    return found


def quantile(lengths: list[int], q: float) -> int:
    """The least length that a share q of the rows does not exceed, by sorting."""
    return sorted(lengths)[max(math.ceil(round(q * len(lengths), 9)), 1) - 1]


@given(small)
def test_quantiles_of_short_rows_are_exact(lengths: list[int]) -> None:
    found = Lengths("pairs", None)
    for n in lengths:
        found.add(text(n, 1, 0))
    expected = {f"p{q * 100:g}": quantile(lengths, q) for q in QUANTILES}
    assert found.quantiles("prompt") == {**expected, "max": max(lengths)}
    assert list(found.quantiles("prompt")) == ["p50", "p90", "p99", "max"]


@given(large)
def test_quantiles_of_long_rows_are_at_most_a_128th_part_too_large(lengths: list[int]) -> None:
    lengths = [max(n, 1) for n in lengths]
    found = whole(lengths).quantiles("whole")
    for q in QUANTILES:
        given, true = found[f"p{q * 100:g}"], quantile(lengths, q)
        assert true <= given <= true * (1 + 1 / 128)
        assert sum(n <= given for n in lengths) >= q * len(lengths)
    assert found["max"] == max(lengths)


@given(large)
def test_bins_double_leave_no_gap_and_hold_every_row(lengths: list[int]) -> None:
    lengths = [max(n, 1) for n in lengths]
    bins = whole(lengths).bins("whole")
    assert [count for _, _, count in bins] == [sum(low <= n < high for n in lengths) for low, high, _ in bins]
    assert sum(count for _, _, count in bins) == len(lengths)
    assert all(high == after for (_, high, _), (after, _, _) in pairwise(bins))
    assert all(high == 16 if low == 0 else high == 2 * low for low, high, _ in bins)
    assert bins[0][2] > 0
    assert bins[-1][2] > 0


def test_bins_hold_the_rows_at_their_edges() -> None:
    assert whole([1, 15, 16, 31, 32, 1023, 1024, 1025, 2047, 2048]).bins("whole") == [
        (0, 16, 2),
        (16, 32, 2),
        (32, 64, 1),
        (64, 128, 0),
        (128, 256, 0),
        (256, 512, 0),
        (512, 1024, 1),
        (1024, 2048, 3),
        (2048, 4096, 1),
    ]


@given(large, st.integers(1, 5000))
def test_rows_above_the_limit_are_counted_exactly(lengths: list[int], limit: int) -> None:
    assert whole(lengths, limit).too_long == sum(n > limit for n in lengths)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (tokens(4, 6), 0),
        (tokens(4, 7), 1),
        (Item(0, Dropped("f:1", "too_long")), 1),  # by its characters; it was never tokenised
        (Item(0, Dropped("f:1", "prompt_too_long"), None, Account(longest=30)), 1),
        (Item(0, Dropped("f:1", "missing_field")), 0),
        (tokens(4, 6)._replace(account=Account(longest=10, cut=3)), 1),  # what was cut did not fit
    ],
)
def test_what_counts_as_too_long(item: Item, expected: int) -> None:
    found = Lengths("pairs", 10)
    found.add(item)
    assert found.too_long == expected
    assert found.as_dict()["too_long"] == expected


def test_memory_is_bounded_whatever_the_lengths() -> None:
    rng = np.random.default_rng(0)
    lengths = [*range(1, 20_000), *(2.0 ** rng.uniform(0, 30, 20_000)).astype(int).tolist()]
    found = whole(lengths)
    assert len(found.counts["whole"]) <= EXACT + 128 * (30 - 10)
    assert sum(found.counts["whole"].values()) == len(lengths)


def test_parts_of_pairs_in_tokens_and_in_characters() -> None:
    by_tokens, by_characters = Lengths("pairs", 100), Lengths("pairs", None)
    for prompt, chosen, rejected in ((3, 4, 5), (7, 1, 2)):
        by_tokens.add(tokens(prompt, chosen, rejected))
        by_characters.add(text(prompt, chosen, rejected))
    for found, unit in ((by_tokens, "tokens"), (by_characters, "characters")):
        assert found.unit == unit
        assert {name: sorted(counts) for name, counts in found.counts.items()} == {
            "prompt": [3, 7],
            "chosen": [1, 4],
            "rejected": [2, 5],
            "whole": [8, 9],
        }
    assert by_characters.as_dict()["too_long"] is None


@pytest.mark.parametrize(
    ("kind", "completions", "expected"),
    [
        ("groups", (2, 3, 5), {"completion": [2, 3, 5]}),
        ("labels", (4,), {"completion": [4]}),
        ("rows", (4,), {"completion": [4]}),
        ("prompts", (), {}),
    ],
)
def test_parts_of_other_kinds(kind: str, completions: tuple[int, ...], expected: dict[str, list[int]]) -> None:
    found = Lengths(kind, None)
    found.add(text(6, *completions))
    parts = {name: sorted(counts) for name, counts in found.counts.items()}
    assert parts == {"prompt": [6], **expected, "whole": [6 + max(completions, default=0)]}


def test_messages_count_by_their_contents() -> None:
    found = Lengths("pairs", None)
    turns = [{"role": "system", "content": "abc"}, {"role": "user", "content": "de"}]
    answer = [{"role": "assistant", "content": None, "tool_calls": [1]}, {"role": "assistant", "content": "fghi"}]
    found.add(Item(0, Example("f:1", turns, (answer, answer[:1]))))
    assert {name: sorted(counts) for name, counts in found.counts.items()} == {
        "prompt": [5],
        "chosen": [4],
        "rejected": [0],
        "whole": [9],
    }


def test_dropped_rows_without_tokens_leave_no_length_and_json_is_ready() -> None:
    found = Lengths("pairs", 10)
    found.add(Item(0, Dropped("f:1", "bad_type")))
    assert found.counts == {}
    assert json.loads(json.dumps(found.as_dict())) == {"unit": "tokens", "too_long": 0}
    found.add(tokens(1, 2, 3))
    said = json.loads(json.dumps(found.as_dict()))
    assert said["whole"] == {"p50": 4, "p90": 4, "p99": 4, "max": 4, "bins": [[0, 16, 1]]}
