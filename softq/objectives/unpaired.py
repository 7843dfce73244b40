"""Single completions judged good or bad."""

import torch
from torch import Tensor

from softq.mdp.readouts import REF_LOGP
from softq.objectives import weights
from softq.objectives.links import positive
from softq.records import Batch, Method, Scored, Term, implicit


def kl_baseline(scored: Scored, batch: Batch) -> Tensor:
    """z0 = max(0, mean log-ratio of completions under another's prompt), a scalar in nats without gradient (KTO, eq 7)."""
    mismatched = batch.labels.mismatched
    if len(mismatched) == 0:
        raise ValueError("KTO's KL baseline needs completions under other prompts: at least two records a step")
    return implicit(scored, batch)[mismatched].mean().clamp(min=0).detach()


def kto(*, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Method:
    """KTO, arXiv 2402.01306, eq 8: good λ_D (1 - σ(β(L - z0))), bad λ_U (1 - σ(β(z0 - L))).

    z0 is the batch estimate: the mean log-ratio of the step's mismatched completions, at least 0. Balance the classes by
    weights with (λ_D n_D)/(λ_U n_U) between 1 and 4/3. It saturates on both sides and comes to rest only where a prompt's
    mass has left what is mostly judged bad.
    """
    positive("beta", beta)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        labels = batch.labels
        z = beta * (implicit(scored, batch)[labels.row] - kl_baseline(scored, batch))
        return torch.where(labels.good, desirable_weight * torch.sigmoid(-z), undesirable_weight * torch.sigmoid(z))

    terms = (Term("kto", "label", loss, weights.per_label),)
    return Method(terms, (REF_LOGP,), takes="labels+mismatched", beta=beta, coupled=True, stops=True)
