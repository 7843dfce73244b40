"""Pairs whose completions differ in length: averaged, charged for, or cut to the shorter one."""

import torch
from torch import Tensor

from softq.mdp.readouts import REF_LOGP
from softq.objectives import weights
from softq.objectives.fixed_points import balanced, softmax_of_reward
from softq.objectives.links import fraction, logistic, not_negative, positive
from softq.objectives.margins import compared, mean_log_ratio
from softq.records import Batch, FixedPoint, Method, Scored, Term, implicit


def dpo_norm(*, beta: float = 5.0) -> Method:
    """Length-normalised DPO, arXiv 2411.15124 (Tülu 3): h(β (L_w/|y_w| - L_l/|y_l|)).

    β is per nat a token, so it is larger than dpo's by about a length. scores/* is β times what is compared.

    Assumes: labels drawn by σ of a difference of rewards per token: what a long answer gains in all counts as little as
    it adds to each token.

    Rests: on soft labels where log-ratios per token balance: β L/|y| = R + c, so π = π_ref e^{|y| (R + c)/β}, c making
    Σ π = 1. On pairs that are always labelled the same way nowhere.

    TRL: `loss_type: sigmoid_norm`, the same; its β is 0.1 unless it is set.

    Choose it: where dpo grows longer answers than its data has, and lengths within a pair differ much.
    """

    def link(margin: Tensor) -> Tensor:
        return logistic(beta * margin)

    rest = FixedPoint("soft pairs", balanced(link, length_average=True))
    return compared("dpo_norm", link, mean_log_ratio, beta=beta, fixed_point=rest)


def rdpo(*, beta: float = 0.1, alpha: float = 0.05) -> Method:
    """R-DPO, arXiv 2403.19159: h(βm + α (|y_w| - |y_l|)).

    The objective is E[R - α|y|] - β KL: a token costs α in reward. The sign is plus: of a longer winner the length
    explains a part, and it learns less. scores/* is βL + α|y|, the reward with the cost given back. (rDPO, for flipped
    labels, is robust.)

    Assumes: labels drawn by σ(R_w - R_l), with an R that pays for length what the policy should not be paid.

    Rests: on soft labels at π ∝ π_ref e^{(R - α|y|)/β}. On pairs that are always labelled the same way nowhere.

    TRL: has none.

    Choose it: where judges are known to favour length, and by about how much: α from 0.005 to 1 is tried in the paper.
    """
    cost = not_negative("alpha", alpha) / positive("beta", beta)

    def score(scored: Scored, batch: Batch) -> Tensor:
        """L + α|y|/β, in nats."""
        ratio = implicit(scored, batch)
        return ratio + cost * batch.tokens.action.sum(-1).to(ratio)

    rest = FixedPoint("soft pairs", softmax_of_reward(beta, per_token=alpha))
    return compared("rdpo", lambda m: logistic(beta * m), score, beta=beta, fixed_point=rest)


def ld_dpo(*, beta: float = 0.1, alpha: float = 0.5) -> Method:
    """LD-DPO, arXiv 2409.06411: h(β (L'_w - L'_l)), L' = Σ_{t≤n} l_t + α Σ_{t>n} l_t, n = min(|y_w|, |y_l|).

    l_t is log π/π_ref of a token: what the longer completion says after the length of the shorter one counts α of that,
    in policy and reference alike. α = 1 is dpo, α = 0 compares prefixes. scores/* is βL', the mean of them where a row
    stands in several pairs.

    Assumes: hard labels, and that what decides stands within the length of the shorter completion.

    Rests: nowhere that is known: the score of a completion depends on what it is compared with, so no one distribution
    gives every pair its margin. On pairs that are always labelled the same way L'_w - L'_l grows for ever.

    TRL: `ld_alpha` with any loss type, the same with `loss_type: sigmoid`. Some libraries cut the policy only; there the
    loss at the reference is not log 2.

    Choose it: where pairs differ in length and the tail should still be learned, but less.
    """
    positive("beta", beta)
    fraction("alpha", alpha)

    def sides(scored: Scored, batch: Batch) -> tuple[Tensor, Tensor]:
        ratio, number = scored["logp"] - scored["ref_logp"], batch.tokens.action.cumsum(-1)  # of an action, from 1
        each = (batch.pairs.chosen, batch.pairs.rejected)
        shorter = torch.minimum(*(number[rows, -1:] for rows in each))
        chosen, rejected = (
            torch.where(number[rows] <= shorter, ratio[rows], alpha * ratio[rows]).sum(-1) for rows in each
        )
        return chosen, rejected

    def loss(scored: Scored, batch: Batch) -> Tensor:
        chosen, rejected = sides(scored, batch)
        return logistic(beta * (chosen - rejected))

    def score(scored: Scored, batch: Batch) -> Tensor:
        """L', in nats: the mean of it over the pairs of a completion."""
        rows, values = torch.cat([batch.pairs.chosen, batch.pairs.rejected]), torch.cat(sides(scored, batch))
        return values.new_zeros(len(batch.tokens.ended)).scatter_reduce(0, rows, values, "mean", include_self=False)

    terms = (Term("ld_dpo", "pair", loss, weights.per_pair),)
    return Method(terms, (REF_LOGP,), beta=beta, columns=("weight",), reward=score)
