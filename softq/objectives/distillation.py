"""Completions on which the policy is drawn to a teacher's whole distribution, token by token."""

from torch import Tensor

from softq.mdp.readouts import distillation_of, teacher_of
from softq.objectives import weights
from softq.objectives.fixed_points import taught
from softq.objectives.links import not_negative, positive
from softq.records import Batch, FixedPoint, Method, Scored, Term


def aligndistil(*, beta: float = 0.1, ratio: float = 20.0, epsilon: float = 0.001) -> Method:
    """AlignDistil, arXiv 2503.02832: β_t KL(π‖softmax(z*_t)), z* = z_d + α_t (z_d - z_r), the mean over rows of token means.

    z_d and z_r are the logits of two frozen models: "dpo", trained by dpo, and "reverse", trained by dpo on the same pairs with
    their sides swapped, both from the policy's start (--models dpo=DIR,reverse=DIR). α_t = ratio · TVD_t + ε is how far the
    teacher goes on beyond the first, TVD_t = ½ Σ_v |p_d - p_r|; the official code leaves the ½ out, so its 10 (15 where the
    policy samples) is a ratio of 20 (30) here. β_t = β/α_t. The divergence is over the whole vocabulary at every action of the
    rows, and has a gradient in π alone. The official code's masks drop a completion's first token and take one behind its
    end; here every action counts. β scales the loss alone. No reference is read, and there are no pairs: what is logged is log π.

    Assumes: models of one vocabulary, and pairs that the two learned from; of pairs it reads the chosen completions, whose states
    are where it learns, not what it imitates.
    Rests: on any rows at the teacher, token by token. That is not the optimum of the sequence reward β log π_d/π_r that it is
    derived from: the normalisers of the states, which the derivation drops, differ.
    TRL: has none.
    Choose it: when dpo has reached what it can and its token rewards shall be used for more: two models are trained first.
    """
    positive("beta", beta)
    positive("epsilon", epsilon)
    not_negative("ratio", ratio)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        return scored["distillation"]

    teacher = teacher_of(ratio, epsilon)
    return Method(
        (Term("aligndistil", "token", loss, weights.per_demonstration),),
        (distillation_of(beta, ratio, epsilon),),
        takes="rows",
        beta=beta,
        fixed_point=FixedPoint("demonstrations", taught(teacher.name), (teacher,)),
    )
