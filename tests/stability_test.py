"""No loss and no gradient is nan or infinite for log-ratios up to ±10,000 nats, in float32 and on bfloat16 inputs."""

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from softq.objectives import METHODS
from softq.records import Batch, Scored
from softq.training.loop import with_columns
from softq.training.plan import losses
from softq.verify.tables import some_models, some_step

ROWS = 12
FAR = 1e4
sums = st.lists(st.floats(-FAR, 0, width=32), min_size=ROWS, max_size=ROWS)
signs = [[-FAR if (row >> side) & 1 else 0.0 for row in range(ROWS)] for side in (0, 1, 2)]
SURE = [0.0] * ROWS


def spread(totals: list[float], action: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums of rows over their actions: a half on the first, the rest shared by all."""
    total = torch.tensor(totals[: len(action)], dtype=torch.float32)[:, None]
    first = torch.zeros_like(total.expand_as(action)).scatter(1, action.int().argmax(1)[:, None], 0.5)
    return (total * action * (first + 0.5 / action.sum(-1, keepdim=True))).to(dtype)


def step(name: str, policy: list[float], reference: list[float], dtype: torch.dtype) -> tuple[Tensor, Scored, Batch]:
    """A step of a method whose rows have these log-probabilities; what else it reads is that of some tables."""
    method = METHODS[name]()
    batch = with_columns(some_step(method), method.memory)
    action = batch.tokens.action
    with torch.no_grad():
        scored = {key: value.to(dtype) for key, value in some_models()(batch.tokens, method.needs).items()}
    leaf = spread(policy, action, dtype).requires_grad_()
    scored |= {"logp": leaf}
    if "ref_logp" in scored:
        scored |= {"ref_logp": spread(reference, action, dtype)}
    return leaf, scored, batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", METHODS)
@example(policy=SURE, reference=SURE)
@example(policy=signs[0], reference=SURE)
@example(policy=signs[1], reference=signs[0])
@example(policy=SURE, reference=signs[1])
@example(policy=signs[2], reference=signs[1])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(policy=sums, reference=sums)
def test_far_from_the_reference(name: str, dtype: torch.dtype, policy: list[float], reference: list[float]) -> None:
    method = METHODS[name]()
    leaf, scored, batch = step(name, policy, reference, dtype)
    loss = losses(method, scored, batch, [term.weigh(batch) for term in method.terms])
    assert torch.isfinite(loss), f"the loss is {loss}"
    assert torch.isfinite(method.reward(scored, batch)).all()
    if loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
        assert gradient is None or torch.isfinite(gradient).all(), f"the gradient is {gradient}"
