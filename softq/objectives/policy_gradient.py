"""Rewards of sampled completions. On given batches only, so not in METHODS until rollouts exist."""

import torch
from torch import Tensor

from softq.mdp.divergence import k3
from softq.mdp.readouts import REF_LOGP
from softq.objectives import weights
from softq.objectives.credit import group_normalised
from softq.records import Batch, Method, Scored, Term


def grpo(*, beta: float = 0.04, epsilon: float = 0.2) -> Method:
    """GRPO, arXiv 2402.03300, eq 3: -min(ρA, clip(ρ, 1-ε, 1+ε)A) + β k3, the mean over rows of their token means.

    ρ = π/π_old per token, A the group-normalised reward, k3 = e^{-d} - 1 + d with d = log π/π_ref: its value estimates
    KL(π‖π_ref), its gradient is that of KL(π_ref‖π). beta=0 needs no reference.
    """

    def loss(scored: Scored, batch: Batch) -> Tensor:
        advantage = batch.columns["advantage"]
        rho = (scored["logp"] - batch.columns["old_logp"]).exp()
        surrogate = torch.minimum(rho * advantage, rho.clamp(1 - epsilon, 1 + epsilon) * advantage)
        if not beta:
            return -surrogate
        return beta * k3(scored["logp"] - scored["ref_logp"]) - surrogate

    return Method(
        (Term("grpo", "token", loss, weights.per_row_then_token),),
        (REF_LOGP,) if beta else (),
        takes="groups",
        beta=beta or 1.0,
        columns=("reward", "advantage", "old_logp"),
        credit=group_normalised,
    )
