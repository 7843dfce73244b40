"""A forest that a search grows: prompts, and behind each every token that was thought of."""

from collections.abc import Sequence

import torch
from torch import Tensor

from softq.records import Tree


class Growing:
    """Nodes are numbered as they come and never move: a prompt's tokens, one prompt after the other, then what is added.

    token, parent, depth, prompt [N] int64; a root's parent is -1, its depth 0. `column(name)` [N] float64 is what is known of
    each node, nan where nothing is.
    """

    def __init__(self, prompts: Sequence[Tensor]) -> None:
        if not prompts or not all(len(ids) for ids in prompts):
            raise ValueError("a search needs prompts of at least one token")
        sizes = torch.tensor([len(ids) for ids in prompts])
        self.last = sizes.cumsum(0) - 1
        """[P] the last node of each prompt: the state in which its answer begins."""
        self._size = int(sizes.sum())
        depth = torch.cat([torch.arange(size) for size in sizes.tolist()])
        parent = torch.arange(-1, self._size - 1).masked_fill(depth == 0, -1)
        prompt = torch.arange(len(prompts)).repeat_interleave(sizes)
        self._ints = torch.stack([torch.cat([ids.cpu().long() for ids in prompts]), parent, depth, prompt])
        self._columns: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return self._size

    @property
    def token(self) -> Tensor:
        """[N] int64."""
        return self._ints[0, : self._size]

    @property
    def parent(self) -> Tensor:
        """[N] int64; -1 at a root."""
        return self._ints[1, : self._size]

    @property
    def depth(self) -> Tensor:
        """[N] int64: the position of the token."""
        return self._ints[2, : self._size]

    @property
    def prompt(self) -> Tensor:
        """[N] int64: which prompt it stands behind, or in."""
        return self._ints[3, : self._size]

    def add(self, token: Tensor, parent: Tensor) -> Tensor:
        """New nodes [n], one a token, behind nodes that are there; two may be alike. Returns their numbers."""
        start, end = self._size, self._size + len(token)
        if end > self._ints.shape[1]:
            self._ints = _wider(self._ints, end)
            self._columns = {name: _wider(column, end) for name, column in self._columns.items()}
        self._ints[0, start:end] = token
        self._ints[1, start:end] = parent
        self._ints[2:, start:end] = self._ints[2:, parent]
        self._ints[2, start:end] += 1
        self._size = end
        return torch.arange(start, end)

    def put(self, name: str, nodes: Tensor, values: Tensor) -> None:
        """Say what is known of some nodes [n]."""
        if name not in self._columns:
            self._columns[name] = torch.full(self._ints.shape[1:], torch.nan, dtype=torch.float64)
        self._columns[name][nodes] = values.detach().double().cpu()

    def column(self, name: str) -> Tensor:
        """[N] float64; nan where nobody said."""
        found = self._columns.get(name)
        return torch.full((self._size,), torch.nan, dtype=torch.float64) if found is None else found[: self._size]

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns."""
        return tuple(self._columns)

    def answer(self, node: int) -> list[int]:
        """The tokens behind the prompt, up to a node and with it."""
        said, first = [], self.last.tolist()[int(self.prompt[node])]
        while node > first:
            said.append(int(self.token[node]))
            node = int(self.parent[node])
        return said[::-1]

    def answered(self, node: int) -> list[int]:
        """The nodes of `answer`."""
        nodes, first = [], self.last.tolist()[int(self.prompt[node])]
        while node > first:
            nodes.append(node)
            node = int(self.parent[node])
        return nodes[::-1]

    def above(self, nodes: Tensor, known: Tensor | None = None) -> Tensor:
        """These nodes and all their ancestors behind the prompts, each once, in order.

        Without those that are `known` [N] bool: with a node, all its ancestors are.
        """
        planted = int(self.last[-1])
        known = torch.zeros(self._size, dtype=torch.bool) if known is None else known
        found = known.clone()
        while len(nodes):
            nodes = nodes[nodes > planted]
            nodes = nodes[~found[nodes]]
            found[nodes] = True
            nodes = self.parent[nodes]
        return (found & ~known).nonzero()[:, 0]

    def tree(self) -> Tree:
        """All of it."""
        return Tree(self.token.clone(), self.parent.clone())


def _wider(values: Tensor, size: int) -> Tensor:
    """Room for `size` and as many again, along the last axis."""
    room = values.new_full((*values.shape[:-1], 2 * size), torch.nan if values.is_floating_point() else 0)
    room[..., : values.shape[-1]] = values
    return room
