"""A model walked through a growing forest: the states of new nodes, without computing again what stands above them.

A prompt is computed once, whatever grows behind it, and so is every node. What is kept of a node is its keys and values, in a
row that all nodes of its prompt share; a new node attends to its ancestors there, through the attention of `lm.attention`. What
no living node stands behind is dropped, so memory follows the tree that is kept, not the tree that was visited.
"""

from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor

from softq.lm.attention import Sight, packed
from softq.lm.growing import Growing
from softq.lm.kept import Kept, Planting
from softq.lm.layouts import seen_by
from softq.lm.model import AdapterOff, CausalLM, switched_off
from softq.records import Tree


class Stateful(Protocol):
    """A model with states; what reads them is the caller's."""

    def states(self, tree: Tree) -> Tensor:
        """[N] nodes -> [N, H]."""
        ...


class Walk(Protocol):
    """A model on its way through a forest."""

    evaluations: int
    """Nodes behind prompts whose states were computed."""

    def states(self, nodes: Tensor) -> Tensor:
        """[n] nodes, the last of a prompt or behind one -> [n, H]. Ancestors that were not seen, or dropped, are computed too."""
        ...

    def keep(self, nodes: Tensor) -> None:
        """Only these nodes will be gone on from: drop what stands above none of them."""
        ...


def walk(model: Stateful, forest: Growing, longest: int) -> Walk:
    """A model's walk through a forest: with what it computed kept, where its attention can be run over a tree.

    Where it can not (see `lm.probe`), or where paths of `longest` tokens, prompt included, reach beyond its window, every path is
    computed again at every step: slow, and right.
    """
    whole = model.policy if isinstance(model, AdapterOff) else model
    if isinstance(whole, CausalLM) and whole.layout != "plain" and (whole.window is None or longest < whole.window):
        return Cached(whole, forest, off=whole is not model)
    return Again(model, forest)


class Again:
    """The walk that computes every path anew."""

    def __init__(self, model: Stateful, forest: Growing) -> None:
        self.model, self.forest = model, forest
        self.evaluations = 0
        self._seen: set[int] = set()

    def states(self, nodes: Tensor) -> Tensor:
        """[n] -> [n, H]."""
        forest = self.forest
        behind = forest.above(nodes)
        fresh = set(behind.tolist()) - self._seen
        self.evaluations += len(fresh)
        self._seen |= fresh
        within = torch.zeros(len(forest), dtype=torch.bool)
        within[: int(forest.last[-1]) + 1] = torch.isin(forest.prompt[: int(forest.last[-1]) + 1], forest.prompt[nodes])
        within[behind] = True
        # trees stand end to end, so the nodes of a prompt come together
        order = within.nonzero()[:, 0]
        order = order[forest.prompt[order].argsort(stable=True)]
        place = torch.full((len(forest) + 1,), -1)
        place[order] = torch.arange(len(order))
        states = self.model.states(Tree(forest.token[order], place[forest.parent[order]]))
        return states.index_select(0, place[nodes].to(states.device))

    def keep(self, nodes: Tensor) -> None:
        """Nothing is kept."""


class Cached:
    """The walk that keeps keys and values: of the prompts, and behind them of what is alive."""

    def __init__(self, model: CausalLM, forest: Growing, off: bool) -> None:
        self.model, self.forest, self.off = model, forest, off
        self.evaluations = 0
        self.kept = Kept(forest, next(model.parameters()).device)
        self._alive: Tensor | None = None  # None: all
        roots = torch.arange(int(forest.last[-1]) + 1)
        prompts = Tree(forest.token[roots], forest.parent[roots])
        sight = Planting(self.kept, packed(prompts, self.kept.device))
        self._ends = self._run(roots, sight).index_select(0, forest.last.to(self.kept.device))

    def states(self, nodes: Tensor) -> Tensor:
        """[n] -> [n, H]."""
        fresh = self.forest.above(nodes, self.kept.slot_of(torch.arange(len(self.forest))) >= 0)
        place = torch.full((len(self.forest),), -1)
        place[self.forest.last] = torch.arange(len(self.forest.last))
        place[fresh] = len(self.forest.last) + torch.arange(len(fresh))
        if int(place[nodes].min()) < 0:
            raise ValueError("the state of a node is given once, and those inside a prompt never")
        states = self._ends
        if len(fresh):
            self.kept.make_room(fresh, self._alive)
            self.evaluations += len(fresh)
            states = torch.cat([states, self._run(fresh, self.kept)])
        return states.index_select(0, place[nodes].to(states.device))

    def keep(self, nodes: Tensor) -> None:
        """Drop what stands above none of these, when room is needed."""
        self._alive = nodes

    def _run(self, nodes: Tensor, sight: Sight) -> Tensor:
        with switched_off(self.model) if self.off else nullcontext():
            ids, positions = self.forest.token[nodes], self.forest.depth[nodes]
            return seen_by(self.model.body, ids[None], positions[None], sight)[0]
