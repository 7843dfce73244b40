"""Soft Q-functions on a token tree, from r to Q* and back (arXiv 2404.12358).

Two parametrisations circulate, and each name says which it is:

    q_kl(s,a)     = r(s,a) + V(s')                       relative to the reference
    q_maxent(s,a) = r(s,a) + β log π_ref(a|s) + V(s')    the paper's (eq 7): its softmax at temperature β is π*

V and π* are the same in both: V(s) = β log Σ_a π_ref(a|s) e^{q_kl/β} = β log Σ_a e^{q_maxent/β}. Rewards, Q, V and advantages
are in reward units, log-probabilities and KL in nats. V of a terminal state is 0.

Gauge: the logits of a model are q_maxent/β only up to a constant per state, which softmax hides. So neither Q nor V can be read
off a policy; β log π/π_ref can, and at the optimum it is r(s,a) + V(s') - V(s), the KL-relative advantage: the reward, shaped.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from softq import masked
from softq.mdp.tabular import TokenTree, expected


class Optimum(NamedTuple):
    """What is optimal under a reward, a reference and β."""

    q_kl: Tensor  # [S, V]
    q_maxent: Tensor  # [S, V]; -inf where the reference has no mass
    v: Tensor  # [S]
    logp: Tensor  # [S, V] nats, log π*

    @property
    def advantage_kl(self) -> Tensor:
        """[S, V] q_kl - V = β log π*/π_ref (eq 10)."""
        return self.q_kl - self.v[:, None]

    @property
    def advantage_maxent(self) -> Tensor:
        """[S, V] q_maxent - V = β log π*: the paper's A*, which differs from eq 10 by β log π_ref."""
        return self.q_maxent - self.v[:, None]


def soft_backup(tree: TokenTree, reward: Tensor, ref_logp: Tensor, *, beta: float) -> Optimum:
    """Q*, V* and π* by one pass from the leaves (arXiv 2404.12358, eqs 5 to 7). reward, ref_logp: [S, V]."""
    value = torch.zeros(len(tree.prefixes), dtype=reward.dtype)
    q = torch.zeros_like(reward)
    for depth in range(int(tree.depth.max()), -1, -1):
        layer = (tree.depth == depth).nonzero()[:, 0]
        q[layer] = reward[layer] + _after(tree, value)[layer]
        value[layer] = soft_value(maxent(q[layer], ref_logp[layer], beta=beta), beta=beta)
    q_maxent = maxent(q, ref_logp, beta=beta)
    return Optimum(q, q_maxent, value, (q_maxent - value[:, None]) / beta)


def mean_backup(tree: TokenTree, reward: Tensor, logp: Tensor) -> Tensor:
    """Q(s,a) = r(s,a) + E_π[Q(s',·)] [S, V] in reward: what a policy [S, V] in nats earns from an action on. No maximum, no β."""
    value = torch.zeros(len(tree.prefixes), dtype=reward.dtype)
    q = torch.zeros_like(reward)
    for depth in range(int(tree.depth.max()), -1, -1):
        layer = (tree.depth == depth).nonzero()[:, 0]
        q[layer] = reward[layer] + _after(tree, value)[layer]
        value[layer] = masked.product(logp[layer].exp(), q[layer]).sum(-1)
    return q


def soft_value(q_maxent: Tensor, *, beta: float) -> Tensor:
    """V = β log Σ_a e^{q_maxent/β} (eq 6): [S, V] -> [S]."""
    return beta * (q_maxent / beta).logsumexp(-1)


def maxent(q_kl: Tensor, ref_logp: Tensor, *, beta: float) -> Tensor:
    """q_maxent = q_kl + β log π_ref."""
    return q_kl + beta * ref_logp


def reward_of_q(tree: TokenTree, q_maxent: Tensor, ref_logp: Tensor, *, beta: float) -> Tensor:
    """The one reward [S, V] whose Q* is q_maxent: r = q_maxent - β log π_ref - V(s') (Lemma 1, the inverse of `soft_backup`).

    nan where the reference has no mass: nothing is known of a reward there.
    """
    return q_maxent - beta * ref_logp - _after(tree, soft_value(q_maxent, beta=beta))


def reward_of_policy(tree: TokenTree, logp: Tensor, ref_logp: Tensor, potential: Tensor, *, beta: float) -> Tensor:
    """A reward [S, V] under which a given policy is optimal: β log π/π_ref + Φ(s) - Φ(s').

    Any policy is optimal for it, whatever the potential Φ [S], and then V* = Φ: the policy says nothing of V.
    """
    return shaped(tree, implicit_reward(logp, ref_logp, beta=beta), -potential)


def implicit_reward(logp: Tensor, ref_logp: Tensor, *, beta: float) -> Tensor:
    """β log π/π_ref, any shape, in reward units: the KL-relative advantage (eq 10), free of the gauge of the logits."""
    return beta * (logp - ref_logp)


def shaped(tree: TokenTree, reward: Tensor, potential: Tensor) -> Tensor:
    """r + Φ(s') - Φ(s) with Φ = 0 at terminals (Definition 1): the same π*, and V* moves by -Φ."""
    return reward + _after(tree, potential) - potential[:, None]


def prefix_value(start: Tensor, implicit: Tensor, reward: Tensor) -> Tensor:
    """V* of every state along trajectories: [B, T + 1], V(s_k) = V(s_0) + Σ_{t<k} (β log π*/π_ref - r)_t.

    start [B] is V*(s_0); implicit and reward [B, T], 0 outside actions. The values are identified only as far as the
    reward of each token and V*(s_0) are: a policy alone does not give them. After the end they are 0.
    """
    return torch.cat([start[:, None], start[:, None] + (implicit - reward).cumsum(-1)], -1)


def log_partition(ref_logp: Tensor, reward: Tensor, group: Tensor, *, beta: float) -> Tensor:
    """log Z(x) = log Σ_y π_ref(y|x) e^{R(y)/β} [G] over all trajectories [B] of a prompt; V*(s_0) = β log Z."""
    each = ref_logp + reward / beta
    highest = torch.full((int(group.max()) + 1,), -torch.inf, dtype=each.dtype).scatter_reduce(0, group, each, "amax")
    total = torch.zeros_like(highest).index_add(0, group, (each - highest[group]).exp())
    return highest + total.log()


def sequence_kl(p_logp: Tensor, q_logp: Tensor, group: Tensor) -> Tensor:
    """KL(p‖q) = Σ_y p(y) log p(y)/q(y) [G] nats over all trajectories [B] of a prompt.

    With E_ref[L] = -KL(π_ref‖π) and E_π[L] = KL(π‖π_ref), L = log π/π_ref: under the reference the implicit reward falls on
    average, by the law of any policy that leaves it, and under the policy it rises (arXiv 2404.12358, eq 16).
    """
    return expected(p_logp, p_logp - q_logp, group)


def state_kl(p_logp: Tensor, q_logp: Tensor) -> Tensor:
    """KL(p‖q) of each state: [S, V], [S, V] -> [S] nats. Weighed by how often p comes there, it adds up to the sequence's."""
    return masked.product(p_logp.exp(), p_logp - q_logp).sum(-1)


def _after(tree: TokenTree, value: Tensor) -> Tensor:
    """[S] -> [S, V]: the value of the state that an action leads to, 0 where it ends the episode."""
    return torch.where(tree.next >= 0, value[tree.next.clamp(min=0)], 0.0)
