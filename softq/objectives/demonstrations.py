"""Completions to imitate: every row, or the chosen of pairs, or the good of labels."""

from torch import Tensor

from softq.objectives import weights
from softq.records import Batch, Method, Scored, Term


def sft() -> Method:
    """Supervised fine-tuning: -log π(y_t|s_t), the mean over all completion tokens of a step; maximum likelihood."""

    def loss(scored: Scored, batch: Batch) -> Tensor:
        return -scored["logp"]

    return Method((Term("sft", "token", loss, weights.per_demonstrated_token),), takes="rows")
