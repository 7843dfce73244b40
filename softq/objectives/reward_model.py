"""Pairs compared by r, the number that a head gives the state behind a completion's last token: an explicit reward.

A model with such a head has no head over tokens, so nothing here reads log π.
"""

import torch
from torch import Tensor

from softq.mdp.readouts import VALUE
from softq.objectives import weights
from softq.objectives.links import not_negative, smoothed_logistic
from softq.objectives.margins import contrast
from softq.records import Batch, Method, Scored, Term


def at_the_end(scored: Scored, batch: Batch) -> Tensor:
    """[B]: r, the value behind the last token of each completion, in reward; 0 of a completion without one."""
    action = batch.tokens.action
    last = torch.arange(action.shape[1], device=action.device).mul(action).argmax(-1)
    return scored["value"].gather(-1, last[:, None])[:, 0]


def rm(*, center: float = 0.0) -> Method:
    """Reward model, arXiv 2203.02155, eq 1: h(r_w - r_l) + μ (r_w + r_l)², h(z) = -log σ(z), μ = center.

    μ > 0 holds rewards near 0 (arXiv 2312.09244), which pairs alone leave free by a constant a prompt; it shrinks them too, so it
    is small, 0.01. The column `margin` Δ asks for a difference of that size: h(r_w - r_l - Δ) (Llama 2, arXiv 2307.09288). The
    column `label_probability` p makes it p h(z) + (1-p) h(-z).

    The model is one of transformers' AutoModelForSequenceClassification with one label, in and out; of a language model the
    head over tokens is left out, and a new one of one number drawn. There is no reference, and no policy comes of it.

    Assumes: labels drawn by σ(R_w - R_l), the same pair sometimes judged the other way.
    Rests: on soft labels with μ = 0 at r = R + a constant a prompt, where a chain of pairs connects the prompt's completions. On
    pairs always labelled the same way nowhere: r_w - r_l grows for ever, if μ = 0.
    TRL: `RewardTrainer`, its `center_rewards_coefficient` is μ, its `margin` Δ; it reads the last token of the rendered text,
    which some templates put behind the end token.
    Choose it: to judge new answers, above all those of the policy that is trained on its word. The implicit reward of dpo fits
    the same pairs as well; under shift it is right less often in arXiv 2409.03650, in the small world of
    `softq study generalisation` on the answers of its own policy alone.
    """
    not_negative("center", center)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        r = at_the_end(scored, batch)
        z = contrast(r, batch) - batch.columns.get("margin", 0.0)
        compared = smoothed_logistic(z, 1 - batch.columns.get("label_probability", 1.0))
        return compared + center * (r[batch.pairs.chosen] + r[batch.pairs.rejected]) ** 2

    return Method(
        (Term("rm", "pair", loss, weights.per_pair),),
        (VALUE,),
        columns=("weight", "margin", "label_probability"),
        reward=at_the_end,
    )
