"""Values: what a head of one number says of every state of a completion, from what samples earned behind it.

The samples are a frozen reference's, each with a score R for the whole of it. A value guides decoding: see `search.guided`.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from softq.mdp.readouts import VALUE
from softq.objectives import weights
from softq.objectives.links import fraction, positive
from softq.objectives.reward_model import at_the_end
from softq.records import Batch, Method, Scored, Term

STEEP = 20.0
"""Where the exponential of soft_value goes on as a straight line. Of n samples none is further above V* than β log n."""


def value(*, lam: float = 0.95) -> Method:
    """Value by TD(λ), arXiv 2405.06639: ½ (V(s) - G)² of every state s behind a token, G its λ-return, λ = lam.

    The only reward is R, at the end: G = R behind the last token and before it, further up G_t = (1-λ) V(s_{t+1}) + λ G_{t+1},
    with V as it is now and no gradient through it. λ = 1 is Monte Carlo, G = R everywhere (FUDGE; Controlled Decoding, arXiv
    2310.17022), without bias and of more variance. The state behind the end token is trained too: decoding asks for it
    whenever an answer could end. Controlled Decoding's backup over the whole vocabulary (CD-Q) is left out: it asks for the
    value of every token that was not said.

    The model is one of transformers' AutoModelForSequenceClassification with one label, made of a language model or read as one
    was saved, as in rm; it may be smaller than the one it guides, with the same tokens.

    Assumes: completions that the reference drew, of which R scores the whole; those of another model give its own values.
    Rests: at V(s) = E_ref[R | s], less than the soft value β log E_ref[e^{R/β} | s]: what is decoded by it misses π* by a number
    that falls as 1/β² (`softq verify`, law `bias of the mean`).
    TRL: has none; the critic of its PPO trainer is trained beside a policy.
    Choose it: for decoding at a strength that is chosen later, or with several rewards at once: values add up.
    """
    fraction("lam", lam)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        off = scored["value"] - batch.columns["value_target"].to(scored["value"])
        return off.square() / 2 * batch.tokens.action.to(off.device)

    return Method(
        (Term("value", "token", loss, weights.per_token),),
        (VALUE,),
        takes="groups",
        columns=("reward", "value_target"),
        credit=partial(lambda_return, lam=lam),
        reward=at_the_end,
    )


def soft_value(*, beta: float = 1.0) -> Method:
    """Soft value by Gumbel regression, arXiv 2301.02328: β² (e^z - 1 - z), z = (R - V(s))/β, of every state s behind a token.

    Its slope in V is β (1 - e^z): it is 0 on average where E[e^{(R-V)/β}] = 1, so where V = β log E[e^{R/β}], whatever the
    distribution of R. A square error on e^{R/β} would end there too, with targets over many orders of magnitude; this one is in
    units of R², and for large β it is ½ (R - V)², value at λ = 1. The target is R alone: a λ-return is a
    mean of values, and what counts here is a mean of exponentials. Beyond z = 20 the loss is a straight line, which moves no end:
    where it rests on n samples of a state, z ≤ log n.

    The smaller β is against the spread of R, the fewer of a state's samples decide, and the further V* is from their mean.

    Assumes: completions that the reference drew, of which R scores the whole; the β that decoding will use.
    Rests: at V(s) = β log E_ref[e^{R/β} | s], the soft value V*, with which π_ref e^{V*/β} is π* (arXiv 2404.12358).
    TRL: has none.
    Choose it: to decode at a strength that is known, where the best answers matter and not the average; with value the
    strength is free.
    """
    positive("beta", beta)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        z = (batch.columns["reward"].to(scored["value"])[:, None] - scored["value"]) / beta
        return beta**2 * linear_exponential(z) * batch.tokens.action.to(z.device)

    def reward(scored: Scored, batch: Batch) -> Tensor:
        """[B]: V/β behind the last token of each completion, no unit; β times it, what is logged, is the value."""
        return at_the_end(scored, batch) / beta

    return Method(
        (Term("soft_value", "token", loss, weights.per_token),),
        (VALUE,),
        takes="groups",
        beta=beta,
        columns=("reward",),
        reward=reward,
    )


def linear_exponential(z: Tensor) -> Tensor:
    """e^z - 1 - z, any shape; beyond STEEP its tangent there. 0 at 0, and above it elsewhere."""
    near = z.clamp(max=STEEP)
    return near.expm1() - z + near.exp() * (z - near)


def lambda_return(scored: Scored, batch: Batch, *, lam: float) -> Mapping[str, Tensor]:
    """`value_target` [B, T] in reward: of the state behind each action, with γ = 1 and R at the end alone; 0 elsewhere.

    (1-λ) V(s') + λ G(s'), s' the state behind the next action; of the last state, and where s' is the last, it is R.
    """
    values, action = scored["value"], batch.tokens.action
    earned = batch.columns["reward"].to(values)
    behind = ahead = earned  # [B] G and V of the state behind the next action
    targets = torch.zeros_like(values)
    last = torch.ones_like(action[:, 0])
    for t in reversed(range(action.shape[1])):
        acted = action[:, t]
        target = (1 - lam) * ahead + lam * behind
        targets[:, t] = torch.where(acted, target, 0.0)
        behind = torch.where(acted, target, behind)
        ahead = torch.where(acted & ~last, values[:, t], ahead)
        last = last & ~acted
    return {"value_target": targets}
