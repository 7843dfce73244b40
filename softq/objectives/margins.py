"""Pairs compared by the margin m = L(chosen) - L(rejected), L(y) = Σ_t log π/π_ref: a link and a line each."""

from torch import Tensor

from softq import masked
from softq.mdp.readouts import REF_LOGP
from softq.objectives import weights
from softq.objectives.fixed_points import balanced, softmax_of_reward
from softq.objectives.links import flip_rate, positive, smoothed_logistic
from softq.records import Batch, FixedPoint, Method, Scored, Term, implicit


def contrast(values: Tensor, batch: Batch) -> Tensor:
    """[B] -> [P]: the value of the chosen row less that of the rejected one."""
    return values[batch.pairs.chosen] - values[batch.pairs.rejected]


def mean_log_ratio(scored: Scored, batch: Batch) -> Tensor:
    """[B]: log π/π_ref per token, in nats."""
    return masked.mean(scored["logp"] - scored["ref_logp"], batch.tokens.action, -1)


def dpo(*, beta: float = 0.1, label_smoothing: float = 0.0) -> Method:
    """DPO, arXiv 2305.18290, eq 7: h(β m), h(z) = -log σ(z).

    label_smoothing ε > 0 is cDPO: (1-ε) h(βm) + ε h(-βm), for labels that are flipped with probability ε; its optimum is
    finite, at βm = log (1-ε)/ε. The column `label_probability` p is 1-ε for a pair by itself. The column `margin` Δ, in
    reward, asks for a difference of that size: h(βm - Δ) (ODPO, arXiv 2402.10571).
    """
    epsilon = flip_rate(label_smoothing)
    positive("beta", beta)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        z = beta * contrast(implicit(scored, batch), batch) - batch.columns.get("margin", 0.0)
        judged = not epsilon and "label_probability" in batch.columns
        return smoothed_logistic(z, 1 - batch.columns["label_probability"] if judged else epsilon)

    columns = ("weight", "margin", *(() if epsilon else ("label_probability",)))  # which says what ε would
    smoothed = balanced(lambda m: smoothed_logistic(beta * m, epsilon))
    return Method(
        (Term("dpo", "pair", loss, weights.per_pair),),
        (REF_LOGP,),
        beta=beta,
        columns=columns,
        fixed_point=FixedPoint("soft pairs", smoothed if epsilon else softmax_of_reward(beta)),
    )


def ipo(*, beta: float = 0.1, length_average: bool = True) -> Method:
    """IPO, arXiv 2310.12036, eq 17: (m - 1/(2β))², β playing the paper's τ.

    The margin compares log-ratios per token, as its authors confirmed and libraries do; length_average=False compares the
    paper's sums, which want a β smaller by about the length of a completion.
    """
    positive("beta", beta)
    score = mean_log_ratio if length_average else implicit

    def link(margin: Tensor) -> Tensor:
        return (margin - 1 / (2 * beta)) ** 2

    def loss(scored: Scored, batch: Batch) -> Tensor:
        return link(contrast(score(scored, batch), batch))

    return Method(
        (Term("ipo", "pair", loss, weights.per_pair),),
        (REF_LOGP,),
        beta=beta,
        columns=("weight",),
        reward=score,
        fixed_point=FixedPoint("soft pairs", balanced(link, length_average=length_average)),
    )
