"""Pairs compared as two distributions: the sort of optimal transport in one dimension couples a whole step."""

import math

from torch import Tensor

from softq.mdp.readouts import REF_LOGP
from softq.objectives import weights
from softq.objectives.fixed_points import dominating
from softq.objectives.links import flip_rate, positive, smoothed_logistic
from softq.objectives.margins import contrast
from softq.records import Batch, FixedPoint, Method, Scored, Term


def aot(*, beta: float = 0.01, label_smoothing: float = 0.0) -> Method:
    """AOT (paired), arXiv 2406.05882: h(βd), d = sort(policy margins) - sort(reference margins), ascending.

    First-order dominance of the policy's margins over the reference's. A value of the loss belongs to a sorted slot, not
    to a pair. label_smoothing as in dpo.
    """
    epsilon = flip_rate(label_smoothing)
    positive("beta", beta)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        policy = contrast(scored["logp"].sum(-1), batch).sort().values
        reference = contrast(scored["ref_logp"].sum(-1), batch).sort().values
        return smoothed_logistic(beta * (policy - reference), epsilon)

    rest = FixedPoint("hard pairs", dominating(math.log((1 - epsilon) / epsilon) / beta)) if epsilon else None
    terms = (Term("aot", "pair", loss, weights.per_slot),)
    return Method(
        terms, (REF_LOGP,), beta=beta, coupled=True, fixed_point=rest
    )  # without smoothing margins grow for ever
