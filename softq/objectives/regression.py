"""One target, four constructions (arXiv 2502.03095): losses over groups that all lead to π ∝ π_ref e^{r/β}.

The rows of one `prompt` number are a group, its column `reward` r; L(y) = Σ_t log π/π_ref. At the target βL = r - β log Z.
They differ in the way there, and in what they assume of where completions come from.
"""

from typing import Literal

import torch
from torch import Tensor

from softq.objectives.fixed_points import softmax_of_reward
from softq.objectives.links import (
    group_log_softmax,
    group_mean,
    group_pairs,
    one_of,
    positive,
    smoothed_logistic,
)
from softq.objectives.rankings import by_group, reverse_kl
from softq.records import FixedPoint, Method


def reward_regression(*, beta: float = 0.1, value: Literal["log_z", "fitted"] = "log_z") -> Method:
    """Regression of the implicit reward on the reward, arXiv 2502.03095 and 2505.20686: (r - βL - V)², the mean of a group.

    V is the value of the prompt, β log Z at the target. value=log_z estimates it by the group, V = β log mean_k e^{r_k/β}, as
    A*-PO does from eight samples (at a temperature of its own: here it is β). value=fitted takes the V that fits the group best,
    the mean of r - βL: what a value learned beside the policy would come to if it knew these completions alone. It is not held
    constant, and need not be: where V fits best the loss does not move with it.

    Assumes: with log_z, completions that are samples of the reference; with few of them V is estimated too low, the more so the
    smaller β. With fitted, nothing of where they come from.
    Rests: π ∝ π_ref e^{R/β}: with fitted on any groups of all completions; with log_z where each is in its group as often as the
    reference says it.
    TRL: has none of groups; its A2PO trainer (experimental) is the regression with log_z on new samples of the policy.
    Choose it: for calibrated rewards, when scores of single completions should be met and not only their order; fitted when
    samples are few or not the reference's.
    """
    positive("beta", beta)

    def log_z(ratio: Tensor, reward: Tensor, group: Tensor) -> Tensor:
        groups, size = int(group.max()) + 1, group.bincount().to(reward)
        total = reward / beta - group_log_softmax(reward / beta, group)  # log Σ_k e^{r_k/β}, of each row's group
        v = beta * (total - size.log()[group])
        return group_mean((reward - beta * ratio - v) ** 2, group, groups)

    def fitted(ratio: Tensor, reward: Tensor, group: Tensor) -> Tensor:
        groups, error = int(group.max()) + 1, reward - beta * ratio
        return group_mean((error - group_mean(error, group, groups)[group]) ** 2, group, groups)

    chosen = one_of("value", value, ("log_z", "fitted"))
    rest = FixedPoint("reference groups" if chosen == "log_z" else "groups", softmax_of_reward(beta))
    return by_group("reward_regression", log_z if chosen == "log_z" else fitted, beta, rest)


def rebel(*, beta: float = 0.1) -> Method:
    """REBEL, arXiv 2404.16767: ((r_i - r_j) - β(L_i - L_j))², the mean over all pairs of completions of a group.

    β is the paper's 1/η. What is the same for all completions of a prompt cancels, log Z with it. It is 2K/(K-1) times
    reward_regression with a fitted value. A group of one has no pair, and the loss 0.

    Assumes: rewards whose differences mean something, in one unit for all prompts; completions from anywhere.
    Rests: π ∝ π_ref e^{R/β} among the completions, exactly.
    TRL: has none.
    Choose it: for calibrated rewards, one pair or more a prompt; where only the order can be trusted, all_pairs.
    """
    positive("beta", beta)

    def loss(ratio: Tensor, reward: Tensor, group: Tensor) -> Tensor:
        i, j = _two(group)
        error = reward - beta * ratio
        return group_mean((error[i] - error[j]) ** 2, group[i], int(group.max()) + 1)

    return by_group("rebel", loss, beta, FixedPoint("groups", softmax_of_reward(beta)))


def soft_preference(*, beta: float = 0.1) -> Method:
    """DPO with labels from rewards, arXiv 2502.03095: p h(z) + (1-p) h(-z), p = σ(r_i - r_j), z = β(L_i - L_j), h(z) = -log σ(z).

    The mean over all pairs of two completions of a group: the expectation of DPO's loss over labels drawn by Bradley and Terry's
    model. A group of one has no pair, and the loss 0.

    Assumes: rewards in the unit of log-odds: a difference of 1 means odds of e to 1. Completions from anywhere.
    Rests: π ∝ π_ref e^{R/β} among the completions, exactly.
    TRL: has none.
    Choose it: for rewards of a Bradley-Terry reward model; it is less moved by single large rewards than rebel.
    """
    positive("beta", beta)

    def loss(ratio: Tensor, reward: Tensor, group: Tensor) -> Tensor:
        i, j = _two(group)
        flipped = torch.sigmoid(reward[j] - reward[i])
        pairs = smoothed_logistic(beta * (ratio[i] - ratio[j]), flipped)
        return group_mean(pairs, group[i], int(group.max()) + 1)

    return by_group("soft_preference", loss, beta, FixedPoint("groups", softmax_of_reward(beta)))


def kl_to_target(*, beta: float = 0.1) -> Method:
    """Divergence to the target on samples, arXiv 2502.03095: Σ_k w_k (log w_k - log softmax(r/β)_k), w = softmax(L), in nats.

    Of completions that the reference drew, w are the self-normalised weights of the policy, and the sum estimates
    KL(π ‖ π_ref e^{r/β}/Z), what KL-regularised policy gradients minimise, with an error that falls as one over their number.
    It is the divergence among the candidates, with its own exact gradient: exo_k with beta 1 and alpha β. Completions
    that the policy has all but left, e^L near 0 beside the others', have all but no gradient.

    Assumes: completions that are samples of the reference, for its value; for where it rests, nothing.
    Rests: π ∝ π_ref e^{R/β} among the completions, exactly.
    TRL: has none.
    Choose it: for many samples of the reference a prompt, when what KL-regularised policy gradients want is to be had without
    sampling anew.
    """
    positive("beta", beta)

    def loss(ratio: Tensor, reward: Tensor, group: Tensor) -> Tensor:
        return reverse_kl(group_log_softmax(ratio, group), group_log_softmax(reward / beta, group), group)

    return by_group("kl_to_target", loss, beta, FixedPoint("groups", softmax_of_reward(beta)))


def _two(group: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers (i, j) of all ordered pairs of two rows of one group."""
    i, j = group_pairs(group)
    return i[i != j], j[i != j]
