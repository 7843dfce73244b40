"""Steps of pairs from sums of log-probs, and the golden numbers of conformance/golden.json (fixture 1) that are such steps."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from softq.records import Batch, Method, Pairs, Scored, Tokens

GOLDEN = {
    entry["name"]: entry
    for entry in json.loads((Path(__file__).parent.parent / "conformance/golden.json").read_text())["entries"]
    if entry["fixture"] == 1
}


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def step(lengths: list[int] | None = None, P: int = 1, **columns: Tensor) -> Batch:
    """P pairs, chosen rows first; rows of so many actions."""
    size = torch.tensor(lengths or [1] * 2 * P)
    action = torch.arange(int(size.max()))[None] < size[:, None]
    ids = torch.zeros(2 * P, action.shape[1] + 1, dtype=torch.int64)
    tokens = Tokens(ids, action, torch.ones(2 * P, dtype=torch.bool), torch.arange(P).repeat(2))
    return Batch(tokens, Pairs(torch.arange(P), torch.arange(P, 2 * P)), columns)


def rows(sums: Tensor, batch: Batch) -> Tensor:
    """[2P] sums as [2P, T]: each on the first action of its row."""
    return torch.nn.functional.pad(sums[:, None], (0, batch.tokens.action.shape[1] - 1))


def seen(batch: Batch, logp: Tensor, ref: Tensor | None = None) -> Scored:
    """Scores of a step from the sums [2P] of its rows; without a reference there is none to read."""
    return {"logp": rows(logp, batch)} | ({} if ref is None else {"ref_logp": rows(ref, batch)})


def total(method: Method, scored: Scored, batch: Batch) -> Tensor:
    """The loss of the step."""
    return sum((term.loss(scored, batch) * term.weigh(batch)).sum() for term in method.terms)  # pyright: ignore[reportReturnType]


def of_ratios(method: Method, *ratios: float, dtype: torch.dtype = torch.float64) -> tuple[float, list[float]]:
    """Loss of one pair, and its slopes in L_w and L_l, for log-ratios L_w, L_l against a reference of log-probs 0."""
    leaf = torch.tensor(ratios, dtype=dtype, requires_grad=True)
    batch = step()
    loss = total(method, seen(batch, leaf, torch.zeros_like(leaf)), batch)
    return loss.item(), torch.autograd.grad(loss, leaf)[0].tolist()


def golden(method: Method, name: str, dtype: torch.dtype) -> None:
    """The first term of a method has the golden values, mean and gradients."""
    inputs, expected = GOLDEN[name]["inputs"], GOLDEN[name]["expected"]
    lengths = [*inputs["len_w"], *inputs["len_l"]] if "len_w" in inputs else [3] * 6
    batch = step(lengths=lengths, P=3)
    leaf = torch.tensor([*inputs["LP_w"], *inputs["LP_l"]], dtype=dtype, requires_grad=True)
    ref = torch.tensor([*inputs["LPref_w"], *inputs["LPref_l"]], dtype=dtype) if "LPref_w" in inputs else None
    scored, term = seen(batch, leaf, ref), method.terms[0]
    values, weight = term.loss(scored, batch), term.weigh(batch) / term.total
    mean = (values * weight).sum()
    (gradient,) = torch.autograd.grad(mean, leaf)
    rel, near = (1e-12, 1e-12) if dtype == torch.float64 else (1e-5, 1e-6)
    slopes = expected["grad_mean_wrt_LP_w"] + expected["grad_mean_wrt_LP_l"]
    assert values.tolist() == pytest.approx(expected["loss"], rel=rel, abs=near)
    assert mean.item() == pytest.approx(expected["mean"], rel=rel, abs=near)
    assert gradient.tolist() == pytest.approx(slopes, rel=rel, abs=near)
