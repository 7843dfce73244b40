"""Completions to imitate: every row, or the chosen of pairs, or the good of labels."""

from torch import Tensor

from softq.objectives import weights
from softq.objectives.fixed_points import demonstrated
from softq.records import Batch, FixedPoint, Method, Scored, Term


def sft() -> Method:
    """Supervised fine-tuning: -log π(y_t|s_t), the mean over all completion tokens of a step; maximum likelihood."""

    def loss(scored: Scored, batch: Batch) -> Tensor:
        return -scored["logp"]

    terms = (Term("sft", "token", loss, weights.per_demonstrated_token),)
    return Method(terms, takes="rows", fixed_point=FixedPoint("demonstrations", demonstrated))
