"""Soft Q-functions on a token tree, from r to Q* and back (arXiv 2404.12358).

Two parametrisations circulate. Here Q is the reference-relative one: Q(s,a) = r(s,a) + V(s'), with
V(s) = β log Σ_a π_ref(a|s) e^{Q(s,a)/β}; `maxent` turns it into the paper's Q + β log π_ref. V and π* are the same in both.
The logits of a model are Q*/β only up to a constant per state, so V* can not be read off a policy; the implicit reward,
β log π*/π_ref = r(s,a) + V*(s') - V*(s), does not depend on that constant.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from softq.mdp.tabular import TokenTree


class Optimum(NamedTuple):
    """What is optimal under a reward, a reference and β."""

    q: Tensor  # [S, V] reward units, reference-relative
    v: Tensor  # [S] reward units
    logp: Tensor  # [S, V] nats, log π*


def soft_backup(tree: TokenTree, reward: Tensor, ref_logp: Tensor, *, beta: float) -> Optimum:
    """Q*, V* and π* by one pass from the leaves (arXiv 2404.12358, eqs 5 to 7).

    reward [S, V] in reward units, ref_logp [S, V] in nats. Terminal states have value 0.
    """
    value = torch.zeros(len(tree.prefixes), dtype=reward.dtype)
    q = torch.zeros_like(reward)
    for depth in range(int(tree.depth.max()), -1, -1):
        layer = (tree.depth == depth).nonzero()[:, 0]
        after = tree.next[layer]
        q[layer] = reward[layer] + torch.where(after >= 0, value[after.clamp(min=0)], 0.0)
        value[layer] = beta * (ref_logp[layer] + q[layer] / beta).logsumexp(-1)
    return Optimum(q, value, ref_logp + (q - value[:, None]) / beta)


def maxent(q: Tensor, ref_logp: Tensor, *, beta: float) -> Tensor:
    """The paper's Q* [S, V] = Q + β log π_ref, whose softmax at temperature β is π* (eq 7)."""
    return q + beta * ref_logp


def implicit_reward(logp: Tensor, ref_logp: Tensor, *, beta: float) -> Tensor:
    """β log π/π_ref, any shape, in reward units: the KL-relative advantage (eq 10), free of the gauge of the logits."""
    return beta * (logp - ref_logp)


def shaped(tree: TokenTree, reward: Tensor, potential: Tensor) -> Tensor:
    """r + Φ(s') - Φ(s) with Φ = 0 at terminals (Definition 1): the same π*, and V* moves by -Φ."""
    after = torch.where(tree.next >= 0, potential[tree.next.clamp(min=0)], 0.0)
    return reward + after - potential[:, None]
