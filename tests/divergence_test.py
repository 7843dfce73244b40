"""KL estimators against expectations by enumeration, in float64; every wrong meaning is kept apart by a number."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from softq.mdp import divergence
from softq.mdp.divergence import corrected, k1, k2, k3, straight_through
from softq.mdp.tabular import TabularLM, along, every_trajectory, token_tree

exact = {"rtol": 0.0, "atol": 1e-10}
SEEDS = range(4)


def full(p: Tensor, q: Tensor) -> Tensor:
    """Of logits."""
    return divergence.full(p.log_softmax(-1), q.log_softmax(-1))


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def three(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a policy, which require gradient, a reference and the policy that drew the actions: V = 5."""
    return random(5, seed=seed).requires_grad_(), random(5, seed=seed + 100), random(5, seed=seed + 200)


def slope(value: Tensor, logits: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
    return gradient


def log_ratio(policy: Tensor, ref: Tensor) -> Tensor:
    return policy.log_softmax(-1) - ref.log_softmax(-1)


def expected(estimate: Tensor, drawn_from: Tensor) -> Tensor:
    """E[k] over the drawn action, whose law is given and fixed."""
    return (drawn_from.softmax(-1).detach() * estimate).sum()


def forward_and_reverse(policy: Tensor, ref: Tensor) -> tuple[Tensor, Tensor]:
    """KL(π‖π_ref) and KL(π_ref‖π), written out."""
    p, q = policy.softmax(-1), ref.softmax(-1)
    return (p * (p / q).log()).sum(), (q * (q / p).log()).sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_values(seed: int) -> None:
    policy, ref, old = three(seed)
    d = log_ratio(policy, ref)
    kl, other = forward_and_reverse(policy, ref)
    rho = log_ratio(policy, old).exp()
    for found in (
        expected(k1(d), policy),
        expected(k3(d), policy),
        expected(corrected(k1(d), rho), old),
        expected(corrected(k3(d), rho), old),
        expected(straight_through(k3(d), k2(d)), policy),
        full(policy[None], ref[None])[0],
    ):
        torch.testing.assert_close(found, kl, **exact)
        assert abs(found - other) > 1e-3
    second = (policy.softmax(-1) * d * d).sum() / 2
    torch.testing.assert_close(expected(k2(d), policy), second, **exact)
    torch.testing.assert_close(expected(corrected(k2(d), rho), old), second, **exact)
    assert abs(second - kl) > 1e-3
    assert abs(expected(k3(-d), policy) - kl) > 1e-3
    assert abs(expected(k3(d), old) - kl) > 1e-3  # off-policy and not corrected


@pytest.mark.parametrize("seed", SEEDS)
def test_gradients_as_a_loss(seed: int) -> None:
    policy, ref, old = three(seed)
    d = log_ratio(policy, ref)
    kl, other = (slope(value, policy) for value in forward_and_reverse(policy, ref))
    assert (kl - other).abs().max() > 1e-3
    rho = log_ratio(policy, old).exp()
    torch.testing.assert_close(slope(expected(k1(d), policy), policy), torch.zeros_like(kl), **exact)
    torch.testing.assert_close(slope(expected(k3(d), policy), policy), other, **exact)
    for right in (
        expected(k2(d), policy),
        expected(corrected(k1(d), rho), old),
        expected(corrected(k3(d), rho), old),
        expected(corrected(k3(d), log_ratio(policy, policy.detach()).exp()), policy),  # ρ = 1
        expected(straight_through(k3(d), k2(d)), policy),
        full(policy[None], ref[None])[0],
    ):
        torch.testing.assert_close(slope(right, policy), kl, **exact)
    for wrong in (
        expected(k2(d), old),
        expected(k3(-d), policy),
        expected(corrected(k3(d), rho.detach()), old),
        expected(corrected(k2(d), rho), old),
        expected(straight_through(k2(d), k3(d)), policy),
    ):
        assert (slope(wrong, policy) - kl).abs().max() > 1e-3
    biased = slope((policy.softmax(-1) * k2(d)).sum(), policy)
    torch.testing.assert_close(slope(expected(corrected(k2(d), rho), old), policy), biased, **exact)
    detached = slope(expected(corrected(k3(d), rho.detach()), old), policy)
    torch.testing.assert_close(detached, other, **exact)


@pytest.mark.parametrize("estimator", [k1, k2, k3], ids=["k1", "k2", "k3"])
def test_gradients_by_finite_differences(estimator) -> None:
    """Samples fixed: the weights stay those of π, d alone moves. Corrected: ρ moves too."""
    policy, ref, old = three(0)
    weights, behind = policy.detach().softmax(-1), old.softmax(-1)
    sums = (
        lambda x: (weights * estimator(log_ratio(x, ref))).sum(),
        lambda x: (behind * corrected(estimator(log_ratio(x, ref)), log_ratio(x, old).exp())).sum(),
    )
    for value in sums:
        steps = 1e-5 * torch.eye(5, dtype=torch.float64)
        differences = torch.stack([(value(policy + h) - value(policy - h)) / 2e-5 for h in steps])
        torch.testing.assert_close(slope(value(policy), policy), differences, rtol=0.0, atol=1e-8)


def test_values_by_hand() -> None:
    """The vectors give e^x - x - 1 at x = log π_ref/π, which is -d."""
    entries = json.loads((Path(__file__).parent.parent / "conformance/golden.json").read_text())["entries"]
    (entry,) = [e for e in entries if e["name"] == "k3_estimator"]
    x = torch.tensor(entry["inputs"]["d"], dtype=torch.float64)
    golden = torch.tensor(entry["expected"]["k3"], dtype=torch.float64)
    torch.testing.assert_close(k3(-x), golden, rtol=1e-13, atol=0.0)
    assert (k3(x) - golden).abs().min() > 1e-3
    d = torch.tensor([0.0, 0.5, -2.0], dtype=torch.float64)
    assert k1(d).tolist() == [0.0, 0.5, -2.0]
    assert k2(d).tolist() == [0.0, 0.125, 2.0]
    assert k3(d).tolist() == pytest.approx([0.0, 0.1065306597126334, 4.38905609893065], abs=1e-14)


def test_straight_through_is_bitwise_the_one_and_by_gradient_the_other() -> None:
    d = random(3, 4, seed=3).requires_grad_()
    mixed = straight_through(k3(d), k2(d))
    assert torch.equal(mixed, k3(d))
    assert torch.equal(torch.autograd.grad(mixed.sum(), d)[0], d.detach())


def test_k3_near_zero_is_not_noise() -> None:
    """float32 at |d| = 1e-4: d²/2 to a thousandth, where e^{-d} - 1 + d has no digit left; never negative, on a wide grid."""
    d = torch.tensor([1e-4, -1e-4])
    torch.testing.assert_close(k3(d), d.square() / 2, rtol=2e-3, atol=0.0)
    assert (((-d).exp() - 1 + d) / (d.square() / 2) - 1).abs().min() > 0.5
    grid = torch.cat([sign * torch.logspace(-10, 1.5, 20001) for sign in (1, -1)])
    assert (k3(grid) >= 0).all()


@pytest.mark.parametrize(("dtype", "edge"), [(torch.float32, 88.0), (torch.float64, 709.0)], ids=str)
def test_far_from_zero(dtype: torch.dtype, edge: float) -> None:
    """Finite where e^{-d} is, else inf with gradient -inf, as stated; nan nowhere."""
    d = torch.tensor([1e4, -1e4, edge, -edge, -edge - 2], dtype=dtype, requires_grad=True)
    assert k1(d).isfinite().all()
    assert k2(d).tolist()[:2] == [5e7, 5e7]
    value = k3(d)
    (gradient,) = torch.autograd.grad(value.sum(), d)
    assert value.isfinite().tolist() == [True, False, True, True, False]
    assert value[0] == 1e4 - 1
    assert value[[1, 4]].tolist() == [float("inf")] * 2
    assert gradient[[0, 1, 4]].tolist() == [1.0, -float("inf"), -float("inf")]
    assert not gradient.isnan().any()


# --- sequences -------------------------------------------------------------------------------------------------------------

TREE = token_tree([(0,), (1, 1)], vocabulary=3, horizon=3, end=2)


class Sequences:
    """Every trajectory of a tree under three tables without chance in them: π (with gradient), π_ref and π_old."""

    def __init__(self, tree=TREE) -> None:
        number = torch.arange(len(tree.prefixes) * 3, dtype=torch.float64).reshape(-1, 3)
        self.policy = TabularLM(tree, torch.sin(1.7 * number))
        self.tree, self.ref, self.old = tree, torch.cos(2.3 * number), torch.sin(0.9 * number)
        self.logits = self.policy.table
        self.tokens = every_trajectory(tree)
        self.logp = self.on(self.logits)
        self.d = self.logp - self.on(self.ref)

    def on(self, logits: Tensor) -> Tensor:
        """log-probabilities of the tokens taken, [B, T]."""
        return along(self.tree, logits.log_softmax(-1), self.tokens)

    def mean(self, rows: Tensor, drawn_from: Tensor) -> Tensor:
        """E over trajectories drawn from a fixed policy, summed over prompts and tokens."""
        return (self.on(drawn_from).sum(-1).exp().detach() * rows.sum(-1)).sum()

    def sequence_kl(self) -> Tensor:
        """Σ_y π(y) log π(y)/π_ref(y), summed over prompts, differentiable in full."""
        return (self.logp.sum(-1).exp() * self.d.sum(-1)).sum()


def test_values_add_up_along_a_sequence() -> None:
    at = Sequences()
    kl = at.sequence_kl()
    rho = (at.logp - at.on(at.old)).exp()
    prefix = (at.logp - at.on(at.old)).cumsum(-1).exp()
    states = along(at.tree, full(at.logits, at.ref)[:, None].expand(-1, 3), at.tokens)
    for found in (
        at.mean(k1(at.d), at.logits),
        at.mean(k3(at.d), at.logits),
        at.mean(states, at.logits),
        at.mean(corrected(k3(at.d), prefix), at.old),
    ):
        torch.testing.assert_close(found, kl, **exact)
    assert abs(at.mean(corrected(k3(at.d), rho), at.old) - kl) > 1e-3  # the token's ρ does not move the states


def test_own_token_gradient_is_biased_for_the_sequence_kl_and_reward_to_go_is_exact() -> None:
    """The bias as a number, and what the own-token gradient is instead: Σ_s d(s) KL(s), how often states are met frozen."""
    at = Sequences()
    right = slope(at.sequence_kl(), at.logits)
    togo = at.d.detach().flip(-1).cumsum(-1).flip(-1)
    torch.testing.assert_close(slope(at.mean(togo * at.logp, at.logits), at.logits), right, **exact)
    past = at.d.detach().cumsum(-1)
    assert (slope(at.mean(past * at.logp, at.logits), at.logits) - right).abs().max() > 1e-3
    reach = torch.zeros(len(at.tree.prefixes), dtype=torch.float64)
    reach[at.tree.depth == 0] = 1.0
    for s, a in (at.tree.next >= 0).nonzero().tolist():  # parents come first
        reach[at.tree.next[s, a]] = reach[s] * at.logits.detach().softmax(-1)[s, a]
    frozen = slope((reach * full(at.logits, at.ref)).sum(), at.logits)
    one = (at.logp - at.logp.detach()).exp()
    for own in (k2(at.d), straight_through(k3(at.d), k2(at.d)), corrected(k3(at.d), one), at.d.detach() * at.logp):
        found = slope(at.mean(own, at.logits), at.logits)
        torch.testing.assert_close(found, frozen, **exact)
        assert (found - right).abs().max().item() == pytest.approx(0.1269802275803072, abs=1e-10)
    prefix = (at.logp - at.on(at.old)).cumsum(-1).exp()
    torch.testing.assert_close(slope(at.mean(corrected(k3(at.d), prefix), at.old), at.logits), right, **exact)


def test_own_token_gradient_is_exact_where_one_token_is_all() -> None:
    at = Sequences(token_tree([(0,), (1, 1)], vocabulary=3, horizon=1))
    right = slope(at.sequence_kl(), at.logits)
    torch.testing.assert_close(slope(at.mean(k2(at.d), at.logits), at.logits), right, **exact)


def test_sequence_kl_gradient_by_finite_differences() -> None:
    at = Sequences()
    right = slope(at.sequence_kl(), at.logits)

    def kl(logits: Tensor) -> Tensor:
        logp = at.on(logits)
        return (logp.sum(-1).exp() * (logp - at.on(at.ref)).sum(-1)).sum()

    with torch.no_grad():
        for s, a in [(0, 0), (1, 2), (4, 1), (len(right) - 1, 2)]:
            step = torch.zeros_like(right)
            step[s, a] = 1e-5
            difference = (kl(at.logits + step) - kl(at.logits - step)) / 2e-5
            torch.testing.assert_close(right[s, a], difference, rtol=0.0, atol=1e-8)
