"""Log-probs to numbers: everything of the size of the vocabulary is reduced here, in nats, one number per action."""

from collections.abc import Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from softq import masked
from softq.records import Readout

Models = Mapping[str, Tensor]  # {model: log-probs [n, V]}


def log_prob(logp: Tensor, action: Tensor) -> Tensor:
    """log π(action): [n, V], [n] -> [n]."""
    return logp.gather(-1, action[:, None])[:, 0]


def entropy(logp: Tensor) -> Tensor:
    """H = -Σ_a π(a) log π(a): [n, V] -> [n]."""
    return -(logp.exp() * logp).sum(-1)


def kl(p_logp: Tensor, q_logp: Tensor) -> Tensor:
    """KL(p‖q) = Σ_a p(a) log p(a)/q(a): [n, V], [n, V] -> [n]. Of log-softmaxes, which are finite: no 0 · log 0 arises."""
    return (p_logp.exp() * (p_logp - q_logp)).sum(-1)


def log_collision(logp: Tensor) -> Tensor:
    """log Σ_a π(a)², the log-probability that two draws agree: [n, V] -> [n]. WPO (arXiv 2406.11827)."""
    return (2 * logp).logsumexp(-1)


def cringe(logp: Tensor, action: Tensor, k: int) -> Tensor:
    """Σ_c sg[p_c] h(s_c - s_a), h(z) = -log σ(z), over the k likeliest tokens c beside the action a: [n, V], [n] -> [n].

    p is the softmax of their log-probs s, without gradient: the expectation of the contrast with one c drawn from p (Cringe,
    arXiv 2312.16682), whose expected gradient it has. A vocabulary of fewer than k + 1 tokens gives all its others.
    """
    best, token = logp.topk(min(k + 1, logp.shape[-1]), -1)
    taken = token == action[:, None]
    spare = ~taken.any(-1) & (
        best.shape[-1] == k + 1
    )  # the action is not among the best k + 1: the last is one too many
    outside = taken | (spare[:, None] & (torch.arange(best.shape[-1], device=best.device) == k))
    share = best.detach().masked_fill(outside, -torch.inf).softmax(-1)
    contrast = F.softplus(logp.gather(-1, action[:, None]) - best)
    return masked.product(share.nan_to_num(), contrast).sum(-1)  # nan: a vocabulary of one token has no others


def step_size(dpo_logp: Tensor, reverse_logp: Tensor, ratio: float, epsilon: float) -> Tensor:
    """α = ratio · TVD + ε with TVD = ½ Σ_a |p_d(a) - p_r(a)| in [0, 1]: [n, V], [n, V] -> [n] (AlignDistil, arXiv 2503.02832)."""
    apart = (dpo_logp.exp() - reverse_logp.exp()).abs().sum(-1)
    return ratio * apart / 2 + epsilon


def extrapolated(dpo_logp: Tensor, reverse_logp: Tensor, alpha: Tensor) -> Tensor:
    """log softmax(z_d + α (z_d - z_r)) [n, V]: from the reverse model through the DPO model and on by α [n] (AlignDistil)."""
    return (dpo_logp + alpha[:, None] * (dpo_logp - reverse_logp)).log_softmax(-1)


def _logp(models: Models, action: Tensor) -> Tensor:
    return log_prob(models["policy"], action)


def _ref_logp(models: Models, action: Tensor) -> Tensor:
    return log_prob(models["ref"], action)


def _entropy(models: Models, action: Tensor) -> Tensor:
    return entropy(models["policy"])


def _kl(models: Models, action: Tensor) -> Tensor:
    return kl(models["policy"], models["ref"])


def _kl_from_ref(models: Models, action: Tensor) -> Tensor:
    return kl(models["ref"], models["policy"])


def _log_collision(models: Models, action: Tensor) -> Tensor:
    return log_collision(models["policy"])


def _value(models: Models, action: Tensor) -> Tensor:
    return models["policy"]


LOGP = Readout("logp", ("policy",), "log_probs", _logp)
REF_LOGP = Readout("ref_logp", ("ref",), "log_probs", _ref_logp)
ENTROPY = Readout("entropy", ("policy",), "log_probs", _entropy)
KL = Readout("kl", ("policy", "ref"), "log_probs", _kl)  # KL(π‖π_ref) of the state
KL_FROM_REF = Readout("kl_from_ref", ("policy", "ref"), "log_probs", _kl_from_ref)  # KL(π_ref‖π) of the state
LOG_COLLISION = Readout("log_collision", ("policy",), "log_probs", _log_collision)
VALUE = Readout("value", ("policy",), "value", _value)  # in reward: of the state that the action leads to


@cache
def logp_of(model: str) -> Readout:
    """A model's log-probability of the action, nats, by the name "MODEL_logp"."""
    return Readout(f"{model}_logp", (model,), "log_probs", lambda models, action: log_prob(models[model], action))


@cache
def cringe_of(k: int) -> Readout:
    """The contrast with the policy's k likeliest other tokens, nats."""
    return Readout("cringe", ("policy",), "log_probs", lambda models, action: cringe(models["policy"], action, k))


@cache
def distillation_of(beta: float, ratio: float, epsilon: float) -> Readout:
    """β/α KL(π‖teacher) of the state, in nats; the teacher goes from "reverse" through "dpo" and on by α of `step_size`."""

    def fn(models: Models, action: Tensor) -> Tensor:
        alpha = step_size(models["dpo"], models["reverse"], ratio, epsilon)
        return beta / alpha * kl(models["policy"], extrapolated(models["dpo"], models["reverse"], alpha))

    return Readout("distillation", ("policy", "dpo", "reverse"), "log_probs", fn)


@cache
def teacher_of(ratio: float, epsilon: float) -> Readout:
    """That teacher's log-probability of the action."""

    def fn(models: Models, action: Tensor) -> Tensor:
        alpha = step_size(models["dpo"], models["reverse"], ratio, epsilon)
        return log_prob(extrapolated(models["dpo"], models["reverse"], alpha), action)

    return Readout("teacher_logp", ("dpo", "reverse"), "log_probs", fn)
