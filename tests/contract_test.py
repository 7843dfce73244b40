"""One list of laws, every method: what `softq verify` runs, and that each law can fail."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from softq import masked
from softq.lm.score import score
from softq.mdp.readouts import logp_of
from softq.objectives import METHODS, weights
from softq.objectives.margins import contrast
from softq.objectives.policy_gradient import grpo
from softq.objectives.sums import weighted_sum
from softq.records import Batch, FixedPoint, Method, Pairs, Scored, Term, Tokens, implicit, no_credit, take
from softq.verify.contract import CONTRACT
from softq.verify.examples import EXAMPLE_LAWS
from softq.verify.law import Finding, Law, checked
from softq.verify.line import Line
from softq.verify.suite import METHOD_LAWS, TABLE_LAWS, named, stamp
from softq.verify.tables import rows, slope, some_models, some_step
from softq.verify.theory import TABLES, Table

by_name = {"ids": lambda value: value if isinstance(value, str) else value.name}


@pytest.mark.parametrize("law", METHOD_LAWS, **by_name)
@pytest.mark.parametrize("name", CONTRACT)
def test_methods(name: str, law: Law[Line]) -> None:
    (result,) = checked([law], CONTRACT[name], name)
    assert result.green, (result.finding, law.red)


@pytest.mark.parametrize("law", TABLE_LAWS, **by_name)
@pytest.mark.parametrize("name", TABLES)
def test_theory(name: str, law: Law[Table]) -> None:
    (result,) = checked([law], TABLES[name], name)
    assert result.green, (result.finding, law.red)


@pytest.mark.parametrize("law", EXAMPLE_LAWS, **by_name)
def test_examples(law: Law[None]) -> None:
    (result,) = checked([law], None, "examples")
    assert result.green, (result.finding, law.red)


def test_every_method_has_a_line_with_a_fixed_point_or_the_reason_why_it_has_none() -> None:
    assert set(METHODS) <= set(CONTRACT)
    for name, line in CONTRACT.items():
        assert (line.method.fixed_point is None) == bool(line.why), name
        assert type(line.method) is Method


# Each law is red for a method with one thing wrong, and by name


def pairwise(
    loss: Callable[[Scored, Batch], Tensor], weigh: Callable[[Batch], Tensor] = weights.per_pair, **more
) -> Method:
    dpo = METHODS["dpo"](beta=0.7)
    plain = {"needs": dpo.needs, "beta": 0.7, "columns": ("weight",), "fixed_point": dpo.fixed_point, **more}
    return Method((Term("wrong", "pair", loss, weigh),), **plain)


def margin(scored: Scored, batch: Batch) -> Tensor:
    return 0.7 * contrast(implicit(scored, batch), batch)


def logistic(z: Tensor) -> Tensor:
    return torch.nn.functional.softplus(-z)


def right(scored: Scored, batch: Batch) -> Tensor:
    return logistic(margin(scored, batch))


def red_of(method: Method, **stated) -> set[str]:
    return {result.law.name for result in checked(METHOD_LAWS, Line(method, **stated), "wrong") if not result.green}


def test_a_right_method_of_ones_own_is_green() -> None:
    assert red_of(pairwise(right), at_reference=math.log(2), rests=math.inf, free=True) == set()


def test_a_method_may_read_a_model_by_a_name_of_its_own() -> None:
    def loss(scored: Scored, batch: Batch) -> Tensor:
        return masked.total((scored["logp"] - scored["teacher_logp"]) ** 2, batch.tokens.action, -1)

    method = Method((Term("near", "row", loss, weights.per_row),), (logp_of("teacher"),), takes="rows")
    assert red_of(method) == set()
    off = method._replace(needs=(logp_of("teacher"), logp_of("unread")))
    assert red_of(off) == {"reads"}


WRONG: dict[str, tuple[Method, set[str]]] = {
    "sign": (
        pairwise(lambda s, b: logistic(-margin(s, b))),
        {"fixed point", "descent", "hard labels"},
    ),
    "β twice": (pairwise(lambda s, b: logistic(0.7 * margin(s, b))), {"fixed point", "descent"}),
    "no reference": (
        pairwise(lambda s, b: logistic(0.7 * contrast(s["logp"].sum(-1), b))),
        {"reads", "at the reference", "fixed point", "descent"},
    ),
    "mean over the micro-batch": (
        pairwise(lambda s, b: right(s, b) / len(b.pairs.chosen)),
        {"micro-batches", "at the reference"},
    ),
    "padding counts": (
        pairwise(lambda s, b: logistic(margin(s, b) + 0.1 * s["logp"].shape[1])),
        {"micro-batches", "at the reference", "fixed point", "descent"},
    ),
    "weights of another sum": (
        pairwise(right, lambda b: 2 * weights.per_pair(b)),
        {"weights", "at the reference"},
    ),
    "chosen is whatever comes first": (
        pairwise(lambda s, b: logistic(0.7 * (implicit(s, b)[::2] - implicit(s, b)[1::2])), weights.per_slot),
        {"row order", "reads", "fixed point", "descent"},
    ),
    "detached": (
        pairwise(lambda s, b: logistic(margin(s, b)) * right(s, b).detach()),
        {"gradient", "at the reference", "fixed point", "descent"},
    ),
    "a column nobody reads": (pairwise(right, columns=("weight", "margin")), {"reads"}),
    "a column nobody declared": (
        pairwise(lambda s, b: logistic(margin(s, b) - b.columns.get("margin", 0.0)), columns=("weight",)),
        {"reads"},
    ),
    "a fixed point at another β": (
        pairwise(right, fixed_point=METHODS["dpo"](beta=0.8).fixed_point),
        {"fixed point", "descent"},
    ),
    "length average for a sum": (
        pairwise(right, fixed_point=METHODS["ipo"](beta=0.7).fixed_point),
        {"fixed point", "descent"},
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_method_is_red_by_name(name: str) -> None:
    method, expected = WRONG[name]
    found = red_of(method, at_reference=math.log(2), rests=math.inf, free=True)
    assert expected <= found, found
    assert "weights" not in found - expected
    assert found <= expected | {"micro-batches", "free mass"}, found


def test_hard_labels_and_free_mass_hold_a_method_to_what_is_stated() -> None:
    dpo, ipo = METHODS["dpo"](beta=0.7), METHODS["ipo"](beta=0.5)
    assert red_of(dpo, rests=3.0) == {"hard labels"}
    assert red_of(ipo, rests=math.inf) == {"hard labels"}
    assert red_of(ipo, rests=1.01) == {"hard labels"}
    assert red_of(dpo, free=False) == {"free mass"}
    assert red_of(METHODS["tdpo2"](beta=0.5), free=True) == {"free mass"}


def test_a_flipped_sign_is_red_where_nothing_is_stated() -> None:
    assert red_of(pairwise(right, fixed_point=None)) == set()
    assert red_of(pairwise(lambda s, b: logistic(-margin(s, b)), fixed_point=None)) == {"hard labels"}
    flipped = METHODS["sft"]().terms[0]._replace(loss=lambda scored, batch: scored["logp"])
    assert red_of(METHODS["sft"]()._replace(terms=(flipped,), fixed_point=None)) == {"hard labels"}


def test_a_method_that_does_not_say_that_it_stops_is_red() -> None:
    for name in ("kto", "wpo", "tdpo2"):
        assert "gradient" in red_of(METHODS[name](beta=0.5)._replace(stops=False)), name


def test_columns_that_a_credit_makes_need_not_be_declared() -> None:
    made = grpo()._replace(columns=("reward",))
    assert "advantage" in some_step(made).columns
    assert red_of(made) == set()
    assert red_of(grpo()._replace(columns=("old_logp", "advantage"), credit=no_credit)) == set()
    assert red_of(grpo()._replace(columns=("old_logp",), credit=no_credit)) >= {"padding", "gradient"}


def test_what_a_fixed_point_states_must_be_a_number_a_row() -> None:
    for stated in (
        lambda s, b: s["ref_logp"],
        lambda s, b: s["ref_logp"].sum(-1)[1:],
        lambda s, b: s["ref_logp"].sum(-1) / 0,
    ):
        lost = pairwise(right, fixed_point=FixedPoint("soft pairs", stated))
        (result,) = checked(named(METHOD_LAWS, "fixed point"), Line(lost), "lost")
        assert isinstance(result.finding, Finding)
        assert not result.green
    (result,) = checked(named(METHOD_LAWS, "padding"), Line(pairwise(lambda s, b: s["nowhere"])), "lost")
    assert isinstance(result.finding, Finding)
    assert result.finding.raised
    assert "KeyError: 'nowhere' (contract_test.py:" in result.finding.note


def test_an_unknown_population_and_a_loss_that_breaks_are_red_with_the_reason() -> None:
    lost = pairwise(right, fixed_point=FixedPoint("hard labels", lambda scored, batch: scored["ref_logp"].sum(-1)))
    (result,) = checked(named(METHOD_LAWS, "fixed point"), Line(lost), "lost")
    assert not result.green
    assert isinstance(result.finding, Finding)
    assert "no population 'hard labels'; known are soft pairs" in result.finding.note
    infinite = pairwise(lambda s, b: right(s, b) / 0)
    assert "weights" not in red_of(infinite)
    assert "micro-batches" in red_of(infinite)


def test_a_finding_is_red_beyond_its_bound_and_where_it_is_no_number() -> None:
    assert Finding(1e-10, 1e-10).green
    assert not Finding(1.1e-10, 1e-10).green
    assert not Finding(math.nan, 1e-10).green


@pytest.mark.parametrize("name", METHODS)
def test_a_stamp_holds_the_method_to_its_own_settings(name: str) -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    found = stamp(METHODS[name]())
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert found["red"] == {}
    assert found["laws"] + len(found["not_stated"]) == len(METHOD_LAWS)
    assert found["laws"] >= 8
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dpo", {"beta": 0.001}),
        ("dpo", {"beta": 10.0}),
        ("dpo", {"beta": 100.0}),
        ("wpo", {"beta": 20.0}),
        ("kto", {"beta": 0.0001}),
        ("dpo", {"beta": 0.01, "label_smoothing": 0.4}),
        ("ipo", {"beta": 0.001}),
        ("ipo", {"beta": 5.0}),
        ("ipo", {"beta": 0.01, "length_average": False}),
        ("wpo", {"beta": 1.0}),
        ("infonca", {"beta": 0.1, "alpha": 2.0}),
        ("aot", {"beta": 0.01, "label_smoothing": 0.3}),
        ("kto", {"beta": 0.01, "undesirable_weight": 1.3}),
    ],
)
def test_no_law_is_red_for_unusual_settings(name: str, settings: dict) -> None:
    assert stamp(METHODS[name](**settings))["red"] == {}


def test_a_sum_is_held_to_the_laws_of_its_terms() -> None:
    both = weighted_sum([(METHODS["dpo"](), 0.8), (METHODS["sft"](), 0.2)])
    assert stamp(both)["red"] == {}
    wrong = weighted_sum([(METHODS["dpo"](), 0.8), (pairwise(lambda s, b: right(s, b) / len(b.pairs.chosen)), 0.2)])
    assert set(stamp(wrong)["red"]) == {"micro-batches"}


# By hand


def test_ipo_of_sums_is_stationary_where_its_margin_meets_the_targets() -> None:
    """A policy with m = 1/(2β) on the one pair has zero loss and gradient; a larger margin is pushed down."""
    tokens = rows([0, 1])
    batch = Batch(tokens, Pairs(torch.tensor([0]), torch.tensor([1])))
    of = some_models()
    method = METHODS["ipo"](beta=0.5, length_average=False)
    scored = score(of, tokens, method.needs)
    margin = (scored["logp"] - scored["ref_logp"]).sum(-1)
    target = METHODS["ipo"](beta=1 / (2 * (margin[0] - margin[1]).abs().item()), length_average=False)
    order = Pairs(*(torch.tensor([i]) for i in ((0, 1) if margin[0] > margin[1] else (1, 0))))
    loss, grad = slope(target, of, Batch(tokens, order))
    assert loss < 1e-20
    assert grad.abs().max() < 1e-10
    assert slope(method, of, batch).gradient.abs().max() > 1e-3


def test_take_keeps_relations_whose_rows_are_all_kept() -> None:
    batch = some_step(METHODS["dpo"]())
    part, kept = take(batch, torch.tensor([4, 5, 6, 7]))
    assert kept["pair"].tolist() == [2, 3]
    assert (part.pairs.chosen.tolist(), part.pairs.rejected.tolist()) == ([0, 2], [1, 3])
    assert part.columns["weight"].tolist() == [2.0, 0.25]
    torch.testing.assert_close(part.tokens.ids, batch.tokens.ids[4:, : part.tokens.ids.shape[1]])
    one, kept = take(batch, torch.tensor([0]))
    assert len(one.pairs.chosen) == 0 == len(kept["pair"])


def test_margins_and_label_probabilities_of_dpo_by_hand() -> None:
    """-p log σ(βm - Δ) - (1-p) log σ(Δ - βm), over two pairs; without the columns it is -log σ(βm)."""
    dpo = METHODS["dpo"](beta=0.5)
    tokens = Tokens(
        torch.tensor([[1, 2], [1, 3], [1, 2], [1, 3]]), torch.ones(4, 1, dtype=torch.bool), torch.ones(4, dtype=torch.bool),
        torch.tensor([0, 0, 1, 1]),
    )  # fmt: skip
    scored = {
        "logp": torch.tensor([[-1.0], [-2.0], [-3.0], [-2.0]]),
        "ref_logp": torch.tensor([[-2.0], [-1.0], [-2.0], [-2.0]]),
    }
    pairs = Pairs(torch.tensor([0, 2]), torch.tensor([1, 3]))  # m = 2, -1
    plain = dpo.terms[0].loss(scored, Batch(tokens, pairs))
    assert plain.tolist() == pytest.approx([0.3132617, 0.9740770])
    columns = {"margin": torch.tensor([1.0, 0.5]), "label_probability": torch.tensor([0.9, 0.25])}
    told = dpo.terms[0].loss(scored, Batch(tokens, pairs, columns))
    # z = 1 - 1 = 0 and -0.5 - 0.5 = -1: log 2, and 0.25 h(-1) + 0.75 h(1)
    assert told.tolist() == pytest.approx([0.6931472, 0.25 * 1.3132617 + 0.75 * 0.3132617])
    assert "label_probability" not in METHODS["dpo"](beta=0.5, label_smoothing=0.1).columns
