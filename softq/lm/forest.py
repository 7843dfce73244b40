"""Rows to trees: a prefix that rows of one prompt share is one path, computed once."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from softq.records import Tokens, Tree


class Forest(NamedTuple):
    """One tree a prompt, end to end, and where each row's states stand in it."""

    tree: Tree
    node: Tensor  # [B, T] int64; the node of state t, -1 after the last state that is acted on


def grow(tokens: Tokens) -> Forest:
    """The smallest forest that holds every state up to a row's last action.

    Rows of one prompt share their longest common prefix, whatever its length: usually the prompt, and also a common start
    of two completions. The last id of a row is no state that anybody acts on, so it is no node.
    """
    ids, prompt = tokens.ids.numpy(), tokens.prompt.numpy()
    lengths = _states(tokens.action.numpy())
    node = np.full(tokens.action.shape, -1, dtype=np.int64)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    size = 0
    for rows in (np.flatnonzero(prompt == number) for number in dict.fromkeys(prompt.tolist())):
        for position, b in enumerate(rows.tolist()):
            shared, like = _longest_prefix(ids, lengths, b, rows[:position])
            fresh = np.arange(size, size + lengths[b] - shared)
            node[b, :shared] = node[like, :shared]
            node[b, shared : lengths[b]] = fresh
            before = node[b, shared - 1] if shared else -1
            parents = np.concatenate([[before], fresh[:-1]])[: len(fresh)]
            parts.append((ids[b, shared : lengths[b]], parents))
            size += len(fresh)
    token, parent = (torch.from_numpy(np.concatenate(part).astype(np.int64)) for part in zip(*parts, strict=True))
    return Forest(Tree(token, parent), torch.from_numpy(node))


def _states(action: np.ndarray) -> np.ndarray:
    """[B] the number of states up to the last action of each row."""
    backwards = action[:, ::-1].argmax(-1)
    return np.where(action.any(-1), action.shape[1] - backwards, 0)


def _longest_prefix(ids: np.ndarray, lengths: np.ndarray, b: int, earlier: np.ndarray) -> tuple[int, int]:
    """How many states row b shares with an earlier row, and with which (the one that shares most)."""
    best, like = 0, b
    for other in earlier:
        width = min(lengths[b], lengths[other])
        same = ids[b, :width] == ids[other, :width]
        shared = width if same.all() else int(same.argmin())
        if shared > best:
            best, like = int(shared), other
        if best == lengths[b]:
            break
    return best, like
