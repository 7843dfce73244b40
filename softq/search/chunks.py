"""Chunk-level beam search: a proposal writes a chunk at a time, a score of what is there so far keeps the best.

Weak-to-strong search (arXiv 2405.19262): the proposal is a large model, the score the log-ratio of a small tuned and untuned one.

One beam is blockwise best-of-K: controlled decoding (arXiv 2310.17022), where the score is a value. One beam and one chunk is
best-of-K.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from softq.lm.growing import Growing
from softq.lm.reward import RewardModel
from softq.lm.score import Valued
from softq.lm.walk import walk
from softq.search.answer import Answer, Limits, answer
from softq.search.guided import Told
from softq.search.sampling import gone_on, uniform
from softq.search.voice import Voice

STATES = 1024  # whose logits exist at once


class PathScore(Protocol):
    """How good what is said up to a node is."""

    @property
    def evaluations(self) -> int:
        """Token-evaluations so far: nodes behind prompts, once for each model that computed them."""
        ...

    def __call__(self, forest: Growing, nodes: Tensor) -> Tensor:
        """[n] nodes -> [n], higher is better. From none but these will be gone on."""
        ...


def chunk_beam(
    voice: Voice,
    score: PathScore,
    limits: Limits,
    draw: Callable[[Tensor], Tensor],
    chances: Sequence[Tensor],
    *,
    width: int = 4,
    branches: int = 4,
    length: int = 10,
) -> list[list[Answer]]:
    """Of each prompt, the `width` best answers: each beam goes on `branches` times by `length` tokens, the best paths stay.

    chances: of each prompt [width * branches, tokens] numbers in [0, 1). Finished paths stay among the beams as long as their
    score does, unnormalised: a score that grows with length favours what is longer. Paths that are alike count once.
    """
    if min(width, branches, length) < 1:
        raise ValueError(f"{width} beams, {branches} branches of {length} tokens: expected at least 1 of each")
    forest = voice.forest
    beams = {prompt: [node] for prompt, node in enumerate(forest.last.tolist())}
    ended: set[int] = set()
    scores: dict[int, float] = {}
    chance = torch.stack(list(chances))
    for start in range(0, limits.tokens, length):
        stem, rows = _stems(beams, ended, width, branches)
        if not stem:
            break
        at, over = gone_on(
            voice,
            limits,
            draw,
            torch.tensor(stem),
            torch.stack([chance[p, k] for p, k in rows])[:, start : start + length],
        )
        ended |= set(at[over].tolist())
        fresh = at.unique()
        scores |= zip(fresh.tolist(), score(forest, fresh).double().tolist(), strict=True)
        beams = _kept(forest, _finished(beams, ended), fresh.tolist(), scores, width)
        live = [node for nodes in beams.values() for node in nodes if node not in ended]
        voice.keep(torch.tensor(live, dtype=torch.int64))
    return [[answer(forest, node, node in ended, scores[node]) for node in nodes] for nodes in beams.values()]


def uniforms(seed: int, numbers: Tensor, samples: int, tokens: int) -> list[Tensor]:
    """The numbers of each prompt: with one beam and one chunk, those of `sampling.sample`."""
    return [uniform(seed, number, (samples, tokens)) for number in numbers.tolist()]


def _stems(
    beams: dict[int, list[int]], ended: set[int], width: int, branches: int
) -> tuple[list[int], list[tuple[int, int]]]:
    """The node that each new sample starts from, and which numbers it has: (prompt, row). A lone beam gets all the samples."""
    stem, rows = [], []
    for prompt, nodes in beams.items():
        live = [node for node in nodes if node not in ended]
        each = width * branches if len(nodes) == 1 else branches
        stem += [node for node in live for _ in range(each)]
        rows += [(prompt, k) for k in range(each * len(live))]
    return stem, rows


def _finished(beams: dict[int, list[int]], ended: set[int]) -> dict[int, list[int]]:
    """Of each prompt, the beams that are at their end."""
    return {prompt: [node for node in nodes if node in ended] for prompt, nodes in beams.items()}


def _kept(
    forest: Growing, finished: dict[int, list[int]], fresh: list[int], scores: dict[int, float], width: int
) -> dict[int, list[int]]:
    """The best paths of each prompt, of those that are finished and those that are new; of ties, and of twins, the first."""
    found = {prompt: {tuple(forest.answer(node)): node for node in nodes} for prompt, nodes in finished.items()}
    for node in fresh:
        found[int(forest.prompt[node])].setdefault(tuple(forest.answer(node)), node)
    return {
        prompt: sorted(nodes.values(), key=lambda node: (-scores[node], node))[:width]
        for prompt, nodes in found.items()
    }


class PathValue:
    """Σ_k w_k V_k of the state behind a node, in reward: at an end, of the end's own state. A value of weight 0 is not asked."""

    def __init__(self, parts: Sequence[tuple[float, Valued]], forest: Growing, longest: int) -> None:
        """parts: weights and models; longest: tokens that a path may have, its prompt included."""
        asked = [(weight, model) for weight, model in parts if weight]
        judges = [(weight, model if isinstance(model, RewardModel) else Told(model)) for weight, model in asked]
        self._judges = [(weight, judge, walk(judge, forest, longest)) for weight, judge in judges]

    @property
    def evaluations(self) -> int:
        """See `PathScore`."""
        return sum(walked.evaluations for _, _, walked in self._judges)

    def __call__(self, forest: Growing, nodes: Tensor) -> Tensor:
        """See `PathScore`."""
        value = torch.zeros(len(nodes), dtype=torch.float64)
        for weight, judge, walked in self._judges:
            with torch.no_grad():
                value += weight * judge.logits(walked.states(nodes))[:, 0].double().cpu()
            walked.keep(nodes)
        forest.put("value", nodes, value)
        return value


class PathRatio(NamedTuple):
    """Σ log π_tuned/π_untuned up to a node, nats; what each model says of a node is kept in the forest."""

    tuned: Voice
    untuned: Voice

    @property
    def evaluations(self) -> int:
        """See `PathScore`."""
        return self.tuned.evaluations + self.untuned.evaluations

    def __call__(self, forest: Growing, nodes: Tensor) -> Tensor:
        """See `PathScore`."""
        path = forest.above(nodes)
        fresh = path[forest.column("ratio")[path].isnan()]
        for name, voice in (("tuned_logp", self.tuned), ("untuned_logp", self.untuned)):
            _told(forest, name, voice, fresh)
            voice.keep(nodes)
        step = forest.column("tuned_logp")[fresh] - forest.column("untuned_logp")[fresh]
        for depth in forest.depth[fresh].unique().tolist():
            at = forest.depth[fresh] == depth
            before = forest.column("ratio")[forest.parent[fresh[at]]].nan_to_num()  # nothing was said of a prompt
            forest.put("ratio", fresh[at], before + step[at])
        return forest.column("ratio")[nodes]


def _told(forest: Growing, name: str, voice: Voice, nodes: Tensor) -> None:
    """Keep what a voice says of nodes, [n] nats, asking for the states above them in parts."""
    states, row = forest.parent[nodes].unique(return_inverse=True)
    for number, part in enumerate(states.split(STATES)):
        there = (row >= number * STATES) & (row < number * STATES + len(part))
        logp = voice.logits(part).log_softmax(-1).cpu()
        forest.put(name, nodes[there], logp[row[there] - number * STATES, forest.token[nodes[there]]])
