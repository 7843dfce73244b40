"""The four constructions as methods: values of prompts, identities between them, and what each needs of its samples."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from grouped import close, groups, loss_of, numbers, values
from torch import Tensor

from softq.mdp.tabular import gradient
from softq.objectives.regression import kl_to_target, rebel, reward_regression, soft_preference
from softq.verify.populations import population
from softq.verify.tables import slope

GOLDEN = Path(__file__).parent.parent / "conformance/golden.json"
SCORES, RATIOS = [0.8, 0.2, -0.5], numbers(1.0, 0.5, -0.7)


def test_the_value_of_a_prompt_is_that_of_a_star_po() -> None:
    """Where the policy is the reference the loss is the mean of (r - V)², V = β log mean e^{r/β} of the fixture."""
    entry = next(e for e in json.loads(GOLDEN.read_text())["entries"] if e["name"] == "a_star_po_value")
    reward, v = numbers(*entry["inputs"]["rewards"]), entry["expected"]["V"]
    found = values(reward_regression(beta=0.5), torch.zeros(3, dtype=torch.float64), groups(reward.tolist()))
    close(found, ((reward - v) ** 2).mean()[None])


def test_a_few_samples_make_the_value_too_low() -> None:
    """V of every group of two that the reference can draw, by how likely it is: on average below β log Z, by Jensen."""
    ref, reward, beta = numbers(0.1, 0.4, 0.2, 0.3), numbers(0.3, -0.2, 0.8, 0.1), 0.5
    whole = beta * (ref.log() + reward / beta).logsumexp(0)
    mean = torch.zeros((), dtype=torch.float64)
    for i, j in itertools.product(range(4), repeat=2):
        two = reward[[i, j]]
        mean = mean + ref[i] * ref[j] * beta * ((two / beta).exp().mean().log())
    assert 0.01 < whole - mean < 0.2


def test_a_fitted_value_is_the_best_one_and_has_no_pull_of_its_own() -> None:
    method, batch = reward_regression(beta=0.5, value="fitted"), groups(SCORES)
    error = numbers(*SCORES) - 0.5 * RATIOS
    found = values(method, RATIOS, batch)[0]
    for v in (error.mean(), error.mean() + 0.1, error.mean() - 0.1):
        assert ((error - v) ** 2).mean() >= found - 1e-15

    def held(ratio: Tensor) -> Tensor:
        left = numbers(*SCORES) - 0.5 * ratio
        return ((left - left.mean().detach()) ** 2).mean()

    close(gradient(loss_of(method, batch), RATIOS), gradient(held, RATIOS))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_rebel_is_the_regression_with_a_fitted_value_by_the_size_of_its_group(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    ratio, reward = torch.randn(2, size, generator=generator, dtype=torch.float64)
    batch = groups(reward.tolist())
    fitted = values(reward_regression(beta=0.3, value="fitted"), ratio, batch)
    close(values(rebel(beta=0.3), ratio, batch), 2 * size / (size - 1) * fitted)


def test_rebel_by_hand() -> None:
    """(r_i - r_j - β(L_i - L_j))²: errors .3, -.05, -.15 of three, and a group of one, which has none."""
    found = values(rebel(beta=0.5), numbers(1.0, 0.5, -0.7, 4.0), groups(SCORES, [2.0]))
    close(found, numbers((0.35**2 + 0.45**2 + 0.1**2) / 3, 0.0))


def test_labels_from_rewards_are_those_that_bradley_and_terry_draw() -> None:
    """The expectation of dpo's loss over both labels of each pair; equal rewards are even odds, and want a margin of 0."""
    at, found = numbers(0.4, -0.3), values(soft_preference(beta=2.0), numbers(0.4, -0.3), groups([1.5, 0.5]))
    p, z = numbers(1.0).sigmoid(), 2.0 * (at[0] - at[1])
    close(found, p * torch.nn.functional.softplus(-z) + (1 - p) * torch.nn.functional.softplus(z))
    tied = loss_of(soft_preference(beta=2.0), groups([1.0, 1.0]))
    assert gradient(tied, numbers(0.7, 0.7)).abs().max() < 1e-16
    assert gradient(tied, numbers(0.7, 0.2))[0] > 0.1


@pytest.mark.parametrize("make", [reward_regression, rebel, soft_preference, kl_to_target])
def test_a_constant_in_the_rewards_of_a_prompt_changes_nothing(make) -> None:
    for value in ("log_z", "fitted") if make is reward_regression else (None,):
        method = make(beta=0.5, **({"value": value} if value else {}))
        one, other = (values(method, RATIOS, groups([r + c for r in SCORES])) for c in (0.0, 3.0))
        close(one, other)


def test_the_divergence_is_not_negative_and_zero_at_the_target() -> None:
    batch, method = groups(SCORES), kl_to_target(beta=0.5)
    close(values(method, numbers(*SCORES) / 0.5 + 1.3, batch), numbers(0.0))
    assert values(method, RATIOS, batch) > 0.01


def test_the_value_by_log_z_needs_the_samples_of_the_reference() -> None:
    """On groups of each completion once the soft optimum is no rest: their log mean is not the reference's."""
    method = reward_regression(beta=0.5)
    assert method.fixed_point
    whole = population(method.fixed_point._replace(population="groups"))
    (target,) = whole.targets(method.fixed_point)
    assert slope(method, whole.at(target), whole.batch).gradient.abs().max() > 1e-2


def test_the_value_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="value is 'learned'; expected one of log_z, fitted"):
        reward_regression(value="learned")  # pyright: ignore[reportArgumentType]
