"""Values that other tests left open: each was written for a mutant (bench/mutants.py) that survived them. By module."""

import math

import pytest
import torch
from torch import Tensor

from softq import masked
from softq.lm import score as scoring
from softq.lm.score import Models, score
from softq.mdp.chance import minimum
from softq.mdp.readouts import KL, REF_LOGP
from softq.mdp.tabular import TabularLM, completions, difference, gradient, random_table
from softq.objectives import METHODS, weights
from softq.objectives.credit import group_normalised
from softq.objectives.fixed_points import Link, balanced
from softq.objectives.links import logistic, positive
from softq.objectives.sums import weighted_sum
from softq.records import Batch, Labels, Pairs, Tokens
from softq.verify.tables import TREE, rows


def tokens(*lengths: int) -> Tokens:
    """Rows of so many actions after one token of prompt."""
    action = torch.arange(max(*lengths, 1))[None] < torch.tensor(lengths)[:, None]
    B, T = action.shape
    return Tokens(torch.zeros(B, T + 1, dtype=torch.int64), action, torch.ones(B, dtype=torch.bool), torch.arange(B))


def pairs(*weight: float) -> Batch:
    """A pair for each weight."""
    P = len(weight)
    return Batch(tokens(*[1] * 2 * P), Pairs(torch.arange(P), torch.arange(P, 2 * P)), {"weight": torch.tensor(weight)})


# --- masked ---


def test_a_mean_counts_what_the_mask_shows() -> None:
    values = torch.tensor([[1.0, 2.0, math.nan], [6.0, math.inf, math.nan]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked.total(values, mask).item() == 9
    assert masked.mean(values, mask).item() == 3
    assert masked.mean(values, mask, -1).tolist() == [1.5, 6]


def test_a_mean_and_a_share_of_nothing_are_zero() -> None:
    values, mask = torch.tensor([[5.0, 7.0], [3.0, 4.0]]), torch.tensor([[False, False], [True, True]])
    assert masked.mean(values, mask, -1).tolist() == [0, 3.5]
    assert masked.mean(values, ~mask & mask).item() == 0
    assert masked.share(~mask & mask).tolist() == [[0, 0], [0, 0]]


# --- objectives/links and weights ---


def test_a_checked_number_is_given_back() -> None:
    assert positive("beta", 0.25) == 0.25


@pytest.mark.parametrize("weight", [(-1.0, 2.0), (-1.0, -2.0), (float("nan"), 1.0)])
def test_weights_of_pairs_are_not_negative(weight: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="weight"):
        weights.per_pair(pairs(*weight))


def test_a_pair_may_have_no_weight() -> None:
    assert weights.per_pair(pairs(0.0, 3.0, 1.0)).tolist() == [0, 0.75, 0.25]
    assert weights.per_pair(pairs(0.0, 0.0)).tolist() == [0, 0]  # a step of such pairs teaches nothing, and ends no run


def test_a_row_without_actions_has_no_weight_and_takes_none_from_others() -> None:
    batch = Batch(tokens(2, 0, 1))
    assert weights.per_row_then_token(batch).tolist() == [[0.25, 0.25], [0, 0], [0.5, 0]]
    assert weights.per_row_then_token(Batch(tokens(0, 0))).tolist() == [[0], [0]]


def test_what_is_labelled_good_is_demonstrated() -> None:
    labels = Labels(torch.tensor([0, 1, 2]), torch.tensor([True, False, True]), torch.tensor([3]))
    weight = weights.per_demonstrated_token(Batch(tokens(2, 2, 3, 1), labels))
    assert weight.tolist() == [[0.2, 0.2, 0], [0, 0, 0], [0.2, 0.2, 0.2], [0, 0, 0]]


# --- objectives/sums ---


@pytest.mark.parametrize("by", [(-1.0, 2.0), (0.0, 0.0), (-1.0, -1.0)])
def test_methods_are_not_summed_with_negative_weights_or_none(by: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="expected finite numbers ≥ 0"):
        weighted_sum([(METHODS["dpo"](), by[0]), (METHODS["sft"](), by[1])])


def test_a_sum_is_coupled_if_one_summand_is_and_stops_if_one_does() -> None:
    dpo, wpo, aot = (METHODS[name]() for name in ("dpo", "wpo", "aot"))
    assert weighted_sum([(dpo, 1.0), (aot, 1.0)]).coupled
    assert weighted_sum([(dpo, 1.0), (wpo, 1.0)]).stops
    neither = weighted_sum([(dpo, 1.0), (METHODS["sft"](), 1.0)])
    assert not neither.coupled
    assert not neither.stops


def test_one_method_alone_keeps_its_fixed_point_and_two_have_none_that_is_known() -> None:
    dpo, ipo = METHODS["dpo"](), METHODS["ipo"]()
    assert weighted_sum([(dpo, 2.0)]).fixed_point is dpo.fixed_point is not None
    assert weighted_sum([(dpo, 1.0), (ipo, 1.0)]).fixed_point is None


def test_weights_of_a_sum_of_sums_multiply() -> None:
    inner = weighted_sum([(METHODS["dpo"](), 0.5), (METHODS["sft"](), 3.0)])
    outer = weighted_sum([(inner, 4.0)])
    assert [term.total for term in outer.terms] == [2.0, 12.0]
    assert outer.terms[0].weigh(pairs(1.0, 3.0)).tolist() == [0.5, 1.5]


# --- objectives/credit and unpaired ---


def test_credit_is_given_once_and_follows_no_gradient() -> None:
    logp = torch.tensor([[-1.0], [-2.0]], requires_grad=True)
    batch = Batch(tokens(1, 1), None, {"reward": torch.tensor([1.0, 3.0])})
    given = group_normalised({"logp": logp}, batch)
    assert given["old_logp"].tolist() == [[-1], [-2]]
    assert not given["old_logp"].requires_grad


def test_kto_holds_its_baseline_constant_and_says_so() -> None:
    """A mismatched row moves the loss of the others and gets no gradient."""
    kto = METHODS["kto"](beta=1.0)
    batch = Batch(tokens(1, 1), Labels(torch.tensor([0]), torch.tensor([True]), torch.tensor([1])))

    def loss(logp: Tensor) -> Tensor:
        return kto.terms[0].loss({"logp": logp[:, None], "ref_logp": torch.zeros(2, 1)}, batch).sum()

    at = torch.tensor([2.0, 1.0])
    assert loss(at).item() == pytest.approx(1 - 1 / (1 + math.exp(-1)))
    assert loss(torch.tensor([2.0, 2.0])).item() == pytest.approx(0.5)
    slope = 1 / (1 + math.exp(-1)) * (1 - 1 / (1 + math.exp(-1)))
    assert gradient(loss, at).tolist() == pytest.approx([-slope, 0])
    assert kto.stops


# --- objectives/fixed_points ---


def population(weight: dict[tuple[int, int], float], n: int) -> Batch:
    """Pairs (chosen, rejected) of n completions of one prompt, with weights."""
    chosen, rejected = torch.tensor(list(weight)).unbind(-1)
    columns = {"weight": torch.tensor(list(weight.values()), dtype=torch.float64)}
    ids = torch.stack([torch.zeros(n, dtype=torch.int64), torch.arange(n)], -1)
    mask, prompt = torch.ones(n, 1, dtype=torch.bool), torch.zeros(n, dtype=torch.int64)
    return Batch(Tokens(ids, mask, mask[:, 0], prompt), Pairs(chosen, rejected), columns)


def log_ratios(link: Link, weight: dict[tuple[int, int], float], n: int) -> list[float]:
    """What the stated fixed point makes of each completion, relative to the first, beside a uniform reference."""
    uniform = torch.full((n, 1), -math.log(n), dtype=torch.float64)
    logp = balanced(link)({"ref_logp": uniform}, population(weight, n))
    return (logp - logp[0]).tolist()


def test_a_completion_that_does_not_move_ends_no_descent() -> None:
    """0 beats 1 and 1 beats 2 nine times of ten: the score of 1 is 0 throughout, the others part by log 9 each."""
    weight = {(0, 1): 0.9, (1, 0): 0.1, (1, 2): 0.9, (2, 1): 0.1}
    assert log_ratios(logistic, weight, 3) == pytest.approx([0, -math.log(9), -2 * math.log(9)], abs=1e-12)


def test_steps_that_overshoot_are_halved_even_where_one_completion_stays() -> None:
    """log cosh(m - 4) is least at m = 4; a whole Newton step from m = 0 leads to 1486, where nothing bends any more."""

    def link(margin: Tensor) -> Tensor:
        return margin + logistic(2 * (margin - 4))

    assert log_ratios(link, {(0, 1): 1.0}, 2) == pytest.approx([0, -4], abs=1e-10)
    assert log_ratios(link, {(0, 1): 1.0, (1, 2): 1.0}, 3) == pytest.approx([0, -4, -8], abs=1e-10)


def test_the_only_completion_of_a_prompt_is_certain() -> None:
    batch = Batch(
        tokens(1, 2), Pairs(*torch.empty(2, 0, dtype=torch.int64)), {"weight": torch.empty(0, dtype=torch.float64)}
    )
    ref_logp = torch.tensor([[-3.0, 0.0], [-1.0, -2.0]], dtype=torch.float64)
    for length_average in (False, True):
        found = balanced(logistic, length_average=length_average)({"ref_logp": ref_logp}, batch)
        assert found.tolist() == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize("weight", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("bend", [0.0, 1e-15])
def test_a_straight_link_is_refused_for_two_completions_too(weight: float, bend: float) -> None:
    with pytest.raises(ArithmeticError, match="strictly convex"):
        log_ratios(lambda m: bend * m**2 - m, {(0, 1): weight}, 2)


# --- mdp/chance and tabular ---


def test_the_start_of_a_descent_may_carry_a_gradient() -> None:
    start = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0.2, 0.8], dtype=torch.float64)
    found = minimum(lambda logp: -(target * logp).sum(), start)
    assert found.exp()[0].tolist() == pytest.approx([0.2, 0.8], abs=1e-10)


def test_one_state_that_is_no_number_is_enough_to_find_no_minimum() -> None:
    """|x|^1.5 is flat at 0 and bends infinitely there."""
    target = torch.tensor([0.2, 0.8], dtype=torch.float64)

    def loss(logp: Tensor) -> Tensor:
        return (logp[1, 0] - logp[1, 1]).abs() ** 1.5 - (target * logp[0]).sum()

    with pytest.raises(ArithmeticError, match="left the finite numbers"):
        minimum(loss, torch.zeros(2, 2, dtype=torch.float64))


def test_a_completion_is_its_ids_up_to_the_last_action_and_no_padding() -> None:
    ids = torch.tensor([[5, 0, 0], [5, 0, 7], [5, 0, 0], [4, 0, 0], [5, 1, 0], [5, 2, 0]])
    action = torch.tensor([[1, 0], [1, 0], [1, 1], [1, 0], [0, 0], [0, 0]], dtype=torch.bool)
    same, padded, longer, other, none, neither = completions(
        Tokens(ids, action, torch.ones(6, dtype=torch.bool), torch.zeros(6, dtype=torch.int64))
    ).tolist()
    assert same == padded
    assert none == neither
    assert len({same, longer, other, none}) == 4


def test_differences_carry_no_gradient_of_what_the_loss_closes_over() -> None:
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    slopes = difference(lambda table: (scale * table**2).sum(), torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    assert slopes.tolist()[0] == pytest.approx([6, -12])
    assert not slopes.requires_grad


# --- lm/score ---


class Counted(TabularLM):
    """A table that notes how many rows its head is asked for, call by call."""

    def logits(self, states: Tensor) -> Tensor:
        self.asked = [*getattr(self, "asked", ()), len(states)]
        return super().logits(states)


def counted() -> Models:
    reference = Counted(TREE, random_table(TREE, 1)).requires_grad_(False)
    return Models({"policy": Counted(TREE, random_table(TREE, 0)), "ref": reference})


WHICH = rows([0, 7, 30])
ACTIONS = int(WHICH.action.sum())


def test_what_fits_at_once_is_seen_once_by_each_head() -> None:
    of = counted()
    scored = score(of, WHICH, (REF_LOGP, KL))
    (scored["logp"] + scored["kl"]).sum().backward()
    assert of["policy"].asked == of["ref"].asked == [ACTIONS]


def test_a_reference_that_is_read_alone_is_not_run_again_for_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "CHUNK", 2 * TREE.vocabulary)
    of = counted()
    score(of, WHICH, (REF_LOGP,))["logp"].sum().backward()
    assert sum(of["policy"].asked) == 2 * ACTIONS
    assert sum(of["ref"].asked) == ACTIONS


def test_chunks_go_by_the_larger_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    of = counted()
    of["ref"].vocabulary = 2 * TREE.vocabulary
    monkeypatch.setattr(scoring, "CHUNK", 4 * TREE.vocabulary)
    score(of, WHICH, (KL,))
    assert max(of["policy"].asked) == 2
