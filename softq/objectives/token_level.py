"""Pairs whose loss reads more of a state than the log-probability of the token that was taken."""

import torch
from torch import Tensor

from softq import masked
from softq.mdp.readouts import KL_FROM_REF, LOG_COLLISION, REF_LOGP, cringe_of
from softq.objectives import weights
from softq.objectives.fixed_points import improved, softmax_of_reward
from softq.objectives.links import finite, logistic, not_negative, positive
from softq.objectives.margins import contrast
from softq.records import Batch, FixedPoint, Method, Scored, Term, implicit


def tdpo1(*, beta: float = 0.1) -> Method:
    """TDPO1, arXiv 2404.11999, eq 15: h(β[(L_w + K_w) - (L_l + K_l)]), K(y) = Σ_t KL(π_ref‖π)(s_t).

    The score that it trains is L + K, in nats; K has a gradient on both sides. L + K is linear in the logits of each state, so
    the loss is convex in a table of them. K reads the whole vocabulary of the reference, at every action.

    Assumes: pairs whose labels follow σ(R_w - R_l) and, for what it rests at, every completion of the reference among them.
    Rests: on such pairs at π_ref e^{Q_ref/β}/Z state by state, Q_ref the reference's own: one soft step of improvement, where
    β (L + K) is R - E_ref[R] on every completion. dpo rests at the soft optimum instead, where β L is; both are exact, of two
    value functions. On hard labels margins grow for ever.
    TRL: has none.
    Choose it: when drift from the reference should cost on rejected completions and the whole vocabulary's logits are no burden;
    reports of a gain over dpo disagree.
    """
    positive("beta", beta)

    def score(scored: Scored, batch: Batch) -> Tensor:
        """L + K, in nats."""
        return implicit(scored, batch) + scored["kl_from_ref"].sum(-1)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        return logistic(beta * contrast(score(scored, batch), batch))

    return Method(
        (Term("tdpo1", "pair", loss, weights.per_pair),),
        (REF_LOGP, KL_FROM_REF),
        beta=beta,
        columns=("weight",),
        reward=score,
        fixed_point=FixedPoint("soft pairs", improved(beta)),
    )


def tdpo2(*, beta: float = 0.1, alpha: float = 0.5) -> Method:
    """TDPO2, arXiv 2404.11999, eq 17: h(β[m - α(K_l - sg K_w)]), K(y) = Σ_t KL(π_ref‖π)(s_t).

    sg stops the gradient: the chosen side's divergence is free. The score that this trains is L + αK, in nats. α = 0 is dpo;
    α = 1 has tdpo1's value and not its gradient. The official configuration switches TDPO2 off under a command of its name:
    what it trains is tdpo1.

    Assumes: pairs whose labels follow σ(R_w - R_l).
    Rests: nowhere that is known: with α = 1 the margins are right at tdpo1's distribution, but what sg leaves out pulls away from
    it. On hard labels margins grow for ever.
    TRL: has none.
    Choose it: when a policy trained by dpo drifts too far from its reference on what is rejected.
    """
    positive("beta", beta)
    not_negative("alpha", alpha)

    def score(scored: Scored, batch: Batch) -> Tensor:
        """L + αK, in nats."""
        return implicit(scored, batch) + alpha * scored["kl_from_ref"].sum(-1)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        pairs, divergence = batch.pairs, scored["kl_from_ref"].sum(-1)
        excess = divergence[pairs.rejected] - divergence[pairs.chosen].detach()
        return logistic(beta * (contrast(implicit(scored, batch), batch) - alpha * excess))

    terms = (Term("tdpo2", "pair", loss, weights.per_pair),)
    return Method(terms, (REF_LOGP, KL_FROM_REF), beta=beta, columns=("weight",), reward=score, stops=bool(alpha))


def wpo(*, beta: float = 0.01) -> Method:
    """WPO, arXiv 2406.11827, eqs 4 and 5: min(1, w(y_w) w(y_l)) h(βm), the weight without gradient.

    w(y) = exp mean_t [log π(y_t|s_t) - log Σ_v π(v|s_t)²]: how typical a completion is of the current policy. Of tokens
    that it samples π/Σπ² is 1 on average; of completions, w is at most that. The product is clamped at 1, as in the official
    code.

    Assumes: pairs whose labels follow σ(R_w - R_l), sampled by another policy than the one that is trained.
    Rests: on such pairs at the soft optimum π_ref e^{R/β}/Z, as dpo does: the weight is the same for both orders of a pair. On
    hard labels margins grow for ever.
    TRL: `use_weighting: true` beside any `loss_type`; its weight is not clamped, so a pair may count more than once.
    Choose it: when the pairs were written by other models, as most published ones were.
    """
    positive("beta", beta)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        typical = masked.mean(scored["logp"] - scored["log_collision"], batch.tokens.action, -1).detach()
        weight = (typical[batch.pairs.chosen] + typical[batch.pairs.rejected]).clamp(max=0).exp()
        return weight * logistic(beta * contrast(implicit(scored, batch), batch))

    terms = (Term("wpo", "pair", loss, weights.per_pair),)
    return Method(
        terms,
        (REF_LOGP, LOG_COLLISION),
        beta=beta,
        columns=("weight",),
        stops=True,
        fixed_point=FixedPoint("soft pairs", softmax_of_reward(beta)),
    )


def bmc(*, beta: float = 0.01, delta: float = 1.5) -> Method:
    """BMC, arXiv 2408.07471: h(β[Σ λ_t l_t (chosen) - Σ λ_t l_t (rejected)]), λ_t = 1 + diff_t min(sg[1/π(y_t|s_t)], δ).

    l_t = log π/π_ref of a token, sg without gradient. diff_t is 1 where the two completions of a pair differ: where the token
    stands in what must be inserted or replaced (deleted or replaced, on the rejected side) to make the chosen completion of
    the rejected one, by Python's difflib on their tokens. Batches bring it (column `diff`). What differs counts more, and more
    where the policy is unsure, up to 1 + δ. One λ, the policy's, weighs policy and reference; the official code weighs the
    reference's log-probs by the reference's own λ. The paper leaves English stop words at λ = 1; here none are left out: a
    list of words would tie the loss to a language and to its tokenizer. The score that it trains is Σ λ_t l_t, in nats. The
    paper's δ: 1.5 and 2 for instructions, 2.5 for mathematics, 3 for question answering. This is its loss alone; its other
    half rewrites the chosen completions so that they differ from the rejected ones only where it matters.

    Assumes: pairs that share most of their words, so that what differs is what was judged; on completions that share nothing
    every token counts more, and it is dpo with a larger β.
    Rests: nowhere that is known: what a completion's score is depends on what it is compared with. On hard labels margins grow
    for ever.
    TRL: has none.
    Choose it: when rejected completions are edits of the chosen ones, such as corrected code or rewritten answers.
    """
    positive("beta", beta)
    not_negative("delta", delta)

    def score(scored: Scored, batch: Batch) -> Tensor:
        """Σ λ_t l_t, in nats."""
        unsure = (-scored["logp"].detach()).exp().clamp(max=delta)
        ratio = scored["logp"] - scored["ref_logp"]
        return ((1 + batch.columns["diff"] * unsure) * ratio).sum(-1)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        return logistic(beta * contrast(score(scored, batch), batch))

    return Method(
        (Term("bmc", "pair", loss, weights.per_pair),),
        (REF_LOGP,),
        beta=beta,
        columns=("weight", "diff"),
        reward=score,
        stops=bool(delta),
    )


def cringe(*, k: int = 5, alpha: float = 0.005, bar: float = -10.0, tau: float = 10.0) -> Method:
    """Pairwise Cringe, arXiv 2312.16682: g · [-LP_w + α Σ_t C(y_l,t)], g = σ((b - M)/τ), M = LP_w - LP_l, b = bar.

    C contrasts a rejected token, of logit s, with one c of the policy's k likeliest others: h(s_c - s). The paper draws c from
    the softmax over these k; here C is its exact expectation, Σ_c sg[p_c] h(s_c - s), which has the same expected gradient,
    needs no random numbers and is the same for any split of a step. The gate g, which closes as a pair is ranked by more than
    b, is held constant: whether the paper differentiates it could not be told. Its values of k, α, b and τ are from memory, too.
    Every token of the rejected completion counts, its end token included, which a known port leaves out. A vocabulary of
    fewer than k + 1 tokens gives all its others. There is no reference: rewards/* and scores/* are LP in nats.

    Assumes: chosen completions that are worth imitating, rejected ones whose tokens are worse than what the policy would say.
    Rests: nowhere that is known: likelihood of the chosen and contrast of the rejected, gated, balance at no known distribution.
    On hard labels margins grow for ever, ever slower.
    TRL: has none.
    Choose it: when no reference is at hand, and against repetition, which its rejected tokens name one by one.
    """
    if k < 1:
        raise ValueError(f"k is {k}; expected k ≥ 1, the tokens that a rejected one is contrasted with")
    positive("alpha", alpha)
    positive("tau", tau)
    finite("bar", bar)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        pairs, total = batch.pairs, scored["logp"].sum(-1)
        gate = torch.sigmoid((bar - contrast(total, batch).detach()) / tau)
        return gate * (alpha * scored["cringe"].sum(-1)[pairs.rejected] - total[pairs.chosen])

    terms = (Term("cringe", "pair", loss, weights.per_pair),)
    return Method(terms, (cringe_of(k),), columns=("weight",), stops=True)
