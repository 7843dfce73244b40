"""What a pair's completions do not share: by hand, against difflib's own opcodes, and in the batches of a method."""

from difflib import SequenceMatcher

import numpy as np
import pytest
import torch

from softq.data.differing import differing
from softq.data.encode import Completion, Encoded
from softq.objectives import METHODS
from softq.training.source import batch_of


def marks(chosen: list[int], rejected: list[int]) -> tuple[list[int], list[int]]:
    inserted, deleted = differing(np.array(chosen, dtype=int), np.array(rejected, dtype=int))
    return inserted.astype(int).tolist(), deleted.astype(int).tolist()


@pytest.mark.parametrize(
    ("chosen", "rejected", "inserted", "deleted"),
    [
        ([0, 2], [1, 0, 2], [0, 0], [1, 0, 0]),  # deleted
        ([4, 7, 5, 2], [4, 5, 2], [0, 1, 0, 0], [0, 0, 0]),  # inserted
        ([4, 7, 7, 2], [4, 6, 2], [0, 1, 1, 0], [0, 1, 0]),  # replaced
        ([4, 5, 2], [4, 5, 2], [0, 0, 0], [0, 0, 0]),
        ([4, 5], [6, 7, 8], [1, 1], [1, 1, 1]),
        ([4], [], [1], []),
    ],
)
def test_by_hand(chosen: list[int], rejected: list[int], inserted: list[int], deleted: list[int]) -> None:
    assert marks(chosen, rejected) == (inserted, deleted)
    assert marks(rejected, chosen) == (deleted, inserted)  # sides swapped, masks swapped


def test_as_the_opcodes_of_difflib_say() -> None:
    """Short ones of four tokens, and ones of about 256 tokens, which repeat: all the same, two, or many."""
    rng = np.random.default_rng(0)
    short = [rng.integers(0, 4, rng.integers(0, 12)).tolist() for _ in range(400)]
    long = [rng.integers(0, kinds, size).tolist() for kinds in (1, 2, 30) for size in (255, 256, 257, 300)]
    for chosen, rejected in [*zip(short[::2], short[1::2], strict=True), *zip(long, long[::-1], strict=True)]:
        inserted, deleted = marks(chosen, rejected)
        for tag, i, i2, j, j2 in SequenceMatcher(None, rejected, chosen, autojunk=False).get_opcodes():
            assert deleted[i:i2] == [tag in ("delete", "replace")] * (i2 - i)
            assert inserted[j:j2] == [tag in ("insert", "replace")] * (j2 - j)


def test_frequent_tokens_count_in_long_completions_too() -> None:
    """difflib's autojunk would take no notice of a token that is 2% of 200 or more: here it would mark all of them."""
    one = [7, 8] * 100
    assert marks([1, *one, 1], [2, *one, 2]) == ([1, *[0] * 200, 1], [1, *[0] * 200, 1])
    junk = SequenceMatcher(None, [2, *one, 2], [1, *one, 1]).get_opcodes()
    assert [tag for tag, *_ in junk] == ["replace"]


def completion(prompt: list[int], answer: list[tuple[int, bool]]) -> Completion:
    ids = np.array([*prompt, *(token for token, _ in answer)])
    return Completion(ids, np.array([False] * (len(prompt) - 1) + [own for _, own in answer]), True)


def test_a_batch_brings_it_where_the_method_reads_it() -> None:
    """Only what the policy said is compared: prompts, and turns of others between its own, are not."""
    said = [(4, True), (9, False), (5, True), (2, True)]
    records = [
        Encoded("a:1", (completion([5, 6], said), completion([5, 6], [(4, True), (8, False), (7, True), (2, True)]))),
        Encoded("a:2", (completion([9], [(3, True), (2, True)]), completion([9], [(2, True)]))),
    ]
    batch = batch_of(records, [3, 1], METHODS["bmc"]())
    assert batch.columns["diff"].dtype == torch.bool
    rows = [[0, 0, 0, 1, 0], [0, 0, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert batch.columns["diff"].int().tolist() == rows
    assert "diff" not in batch_of(records, [3, 1], METHODS["dpo"]()).columns
