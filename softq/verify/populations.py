"""Whole populations as one exact batch: every completion of a small tree, weighed by how often it is seen and judged so."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from softq.lm.score import Models, score
from softq.mdp.tabular import (
    TokenTree,
    along,
    completions,
    every_pair,
    every_trajectory,
    policy_of,
    random_table,
    token_tree,
)
from softq.records import Batch, FixedPoint, Pairs, Readout, Scored, Tokens
from softq.verify.tables import further, models

SMALL = token_tree([(0,), (1, 1)], vocabulary=3, horizon=2, end=2)
"""Two prompts of different lengths, seven completions each, of one or two tokens."""

TWO = token_tree([(0,), (1, 0), (1, 1)], vocabulary=2, horizon=1)
"""Three prompts with two completions each."""


class Population(NamedTuple):
    """A tree, a reference on it, and one batch that is the whole population."""

    tree: TokenTree
    reference: Tensor  # [S, V] nats
    batch: Batch
    others: Mapping[str, Tensor] | None = None  # [S, V] logits of further models, see `tables.models`

    def at(self, policy: Tensor) -> Models:
        """The models of this population with a policy [S, V] of logits."""
        return models(policy, self.reference, self.tree, self.others)

    def scored(self, reads: tuple[Readout, ...] = ()) -> Scored:
        """What a fixed point may read of the models: the reference's log-probs [B, T] of the rows, and what it declares."""
        ref = {"ref_logp": along(self.tree, self.reference, self.batch.tokens)}
        return {**score(self.at(self.reference), self.batch.tokens, reads), **ref} if reads else ref

    def targets(self, rest: FixedPoint) -> list[Tensor]:
        """The policies [S, V] in nats that a fixed point states here."""
        stated = rest.log_policy(self.scored(rest.reads), self.batch)
        if stated.shape[-1:] != self.batch.tokens.ended.shape or stated.dim() > 2 or stated.isnan().any():
            expected = f"[{len(self.batch.tokens.ended)}], one number a row, or several such"
            raise ValueError(f"the fixed point states shape {list(stated.shape)}, or nan; expected {expected}")
        tokens, first = _distinct(self.batch.tokens)
        return [policy_of(self.tree, tokens, logp[first]) for logp in (stated if stated.dim() == 2 else stated[None])]


def soft_pairs(size: float) -> Population:
    """Every ordered pair of completions of a prompt, drawn by a policy of full support, labelled by σ(R_w - R_l)."""
    leaves, reference, reward = _small(size)
    drawn = (0.5 * along(SMALL, reference, leaves).sum(-1)).exp()
    i, j = every_pair(leaves.prompt)
    weight = drawn[i] * drawn[j] * torch.sigmoid(reward[i] - reward[j])
    return Population(SMALL, reference, Batch(leaves, Pairs(i, j), {"weight": weight, "reward": reward}))


def hard_pairs(size: float) -> Population:
    """One pair a prompt, of its two completions, always labelled the same way."""
    leaves = every_trajectory(TWO)
    reference = random_table(TWO, 3).log_softmax(-1)
    better = torch.tensor([0, 3, 4])
    return Population(TWO, reference, Batch(leaves, Pairs(better, better ^ 1)))


def groups(size: float) -> Population:
    """All completions of a prompt as one group, each with its reward."""
    leaves, reference, reward = _small(size)
    return Population(SMALL, reference, Batch(leaves, None, {"reward": reward}))


def reference_groups(size: float) -> Population:
    """A group a prompt as the reference draws it: sixteen completions, each as often among them as it is likely."""
    leaves, _, reward = _small(size)
    quarters = torch.tensor([[1, 1, 2], [2, 1, 1], [1, 2, 1]], dtype=torch.float64) / 4
    reference = quarters[torch.arange(len(SMALL.prefixes)) % 3].log()
    often = (16 * along(SMALL, reference, leaves).sum(-1).exp()).round().long()
    rows = torch.arange(len(often)).repeat_interleave(often)
    tokens = Tokens(leaves.ids[rows], leaves.action[rows], leaves.ended[rows], leaves.prompt[rows])
    return Population(SMALL, reference, Batch(tokens, None, {"reward": reward[rows]}))


def demonstrations(size: float) -> Population:
    """Every completion, some of them more often than others: one to four times."""
    leaves, reference, _ = _small(size)
    rows = torch.arange(len(leaves.ended)).repeat_interleave(1 + torch.arange(len(leaves.ended)) % 4)
    tokens = Tokens(leaves.ids[rows], leaves.action[rows], leaves.ended[rows], leaves.prompt[rows])
    return Population(SMALL, reference, Batch(tokens))


POPULATIONS: Mapping[str, Callable[[float], Population]] = {
    "soft pairs": soft_pairs,
    "hard pairs": hard_pairs,
    "groups": groups,
    "reference groups": reference_groups,
    "demonstrations": demonstrations,
}
"""By name; the number is the size of the rewards. What each assumes stands in its docstring."""


def population(rest: FixedPoint) -> Population:
    """The population that a fixed point names, with rewards (or further models) of a size that moves its policy by about a nat.

    So laws are as sharp for β = 0.001 as for β = 1. Where β is large rewards stay small enough for labels to be soft, and for
    a fixed point that only unsure labels have, small enough for it to exist. Hard pairs have no rewards. ValueError for a name
    that is none.
    """
    if rest.population not in POPULATIONS:
        raise ValueError(f"no population {rest.population!r}; known are {', '.join(POPULATIONS)}")
    made = POPULATIONS[rest.population]
    size = _small_enough(rest, made, 1.0)
    first = made(size)
    scored = first.scored(rest.reads)
    ratio = rest.log_policy(scored, first.batch) - scored["ref_logp"].sum(-1)
    size = _small_enough(rest, made, min(size / max(float(ratio.std()), 1e-6), 2.0))
    return made(size)._replace(others=further(first.tree, 0.3 * min(size, 1.0)))


def _small_enough(rest: FixedPoint, made: Callable[[float], Population], size: float) -> float:
    """The size, halved until the fixed point exists; rDPO has none where labels are surer than it takes them for."""
    for _ in range(20):
        whole = made(size)
        try:
            rest.log_policy(whole.scored(rest.reads), whole.batch)
            break
        except ArithmeticError:
            size /= 2
    return size


def _small(size: float) -> tuple[Tokens, Tensor, Tensor]:
    """All completions of SMALL, a random reference, and the sum of random rewards of the tokens."""
    leaves = every_trajectory(SMALL)
    reference = random_table(SMALL, 12).log_softmax(-1)
    return leaves, reference, size * along(SMALL, random_table(SMALL, 11), leaves).sum(-1)


def _distinct(tokens: Tokens) -> tuple[Tokens, Tensor]:
    """The rows that differ, and the number of the first of each."""
    which = completions(tokens).tolist()
    first = torch.tensor([which.index(number) for number in dict.fromkeys(which)])
    return Tokens(tokens.ids[first], tokens.action[first], tokens.ended[first], tokens.prompt[first]), first
