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
    """Keys and values of all prompts, in groups of about the same length. A `Sight` of the nodes of the last `make_room`."""

    def __init__(self, forest: Growing, device: torch.device) -> None:
        self.forest, self.device = forest, device
        sizes = forest.last.diff(prepend=torch.tensor([-1]))
        self.slot = torch.full((len(forest),), -1)  # [N] of each node behind a prompt; -1: it has none
        self.groups = [Group(forest, prompts, sizes[prompts], device) for prompts in _alike(sizes)]
        self._group = torch.empty(len(sizes), dtype=torch.int64)  # [P] of each prompt
        for number, group in enumerate(self.groups):
            self._group[group.prompts] = number

    def slot_of(self, nodes: Tensor) -> Tensor:
        """[n] slots; -1 where a node has none."""
        missing = len(self.forest) - len(self.slot)
        if missing > 0:
            self.slot = torch.cat([self.slot, torch.full((missing + len(self.forest),), -1)])
        return self.slot[nodes]

    def make_room(self, nodes: Tensor, alive: Tensor | None) -> None:
        """Slots for new nodes, whose parents have one or get one now; what is dead makes way where there is none left."""
        self.slot_of(nodes)
        number = self._group[self.forest.prompt[nodes]]
        self._now: list[tuple[Group, Tensor]] = []
        for each in number.unique().tolist():
            group, at = self.groups[each], (number == each).nonzero()[:, 0]
            still = None if alive is None else alive[self._group[self.forest.prompt[alive]] == each]
            group.make_room(nodes[at], still, self.slot)
            self._now.append((group, at.to(self.device)))
        order = torch.cat([at for _, at in self._now])
        self._order = order.argsort()

    def attended(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, heads: Heads) -> Tensor:
        """[1, heads, n, D] of the nodes that are computed now -> [1, heads, n, D]; see `Sight`."""
        if len(self._now) == 1:
            return self._now[0][0].attended(module, query, key, value, heads)
        parts = []
        for group, at in self._now:
            q, k, v = (of.index_select(2, at) for of in (query, key, value))
            parts.append(group.attended(module, q, k, v, heads))
        return torch.cat(parts, 2).index_select(2, self._order)

    def plant(self, module: nn.Module, key: Tensor, value: Tensor) -> None:
        """Keep [1, key heads, n, D] of the prompts' n nodes."""
        for group in self.groups:
            group.plant(module, key, value)


class Group:
    """A row a prompt, [P, key heads, T + S, D] of each layer: the prompt's T tokens first, then S slots of nodes behind it."""

    def __init__(self, forest: Growing, prompts: Tensor, sizes: Tensor, device: torch.device) -> None:
        self.forest, self.prompts, self.sizes, self.device = forest, prompts, sizes, device
        self.row = torch.full((len(forest.last),), -1)
        self.row[prompts] = torch.arange(len(prompts))
        self.width = int(sizes.max())  # T
        self.room = SPARE  # S
        self.used = torch.zeros(len(sizes), dtype=torch.int64)  # [P] slots that are taken
        self.sees = torch.zeros(len(sizes), SPARE, SPARE, dtype=torch.bool)  # [P, S, S]: who sees whom
        self.layers: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def make_room(self, nodes: Tensor, alive: Tensor | None, slots: Tensor) -> None:
        """Of nodes of this group; `slots` [N] of all nodes, changed in place."""
        row = self.row[self.forest.prompt[nodes]]
        count = torch.bincount(row, minlength=len(self.used))
        if int((self.used + count).max()) > self.room and alive is not None:
            self._drop(torch.cat([alive, nodes]), slots)  # what a new node stands behind is alive
        if (needed := int((self.used + count).max())) > self.room:
            self._widen(2 * needed)
        within = _ranks(row)
        slot = self.used[row] + within
        slots[nodes] = slot
        self.used += count
        above = self.forest.parent[nodes]
        parent = slots[above]  # -1: the end of a prompt
        for n in _generations(above, nodes):
            inherited = self.sees[row[n], parent[n].clamp(min=0)] & (parent[n] >= 0)[:, None]
            self.sees[row[n], slot[n]] = inherited
            self.sees[row[n], slot[n], slot[n]] = True
        self._look(row, within, slot, int(count.max()))

    def _look(self, row: Tensor, within: Tensor, slot: Tensor, most: int) -> None:
        """What `attended` needs: where the nodes' queries, keys and answers stand, and what each sees."""
        reach = int(self.used.max())
        mask = torch.zeros(len(self.used), most, self.width + reach, dtype=torch.bool)
        mask[..., : self.width] = (torch.arange(self.width) < self.sizes[:, None])[:, None]
        mask[row, within, self.width :] = self.sees[row, slot, :reach]
        self._mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[:, None].to(self.device)
        query = torch.zeros(len(self.used), most, dtype=torch.int64)
        query[row, within] = torch.arange(len(row))
        self._query = query.flatten().to(self.device)
        self._place = row.to(self.device), self.width + slot.to(self.device)
        self._answer = (row * most + within).to(self.device)

    def attended(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, heads: Heads) -> Tensor:
        """[1, heads, n, D] of this group's nodes -> [1, heads, n, D]."""
        row, column = self._place
        keys, values = self.layers[module]
        for kept, new in ((keys, key), (values, value)):
            kept[row, :, column] = new[0].transpose(0, 1)
        reach = self._mask.shape[-1]
        q = query[0].index_select(1, self._query).unflatten(1, (len(self.used), -1)).transpose(0, 1)
        # a row has few queries: heads that share keys ask together, as one head of more
        together = q.unflatten(1, (-1, heads.groups)).flatten(2, 3)
        mask = self._mask.to(q.dtype).repeat(1, 1, heads.groups, 1)
        out = heads.attend(together, keys[:, :, :reach], values[:, :, :reach], mask).reshape(q.shape)
        return out.transpose(0, 1).flatten(1, 2).index_select(1, self._answer)[None]

    def plant(self, module: nn.Module, key: Tensor, value: Tensor) -> None:
        """Keep what is this group's of [1, key heads, n, D], of all prompts' n nodes."""
        row = self.row[self.forest.prompt[: key.shape[2]]]
        mine = (row >= 0).nonzero()[:, 0]
        place = row[mine].to(self.device), self.forest.depth[mine].to(self.device)
        self.layers[module] = self._planted(key, mine, place), self._planted(value, mine, place)

    def _planted(self, new: Tensor, mine: Tensor, place: tuple[Tensor, Tensor]) -> Tensor:
        kept = new.new_zeros(len(self.sizes), new.shape[1], self.width + self.room, new.shape[-1])
        kept[place[0], :, place[1]] = new[0].index_select(1, mine.to(self.device)).transpose(0, 1)
        return kept

    def _drop(self, alive: Tensor, slots: Tensor) -> None:
        """Move what stands above living nodes to the first slots; the others are free."""
        kept = self.forest.above(alive)
        kept = kept[slots[kept] >= 0]
        row = self.row[self.forest.prompt[kept]]
        before, after = slots[kept], _ranks(row)
        self.used = torch.bincount(row, minlength=len(self.used))
        most = int(self.used.max())
        moved = torch.zeros(len(self.used), most, dtype=torch.int64)
        moved[row, after] = before
        columns = self.sees.gather(2, moved[:, None].expand(-1, self.room, -1))
        there = torch.arange(most) < self.used[:, None]  # `moved` has any slot where there is none
        sees = columns.gather(1, moved[..., None].expand(-1, -1, most)) & there[:, None]
        self.sees.zero_()
        self.sees[:, :most, :most] = sees
        slots[: len(self.forest)][self.row[self.forest.prompt] >= 0] = -1
        slots[kept] = after
        index = moved.to(self.device)[:, None, :, None]
        for pair in self.layers.values():
            for of in pair:
                tail = of[:, :, self.width :]
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


def _alike(sizes: Tensor) -> list[Tensor]:
    """Prompts in groups: those of one are at most a quarter, and a few tokens, longer than its shortest."""
    groups: list[list[int]] = []
    for number in sizes.argsort(stable=True).tolist():
        if not groups or int(sizes[number]) > 1.25 * int(sizes[groups[-1][0]]) + SPARE:
            groups.append([])
        groups[-1].append(number)
    return [torch.tensor(numbers) for numbers in groups]


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
