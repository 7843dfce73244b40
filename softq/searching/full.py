"""What was found, scored in full: the log-probabilities that training logs and inspection shows, of the whole answer at once."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from softq.data.encode import Completion
from softq.lm.load import Loaded
from softq.lm.score import score
from softq.mdp.readouts import REF_LOGP
from softq.training.source import tokens_of

TOGETHER = 8192  # tokens that are scored at once


def full(
    loaded: Loaded, prompts: Sequence[Tensor], said: Sequence[tuple[int, Sequence[int]]]
) -> list[tuple[Tensor, Tensor | None]]:
    """(log π, log π_ref) of each token of some answers, each (number of its prompt, tokens): float64 [n], on the CPU.

    None for the reference where there is none. By `softq.lm.score`, whatever the search itself computed.
    """
    found: list[tuple[Tensor, Tensor | None]] = []
    readouts = (REF_LOGP,) if "ref" in loaded.models else ()
    for some in _cut(prompts, said):
        rows = [_completion(prompts[number], tokens) for number, tokens in some]
        tokens = tokens_of(rows, [number for number, _ in some])
        with torch.no_grad():
            scored = {name: values.double().cpu() for name, values in score(loaded.models, tokens, readouts).items()}
        for row, action in enumerate(tokens.action):
            ref = scored["ref_logp"][row][action] if readouts else None
            found.append((scored["logp"][row][action], ref))
    return found


def _completion(prompt: Tensor, tokens: Sequence[int]) -> Completion:
    ids = np.concatenate([prompt.numpy(), np.array(tokens, np.int64)])
    return Completion(ids, np.arange(1, len(ids)) >= len(prompt), True)


def _cut(
    prompts: Sequence[Tensor], said: Sequence[tuple[int, Sequence[int]]]
) -> Iterator[list[tuple[int, Sequence[int]]]]:
    """Answers in lots, in order; a lot has at most TOGETHER tokens, or one answer."""
    lot: list[tuple[int, Sequence[int]]] = []
    size = 0
    for number, tokens in said:
        more = len(prompts[number]) + len(tokens)
        if lot and size + more > TOGETHER:
            yield lot
            lot, size = [], 0
        lot.append((number, tokens))
        size += more
    if lot:
        yield lot
