"""Several completions of one prompt with a score each: the rows of one `prompt` number are a group.

A group never leaves its micro-batch, so these losses need no coupling.
"""

from torch import Tensor

from softq.mdp.readouts import REF_LOGP
from softq.objectives import weights
from softq.objectives.fixed_points import softmax_of_reward
from softq.objectives.links import group_log_softmax, group_sum, positive
from softq.records import Batch, FixedPoint, Method, Scored, Term, group_of, implicit


def infonca(*, beta: float = 0.01, alpha: float = 0.001) -> Method:
    """InfoNCA, arXiv 2402.05369: -Σ_k softmax(r/α)_k log softmax(βL)_k over a group's completions.

    alpha divides the scores (the official code's default, nearly one-hot; the paper's α is its reciprocal). With two
    completions and a one-hot target it is DPO.
    """
    positive("beta", beta)
    positive("alpha", alpha)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        group = group_of(batch.tokens.prompt)
        target = group_log_softmax(batch.columns["reward"] / alpha, group).exp()
        return -group_sum(target * group_log_softmax(beta * implicit(scored, batch), group), group)

    terms = (Term("infonca", "group", loss, weights.per_group),)
    rest = FixedPoint("groups", softmax_of_reward(alpha * beta))
    return Method(terms, (REF_LOGP,), takes="groups", beta=beta, columns=("reward",), fixed_point=rest)
