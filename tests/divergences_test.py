"""f-DPO: golden numbers, the divergences that its scores are derivatives of, and where it rests."""

import math
from collections.abc import Callable

import pytest
import torch
from golden_test import ENTRIES, mean_loss, paired
from pair_steps import losses, numbers, of_ratios, same, slopes
from torch import Tensor

from softq.mdp.tabular import expected, gradient
from softq.objectives.divergences import alpha_dpo, forward_kl_dpo, js_dpo
from softq.objectives.fixed_points import softmax_of_reward, transformed
from softq.objectives.margins import dpo
from softq.records import Method
from softq.verify.populations import soft_pairs

OF_GOLDEN = {
    "forward_kl": forward_kl_dpo(beta=0.5),
    "js_divergence": js_dpo(beta=0.5),
    "alpha_divergence": alpha_dpo(beta=0.5),
}
WIDE = torch.linspace(-6, 6, 49, dtype=torch.float64)

DIVERGENCES: dict[str, tuple[Callable[..., Method], Callable[[Tensor], Tensor]]] = {
    "forward_kl": (forward_kl_dpo, lambda u: u - 1 - u.log()),
    "js": (js_dpo, lambda u: u * u.log() - (1 + u) * ((1 + u) / 2).log()),
    "alpha": (lambda beta: alpha_dpo(beta=beta, alpha=0.3), lambda u: (u**0.3 / 0.3 - u) / (0.3 - 1)),
    "reverse_kl": (lambda beta: alpha_dpo(beta=beta, alpha=1.0), lambda u: u * u.log() - u),
}
"""A method, and the f of its divergence D(π‖π_ref) = Σ π_ref f(π/π_ref), up to a constant."""


def scores(method: Method, ratio: Tensor) -> Tensor:
    """g(L)."""
    return method.reward(*of_ratios(ratio, ratio))[: len(ratio)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", OF_GOLDEN)
def test_golden(name: str, dtype: torch.dtype) -> None:
    entry = ENTRIES[1, f"sigmoid+{name}"]
    scored, batch, w, low = paired(entry, dtype)
    values, mean = mean_loss(OF_GOLDEN[name], scored, batch)
    within = 1e-12 if dtype == torch.float64 else 1e-5
    same(values.double(), numbers(*entry["expected"]["loss"]), within)
    for grad, side in zip(torch.autograd.grad(mean, [w, low]), "wl", strict=True):
        same(grad.double(), numbers(*entry["expected"][f"grad_mean_wrt_LP_{side}"]), within)


@pytest.mark.parametrize("name", OF_GOLDEN)
def test_scores_keep_the_constant_of_the_derivative(name: str) -> None:
    """A loss that sees it, golden: the square of scores per token less 1/(2β). A dropped constant gives other numbers."""
    entry = ENTRIES[1, f"ipo+{name}"]
    scored, batch, _, _ = paired(entry)
    each = OF_GOLDEN[name].reward(scored, batch) / batch.tokens.action.sum(-1)
    found = (each[batch.pairs.chosen] - each[batch.pairs.rejected] - 1) ** 2
    same(found, numbers(*entry["expected"]["loss"]))
    dropped = numbers(*ENTRIES[1, f"ipo+{name}_dropped_constant"]["expected"]["loss"])
    assert (found - dropped).abs().max() > 1e-3
    assert abs(scores(OF_GOLDEN[name], numbers(0.0)).item()) < 1e-15


@pytest.mark.parametrize("name", DIVERGENCES)
def test_scores_are_the_derivative_of_f(name: str) -> None:
    make, f = DIVERGENCES[name]
    ratio = WIDE.exp().requires_grad_()
    (slope,) = torch.autograd.grad(f(ratio).sum(), ratio)
    same(scores(make(beta=1.0), WIDE), slope, 1e-9)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_losses_fall_with_the_chosen_and_rise_with_the_rejected(name: str) -> None:
    method = DIVERGENCES[name][0](beta=0.1)
    w, low = torch.cartesian_prod(WIDE[::6], WIDE[::6]).T
    up, down = slopes(method, w, low)
    assert (up < 0).all()
    assert (down > 0).all()


def test_js_scores_stay_below_log_2() -> None:
    found = scores(js_dpo(), torch.cat([WIDE, numbers(30.0, -1e4)]))
    assert (found < math.log(2)).all()
    assert found[-1].item() == pytest.approx(math.log(2) - 1e4)


def test_alpha_goes_from_the_forward_to_the_reverse_kl() -> None:
    """Exactly at 0 and at 1, in losses and scores, and steadily between them."""
    w, low = torch.cartesian_prod(WIDE[::8], WIDE[::8]).T
    for alpha, other in ((0.0, forward_kl_dpo(beta=0.5)), (1.0, dpo(beta=0.5))):
        assert torch.equal(losses(alpha_dpo(beta=0.5, alpha=alpha), w, low), losses(other, w, low))
        assert torch.equal(scores(alpha_dpo(beta=0.5, alpha=alpha), w), scores(other, w))
    ends = [losses(alpha_dpo(beta=0.5, alpha=1 - distance), w, low) for distance in (1e-3, 1e-6, 1e-9)]
    apart = [(end - losses(dpo(beta=0.5), w, low)).abs().max().item() for end in ends]
    assert apart == pytest.approx([apart[0], apart[0] * 1e-3, apart[0] * 1e-6], rel=0.02)
    assert 1e-3 < apart[0] < 0.1


def test_alpha_near_one_is_exact_in_float32() -> None:
    """e^{(α-1)L}/(α-1) without the constant would be a difference of numbers of 1e5."""
    w, low = torch.cartesian_prod(WIDE[::8], WIDE[::8]).float().T
    near, exact = (losses(alpha_dpo(beta=0.5, alpha=alpha), w, low) for alpha in (1 - 1e-5, 1.0))
    torch.testing.assert_close(near, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("method", "edge"), [(forward_kl_dpo(), -80.0), (alpha_dpo(alpha=0.5), -160.0)])
def test_behind_the_clamp_a_completion_has_no_gradient(method: Method, edge: float) -> None:
    """In front of it a chosen one is pulled up with all there is; a rejected one has no gradient on either side."""
    sides = torch.tensor([edge + 1, edge - 1, -1e4])
    up, down = slopes(method, sides)
    assert up[0].item() < -1e30
    assert down[0].item() > 0  # of the reference's own slope: 1
    assert up[1:].tolist() == [0.0, 0.0]
    assert slopes(method, torch.zeros(3), sides)[1].tolist() == [0.0] * 3
    same(losses(method, sides[1:]), losses(method, torch.full((2,), edge)))


# --- where they rest ---


@pytest.mark.parametrize("beta", [0.3, 2.0])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_they_rest_at_the_best_of_the_reward_less_the_divergence(name: str, beta: float) -> None:
    """E_π[R] - β D(π‖π_ref), as a function of logits of the completions, is stationary there, and less everywhere beside it."""
    make, f = DIVERGENCES[name]
    whole = soft_pairs(1.0)
    ref, reward, group = whole.scored()["ref_logp"].sum(-1), whole.batch.columns["reward"], whole.batch.tokens.prompt
    rest = make(beta=beta).fixed_point
    assert rest is not None
    stated = rest.log_policy(whole.scored(), whole.batch)

    def objective(logits: Tensor) -> Tensor:
        logp = torch.cat([logits[group == prompt].log_softmax(0) for prompt in (0, 1)])
        return (logp.exp() * reward).sum() - beta * (ref.exp() * f((logp - ref).exp())).sum()

    assert gradient(objective, stated).abs().max() < 1e-12
    assert gradient(objective, softmax_of_reward(2 * beta)(whole.scored(), whole.batch)).abs().max() > 1e-3
    for seed in range(3):
        beside = torch.randn(len(ref), generator=torch.Generator().manual_seed(seed), dtype=ref.dtype)
        assert objective(stated + 0.1 * beside) < objective(stated) - 1e-5


def test_the_forward_kl_leaves_mass_in_inverse_proportion_to_regret() -> None:
    """β π_ref/π + R is one constant a prompt, and probabilities sum to 1."""
    whole = soft_pairs(1.0)
    rest = forward_kl_dpo(beta=0.4).fixed_point
    assert rest is not None
    stated, ref = rest.log_policy(whole.scored(), whole.batch), whole.scored()["ref_logp"].sum(-1)
    group = whole.batch.tokens.prompt
    same(expected(stated, torch.ones_like(stated), group), torch.ones(2, dtype=torch.float64))
    level = 0.4 * (ref - stated).exp() + whole.batch.columns["reward"]
    for prompt in (0, 1):
        same(level[group == prompt], level[group == prompt][0].expand(7), 1e-11)


def test_transformed_by_nothing_is_the_softmax_of_reward() -> None:
    whole = soft_pairs(1.0)
    stated = transformed(lambda ratio: ratio, lambda score: score, 0.3)(whole.scored(), whole.batch)
    wanted = softmax_of_reward(0.3)(whole.scored(), whole.batch)
    group = whole.batch.tokens.prompt
    same(stated, torch.cat([wanted[group == prompt].log_softmax(0) for prompt in (0, 1)]), 1e-12)
