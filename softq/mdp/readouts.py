"""Logits to numbers: everything of the size of the vocabulary is reduced here, in nats, one number per action."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from softq.records import Readout

Models = Mapping[str, Tensor]  # {model: logits [n, V]}


def log_prob(logits: Tensor, action: Tensor) -> Tensor:
    """log softmax(logits)[action]: [n, V], [n] -> [n]. In one operation, whose gradient needs one array of [n, V]."""
    return -F.cross_entropy(logits, action, reduction="none")


def entropy(logits: Tensor) -> Tensor:
    """H = -Σ_a π(a) log π(a): [n, V] -> [n]."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p‖q) = Σ_a p(a) log p(a)/q(a): [n, V], [n, V] -> [n]. Log-softmax on both sides, so no 0 · log 0 arises."""
    p, q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def log_collision(logits: Tensor) -> Tensor:
    """log Σ_a π(a)², the log-probability that two draws agree: [n, V] -> [n]. WPO (arXiv 2406.11827)."""
    return (2 * logits).logsumexp(-1) - 2 * logits.logsumexp(-1)


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


LOGP = Readout("logp", ("policy",), "logits", _logp)
REF_LOGP = Readout("ref_logp", ("ref",), "logits", _ref_logp)
ENTROPY = Readout("entropy", ("policy",), "logits", _entropy)
KL = Readout("kl", ("policy", "ref"), "logits", _kl)  # KL(π‖π_ref) of the state
KL_FROM_REF = Readout("kl_from_ref", ("policy", "ref"), "logits", _kl_from_ref)  # KL(π_ref‖π) of the state
LOG_COLLISION = Readout("log_collision", ("policy",), "logits", _log_collision)
