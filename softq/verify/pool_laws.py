"""The laws of many samples: best of N and rejection, on tables, against every pool that can be drawn."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from softq.mdp.tabular import every_draw
from softq.search import best_of as best
from softq.search import rejection
from softq.search.answer import Answer
from softq.verify.law import EXACT, Finding, Law, apart
from softq.verify.search_laws import GAP, worst
from softq.verify.theory import Table

CLASSES = 4  # that answers are sorted into, so that many tie
CHANCES = 41
MANY = 10**6  # samples, among which the best answer is certain to be, if it is likely
LIKELY = 10.0  # nats


class Drawn(NamedTuple):
    """The answers that a prompt has, as the reference draws them, and what each is worth."""

    logp: Tensor  # [B] nats, of the reference
    reward: Tensor  # [B]
    optimum: Tensor  # [B] log π*, nats
    start: float  # V*(s_0), in reward


def drawn(on: Table) -> Iterator[Drawn]:
    """Prompt by prompt; answers that can not be drawn are left out."""
    reward, reference = on.sums(on.reward), on.sums(on.reference)
    for prompt in on.leaves.prompt.unique().tolist():
        at = on.alive & (on.leaves.prompt == prompt)
        start = float(on.optimum.v[prompt])
        yield Drawn(reference[at], reward[at], reference[at] + (reward[at] - start) / on.beta, start)


def _best_of(on: Table) -> Finding:
    """The law of two against what is kept of every pool of two; of 2k it is that of two that are each the best of k."""
    off, notes = 0.0, []
    for of in drawn(on):
        for score in (of.reward, _classes(of.reward)):
            off = worst(off, apart(best.law(of.logp, score, 2).exp(), _kept(of.logp, score)))
            after = of.logp
            for doubled in range(1, 7):
                after = best.law(after, score, 2)
                off = worst(off, apart(best.law(of.logp, score, 2**doubled).exp(), after.exp()))
                divergence = best.divergence(of.logp, score, 2**doubled)
                off = worst(off, abs(divergence - _divergence(after, of.logp)), divergence - best.bound(2**doubled))
            top = float(of.logp[score == score.max()].logsumexp(0))
            off = worst(off, best.divergence(of.logp, score, MANY) + top)
            if top > -LIKELY:
                off = worst(off, abs(best.divergence(of.logp, score, MANY) + top))
        notes.append(f"{best.divergence(of.logp, of.reward, 16):.3g}")
    return Finding(off, EXACT, f"KL of the best of 16 in nats: {', '.join(notes)}; its bound {best.bound(16):.3g}")


def _kept(logp: Tensor, score: Tensor) -> Tensor:
    """[B] how often the decoder keeps each answer, over all pools of two."""
    pools = every_draw(torch.zeros(len(logp), dtype=torch.int64), 2)
    answers = [[Answer(0, row, (row,), True, 0.0, 0.0) for row in pool] for pool in pools.tolist()]
    found = best.best_of(answers, lambda each: score[[answer.node for answer in each]])
    kept = torch.tensor([answer.node for (answer,) in found])
    return torch.zeros_like(logp).index_add(0, kept, logp[pools].sum(-1).exp())


def _divergence(after: Tensor, before: Tensor) -> float:
    there = after.exp() > 0
    return float((after.exp() * (after - before))[there].sum())


def _classes(reward: Tensor) -> Tensor:
    """[B] rewards, rounded until many tie."""
    return ((reward - reward.min()) / (reward.max() - reward.min()) * (CLASSES - 1)).round()


def _rejected(on: Table) -> Finding:
    """With the highest reward known, what is kept of the reference's draws is ∝ π*; of a pool that knows only its own, it is
    off by a KL, which of a pool of one is that of the reference."""
    off, gaps = 0.0, []
    for of in drawn(on):
        every = torch.zeros(len(of.logp), dtype=torch.int64)
        laws = [rejection.law(of.logp, of.reward, every_draw(every, m), temperature=on.beta) for m in (1, 2, 3)]
        gap = [_divergence(law, of.optimum) for law in laws]
        off = worst(off, apart(laws[0], of.logp), float(min(gap) < GAP))
        off = worst(off, *(abs(float(law.exp().sum()) - 1) for law in laws))
        top = int(of.reward.argmax())
        last = torch.stack([torch.arange(len(every)), torch.full_like(every, top)], -1)  # each answer before the best
        found = rejection.law(of.logp, of.reward, last, temperature=on.beta)
        known = of.logp[top] + of.optimum + (of.start - of.reward[top]) / on.beta
        others = every.new_ones(len(every)).bool().index_fill(0, torch.tensor(top), False)
        off = worst(off, apart(found[others].exp(), known[others].exp()))
        off = worst(
            off, _wrongly(of.reward[last], torch.where(others, (known - of.logp[top] - of.logp).exp(), 1.0), on.beta)
        )
        gaps.append(" ".join(f"{each:.2g}" for each in gap))
    return Finding(off, EXACT, f"KL to π* in nats of pools of 1, 2 and 3: {', '.join(gaps)}")


def _wrongly(pools: Tensor, share: Tensor, beta: float) -> float:
    """How far off the decoder is from keeping the first of each pool [B, 2] with these chances [B], beyond its grid's width."""
    grid = (torch.arange(CHANCES, dtype=torch.float64) + 0.5) / CHANCES
    often = [
        sum(
            rejection.accepted(pool, 1, torch.stack([chance, grid[0]]).expand(2, 2), temperature=beta) == [0]
            for chance in grid
        )
        for pool in pools
    ]
    return float((torch.tensor(often) / CHANCES - share).abs().max() - 1 / CHANCES)


POOL_LAWS: tuple[Law[Table], ...] = (
    Law(
        "best of N",
        "The best of N has probability F(c)^N - F_(c)^N a class of equal scores; its KL ends, where the bound grows on.",
        "What best of N gains and costs would be told by a bound, or wrongly where answers tie.",
        _best_of,
    ),
    Law(
        "rejected",
        "Draws of the reference, kept with e^{(R - max R)/β}, are π*'s; where max R is a pool's own best, they are not.",
        "Rejection sampling would be taken for the optimum, or would not reach it with the true bound.",
        _rejected,
    ),
)
