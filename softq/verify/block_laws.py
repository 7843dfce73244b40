"""The law of blockwise controlled decoding, on tables, against every pair of blocks that can be drawn."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from softq.lm.growing import Growing
from softq.mdp.soft import mean_backup
from softq.mdp.tabular import TabularLM, at_the_end
from softq.search import best_of as best
from softq.search.answer import Limits
from softq.search.chunks import PathValue, chunk_beam
from softq.search.sampling import filtered
from softq.search.voice import Speaker
from softq.verify.law import EXACT, Finding, Law, apart
from softq.verify.search_laws import limits, worst
from softq.verify.theory import Table

RARE = math.log(1e-12)  # nats; a token that is rarer is drawn by no number that can be written


class Block(NamedTuple):
    """Tokens behind a state, up to an end if there is one."""

    tokens: tuple[int, ...]
    logp: float  # nats
    value: float  # of the state behind them
    chance: tuple[float, ...]  # numbers that draw them
    state: int  # the state behind them; -1: the answer is over


def blocks(on: Table, worth: Tensor, state: int, length: int) -> list[Block]:
    """Those of `length` tokens that the reference can draw behind a state, by values [S, V] of what each action leads to."""
    found = [Block((), 0.0, 0.0, (), state)]
    for _ in range(length):
        found = [each for block in found for each in (_longer(on, worth, block) if block.state >= 0 else [block])]
    return found


def _longer(on: Table, worth: Tensor, block: Block) -> list[Block]:
    logp = on.reference[block.state]
    middle = logp.exp().cumsum(-1) - logp.exp() / 2
    return [
        Block(
            (*block.tokens, token),
            block.logp + float(logp[token]),
            float(worth[block.state, token]),
            (*block.chance, float(middle[token])),
            int(on.tree.next[block.state, token]),
        )
        for token in (logp > RARE).nonzero()[:, 0].tolist()
    ]


def _blockwise(on: Table) -> Finding:
    """Blocks of two tokens from every start, and those of the last one behind them: which is kept of two, over all pairs."""
    worth = mean_backup(on.tree, at_the_end(on.tree, on.leaves, on.sums(on.reward)), on.reference)
    off, behind, notes = 0.0, dict[int, float](), list[str]()
    for depth, length in ((2, 1), (0, 2)):
        states = (on.tree.depth == depth).nonzero()[:, 0].tolist()
        drawn = [blocks(on, worth, state, length) for state in states]
        for state, some, kept in zip(states, drawn, _kept(on, worth, states, drawn), strict=True):
            logp, value = (torch.tensor([block[field] for block in some], dtype=torch.float64) for field in (1, 2))
            off = worst(off, apart(kept, best.law(logp, value, 2).exp()))
            later = torch.tensor([behind.get(block.state, 0.0) for block in some], dtype=torch.float64)
            behind[state] = best.divergence(logp, value, 2) + float((kept * later).sum())
            most = best.bound(2) * (1 + float(kept[[block.state >= 0 for block in some]].sum()))
            off = worst(off, behind[state] - most)
            notes += [f"{behind[state]:.2g} of at most {most:.2g}"] * (depth == 0)
    return Finding(off, EXACT, f"KL of answers from the reference in nats: {', '.join(notes)}")


def _kept(on: Table, worth: Tensor, states: Sequence[int], drawn: Sequence[Sequence[Block]]) -> list[Tensor]:
    """How often the decoder keeps each block behind each of these states, over all pairs of them."""
    pairs = [(n, one, other) for n, some in enumerate(drawn) for one in some for other in some]
    length = max(len(block.tokens) for some in drawn for block in some)
    forest = Growing([torch.tensor(on.tree.prefixes[states[n]]) for n, _, _ in pairs])
    longest = max(map(len, on.tree.prefixes)) + 1
    voice = Speaker(TabularLM(on.tree, on.reference), forest, longest)
    value = PathValue([(1.0, TabularLM(on.tree, worth))], forest, longest)
    chances = [torch.tensor([_padded(block, length) for block in two], dtype=torch.float64) for _, *two in pairs]
    sizes = {"width": 1, "branches": 2, "length": length}
    found = chunk_beam(voice, value, Limits(length, limits(on).ends), filtered, chances, **sizes)
    often = [torch.zeros(len(some), dtype=torch.float64) for some in drawn]
    for (n, one, other), (answer,) in zip(pairs, found, strict=True):
        row = [block.tokens for block in drawn[n]].index(answer.tokens)
        often[n][row] += math.exp(one.logp + other.logp)
    return often


def _padded(block: Block, length: int) -> list[float]:
    return [*block.chance, *[0.5] * (length - len(block.chance))]


BLOCK_LAWS: tuple[Law[Table], ...] = (
    Law(
        "blockwise",
        "Of two blocks the one that is worth more is kept, with the exact law of the best of two; the KL of whole answers is at "
        "most log 2 - 1/2 for each block that is expected.",
        "Controlled decoding would keep another block than the value's best, or stray further than it says.",
        _blockwise,
    ),
)
