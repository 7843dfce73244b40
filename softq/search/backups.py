"""The actions of a state in a tree search: what they make it worth, which of them is tried next, and which is taken in the end.

A state's worth is base ⊕ Σ_a weight_a ⊗ Q_a, in plain sums (the mean), in maxima (hard) or in sums of logarithms (soft).
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from softq.lm.growing import Growing


class Edges(NamedTuple):
    """The actions of n states, side by side."""

    forest: Growing
    states: Tensor  # [n]
    nodes: Tensor  # [n, k] the children
    there: Tensor  # [n, k] bool; where False, there is none

    def of(self, name: str, otherwise: float = 0.0) -> Tensor:
        """[n, k] what a column says of the children, and of what is none."""
        return torch.where(self.there, self.forest.column(name)[self.nodes], otherwise)

    def own(self, name: str) -> Tensor:
        """[n] what a column says of the states."""
        return self.forest.column(name)[self.states]


def puct(edges: Edges) -> Tensor:
    """P √ΣN / (1 + N) [n, k]: how much there is to find out, where the prior is high first (arXiv 2309.15028)."""
    visits = edges.of("visits")
    return edges.of("prior") * visits.sum(-1, keepdim=True).clamp(min=1).sqrt() / (1 + visits)


def ucb(edges: Edges) -> Tensor:
    """√(log ΣN / (1 + N)) [n, k], whatever the prior says (arXiv 2408.07199)."""
    visits = edges.of("visits")
    return (visits.sum(-1, keepdim=True).clamp(min=1).log() / (1 + visits)).sqrt()


class Sums(NamedTuple):
    """A way to add up, ⊕, and to weigh, ⊗."""

    times: Callable[[Tensor, Tensor], Tensor]  # ⊗
    total: Callable[[Tensor, float], Tensor]  # ⊕ over the last axis; of β too
    after: Callable[[float, float, float, float], float]  # others ⊕ weight ⊗ q of numbers; of β too
    nothing: float  # the weight of what does not count
    all: float  # of what counts alone


class Backup(NamedTuple):
    """What a state is worth by its actions, base ⊕ Σ_a weight_a ⊗ Q_a, and which of them is taken in the end.

    On a path all but the Q of the one action that it goes by is known beforehand: its values are a chain of others ⊕ weight ⊗ q.
    """

    weights: Callable[[Edges, float], tuple[Tensor, Tensor]]  # of β too: base [n], weight [n, k]
    sums: Sums
    choice: Callable[[Edges, float], Tensor]  # [n, k]: the highest is taken

    def around(self, edges: Edges, went: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """[n] what states are worth without the child that was gone by, went [n], and its weight; -1: by none.

        Inside a chunk, where nothing is guessed, the one child is all.
        """
        base, weight = self.weights(edges, beta)
        inside, mine = edges.own("guess").isnan(), edges.nodes == went[:, None]
        base, weight = base.masked_fill(inside, self.sums.nothing), weight.masked_fill(inside[:, None], self.sums.all)
        each = self.sums.times(weight, edges.of("value")).masked_fill(mine | ~edges.there, self.sums.nothing)
        # where there is no child, the first stands: it is there
        weight = weight.gather(1, mine.long().argmax(-1, keepdim=True))[:, 0].masked_fill(went < 0, self.sums.nothing)
        return self.sums.total(torch.cat([base[:, None], each], -1), beta), weight


def mean(edges: Edges, beta: float) -> tuple[Tensor, Tensor]:
    """(V_0 + Σ N Q) / (1 + Σ N): below the maximum, as long as other actions were tried."""
    visits = edges.of("visits")
    total = 1 + visits.sum(-1)
    return edges.own("guess") / total, visits / total[:, None]


def hard(edges: Edges, beta: float) -> tuple[Tensor, Tensor]:
    """max Q, actions that were not tried with what is guessed of them."""
    return torch.full_like(edges.own("guess"), -torch.inf), torch.zeros_like(edges.of("value"))


def soft(edges: Edges, beta: float) -> tuple[Tensor, Tensor]:
    """β log Σ_a π_ref e^{Q/β} over the whole vocabulary: a token that is no child has its reward and its state's guess.

    β log π_ref = β log π - r: 0 without a reference.
    """
    return beta * edges.own("left") + edges.own("guess"), beta * edges.of("logp") - edges.of("reward")


def _most_tried(edges: Edges, beta: float) -> Tensor:
    """N, and Q where it ties."""
    visits = edges.of("visits", -1.0)
    return edges.of("value").masked_fill(visits < visits.amax(-1, keepdim=True), -torch.inf)


def _highest(edges: Edges, beta: float) -> Tensor:
    return edges.of("value", -torch.inf)


def _tilted(edges: Edges, beta: float) -> Tensor:
    """log π_ref + Q/β."""
    return edges.of("logp", -torch.inf) + (edges.of("value") - edges.of("reward")) / beta


def _log_total(values: Tensor, beta: float) -> Tensor:
    return beta * (values / beta).logsumexp(-1)


def _log_after(others: float, weight: float, q: float, beta: float) -> float:
    low, high = sorted((others, weight + q))
    return high + beta * math.log1p(math.exp((low - high) / beta))


PLAIN = Sums(torch.mul, lambda x, _: x.sum(-1), lambda others, weight, q, _: others + weight * q, 0.0, 1.0)
MAXIMA = Sums(torch.add, lambda x, _: x.amax(-1), lambda others, weight, q, _: max(others, weight + q), -math.inf, 0.0)
LOGS = Sums(torch.add, _log_total, _log_after, -math.inf, 0.0)
SELECTIONS: Mapping[str, Callable[[Edges], Tensor]] = {"puct": puct, "ucb": ucb}
BACKUPS: Mapping[str, Backup] = {
    "mean": Backup(mean, PLAIN, _most_tried),
    "max": Backup(hard, MAXIMA, _highest),
    "soft": Backup(soft, LOGS, _tilted),
}
