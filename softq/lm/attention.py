"""Attention over trees: a node sees its ancestors and itself, whatever stands beside it in the batch.

Registered with transformers as the attention "softq". It acts on a keyword, `tree=`, that models hand through to their
attention, and is ordinary SDPA where the keyword is absent. Nothing is global: gradient checkpointing, which runs the
forward again during the backward pass, finds the keyword where it was.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from softq.records import Tree

NAME = "softq"


class NotATree(ValueError):
    """The model asks for attention that is not plain causal attention over ancestors."""


class Run(NamedTuple):
    """Consecutive nodes, each the parent of the next: one path. Spans are half-open ranges of node numbers."""

    start: int
    end: int
    above: tuple[tuple[int, int], ...]  # the spans of its ancestors, from the root down


def runs(tree: Tree) -> list[Run]:
    """A forest as its runs: for a prompt with two completions, prompt + first completion, and second completion."""
    parent = tree.parent.tolist()
    starts = [i for i, p in enumerate(parent) if p != i - 1 or i == 0]
    made: list[Run] = []
    for start, end in zip(starts, [*starts[1:], len(parent)], strict=True):
        p = parent[start]
        if p < 0:
            made.append(Run(start, end, ()))
        else:
            over = made[bisect_right(starts, p) - 1]
            made.append(Run(start, end, (*over.above, (over.start, p + 1))))
    return made


class Heads(NamedTuple):
    """How a model's heads attend."""

    scale: float | None
    groups: int  # query heads that share a key head

    def shared(self, keys: Tensor) -> Tensor:
        """[R, key heads, L, D] of keys or values, as `attend` takes them.

        Not on a CPU, grouped heads under a mask take the slowest kernel, so there each query head gets a copy.
        """
        return keys if keys.device.type == "cpu" else repeat_kv(keys, self.groups)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """[R, heads, L, D]; without a mask, causal."""
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=self.scale, enable_gqa=grouped
        )


class Sight(Protocol):
    """Who sees whom."""

    def attended(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, heads: Heads) -> Tensor:
        """[R, heads, L, D] queries, keys and values of what is computed now -> [R, heads, L, D]."""
        ...


@dataclass(frozen=True)
class Packed:
    """All trees in one row, end to end. One attention call a run."""

    sizes: tuple[int, ...]  # of the runs
    pieces: tuple[int, ...]  # sizes; a piece is what is always seen together
    keys: tuple[tuple[int, ...], ...]  # of each run: the pieces it sees, its own last
    masks: tuple[Tensor | None, ...]  # of each run: [size, keys] bool; None: nothing above, plain causal

    def attended(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, heads: Heads) -> Tensor:
        """See `Sight`."""
        keys, values = (heads.shared(part).split(self.pieces, 2) for part in (key, value))
        parts = []
        for q, seen, mask in zip(query.split(self.sizes, 2), self.keys, self.masks, strict=True):
            k, v = (
                part[seen[0]] if len(seen) == 1 else torch.cat([part[p] for p in seen], 2) for part in (keys, values)
            )
            parts.append(heads.attend(q, k, v, mask))
        return torch.cat(parts, 2)


@dataclass(frozen=True)
class Padded:
    """One tree a row."""

    mask: Tensor  # [R, 1, L, L] bool

    def attended(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, heads: Heads) -> Tensor:
        """See `Sight`."""
        return heads.attend(query, heads.shared(key), heads.shared(value), self.mask)


def packed(tree: Tree, device: torch.device) -> Packed:
    """What attention needs of a forest in one row."""
    paths = runs(tree)
    cuts = sorted({len(tree.parent), *(end for run in paths for end in (run.start, *(stop for _, stop in run.above)))})
    number = {start: k for k, start in enumerate(cuts)}
    keys, masks = [], []
    for run in paths:
        spans = (*run.above, (run.start, run.end))
        keys.append(tuple(k for start, end in spans for k in range(number[start], number[end])))
        size, above = run.end - run.start, sum(end - start for start, end in run.above)
        mask = torch.ones(size, above + size, dtype=torch.bool, device=device).tril(above) if above else None
        masks.append(mask)
    sizes = tuple(run.end - run.start for run in paths)
    return Packed(sizes, tuple(end - start for start, end in pairwise(cuts)), tuple(keys), tuple(masks))


def padded(tree: Tree, spans: Sequence[tuple[int, int]], device: torch.device) -> Padded:
    """What attention needs of a forest with one tree a row; `spans` are the trees. Padding sees itself."""
    width = max(end - start for start, end in spans)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(spans), 1, 1)
    starts = [start for start, _ in spans]
    for run in runs(tree):
        row = bisect_right(starts, run.start) - 1
        first, last = run.start - starts[row], run.end - starts[row]
        sees[row, first:last, first:last] = torch.ones(last - first, last - first, dtype=torch.bool).tril()
        for start, end in run.above:
            sees[row, first:last, start - starts[row] : end - starts[row]] = True
    return Padded(sees[:, None].to(device))


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: Sight | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """[R, heads, L, D] queries, keys, values -> [R, L, heads, D]; transformers' attention interface with a `tree`."""
    if tree is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    for feature in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(feature) is not None:
            raise NotATree(f"this model's attention uses {feature}")
    heads = Heads(kwargs.get("scaling"), query.shape[1] // key.shape[1])
    return tree.attended(module, query, key, value, heads).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the attention known to transformers, with the ordinary mask for ordinary calls."""
    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
