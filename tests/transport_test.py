"""AOT: golden values, what a sort does not see, and where the unpaired form comes to rest."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from softq.objectives import METHODS
from softq.records import Batch, Pairs, Tokens
from softq.verify.populations import population
from softq.verify.tables import slope, some_models, some_step

GOLDEN = {
    (e["fixture"], e["name"]): e
    for e in json.loads((Path(__file__).parent.parent / "conformance/golden.json").read_text())["entries"]
}


def golden_step(name: str) -> tuple[Tensor, dict[str, Tensor], Batch]:
    x = GOLDEN[1, name]["inputs"]
    leaf = torch.tensor([[v] for v in x["LP_w"] + x["LP_l"]], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([[v] for v in x["LPref_w"] + x["LPref_l"]], dtype=torch.float64)
    tokens = Tokens(
        torch.zeros(6, 2, dtype=torch.int64), torch.ones(6, 1, dtype=torch.bool), torch.ones(6, dtype=torch.bool),
        torch.arange(6) % 3,
    )  # fmt: skip
    return leaf, {"logp": leaf, "ref_logp": ref}, Batch(tokens, Pairs(torch.arange(3), torch.arange(3, 6)))


@pytest.mark.parametrize("method", ["aot", "aot_unpaired"])
@pytest.mark.parametrize(("suffix", "epsilon"), [("", 0.0), ("_eps0.1", 0.1)])
def test_golden(method: str, suffix: str, epsilon: float) -> None:
    leaf, scored, batch = golden_step(method + suffix)
    values = METHODS[method](beta=0.5, label_smoothing=epsilon).terms[0].loss(scored, batch)
    wanted = GOLDEN[1, method + suffix]["expected"]
    assert values.tolist() == pytest.approx(wanted["loss"], abs=1e-12)
    (gradient,) = torch.autograd.grad(values.mean(), leaf)
    assert gradient[:, 0].tolist() == pytest.approx(
        wanted["grad_mean_wrt_LP_w"] + wanted["grad_mean_wrt_LP_l"], abs=1e-12
    )


def test_unpaired_does_not_see_who_was_compared_with_whom() -> None:
    """Permuting the rejected rows alone changes nothing for aot_unpaired, and something for aot and dpo."""
    of = some_models()
    for name, blind in (("aot_unpaired", True), ("aot", False), ("dpo", False)):
        method = METHODS[name](beta=0.5)
        batch = some_step(method)
        pairs = Pairs(batch.pairs.chosen, batch.pairs.rejected[torch.tensor([2, 0, 3, 1])])
        columns = {} if name == "dpo" else batch.columns
        one, other = (slope(method, of, Batch(batch.tokens, p, columns)) for p in (batch.pairs, pairs))
        off = max(float((one.loss - other.loss).abs()), float((one.gradient - other.gradient).abs().max()))
        assert off < 1e-14 if blind else off > 1e-3


def test_paired_does_not_see_which_reference_margin_is_whose() -> None:
    _, scored, batch = golden_step("aot")
    loss = METHODS["aot"](beta=0.5).terms[0].loss
    order = torch.tensor([2, 0, 1, 5, 3, 4])
    moved = {"logp": scored["logp"], "ref_logp": scored["ref_logp"][order]}
    assert torch.equal(loss(moved, batch), loss(scored, batch))
    unpaired = METHODS["aot_unpaired"](beta=0.5).terms[0].loss
    assert not torch.allclose(unpaired(moved, batch), unpaired(scored, batch))


def test_every_row_has_a_gradient() -> None:
    for name in ("aot", "aot_unpaired"):
        leaf, scored, batch = golden_step(name)
        (gradient,) = torch.autograd.grad(METHODS[name]().terms[0].loss(scored, batch).sum(), leaf)
        assert (gradient[:3] < 0).all()
        assert (gradient[3:] > 0).all()


def test_unpaired_rests_where_the_sides_are_matched_a_constant_apart() -> None:
    """On three hard pairs with ε = 0.1, β = 0.5: sorted log-ratios log 9 / 0.5 apart, in six ways, one a matching."""
    rest = METHODS["aot_unpaired"](beta=0.5, label_smoothing=0.1).fixed_point
    assert rest
    whole = population(rest)
    pairs, ref = whole.batch.pairs, whole.scored()["ref_logp"].sum(-1)
    stated = rest.log_policy(whole.scored(), whole.batch)
    assert stated.shape == (6, 6)
    shift = math.log(9) / 0.5
    for policy in stated:
        assert (policy[pairs.chosen].exp() + policy[pairs.rejected].exp()).tolist() == pytest.approx([1.0] * 3)
        ratio = policy - ref
        apart = ratio[pairs.chosen].sort().values - ratio[pairs.rejected].sort().values
        assert apart.tolist() == pytest.approx([shift] * 3, abs=1e-10)
    own = stated[0] - ref
    assert (own[pairs.chosen] - own[pairs.rejected]).tolist() == pytest.approx([shift] * 3, abs=1e-10)
    firsts = stated[:, 0].tolist()
    assert len({round(value, 6) for value in firsts}) > 2  # the others are others


def test_of_a_tiny_shift_nothing_is_stated() -> None:
    assert METHODS["aot_unpaired"](beta=5.0, label_smoothing=0.45).fixed_point is None
    assert METHODS["aot_unpaired"](beta=0.01).fixed_point is None
