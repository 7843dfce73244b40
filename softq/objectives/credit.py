"""From rewards of a whole batch to per-token advantages. Pure, no gradient."""

from collections.abc import Mapping

import torch
from torch import Tensor

from softq.objectives.links import group_sum
from softq.records import Batch, Scored, group_of


def group_normalised(scored: Scored, batch: Batch, epsilon: float = 1e-4) -> Mapping[str, Tensor]:
    """Advantage [B, T] = (r - mean)/(std + ε) within the group of a prompt, the same for each token; old_logp from now.

    std with Bessel's correction (GRPO, arXiv 2402.03300; TRL, verl). Equal rewards, or a group of one, give exactly 0.
    """
    reward, action = batch.columns["reward"], batch.tokens.action
    group = group_of(batch.tokens.prompt)
    count = group_sum(torch.ones_like(reward), group)
    centred = reward - (group_sum(reward, group) / count)[group]
    std = (group_sum(centred**2, group) / (count - 1).clamp(min=1)).sqrt()
    advantage = centred / (std + epsilon)[group]
    return {"advantage": advantage[:, None] * action, "old_logp": scored["logp"].detach()}
