"""Pairs of unequal lengths: golden numbers, gradient shares of the tail, and equal lengths as plain dpo."""

import math

import pytest
import torch
from golden_test import ENTRIES, mean_loss, paired, token_level
from pair_steps import numbers, same, step
from torch import Tensor
from torch.nn.functional import softplus

from softq.mdp.soft import soft_backup
from softq.mdp.tabular import along, every_trajectory, policy_of, random_table, token_tree
from softq.objectives.fixed_points import softmax_of_reward
from softq.objectives.lengths import dpo_norm, ld_dpo, rdpo
from softq.objectives.margins import dpo
from softq.records import Batch, Method, Pairs

OF_GOLDEN = {"sigmoid_norm": dpo_norm(beta=0.5), "rdpo": rdpo(beta=0.5)}


@pytest.mark.parametrize("name", OF_GOLDEN)
def test_golden(name: str) -> None:
    entry = ENTRIES[1, name]
    scored, batch, w, low = paired(entry)
    values, mean = mean_loss(OF_GOLDEN[name], scored, batch)
    same(values, numbers(*entry["expected"]["loss"]))
    for grad, side in zip(torch.autograd.grad(mean, [w, low]), "wl", strict=True):
        same(grad, numbers(*entry["expected"][f"grad_mean_wrt_LP_{side}"]))


def test_golden_ld_dpo() -> None:
    entry = ENTRIES[2, "ld_dpo"]
    scored, batch, w, low = token_level(entry, ld_dpo().needs)
    _, mean = mean_loss(ld_dpo(beta=0.5), scored, batch)
    same(mean, numbers(entry["expected"]["mean"])[0])
    for grad, side in zip(torch.autograd.grad(mean, [w, low]), "wl", strict=True):
        same(grad, numbers(*entry["expected"][f"grad_mean_wrt_logits_pi_{side}"]))


SHORT_LONG = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 1]], dtype=torch.bool)
"""A prompt, then two actions; and four actions, with a token of the template between the first and the others."""

RATIOS = numbers([0.0, 0.4, -1.1, 0.0, 0.0, 0.0], [0.0, 0.3, 0.0, -0.2, 0.7, 1.3])


def by_token(method: Method, longer: str) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of the pair of RATIOS, and its gradient by the actions of the short row and of the long one."""
    rows = RATIOS.clone().requires_grad_()
    pairs = Pairs(*(torch.tensor([row]) for row in ((1, 0) if longer == "chosen" else (0, 1))))
    loss = method.terms[0].loss(*step(rows, SHORT_LONG, pairs))
    (grad,) = torch.autograd.grad(loss.sum(), rows)
    return loss[0], grad[0][SHORT_LONG[0]], grad[1][SHORT_LONG[1]]


@pytest.mark.parametrize(("longer", "sign"), [("chosen", 1.0), ("rejected", -1.0)])
def test_by_hand(longer: str, sign: float) -> None:
    """L of the short row is -0.7, of the long one 2.1: of its first two actions, which are not its first columns, 0.1."""
    loss, short, long = by_token(dpo_norm(beta=2.0), longer)
    z = sign * 2.0 * (2.1 / 4 + 0.7 / 2)
    same(loss, softplus(numbers(-z))[0])
    pull = -torch.sigmoid(numbers(-z))[0] * sign * 2.0
    same(torch.cat([short, long]), torch.cat([(-pull / 2).expand(2), (pull / 4).expand(4)]))

    loss, short, long = by_token(rdpo(beta=2.0, alpha=0.3), longer)
    z = sign * (2.0 * 2.8 + 0.3 * 2)
    same(loss, softplus(numbers(-z))[0])
    pull = -torch.sigmoid(numbers(-z))[0] * sign * 2.0
    same(torch.cat([short, long]), torch.cat([(-pull).expand(2), pull.expand(4)]))

    loss, short, long = by_token(ld_dpo(beta=2.0, alpha=0.25), longer)
    z = sign * 2.0 * (0.1 + 0.25 * 2.0 + 0.7)
    same(loss, softplus(numbers(-z))[0])
    pull = -torch.sigmoid(numbers(-z))[0] * sign * 2.0
    same(torch.cat([short, long]), torch.cat([(-pull).expand(2), pull.expand(2), (0.25 * pull).expand(2)]))


def test_a_longer_winner_learns_less_from_rdpo_and_a_shorter_one_more() -> None:
    for longer, less in (("chosen", True), ("rejected", False)):
        plain, charged = (by_token(method, longer)[2].abs().sum() for method in (dpo(), rdpo()))
        assert (charged < plain) == less


def test_rdpo_scores_are_the_reward_with_the_cost_given_back() -> None:
    """β score = βL + α|y|; its margin is what the loss trains. Minus, as is often written, gives another golden number."""
    entry = ENTRIES[1, "rdpo"]
    scored, batch, _, _ = paired(entry)
    score = 0.5 * OF_GOLDEN["rdpo"].reward(scored, batch)
    same(score, numbers(0.5 + 0.25, -0.5 + 0.5, 0.25 + 0.2, 0.25 + 0.3, 0.75 + 0.4, -2 + 0.2))
    trained = numbers(*entry["expected"]["loss"])
    same(softplus(-(score[:3] - score[3:])), trained)
    ratio, size = (scored["logp"] - scored["ref_logp"]).sum(-1), batch.tokens.action.sum(-1)
    turned = 0.5 * ratio - 0.05 * size
    assert (softplus(-(turned[:3] - turned[3:])) - trained).abs().max() > 0.04


@pytest.mark.parametrize("beta", [0.05, 0.7])
def test_rdpo_rests_where_every_token_costs_alpha(beta: float) -> None:
    """Backward induction with α taken off the reward of every token."""
    tree = token_tree([(0,), (1, 1)], vocabulary=3, horizon=2, end=2)
    leaves, ref, reward = every_trajectory(tree), random_table(tree, 1).log_softmax(-1), random_table(tree, 2)
    batch = Batch(leaves, None, {"reward": along(tree, reward, leaves).sum(-1)})
    scored = {"ref_logp": along(tree, ref, leaves)}
    stated = softmax_of_reward(beta, per_token=0.4)(scored, batch)
    same(policy_of(tree, leaves, stated), soft_backup(tree, reward - 0.4, ref, beta=beta).logp, 1e-11)
    rest = rdpo(beta=beta, alpha=0.4).fixed_point
    assert rest is not None
    assert torch.equal(rest.log_policy(scored, batch), stated)


def test_of_three_tokens_each_dpo_norm_is_dpo_at_a_third_of_beta() -> None:
    rows = numbers([0.1, 0.5, -0.3], [1.0, -0.2, 0.4])
    batch = step(rows, torch.ones(2, 3, dtype=torch.bool), Pairs(torch.tensor([0]), torch.tensor([1])))
    same(dpo_norm(beta=0.9).terms[0].loss(*batch), dpo(beta=0.3).terms[0].loss(*batch))
    for method in (rdpo(beta=0.3), ld_dpo(beta=0.3)):
        same(method.terms[0].loss(*batch), dpo(beta=0.3).terms[0].loss(*batch))


# --- ld_dpo ---


def test_ld_dpo_cuts_policy_and_reference() -> None:
    """At the reference it is log 2 whatever the lengths; with the policy alone cut it is not."""
    scored, batch = step(RATIOS, SHORT_LONG, Pairs(torch.tensor([0]), torch.tensor([1])))
    there = {"logp": scored["logp"], "ref_logp": scored["logp"]}
    same(ld_dpo(beta=2.0).terms[0].loss(there, batch), numbers(math.log(2)))
    cut = scored["logp"] * numbers([1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0.5, 0.5])
    wrong = softplus(-2.0 * ((cut - scored["logp"]).sum(-1)[0] - (cut - scored["logp"]).sum(-1)[1]))
    assert wrong - math.log(2) < -0.5


def test_ld_dpo_with_alpha_0_truncates_the_longer() -> None:
    other = RATIOS.clone()
    other[1, 4:] = numbers(-5.0, 8.0)
    pairs = Pairs(torch.tensor([0]), torch.tensor([1]))
    one, two = (ld_dpo(beta=2.0, alpha=0.0).terms[0].loss(*step(rows, SHORT_LONG, pairs)) for rows in (RATIOS, other))
    assert torch.equal(one, two)
    same(one, softplus(numbers(-2.0 * (-0.7 - 0.1))))


def test_ld_dpo_cuts_a_row_by_each_pair_that_it_is_in() -> None:
    """A row of three actions beside one of one and one of two: two cuts; its score is their mean, and of no pair 0."""
    rows = numbers([1.0, 2.0, 4.0], [0.5, 0.0, 0.0], [0.3, 0.6, 0.0], [7.0, 0.0, 0.0])
    action = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    method = ld_dpo(beta=1.0, alpha=0.5)
    scored, batch = step(rows, action, Pairs(torch.tensor([0, 2]), torch.tensor([1, 0])))
    same(method.terms[0].loss(scored, batch), softplus(-numbers(1 + 3 - 0.5, 0.9 - (3 + 2))))
    same(method.reward(scored, batch), numbers((4 + 5) / 2, 0.5, 0.9, 0.0))
