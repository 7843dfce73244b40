"""Pairs compared by log π alone: golden numbers, what the papers' cards test, and what is never read."""

import math

import pytest
import torch
from golden_steps import golden, seen, step, tensor, total
from torch import Tensor

from softq.objectives import METHODS
from softq.objectives.reference_free import log1mexp
from softq.objectives.sums import weighted_sum
from softq.records import Method
from softq.verify.populations import population

FREE = {
    "simpo": METHODS["simpo"](),
    "alphapo": METHODS["alphapo"](),
    "orpo": METHODS["orpo"](),
    "cpo": METHODS["cpo"](),
    "slic": METHODS["slic"](),
    "gamma_dpo": METHODS["gamma_dpo"](gamma=0.0),
}
UNEVEN = step(lengths=[2, 3, 4, 1], P=2)
SUMS = tensor(-1.0, -2.5, -3.0, -0.5)  # chosen: -0.5 and -0.833 a token; rejected: -0.75 and -0.5


def loss(method: Method, sums: Tensor = SUMS, ref: Tensor | None = None) -> float:
    return total(method, seen(UNEVEN, sums, ref), UNEVEN).item()


def h(z: float) -> float:
    return math.log1p(math.exp(-z))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("method", "name"),
    [
        (METHODS["simpo"](beta=0.5, gamma=0.25), "simpo"),
        (METHODS["gamma_dpo"](beta=0.5, gamma=0.5), "dpo_gamma"),
        (METHODS["gamma_dpo"](beta=0.5, gamma=0.0), "cpo_preference"),
        (METHODS["gamma_dpo"](beta=0.5, gamma=1.0), "sigmoid"),
        (METHODS["cpo"](beta=0.5), "cpo_preference"),
        (METHODS["orpo"](beta=0.3), "orpo_odds_ratio"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.terms[0].name,
)
def test_golden_numbers(method: Method, name: str, dtype: torch.dtype) -> None:
    golden(method, name, dtype)


@pytest.mark.parametrize("name", FREE)
def test_no_reference_is_loaded_or_read(name: str) -> None:
    assert FREE[name].needs == ()
    assert loss(FREE[name]) == loss(FREE[name], ref=tensor(-9.0, 0.0, 5.0, math.nan))
    assert FREE[name].reward(seen(UNEVEN, SUMS), UNEVEN).isfinite().all()


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("sums", [(-1e4, -1e-3, -1e-3, -1e4), (0.0, -1e4, -1e4, 0.0), (0.0, 0.0, 0.0, 0.0)])
def test_extremes_are_finite_in_float32(name: str, sums: tuple[float, ...]) -> None:
    """Also where a completion is certain, whose odds are infinite."""
    leaf = torch.tensor(sums, requires_grad=True)
    value = total(FREE[name], seen(UNEVEN, leaf), UNEVEN)
    assert value.isfinite()
    assert torch.autograd.grad(value, leaf)[0].isfinite().all()


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("simpo", {"gamma": -0.1}),
        ("alphapo", {"alpha": 0.0}),
        ("alphapo", {"gamma": -0.1}),
        ("cpo", {"alpha": -1.0}),
        ("slic", {"alpha": -0.1}),
        ("slic", {"delta": 0.0}),
        ("gamma_dpo", {"gamma": -0.1}),
        ("gamma_dpo", {"gamma": 1.1}),
        ("gamma_dpo", {"gamma": math.nan}),
    ],
)
def test_a_setting_out_of_range_is_refused(name: str, setting: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is .*; expected"):
        METHODS[name](**setting)


# --- γ of the reference ---


def test_a_share_of_the_reference() -> None:
    """β (m_π - γ m_ref), here 0.5 (m - 0.25 m_ref) with m = 2 and -2, m_ref = -1 and 4."""
    ref, method = tensor(-3.0, -1.0, -2.0, -5.0), METHODS["gamma_dpo"](beta=0.5, gamma=0.25)
    assert method.needs
    assert loss(method, ref=ref) == pytest.approx((h(0.5 * 2.25) + h(0.5 * -3.0)) / 2, rel=1e-12)
    scores = method.beta * method.reward(seen(UNEVEN, SUMS, ref), UNEVEN)
    assert (scores[:2] - scores[2:]).tolist() == pytest.approx([0.5 * 2.25, 0.5 * -3.0], rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_it_rests_at_a_share_of_the_reference(gamma: float) -> None:
    """log π = γ log π_ref + R/β up to a constant a prompt; the lab descends to it."""
    rest = METHODS["gamma_dpo"](beta=0.5, gamma=gamma).fixed_point
    assert rest
    whole = population(rest)
    reference, reward = whole.scored()["ref_logp"].sum(-1), whole.batch.columns["reward"]
    off = rest.log_policy(whole.scored(), whole.batch) - gamma * reference - 2 * reward
    for prompt in (0, 1):
        assert off[whole.batch.tokens.prompt == prompt].std() < 1e-12


# --- SimPO ---


def test_simpo_counts_tokens_not_sums() -> None:
    """Every token said twice: twice the sum over twice the length."""
    twice = step(lengths=[4, 6, 8, 2], P=2)
    doubled = total(METHODS["simpo"](), seen(twice, 2 * SUMS), twice).item()
    assert doubled == pytest.approx(loss(METHODS["simpo"]()), rel=1e-14)
    assert doubled == pytest.approx((h(2 * 0.25 - 0.5) + h(2 * (0.5 - 2.5 / 3) - 0.5)) / 2, rel=1e-12)


def test_simpo_asks_for_a_margin_in_reward_not_for_a_ratio() -> None:
    """At equal log-probs a token it is h(-γ); the official code's β (difference - ratio) has ratio = γ/β."""
    equal = tensor(-1.0, -1.5, -2.0, -0.5)
    assert loss(METHODS["simpo"](beta=2.0, gamma=0.7), equal) == pytest.approx(h(-0.7), rel=1e-12)
    official = (h(2.5 * (0.25 - 0.3)) + h(2.5 * (0.5 - 2.5 / 3 - 0.3))) / 2
    assert loss(METHODS["simpo"](beta=2.5, gamma=0.75)) == pytest.approx(official, rel=1e-12)


def test_simpo_of_equal_lengths_is_dpo_without_a_reference_at_a_smaller_beta() -> None:
    four = step(lengths=[4] * 4, P=2)
    one, other = METHODS["simpo"](beta=2.0, gamma=0.0), METHODS["cpo"](beta=0.5, alpha=0.0)
    assert total(one, seen(four, SUMS), four).item() == pytest.approx(total(other, seen(four, SUMS), four).item())


def test_alphapo_shapes_the_reward_of_simpo() -> None:
    """r = (1 - p^-α)/α of means -1 and -2, α = ½: -1.297 and -3.437; below 0 the far one counts less: -0.787 and -1.264."""
    batch = step(lengths=[2, 1])
    scored = seen(batch, tensor(-2.0, -2.0))
    for alpha, rewards in ((0.5, (-1.2974425414, -3.4365636569)), (-0.5, (-0.7869386806, -1.2642411177))):
        method = METHODS["alphapo"](beta=2.0, gamma=0.3, alpha=alpha)
        assert method.reward(scored, batch).tolist() == pytest.approx(rewards, rel=1e-9)
        assert total(method, scored, batch).item() == pytest.approx(h(2 * (rewards[0] - rewards[1]) - 0.3), rel=1e-9)


def test_simpo_scores_the_mean_token() -> None:
    assert METHODS["simpo"]().reward(seen(UNEVEN, SUMS), UNEVEN).tolist() == pytest.approx(
        [-0.5, -2.5 / 3, -0.75, -0.5]
    )


# --- CPO ---


def test_cpo_is_dpo_and_likelihood_where_the_reference_does_not_tell_the_two_apart() -> None:
    ref = tensor(-4.0, -7.0, -4.0, -7.0)
    sum_of = weighted_sum([(METHODS["dpo"](beta=0.3), 1.0), (METHODS["sft"](), 0.6)])
    assert loss(METHODS["cpo"](beta=0.3, alpha=0.6)) == pytest.approx(loss(sum_of, ref=ref), rel=1e-14)


def test_cpo_means_its_likelihood_over_all_chosen_tokens() -> None:
    """3.5 nats over 5 tokens; by rows it would be (0.5 + 0.833)/2."""
    pair = (h(0.1 * 2.0) + h(0.1 * -2.0)) / 2
    assert loss(METHODS["cpo"](alpha=2.0)) == pytest.approx(pair + 2 * 3.5 / 5, rel=1e-12)
    assert [term.total for term in METHODS["cpo"](alpha=2.0).terms] == [1.0, 2.0]


def test_the_preference_of_cpo_pushes_long_answers_no_less() -> None:
    """Each token has the slope of the sum, -β σ(-z)/P; SimPO's is that over the length."""
    method = METHODS["cpo"](beta=0.5, alpha=0.0)
    logp = seen(UNEVEN, SUMS)["logp"].requires_grad_()
    (slopes,) = torch.autograd.grad(total(method, {"logp": logp}, UNEVEN), logp)
    by_hand = [-0.25 / (1 + math.exp(0.5 * m)) for m in (2.0, -2.0)]
    for row, length, slope in zip(slopes, (2, 3), by_hand, strict=False):
        assert row[:length].tolist() == pytest.approx([slope] * length, rel=1e-12)


# --- ORPO ---


def odds(mean: float) -> float:
    return mean - math.log(1 - math.exp(mean))


def test_orpo_by_hand() -> None:
    """λ h(o_w - o_l) and the mean over chosen tokens; the score is o."""
    each = [odds(value) for value in (-0.5, -2.5 / 3, -0.75, -0.5)]
    pair = (h(each[0] - each[2]) + h(each[1] - each[3])) / 2
    method = METHODS["orpo"](beta=0.3)
    assert loss(method) == pytest.approx(0.3 * pair + 3.5 / 5, rel=1e-12)
    assert (method.beta * method.reward(seen(UNEVEN, SUMS), UNEVEN)).tolist() == pytest.approx(each, rel=1e-12)
    assert [term.total for term in method.terms] == [0.3, 1.0]


def test_orpo_turned_around_and_at_equal_odds() -> None:
    """h(δ) - h(-δ) = -δ for each pair; equal log-probs a token give log 2."""
    pair = METHODS["orpo"]().terms[0]
    scored, back = seen(UNEVEN, SUMS), seen(step(lengths=[4, 1, 2, 3], P=2), SUMS[[2, 3, 0, 1]])
    there = pair.loss(scored, UNEVEN) - pair.loss(back, step(lengths=[4, 1, 2, 3], P=2))
    expected = [odds(-0.75) - odds(-0.5), odds(-0.5) - odds(-2.5 / 3)]
    assert there.tolist() == pytest.approx(expected, rel=1e-12)
    equal = pair.loss(seen(UNEVEN, tensor(-1.0, -1.5, -2.0, -0.5)), UNEVEN)
    assert equal.tolist() == pytest.approx([math.log(2)] * 2, rel=1e-12)


def test_odds_of_what_is_nearly_certain_and_nearly_impossible() -> None:
    x = tensor(-1e-12, -1e-7, -0.3, -math.log(2), -1.0, -40.0, -1e4).requires_grad_()
    found = log1mexp(x)
    expected = [math.log(-math.expm1(v)) for v in (-1e-12, -1e-7, -0.3)]
    expected += [math.log1p(-math.exp(v)) for v in (-math.log(2), -1.0, -40.0, -1e4)]
    assert found.tolist() == pytest.approx(expected, rel=1e-14, abs=0)
    (slopes,) = torch.autograd.grad(found.sum(), x)
    assert slopes.tolist() == pytest.approx([-1 / math.expm1(-v) for v in x.tolist()[:-1]] + [0], rel=1e-12)
    assert log1mexp(torch.tensor([-1e-7])).item() == pytest.approx(math.log(1e-7), rel=1e-6)


# --- SLiC ---


def test_slic_leaves_a_pair_alone_once_it_is_apart() -> None:
    """Margins 2 and -2 of log π against δ = 1: max(0, 1 - m) is 0 and 3, with slopes 0 and ∓1."""
    leaf = SUMS.clone().requires_grad_()
    calibration = METHODS["slic"](alpha=0.0)
    value = total(calibration, seen(UNEVEN, leaf), UNEVEN)
    assert value.item() == 1.5
    assert torch.autograd.grad(value, leaf)[0].tolist() == [0, -0.5, 0, 0.5]
    assert loss(METHODS["slic"](delta=2.5, alpha=0.0)) == (0.5 + 4.5) / 2


def test_slic_keeps_the_chosen_likely_by_the_sum_over_its_tokens() -> None:
    """λ times 1 and 2.5 nats, one a pair, which its weight counts too."""
    assert loss(METHODS["slic"](alpha=0.4)) == pytest.approx(1.5 + 0.4 * (1.0 + 2.5) / 2, rel=1e-12)
    weighed = step(lengths=[2, 3, 4, 1], P=2, weight=tensor(3.0, 1.0))
    found = total(METHODS["slic"](alpha=0.4), seen(weighed, SUMS), weighed).item()
    assert found == pytest.approx(0.25 * 3 + 0.4 * (0.75 * 1.0 + 0.25 * 2.5), rel=1e-12)
