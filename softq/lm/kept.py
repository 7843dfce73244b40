"""Keys and values of a forest that grows, and the attention of its new nodes to what is kept."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softq.lm.attention import Heads, Packed
from softq.lm.growing import Growing

SPARE = 16  # slots for new nodes behind each prompt, at first


class Kept:
    """A row a prompt, [P, key heads, T + S, D] of each layer: the prompt's T tokens first, then S slots of nodes behind it.

    A `Sight`: the nodes that `make_room` was called for are written to their slots, and see the prompt, their ancestors and
    themselves.
    """

    def __init__(self, forest: Growing, device: torch.device) -> None:
        self.forest, self.device = forest, device
        self.sizes = forest.last.diff(prepend=torch.tensor([-1]))  # [P] tokens of each prompt
        self.width = int(self.sizes.max())  # T
        self.room = SPARE  # S
        self.used = torch.zeros(len(self.sizes), dtype=torch.int64)  # [P] slots that are taken
        self.slot = torch.full((len(forest),), -1)  # [N] of each node behind a prompt; -1: it has none
        self.sees = torch.zeros(
            len(self.sizes), SPARE, SPARE, dtype=torch.bool
        )  # [P, S, S]: who is an ancestor of whom, or itself
        self.layers: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self.now = torch.zeros(0, dtype=torch.int64)  # the nodes that are computed now

    def slot_of(self, nodes: Tensor) -> Tensor:
        """[n] slots; -1 where a node has none."""
        missing = len(self.forest) - len(self.slot)
        if missing > 0:
            self.slot = torch.cat([self.slot, torch.full((missing + len(self.forest),), -1)])
        return self.slot[nodes]

    def make_room(self, nodes: Tensor, alive: Tensor | None) -> None:
        """Slots for new nodes, whose parents have one or get one now; what is dead makes way first."""
        row = self.forest.prompt[nodes]
        count = torch.bincount(row, minlength=len(self.used))
        if int((self.used + count).max()) > self.room and alive is not None:
            self._drop(alive)
        if (needed := int((self.used + count).max())) > self.room:
            self._widen(2 * needed)
        within = _ranks(row)
        slot = self.used[row] + within
        self.slot[nodes] = slot
        self.used += count
        parent = self.slot_of(self.forest.parent[nodes])
        for n in _generations(self.forest.parent[nodes], nodes):
            above = parent[n] >= 0
            self.sees[row[n], slot[n]] = self.sees[row[n], parent[n].clamp(min=0)] & above[:, None]
            self.sees[row[n], slot[n], slot[n]] = True
        self.now, self._row, self._within = nodes, row, within
        reach = int(self.used.max())
        most = int(count.max())
        mask = torch.zeros(len(self.used), most, self.width + reach, dtype=torch.bool)
        mask[..., : self.width] = (torch.arange(self.width) < self.sizes[:, None])[:, None]
        mask[row, within, self.width :] = self.sees[row, slot, :reach]
        self._mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[:, None].to(self.device)
        query = torch.zeros(len(self.used), most, dtype=torch.int64)
        query[row, within] = torch.arange(len(nodes))
        self._query = query.flatten().to(self.device)
        self._place = row.to(self.device), self.width + slot.to(self.device)
        self._answer = (row * most + within).to(self.device)

    def attended(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, heads: Heads) -> Tensor:
        """[1, heads, n, D] of the nodes that are computed now -> [1, heads, n, D]; see `Sight`."""
        row, column = self._place
        keys, values = self.layers[module]
        for kept, new in ((keys, key), (values, value)):
            kept[row, :, column] = new[0].transpose(0, 1)
        reach = self._mask.shape[-1]
        P = len(self.used)
        q = query[0].index_select(1, self._query).unflatten(1, (P, -1)).transpose(0, 1)
        mask = self._mask.to(q.dtype)
        out = heads.attend(q, heads.shared(keys[:, :, :reach]), heads.shared(values[:, :, :reach]), mask)
        return out.transpose(0, 1).flatten(1, 2).index_select(1, self._answer)[None]

    def plant(self, module: nn.Module, key: Tensor, value: Tensor) -> None:
        """Keep [1, key heads, n, D] of the prompts' n nodes."""
        nodes = torch.arange(key.shape[2])
        row, column = self.forest.prompt[nodes].to(self.device), self.forest.depth[nodes].to(self.device)
        self.layers[module] = tuple(self._planted(new, row, column) for new in (key, value))  # pyright: ignore[reportArgumentType]

    def _planted(self, new: Tensor, row: Tensor, column: Tensor) -> Tensor:
        kept = new.new_zeros(len(self.sizes), new.shape[1], self.width + self.room, new.shape[-1])
        kept[row, :, column] = new[0].transpose(0, 1)
        return kept

    def _drop(self, alive: Tensor) -> None:
        """Move what stands above living nodes to the first slots; the others are free."""
        kept = self.forest.above(alive)
        kept = kept[self.slot_of(kept) >= 0]
        row = self.forest.prompt[kept]
        before, after = self.slot[kept], _ranks(row)
        self.used = torch.bincount(row, minlength=len(self.used))
        moved = torch.zeros(len(self.used), max(1, int(self.used.max())), dtype=torch.int64)
        moved[row, after] = before
        most = moved.shape[1]
        columns = self.sees.gather(2, moved[:, None].expand(-1, self.room, -1))
        there = torch.arange(most) < self.used[:, None]  # `moved` has any slot where there is none
        sees = columns.gather(1, moved[..., None].expand(-1, -1, most)) & there[:, None]
        self.sees.zero_()
        self.sees[:, :most, :most] = sees
        self.slot.fill_(-1)
        self.slot[kept] = after
        index = moved.to(self.device)[:, None, :, None]
        for pair in self.layers.values():
            for kept_of in pair:
                tail = kept_of[:, :, self.width :]
                tail[:, :, :most] = tail.gather(2, index.expand(-1, tail.shape[1], -1, tail.shape[3]))

    def _widen(self, room: int) -> None:
        more = room - self.room
        self.sees = F.pad(self.sees, (0, more, 0, more))
        self.layers = {
            module: (F.pad(keys, (0, 0, 0, more)), F.pad(values, (0, 0, 0, more)))
            for module, (keys, values) in self.layers.items()
        }
        self.room = room


class Planting(NamedTuple):
    """The prompts, computed and kept."""

    kept: Kept
    packed: Packed

    def attended(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, heads: Heads) -> Tensor:
        """See `Sight`."""
        self.kept.plant(module, key, value)
        return self.packed.attended(module, query, key, value, heads)


def _ranks(row: Tensor) -> Tensor:
    """[n] how many of the same row stand before each."""
    order = row.argsort(stable=True)
    sorted_row = row[order]
    start = torch.searchsorted(sorted_row, sorted_row)
    ranks = torch.empty_like(row)
    ranks[order] = torch.arange(len(row)) - start
    return ranks


def _generations(parent: Tensor, nodes: Tensor) -> Iterator[Tensor]:
    """Places of nodes, parents before children: each lot stands behind lots before it alone."""
    left = torch.arange(len(nodes))
    while len(left):
        waits = torch.isin(parent[left], nodes[left])
        yield left[~waits]
        left = left[waits]
