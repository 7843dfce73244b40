"""Where batches come from. A source is a generator of optimiser steps; offline ones ignore the models."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from softq.data.encode import Completion, Encoded
from softq.lm.score import Models
from softq.records import Batch, Labels, Method, Pairs, Tokens

Source = Callable[[Models], Iterator[Batch]]

CONVERTED = {
    ("pairs", "rows"): "pairs are read as demonstrations: the chosen completions, the rejected ones are not used",
    ("pairs", "labels+mismatched"): "pairs are read as labels: the chosen completions are good, the rejected ones bad",
    ("groups", "rows"): "groups are read as demonstrations: the completion with the highest score of each",
}
"""What data of one kind becomes for a method that takes another; said aloud. Anything else is refused."""


def conversion(kind: str, method: Method, name: str = "this method") -> str | None:
    """What a user should be told about how data of a kind serves a method; ValueError if it can not."""
    if kind == method.takes:
        return None
    if (kind, method.takes) not in CONVERTED:
        raise ValueError(f"{name} takes {method.takes}, the data holds {kind}: {_EXPECTED[method.takes]}")
    return CONVERTED[kind, method.takes]


def batch_of(records: Sequence[Encoded], numbers: Sequence[int], method: Method) -> Batch:
    """Data records as one batch in the form the method takes; a record's number becomes its rows' `prompt`."""
    build = {"pairs": _pairs, "groups": _groups, "rows": _demonstrations, "labels+mismatched": _labels}[method.takes]
    batch = build(records, numbers)
    units = {
        name: [record.columns[name] for record in records] for name in method.columns if name in records[0].columns
    }
    return Batch(batch.tokens, batch.feedback, {**batch.columns, **{k: torch.tensor(v) for k, v in units.items()}})


def batches(
    records: Sequence[Encoded], method: Method, *, batch_size: int, epochs: float = 1.0, seed: int = 0
) -> Source:
    """Shuffled steps of `batch_size` records; the step is a pure function of (seed, epoch, step)."""

    def source(models: Models) -> Iterator[Batch]:
        for step in range(steps_of(len(records), batch_size, epochs)):
            numbers = drawn(len(records), batch_size, seed, step)
            yield batch_of([records[n] for n in numbers], numbers, method)

    return source


def steps_of(records: int, batch_size: int, epochs: float = 1.0) -> int:
    """How many steps `epochs` passes over the records take."""
    return math.ceil(math.ceil(records / batch_size) * epochs)


def drawn(records: int, batch_size: int, seed: int, step: int) -> list[int]:
    """The record numbers of a step: at most `batch_size`, and as evenly as the steps of a pass can share them."""
    steps = math.ceil(records / batch_size)
    epoch, position = divmod(step, steps)
    order = np.random.default_rng([seed, epoch]).permutation(records)
    return np.array_split(order, steps)[position].tolist()


def tokens_of(completions: Sequence[Completion], numbers: Sequence[int]) -> Tokens:
    """Completions as rows, padded on the right with 0, which nobody reads."""
    width = max(len(completion.ids) for completion in completions)
    ids = torch.zeros(len(completions), width, dtype=torch.int64)
    action = torch.zeros(len(completions), width - 1, dtype=torch.bool)
    for b, completion in enumerate(completions):
        ids[b, : len(completion.ids)] = torch.from_numpy(completion.ids)
        action[b, : len(completion.action)] = torch.from_numpy(completion.action)
    return Tokens(ids, action, torch.tensor([completion.ended for completion in completions]), torch.tensor(numbers))


def _pairs(records: Sequence[Encoded], numbers: Sequence[int]) -> Batch:
    tokens, row = _all_rows(records, numbers)
    return Batch(tokens, Pairs(row[::2], row[1::2]))


def _groups(records: Sequence[Encoded], numbers: Sequence[int]) -> Batch:
    tokens, _ = _all_rows(records, numbers)
    scores = [score for record in records for score in record.scores or ()]
    return Batch(tokens, None, {"reward": torch.tensor(scores)})


def _demonstrations(records: Sequence[Encoded], numbers: Sequence[int]) -> Batch:
    best = [0 if record.scores is None else int(np.argmax(record.scores)) for record in records]
    return Batch(tokens_of([record.completions[k] for record, k in zip(records, best, strict=True)], numbers))


def _labels(records: Sequence[Encoded], numbers: Sequence[int]) -> Batch:
    """Each completion with its label, and again under the prompt of the next record of the step."""
    tokens, row = _all_rows(records, numbers)
    rows = [completion for record in records for completion in record.completions]
    mismatched, prompts = [], []
    for i, number in enumerate(numbers):
        if len(numbers) > 1:
            other = records[(i + 1) % len(numbers)]
            mismatched += [_under(records[i].completions[0], completion) for completion in other.completions]
            prompts += [number] * len(other.completions)
    tokens = tokens_of(rows + mismatched, tokens.prompt.tolist() + prompts)
    good = torch.tensor([k == 0 for record in records for k in range(len(record.completions))])
    return Batch(tokens, Labels(row, good, torch.arange(len(rows), len(rows) + len(mismatched))))


def _all_rows(records: Sequence[Encoded], numbers: Sequence[int]) -> tuple[Tokens, Tensor]:
    rows = [(completion, n) for record, n in zip(records, numbers, strict=True) for completion in record.completions]
    tokens = tokens_of([completion for completion, _ in rows], [n for _, n in rows])
    return tokens, torch.arange(len(rows))


def _under(prompted: Completion, completion: Completion) -> Completion:
    """A completion under the prompt of another."""
    start, own = int(prompted.action.argmax()) + 1, int(completion.action.argmax()) + 1
    ids = np.concatenate([prompted.ids[:start], completion.ids[own:]])
    action = np.concatenate([np.zeros(start - 1, dtype=bool), completion.action[own - 1 :]])
    return Completion(ids, action, completion.ended)


_EXPECTED = {
    "pairs": "give rows with `prompt`, `chosen` and `rejected`",
    "groups": "give rows with `prompt`, `completions` and `scores`",
    "rows": "give rows with `prompt`, `chosen` and `rejected`",
    "labels+mismatched": "give rows with `prompt`, `chosen` and `rejected`",
}
