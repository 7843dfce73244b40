"""One target, four constructions (arXiv 2502.03095): a policy as the softmax of reward over temperature, reached by each loss.

    π^τ(y) = π_ref(y) e^{r(y)/τ} / Z,     Z = Σ_y π_ref(y) e^{r(y)/τ}

A construction is a population loss of N logits. Where `reference` is 0 the reward alone is followed; where it is log π_ref,
it is the posterior form, of which softq.objectives.regression has the methods. s(y) = τ (log π(y) - log π_ref(y)), and
`weight` [N, N] says how often each ordered pair (i, j) is seen.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from softq.mdp.soft import soft_backup
from softq.mdp.tabular import difference, every_trajectory, gradient, token_tree
from softq.objectives import METHODS
from softq.records import Batch, Tokens
from softq.verify.tables import models, slope


def scores(logits: Tensor, reference: Tensor, tau: float) -> Tensor:
    """s [N] = τ (log π - log π_ref), in reward units."""
    return tau * (logits.log_softmax(-1) - reference)


def log_partition(reward: Tensor, reference: Tensor, tau: float) -> Tensor:
    """log Σ_y π_ref e^{r/τ}, a number."""
    return (reference + reward / tau).logsumexp(-1)


def apart(values: Tensor) -> Tensor:
    """[N] -> [N, N]: value i less value j."""
    return values[:, None] - values[None]


def divergence(logits: Tensor, reward: Tensor, reference: Tensor, weight: Tensor, *, tau: float) -> Tensor:
    """KL(π‖π^τ) = Σ π (log π - log π^τ), of soft actor-critic and KL-regularised policy gradients; pairs play no part."""
    target = reference + reward / tau - log_partition(reward, reference, tau)
    logp = logits.log_softmax(-1)
    return (logp.exp() * (logp - target)).sum()


def regression(logits: Tensor, reward: Tensor, reference: Tensor, weight: Tensor, *, tau: float) -> Tensor:
    """Σ_i w_i (r_i - s_i - τ log Z)², w_i = Σ_j w_ij: each score on its own reward; log Z must be known (A*-PO)."""
    error = reward - scores(logits, reference, tau) - tau * log_partition(reward, reference, tau)
    return (weight.sum(1) * error**2).sum()


def pairwise_regression(logits: Tensor, reward: Tensor, reference: Tensor, weight: Tensor, *, tau: float) -> Tensor:
    """Σ_ij w_ij ((r_i - r_j) - (s_i - s_j))²: differences of scores on differences of rewards, so Z cancels (REBEL)."""
    return (weight * apart(reward - scores(logits, reference, tau)) ** 2).sum()


def preference(logits: Tensor, reward: Tensor, reference: Tensor, weight: Tensor, *, tau: float) -> Tensor:
    """-Σ_ij w_ij [p log σ(s_i - s_j) + (1-p) log σ(s_j - s_i)], p = σ(r_i - r_j): DPO with soft labels."""
    return labelled(logits, apart(reward).sigmoid(), reference, weight, tau=tau)


def labelled(logits: Tensor, label: Tensor, reference: Tensor, weight: Tensor, *, tau: float) -> Tensor:
    """The same with labels [N, N], the probability that i is judged better than j; 0 or 1 where labels are hard."""
    margin = apart(scores(logits, reference, tau))
    return -(weight * (label * F.logsigmoid(margin) + (1 - label) * F.logsigmoid(-margin))).sum()


CONSTRUCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "divergence": divergence,
    "regression": regression,
    "pairwise regression": pairwise_regression,
    "preference": preference,
}
PAIRWISE = ("pairwise regression", "preference")

GOLDEN = Path(__file__).parent.parent / "conformance/golden.json"
ENTRY = next(e for e in json.loads(GOLDEN.read_text())["entries"] if e["name"] == "udrra_target")
TAU = ENTRY["parameters"]["tau"]


def numbers(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same(found: Tensor, wanted: Tensor, within: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=within)


REWARD = numbers(*ENTRY["inputs"]["rewards"])
REFERENCES = {"reward alone": torch.zeros(4, dtype=torch.float64), "posterior": numbers(0.1, 0.4, 0.2, 0.3).log()}
WEIGHT = numbers([0, 3, 1, 2], [1, 0, 4, 1], [2, 2, 0, 5], [1, 3, 1, 0]) / 26
STARTS = [3 * torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in range(3)]
TARGET = numbers(*ENTRY["expected"]["pi"])
every_form = pytest.mark.parametrize("form", REFERENCES)
every_construction = pytest.mark.parametrize("name", CONSTRUCTIONS)


def population(name: str, form: str, weight: Tensor = WEIGHT) -> Callable[[Tensor], Tensor]:
    """The loss as a function of the logits."""
    return lambda logits: CONSTRUCTIONS[name](logits, REWARD, REFERENCES[form], weight, tau=TAU)


def target(form: str) -> Tensor:
    """π^τ, by hand: weights π_ref e^{r/τ} over their sum."""
    weights = REFERENCES[form].exp() * (REWARD / TAU).exp()
    return weights / weights.sum()


def descended(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The logits that descent comes to from there."""
    logits = start.clone().requires_grad_()
    road = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        logits.grad = gradient(loss, logits)
        return float(loss(logits.detach()))

    road.step(closure)
    return logits.detach()


def test_the_target_by_its_numbers() -> None:
    same(target("reward alone"), TARGET)
    same(TARGET, numbers(0.21024, 0.07734, 0.57149, 0.14093), within=5e-6)
    one = token_tree([(0,)], vocabulary=4, horizon=1)
    best = soft_backup(one, REWARD[None], REFERENCES["posterior"][None], beta=TAU)
    same(best.logp[0].exp(), target("posterior"))
    same(best.v[0] / TAU, log_partition(REWARD, REFERENCES["posterior"], TAU))


def test_values_by_hand() -> None:
    """Two outcomes, π = (1/4, 3/4), π_ref = (1/2, 1/2), r = (log 2, 0), τ = 1: π^τ = (2/3, 1/3), s = (-log 2, log 3/2)."""
    logits, reward, half = numbers(0.25, 0.75).log(), numbers(math.log(2), 0.0), numbers(0.5, 0.5).log()
    weight = numbers([0.0, 0.75], [0.25, 0.0])
    given = (logits, reward, half, weight)
    found = {name: loss(*given, tau=1.0).item() for name, loss in CONSTRUCTIONS.items()}
    own, other = math.log(2) - math.log(1.5) + math.log(2), -math.log(1.5) - math.log(1.5)
    miss = math.log(2) + math.log(2) + math.log(1.5)  # the difference of rewards less that of scores, log 1/3
    assert found == {
        "divergence": pytest.approx(0.25 * math.log(3 / 8) + 0.75 * math.log(9 / 4)),
        "regression": pytest.approx(0.75 * own**2 + 0.25 * other**2),
        "pairwise regression": pytest.approx(miss**2),
        "preference": pytest.approx(2 / 3 * math.log(4) + 1 / 3 * math.log(4 / 3)),
    }


@every_form
@every_construction
def test_each_is_stationary_at_the_target(name: str, form: str) -> None:
    loss, at = population(name, form), target(form).log()
    assert gradient(loss, at).abs().max() < 1e-12
    assert difference(loss, at).abs().max() < 1e-9
    assert gradient(loss, torch.zeros(4, dtype=torch.float64)).abs().max() > 0.01
    other = population(name, "posterior" if form == "reward alone" else "reward alone")
    assert gradient(other, at).abs().max() > 0.01


@every_form
@every_construction
@pytest.mark.parametrize("start", STARTS, ids=["start 0", "start 1", "start 2"])
def test_descent_on_each_reaches_the_same_policy(name: str, form: str, start: Tensor) -> None:
    found = descended(population(name, form), start).softmax(-1)
    same(found, target(form), within=1e-8)
    assert (start.softmax(-1) - found).abs().max() > 0.1


@every_form
def test_the_divergence_is_the_regularised_reward_turned_round(form: str) -> None:
    """τ KL(π‖π^τ) = τ log Z - (E_π[r] - τ KL(π‖π_ref)); without a reference the last term is the entropy."""
    logp = STARTS[0].log_softmax(-1)
    kept = (logp.exp() * (REWARD - TAU * (logp - REFERENCES[form]))).sum()
    found = TAU * population("divergence", form)(STARTS[0])
    same(found, TAU * log_partition(REWARD, REFERENCES[form], TAU) - kept)
    assert found > 0.1


@pytest.mark.parametrize("tau", [0.5, 0.02])
def test_a_low_temperature_follows_the_best_alone(tau: float) -> None:
    found = (REWARD / tau).softmax(-1)
    assert (found[2] > 1 - 1e-10) == (tau == 0.02)


METHODS_OF = {
    "divergence": "kl_to_target",
    "regression": "reward_regression",
    "pairwise regression": "rebel",
    "preference": "soft_preference",
}


@every_construction
def test_the_method_is_the_construction_where_the_reference_draws_its_group(name: str) -> None:
    """Ten samples, each outcome as often as π_ref says: loss and gradient are those of the whole population, in posterior form.

    A pair of two of the ten rows is of outcomes i and j as often as n_i n_j; of one outcome twice, n_i (n_i - 1).
    """
    one, count = token_tree([(0,)], vocabulary=4, horizon=1), numbers(1.0, 4.0, 2.0, 3.0)
    weight = (count[:, None] * count - torch.diag(count)) / 90
    leaves, which = every_trajectory(one), torch.arange(4).repeat_interleave(count.long())
    drawn = Tokens(leaves.ids[which], leaves.action[which], leaves.ended[which], leaves.prompt[which])
    batch = Batch(drawn, None, {"reward": REWARD[which]})
    of = models(STARTS[1][None], REFERENCES["posterior"][None], one)
    found = slope(METHODS[METHODS_OF[name]](beta=TAU), of, batch)
    loss = population(name, "posterior", weight)
    same(found.loss, loss(STARTS[1]))
    same(found.gradient[0], gradient(loss, STARTS[1]))


# --- pairs that do not connect all outcomes: {0, 1} and {2, 3} ---

BLOCKS = WEIGHT * numbers([1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1])
ACROSS = numbers(1.0, 1.0, 0.0, 0.0)  # moves mass from one component to the other and no ratio inside them


@every_form
@pytest.mark.parametrize("name", PAIRWISE)
def test_disconnected_pairs_leave_the_mass_between_components_free(name: str, form: str) -> None:
    """The derivative across is 0 everywhere; ratios inside are the target's, and the mass is what the start made it."""
    loss, masses = population(name, form, BLOCKS), []
    for start in STARTS:
        assert abs(gradient(loss, start) @ ACROSS) < 1e-15
        same(loss(start + 7 * ACROSS), loss(start), within=1e-13)
        found = descended(loss, start)
        assert gradient(loss, found).abs().max() < 1e-10
        ratio, wanted = found.log_softmax(-1), target(form).log()
        same(ratio[0] - ratio[1], wanted[0] - wanted[1], within=1e-8)
        same(ratio[2] - ratio[3], wanted[2] - wanted[3], within=1e-8)
        same(found @ ACROSS, start @ ACROSS, within=1e-10)
        masses.append(float(found.softmax(-1) @ ACROSS))
    assert min(abs(a - b) for a, b in itertools.combinations(masses, 2)) > 0.04
    assert all(abs(mass - float(target(form) @ ACROSS)) > 0.04 for mass in masses)


@every_form
@pytest.mark.parametrize("name", [name for name in CONSTRUCTIONS if name not in PAIRWISE])
def test_the_others_do_not_need_pairs(name: str, form: str) -> None:
    loss, at = population(name, form, BLOCKS), target(form).log()
    assert gradient(loss, at + ACROSS) @ ACROSS > 0.01
    assert gradient(loss, at - ACROSS) @ ACROSS < -0.01
    for start in STARTS:
        same(descended(loss, start).softmax(-1), target(form), within=1e-8)


# --- hard labels ---


def test_drawn_labels_have_the_same_expected_gradient_as_their_probability() -> None:
    """All 2^6 labellings of six unordered pairs, each as likely as its labels are: the mean gradient is the soft one."""
    pairs = list(itertools.combinations(range(4), 2))
    p, half = apart(REWARD).sigmoid(), WEIGHT.triu(1)
    mean, chance = torch.zeros(4, dtype=torch.float64), 0.0
    for drawn in itertools.product([0.0, 1.0], repeat=6):
        label, likely = torch.zeros(4, 4, dtype=torch.float64), 1.0
        for (i, j), won in zip(pairs, drawn, strict=True):
            label[i, j] = won
            likely *= float(p[i, j] if won else 1 - p[i, j])
        slope = gradient(lambda x, y=label: labelled(x, y, REFERENCES["posterior"], half, tau=TAU), STARTS[2])
        mean, chance = mean + likely * slope, chance + likely
    assert chance == pytest.approx(1, abs=1e-12)
    same(mean, gradient(population("preference", "posterior", half), STARTS[2]))
    assert mean.abs().max() > 0.01


def test_labels_that_never_differ_have_no_stationary_point() -> None:
    """Where the better one always wins, every table can be bettered along the order of the rewards, and margins only grow."""
    label, order = (apart(REWARD) > 0).double(), REWARD.argsort().argsort().double()

    def loss(logits: Tensor) -> Tensor:
        return labelled(logits, label, REFERENCES["posterior"], WEIGHT, tau=TAU)

    for start in (*STARTS, target("posterior").log(), torch.zeros(4, dtype=torch.float64)):
        for far in (0.0, 1.0, 10.0, 100.0):
            assert gradient(loss, start + far * order) @ order < 0
        assert loss(start + 100 * order) < 1e-10 < loss(start)
    logits, least = torch.zeros(4, dtype=torch.float64), []
    for step in range(1, 1001):
        logits = logits - 100 * gradient(loss, logits)
        if step in (10, 100, 1000):
            least.append(float(logits[REWARD.argsort()].diff().min()))
    # e^{-τ margin} falls as one over the steps: in the end a margin grows by log 10/τ = 4.6 with every factor of ten
    assert least[0] > 1
    assert least[1] - least[0] > 2
    assert least[2] - least[1] == pytest.approx(math.log(10) / TAU, rel=0.15)
