"""All that is told of a state, read off its log-probs at once: what is shown of a policy token by token."""

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from softq.records import Readout

ALONE: tuple[str, ...] = ("entropy", "rank", "best")
COMPARED: tuple[str, ...] = (*ALONE, "ref_entropy", "kl", "kl_from_ref")
BLOCK = 2**18
"""Log-probs of a model that a processor reads at once: what is made of them on the way stays in its cache."""


@cache
def reading_of(top: int, compared: bool) -> Readout:
    """Numbers of a state, and the policy's `top` likeliest tokens: [n, V] -> [n, R]; `unpacked` gives them their names.

    Token ids are exact in float32 below 2^24.
    """

    def block(models: Mapping[str, Tensor], action: Tensor) -> Tensor:
        logp = models["policy"]
        taken = logp.gather(-1, action[:, None])
        best, token = logp.topk(min(top, logp.shape[-1]), -1)
        p = logp.exp()
        numbers = [-(p * logp).sum(-1), (logp > taken).sum(-1), best[:, 0]]
        lists = [token, best]
        if compared:
            ref_logp = models["ref"]
            q, ratio = ref_logp.exp(), logp - ref_logp
            numbers += [-(q * ref_logp).sum(-1), (p * ratio).sum(-1), -(q * ratio).sum(-1)]
            lists.append(ref_logp.gather(-1, token))
        stacked = torch.stack([number.to(logp.dtype) for number in numbers], -1)
        return torch.cat([stacked, *(part.to(logp.dtype) for part in lists)], -1)

    def fn(models: Mapping[str, Tensor], action: Tensor) -> Tensor:
        states, vocabulary = models["policy"].shape
        step = max(1, BLOCK // vocabulary if action.device.type == "cpu" else states)
        parts = [slice(start, start + step) for start in range(0, states, step)] or [slice(0)]
        return torch.cat([block({name: of[part] for name, of in models.items()}, action[part]) for part in parts])

    return Readout("reading", ("policy", "ref") if compared else ("policy",), "log_probs", fn)


def unpacked(reading: Tensor, compared: bool) -> dict[str, Tensor]:
    """[..., R] -> entropy, rank, best [...], top, top_logp [..., K]; with a reference also ref_entropy, kl, kl_from_ref [...] and
    top_ref_logp [..., K]."""
    names = COMPARED if compared else ALONE
    lists: tuple[str, ...] = ("top", "top_logp", "top_ref_logp") if compared else ("top", "top_logp")
    numbers = dict(zip(names, reading[..., : len(names)].unbind(-1), strict=True))
    return numbers | dict(zip(lists, reading[..., len(names) :].chunk(len(lists), -1), strict=True))


def _hidden(models: Mapping[str, Tensor], action: Tensor) -> Tensor:
    (states,) = models.values()
    return states.to(torch.promote_types(states.dtype, torch.float32))


@cache
def hidden_of(model: str) -> Readout:
    """The state itself, what the head sees: [n, H]. Of a model that runs its own head, its logits."""
    return Readout(f"{model}_hidden", (model,), "hidden", _hidden)
