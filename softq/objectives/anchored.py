"""DPO with an anchor: something that keeps the chosen completions likely by themselves, not only beside the rejected."""

import torch
from torch import Tensor

from softq import masked
from softq.mdp.readouts import REF_LOGP
from softq.objectives import weights
from softq.objectives.links import finite, logistic, not_negative, positive
from softq.objectives.margins import contrast, dpo
from softq.objectives.sums import weighted_sum
from softq.records import Batch, Method, Scored, Term, implicit


def dpop(*, beta: float = 0.3, penalty: float = 50.0) -> Method:
    """DPO-Positive (Smaug), arXiv 2402.13228: h(β(m - λ max(0, -L_w))), h(z) = -log σ(z).

    penalty is λ, and stands inside of h: a chosen completion that falls below the reference costs λ times what the margin
    earns by that. At L_w = 0 the loss is continuous and has a kink. The score of a chosen completion is L - λ max(0, -L).

    Assumes: chosen answers that the reference finds likely enough already. With λ = 50 and β = 0.3 a fall of one nat is a loss
    of 15: clip gradients.
    Rests: nowhere that is known: on soft labels each completion is chosen at times and then may not fall, so its margins are not
    those of the labels. Hard labels part for ever.
    TRL: has none.
    Choose it: for pairs that differ in few tokens, such as a wrong digit in a proof, where DPO lowers both sides.
    """
    positive("beta", beta)
    not_negative("penalty", penalty)

    def score(scored: Scored, batch: Batch) -> Tensor:
        """L - λ max(0, -L) of a chosen completion and L of any other, in nats."""
        ratio = implicit(scored, batch)
        chosen = torch.zeros_like(ratio).index_fill(0, batch.pairs.chosen, 1.0)
        return ratio - penalty * chosen * (-ratio).clamp(min=0)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        ratio = implicit(scored, batch)
        fall = (-ratio[batch.pairs.chosen]).clamp(min=0)
        return logistic(beta * (contrast(ratio, batch) - penalty * fall))

    terms = (Term("dpop", "pair", loss, weights.per_pair),)
    return Method(terms, (REF_LOGP,), beta=beta, columns=("weight",), reward=score)


def rpo(*, beta: float = 0.1, alpha: float = 1.0) -> Method:
    """RPO, DPO with an NLL anchor, arXiv 2404.19733, eq 1: h(βm) - α LP_w/|y_w|, h(z) = -log σ(z).

    LP = Σ_t log π. The likelihood is a mean over the tokens of each chosen completion, then over pairs, so that each pair counts
    the same however long it is; a pair's weight counts for both parts.

    Assumes: chosen answers that are worth imitating word by word.
    Rests: nowhere that is known: a sum of losses rests between where its summands do. Hard labels part for ever.
    TRL: `loss_type: [sigmoid, sft]` with `loss_weights: [1, α]` comes near; its likelihood is a mean over all tokens of a
    micro-batch, in which long answers weigh more (`dpo+sft` here). Until 0.28 `rpo_alpha`.
    Choose it: for reasoning, where a right answer is to become likelier and not only likelier than a wrong one.
    """
    not_negative("alpha", alpha)

    def nll(scored: Scored, batch: Batch) -> Tensor:
        return -masked.mean(scored["logp"], batch.tokens.action, -1)[batch.pairs.chosen]

    anchor = Method((Term("nll", "pair", nll, weights.per_pair),), columns=("weight",))
    return weighted_sum([(dpo(beta=beta), 1.0), (anchor, alpha)])


def dpo_anchor(*, beta: float = 0.1, delta: float = 0.0) -> Method:
    """DPO with a reward anchor, mDPO's, arXiv 2406.11839: h(βm) + h(βL_w - δ), h(z) = -log σ(z).

    δ, in reward, is what the implicit reward of a chosen completion should exceed: 0 is the reference's own.

    Assumes: chosen answers that deserve more than the reference gives them.
    Rests: nowhere that is known: a sum of losses rests between where its summands do, and the anchor grows for ever. Hard
    labels part for ever.
    TRL: has none.
    Choose it: when the chosen answers' likelihood falls in training, and an anchor by likelihood (`rpo`) is too strong where
    they are long.
    """
    finite("delta", delta)

    def held(scored: Scored, batch: Batch) -> Tensor:
        return logistic(beta * implicit(scored, batch)[batch.pairs.chosen] - delta)

    anchor = Method((Term("anchor", "pair", held, weights.per_pair),), (REF_LOGP,), columns=("weight",))
    return weighted_sum([(dpo(beta=beta), 1.0), (anchor, 1.0)])
