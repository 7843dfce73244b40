"""Losses of the margin: golden numbers, and what their papers say of them."""

import math

import pytest
import torch
from golden_test import ENTRIES, mean_loss, paired
from pair_steps import losses, numbers, of_ratios, same, slopes
from torch import Tensor
from torch.nn.functional import softplus

from softq.objectives import METHODS
from softq.objectives.fixed_points import softmax_of_reward
from softq.objectives.margins import discopop, dpo, exo, hinge, robust
from softq.records import Batch, Method
from softq.verify.populations import Population, soft_pairs
from softq.verify.tables import slope

GOLDEN = {
    "robust": robust(beta=0.5),
    "hinge": hinge(beta=0.5),
    "exo_pair": exo(beta=0.5),
    "discopop": discopop(beta=0.5),
    "stability/discopop_m-200": discopop(beta=0.5),
    "stability/exo_pair_m-2000": exo(beta=0.5),
    "stability/robust_m2000": robust(beta=0.5),
}
GRID = torch.linspace(-12, 12, 97, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name: str, dtype: torch.dtype) -> None:
    expected = ENTRIES[1, name]["expected"]
    scored, batch, w, low = paired(ENTRIES[1, name], dtype)
    values, mean = mean_loss(GOLDEN[name], scored, batch)
    within = 1e-12 if dtype == torch.float64 else 1e-5
    same(values.double(), numbers(*expected["loss"]), within)
    for grad, side in zip(torch.autograd.grad(mean, [w, low]), "wl", strict=True):
        same(grad.double(), numbers(*expected[f"grad_mean_wrt_LP_{side}"]), within)


@pytest.mark.parametrize("name", ["robust", "hinge", "exo_pair", "discopop"])
def test_at_the_reference(name: str) -> None:
    entry = ENTRIES[1, "at_reference"]
    scored, batch, _, _ = paired(entry)
    values, _ = mean_loss(GOLDEN[name], scored, batch)
    same(values, torch.full_like(values, entry["expected"][name]))


OF_PAIRS = ("robust", "hinge", "exo", "discopop", "forward_kl_dpo", "js_dpo", "alpha_dpo", "dpo_norm", "rdpo", "ld_dpo")


@pytest.mark.parametrize("name", OF_PAIRS)
def test_no_log_ratio_makes_a_loss_or_gradient_that_is_no_number(name: str) -> None:
    """Every pair of log-ratios up to ±1e4, in float32, at the default β and at 1."""
    ratio = torch.tensor([-1e4, -3e3, -200.0, -90.0, -80.0, -30.0, -1.0, 0.0, 1.0, 30.0, 80.0, 90.0, 200.0, 1e4])
    w, low = torch.cartesian_prod(ratio, ratio).T
    for method in (METHODS[name](), METHODS[name](beta=1.0)):
        assert losses(method, w, low).isfinite().all()
        assert all(each.isfinite().all() for each in slopes(method, w, low))
        assert method.reward(*of_ratios(w, low)).isfinite().all()


# --- robust ---


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.1, 0.3, 0.49])
def test_robust_averaged_over_flips_is_dpo(epsilon: float) -> None:
    """(1-ε) l(z) + ε l(-z) = h(z), for every z: no other link has that."""
    method = robust(beta=0.5, label_smoothing=epsilon)
    mixed = (1 - epsilon) * losses(method, GRID) + epsilon * losses(method, -GRID)
    same(mixed, softplus(-0.5 * GRID), 1e-11)
    assert (slopes(method, GRID)[0] <= slopes(dpo(beta=0.5), GRID)[0] + 1e-12).all()  # more negative: pushes harder
    assert bool((losses(method, GRID) < 0).any()) == (epsilon > 0)


def flipped(whole: Population, epsilon: float) -> Batch:
    """The population with a share ε of its labels turned round: every pair stands there in both orders."""
    i, j = whole.batch.pairs.chosen, whole.batch.pairs.rejected
    seen = {(a, b): w for a, b, w in zip(i.tolist(), j.tolist(), whole.batch.columns["weight"].tolist(), strict=True)}
    turned = numbers(*(seen[b, a] for a, b in zip(i.tolist(), j.tolist(), strict=True)))
    weight = (1 - epsilon) * whole.batch.columns["weight"] + epsilon * turned
    return Batch(whole.batch.tokens, whole.batch.pairs, {**whole.batch.columns, "weight": weight})


def pull(method: Method, whole: Population, batch: Batch, log_policy: Tensor) -> float:
    """The largest entry of the population's gradient at a distribution over completions."""
    rest = whole.targets(dpo().fixed_point._replace(log_policy=lambda scored, batch: log_policy))  # pyright: ignore
    return float(slope(method, whole.at(rest[0]), batch).gradient.abs().max())


@pytest.mark.parametrize("epsilon", [0.1, 0.3])
def test_robust_rests_at_the_clean_optimum_when_labels_are_flipped_at_its_rate(epsilon: float) -> None:
    """π_ref e^{R/β} of the labels before the flips; dpo, cdpo and another ε are pulled away from it."""
    whole = soft_pairs(1.0)
    noisy, best = flipped(whole, epsilon), softmax_of_reward(0.7)(whole.scored(), whole.batch)
    assert pull(robust(beta=0.7, label_smoothing=epsilon), whole, noisy, best) < 1e-15
    for other in (
        dpo(beta=0.7),
        dpo(beta=0.7, label_smoothing=epsilon),
        robust(beta=0.7, label_smoothing=epsilon - 0.05),
        robust(beta=0.7, label_smoothing=epsilon + 0.05),
        robust(beta=0.8, label_smoothing=epsilon),
    ):
        assert pull(other, whole, noisy, best) > 1e-3
    stated = robust(beta=0.7, label_smoothing=epsilon).fixed_point
    assert stated is not None
    found = stated.log_policy(whole.scored(), noisy)
    for prompt in range(2):
        rows = whole.batch.tokens.prompt == prompt
        same(found[rows].log_softmax(0), best[rows].log_softmax(0), 1e-9)


def test_robust_has_no_end_where_labels_are_surer_than_it_takes_them_for() -> None:
    """Clean labels up to 0.99 under ε = 0.1: the slope at the surest pair is down for ever; with flips it is not."""
    method, whole = robust(beta=0.7), soft_pairs(1.0)
    stated = method.fixed_point
    assert stated is not None
    with pytest.raises(ArithmeticError):
        stated.log_policy(whole.scored(), whole.batch)
    stated.log_policy(whole.scored(), flipped(whole, 0.1))
    same(slopes(method, numbers(200.0))[0], numbers(-0.1 / 0.8 * 0.7))
    same(slopes(method, numbers(-200.0))[0], numbers(-0.9 / 0.8 * 0.7))


# --- hinge ---


def test_hinge_counts_a_pair_fully_or_not_at_all() -> None:
    method = hinge(beta=0.5)
    margin = numbers(-3.0, 0.0, 1.99, 2.01, 5.0)
    same(losses(method, margin), numbers(2.5, 1.0, 0.005, 0.0, 0.0))
    w, low = slopes(method, margin)
    assert w.tolist() == [-0.5, -0.5, -0.5, 0.0, 0.0]
    assert low.tolist() == [0.5, 0.5, 0.5, 0.0, 0.0]


def test_hinge_reads_the_reference_and_is_not_slic() -> None:
    scored, batch, _, _ = paired(ENTRIES[1, "hinge"])
    without = hinge(beta=0.5).terms[0].loss({**scored, "ref_logp": 0 * scored["ref_logp"]}, batch)
    same(without, numbers(0.0, 2.0, 0.0))
    same(hinge(beta=0.5).terms[0].loss(scored, batch), numbers(0.75, 2.25, 0.0))


# --- exo ---


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 0.4])
def test_exo_is_the_reverse_kl_of_the_labels(epsilon: float) -> None:
    """KL(q ‖ (1-ε, ε)); cdpo is KL((1-ε, ε) ‖ q), up to the entropy of its target."""
    q, target = torch.sigmoid(GRID), numbers(1 - epsilon, epsilon)
    both = torch.stack([q, 1 - q])
    reverse = (both * (both.log() - target.log()[:, None])).sum(0)
    same(losses(exo(beta=1.0, label_smoothing=epsilon), GRID), reverse, 1e-10)
    forward = (target[:, None] * (target.log()[:, None] - both.log())).sum(0)
    entropy = -(target * target.log()).sum()
    same(losses(dpo(beta=1.0, label_smoothing=epsilon), GRID), forward + entropy, 1e-10)
    assert (forward - reverse).abs().max() > 0.1


def test_exo_rests_at_its_target_and_gives_up_what_is_far_off() -> None:
    """Its slope is q(1-q)(z - z*): 0 at z* = log((1-ε)/ε) = 6.906755, and as good as 0 at -40, where dpo's is whole."""
    method, rest = exo(beta=1.0), math.log(0.999 / 0.001)
    assert rest == pytest.approx(6.906755, abs=1e-6)
    at = torch.cat([GRID, numbers(rest)])
    q = torch.sigmoid(at)
    same(slopes(method, at)[0], q * (1 - q) * (at - rest), 1e-13)
    assert (losses(method, at) >= 0).all()
    assert abs(losses(method, numbers(rest)).item()) < 1e-15
    assert -1e-15 < slopes(method, numbers(-40.0))[0].item() < 0
    assert slopes(dpo(beta=1.0), numbers(-40.0))[0].item() == pytest.approx(-1)


def test_exo_of_soft_labels_rests_at_a_share_of_its_target() -> None:
    """p l(z) + (1-p) l(-z) has slope 0 at (2p-1) z*, for a pair by itself."""
    for p in (0.5, 0.7, 0.95):
        at = numbers((2 * p - 1) * math.log(9))
        method = exo(beta=1.0, label_smoothing=0.1)
        assert abs(p * slopes(method, at)[0] - (1 - p) * slopes(method, -at)[0]).item() < 1e-15


# --- discopop ---


def test_discopop_has_a_local_minimum_below_the_reference_and_a_local_maximum_above() -> None:
    """So at the reference its slope is up: margins first fall. The paper's points in u/τ are -2.3714 and 1.44012."""
    method = discopop(beta=0.5)
    points = numbers(-2.3714 * 0.05, 1.44012 * 0.05) / 0.5
    same(losses(method, points), numbers(0.785924, 0.878290), 1e-6)
    assert slopes(method, points)[0].abs().max() < 1e-4
    around = torch.stack([points - 0.1, points + 0.1])
    assert torch.stack([slopes(method, side)[0] for side in around]).sign().tolist() == [[-1, 1], [1, -1]]
    assert slopes(method, numbers(0.0))[0].item() > 0


def test_discopop_is_logistic_far_below_and_exponential_far_above() -> None:
    far = numbers(2.0, 5.0, 30.0)
    same(losses(discopop(beta=1.0), far), (-far).exp())
    same(losses(discopop(beta=1.0), -far), softplus(far))


def test_discopop_is_finite_where_the_two_factors_are_not() -> None:
    """e^{-u} σ(u/τ) at u = -100: ∞ · 0 in float32."""
    u = torch.tensor([-100.0])
    assert ((-u).exp() * torch.sigmoid(u / 0.05)).isnan().all()
    assert losses(discopop(beta=1.0), u).tolist() == [100.0]
    assert slopes(discopop(beta=1.0), u)[0].tolist() == [-1.0]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("robust", {"label_smoothing": 0.5}, "label_smoothing is 0.5; expected 0 ≤ label_smoothing < 0.5"),
        ("robust", {"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ("exo", {"label_smoothing": 0.0}, "label_smoothing is 0.0; expected label_smoothing > 0"),
        ("exo", {"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ("discopop", {"tau": 0.0}, "tau is 0.0; expected 0 < tau ≤ 1"),
        ("discopop", {"tau": 1.5}, "tau is 1.5"),
        ("alpha_dpo", {"alpha": -0.1}, "alpha is -0.1; expected 0 ≤ alpha ≤ 1"),
        ("alpha_dpo", {"alpha": 1.1}, "alpha is 1.1"),
        ("rdpo", {"alpha": -0.1}, "alpha is -0.1; expected alpha ≥ 0"),
        ("ld_dpo", {"alpha": 1.1}, "alpha is 1.1; expected 0 ≤ alpha ≤ 1"),
        ("ld_dpo", {"alpha": -0.1}, "alpha is -0.1"),
    ],
)
def test_what_is_out_of_range_is_refused(name: str, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METHODS[name](**settings)
