"""How parameters move: AdamW, a schedule with warm-up, clipping."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}
"""The factor on the learning rate after a share `done` of the steps that follow the warm-up."""


class AdamW:
    """AdamW (arXiv 1711.05101) on the parameters that want a gradient; call it once a step.

    learning_rate rises linearly over `warmup_steps`, then follows SCHEDULES[schedule] over the rest of `steps`, which all
    but "constant" need. Gradients are clipped to the norm `max_grad_norm`. `backward` makes a micro-batch's gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float = 1e-6,
        schedule: str = "constant",
        steps: int | None = None,
        warmup_steps: int = 0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        max_grad_norm: float = 1.0,
        backward: Callable[[Tensor], None] = torch.Tensor.backward,
    ) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        fused = {parameter.device.type for parameter in self.parameters} <= {"cpu", "cuda"}
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=fused
        )
        self.max_grad_norm = max_grad_norm
        self.backward = backward
        shape = SCHEDULES[schedule]
        if steps is None and schedule != "constant":
            raise ValueError(f"schedule {schedule!r} needs to know the number of steps")
        falling = max(1, (steps or 0) - warmup_steps)

        def factor(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / warmup_steps
            return shape(min(1.0, (step - warmup_steps) / falling))

        self.schedule = LambdaLR(self.optimizer, factor)

    def __call__(self) -> Mapping[str, float]:
        """Clip, step, zero the gradients. Returns the gradient's norm before clipping and the learning rate used."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        rate = self.optimizer.param_groups[0]["lr"]
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm.item()}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return {"grad_norm": norm.item(), "learning_rate": rate}
