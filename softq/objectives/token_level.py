"""Pairs whose loss reads more of a state than the log-probability of the token that was taken."""

from torch import Tensor

from softq import masked
from softq.mdp.readouts import KL_FROM_REF, LOG_COLLISION, REF_LOGP
from softq.objectives import weights
from softq.objectives.fixed_points import softmax_of_reward
from softq.objectives.links import logistic, positive
from softq.objectives.margins import contrast
from softq.records import Batch, FixedPoint, Method, Scored, Term, implicit


def tdpo2(*, beta: float = 0.1, alpha: float = 0.5) -> Method:
    """TDPO2, arXiv 2404.11999, eq 17: h(β[m - α(K_l - sg K_w)]), K(y) = Σ_t KL(π_ref‖π)(s_t).

    sg stops the gradient: the chosen side's divergence is free. The score that this trains is L + αK. With α = 1 the margins
    are right at the one-step improvement π_ref e^{Q_ref/β}/Z, but what sg leaves out pulls away from it: no fixed point is known.
    """
    positive("beta", beta)

    def score(scored: Scored, batch: Batch) -> Tensor:
        return implicit(scored, batch) + alpha * scored["kl_from_ref"].sum(-1)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        pairs, divergence = batch.pairs, scored["kl_from_ref"].sum(-1)
        excess = divergence[pairs.rejected] - divergence[pairs.chosen].detach()
        return logistic(beta * (contrast(implicit(scored, batch), batch) - alpha * excess))

    terms = (Term("tdpo2", "pair", loss, weights.per_pair),)
    return Method(terms, (REF_LOGP, KL_FROM_REF), beta=beta, columns=("weight",), reward=score, stops=bool(alpha))


def wpo(*, beta: float = 0.01) -> Method:
    """WPO, arXiv 2406.11827, eqs 4 and 5: min(1, w(y_w) w(y_l)) h(βm), the weight without gradient.

    w(y) = exp mean_t [log π(y_t|s_t) - log Σ_v π(v|s_t)²]: how typical a completion is of the current policy. The product
    is clamped at 1, as in the official code.
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
        fixed_point=FixedPoint(
            "soft pairs", softmax_of_reward(beta)
        ),  # the weight is the same for both orders of a pair
    )
