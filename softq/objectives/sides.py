"""Pairs whose sides are each held to a point of their own: the loss reads L_w and L_l, not only their difference.

Most are sums over the completions by themselves, so what each is held to can be read off: with a the share of a completion's
pairs that it wins, the loss is least at one L(y). Those points of all completions make no distribution in general, since
Σ_y π_ref(y) e^{L(y)} = 1 is left out: training ends at a compromise between them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from softq.mdp.readouts import REF_LOGP
from softq.objectives import weights
from softq.objectives.links import logistic, positive
from softq.records import Batch, Method, Scored, Term, implicit


def nca(*, beta: float = 0.01) -> Method:
    """NCA on pairs, arXiv 2402.05369: h(βL_w) + ½ h(-βL_w) + ½ h(-βL_l), h(z) = -log σ(z).

    Noise-contrastive estimation of π/π_ref: the chosen one is told from the reference's own completions, of which both are
    one. It pushes the rejected down always, and the chosen up to βL_w = log 2 only, then down.

    Assumes: pairs that were drawn from the reference, in which case the chosen one is a sample of what is aimed at.
    Rests: where each completion has βL(y) = log 2a, a the share of its pairs that it wins, if those are the log-ratios of a
    distribution. They are for β = 1 and pairs drawn from the reference, π = π_ref·2a; at other settings nothing is known in
    closed form. A pair that is always labelled the same way parts for ever where βL_w can not reach log 2.
    TRL: `loss_type: nca_pair`, the same.
    Choose it: when DPO drags the chosen answers' likelihood down with that of the rejected ones.
    """
    return _by_sides("nca", lambda w, low: logistic(w) + (logistic(-w) + logistic(-low)) / 2, beta)


def bco_pair(*, beta: float = 0.1) -> Method:
    """BCO on pairs, arXiv 2404.04656, with δ = 0: h(βL_w) + h(-βL_l), h(z) = -log σ(z).

    A classifier of chosen against rejected whose logit is the implicit reward. It is at least DPO's loss h(βm), for every δ.

    Assumes: that a reward of 0 parts good from bad, so that the reference is mediocre; the paper's moving threshold δ, which
    finds that point, is in `bco`.
    Rests: where each completion has βL(y) = log a/(1-a), a the share of its pairs that it wins, if those are the log-ratios of
    a distribution, which they are not in general: nothing is known in closed form. Hard labels part for ever.
    TRL: `loss_type: bco_pair`, the same; until 0.28 it had a running δ.
    Choose it: as a summand beside DPO, as MPO does, to say how good an answer is and not only which of two is better.
    """
    return _by_sides("bco_pair", lambda w, low: logistic(w) + logistic(-low), beta)


def sppo_hard(*, beta: float = 0.001) -> Method:
    """SPPO with hard labels, arXiv 2405.00675: (L_w - 1/(2β))² + (L_l + 1/(2β))².

    The paper regresses L(y) on η(P(y wins) - ½), η = 1/β; here P is 1 for the chosen one and 0 for the other. Its loss is the
    mean over both sides, half of this sum.

    Assumes: completions drawn from the reference, in rounds of self-play that begin with the last policy; labels so sure that
    P is 0 or 1 (soft ones: `sppo`).
    Rests: where each completion has βL(y) = a - ½, a the share of its pairs that it wins, if those are the log-ratios of a
    distribution, which they are not in general: nothing is known in closed form. A pair that is always labelled the same way
    rests at a finite margin, less than 1/β if mass is short.
    TRL: `loss_type: sppo_hard`, the same formula; its default β = 0.1 aims 5 nats away from the reference, the official code's
    0.001, the default here, 500.
    Choose it: for rounds of self-play without the soft win rates that `sppo` reads.
    """
    return _by_sides("sppo_hard", lambda w, low: ((w - 0.5) ** 2 + (low + 0.5) ** 2) / beta**2, beta)


def apo_zero(*, beta: float = 0.1) -> Method:
    """APO-zero, arXiv 2408.06266: 1 - σ(βL_w) + σ(βL_l).

    The chosen always goes up and the rejected always down; both saturate, so that the loss stays between 0 and 2 and the far
    away is left alone.

    Assumes: chosen answers that are better than what the model says by itself.
    Rests: nowhere inside: what wins more than half of its pairs always gains from what wins less, until it saturates.
    TRL: `loss_type: apo_zero`, the same.
    Choose it: for minimal revisions of the model's own answers by a better one, and for noisy labels, since it is bounded.
    """
    return _by_sides("apo_zero", lambda w, low: torch.sigmoid(-w) + torch.sigmoid(low), beta)


def apo_down(*, beta: float = 0.1) -> Method:
    """APO-down, arXiv 2408.06266: σ(βL_w) + 1 - σ(βm).

    The chosen goes down, and the rejected faster. Both parts are bounded. Where a pair is ranked far wrongly its second part
    saturates while the first still pushes the chosen down.

    Assumes: chosen answers that are worse than what the model says by itself, and a model that has more to say than the two:
    if they share all the mass, a pair that starts ranked wrongly may get worse.
    Rests: nowhere inside that is known: it is bounded and not convex, and on the lab's soft labels descent gathers a prompt's
    mass at one completion, and which depends on where it starts. Clean labels part for ever from the reference on.
    TRL: `loss_type: apo_down`, the same.
    Choose it: when the model is better than both answers of its data, which still say which is the lesser evil.
    """
    return _by_sides("apo_down", lambda w, low: torch.sigmoid(w) + torch.sigmoid(low - w), beta)


def _by_sides(name: str, link: Callable[[Tensor, Tensor], Tensor], beta: float) -> Method:
    """The mean over pairs of link(βL_w, βL_l)."""
    positive("beta", beta)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        reward = beta * implicit(scored, batch)
        return link(reward[batch.pairs.chosen], reward[batch.pairs.rejected])

    return Method((Term(name, "pair", loss, weights.per_pair),), (REF_LOGP,), beta=beta, columns=("weight",))
