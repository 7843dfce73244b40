"""Weighted sums: what they take and remember, and MPO by its closed value."""

import math

import pytest
import torch

from softq.objectives import METHODS
from softq.objectives.policy_gradient import grpo
from softq.objectives.sums import weighted_sum
from softq.objectives.weights import _first_best, per_pair
from softq.records import Batch, Labels, Pairs, Tokens, take
from softq.verify.line import PLAIN
from softq.verify.tables import models, slope, some_models, some_step, step_loss, table


def tokens(rows: int) -> Tokens:
    """Rows of one action."""
    one = torch.ones(rows, dtype=torch.bool)
    return Tokens(torch.zeros(rows, 2, dtype=torch.int64), one[:, None], one, torch.arange(rows))


def test_a_summand_has_no_credit() -> None:
    with pytest.raises(ValueError, match="a method with credit can not stand in a sum"):
        weighted_sum([(METHODS["sft"](), 1.0), (grpo(), 1.0)])


def test_summands_remember_each_its_own() -> None:
    """A running mean of rewards and one of mismatched log-ratios, after a step, as each alone would have them."""
    bco, kto = METHODS["bco"](beta=2.0), METHODS["kto"](baseline="running")
    both = weighted_sum([(bco, 0.5), (kto, 2.0), (METHODS["sft"](), 1.0)])
    assert both.takes == "labels+mismatched"
    assert [term.unit for term in both.terms] == ["label", "label", "token"]
    labels = Labels(torch.tensor([0, 1]), torch.tensor([True, False]), torch.tensor([2]))
    batch = Batch(tokens(3), labels)
    scored = {"logp": torch.tensor([[-1.0], [-3.0], [-0.5]]), "ref_logp": torch.tensor([[-2.0], [-2.5], [-1.5]])}
    assert both.remember
    after = both.remember(both.memory, scored, batch)
    assert {name: value.item() for name, value in after.items()} == pytest.approx(
        {"delta": 0.5, "delta_count": 2, "kl_running": 0.1}
    )
    assert not weighted_sum([(METHODS["dpo"](), 1.0), (METHODS["sft"](), 1.0)]).remember
    with pytest.raises(ValueError, match="two summands remember delta, delta_count"):
        weighted_sum([(bco, 1.0), (METHODS["bco"](beta=0.1), 1.0)])


def test_what_is_logged_is_of_the_first_that_judges_whatever_stands_before_it() -> None:
    """Of sft + dpo and sft + simpo β and score are dpo's and simpo's; sft's would be 1 and the log-ratio."""
    sft, dpo, simpo = METHODS["sft"](), METHODS["dpo"](beta=0.3), METHODS["simpo"](beta=2.5)
    for summands, logs in (((sft, dpo), dpo), ((sft, simpo, dpo), simpo), ((dpo, simpo), dpo), ((sft,), sft)):
        both = weighted_sum([(summand, 1.0) for summand in summands])
        assert (both.beta, both.reward) == (logs.beta, logs.reward)


@pytest.mark.parametrize(
    ("names", "takes"),
    [
        (("sft", "bco"), "labels"),
        (("apo_unpaired", "kto"), "labels+mismatched"),
        (("sft", "dpo"), "pairs"),
        (("infonca", "sft"), "groups"),
        (("sft",), "rows"),
    ],
)
def test_a_sum_takes_what_serves_all_its_summands(names: tuple[str, ...], takes: str) -> None:
    assert weighted_sum([(METHODS[name](), 1.0) for name in names]).takes == takes


@pytest.mark.parametrize("names", [("dpo", "bco"), ("infonca", "dpo"), ("kto", "infonca", "sft")])
def test_a_sum_of_different_feedback_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"one batch can not be \S+ and \S+: sum methods that take the same feedback"):
        weighted_sum([(METHODS[name](), 1.0) for name in names])


MPO = [METHODS["dpo"](), METHODS["bco_pair"](), METHODS["sft"]()]


def test_mpo_at_the_reference() -> None:
    """0.8 dpo + 0.2 bco_pair + 1.0 sft (arXiv 2411.10442): 0.8 log 2 + 0.2 · 2 log 2 + the cross-entropy of the chosen."""
    reference = table(some_models()).detach()
    same = models(reference, reference)
    entropy = step_loss(MPO[2], same, PLAIN).item()
    found = step_loss(weighted_sum(list(zip(MPO, (0.8, 0.2, 1.0), strict=True))), same, PLAIN).item()
    assert found == pytest.approx(1.2 * math.log(2) + entropy, rel=1e-12)


@pytest.mark.parametrize(("name", "settings"), [("sft", {}), ("aligndistil", {"ratio": 2.0})])
def test_of_groups_a_sum_imitates_the_best_alone(name: str, settings: dict) -> None:
    """Scores .4 .05 | .3 .9 | .2 1. | 1. 1. in groups of two; of equals the first, as where the method stands alone."""
    groups, method = METHODS["infonca"](), METHODS[name](**settings)
    batch = some_step(groups)
    scores = batch.columns["reward"].clone()
    scores[6:] = 1.0
    batch = Batch(batch.tokens, None, {"reward": scores})
    best = Batch(take(batch, torch.tensor([0, 3, 5, 6]))[0].tokens)
    of = some_models()
    both, alone = slope(weighted_sum([(groups, 0.0), (method, 1.0)]), of, batch), slope(method, of, best)
    torch.testing.assert_close(both.loss, alone.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(both.gradient, alone.gradient, rtol=1e-12, atol=1e-15)
    cut = slope(weighted_sum([(groups, 0.0), (method, 1.0)]), of, batch, tokens_per_micro=1)
    torch.testing.assert_close(cut.gradient, alone.gradient, rtol=1e-12, atol=1e-14)


def test_a_sum_is_linear_in_its_weights() -> None:
    of = some_models()
    parts = [slope(method, of, PLAIN) for method in MPO]
    for weights in ((0.8, 0.2, 1.0), (0.0, 0.0, 3.0), (1.0, 0.0, 0.0)):
        found = slope(weighted_sum(list(zip(MPO, weights, strict=True))), of, PLAIN)
        for of_all, of_each in zip(found, zip(*parts, strict=True), strict=True):
            wanted = sum(weight * value for weight, value in zip(weights, of_each, strict=True))
            torch.testing.assert_close(of_all, wanted, rtol=1e-12, atol=1e-12)


def test_weights_that_are_small_still_sum_to_1() -> None:
    batch = Batch(tokens(4), Pairs(torch.tensor([0, 2]), torch.tensor([1, 3])), {"weight": torch.tensor([0.1, 0.3])})
    assert per_pair(batch).tolist() == pytest.approx([0.25, 0.75], rel=1e-6)


def test_the_first_best_of_each_group_whatever_its_size() -> None:
    group = torch.tensor([1, 0, 0, 2, 1, 1, 0])
    reward = torch.tensor([0.5, 0.2, 0.9, 0.1, 0.7, 0.7, 0.9])
    assert _first_best(group, reward).tolist() == [2, 4, 3]
    many = torch.arange(300) % 3  # so many that a sort which is not stable shows
    assert _first_best(many, torch.ones(300)).tolist() == [0, 1, 2]
