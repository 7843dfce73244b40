"""Attention over trees: a node sees its ancestors and itself, whatever stands beside it in the batch.

Registered with transformers as the attention "softq". It acts on a keyword, `tree=`, that models hand through to their
attention, and is ordinary SDPA where the keyword is absent. Nothing is global: gradient checkpointing, which runs the
forward again during the backward pass, finds the keyword where it was.
"""

from dataclasses import dataclass
from itertools import pairwise

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


@dataclass(frozen=True)
class Run:
    """Consecutive nodes, each the parent of the next, and what they see: earlier pieces, then themselves."""

    size: int
    pieces: tuple[int, ...]  # numbers of the pieces that hold its keys, its own last
    mask: Tensor | None  # [size, keys] bool; None: nothing above, plain causal


@dataclass(frozen=True)
class Packed:
    """All trees in one row, end to end. One attention call a run: a prompt and its first completion, or a further completion."""

    runs: tuple[Run, ...]
    pieces: tuple[int, ...]  # sizes; a piece is what is always seen together


@dataclass(frozen=True)
class Padded:
    """One tree a row: who sees whom."""

    mask: Tensor  # [R, 1, L, L] bool


def packed(tree: Tree, device: torch.device) -> Packed:
    """The runs of a forest and the pieces that their keys are made of."""
    parent = tree.parent.tolist()
    starts = [i for i, p in enumerate(parent) if p != i - 1 or i == 0]
    ends = [*starts[1:], len(parent)]
    cuts = sorted({*starts, *(parent[s] + 1 for s in starts if parent[s] >= 0), len(parent)})
    number = {start: k for k, start in enumerate(cuts)}
    run_of = {i: r for r, (s, e) in enumerate(zip(starts, ends, strict=True)) for i in range(s, e)}
    above: list[list[int]] = []
    runs = []
    for s, e in zip(starts, ends, strict=True):
        p = parent[s]
        seen = [] if p < 0 else [*above[run_of[p]], *range(number[starts[run_of[p]]], number[p + 1])]
        above.append(seen)
        keys = sum(cuts[k + 1] - cuts[k] for k in seen) + e - s
        mask = None if p < 0 else torch.ones(e - s, keys, dtype=torch.bool, device=device).tril(keys - (e - s))
        runs.append(Run(e - s, (*seen, *range(number[s], number[e])), mask))
    return Packed(tuple(runs), tuple(b - a for a, b in pairwise(cuts)))


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    tree: Packed | Padded | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """[R, heads, L, D] queries, keys, values -> [R, L, heads, D]; transformers' attention interface with a `tree`."""
    if tree is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    for feature in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(feature) is not None:
            raise NotATree(f"this model's attention uses {feature}")
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scale = kwargs.get("scaling")
    if isinstance(tree, Padded):
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=tree.mask, scale=scale)
        return seen.transpose(1, 2).contiguous(), None
    keys, values = key.split(tree.pieces, 2), value.split(tree.pieces, 2)
    parts = []
    for run, q in zip(tree.runs, query.split([run.size for run in tree.runs], 2), strict=True):
        k, v = (torch.cat([part[p] for p in run.pieces], 2) for part in (keys, values))
        causal = run.mask is None
        parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=run.mask, is_causal=causal, scale=scale))
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def register() -> None:
    """Make the attention known to transformers, with the ordinary mask for ordinary calls."""
    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
