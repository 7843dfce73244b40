"""An MDP with chance: its optimum by hand and by enumeration, luck, and what two ways to train from preferences find."""

import math

import pytest
import torch
from torch import Tensor

from softq.mdp.chance import (
    Chance,
    Episodes,
    chance_backup,
    every_episode,
    luck,
    minimum,
    preference_loss,
    regularised_return,
    step_dpo,
    totals,
    trajectory_dpo,
    two_states,
)
from softq.mdp.soft import soft_backup
from softq.mdp.tabular import difference, gradient, random_table, token_tree

UNIFORM = torch.full((3, 2), 0.5, dtype=torch.float64).log()
SEEDS = range(5)
exact = {"rtol": 0.0, "atol": 1e-12}


def tensor(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random(seed: int, *, drawn: bool = True) -> tuple[Chance, Tensor, float]:
    """Four states, two actions, two outcomes, states with several parents; a reference, and β."""
    generator = torch.Generator().manual_seed(seed)
    after = torch.full((4, 2, 2), -1)
    for s in range(3):
        later = torch.randint(s + 1, 4, (2, 2), generator=generator)
        after[s] = torch.where(torch.rand(2, 2, generator=generator) < 0.8, later, -1)
    after[0, 0] = torch.tensor([1, 2])
    probability = torch.rand(4, 2, 1, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    if not drawn:
        probability = torch.ones_like(probability)
    reward, reference = (2 * torch.randn(4, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    chance = torch.cat([probability, 1 - probability], -1)
    return Chance(after, chance, reward), reference.log_softmax(-1), 0.5 + 0.3 * seed


def a_policy(like: Tensor, seed: int) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(-1)


def mass(logp: Tensor, episodes: Episodes) -> Tensor:
    """How likely each episode is under a policy."""
    return (totals(logp, episodes) + episodes.chance).exp()


# --- the optimum -----------------------------------------------------------------------------------------------------------


def test_two_states_by_hand() -> None:
    mdp = two_states()
    best = chance_backup(mdp, UNIFORM, beta=1.0)
    good, bad = math.log((math.e**3 + math.e**2) / 2), math.log((1 + math.e**-1) / 2)
    risky = (good + bad) / 2
    start = math.log((math.e + math.exp(risky)) / 2)
    assert best.v.tolist() == pytest.approx([start, good, bad], abs=1e-14)
    assert best.v.tolist() == pytest.approx([1.0618596072403230, 2.6201145069582776, -0.3798854930417224], abs=1e-14)
    torch.testing.assert_close(best.q_kl, tensor([[1.0, risky], [3.0, 2.0], [0.0, -1.0]]), **exact)
    torch.testing.assert_close(best.q_maxent, best.q_kl - math.log(2), **exact)
    second = tensor([math.exp(risky - start) / 2, 1 / (1 + math.e), 1 / (1 + math.e)])
    torch.testing.assert_close(best.logp.exp(), torch.stack([1 - second, second], -1), **exact)
    assert second[0].item() == pytest.approx(0.529992575596811, abs=1e-14)
    favourable = chance_backup(two_states(0.9), UNIFORM, beta=1.0)
    assert favourable.q_kl[0, 1].item() == pytest.approx(0.9 * good + 0.1 * bad, abs=1e-14)


def test_episodes_of_two_states() -> None:
    episodes = every_episode(two_states(0.25))
    assert episodes.state.tolist() == [[0, 0], [0, 1], [0, 1], [0, 2], [0, 2]]
    assert episodes.action.tolist() == [[0, 0], [1, 0], [1, 1], [1, 0], [1, 1]]
    assert episodes.outcome.tolist() == [[0, 0], [0, 0], [0, 0], [1, 0], [1, 0]]
    assert episodes.taken.tolist() == [[True, False], *[[True, True]] * 4]
    torch.testing.assert_close(episodes.chance.exp(), tensor([1.0, 0.25, 0.25, 0.75, 0.75]), **exact)
    assert totals(two_states().reward, episodes).tolist() == [1.0, 3.0, 2.0, 0.0, -1.0]
    assert len(every_episode(two_states(1.0)).state) == 3  # what has no probability is no episode


@pytest.mark.parametrize("seed", SEEDS)
def test_no_policy_earns_more_than_the_optimum(seed: int) -> None:
    """Enumerated return = evaluated return; its gradient is 0 at π*; what another loses is β E Σ KL(π‖π*)."""
    mdp, reference, beta = random(seed)
    best = chance_backup(mdp, reference, beta=beta)
    episodes = every_episode(mdp)
    for policy in (best.logp, a_policy(reference, seed)):
        p = mass(policy, episodes)
        assert p.sum().item() == pytest.approx(1.0, abs=1e-12)
        enumerated = (p * (totals(mdp.reward, episodes) - beta * totals(policy - reference, episodes))).sum()
        earned = regularised_return(mdp, policy, reference, beta=beta)
        torch.testing.assert_close(earned[0], enumerated, **exact)
        lost = beta * (p * totals(policy - best.logp, episodes)).sum()
        torch.testing.assert_close(best.v[0] - earned[0], lost, rtol=0.0, atol=1e-11)
    assert lost > 1e-2
    torch.testing.assert_close(regularised_return(mdp, best.logp, reference, beta=beta), best.v, **exact)

    def earns(logits: Tensor) -> Tensor:
        return regularised_return(mdp, logits.log_softmax(-1), reference, beta=beta)[0]

    assert gradient(earns, best.logp).abs().max() < 1e-12
    assert difference(earns, best.logp).abs().max() < 1e-8
    slope = gradient(earns, policy)
    assert slope.abs().max() > 1e-2
    torch.testing.assert_close(slope, difference(earns, policy), rtol=0.0, atol=1e-8)


def test_without_chance_it_is_the_token_tree() -> None:
    tree = token_tree([(0,)], vocabulary=3, horizon=3, end=1)
    reward, reference = random_table(tree, 1), random_table(tree, 2).log_softmax(-1)
    ones = torch.ones(*tree.next.shape, 1, dtype=torch.float64)
    mdp = Chance(tree.next[..., None], ones, reward)
    found, known = chance_backup(mdp, reference, beta=0.7), soft_backup(tree, reward, reference, beta=0.7)
    for one, other in zip(found, known, strict=True):
        torch.testing.assert_close(one, other, **exact)
    assert luck(mdp, found, every_episode(mdp)).abs().max() == 0


# --- luck ------------------------------------------------------------------------------------------------------------------


def test_luck_of_two_states() -> None:
    for probability, won, missed in ((0.5, 1.5, -1.5), (0.2, 2.4, -0.6)):
        mdp = two_states(probability)
        best = chance_backup(mdp, UNIFORM, beta=1.0)
        found = luck(mdp, best, every_episode(mdp))
        torch.testing.assert_close(found, tensor([0.0, won, won, missed, missed]), **exact)
    mdp = two_states(1.0)
    assert luck(mdp, chance_backup(mdp, UNIFORM, beta=1.0), every_episode(mdp)).tolist() == [0.0] * 3


@pytest.mark.parametrize("seed", SEEDS)
def test_return_is_log_ratio_and_value_and_luck(seed: int) -> None:
    """G = β Σ log π*/π_ref + V*(s_0) + luck in every episode, and neither without luck nor with its sign turned."""
    mdp, reference, beta = random(seed)
    best = chance_backup(mdp, reference, beta=beta)
    episodes = every_episode(mdp)
    earned = beta * totals(best.logp - reference, episodes) + best.v[0]
    drawn = luck(mdp, best, episodes)
    torch.testing.assert_close(totals(mdp.reward, episodes), earned + drawn, **exact)
    assert drawn.abs().max() > 1e-2
    for policy in (best.logp, reference, a_policy(reference, seed)):
        p = mass(policy, episodes)
        assert (p * drawn).sum().abs() < 1e-12
        first = episodes.action[:, 0] == 0  # also of each action on its own
        assert (p * drawn)[first].sum().abs() < 1e-12
        assert (p * drawn * drawn).sum() > 1e-3


# --- learning from preferences ---------------------------------------------------------------------------------------------


def by_trajectories(mdp: Chance, reference: Tensor, beta: float):
    return lambda logp: trajectory_dpo(mdp, logp, reference, beta=beta)


def test_preference_loss_by_hand() -> None:
    score, truth, weight = [0.3, -1.0, 2.0], [1.0, 0.5, -0.25], [0.5, 0.3, 0.2]
    sigma = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    expected = 0.0
    for i in range(3):
        for j in range(3):
            label, said = sigma(truth[i] - truth[j]), sigma(score[i] - score[j])
            expected -= weight[i] * weight[j] * (label * math.log(said) + (1 - label) * math.log(1 - said))
    found = preference_loss(tensor([score, score]), tensor([truth, score]), tensor([weight, weight]))
    assert found[0].item() == pytest.approx(expected, abs=1e-14)
    assert found[1] < found[0] - 1e-3  # least where score is truth


def test_step_loss_by_hand() -> None:
    """At the reference every score is 0: log 2 a state."""
    q = chance_backup(two_states(), UNIFORM, beta=1.0).q_kl
    assert step_dpo(q, UNIFORM, UNIFORM, beta=1.0).item() == pytest.approx(3 * math.log(2), abs=1e-14)


def test_trajectories_teach_another_policy_than_the_optimal_one() -> None:
    """The numbers of two_states(): the policy, what it loses, and that every start ends there."""
    mdp = two_states()
    loss = by_trajectories(mdp, UNIFORM, 1.0)
    best = chance_backup(mdp, UNIFORM, beta=1.0)
    found = minimum(loss, UNIFORM)
    expected = tensor([0.5633284257722, 0.4172938857986, 0.0841249806873])
    torch.testing.assert_close(found[:, 1].exp(), expected, rtol=0.0, atol=1e-6)
    assert loss(found).item() == pytest.approx(0.6591585451439873, abs=1e-12)
    assert loss(best.logp) > loss(found) + 1e-3
    lost = best.v[0] - regularised_return(mdp, found, UNIFORM, beta=1.0)[0]
    assert lost.item() == pytest.approx(0.0472506073543, abs=1e-6)
    for seed in range(8):
        again = minimum(loss, 3 * a_policy(UNIFORM, seed))
        torch.testing.assert_close(again, found, rtol=0.0, atol=1e-8)
    at = difference(lambda logits: loss(logits.log_softmax(-1)), found)
    assert at.abs().max() < 1e-9


def test_gradient_at_the_optimum_is_lucks() -> None:
    """Σ w_i w_j (σ(βΔL*) - σ(βΔL* + Δluck)) ∇βΔL: nothing but luck is in it. As numbers on two_states()."""
    known = tensor([[0.0, 0.0], [0.042025333244, -0.042025333244], [-0.018849673950, 0.018849673950]])
    for seed in (None, *SEEDS):
        mdp, reference, beta = (two_states(), UNIFORM, 1.0) if seed is None else random(seed)
        best, episodes = chance_backup(mdp, reference, beta=beta), every_episode(mdp)
        p, drawn = mass(reference, episodes), luck(mdp, best, episodes)
        both, chance = p[:, None] * p[None], drawn[:, None] - drawn[None]
        slope, pull = slopes(mdp, reference, beta, best.logp, both, chance)
        torch.testing.assert_close(slope, pull, **exact)
        assert slope.abs().max() > 1e-3
        if seed is None:
            torch.testing.assert_close(slope, known, rtol=0.0, atol=1e-10)


def slopes(mdp, reference, beta, at, both, chance) -> tuple[Tensor, Tensor]:
    """The loss's gradient in logits, seconded by finite differences, and luck's pull."""
    episodes = every_episode(mdp)

    def loss(logits: Tensor) -> Tensor:
        return trajectory_dpo(mdp, logits.log_softmax(-1), reference, beta=beta)

    def pull(logits: Tensor) -> Tensor:
        score = beta * totals(logits.log_softmax(-1) - reference, episodes)
        margin = score[:, None] - score[None]
        return (both * (margin.sigmoid() - (margin + chance).sigmoid()).detach() * margin).sum()

    slope = gradient(loss, at)
    torch.testing.assert_close(slope, difference(loss, at), rtol=0.0, atol=1e-8)
    return slope, gradient(pull, at)


@pytest.mark.parametrize("seed", SEEDS)
def test_without_chance_trajectories_teach_the_optimal_policy(seed: int) -> None:
    mdp, reference, beta = random(seed, drawn=False) if seed else (two_states(1.0), UNIFORM, 1.0)
    best = chance_backup(mdp, reference, beta=beta)
    found = minimum(by_trajectories(mdp, reference, beta), reference)
    episodes = every_episode(mdp)
    seen = torch.zeros(len(found), dtype=torch.bool)
    seen[episodes.state[episodes.taken]] = True
    torch.testing.assert_close(found[seen], best.logp[seen], rtol=0.0, atol=1e-8)
    torch.testing.assert_close(found[~seen], reference[~seen], rtol=0.0, atol=1e-12)
    assert (best.logp - reference)[seen].abs().max() > 1e-2


@pytest.mark.parametrize("seed", SEEDS)
def test_steps_teach_the_optimal_policy_whatever_chance_does(seed: int) -> None:
    mdp, reference, beta = random(seed) if seed else (two_states(), UNIFORM, 1.0)
    best = chance_backup(mdp, reference, beta=beta)
    for start in (reference, a_policy(reference, seed)):
        found = minimum(lambda logp: step_dpo(best.q_kl, logp, reference, beta=beta), start)
        torch.testing.assert_close(found, best.logp, rtol=0.0, atol=1e-8)
    wrong = minimum(lambda logp: step_dpo(best.q_maxent - mdp.reward, logp, reference, beta=beta), reference)
    assert (wrong - best.logp).abs().max() > 1e-2
    by_episode = minimum(by_trajectories(mdp, reference, beta), reference)
    assert (by_episode - best.logp).abs().max() > 1e-2


# --- refusals --------------------------------------------------------------------------------------------------------------


def kink(logp: Tensor) -> Tensor:
    """No gradient is 0 at its least value."""
    d = logp[0, 0] - logp[0, 1]
    return 0.3 * torch.where(d >= 0, d, -2 * d)


def test_what_is_no_minimum_is_refused() -> None:
    with pytest.raises(ArithmeticError, match="no minimum"):
        minimum(lambda logp: logp[0, 0], UNIFORM)
    with pytest.raises(ArithmeticError, match="curvature -"):
        minimum(lambda logp: -((logp[0, 0] - logp[0, 1]) ** 2) / 100, UNIFORM)  # its start is its maximum
    with pytest.raises(ArithmeticError, match=r"gradient 0\.[36]"):
        minimum(kink, a_policy(UNIFORM, 1))


def test_an_mdp_is_checked_when_built() -> None:
    mdp = two_states()
    after = mdp.next.clone()
    after[1, 0, 0] = 1
    with pytest.raises(ValueError, match="larger number"):
        Chance(after, mdp.probability, mdp.reward)
    after[1, 0, 0] = 3
    with pytest.raises(ValueError, match="larger number"):
        Chance(after, mdp.probability, mdp.reward)
    after[1, 0, 0] = -2
    with pytest.raises(ValueError, match="larger number"):
        Chance(after, mdp.probability, mdp.reward)
    with pytest.raises(ValueError, match="shapes are"):
        Chance(mdp.next, mdp.probability, mdp.reward[:2])
    with pytest.raises(ValueError, match="shapes are"):
        Chance(mdp.next, torch.ones_like(mdp.probability[..., :1]), mdp.reward)
    with pytest.raises(ValueError, match="shapes are"):
        Chance(mdp.next[0], mdp.probability[0], mdp.reward[0])
    with pytest.raises(ValueError, match=r"0\.5 away"):
        Chance(mdp.next, mdp.probability * tensor([0.5, 1.0]), mdp.reward)
    with pytest.raises(ValueError, match="sum to 1"):
        Chance(mdp.next, mdp.probability + tensor([-0.6, 0.6]), mdp.reward)
    with pytest.raises(ValueError, match="sum to 1"):
        Chance(mdp.next, mdp.probability * float("nan"), mdp.reward)
