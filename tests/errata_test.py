"""Mistakes in circulation, one a test and named after it: what is right holds to 1e-12, what is printed fails by the number here.

Both are computed on one instance, so that nobody can swap them. Four leaves with β = 0.5 serve most of them
(conformance/golden.json, fixture 3): V*(root) = 1.4289, log Z = 2.8578, Z = 17.42.
"""

import math

import pytest
import torch
from torch import Tensor

from softq.lm.score import Models, score
from softq.mdp.soft import (
    implicit_reward,
    log_partition,
    maxent,
    reward_of_policy,
    reward_of_q,
    sequence_kl,
    shaped,
    soft_backup,
    soft_value,
    state_kl,
)
from softq.mdp.tabular import (
    TabularLM,
    along,
    at_the_end,
    every_trajectory,
    expected,
    gradient,
    occupancy,
    policy_of,
    random_table,
    token_tree,
)
from softq.objectives import METHODS
from softq.records import Batch, Pairs


def numbers(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


BETA = 0.5
TREE = token_tree([(5,)], vocabulary=2, horizon=2)  # root, a, b
LEAVES = every_trajectory(TREE)  # aa, ab, ba, bb
REF = numbers([0.6, 0.4], [0.5, 0.5], [0.9, 0.1]).log()
REWARD = numbers([0.0, 1.0], [0.5, -0.5], [-1.0, 2.0])
BEST = soft_backup(TREE, REWARD, REF, beta=BETA)
V0 = BEST.v[0]
AFTER = torch.stack([BEST.v[1:], *[torch.zeros(2)] * 2])  # [S, V] the value of the next state
IMPLICIT = implicit_reward(BEST.logp, REF, beta=BETA)


def sums(table: Tensor) -> Tensor:
    """[S, V] -> [B]."""
    return along(TREE, table, LEAVES).sum(-1)


R, LOGP, REF_LOGP = sums(REWARD), sums(BEST.logp), sums(REF)
LOG_Z = log_partition(REF_LOGP, R, LEAVES.prompt, beta=BETA)


def off(found: Tensor, wanted: Tensor) -> float:
    """The largest error."""
    return float((found - wanted).detach().abs().max())


def about(number: float) -> object:
    """The error of a mistake, to the four digits it is stated with."""
    assert abs(number) >= 0.04
    return pytest.approx(number, rel=2e-3)


# --- the bandit: π* = π_ref e^{R/β}/Z ---


def test_minus_z_for_plus_beta_log_z() -> None:
    """R = β log π*/π_ref + β log Z; a widely read derivation prints - Z."""
    ratio = BETA * (LOGP - REF_LOGP)
    assert off(ratio + BETA * LOG_Z, R) < 1e-12
    assert off(ratio - LOG_Z.exp(), R) == about(18.849)
    assert off(ratio - BETA * LOG_Z, R) == about(2.8578)


def test_minus_z_for_minus_beta_log_z() -> None:
    """β log π*/π_ref = R - β log Z; the paper has - Z(x) there."""
    ratio = BETA * (LOGP - REF_LOGP)
    assert off(R - BETA * LOG_Z, ratio) < 1e-12
    assert off(R - LOG_Z.exp(), ratio) == about(15.992)
    assert off(R - LOG_Z, ratio) == about(1.4289)


def test_closed_form_without_one_over_beta() -> None:
    """π* ∝ π_ref e^{R/β}; the paper's section 3.2 prints e^{R}."""
    assert off((REF_LOGP + R / BETA).softmax(0), LOGP.exp()) < 1e-12
    assert off((REF_LOGP + R).softmax(0), LOGP.exp()) == about(0.48956)


def test_sign_of_the_reference_in_the_sum() -> None:
    """Σ r = V(s_0) + Σ (β log π* - β log π_ref); one display of the paper turns the sign inside the sum."""
    assert off(V0 + BETA * (LOGP - REF_LOGP), R) < 1e-12
    assert off(V0 + BETA * (LOGP + REF_LOGP), R) == about(3.2189)
    assert off(V0 - BETA * (LOGP - REF_LOGP), R) == about(3.8578)


def test_mean_reward_for_the_soft_value() -> None:
    """V* is β log E_ref e^{R/β}, an exponential mean; E_ref R and E_π* R, which are taken for it, are below and above."""
    mean, attained = (expected(logp, R, LEAVES.prompt)[0] for logp in (REF_LOGP, LOGP))
    assert off(BETA * expected(REF_LOGP, (R / BETA).exp(), LEAVES.prompt)[0].log(), V0) < 1e-12
    assert off(attained - BETA * sequence_kl(LOGP, REF_LOGP, LEAVES.prompt)[0], V0) < 1e-12
    assert V0 - mean == about(1.3089)
    assert attained - V0 == about(1.3699)


# --- Bellman: two forms of Q, one of V, and the next state ---


def test_value_of_this_state_for_the_next() -> None:
    """Q(s,a) = r + β log π_ref + V(s'); a widely read derivation prints V(s)."""
    assert off(REWARD + BETA * REF + AFTER, BEST.q_maxent) < 1e-12
    assert off(reward_of_q(TREE, BEST.q_maxent, REF, beta=BETA), REWARD) < 1e-12
    assert off(REWARD + BETA * REF + BEST.v[:, None], BEST.q_maxent) == about(1.212)
    assert off(BEST.q_maxent - BETA * REF - BEST.v[:, None], REWARD) == about(1.212)


def test_implicit_reward_taken_for_the_reward() -> None:
    """β log π*/π_ref = r + V(s') - V(s), the shaped reward; the same derivation ends at r itself, right only where V = 0."""
    assert off(IMPLICIT, shaped(TREE, REWARD, BEST.v)) < 1e-12
    assert off(IMPLICIT, REWARD) == about(1.212)
    level = soft_backup(TREE, IMPLICIT, REF, beta=BETA)
    assert off(level.v, torch.zeros(3)) < 1e-12
    assert off(level.logp, BEST.logp) < 1e-12


def test_potentials_the_wrong_way_round() -> None:
    """π is optimal, with V = Φ, for β log π/π_ref + Φ(s) - Φ(s'); shaping itself adds Φ(s') - Φ(s). Turned, V is -Φ."""
    potential = numbers(0.3, -0.2, 0.7)
    own = reward_of_policy(TREE, BEST.logp, REF, potential, beta=BETA)
    assert off(soft_backup(TREE, own, REF, beta=BETA).v, potential) < 1e-12
    turned = soft_backup(TREE, shaped(TREE, IMPLICIT, potential), REF, beta=BETA)
    assert off(turned.v, -potential) < 1e-12
    assert off(turned.v, potential) == about(1.4)


def test_maxent_advantage_called_the_implicit_reward() -> None:
    """Eq 10, β log π*/π_ref = q_kl - V, is called A* = Q* - V*, which is β log π*: they differ by β log π_ref."""
    assert off(BEST.advantage_kl, IMPLICIT) < 1e-12
    assert off(BEST.advantage_maxent, BETA * BEST.logp) < 1e-12
    assert off(sums(BEST.advantage_kl), R - V0) < 1e-12
    assert off(BEST.advantage_maxent, IMPLICIT) == about(1.1513)
    assert off(sums(BEST.advantage_maxent), R - V0) == about(1.6094)


def test_two_forms_of_q_mixed() -> None:
    """V = β log Σ e^{q_maxent/β} = β log Σ π_ref e^{q_kl/β}; one form's Q in the other's formula is neither V nor π*."""
    assert off(soft_value(BEST.q_maxent, beta=BETA), BEST.v) < 1e-12
    assert off(BETA * (REF + BEST.q_kl / BETA).logsumexp(-1), BEST.v) < 1e-12
    assert off((BEST.q_maxent / BETA).log_softmax(-1), BEST.logp) < 1e-12
    assert off(soft_value(BEST.q_kl, beta=BETA), BEST.v) == about(1.1415)
    assert off(soft_value(maxent(BEST.q_maxent, REF, beta=BETA), beta=BETA), BEST.v) == about(1.07084)
    assert off((BEST.q_kl / BETA).log_softmax(-1), BEST.logp) == about(2.1777)


def test_logits_taken_for_q_without_beta() -> None:
    """π* = softmax(Q*/β): logits are Q*/β, up to a constant a state; read as Q* at temperature 1 they are another policy."""
    assert off((BEST.q_maxent / BETA).softmax(-1), BEST.logp.exp()) < 1e-12
    assert off(BEST.q_maxent.softmax(-1), BEST.logp.exp()) == about(0.14974)


def test_value_read_off_a_policy() -> None:
    """logsumexp of a model's normalised logits is 0 and no V*/β: the softmax hides a constant a state."""
    assert off(soft_value(BETA * BEST.logp, beta=BETA), torch.zeros(3)) < 1e-12
    assert off(soft_value(BETA * BEST.logp, beta=BETA), BEST.v) == about(1.4289)


# --- search ---


def test_minus_v_in_the_search_identity() -> None:
    """Σ_{t≤K} (r + β log π_ref) + V(s_{K+1}) = V(s_0) + Σ β log π*; the paper's eq 13 prints - V(s_0)."""
    first = REWARD[0] + BETA * REF[0] + AFTER[0]
    assert off(first, V0 + BETA * BEST.logp[0]) < 1e-12
    assert off(R + BETA * REF_LOGP, V0 + BETA * LOGP) < 1e-12
    assert off(R + BETA * REF_LOGP, -V0 + BETA * LOGP) == about(2.8578)


def test_likelihood_search_said_to_maximise_the_reward() -> None:
    """argmax log π* is argmax R + β log π_ref; the log-ratio alone is argmax R. π_ref (0.9, 0.1), R (0, 1), β = 1."""
    one = token_tree([(5,)], vocabulary=2, horizon=1)
    ref, reward = numbers([0.9, 0.1]).log(), numbers([0.0, 1.0])
    best = soft_backup(one, reward, ref, beta=1.0).logp
    assert off((best - ref) - (best - ref).max(), reward - reward.max()) < 1e-12
    assert off(best - best.max(), (reward + ref) - (reward + ref).max()) < 1e-12
    assert best.argmax() == 0
    assert (best - ref).argmax() == reward.argmax() == 1
    assert best[0, 0] - best[0, 1] == about(1.1972)


def test_prefix_scores_taken_for_the_best_that_follows() -> None:
    """V* is soft: a beam of one prefers the branch of R (1, 1) to that of (1.5, -10): 1.5 - log 2 < 1. It misses 1.5."""
    reward = at_the_end(TREE, LEAVES, numbers(1.0, 1.0, 1.5, -10.0))
    half = torch.full((3, 2), math.log(0.5), dtype=torch.float64)
    best = soft_backup(TREE, reward, half, beta=1.0)
    assert off(best.v[1:], numbers(1.0, math.log((math.exp(1.5) + math.exp(-10)) / 2))) < 1e-12
    assert best.advantage_kl[0].argmax() == 0
    assert off(best.v[1:], numbers(1.0, 1.5)) == about(math.log(2))


# --- ends ---

ENDING = token_tree([(5,), (6, 6)], vocabulary=3, horizon=3, end=2)
TEXTS = every_trajectory(ENDING)
OPTIMUM = soft_backup(ENDING, random_table(ENDING, 11), random_table(ENDING, 12).log_softmax(-1), beta=0.7)
LOG_RATIO = OPTIMUM.advantage_kl / 0.7
TOLD = along(ENDING, random_table(ENDING, 11), TEXTS)


def test_end_token_left_out_of_the_sum() -> None:
    """Σ β log π*/π_ref = R - V(s_0) with the end token; a mask that stops before it breaks that for every completion."""
    each = along(ENDING, 0.7 * LOG_RATIO, TEXTS)
    wanted = TOLD.sum(-1) - OPTIMUM.v[TEXTS.prompt]
    last = TEXTS.action.int().cumsum(-1).argmax(-1)
    without = each.sum(-1) - each.gather(1, last[:, None])[:, 0]
    assert off(each.sum(-1), wanted) < 1e-12
    assert off(without, wanted) == about(1.97136)
    assert (without - wanted).abs().min() > 0.002


def test_cut_completion_taken_for_a_whole_one() -> None:
    """Σ_{t<K} r = V(s_0) - V(s_K) + Σ β log π*/π_ref: where a length limit cut, the last state still has value."""
    cut = (TEXTS.action.sum(-1) == 3).nonzero()[:, 0]
    first, start = TEXTS.action[cut].int().argmax(-1), OPTIMUM.v[TEXTS.prompt[cut]]
    prefixes = [tuple(TEXTS.ids[b, : t + 3].tolist()) for b, t in zip(cut.tolist(), first.tolist(), strict=True)]
    left = OPTIMUM.v[torch.tensor([ENDING.prefixes.index(prefix) for prefix in prefixes])]
    until = torch.arange(TEXTS.action.shape[1]) < first[:, None] + 2
    reward, ratio = ((x[cut] * until).sum(-1) for x in (TOLD, along(ENDING, 0.7 * LOG_RATIO, TEXTS)))
    assert off(reward, start - left + ratio) < 1e-12
    assert off(reward, start + ratio) == about(1.18027)


# --- divergences ---


def test_falling_likelihood_by_the_other_kl() -> None:
    """E_ref[βL] = -β KL(π_ref‖π), and E_π[βL] = +β KL(π‖π_ref); with the KLs or the sign exchanged they fail."""
    ratio, group = BETA * (LOGP - REF_LOGP), LEAVES.prompt
    forward, reverse = (BETA * sequence_kl(p, q, group) for p, q in ((REF_LOGP, LOGP), (LOGP, REF_LOGP)))
    falls, rises = expected(REF_LOGP, ratio, group), expected(LOGP, ratio, group)
    assert off(falls, -forward) < 1e-12
    assert off(rises, reverse) < 1e-12
    assert off(falls, -reverse) == about(0.06104)
    assert off(rises, forward) == about(0.06104)
    assert off(falls, forward) == about(2.6178)


def kl_along(p: Tensor, q: Tensor) -> Tensor:
    """Σ_t KL(p‖q)(s_t) [B]."""
    return sums(state_kl(p, q)[:, None].expand(-1, 2))


V_REF = (REF.exp() * (REWARD + numbers([0.0, -0.7], [0.0, 0.0], [0.0, 0.0]))).sum(-1)  # of a 0, of b -0.7
ONE_STEP = (REF + (REWARD + numbers([0.0, -0.7], [0.0, 0.0], [0.0, 0.0])) / BETA).log_softmax(-1)


def test_tdpo_margin_with_the_divergences_added() -> None:
    """β(L + K) = R - V_ref(s_0) at TDPO's optimum, so its margin is m - (K_l - K_w), with K = Σ KL(π_ref‖π); not m + (...)."""
    ratio, divergence = sums(ONE_STEP - REF), kl_along(REF, ONE_STEP)
    assert off(V_REF, numbers(0.12, 0.0, -0.7)) < 1e-12
    assert off(BETA * (ratio + divergence), R - V_REF[0]) < 1e-12
    assert off(BETA * (ratio - divergence), R - V_REF[0]) == about(3.16379)
    assert off(BETA * (ratio + kl_along(ONE_STEP, REF)), R - V_REF[0]) == about(0.48471)


def test_tdpo2_margin_with_the_divergences_added() -> None:
    """The method itself: with α = 1 its loss at that policy is h(R_w - R_l) for every pair."""
    i, j = torch.tensor([0, 0, 3, 1]), torch.tensor([1, 3, 2, 2])
    method = METHODS["tdpo2"](beta=BETA, alpha=1.0)
    scored = score(Models({"policy": TabularLM(TREE, ONE_STEP), "ref": TabularLM(TREE, REF)}), LEAVES, method.needs)
    loss = method.terms[0].loss(scored, Batch(LEAVES, Pairs(i, j)))
    softplus = torch.nn.functional.softplus
    assert off(loss, softplus(R[j] - R[i])) < 1e-12
    ratio, divergence = sums(ONE_STEP - REF), kl_along(REF, ONE_STEP)
    turned = BETA * (ratio[i] - ratio[j] + divergence[j] - divergence[i])
    assert off(softplus(-turned), loss.detach()) == about(1.97429)


def test_tdpo_optimum_taken_for_the_soft_optimum() -> None:
    """One step of improvement on the reference's own Q is not π*: at π* no divergence stands beside L."""
    assert off(ONE_STEP.exp()[0], numbers(0.4515190726543788, 0.5484809273456213)) < 1e-12
    assert off(BETA * sums(BEST.logp - REF), R - V0) < 1e-12
    assert off(ONE_STEP.exp(), BEST.logp.exp()) == about(0.3984)
    assert off(BETA * (sums(BEST.logp - REF) + kl_along(REF, BEST.logp)), R - V0) == about(2.1146)


def test_kl_gradient_of_the_own_token_alone() -> None:
    """∇KL(π(y)‖π_ref(y)) = E Σ_t (Σ_{i≥t} l_i) ∇log π_t; with l_t alone states count as given, and it is another gradient."""
    at = random_table(TREE, 6)
    each = along(TREE, at.log_softmax(-1) - REF, LEAVES)
    chance = sums(at.log_softmax(-1)).exp()
    to_go = each.flip(-1).cumsum(-1).flip(-1)

    def credited(worth: Tensor) -> Tensor:
        return gradient(lambda x: chance @ (worth * along(TREE, x.log_softmax(-1), LEAVES)).sum(-1), at)

    exact = gradient(lambda x: sequence_kl(sums(x.log_softmax(-1)), REF_LOGP, LEAVES.prompt)[0], at)
    frozen = gradient(lambda x: occupancy(TREE, at.log_softmax(-1)) @ state_kl(x.log_softmax(-1), REF), at)
    assert off(credited(to_go), exact) < 1e-12
    assert off(credited(each), frozen) < 1e-12
    assert off(credited(each), exact) == about(0.27079)


# --- one normaliser for a sequence, or one for every token ---


@pytest.mark.parametrize(("w", "apart"), [(0.5, 0.047277), (2.0, 0.002023)])
def test_token_teacher_taken_for_the_sequence_optimum(w: float, apart: float) -> None:
    """π_ref^{1-w} π*^w normalised in each state, as a distillation teacher is, is not that of sequences unless w is 0 or 1."""

    def both(weight: float) -> tuple[Tensor, Tensor]:
        whole = ((1 - weight) * REF_LOGP + weight * LOGP).log_softmax(0)
        return whole, sums(((1 - weight) * REF + weight * BEST.logp).log_softmax(-1))

    whole, tokens = both(w)
    rewarded = soft_backup(TREE, w * IMPLICIT, REF, beta=BETA).logp
    assert off(sums(rewarded), whole) < 1e-12
    assert off(policy_of(TREE, LEAVES, whole), rewarded) < 1e-12
    assert sequence_kl(tokens, whole, LEAVES.prompt).item() == pytest.approx(apart, abs=5e-7)
    assert off(tokens, whole) > 0.4
    for end in (0.0, 1.0):
        assert off(*both(end)) < 1e-12


def test_rewards_of_tokens_normalised_in_each_state() -> None:
    """π_ref e^{r/β}/Z(s) looks at the next token alone; π* is that of Q, or of the implicit reward, whose V is 0 everywhere."""
    assert off((REF + BEST.q_kl / BETA).softmax(-1), BEST.logp.exp()) < 1e-12
    assert off((REF + IMPLICIT / BETA).softmax(-1), BEST.logp.exp()) < 1e-12
    assert off((REF + REWARD / BETA).softmax(-1), BEST.logp.exp()) == about(0.1156)


def test_beta_as_the_exponent_of_a_proxy() -> None:
    """base (π*/π_ref)^α = base e^{(α/β) A}; the paper writes the exponent as β, which is right for no β but 1."""
    assert off((REF + 1.0 / BETA * BEST.advantage_kl).softmax(-1), BEST.logp.exp()) < 1e-12
    assert off((REF + BETA * (BEST.logp - REF)).softmax(-1), BEST.logp.exp()) == about(0.28761)


# --- rankings ---


def test_idealised_ranking_by_a_ratio_of_log_probabilities() -> None:
    """π*(w)/π*(l) = π_ref(w)/π_ref(l) (α/(1-α))^{1/β}; published code divides log-probabilities instead."""
    w, low = 0, 3  # aa is judged better than bb by σ(R_w - R_l) = 0.0759
    odds = (R[w] - R[low]).sigmoid().logit() / BETA
    right = REF_LOGP[w] - REF_LOGP[low] + odds
    assert off(right, LOGP[w] - LOGP[low]) < 1e-12
    assert off(REF_LOGP[w] / REF_LOGP[low] + odds, right) == about(1.6409)
    odds = numbers(0.75).logit() / 10.0  # at β = 10 too little to turn a reference of log-probabilities -2 and -1.5
    assert -2.0 + 1.5 + odds == pytest.approx(-0.390139, abs=1e-6)
    assert (-2.0 + 1.5 + odds).exp() < 1 < -2.0 / -1.5 * odds.exp()


def test_length_penalty_with_the_wrong_sign() -> None:
    """E[r - α|y|] - β KL is most where βm + α(|w| - |l|) = R_w - R_l: plus, so that a longer winner learns less."""
    length, ref = TEXTS.action.sum(-1).double(), random_table(ENDING, 12).log_softmax(-1)
    best = soft_backup(ENDING, random_table(ENDING, 11) - 0.2, ref, beta=0.7)
    ratio = along(ENDING, 0.7 * (best.logp - ref), TEXTS).sum(-1)
    i, j = 0, 14  # of one prompt
    assert (length[i], length[j], TEXTS.prompt[j]) == (3, 1, TEXTS.prompt[i])
    wanted = TOLD[i].sum() - TOLD[j].sum()
    assert off(ratio[i] - ratio[j] + 0.2 * (length[i] - length[j]), wanted) < 1e-12
    assert off(ratio[i] - ratio[j] - 0.2 * (length[i] - length[j]), wanted) == about(0.8)
