"""The laws of the theory: from r to Q* and back (arXiv 2404.12358), on tables where everything can be enumerated."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from softq import masked
from softq.lm.score import score
from softq.mdp.readouts import KL_FROM_REF, REF_LOGP
from softq.mdp.soft import (
    Optimum,
    implicit_reward,
    log_partition,
    prefix_value,
    reward_of_policy,
    reward_of_q,
    sequence_kl,
    shaped,
    soft_backup,
    state_kl,
)
from softq.mdp.tabular import (
    TokenTree,
    along,
    at_the_end,
    every_draw,
    every_trajectory,
    expected,
    gradient,
    occupancy,
    policy_of,
    random_table,
    token_tree,
    with_mass,
)
from softq.records import Tokens
from softq.verify.law import EXACT, Finding, Law, apart
from softq.verify.tables import models


class Table(NamedTuple):
    """A token MDP with a reward, a reference and β, its optimum, and some other policy."""

    tree: TokenTree
    reward: Tensor  # [S, V]
    reference: Tensor  # [S, V] nats
    beta: float
    leaves: Tokens
    optimum: Optimum
    other: Tensor  # [S, V] nats: a policy that nothing was optimised for, on the reference's support

    def sums(self, table: Tensor) -> Tensor:
        """[B]: a table [S, V] summed along every trajectory; -inf is the log of no mass."""
        return along(self.tree, table, self.leaves).sum(-1)

    @property
    def alive(self) -> Tensor:
        """[B] bool: the trajectories that the reference can take."""
        return self.sums(self.reference) > -torch.inf


def _table(tree: TokenTree, reward: Tensor, reference: Tensor, beta: float) -> Table:
    optimum = soft_backup(tree, reward, reference, beta=beta)
    other = (reference + random_table(tree, 23)).log_softmax(-1)
    return Table(tree, reward, reference, beta, every_trajectory(tree), optimum, other)


def _tables() -> Mapping[str, Table]:
    tree = token_tree([(0, 1), (2,)], vocabulary=4, horizon=3, end=3)
    reward, reference = random_table(tree, 21), random_table(tree, 22).log_softmax(-1)
    leaves = every_trajectory(tree)
    at_end = at_the_end(tree, leaves, random_table(tree, 24).flatten()[: len(leaves.ended)])
    return {
        "token rewards": _table(tree, reward, reference, 0.7),
        "reward at the end": _table(tree, at_end, reference, 0.7),
        "β = 0.05": _table(tree, reward, reference, 0.05),
        "β = 20": _table(tree, reward, reference, 20.0),
        "a rare token": _table(tree, reward, with_mass(reference, 1, 1e-30), 0.7),
        "a token cut off": _table(tree, reward, with_mass(reference, 1, 0.0), 0.7),
    }


TABLES = _tables()


def _backup(on: Table) -> Finding:
    group, ratio = on.leaves.prompt, on.sums(on.reference) + on.sums(on.reward) / on.beta
    log_z = log_partition(on.sums(on.reference), on.sums(on.reward), group, beta=on.beta)
    closed = ratio - log_z[group]
    value = apart(on.optimum.v[: len(log_z)], on.beta * log_z) / max(1.0, on.beta)
    return Finding(max(value, apart(on.sums(on.optimum.logp).exp(), closed.exp())), EXACT)


def _telescoping(on: Table) -> Finding:
    """By the scoring road: what training sees."""
    scored = score(models(on.optimum.logp, on.reference, on.tree), on.leaves, (REF_LOGP,))
    implicit = implicit_reward(scored["logp"].detach(), scored["ref_logp"], beta=on.beta).sum(-1)
    expected_sum = on.sums(on.reward) - on.optimum.v[on.leaves.prompt]
    return Finding(apart(implicit[on.alive], expected_sum[on.alive]), EXACT * max(1.0, on.beta))


def _prefixes(on: Table) -> Finding:
    """V* of every state along every trajectory from its start, by implicit rewards and rewards; behind the end it is 0."""
    implicit = along(on.tree, on.optimum.advantage_kl, on.leaves)
    found = prefix_value(on.optimum.v[on.leaves.prompt], implicit, along(on.tree, on.reward, on.leaves))
    value = along(on.tree, on.optimum.v[:, None].expand_as(on.reward), on.leaves)
    inside = apart(found[:, :-1][on.leaves.action], value[on.leaves.action])
    return Finding(max(inside, float(found[:, -1].abs().max())), EXACT)


def _bijection(on: Table) -> Finding:
    again = reward_of_q(on.tree, on.optimum.q_maxent, on.reference, beta=on.beta)
    inside = on.reference > -torch.inf
    return Finding(apart(again[inside], on.reward[inside]), EXACT * max(1.0, on.beta))


def _any_policy(on: Table) -> Finding:
    potential = random_table(on.tree, 25)[:, 0]
    inside = on.reference > -torch.inf
    reward = reward_of_policy(on.tree, on.other, on.reference, potential, beta=on.beta)
    found = soft_backup(on.tree, torch.where(inside, reward, 0.0), on.reference, beta=on.beta)
    return Finding(
        max(apart(found.logp[inside], on.other[inside]), apart(found.v, potential)), EXACT * max(1.0, on.beta)
    )


def _shaping(on: Table) -> Finding:
    potential = random_table(on.tree, 26)[:, 0]
    moved = soft_backup(on.tree, shaped(on.tree, on.reward, potential), on.reference, beta=on.beta)
    return Finding(max(apart(moved.logp.exp(), on.optimum.logp.exp()), apart(moved.v, on.optimum.v - potential)), EXACT)


def _credit(on: Table) -> Finding:
    """Rewards with equal sums over whole answers: all of it at the end instead of token by token."""
    moved = soft_backup(on.tree, at_the_end(on.tree, on.leaves, on.sums(on.reward)), on.reference, beta=on.beta)
    return Finding(apart(moved.logp.exp(), on.optimum.logp.exp()), EXACT)


def _normalisation(on: Table) -> Finding:
    inside = on.reference > -torch.inf
    reward = torch.where(inside, implicit_reward(on.other, on.reference, beta=on.beta), 0.0)
    total = (on.reference.exp() * (reward / on.beta).exp()).sum(-1)
    return Finding(apart(total, torch.ones_like(total)), EXACT)


def _falling(on: Table) -> Finding:
    """The averages over whole answers, against the divergences of single states."""
    group, ref, policy = on.leaves.prompt, on.sums(on.reference), on.sums(on.other)
    implicit = torch.where(on.alive, on.beta * (policy - ref), 0.0)
    falls = expected(ref, implicit, group) + on.beta * _by_prompt(on, on.reference, on.other)
    rises = expected(policy, implicit, group) - on.beta * _by_prompt(on, on.other, on.reference)
    up_hill = int((expected(ref, implicit, group) >= 0).sum() + (expected(policy, implicit, group) <= 0).sum())
    return Finding(max(float(falls.abs().max()), float(rises.abs().max()), up_hill), EXACT * max(1.0, on.beta))


def _by_prompt(on: Table, p: Tensor, q: Tensor) -> Tensor:
    """[G]: Σ_s (visits of p to s) KL(p‖q)(s)."""
    each = masked.product(occupancy(on.tree, p), state_kl(p, q))
    return torch.zeros(int(on.tree.root.max()) + 1, dtype=p.dtype).index_add(0, on.tree.root, each)


def _likelihood_search(on: Table) -> Finding:
    """J = Σ_{t≤K} (r + β log π_ref) + V*(s_{K+1}) = V*(s_0) + Σ β log π*, and the same without the reference's part."""
    reference = along(on.tree, on.reference, on.leaves)[on.alive]
    reward, own = (along(on.tree, table, on.leaves)[on.alive] for table in (on.reward, on.optimum.logp))
    after = torch.where(on.tree.next >= 0, on.optimum.v[on.tree.next.clamp(min=0)], 0.0)
    value, start = along(on.tree, after, on.leaves)[on.alive], on.optimum.v[on.leaves.prompt][on.alive][:, None]
    action = on.leaves.action[on.alive]
    likelihood = ((reward + on.beta * reference).cumsum(-1) + value) - (start + on.beta * own.cumsum(-1))
    ratio = (reward.cumsum(-1) + value) - (start + on.beta * (own - reference).cumsum(-1))
    return Finding(float(torch.maximum(likelihood.abs(), ratio.abs())[action].max()), EXACT * max(1.0, on.beta))


def _chain_rule(on: Table) -> Finding:
    both = ((on.other, on.reference), (on.reference, on.other), (on.optimum.logp, on.reference))
    return Finding(
        max(apart(_by_prompt(on, p, q), sequence_kl(on.sums(p), on.sums(q), on.leaves.prompt)) for p, q in both), EXACT
    )


def _round_trip(on: Table) -> Finding:
    """A policy from the log-probabilities of whole answers, where the reference comes at all."""
    again = policy_of(on.tree, on.leaves, on.sums(on.other))
    there = (occupancy(on.tree, on.other) > 0)[:, None] & (on.other > -torch.inf)
    return Finding(apart(again[there], on.other[there]), EXACT)


def _objective(on: Table) -> Finding:
    """E_π[R] - β KL(π‖π_ref) is V*(s_0) at π*, flat there, and less by β KL(π‖π*) at any other policy."""
    group = on.leaves.prompt
    best = on.optimum.v[: int(group.max()) + 1]

    def objective(logp: Tensor) -> Tensor:
        sums = on.sums(logp)
        return expected(sums, on.sums(on.reward), group) - on.beta * sequence_kl(sums, on.sums(on.reference), group)

    gap = on.beta * sequence_kl(on.sums(on.other), on.sums(on.optimum.logp), group)
    off = max(apart(objective(on.optimum.logp), best), apart(objective(on.other), best - gap))
    return Finding(off, EXACT * max(1.0, on.beta))


def _one_step(on: Table) -> Finding:
    """At π_1 ∝ π_ref e^{Q_ref/β}, TDPO's optimum, β(L + K) = R - V_ref(s_0) on every answer (arXiv 2404.11999)."""
    value = torch.zeros(len(on.tree.prefixes), dtype=on.reward.dtype)
    q = torch.zeros_like(on.reward)
    for s in reversed(range(len(value))):
        after = on.tree.next[s]
        q[s] = on.reward[s] + torch.where(after >= 0, value[after.clamp(min=0)], 0.0)
        value[s] = (on.reference[s].exp() * q[s]).sum()
    improved = (on.reference + q / on.beta).log_softmax(-1)
    inside = on.reference > -torch.inf
    floor = on.reference.masked_fill(~inside, -1e4), improved.masked_fill(~inside, -1e4)
    scored = score(models(floor[1], floor[0], on.tree), on.leaves, (REF_LOGP, KL_FROM_REF))
    total = on.beta * (scored["logp"] - scored["ref_logp"] + scored["kl_from_ref"]).sum(-1).detach()
    expected_total = on.sums(on.reward) - value[on.leaves.prompt]
    return Finding(apart(total[on.alive], expected_total[on.alive]), 1e-9 * max(1.0, on.beta))


def _group_mean(on: Table) -> Finding:
    """E[Σ_i A_i ∇log π(y_i)]/G with A = r - mean of the group is exactly (G-1)/G of ∇E[r]; leave-one-out is ∇E[r]."""
    group, reward = on.leaves.prompt, on.sums(on.reward)
    true = gradient(lambda t: expected(on.sums(t.log_softmax(-1)), reward, group).sum(), on.other)
    draws = every_draw(group, 2)
    often = on.sums(on.other)[draws].sum(-1).exp()
    centred = reward[draws] - reward[draws].mean(-1, keepdim=True)

    def surrogate(table: Tensor) -> Tensor:
        logp = on.sums(table.log_softmax(-1))[draws]
        live = torch.isfinite(logp) & (often > 0)[:, None]
        return (often[:, None] * centred * torch.where(live, logp, 0.0)).sum() / 2

    return Finding(apart(gradient(surrogate, on.other), true / 2), EXACT)


THEORY_LAWS: tuple[Law[Table], ...] = (
    Law(
        "log partition",
        "V*(s_0) = β log Σ_y π_ref(y) e^{R(y)/β}, and π*(y) = π_ref(y) e^{R(y)/β}/Z is the product of its tokens.",
        "The lab itself is wrong: nothing below can be believed.",
        _backup,
    ),
    Law(
        "objective",
        "E_π[R] - β KL(π‖π_ref) is V*(s_0) at π*, and less by β KL(π‖π*) anywhere else.",
        "What is called the optimum does not maximise the objective of RLHF.",
        _objective,
    ),
    Law(
        "telescoping",
        "Through the scoring of training, Σ_t β log π*/π_ref = R(y) - V*(s_0) for every answer y.",
        "A shift, the mask, the end token, a sign or β is wrong: token rewards do not add up to the reward.",
        _telescoping,
    ),
    Law(
        "prefix values",
        "V* of every prefix is V*(s_0) + Σ (β log π*/π_ref - r) up to it, and 0 behind the end.",
        "Values along an answer are shifted by a token, or by a sign.",
        _prefixes,
    ),
    Law(
        "r to Q* to r",
        "Every reward has one Q*, and Q* gives that reward back (Lemma 1).",
        "Q belongs to another reward: the value of the wrong state stands in the Bellman equation.",
        _bijection,
    ),
    Law(
        "any policy",
        "Any policy is optimal for β log π/π_ref + Φ(s) - Φ(s'), with V* = Φ, whatever Φ is.",
        "A reward that is read off a policy does not explain that policy.",
        _any_policy,
    ),
    Law(
        "shaping",
        "r + Φ(s') - Φ(s), Φ = 0 at the end, has the same π*, and V* moves by -Φ (Definition 1).",
        "The optimum depends on a choice that no data can settle.",
        _shaping,
    ),
    Law(
        "credit",
        "Rewards of the same sum over every answer have the same π*, token by token.",
        "Where in an answer its reward is paid changes the optimum: credit could be assigned by pairs after all.",
        _credit,
    ),
    Law(
        "normalisation",
        "Σ_a π_ref(a|s) e^{r(s,a)/β} = 1 at every state, for the implicit reward of any policy.",
        "The implicit reward is not that of a policy: its logits or the reference's are not normalised.",
        _normalisation,
    ),
    Law(
        "falling likelihood",
        "E_ref[βL] = -β KL(π_ref‖π) < 0 and E_π[βL] = +β KL(π‖π_ref) > 0, for any policy (eq 16).",
        "Nothing could be said on why the rewards of chosen answers fall.",
        _falling,
    ),
    Law(
        "chain rule",
        "Σ_t KL of the states, as the policy visits them, is the KL of whole answers, in both directions.",
        "The KL that is logged is not the KL that is meant.",
        _chain_rule,
    ),
    Law(
        "search",
        "Rewards so far + V* rank prefixes as log π* does; without the reference's part, as log π*/π_ref does (eq 13).",
        "Beams over a policy would not search for its reward.",
        _likelihood_search,
    ),
    Law(
        "whole to token",
        "The log-probabilities of whole answers give back every token's.",
        "Targets stated for whole answers are turned into wrong tables.",
        _round_trip,
    ),
    Law(
        "one step",
        "At π_ref e^{Q_ref/β}/Z, TDPO's optimum, β(L + Σ_t KL(π_ref‖π)) = R - V_ref(s_0).",
        "The sequential KL has the wrong sign or direction (TDPO).",
        _one_step,
    ),
    Law(
        "group mean",
        "Rewards less their group's mean give exactly (G-1)/G of the policy gradient.",
        "The policy gradient of groups is biased by more than a factor.",
        _group_mean,
    ),
)
