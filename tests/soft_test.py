"""From r to Q* and back: values written out by hand, then identities on random tables, for β from 0.01 to 100."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from softq.mdp.soft import (
    Optimum,
    implicit_reward,
    log_partition,
    maxent,
    prefix_value,
    reward_of_policy,
    reward_of_q,
    sequence_kl,
    shaped,
    soft_backup,
    soft_value,
    state_kl,
)
from softq.mdp.tabular import (
    along,
    at_the_end,
    difference,
    every_trajectory,
    expected,
    gradient,
    occupancy,
    random_table,
    token_tree,
    with_mass,
)

LN2, LN3 = math.log(2), math.log(3)


def numbers(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same(found: Tensor, wanted: Tensor, within: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=within, atol=within)


# --- by hand: the prompt (9,), two actions, 1 ends, at most two actions; β = 2, so e^{r/β} of r = 2 log n is n ---

HAND = token_tree([(9,)], vocabulary=2, horizon=2, end=1)  # states: the prompt s, and s0 after action 0
LEAVES = every_trajectory(HAND)  # 00, 01, 1
REF = numbers([1 / 2, 1 / 2], [1 / 4, 3 / 4]).log()
REWARD = 2 * numbers([LN2, LN2], [math.log(6), LN2])
BEST = soft_backup(HAND, REWARD, REF, beta=2.0)
PHI = numbers(0.5, -3.0)


def test_backup_by_hand() -> None:
    """V(s0) = 2 log(6/4 + 2·3/4) = 2 log 3, so q_kl(s, 0) = 2 log 2 + 2 log 3, and V(s) = 2 log(6/2 + 2/2) = 2 log 4."""
    same(BEST.v, 2 * numbers(math.log(4), LN3))
    same(BEST.q_kl, 2 * numbers([math.log(6), LN2], [math.log(6), LN2]))
    same(BEST.q_maxent, 2 * numbers([LN3, 0.0], [math.log(1.5), math.log(1.5)]))
    same(BEST.logp.exp(), numbers([3 / 4, 1 / 4], [1 / 2, 1 / 2]))
    same(BEST.advantage_kl, 2 * numbers([math.log(1.5), -LN2], [LN2, math.log(2 / 3)]))
    same(BEST.advantage_maxent, 2 * numbers([math.log(0.75), -2 * LN2], [-LN2, -LN2]))


def test_its_parts_by_hand() -> None:
    same(soft_value(2 * numbers([LN3, 0.0]), beta=2.0), 2 * numbers(2 * LN2))
    same(maxent(numbers([5.0, 1.0]), numbers([-1.0, -3.0]), beta=2.0), numbers([3.0, -5.0]))
    same(implicit_reward(numbers([-1.0, -4.0]), numbers([-1.5, -1.0]), beta=2.0), numbers([1.0, -6.0]))
    same(shaped(HAND, REWARD, PHI), REWARD + numbers([-3.0 - 0.5, -0.5], [3.0, 3.0]))
    same(reward_of_q(HAND, BEST.q_maxent, REF, beta=2.0), REWARD)
    moved = BEST.q_maxent + numbers([0.0], [0.3])  # Q* of s0 up by 0.3: r(s0) up, and r(s, 0) down by it
    same(reward_of_q(HAND, moved, REF, beta=2.0), REWARD + numbers([-0.3, 0.0], [0.3, 0.3]))
    own = reward_of_policy(HAND, BEST.logp, REF, PHI, beta=2.0)
    same(own, BEST.advantage_kl + numbers([0.5 + 3.0, 0.5], [-3.0, -3.0]))


def test_trajectories_by_hand() -> None:
    """R = 2 log(12, 4, 2), π_ref = (1/8, 3/8, 1/2), π* = (3/8, 3/8, 1/4), Z = 12/8 + 12/8 + 1 = 4."""
    ref, best, reward = (along(HAND, x, LEAVES).sum(-1) for x in (REF, BEST.logp, REWARD))
    same(ref.exp(), numbers(1 / 8, 3 / 8, 1 / 2))
    same(best.exp(), numbers(3 / 8, 3 / 8, 1 / 4))
    same(reward, 2 * numbers(12.0, 4.0, 2.0).log())
    same(log_partition(ref, reward, LEAVES.prompt, beta=2.0), numbers(math.log(4)))
    same(sequence_kl(best, ref, LEAVES.prompt), numbers(3 / 8 * LN3 - LN2 / 4))
    same(sequence_kl(ref, best, LEAVES.prompt), numbers(-LN3 / 8 + LN2 / 2))
    same(state_kl(BEST.logp, REF), numbers(3 / 4 * math.log(1.5) - LN2 / 4, LN2 / 2 + math.log(2 / 3) / 2))
    implicit, given = (along(HAND, x, LEAVES) for x in (BEST.advantage_kl, REWARD))
    values = 2 * numbers([2 * LN2, LN3, 0.0], [2 * LN2, LN3, 0.0], [2 * LN2, 0.0, 0.0])
    same(prefix_value(BEST.v[LEAVES.prompt], implicit, given), values)


def test_a_reference_without_mass_there_takes_part_in_nothing() -> None:
    """V = 2 log(1 · 3) whatever the forbidden action would earn; π* never takes it, and KL counts what has mass alone."""
    ref = numbers(0.0, -torch.inf)
    tree = token_tree([(9,)], vocabulary=2, horizon=1)
    found = soft_backup(tree, numbers([2 * LN3, 100.0]), ref[None], beta=2.0)
    same(found.v, numbers(2 * LN3))
    assert found.logp.tolist() == [[0.0, -torch.inf]]
    assert found.q_maxent[0, 1] == -torch.inf
    half = numbers(0.5, 0.5).log()
    assert state_kl(ref[None], half[None]).item() == pytest.approx(LN2, abs=1e-15)
    assert state_kl(half[None], ref[None]).item() == torch.inf
    both = torch.zeros(2, dtype=torch.int64)
    assert sequence_kl(ref, half, both).item() == pytest.approx(LN2, abs=1e-15)
    assert sequence_kl(half, ref, both).item() == torch.inf
    assert log_partition(ref, numbers(2 * LN3, 50.0), both, beta=2.0).item() == pytest.approx(LN3, abs=1e-15)


# --- on random tables: three prompts of different lengths ---

TREE = token_tree([(0, 1), (2,), (1, 1, 0)], vocabulary=3, horizon=3, end=2)
EVERY = every_trajectory(TREE)
ANY_POLICY = random_table(TREE, 3).log_softmax(-1)
POTENTIAL = random_table(TREE, 4)[:, 0]
REFERENCES: dict[str, Tensor] = {
    "full": random_table(TREE, 1).log_softmax(-1),
    "1e-30": with_mass(random_table(TREE, 1), 1, 1e-30),
    "cut off": with_mass(random_table(TREE, 1), 1, 0.0),
}
BETAS = (0.01, 0.1, 0.7, 5.0, 100.0)


class Case(NamedTuple):
    """A reward, a reference, β, what is optimal under them, and their sums over every trajectory."""

    beta: float
    reward: Tensor  # [S, V]
    reference: Tensor  # [S, V]
    best: Optimum
    total: Tensor  # [B] Σ r
    ref_logp: Tensor  # [B]
    logp: Tensor  # [B] log π*
    reached: Tensor  # [B] bool: the reference has mass there


def sums(table: Tensor) -> Tensor:
    """[S, V] -> [B]."""
    return along(TREE, table, EVERY).sum(-1)


@functools.cache
def case(beta: float, reference: str, given: str) -> Case:
    ref, reward = REFERENCES[reference], random_table(TREE, 2)
    if given == "at the end":
        reward = at_the_end(TREE, EVERY, random_table(TREE, 7).flatten()[: len(EVERY.ended)])
    best = soft_backup(TREE, reward, ref, beta=beta)
    ref_logp = sums(ref)
    return Case(beta, reward, ref, best, sums(reward), ref_logp, sums(best.logp), ref_logp.isfinite())


cases = [(0.7, name, given) for name in REFERENCES for given in ("each token", "at the end")]
cases += [(beta, "full", "each token") for beta in BETAS if beta != 0.7]
cases += [(0.01, "1e-30", "each token"), (100.0, "cut off", "at the end")]


@pytest.fixture(params=cases, ids=str)
def given(request: pytest.FixtureRequest) -> Case:
    return case(*request.param)


def states_along(values: Tensor) -> Tensor:
    """[S] -> [B, T + 1]: a value of the states of every trajectory, 0 after its end; before its first action the prompt's."""
    rows = {prefix: s for s, prefix in enumerate(TREE.prefixes)}
    found = torch.zeros(len(EVERY.ended), EVERY.ids.shape[1], dtype=values.dtype)
    for b, (ids, action) in enumerate(zip(EVERY.ids.tolist(), EVERY.action.tolist(), strict=True)):
        first = action.index(True)
        for t in range(len(ids)):
            if t <= first or (t < len(action) and action[t]):
                found[b, t] = values[rows[tuple(ids[: max(t, first) + 1])]]
    return found


def test_v_is_the_log_partition_function_and_pi_the_tilted_reference(given: Case) -> None:
    """V*(s_0) = β log Z, and Π_t π*(a_t|s_t) = π_ref e^{R/β}/Z, which sums to 1."""
    log_z = log_partition(given.ref_logp, given.total, EVERY.prompt, beta=given.beta)
    same(given.best.v[:3], given.beta * log_z)
    tilted = given.ref_logp + given.total / given.beta - log_z[EVERY.prompt]
    same(given.logp, tilted, within=1e-11)
    same(expected(given.logp, torch.ones_like(given.logp), EVERY.prompt), torch.ones(3, dtype=torch.float64))


def test_backup_is_the_fixed_point_of_its_equations(given: Case) -> None:
    """q = r + V(s'), V = β log Σ π_ref e^{q/β}, π* = e^{(q_maxent - V)/β}, state by state and action by action."""
    ref, best = given.reference.exp(), given.best
    for s in range(len(TREE.prefixes)):
        for a in range(3):
            after = int(TREE.next[s, a])
            same(best.q_kl[s, a], given.reward[s, a] + (best.v[after] if after >= 0 else 0.0))
        top = best.q_kl[s].max()
        same(best.v[s], top + given.beta * (ref[s] * ((best.q_kl[s] - top) / given.beta).exp()).sum().log())
    same(best.q_maxent, best.q_kl + given.beta * given.reference)
    same(best.logp, best.advantage_maxent / given.beta)
    same(best.logp.exp().sum(-1), torch.ones(len(TREE.prefixes), dtype=torch.float64))
    inside = given.reference.isfinite()
    implicit = implicit_reward(best.logp, given.reference, beta=given.beta)
    same(implicit[inside], best.advantage_kl[inside], within=1e-11)


def test_rewards_telescope_at_every_prefix(given: Case) -> None:
    """Σ_{t<k} r = V(s_0) - V(s_k) + Σ_{t<k} β log π*/π_ref, also where k is the end; and β log π*/π_ref = r + V(s') - V(s)."""
    rows, values = given.reached, states_along(given.best.v)
    reward, own = along(TREE, given.reward, EVERY), along(TREE, given.best.logp, EVERY)
    implicit = implicit_reward(own, along(TREE, given.reference, EVERY), beta=given.beta)
    start = given.best.v[EVERY.prompt]
    same(implicit[rows], (reward + values[:, 1:] - values[:, :-1])[rows], within=1e-11)
    same(prefix_value(start, implicit, reward)[rows], values[rows], within=1e-11)
    same(implicit.sum(-1)[rows], (given.total - start)[rows], within=1e-11)
    assert (given.total - start - implicit.sum(-1)).abs()[~rows].isnan().all()


def test_both_searches_at_every_prefix(given: Case) -> None:
    """Σ (r + β log π_ref) + V(s_k) = V(s_0) + Σ β log π*: likelihood. Σ r + V(s_k) = V(s_0) + Σ β log π*/π_ref: log-ratio."""
    rows, values = given.reached, states_along(given.best.v)
    reward, ref, own = (along(TREE, x, EVERY)[rows] for x in (given.reward, given.reference, given.best.logp))
    after, start = values[rows][:, 1:], values[rows][:, :1]
    likelihood = (reward + given.beta * ref).cumsum(-1) + after
    same(likelihood, start + given.beta * own.cumsum(-1), within=1e-11)
    same(reward.cumsum(-1) + after, start + given.beta * (own - ref).cumsum(-1), within=1e-11)
    for prompt in range(3):
        of = EVERY.prompt[rows] == prompt
        assert (own - ref).sum(-1)[of].argmax() == reward.sum(-1)[of].argmax()
        assert own.sum(-1)[of].argmax() == (reward + given.beta * ref).sum(-1)[of].argmax()


@pytest.mark.parametrize("beta", BETAS)
def test_choices_are_the_same_under_both_definitions_of_q(beta: float) -> None:
    """A state ranks by q_maxent as by log π* and as by q_kl + β log π_ref; by q_kl as by log π*/π_ref. They differ."""
    of = case(beta, "full", "each token")
    likelihood = of.best.q_maxent.argsort(-1)
    assert (likelihood == of.best.logp.argsort(-1)).all()
    assert (likelihood == (of.best.q_kl + beta * of.reference).argsort(-1)).all()
    ratio = of.best.q_kl.argsort(-1)
    assert (ratio == of.best.advantage_kl.argsort(-1)).all()
    assert (ratio != likelihood).any() == (beta > 0.1)


def test_without_a_reward_likelihood_ranks_by_the_reference_and_log_ratios_tie() -> None:
    nothing = soft_backup(TREE, torch.zeros_like(ANY_POLICY), REFERENCES["full"], beta=0.7)
    same(nothing.logp, REFERENCES["full"])
    same(nothing.v, torch.zeros_like(nothing.v))
    ratio, likelihood = sums(nothing.logp) - sums(REFERENCES["full"]), sums(nothing.logp)
    assert ratio.abs().max() < 1e-14
    assert likelihood.argmax() == sums(REFERENCES["full"]).argmax()
    assert likelihood.max() - likelihood.min() > 3


def test_shaping_moves_v_and_nothing_else(given: Case) -> None:
    """π* stays, V' = V - Φ, Σ r' = Σ r - Φ(s_0)."""
    moved = shaped(TREE, given.reward, POTENTIAL)
    again = soft_backup(TREE, moved, given.reference, beta=given.beta)
    same(again.logp, given.best.logp, within=1e-11)
    same(again.v, given.best.v - POTENTIAL)
    same(sums(moved), given.total - POTENTIAL[EVERY.prompt])


def test_r_and_q_are_one_to_one(given: Case) -> None:
    """r -> Q* -> r, and any Q at all -> r -> the same Q. Where the reference has no mass, r is lost."""
    inside = given.reference.isfinite()
    back = reward_of_q(TREE, given.best.q_maxent, given.reference, beta=given.beta)
    same(back[inside], given.reward[inside], within=1e-11)
    any_q = torch.where(inside, random_table(TREE, 8, scale=3.0), -torch.inf)
    reward = torch.where(inside, reward_of_q(TREE, any_q, given.reference, beta=given.beta), 0.0)
    same(soft_backup(TREE, reward, given.reference, beta=given.beta).q_maxent, any_q, within=1e-11)


@pytest.mark.parametrize("beta", BETAS)
def test_any_policy_is_optimal_for_its_own_reward_under_any_potential(beta: float) -> None:
    for potential in (torch.zeros_like(POTENTIAL), POTENTIAL, 30 * POTENTIAL):
        reward = reward_of_policy(TREE, ANY_POLICY, REFERENCES["full"], potential, beta=beta)
        found = soft_backup(TREE, reward, REFERENCES["full"], beta=beta)
        same(found.logp, ANY_POLICY, within=1e-10)
        same(found.v, potential, within=1e-11)


@pytest.mark.parametrize("reference", REFERENCES)
def test_the_implicit_reward_of_any_policy_normalises(reference: str) -> None:
    """Σ_a π_ref e^{r/β} = 1 in every state, Σ_y π_ref e^{L} = 1 for every prompt."""
    ref = REFERENCES[reference]
    policy = torch.where(ref.isfinite(), ANY_POLICY, -torch.inf).log_softmax(-1)
    ratio = implicit_reward(policy, ref, beta=0.3) / 0.3
    each = torch.where(ref.isfinite(), ref.exp() * ratio.exp(), 0.0)
    same(each.sum(-1), torch.ones(len(each), dtype=torch.float64))
    whole = (sums(policy) - sums(ref)).exp()
    same(expected(sums(ref), whole, EVERY.prompt), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("reference", REFERENCES)
def test_under_the_reference_the_implicit_reward_falls_and_under_the_policy_it_rises(reference: str) -> None:
    """E_ref[L] = -KL(π_ref‖π), E_π[L] = KL(π‖π_ref); the states' KL, weighed by who comes there, adds up to either."""
    ref = REFERENCES[reference]
    policy = torch.where(ref.isfinite(), ANY_POLICY, -torch.inf).log_softmax(-1)
    L, group = sums(policy) - sums(ref), EVERY.prompt
    falls, rises = expected(sums(ref), L, group), expected(sums(policy), L, group)
    same(falls, -sequence_kl(sums(ref), sums(policy), group))
    same(rises, sequence_kl(sums(policy), sums(ref), group))
    for p, q, found in ((ref, policy, -falls), (policy, ref, rises)):
        each = occupancy(TREE, p) * state_kl(p, q)
        same(torch.zeros(3, dtype=torch.float64).index_add(0, TREE.root, each), found)
        assert found.min() > 0.05


def test_credit_may_lie_anywhere_along_a_trajectory() -> None:
    """Two rewards with equal sums have the same π*, in every state too; so has one that adds a constant a prompt."""
    of = case(0.7, "full", "each token")
    late = soft_backup(TREE, at_the_end(TREE, EVERY, of.total), of.reference, beta=0.7)
    same(late.logp, of.best.logp)
    same(late.v[:3], of.best.v[:3])
    assert (late.v - of.best.v)[3:].abs().max() > 0.5
    extra = numbers(3.0, -1.0, 10.0)[:, None] * (TREE.depth[:3] == 0)[:, None]
    more = of.reward + torch.cat([extra, torch.zeros(len(TREE.prefixes) - 3, 1)])
    richer = soft_backup(TREE, more, of.reference, beta=0.7)
    same(richer.logp, of.best.logp)
    same(richer.v[:3], of.best.v[:3] + numbers(3.0, -1.0, 10.0))


@pytest.mark.parametrize("beta", BETAS)
def test_v_is_the_most_that_any_policy_attains(beta: float) -> None:
    """E_π[R] - β KL(π‖π_ref) = V*(s_0) - β KL(π‖π*), so it is V* at π* alone, and its gradient there is 0."""
    of = case(beta, "full", "each token")

    def attained(table: Tensor) -> Tensor:
        logp = sums(table.log_softmax(-1))
        return expected(logp, of.total, EVERY.prompt) - beta * sequence_kl(logp, of.ref_logp, EVERY.prompt)

    gap = beta * sequence_kl(sums(ANY_POLICY), of.logp, EVERY.prompt)
    same(attained(ANY_POLICY), of.best.v[:3] - gap, within=1e-11)
    assert gap.min() > 0.01 * beta
    same(attained(of.best.logp), of.best.v[:3], within=1e-11)
    assert gradient(lambda table: attained(table).sum(), of.best.logp).abs().max() < 1e-11


def test_v_lies_between_the_mean_and_the_most() -> None:
    """β -> ∞ gives E_ref[R], off by Var/2β; β -> 0 gives max R; between, V falls in β by KL(π*‖π_ref) a unit."""
    of = case(0.7, "full", "each token")
    mean = expected(of.ref_logp, of.total, EVERY.prompt)
    spread = expected(of.ref_logp, (of.total - mean[EVERY.prompt]) ** 2, EVERY.prompt)
    far = soft_backup(TREE, of.reward, of.reference, beta=1e4).v[:3]
    same(far, mean + spread / 2e4, within=1e-6)
    most = torch.stack([of.total[EVERY.prompt == p].max() for p in range(3)])
    same(soft_backup(TREE, of.reward, of.reference, beta=1e-4).v[:3], most, within=1e-3)
    up, down = (soft_backup(TREE, of.reward, of.reference, beta=0.7 + h).v[:3] for h in (1e-5, -1e-5))
    same((up - down) / 2e-5, -sequence_kl(of.logp, of.ref_logp, EVERY.prompt), within=1e-8)


# --- gradients: closed forms, and autograd against differences ---


@pytest.mark.parametrize("beta", BETAS)
def test_the_gradient_of_v_is_the_chance_to_pass_there(beta: float) -> None:
    """dV*(s_0)/dr(s,a) = P(π* comes to s) π*(a|s), and β times that for log π_ref; here of V + 2V - 3V of the three prompts."""
    of = case(beta, "full", "each token")
    factor = numbers(1.0, 2.0, -3.0)
    passing = (factor[TREE.root] * occupancy(TREE, of.best.logp))[:, None] * of.best.logp.exp()
    values: list[Callable[[Tensor], Tensor]] = [
        lambda r: factor @ soft_backup(TREE, r, of.reference, beta=beta).v[:3],
        lambda ref: factor @ soft_backup(TREE, of.reward, ref, beta=beta).v[:3],
    ]
    for value, at, unit in zip(values, (of.reward, of.reference), (1.0, beta), strict=True):
        same(gradient(value, at), unit * passing, within=1e-11)
        same(difference(value, at, step=1e-5 * min(1.0, 10 * beta)), unit * passing, within=1e-6)


WEIGHTS = random_table(TREE, 21)
GROUP, ROWS = EVERY.prompt, random_table(TREE, 22).flatten()[: len(EVERY.ended)]
SCALARS: dict[str, Callable[[Tensor], Tensor]] = {
    "log π*": lambda r: (WEIGHTS * soft_backup(TREE, r, REFERENCES["full"], beta=0.7).logp).sum(),
    "q_maxent": lambda r: (WEIGHTS * soft_backup(TREE, r, REFERENCES["full"], beta=0.7).q_maxent).sum(),
    "reward of q": lambda q: (WEIGHTS * reward_of_q(TREE, q, REFERENCES["full"], beta=0.7)).sum(),
    "reward of policy": lambda x: (WEIGHTS * reward_of_policy(TREE, x, ANY_POLICY, 2 * x[:, 0], beta=0.7)).sum(),
    "log Z": lambda x: log_partition(sums(x), sums(2 * x * WEIGHTS), GROUP, beta=0.7) @ numbers(1.0, -2.0, 3.0),
    "sequence KL": lambda x: sequence_kl(sums(x.log_softmax(-1)), sums(ANY_POLICY), GROUP) @ numbers(1.0, -2.0, 3.0),
    "the other KL": lambda x: sequence_kl(sums(ANY_POLICY), sums(x.log_softmax(-1)), GROUP) @ numbers(1.0, -2.0, 3.0),
    "state KL": lambda x: (WEIGHTS[:, 0] * state_kl(x.log_softmax(-1), ANY_POLICY)).sum(),
    "prefix value": lambda x: (
        prefix_value(ROWS * sums(x), along(TREE, x * WEIGHTS, EVERY), along(TREE, x**2, EVERY)).square().sum()
    ),
}


@pytest.mark.parametrize("name", SCALARS)
def test_autograd_agrees_with_differences(name: str) -> None:
    at = random_table(TREE, 23)
    found = gradient(SCALARS[name], at)
    assert found.abs().max() > 0.1
    same(found, difference(SCALARS[name], at), within=1e-7)
    assert gradient(SCALARS["sequence KL"], with_mass(at, 1, 0.0)).isfinite().all()
