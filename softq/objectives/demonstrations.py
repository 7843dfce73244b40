"""Completions to imitate: every row, or the chosen of pairs, or the good of labels."""

from torch import Tensor

from softq.objectives import weights
from softq.objectives.fixed_points import demonstrated
from softq.records import Batch, FixedPoint, Method, Scored, Term


def sft() -> Method:
    """Supervised fine-tuning: -log π(y_t|s_t), the mean over all completion tokens of a step; maximum likelihood.

    Of pairs it reads the chosen completions, of labels the good ones. Long completions weigh more than short ones. In a sum it
    is the likelihood term of many papers: dpo+sft. A pair's weight does not count in it.

    Assumes: completions that are worth imitating word by word.
    Rests: at the share that each completion has among the demonstrations of its prompt.
    TRL: `SFTTrainer`, and `loss_type: sft` beside others in `DPOTrainer`; its mean is over the tokens of a device's micro-batch,
    here over those of the step.
    Choose it: before any preferences, or as a summand that keeps the chosen likely.
    """

    def loss(scored: Scored, batch: Batch) -> Tensor:
        return -scored["logp"]

    terms = (Term("sft", "token", loss, weights.per_demonstrated_token),)
    return Method(terms, takes="rows", fixed_point=FixedPoint("demonstrations", demonstrated))
