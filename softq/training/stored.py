"""Stored log-probs of a reference stand for their sums over completions, and for nothing else that a method may read."""

from dataclasses import replace

import torch
from torch import Tensor

from softq.lm.load import Loaded
from softq.records import Batch, Method, Scored, Tokens, moved
from softq.training.loop import with_columns
from softq.training.plan import losses, scored_whole

UNSTORE = "remove the stored log-probs from the data, and the reference is scored"


def check_readouts(name: str, method: Method, given: str, act: str) -> None:
    """ValueError where a method needs more of the reference than the log-probs of the completions."""
    other = [readout.name for readout in method.needs if "ref" in readout.models and readout.name != "ref_logp"]
    if other:
        raise ValueError(f"{name} reads {', '.join(other)} of the reference, and {given}; {act}")
    if method.takes == "labels+mismatched":
        raise ValueError(
            f"{name} scores completions under each other's prompts, another pairing each step, and {given}; {act}"
        )


def check_sums(method: Method, loaded: Loaded, batch: Batch, budget: int) -> None:
    """Raise unless the loss reads stored log-probs only in sum: where in a row they stand must not matter.

    It must not either where the lengths of completions differ, whether or not this step's do.
    """
    scored = scored_whole(method, loaded.models, batch, budget)
    for tokens in (batch.tokens, _uneven(batch.tokens)):
        read = with_columns(replace(batch, tokens=tokens), method.memory)
        there = moved(read, scored["logp"].device)
        total = scored["ref_logp"].sum(-1, keepdim=True)
        spread = total / there.tokens.action.sum(-1, keepdim=True).clamp(min=1) * there.tokens.action
        first, other = (_slope(method, {**scored, "ref_logp": each}, there) for each in (scored["ref_logp"], spread))
        if not torch.allclose(first, other, rtol=1e-3, atol=1e-5):
            raise ValueError(
                f"the loss reads the reference token by token, and the data stores sums over completions; {UNSTORE}"
            )


def _slope(method: Method, scored: Scored, batch: Batch) -> Tensor:
    """The loss and its gradient with respect to the policy's log-probs, [1 + B T]."""
    leaf = (scored["logp"] * batch.tokens.action).requires_grad_()
    loss = losses(method, {**scored, "logp": leaf}, batch, [term.weigh(batch) for term in method.terms])
    return torch.cat([loss.detach()[None], torch.autograd.grad(loss, leaf)[0].flatten()])


def _uneven(tokens: Tokens) -> Tokens:
    """The tokens, the last action of every other row left out, if it has others."""
    last = tokens.action.cumsum(-1) == tokens.action.sum(-1, keepdim=True)
    several = (tokens.action.sum(-1) > 1) & (torch.arange(len(tokens.ended)) % 2 == 1)
    return replace(tokens, action=tokens.action & ~(last & several[:, None]))
