"""Losses that read more of a state: golden numbers, identities, and mistakes in circulation that they must miss."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from softq.mdp.readouts import cringe as contrast_with_others
from softq.mdp.tabular import (
    along,
    every_trajectory,
    policy_of,
    random_table,
    token_tree,
)
from softq.objectives import METHODS
from softq.objectives.fixed_points import improved
from softq.records import Batch, Method, Pairs, Tokens
from softq.training.plan import losses, scored_by
from softq.verify.tables import TREE, models, slope, some_models, some_step

GOLDEN = {
    (e["fixture"], e["name"]): e
    for e in json.loads((Path(__file__).parent.parent / "conformance/golden.json").read_text())["entries"]
}
METHOD = {name: METHODS[name] for name in ("tdpo1", "tdpo2", "bmc", "cringe", "dpo")}


def numbers(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def fixture(name: str, needs: Method) -> tuple[Tensor, dict[str, Tensor], Batch]:
    """The logits of fixture 2 (a leaf), the scores made of them, and the pair."""
    given = GOLDEN[2, name]
    x, masks = given["inputs"], given["parameters"]
    pad = [[0.0] * 3]
    leaf = numbers(*(x["logits_pi_w"] + pad, x["logits_pi_l"])).requires_grad_()
    ref = numbers(*(x["logits_ref_w"] + pad, x["logits_ref_l"]))
    ids = torch.tensor([[9, *x["y_w"], 0], [9, *x["y_l"]]])
    action = torch.tensor([[True, True, False], [True] * 3])
    where = action.nonzero(as_tuple=True)
    seen = {"policy": leaf[action].log_softmax(-1), "ref": ref[action].log_softmax(-1)}
    taken = ids[:, 1:][action]
    empty = torch.zeros(2, 3, dtype=torch.float64)
    scored = {r.name: empty.index_put(where, r.fn(seen, taken)) for r in needs.needs}
    scored["logp"] = empty.index_put(where, seen["policy"].gather(1, taken[:, None])[:, 0])
    diff = numbers([*masks.get("diff_mask_w", [0, 0]), 0], masks.get("diff_mask_l", [0, 0, 0]))
    tokens = Tokens(ids, action, torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.int64))
    return leaf, scored, Batch(tokens, Pairs(torch.tensor([0]), torch.tensor([1])), {"diff": diff})


def value_and_gradient(name: str, method: Method) -> tuple[float, list, list]:
    leaf, scored, batch = fixture(name, method)
    loss = losses(method, scored, batch, [term.weigh(batch) for term in method.terms])
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.item(), gradient[0, :2].tolist(), gradient[1].tolist()


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("tdpo1", METHOD["tdpo1"](beta=0.5)),
        ("tdpo2", METHOD["tdpo2"](beta=0.5, alpha=0.5)),
        ("bmc_given_masks", METHOD["bmc"](beta=0.5, delta=2.0)),
        ("bmc_difflib_masks", METHOD["bmc"](beta=0.5, delta=2.0)),
    ],
)
def test_golden_values_and_gradients(name: str, method: Method) -> None:
    loss, chosen, rejected = value_and_gradient(name, method)
    wanted = GOLDEN[2, name]["expected"]
    assert loss == pytest.approx(wanted["mean"], abs=1e-12)
    for found, side in ((chosen, "w"), (rejected, "l")):
        for row, numbers in zip(found, wanted[f"grad_mean_wrt_logits_pi_{side}"], strict=True):
            assert row == pytest.approx(numbers, abs=1e-12)


# TDPO

FOUR = token_tree([(5,)], vocabulary=2, horizon=2)  # root, a, b
LEAVES = every_trajectory(FOUR)
REF = numbers([0.6, 0.4], [0.5, 0.5], [0.9, 0.1]).log()
REWARD = along(FOUR, numbers([0.0, 1.0], [0.5, -0.5], [-1.0, 2.0]), LEAVES).sum(-1)
LEAF_REF = along(FOUR, REF, LEAVES)


def test_one_soft_step_of_improvement_is_fixture_3() -> None:
    wanted = GOLDEN[3, "one_step_improvement"]["expected"]
    batch = Batch(LEAVES, None, {"reward": REWARD})
    found = policy_of(FOUR, LEAVES, improved(0.5)({"ref_logp": LEAF_REF}, batch)).exp()
    assert found.tolist() == [pytest.approx(wanted["pi1"][state], abs=1e-12) for state in ("root", "a", "b")]
    best = GOLDEN[3, "soft_optimum"]["expected"]["pi_star"]["root"]
    assert abs(found[0, 0] - best[0]) > 0.39  # the soft optimum looks ahead: it is another policy


def test_there_the_score_of_tdpo_is_the_reward() -> None:
    """β (L + K) = R - V_ref(s_0) on every leaf, V_ref(root) = 0.12; without K, or with K the other way round, it is not."""
    method = METHOD["tdpo1"](beta=0.5)
    batch = Batch(LEAVES, None, {"reward": REWARD})
    policy = policy_of(FOUR, LEAVES, improved(0.5)({"ref_logp": LEAF_REF}, batch))
    scored = scored_by(models(policy, REF, FOUR), batch, method)
    torch.testing.assert_close(0.5 * method.reward(scored, batch), REWARD - 0.12, rtol=0, atol=1e-14)
    ratio = (scored["logp"] - scored["ref_logp"]).sum(-1)
    assert (0.5 * ratio - (REWARD - 0.12)).abs().max() > 0.1
    backwards = 0.5 * (ratio - scored["kl_from_ref"].sum(-1))
    assert (backwards - (REWARD - 0.12)).abs().max() > 0.2


def test_improvement_on_completions_of_many_lengths_is_backward_induction() -> None:
    tree = token_tree([(0,), (1, 1)], vocabulary=3, horizon=3, end=2)
    leaves, ref, reward = every_trajectory(tree), random_table(tree, 1).log_softmax(-1), random_table(tree, 2)
    value, q = torch.zeros(len(tree.prefixes), dtype=torch.float64), torch.zeros_like(ref)
    for s in reversed(range(len(tree.prefixes))):
        after = torch.where(tree.next[s] >= 0, value[tree.next[s].clamp(min=0)], 0.0)
        q[s] = reward[s] + after
        value[s] = (ref[s].exp() * q[s]).sum()
    wanted = along(tree, (ref + q / 0.7).log_softmax(-1), leaves).sum(-1)
    batch = Batch(leaves, None, {"reward": along(tree, reward, leaves).sum(-1)})
    found = improved(0.7)({"ref_logp": along(tree, ref, leaves)}, batch)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_the_score_of_tdpo1_is_linear_in_the_logits() -> None:
    """d(L + K)/dz_a = 1[a taken] - π_ref(a), wherever the policy stands: so the loss is convex in a table."""
    method = METHOD["tdpo1"]()
    first, second = random_table(FOUR, 1), random_table(FOUR, 2, 5.0)

    def score(table: Tensor) -> Tensor:
        batch = Batch(LEAVES)
        return method.reward(scored_by(models(table, REF, FOUR), batch, method), batch)

    both = (score(first) + score(second)) / 2
    torch.testing.assert_close(score((first + second) / 2), both, rtol=0, atol=1e-12)


def test_alpha_1_has_the_value_of_tdpo1_and_another_gradient() -> None:
    of, batch = some_models(), some_step(METHOD["tdpo1"]())
    one, two = (
        slope(method, of, batch) for method in (METHOD["tdpo1"](beta=0.5), METHOD["tdpo2"](beta=0.5, alpha=1.0))
    )
    assert one.loss == pytest.approx(two.loss.item(), abs=1e-14)
    assert (one.gradient - two.gradient).abs().max() > 1e-3


def test_tdpo2_leaves_the_divergence_of_the_chosen_free() -> None:
    for name, free in (("tdpo1", False), ("tdpo2", True)):
        _, scored, batch = fixture(name, METHOD[name]())
        leaves = {key: value.detach().requires_grad_() for key, value in scored.items()}
        loss = METHOD[name]().terms[0].loss(leaves, batch).sum()
        chosen, rejected = torch.autograd.grad(loss, leaves["kl_from_ref"])[0]
        assert rejected[0] > 0  # K_l is pushed down
        assert (chosen[0] == 0) if free else (chosen[0] == -rejected[0])


def test_the_sign_of_the_divergences() -> None:
    """A margin to which K_l - K_w is added would be 0.479 here, not 0.518."""
    _, scored, batch = fixture("tdpo1", METHOD["tdpo1"]())
    k = scored["kl_from_ref"].sum(-1).detach()
    ratio = (scored["logp"] - scored["ref_logp"]).sum(-1).detach()
    wrong = math.log1p(math.exp(-0.5 * float(ratio[0] - ratio[1] + k[1] - k[0])))
    assert METHOD["tdpo1"](beta=0.5).terms[0].loss(scored, batch).item() == pytest.approx(0.5184558544476298, abs=1e-12)
    assert abs(wrong - 0.5184558544476298) > 0.03


# BMC


def test_bmc_weighs_the_reference_by_the_policys_weights() -> None:
    method = METHOD["bmc"](beta=0.5, delta=2.0)
    _, scored, batch = fixture("bmc_given_masks", method)
    diff = batch.columns["diff"]
    own = [1 + diff * torch.minimum((-scored[of]).exp(), numbers(2.0)) for of in ("logp", "ref_logp")]
    assert own[0][0, :2].tolist() == pytest.approx(GOLDEN[2, "bmc_given_masks"]["expected"]["lambda_w"])
    score = (own[0] * scored["logp"] - own[1] * scored["ref_logp"]).sum(-1)
    bug = math.log1p(math.exp(-0.5 * float(score[0] - score[1])))
    assert bug == pytest.approx(GOLDEN[2, "bmc_repo_bug"]["expected"]["mean"], abs=1e-12)
    right = float(method.terms[0].loss(scored, batch))
    assert abs(right - bug) > 0.06


def test_the_weights_of_bmc_have_no_gradient() -> None:
    method = METHOD["bmc"](beta=0.5, delta=2.0)
    _, scored, batch = fixture("bmc_given_masks", method)
    leaf = scored["logp"].detach().requires_grad_()
    (found,) = torch.autograd.grad(method.terms[0].loss({**scored, "logp": leaf}, batch).sum(), leaf)
    times = 1 + batch.columns["diff"] * (-leaf.detach()).exp().clamp(max=2.0)
    fixed = (times * (leaf - scored["ref_logp"].detach())).sum(-1)
    (wanted,) = torch.autograd.grad(softplus(-0.5 * (fixed[0] - fixed[1])), leaf)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-15)


def test_at_a_uniform_policy_without_a_limit_a_token_counts_one_plus_the_vocabulary() -> None:
    method, batch = METHOD["bmc"](beta=1.0, delta=1e9), some_step(METHOD["bmc"]())
    ones = Batch(batch.tokens, batch.feedback, {"diff": batch.tokens.action.double()})
    of = models(torch.zeros_like(random_table(TREE, 0)), random_table(TREE, 1))
    scored = scored_by(of, ones, method)
    plain = (scored["logp"] - scored["ref_logp"]).sum(-1)
    torch.testing.assert_close(method.reward(scored, ones), 5 * plain, rtol=1e-12, atol=0)


# Cringe


def test_cringe_by_hand() -> None:
    """Logits 2, 1, 0, -1, taken is the first: p = softmax(1, 0), C = p_1 h(1 - 2) + p_2 h(0 - 2)."""
    logits = numbers([2.0, 1.0, 0.0, -1.0], [2.0, 1.0, 0.0, -1.0])
    p = 1 / (1 + math.exp(-1))
    h = lambda z: math.log1p(math.exp(-z))  # noqa: E731
    likeliest = p * h(-1) + (1 - p) * h(-2)
    last = p * h(3) + (1 - p) * h(2)  # of 2, 1 against -1
    found = contrast_with_others(logits, torch.tensor([0, 3]), 2)
    assert found.tolist() == pytest.approx([likeliest, last], abs=1e-14)
    one = contrast_with_others(logits, torch.tensor([0, 3]), 1)  # deterministic: the best other token
    assert one.tolist() == pytest.approx([h(-1), h(3)], abs=1e-14)
    whole = contrast_with_others(logits, torch.tensor([0, 3]), 3)
    assert torch.equal(contrast_with_others(logits, torch.tensor([0, 3]), 9), whole)  # there are no more
    assert contrast_with_others(numbers([1.5]), torch.tensor([0]), 5).tolist() == [0.0]


def test_cringe_is_blind_to_a_constant_and_finite_anywhere() -> None:
    logits, taken = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(6)
    torch.testing.assert_close(contrast_with_others(logits + 7, taken, 4), contrast_with_others(logits, taken, 4))
    far = torch.tensor([[1e4, 0.0, -1e4, -torch.inf], [-1e4, 1e4, 0.0, 3.0]], requires_grad=True)
    values = contrast_with_others(far, torch.tensor([0, 0]), 3)
    assert values.tolist() == [1e4, 0.0]
    (gradient,) = torch.autograd.grad(values.sum(), far)
    assert values.isfinite().all()
    assert gradient.isfinite().all()


def test_its_gradient_is_that_of_draws_in_expectation() -> None:
    """Of 200,000 seeded draws c ~ softmax of the k largest others, the mean gradient of h(s_c - s_taken)."""
    logits = numbers([0.4, 1.3, -0.2, 0.9, 0.1]).requires_grad_()
    (exact,) = torch.autograd.grad(contrast_with_others(logits, torch.tensor([2]), 3).sum(), logits)
    p = logits.detach()[0, [1, 3, 0]].softmax(-1)
    drawn = torch.multinomial(p, 200_000, replacement=True, generator=torch.Generator().manual_seed(1)).bincount() / 2e5

    def by(weigh: Callable[[Tensor], Tensor]) -> Tensor:
        others = logits[0, [1, 3, 0]]
        return torch.autograd.grad((weigh(others) * softplus(logits[0, 2] - others)).sum(), logits)[0]

    assert (by(lambda others: drawn) - exact).abs().max() < 3e-3
    wrong = by(lambda others: others.softmax(-1))  # with a gradient through p
    assert (wrong - exact).abs().max() > 0.02


def test_the_gate_closes_over_a_ranked_pair_and_has_no_gradient() -> None:
    batch = some_step(METHOD["cringe"]())
    scored = {"logp": torch.zeros_like(batch.tokens.action, dtype=torch.float64), "cringe": torch.zeros(8, 3)}
    scored["logp"][:, -1] = numbers([-2.0, -5.0, -3.0, -3.0, -1.0, -1.0, -90.0, -4.0])[0]
    leaf = scored["logp"].requires_grad_()
    loss = METHOD["cringe"](alpha=0.3, bar=1.0, tau=2.0).terms[0].loss({**scored, "logp": leaf}, batch)
    total = leaf.detach().sum(-1)
    margin = total[batch.pairs.chosen] - total[batch.pairs.rejected]
    gate = 1 / (1 + torch.exp((margin - 1.0) / 2.0))
    torch.testing.assert_close(loss.detach(), -gate * total[batch.pairs.chosen])
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert gradient[batch.pairs.rejected].abs().max() == 0  # through M it would not be
    assert float(METHOD["cringe"](bar=-1e4).terms[0].loss(scored, batch).abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("tdpo2", {"alpha": -0.1}, "alpha is -0.1; expected alpha ≥ 0"),
        ("bmc", {"delta": -1.0}, "delta is -1.0; expected delta ≥ 0"),
        ("cringe", {"k": 0}, "k is 0; expected k ≥ 1"),
        ("cringe", {"alpha": 0.0}, "alpha is 0.0; expected alpha > 0"),
        ("cringe", {"tau": -1.0}, "tau is -1.0; expected tau > 0"),
    ],
)
def test_a_setting_out_of_range_is_one_clear_line(name: str, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METHODS[name](**settings)
