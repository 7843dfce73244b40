"""Decoding that a value guides: the base's logits, tilted by what every next token is worth.

π(a|s) ∝ π_ref(a|s) e^{w V(s ⊕ a)}: value-augmented sampling (arXiv 2405.06639), controlled decoding token by token (arXiv
2310.17022). With V = V*, the soft value at β, and w = 1/β over the whole vocabulary this is π* itself, exactly; with a reward
model for V it is reward-guided search (arXiv 2402.01694).
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from softq.lm.growing import Growing
from softq.lm.model import CausalLM
from softq.lm.reward import RewardModel
from softq.lm.score import LanguageModel, Valued
from softq.lm.walk import walk
from softq.records import Tree
from softq.search.scoring import prompts_of
from softq.search.voice import Voice


class Judge(Protocol):
    """A model whose head says one number of a state."""

    def states(self, tree: Tree) -> Tensor:
        """[N] nodes -> [N, H]."""
        ...

    def logits(self, states: Tensor) -> Tensor:
        """[n, H] -> [n, 1] in float32 or wider, in reward."""
        ...


class Told(NamedTuple):
    """Anything that says values of a tree, a table for one, as a judge: its values are its states."""

    model: Valued

    def states(self, tree: Tree) -> Tensor:
        """[N] nodes -> [N, 1]."""
        return self.model.values(tree)[:, None]

    def logits(self, states: Tensor) -> Tensor:
        """[n, 1] -> [n, 1]."""
        return states


class Guided:
    """A voice, and values with a weight each: base logits + λ (q_a - mean of q), q_a = Σ_k w_k V_k(s ⊕ a).

    Of the base's top_k likeliest tokens, end tokens as any other; q less its mean leaves the others where they are, as if they
    were worth the average. A value of weight 0 is not asked.

    Candidates stand in a forest of their own, which the values walk through: the decoder's holds only what it chose, and a
    candidate that it chose is not computed again. Of what was chosen the decoder's forest knows `value` [N], q in reward; nan
    where a token was no candidate.
    """

    def __init__(
        self,
        base: Voice,
        parts: Sequence[tuple[float, Valued]],
        longest: int,
        *,
        strength: float = 1.0,
        top_k: int = 20,
    ) -> None:
        """parts: weights and models; longest: tokens that a path may have, its prompt included; strength: λ, nats a reward."""
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; expected at least 1 token to be weighed")
        self.base, self.strength, self.top_k = base, strength, top_k
        self._thought = Growing(prompts_of(base.forest))
        asked = [(weight, model) for weight, model in parts if weight and strength]
        judges = [(weight, model if isinstance(model, RewardModel) else Told(model)) for weight, model in asked]
        self._judges = [(weight, judge, walk(judge, self._thought, longest)) for weight, judge in judges]
        self._told = len(base.forest)  # nodes there of which all is told
        self._twin = dict(zip(base.forest.last.tolist(), self._thought.last.tolist(), strict=True))
        # of a node there: the first of the candidates behind it, here, and their tokens
        self._candidates: dict[int, tuple[int, list[int]]] = {}

    @property
    def forest(self) -> Growing:
        """See `Voice`."""
        return self.base.forest

    @property
    def evaluations(self) -> int:
        """See `Voice`: every candidate counts, once for each value."""
        return self.base.evaluations + sum(walked.evaluations for _, _, walked in self._judges)

    def logits(self, nodes: Tensor) -> Tensor:
        """See `Voice`."""
        logits = self.base.logits(nodes)
        if not self._judges:
            return logits
        token = logits.topk(min(self.top_k, logits.shape[-1]), -1).indices
        tokens = token.cpu()
        thought = self._thought.add(tokens.flatten(), self._twins(nodes).repeat_interleave(tokens.shape[1]))
        firsts = thought[:: tokens.shape[1]].tolist()
        self._candidates |= zip(nodes.tolist(), zip(firsts, tokens.tolist(), strict=True), strict=True)
        with torch.no_grad():
            each = [weight * judge.logits(walked.states(thought)).to(logits) for weight, judge, walked in self._judges]
        worth = torch.stack(each).sum(0)[:, 0]
        self._thought.put("value", thought, worth)
        tilt = self.strength * worth.view_as(token)
        return logits.scatter_add(-1, token, tilt - tilt.mean(-1, keepdim=True))

    def keep(self, nodes: Tensor) -> None:
        """See `Voice`."""
        self.base.keep(nodes)
        here = self._twins(nodes) if self._judges else nodes
        self._tell()
        self._candidates.clear()  # of what was not chosen; asked for after all, it is thought of again
        for _, _, walked in self._judges:
            walked.keep(here)

    def _tell(self) -> None:
        """The decoder's forest, what its new nodes are worth."""
        new = torch.arange(self._told, len(self.forest))
        self._told = len(self.forest)
        if self._judges:
            twins = self._twins(new)
            self.forest.put("value", new, self._thought.column("value")[twins])

    def _twins(self, nodes: Tensor) -> Tensor:
        """[n] nodes of the base's forest -> [n] here: the candidates that they were, or new ones."""
        return torch.tensor([self._twin_of(node) for node in nodes.tolist()], dtype=torch.int64)

    def _twin_of(self, node: int) -> int:
        path = [node]
        while path[-1] not in self._twin:
            path.append(int(self.forest.parent[path[-1]]))
        for above, below in pairwise(reversed(path)):
            first, tokens = self._candidates.get(above, (0, []))
            token = int(self.forest.token[below])
            if token in tokens:
                self._twin[below] = first + tokens.index(token)
            else:
                self._twin[below] = int(self._thought.add(torch.tensor([token]), torch.tensor([self._twin[above]])))
        return self._twin[node]


def same_tokens(policy: LanguageModel, value: LanguageModel, name: str) -> Valued:
    """The value, by its name. ValueError where it is none, or lacks tokens that the policy may say."""
    if isinstance(value, CausalLM) and not isinstance(value, RewardModel):
        raise ValueError(
            f"the model {name!r} is a language model; give one that says values: softq train value makes it"
        )
    if value.vocabulary < policy.vocabulary:
        raise ValueError(
            f"the model {name!r} reads {value.vocabulary} tokens, the policy says {policy.vocabulary}: a value shares "
            "the tokenizer of what it guides; train it from a model that does"
        )
    return cast(Valued, value)


def composed(values: str) -> dict[str, float]:
    """Names of models and their weights, of "value" or "value+brief=0.5". ValueError for a weight that is none."""
    found: dict[str, float] = {}
    for part in values.split("+"):
        name, _, weight = (word.strip() for word in part.partition("="))
        try:
            given = float(weight or 1)
        except ValueError:
            given = math.nan
        if not name or name in found or not math.isfinite(given):
            raise ValueError(
                f"values {values!r}: {part!r}; expected names, each once, with a weight or none: value+brief=0.5"
            )
        found[name] = given
    return found
