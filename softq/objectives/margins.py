"""Pairs compared by the margin m = L(chosen) - L(rejected), L(y) = Σ_t log π/π_ref: a link and a line each."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from softq import masked
from softq.mdp.readouts import REF_LOGP
from softq.objectives import weights
from softq.objectives.fixed_points import Link, balanced, softmax_of_reward
from softq.objectives.links import flip_rate, logistic, positive, smoothed_logistic
from softq.records import Batch, FixedPoint, Method, Scored, Term, implicit


def contrast(values: Tensor, batch: Batch) -> Tensor:
    """[B] -> [P]: the value of the chosen row less that of the rejected one."""
    return values[batch.pairs.chosen] - values[batch.pairs.rejected]


def mean_log_ratio(scored: Scored, batch: Batch) -> Tensor:
    """[B]: log π/π_ref per token, in nats."""
    return masked.mean(scored["logp"] - scored["ref_logp"], batch.tokens.action, -1)


def compared(
    name: str,
    link: Link,
    score: Callable[[Scored, Batch], Tensor] = implicit,
    *,
    beta: float,
    fixed_point: FixedPoint | None = None,
) -> Method:
    """A method whose loss of a pair is link(score(chosen) - score(rejected)); scores [B] are in nats."""

    def loss(scored: Scored, batch: Batch) -> Tensor:
        return link(contrast(score(scored, batch), batch))

    return Method(
        (Term(name, "pair", loss, weights.per_pair),),
        (REF_LOGP,),
        beta=positive("beta", beta),
        columns=("weight",),
        reward=score,
        fixed_point=fixed_point,
    )


def dpo(*, beta: float = 0.1, label_smoothing: float = 0.0) -> Method:
    """DPO, arXiv 2305.18290, eq 7: h(β m), h(z) = -log σ(z).

    label_smoothing ε > 0 is cDPO: (1-ε) h(βm) + ε h(-βm). The column `label_probability` p is 1-ε for a pair by itself.
    The column `margin` Δ, in reward, asks for a difference of that size: h(βm - Δ) (ODPO, arXiv 2402.10571).

    Assumes: labels drawn by σ(R_w - R_l), the same pair sometimes judged the other way; ε > 0 says that a share ε of
    hard labels is wrong. The mass between completions that no chain of pairs connects is left free.

    Rests: on soft labels at π ∝ π_ref e^{R/β}; with ε, of a pair that is always labelled the same way, at m =
    log((1-ε)/ε)/β. On such pairs with ε = 0 nowhere: m grows for ever, at any β.

    TRL: `loss_type: sigmoid`, the same; label_smoothing is ignored there since 0.29, and there is no p or Δ of a pair.

    Choose it: first. It is what every other pair loss is compared with; take ε > 0, robust or ipo where labels are
    noisy or the margin runs away.
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


def robust(*, beta: float = 0.1, label_smoothing: float = 0.1) -> Method:
    """rDPO, arXiv 2403.00409: [(1-ε) h(βm) - ε h(-βm)] / (1-2ε), ε = label_smoothing.

    Averaged over labels of which a share ε was flipped, this is the loss of the labels before: h(βm). It is h(βm) less
    ε/(1-2ε) βm, so it may be negative, its slope never ends, and ε near 1/2 multiplies what noise there is.

    Assumes: labels flipped independently of the pair, at a rate ε < 1/2 that is known. A smaller rate than ε makes it
    push too hard, without end where labels are surer than 1-ε.

    Rests: where a share ε of the labels is flipped, at π ∝ π_ref e^{R/β}, R being the reward of the labels before. On
    other soft labels where the slopes of the pairs balance, if no label is surer than 1-ε. On pairs that are always
    labelled the same way nowhere: m grows for ever, and faster than dpo's.

    TRL: `loss_type: robust`, the same; an ε of 1/2 or more, which divides by 0 or turns the loss round, is only warned
    of there and refused here, and its ε is 0 unless it is set.

    Choose it: where annotators or a judge are known to err at random at about a rate ε, and the end of training should
    not show it. dpo with label_smoothing is the milder guess: it shrinks margins instead.
    """
    epsilon = flip_rate(label_smoothing)

    def link(margin: Tensor) -> Tensor:
        z = beta * margin
        return ((1 - epsilon) * logistic(z) - epsilon * logistic(-z)) / (1 - 2 * epsilon)

    return compared("robust", link, beta=beta, fixed_point=FixedPoint("soft pairs", balanced(link)))


def ipo(*, beta: float = 0.1, length_average: bool = True) -> Method:
    """IPO, arXiv 2310.12036, eq 17: (m - 1/(2β))², β playing the paper's τ.

    The margin compares log-ratios per token, as its authors confirmed and libraries do; length_average=False compares
    the paper's sums, which want a β smaller by about the length of a completion. scores/* is β times what is compared.

    Assumes: nothing of how labels arise: a margin is regressed on 1/(2β), and soft labels average ±1/(2β). Per token,
    it also takes the log-ratio of a completion to grow with its length.

    Rests: where the margins balance, Σ (m - 1/(2β)) = 0 over the pairs of a completion, signed by its side: a linear
    solve in the scores. A pair that is always labelled the same way rests at m = 1/(2β), and is pushed back from above.

    TRL: `loss_type: ipo`, which averages too; its online trainers compare sums.

    Choose it: where labels are nearly deterministic and dpo's margins run away; its end is finite at any number of
    epochs.
    """

    def link(margin: Tensor) -> Tensor:
        return (margin - 1 / (2 * beta)) ** 2

    rest = FixedPoint("soft pairs", balanced(link, length_average=length_average))
    return compared("ipo", link, mean_log_ratio if length_average else implicit, beta=beta, fixed_point=rest)


def hinge(*, beta: float = 0.1) -> Method:
    """Hinge on the margin, arXiv 2309.06657: max(0, 1 - βm), RSO's hinge-norm.

    β is the paper's γ, which need not be the β that its pairs were sampled with. The gradient is ∓β or exactly 0: a
    pair counts fully or not at all.

    Assumes: hard labels. Of soft ones it keeps only which side is more often the better one.

    Rests: nowhere that is one distribution: a pair that is always labelled the same way stops at m = 1/β or anywhere
    above, where the loss is flat, and on soft labels the least of a sum of corners has no gradient to vanish.

    TRL: `loss_type: hinge`, the same; it is not SLiC, which reads no reference.

    Choose it: where pairs that are already ranked by a margin of 1/β should be left alone.
    """
    return compared("hinge", lambda m: torch.relu(1 - beta * m), beta=beta)


def exo(*, beta: float = 0.1, label_smoothing: float = 1e-3) -> Method:
    """EXO on pairs, arXiv 2402.00856: q log(q/(1-ε)) + (1-q) log((1-q)/ε), q = σ(βm), ε = label_smoothing.

    The reverse KL of the two labels, KL(q ‖ (1-ε, ε)), where dpo with label_smoothing has the forward one. Its slope in
    z = βm is q(1-q) (z - log((1-ε)/ε)): it vanishes where a pair is ranked far wrong as well, so such pairs are given
    up.

    Assumes: hard labels, and a policy that starts near the reference.

    Rests: where a pair is always labelled the same way, at m = log((1-ε)/ε)/β, if it does not start on the flat far
    side. With soft labels a pair by itself rests at (2p-1) of it; no distribution is known where all pairs of a prompt
    balance.

    TRL: `loss_type: exo_pair`, the same; its label_smoothing is 0 unless it is set, which it refuses. The authors' code
    has unnormalised targets, (0, -10) in logs: another constant.

    Choose it: to follow the surest preferences and ignore hopeless pairs: mode-seeking where dpo is mass-covering.
    """
    epsilon = positive("label_smoothing", flip_rate(label_smoothing))

    def link(margin: Tensor) -> Tensor:
        log_q, log_rest = -logistic(beta * margin), -logistic(-beta * margin)
        return log_q.exp() * (log_q - math.log(1 - epsilon)) + log_rest.exp() * (log_rest - math.log(epsilon))

    return compared("exo", link, beta=beta)


def discopop(*, beta: float = 0.05, tau: float = 0.05) -> Method:
    """DiscoPOP, arXiv 2406.08414: (1-k) h(u) + k e^{-u}, u = βm, k = σ(u/τ).

    A loss that a language model found: logistic where a pair is ranked wrong, exponential where it is right. It is not
    convex: with τ = 0.05 it has a local minimum at u = -0.1186 and a local maximum at u = 0.0720, so from the reference
    margins first turn slightly negative, unless a pair has passed the maximum. Computed as exp(log σ(u/τ) - u), which
    is finite.

    Assumes: hard labels.

    Rests: nowhere that is one distribution: a pair that is always labelled the same way stops at the local minimum, or
    past the maximum grows for ever, whichever side it starts on.

    TRL: `loss_type: discopop` with `discopop_tau`; the same where it is finite. There e^{-u} and σ(u/τ) are multiplied,
    which is nan in float32 below u = -88, and β is 0.1.

    Choose it: to reproduce it.
    """
    if not 0 < tau <= 1:  # above 1 the loss of a pair that is ranked wrong would grow like e^{|u|}
        raise ValueError(f"tau is {tau}; expected 0 < tau ≤ 1")

    def link(margin: Tensor) -> Tensor:
        u = beta * margin
        return torch.sigmoid(-u / tau) * logistic(u) + (-logistic(u / tau) - u).exp()

    return compared("discopop", link, beta=beta)
