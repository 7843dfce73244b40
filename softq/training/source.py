"""Where batches come from. A source is a generator of optimiser steps; offline ones ignore the models."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from softq.data.differing import differing
from softq.data.encode import Completion, Encoded
from softq.data.store import Records
from softq.lm.score import Models
from softq.records import COLUMNS, Batch, Labels, Method, Pairs, Tokens

Source = Callable[[Models], Iterator[Batch]]

_JUDGED = "pairs are read as labels: the chosen completions are good, the rejected ones bad"
CONVERTED = {
    ("pairs", "rows"): "pairs are read as demonstrations: the chosen completions, the rejected ones are not used",
    ("pairs", "groups"): "pairs are read as groups of two: the chosen completions score 1, the rejected ones 0",
    ("pairs", "labels"): _JUDGED,
    ("pairs", "labels+mismatched"): _JUDGED,
    ("groups", "rows"): "groups are read as demonstrations: the completion with the highest score of each",
    ("labels", "rows"): "labels are read as demonstrations: the good completions, the bad ones are not used",
    ("labels", "labels+mismatched"): None,
}
"""What data of one kind becomes for a method that takes another; said aloud. Anything else is refused."""


def conversion(kind: str, method: Method, name: str = "this method") -> str | None:
    """What a user should be told about how data of a kind serves a method; ValueError if it can not."""
    if kind == method.takes:
        return None
    if (kind, method.takes) not in CONVERTED:
        advice = ADVICE.get((kind, method.takes), _EXPECTED[method.takes])
        raise ValueError(f"{name} takes {method.takes.partition('+')[0]}, the data holds {kind}: {advice}")
    return CONVERTED[kind, method.takes]


def usable(records: Records, kind: str, method: Method) -> Records:
    """The records that the method can use: of labels, only the good ones are demonstrations."""
    if (kind, method.takes) != ("labels", "rows"):
        return records
    return records.take([n for n, record in enumerate(records) if record.columns["label"][0]])


def batch_of(
    records: Sequence[Encoded], numbers: Sequence[int], method: Method, *, max_length: int | None = None
) -> Batch:
    """Data records as one batch in the form the method takes; a record's number becomes its rows' `prompt`.

    max_length: that of the records, in tokens, at which completions under other prompts are cut.
    """
    batch, rows = _BUILT[method.takes](records, numbers)
    if max_length is not None:
        batch = Batch(_cut(batch.tokens, max_length), batch.feedback, batch.columns)
    columns = dict(batch.columns)
    for name in (name for name in method.columns if name in records[0].columns and name not in columns):
        each = COLUMNS[name].unit == "row"
        values = [records[i].columns[name][k] for i, k in rows] if each else [r.columns[name][0] for r in records]
        columns[name] = torch.tensor(values)
    if "ref_logps" in records[0].columns:
        if method.takes == "labels+mismatched":
            raise ValueError("completions under other prompts have no stored log-probs; remove the column ref_logps")
        columns["ref_logp"] = _stored(batch.tokens, [records[i].columns["ref_logps"][k] for i, k in rows])
    if "diff" in method.columns and method.takes == "pairs":
        columns["diff"] = _differing(batch)
    if records[0].source is not None:
        columns["source"] = torch.tensor([records[i].source or 0 for i, _ in rows])
    return Batch(batch.tokens, batch.feedback, columns)


def batches(
    records: Sequence[Encoded],
    method: Method,
    *,
    batch_size: int,
    epochs: float = 1.0,
    seed: int = 0,
    weights: Sequence[float] = (),
    start: int = 0,
    max_length: int | None = None,
) -> Source:
    """Shuffled steps of `batch_size` records, those behind step `start`; a step is a pure function of (seed, epoch, step).

    `weights` says how often the records of each source are seen in a pass (`DataSource.weight`); default: once.
    `max_length` as of `batch_of`.
    """
    order = Order.of(records, weights, batch_size, seed)

    def source(models: Models) -> Iterator[Batch]:
        for step in range(start, order.steps(epochs)):
            numbers = order.step(step)
            yield batch_of([records[n % len(records)] for n in numbers], numbers, method, max_length=max_length)

    return source


class Order(NamedTuple):
    """Which records each step holds: a pure function of (seed, epoch, step)."""

    source: np.ndarray  # [records] the source of each
    weights: Sequence[float]  # of each source: how often its records are seen in a pass; a part of 1 is a new draw each
    batch_size: int
    seed: int

    @classmethod
    def of(cls, records: Sequence[Encoded], weights: Sequence[float], batch_size: int, seed: int) -> "Order":
        """The order of these records."""
        if all(weight == 1 for weight in weights):
            return cls(np.zeros(len(records), np.int64), (1.0,), batch_size, seed)
        sources = records.source if isinstance(records, Records) else [record.source or 0 for record in records]
        return cls(np.maximum(sources, 0), tuple(weights), batch_size, seed)

    @property
    def records(self) -> int:
        """Records of a pass, copies counted."""
        counts = np.bincount(self.source, minlength=len(self.weights))
        return sum(_copies(weight, int(count)) for weight, count in zip(self.weights, counts, strict=True))

    @property
    def steps_a_pass(self) -> int:
        """Steps of a pass."""
        return math.ceil(self.records / self.batch_size)

    def steps(self, epochs: float) -> int:
        """How many steps `epochs` passes take."""
        return math.ceil(self.steps_a_pass * epochs)

    def step(self, number: int) -> list[int]:
        """The records of a step: at most `batch_size`, and as evenly as the steps of a pass can share them.

        A record's further copies in a pass have numbers of their own: the record's, plus a multiple of the records.
        """
        epoch, position = divmod(number, self.steps_a_pass)
        return np.array_split(self._pass(epoch), self.steps_a_pass)[position].tolist()

    def _pass(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, epoch])
        count = len(self.source)
        if tuple(self.weights) == (1.0,):
            return rng.permutation(count)
        numbers = []
        for source, weight in enumerate(self.weights):
            own = np.flatnonzero(self.source == source)
            copies = [own + count * copy for copy in range(int(weight))]
            drawn = rng.permutation(own)[: _copies(weight, len(own)) - int(weight) * len(own)]
            numbers += [*copies, drawn + count * int(weight)]
        return rng.permutation(np.concatenate(numbers))


def _copies(weight: float, count: int) -> int:
    """How many records of a source are in a pass: at least one, if it has any."""
    return max(round(weight * count), min(count, 1))


def tokens_of(completions: Sequence[Completion], numbers: Sequence[int]) -> Tokens:
    """Completions as rows, padded on the right with 0, which nobody reads."""
    width = max(len(completion.ids) for completion in completions)
    ids = torch.zeros(len(completions), width, dtype=torch.int64)
    action = torch.zeros(len(completions), width - 1, dtype=torch.bool)
    for b, completion in enumerate(completions):
        ids[b, : len(completion.ids)] = torch.from_numpy(completion.ids)
        action[b, : len(completion.action)] = torch.from_numpy(completion.action)
    return Tokens(ids, action, torch.tensor([completion.ended for completion in completions]), torch.tensor(numbers))


Rows = list[tuple[int, int]]  # of each row: the record it is from, and which completion of it


def _pairs(records: Sequence[Encoded], numbers: Sequence[int]) -> tuple[Batch, Rows]:
    tokens, rows = _all_rows(records, numbers)
    row = torch.arange(len(rows))
    return Batch(tokens, Pairs(row[::2], row[1::2])), rows


def _groups(records: Sequence[Encoded], numbers: Sequence[int]) -> tuple[Batch, Rows]:
    tokens, rows = _all_rows(records, numbers)
    scores = [score for record in records for score in record.columns.get("reward", (1.0, 0.0))]
    return Batch(tokens, None, {"reward": torch.tensor(scores)}), rows


def _demonstrations(records: Sequence[Encoded], numbers: Sequence[int]) -> tuple[Batch, Rows]:
    rows = [(i, int(np.argmax(record.columns.get("reward", (0.0,))))) for i, record in enumerate(records)]
    return Batch(tokens_of([records[i].completions[k] for i, k in rows], numbers)), rows


def _labels(records: Sequence[Encoded], numbers: Sequence[int]) -> tuple[Batch, Rows]:
    """Each completion with its label."""
    tokens, rows = _all_rows(records, numbers)
    good = torch.tensor([bool(records[i].columns.get("label", (1.0, 0.0))[k]) for i, k in rows])
    return Batch(tokens, Labels(torch.arange(len(rows)), good, torch.empty(0, dtype=torch.int64))), rows


def _mismatched(records: Sequence[Encoded], numbers: Sequence[int]) -> tuple[Batch, Rows]:
    """Each completion with its label, and again under the prompt of the next record of the step."""
    labelled, rows = _labels(records, numbers)
    completions = [records[i].completions[k] for i, k in rows]
    mismatched, prompts, again = [], [], []
    for i, number in enumerate(numbers):
        if len(numbers) > 1:
            j = (i + 1) % len(numbers)
            mismatched += [_under(records[i].completions[0], completion) for completion in records[j].completions]
            again += [(j, k) for k in range(len(records[j].completions))]
            prompts += [number] * len(records[j].completions)
    tokens = tokens_of(completions + mismatched, labelled.tokens.prompt.tolist() + prompts)
    others = torch.arange(len(rows), len(rows) + len(mismatched))
    return Batch(tokens, Labels(labelled.labels.row, labelled.labels.good, others)), rows + again


_BUILT: Mapping[str, Callable[[Sequence[Encoded], Sequence[int]], tuple[Batch, Rows]]] = {
    "pairs": _pairs,
    "groups": _groups,
    "rows": _demonstrations,
    "labels": _labels,
    "labels+mismatched": _mismatched,
}
"""What data becomes, by what a method takes."""


def _all_rows(records: Sequence[Encoded], numbers: Sequence[int]) -> tuple[Tokens, Rows]:
    rows = [(i, k) for i, record in enumerate(records) for k in range(len(record.completions))]
    return tokens_of([records[i].completions[k] for i, k in rows], [numbers[i] for i, _ in rows]), rows


def _stored(tokens: Tokens, sums: Sequence[float]) -> Tensor:
    """[B, T]: sums over completions as log-probs per token, the whole of it at each row's first action."""
    logp = torch.zeros(tokens.action.shape, dtype=torch.float64)
    logp[torch.arange(len(sums)), tokens.action.int().argmax(-1)] = torch.tensor(sums, dtype=torch.float64)
    return logp


def _differing(batch: Batch) -> Tensor:
    """[B, T] bool: the actions that a pair's completions do not share, whatever stands between and before them."""
    action = batch.tokens.action.numpy()
    said, diff = batch.tokens.ids.numpy()[:, 1:], np.zeros(action.shape, dtype=bool)
    for w, low in zip(batch.pairs.chosen.tolist(), batch.pairs.rejected.tolist(), strict=True):
        diff[w, action[w]], diff[low, action[low]] = differing(said[w, action[w]], said[low, action[low]])
    return torch.from_numpy(diff)


def _under(prompted: Completion, completion: Completion) -> Completion:
    """A completion under the prompt of another."""
    start, own = int(prompted.action.argmax()) + 1, int(completion.action.argmax()) + 1
    ids = np.concatenate([prompted.ids[:start], completion.ids[own:]])
    action = np.concatenate([np.zeros(start - 1, dtype=bool), completion.action[own - 1 :]])
    return Completion(ids, action, completion.ended)


def _cut(tokens: Tokens, length: int) -> Tokens:
    """Rows of at most so many tokens."""
    whole = ~tokens.action[:, length - 1 :].any(-1)
    return Tokens(tokens.ids[:, :length], tokens.action[:, : length - 1], tokens.ended & whole, tokens.prompt)


_LABELS = "give rows with `prompt`, `completion` and `label`"
_EXPECTED = {
    "pairs": "give rows with `prompt`, `chosen` and `rejected`",
    "groups": "give rows with `prompt`, `completions` and `scores`",
    "rows": "give rows with `prompt` and `completion`, or `messages`",
    "labels": _LABELS,
    "labels+mismatched": _LABELS,
}
_UNPAIR = "make labels of them: softq data FILE --unpair SCORE --to labels.jsonl"
_STEPS = "labels of steps serve no method yet"
ADVICE = {
    ("groups", "pairs"): "make pairs of them: softq data FILE --pairs best-worst --to pairs.jsonl",
    ("groups", "labels"): _UNPAIR,
    ("groups", "labels+mismatched"): _UNPAIR,
    ("steps", "labels"): _STEPS,
    ("steps", "labels+mismatched"): _STEPS,
}
"""What to do about data that a method can not take."""
