"""Fresh samples of the reference on the data's prompts, scored by both models: `softq score --fresh N`.

Of the reference's own completions E_ref[βL] = -β KL(π_ref‖π) ≤ 0 (arXiv 2404.12358, eq 16), whatever the policy was trained for:
how far likelihood must fall that is as near the reference as can be. It holds for samples that are cut, too.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from softq.data.encode import Completion
from softq.inspection.columns import FRESH
from softq.inspection.shelf import place, put
from softq.inspection.tables import Table, completion_table, readouts
from softq.lm.model import CausalLM
from softq.lm.score import score
from softq.reading.score import PART, Scoring, pieces_of, taken
from softq.training.output import end_tokens
from softq.training.plan import shares
from softq.training.samples import generated, positions, prompt_of
from softq.training.source import tokens_of

MOST = 256
"""Tokens of a sample."""


def fresh_parts(of: Scoring, count: int, ends: frozenset[int], share: tuple[int, int]) -> Iterator[int]:
    """Sample for `count` records, spread evenly, and write a part of "fresh" for each part of the data; yields how many it holds.

    ends: tokens that end a completion, beside the reference's and the tokenizer's. share: (k, n) is the k-th of n processes.
    Parts that are there are not made again.
    """
    numbers = np.array(spread(count, len(of.data.records)))
    for n in range(share[0], of.parts, share[1]):
        if not place(of.directory, "fresh", n).exists():
            mine = numbers[numbers // PART == n].tolist()
            put(of.directory, "fresh", n, fresh_table(of, mine, ends), compared=True)
            yield len(mine)


def spread(count: int, records: int) -> list[int]:
    """Record numbers as evenly apart as can be: `count` of them, or all."""
    count = min(count, records)
    return [n * records // count for n in range(count)]


def fresh_table(of: Scoring, numbers: Sequence[int], ends: frozenset[int]) -> Table:
    """One completion of the reference at temperature 1 for each of these records; its seed is the record's number, so it depends
    on nothing else. A prompt that leaves no position to answer in has none."""
    reference: CausalLM = of.loaded.models["ref"]  # pyright: ignore[reportAssignmentType]
    stops = end_tokens(reference, of.loaded.tokenizer, ends)
    rows: list[tuple[int, Completion]] = []
    for number in numbers:
        prompt = prompt_of(of.data.records[number])
        room = min(MOST, positions(reference) - len(prompt))
        if room > 0:
            said = generated(reference, prompt, stops, seed=number, room=room)
            ids = np.concatenate([prompt, np.array(said, np.int64)])
            rows.append((number, Completion(ids, np.arange(1, len(ids)) >= len(prompt), said[-1] in stops)))
    return _scored(of, rows)


def _scored(of: Scoring, rows: Sequence[tuple[int, Completion]]) -> Table:
    if not rows:
        return {name: [] for name in FRESH}
    whole = tokens_of([completion for _, completion in rows], [number for number, _ in rows])
    pieces, made = pieces_of(of.loaded.tokenizer), []
    for part in shares(whole, of.tokens_per_micro)[0]:
        tokens = taken(whole, part)
        with torch.no_grad():
            scored = score(of.loaded.models, tokens, readouts(True, False))
        made.append(completion_table(scored, tokens, pieces, of.beta) | {"record": tokens.prompt.numpy()})
    table = {name: np.concatenate([np.asarray(each[name]) for each in made]) for name in FRESH}
    order = np.argsort(table["record"])
    return {name: values[order].tolist() for name, values in table.items()}
