"""Pairs compared by log π alone, or by as much of the reference as one asks for: LP(y) = Σ_t log π(y_t|s_t)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from softq import masked
from softq.mdp.readouts import REF_LOGP
from softq.objectives import weights
from softq.objectives.demonstrations import sft
from softq.objectives.divergences import LARGEST
from softq.objectives.fixed_points import balanced, softmax_of_reward
from softq.objectives.links import finite, logistic, not_negative, positive
from softq.objectives.margins import contrast
from softq.objectives.sums import weighted_sum
from softq.records import Batch, FixedPoint, Method, Scored, Term

CERTAIN = -1e-7
"""Nats a token: a completion is taken to be at most so likely, as the odds of what is certain are infinite."""


def likelihood(scored: Scored, batch: Batch) -> Tensor:
    """LP [B] in nats. It is that also where a summand beside this one has a reference scored."""
    return scored["logp"].sum(-1)


def gamma_dpo(*, beta: float = 0.1, gamma: float = 0.5) -> Method:
    """DPO with a share γ of the reference, arXiv 2405.19534: h(β(log π_w/π_l - γ log π_ref,w/π_ref,l)), h(z) = -log σ(z).

    γ = 1 is DPO. γ = 0 is DPO without a reference, which is then not loaded. The score is LP - γ LP_ref.

    Assumes: labels that follow σ(R_w - R_l), as DPO does; with γ below 1 also that what the reference thinks likely needs no
    defence.
    Rests: on pairs labelled by σ(R_w - R_l), at π ∝ π_ref^γ e^{R/β}. Hard labels part for ever.
    TRL: has none; γ = 0 is CPOTrainer's `loss_type: sigmoid` with `cpo_alpha: 0`.
    Choose it: to see how much of what a run learns, or fails to learn, is owed to the reference: DPO does not turn a pair that
    the reference ranks far wrongly.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is {gamma}; expected 0 ≤ gamma ≤ 1, from no reference to DPO")

    def score(scored: Scored, batch: Batch) -> Tensor:
        """LP - γ LP_ref, in nats."""
        return (scored["logp"] - gamma * scored["ref_logp"]).sum(-1)

    method = _by_score("gamma_dpo", score if gamma else likelihood, lambda d: logistic(beta * d), beta)
    rest = FixedPoint("soft pairs", softmax_of_reward(beta, gamma))
    return method._replace(needs=(REF_LOGP,) if gamma else (), fixed_point=rest)


def simpo(*, beta: float = 2.0, gamma: float = 0.5) -> Method:
    """SimPO, arXiv 2405.14734, eq 6: h(β(LP_w/|y_w| - LP_l/|y_l|) - γ), h(z) = -log σ(z).

    The score is the mean log-probability of a token, with no reference: what generation ranks by. γ is the margin in reward
    that is asked for. The official code speaks of the ratio γ/β.

    Assumes: labels that follow from answers' quality per token, and a learning rate so small that the policy stays near where
    it starts, since nothing else holds it there.
    Rests: on soft labels, where the pairs of a prompt balance: a unique distribution, which is solved for. Hard labels part
    for ever.
    TRL: CPOTrainer's `loss_type: simpo` with `cpo_alpha: 0` (its default 1.0 adds a likelihood term); its `simpo_gamma` is γ,
    its `rewards/*` are our scores/*.
    Choose it: when memory has no room for a reference, and answers must not grow longer.
    """
    not_negative("gamma", gamma)

    def score(scored: Scored, batch: Batch) -> Tensor:
        """LP/|y|, in nats a token."""
        return masked.mean(scored["logp"], batch.tokens.action, -1)

    def link(difference: Tensor) -> Tensor:
        return logistic(beta * difference - gamma)

    rest = FixedPoint("soft pairs", balanced(link, length_average=True, share=0.0))
    return _by_score("simpo", score, link, beta)._replace(fixed_point=rest)


def alphapo(*, beta: float = 2.0, gamma: float = 0.5, alpha: float = 0.25) -> Method:
    """AlphaPO, arXiv 2501.03884: h(β(r_w - r_l) - γ), r(y) = (1 - p^{-α})/α, p = e^{LP/|y|}, h(z) = -log σ(z).

    SimPO with another shape of reward, to which it tends as α tends to 0: α > 0 makes differences between unlikely completions
    count more than those between likely ones, α < 0 less. Exponents are clamped at 80.

    Assumes: what simpo does.
    Rests: nowhere that is stated: on soft labels the pairs of a prompt balance at one set of scores, but the constant that makes
    probabilities of them is not known in closed form. Hard labels part for ever.
    TRL: CPOTrainer's `loss_type: alphapo`; its `alpha` is 0 if it is not given, which is SimPO. Its `rewards/*` are our
    scores/*.
    Choose it: where simpo lets the likelihood of the chosen fall too far, with α as one more number to tune.
    """
    not_negative("gamma", gamma)
    if not finite("alpha", alpha):
        raise ValueError("alpha is 0, which is simpo; expected another number")

    def score(scored: Scored, batch: Batch) -> Tensor:
        """(1 - p^{-α})/α, in nats a token to first order."""
        mean = masked.mean(scored["logp"], batch.tokens.action, -1)
        return -torch.expm1((-alpha * mean).clamp(max=LARGEST)) / alpha

    return _by_score("alphapo", score, lambda d: logistic(beta * d - gamma), beta)


def cpo(*, beta: float = 0.1, alpha: float = 1.0) -> Method:
    """CPO, arXiv 2401.08417: h(β(LP_w - LP_l)) + α · NLL, h(z) = -log σ(z), NLL the mean of -log π over tokens of the chosen.

    DPO against a uniform reference, and behaviour cloning of the chosen: the sum of gamma_dpo with γ = 0 and α of sft. The
    mean is over all tokens of chosen completions in a step, so long answers weigh more. A pair's weight counts for the
    comparison alone.

    Assumes: chosen answers that are worth imitating word by word.
    Rests: nowhere that is known: a sum of losses rests between where its summands do. Hard labels part for ever.
    TRL: CPOTrainer's `loss_type: sigmoid`; `cpo_alpha` is α. Its label_smoothing is not here.
    Choose it: for tasks where the chosen answer is close to the only right one, such as translation, and a reference is too
    dear.
    """
    not_negative("alpha", alpha)
    return weighted_sum([(gamma_dpo(beta=beta, gamma=0.0), 1.0), (sft(), alpha)])


def orpo(*, beta: float = 0.1) -> Method:
    """ORPO, arXiv 2403.07691, eq 6: NLL + λ h(o_w - o_l), o(y) = log p/(1-p) with p = e^{LP/|y|}, h(z) = -log σ(z).

    beta is λ, the weight of the odds. NLL is the mean of -log π over the tokens of chosen completions. log p is held at
    -1e-7 or below: the odds of a certain completion are infinite. The score is o(y); `rewards/*` is λ LP. A pair's weight counts
    for the odds alone.

    Assumes: a model that has not been tuned yet, and chosen answers that are worth imitating: it is fine-tuning first of all.
    Rests: nowhere that is known: a sum of losses rests between where its summands do. Hard labels part for ever.
    TRL: ORPOTrainer, where λ is `beta` too; its NLL covers the prompt as well as the completion, here the completion only. Its
    `rewards/*` are λ LP/|y|.
    Choose it: to go from a base model to a preferred one in a single stage, without a reference.
    """

    def log_odds(scored: Scored, batch: Batch) -> Tensor:
        mean = masked.mean(scored["logp"], batch.tokens.action, -1).clamp(max=CERTAIN)
        return mean - log1mexp(mean)

    def score(scored: Scored, batch: Batch) -> Tensor:
        """o(y)/β, so that what is logged is o(y), the log-odds; no unit."""
        return log_odds(scored, batch) / beta

    odds = _by_score("orpo", log_odds, logistic, beta)._replace(reward=score)
    return weighted_sum([(odds, beta), (sft(), 1.0)])


def slic(*, delta: float = 1.0, alpha: float = 0.1) -> Method:
    """SLiC-HF, arXiv 2305.10425: max(0, δ - LP_w + LP_l) - λ LP_w.

    alpha is λ. A pair whose log-probabilities are δ nats apart is left alone; what regularises is the likelihood of the
    chosen, a sum over its tokens. The score is LP, in nats.

    Assumes: the chosen as the target that regularises, as published code does; the paper also takes the target of
    fine-tuning, which pairs do not bring. Sums favour short answers.
    Rests: nowhere that is known: a sum of losses rests between where its summands do. Hard labels part for ever, by the
    likelihood alone once the margin is δ.
    TRL: has none: its `hinge` is RSO's, against the reference (`hinge` here). CPOTrainer's `hinge` is max(0, 1 - β(LP_w -
    LP_l)) with a mean over tokens for the regulariser.
    Choose it: as the plainest calibration of likelihoods, to compare with; its loss is in nats.
    """
    positive("delta", delta)
    not_negative("alpha", alpha)

    def nll(scored: Scored, batch: Batch) -> Tensor:
        return -likelihood(scored, batch)[batch.pairs.chosen]

    calibration = _by_score("slic", likelihood, lambda d: (delta - d).clamp(min=0), 1.0)
    shown = Method((Term("nll", "pair", nll, weights.per_pair),), columns=("weight",))
    return weighted_sum([(calibration, 1.0), (shown, alpha)])


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, to full precision near 0 and far from it; the gradient is finite on both sides."""
    near = x > -math.log(2)
    close, far = torch.where(near, x, -1.0), torch.where(near, -1.0, x)  # what is not chosen must not overflow either
    return torch.where(near, (-close.expm1()).log(), (-far.exp()).log1p())


def _by_score(
    name: str, score: Callable[[Scored, Batch], Tensor], link: Callable[[Tensor], Tensor], beta: float
) -> Method:
    """The mean over pairs of link(score of the chosen less that of the rejected), without a reference."""
    positive("beta", beta)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        return link(contrast(score(scored, batch), batch))

    terms = (Term(name, "pair", loss, weights.per_pair),)
    return Method(terms, beta=beta, columns=("weight",), reward=score)
