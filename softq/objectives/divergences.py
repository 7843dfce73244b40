"""Pairs compared by the derivative of an f-divergence: h(β (g(L_w) - g(L_l))), g(L) = f'(e^L).

Of the reverse KL g(L) = L: dpo. The constants of f' stay, so a score is 0 at the reference; margins do not see them.
"""

import math

import torch
from torch import Tensor

from softq.objectives.fixed_points import Link, softmax_of_reward, transformed
from softq.objectives.links import fraction, logistic, positive
from softq.objectives.margins import compared
from softq.records import Batch, FixedPoint, Method, Scored, implicit

LARGEST = 80.0
"""Exponents are clamped here: e^80 is a number in float32. Behind it a completion has no gradient."""


def forward_kl_dpo(*, beta: float = 0.1) -> Method:
    """f-DPO with the forward KL, arXiv 2309.16240: h(β (e^{-L_l} - e^{-L_w})).

    scores/* is β g(L), g(L) = 1 - e^{-L}, below 1 and in nats to first order. -L is clamped at 80: a completion that is
    e^80 times less likely than under the reference has no gradient, where the paper's is too large for any step. Long
    before, at L = -10, a chosen completion outweighs thousands of others.

    Assumes: labels drawn by σ(R_w - R_l), and log-ratios of some nats, as short completions or small steps keep them.

    Rests: on soft labels at the best of E[R] - β KL(π_ref‖π): π = π_ref β/(c - R), c making it sum to 1. Every
    completion keeps mass in inverse proportion to its regret. Other than in dpo the mass between pairs that nothing
    connects is not free: e^{-L} of each is compared, not L up to a constant. On pairs that are always labelled the same
    way nowhere.

    TRL: `f_divergence_type: forward_kl` with `loss_type: sigmoid`; the same where it is finite. It does not clamp.

    Choose it: for a policy that stays wide and calibrated, at the price of reward.
    """
    return _diverging("forward_kl_dpo", _forward, lambda s: -torch.log1p(-s), beta)


def js_dpo(*, beta: float = 0.1) -> Method:
    """f-DPO with the Jensen-Shannon divergence, arXiv 2309.16240: h(β (log σ(L_w) - log σ(L_l))).

    scores/* is β g(L), g(L) = log 2σ(L): about L + log 2 far below 0, half of L near it, and never above log 2. Nothing
    needs to be clamped.

    Assumes: labels drawn by σ(R_w - R_l).

    Rests: on soft labels where β log 2σ(L) = R + c, c making Σ π = 1: e^L = 1/(2e^{-(R+c)/β} - 1). On pairs that are
    always labelled the same way nowhere: the rejected one falls for ever.

    TRL: `f_divergence_type: js_divergence` with `loss_type: sigmoid`; the same.

    Choose it: between dpo and forward_kl_dpo: a chosen completion that has gained a few nats counts as done.
    """
    return _diverging("js_dpo", lambda ratio: math.log(2) - logistic(ratio), _js_inverse, beta)


def alpha_dpo(*, beta: float = 0.1, alpha: float = 0.5) -> Method:
    """f-DPO with an α-divergence, arXiv 2309.16240: h(β (e^{(α-1)L_w} - e^{(α-1)L_l})/(α-1)), α from 0 to 1.

    α = 0 is forward_kl_dpo and α = 1 is dpo; the paper's α is 1 - α here. scores/* is β g(L), g(L) = (e^{(α-1)L} -
    1)/(α-1), in nats to first order. (α-1)L is clamped at 80: below L = -80/(1-α) a completion has no gradient, where
    the paper's is too large for any step. Beyond α = 1 the theory fails: completions may end with no mass.

    Assumes: labels drawn by σ(R_w - R_l), and log-ratios of some nats where α is near 0.

    Rests: on soft labels where β g(L) = R + c, c making Σ π = 1: π ∝ π_ref (c' - (1-α)R/β)^{-1/(1-α)}. On pairs that
    are always labelled the same way nowhere.

    TRL: `f_divergence_type: alpha_divergence` with `loss_type: sigmoid`, `f_alpha_divergence_coef` is α; clamped the
    same. In older versions the coefficient was 1-α.

    Choose it: to trade reward for width by one number.
    """
    bend = fraction("alpha", alpha) - 1
    if bend == 0:
        rest = FixedPoint("soft pairs", softmax_of_reward(positive("beta", beta)))
        return compared("alpha_dpo", lambda m: logistic(beta * m), beta=beta, fixed_point=rest)

    def transform(ratio: Tensor) -> Tensor:
        return torch.expm1((bend * ratio).clamp(max=LARGEST)) / bend

    return _diverging("alpha_dpo", transform, lambda s: torch.log1p(bend * s) / bend, beta)


def _forward(ratio: Tensor) -> Tensor:
    return -torch.expm1((-ratio).clamp(max=LARGEST))


def _js_inverse(score: Tensor) -> Tensor:
    log_share = score - math.log(2)  # log σ(L)
    return log_share - torch.log(-torch.expm1(log_share))


def _diverging(name: str, transform: Link, inverse: Link, beta: float) -> Method:
    """h(β (g(L_w) - g(L_l))), with g = transform."""

    def score(scored: Scored, batch: Batch) -> Tensor:
        """g(L), the transform of the log-ratio that the divergence gives; no unit."""
        return transform(implicit(scored, batch))

    rest = FixedPoint("soft pairs", transformed(transform, inverse, positive("beta", beta)))
    return compared(name, lambda m: logistic(beta * m), score, beta=beta, fixed_point=rest)
