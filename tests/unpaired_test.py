"""Single completions judged good or bad: numbers of other code, what a baseline remembers, and what is logged of it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from softq.mdp.tabular import gradient
from softq.objectives import METHODS
from softq.objectives.unpaired import apo_unpaired, bco, kl_estimate, kto
from softq.records import Batch, Labels, Method, Tokens, implicit
from softq.training.loop import evaluate, train, with_columns
from softq.training.measure import measured, merged
from softq.training.update import AdamW
from softq.verify.tables import slope, some_models, some_step

GOLDEN = Path(__file__).parent.parent / "conformance/golden.json"
ENTRIES = {e["name"]: e for e in json.loads(GOLDEN.read_text())["entries"] if e["fixture"] == 1}
GOOD, BAD = [1.0, -1.0, 0.5], [0.5, 1.5, -4.0]  # the log-ratios of fixture 1


def numbers(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def step(good: int, bad: int, mismatched: int = 0, **memory: float) -> Batch:
    """Rows of one token: the good ones, the bad ones, those of another prompt."""
    B = good + bad + mismatched
    one = torch.ones(B, dtype=torch.bool)
    tokens = Tokens(torch.ones(B, 2, dtype=torch.int64), one[:, None], one, torch.arange(B))
    judged = torch.arange(good + bad)
    labels = Labels(judged, judged < good, torch.arange(good + bad, B))
    return Batch(tokens, labels, {name: numbers(value)[0] for name, value in memory.items()})


def loss_of(method: Method, batch: Batch) -> Callable[[Tensor], Tensor]:
    """The loss as a function of the log-ratios [B]."""
    (term,) = method.terms
    batch = with_columns(batch, {name: value for name, value in method.memory.items() if name not in batch.columns})

    def loss(ratio: Tensor) -> Tensor:
        scored = {"logp": ratio[:, None], "ref_logp": torch.zeros(len(ratio), 1, dtype=ratio.dtype)}
        return (term.loss(scored, batch) * term.weigh(batch)).sum()

    return loss


@pytest.mark.parametrize(
    ("name", "method", "memory"),
    [
        ("kto", kto(beta=0.5, baseline="running"), {"kl_running": 0.2}),
        ("kto", kto(beta=0.5, baseline="dataset"), {"kl_dataset": 0.2}),
        ("bco", bco(beta=0.5, shift="batch"), {}),
        ("bco", bco(beta=0.5), {"delta": -0.125}),
        ("apo_zero_unpaired", apo_unpaired(beta=0.5), {}),
    ],
)
def test_golden_numbers(name: str, method: Method, memory: dict) -> None:
    expected, at = ENTRIES[name]["expected"], numbers(*GOOD, *BAD)
    loss = loss_of(method, step(3, 3, **memory))
    assert loss(at).item() == pytest.approx(expected["mean"], rel=1e-12)
    pulls = expected["grad_mean_wrt_LP_w"] + expected["grad_mean_wrt_LP_l"]
    assert gradient(loss, at).tolist() == pytest.approx(pulls, rel=1e-12)


@pytest.mark.parametrize("good", [True, False])
def test_kto_pulls_most_where_the_reward_meets_the_baseline(good: bool) -> None:
    """|d loss/d L| = λ β σ(u) σ(-u), u = β(L - z0), of a good and of a bad completion: β λ/4 at u = 0."""
    method = kto(beta=2.0, desirable_weight=1.2, undesirable_weight=0.8, baseline="running")
    loss = loss_of(method, step(int(good), int(not good), kl_running=0.3))
    weight = 1.2 if good else 0.8
    at = {x: gradient(loss, numbers(x)).item() for x in (0.3, 0.1, 0.5, -9.7, 10.3)}
    assert at[0.3] == pytest.approx((-1 if good else 1) * 2 * weight / 4, rel=1e-12)
    assert abs(at[0.1]) == pytest.approx(abs(at[0.5]))
    assert abs(at[0.1]) < abs(at[0.3])
    assert 0 < max(abs(at[-9.7]), abs(at[10.3])) < 1e-8


@pytest.mark.parametrize("baseline", ["running", "dataset"])
def test_a_remembered_baseline_below_zero_counts_as_zero(baseline: str) -> None:
    at, batch = numbers(0.7, -0.4), with_columns(step(1, 1), {f"kl_{baseline}": numbers(-0.9)[0]})
    found = loss_of(METHODS["kto"](beta=2.0, baseline=baseline), batch)(at)
    assert found == loss_of(apo_unpaired(beta=2.0), batch)(at)


def test_for_any_shift_the_loss_of_a_good_and_a_bad_one_is_at_least_that_of_the_pair() -> None:
    """h(u - δ) + h(-(v - δ)) ≥ h(u - v), over a grid of u, v and δ; nearly equal somewhere."""
    gaps = []
    for u in (-3.0, 0.0, 2.0, 6.0):
        for v in (-6.0, -1.0, 0.5, 4.0):
            for delta in (-5.0, -0.3, 0.0, 1.0):
                both = 2 * loss_of(bco(beta=1.0), step(1, 1, delta=delta))(numbers(u, v)).item()
                gaps.append(both - torch.nn.functional.softplus(numbers(v - u)).item())
    assert 0 < min(gaps) < 0.01


def test_a_constant_in_all_rewards_moves_the_shift_and_nothing_else() -> None:
    at, c = numbers(*GOOD, *BAD), 1.7
    batch = loss_of(bco(beta=0.5, shift="batch"), step(3, 3))
    assert batch(at + c).item() == pytest.approx(batch(at).item(), rel=1e-14)
    still, moved = (loss_of(bco(beta=0.5), step(3, 3, delta=delta)) for delta in (0.2, 0.2 + 0.5 * c))
    assert moved(at + c).item() == pytest.approx(still(at).item(), rel=1e-14)
    assert still(at + c).item() != pytest.approx(still(at).item(), rel=1e-3)


# --- what is remembered ---


def after(method: Method, batches: list[Batch], **settings) -> list:
    """Steps of training on these batches, the policy moving."""

    def source(of) -> Iterator[Batch]:
        yield from batches

    of = some_models(seed=3)
    return list(train(of, method, source, AdamW(of, steps=3, learning_rate=0.3), **settings))


@pytest.mark.parametrize("budget", [10**9, 7])
def test_memories_by_hand(budget: int) -> None:
    """Over three steps on the same records, while the policy moves: each baseline from the log-ratios that training saw."""
    for method, name, expected in (
        (kto(beta=0.5, baseline="running"), "kl_running", lambda m: 0.1 * (0.81 * m[0] + 0.9 * m[1] + m[2])),
        (kto(beta=0.5, baseline="dataset"), "kl_dataset", lambda m: sum(m) / 3),
    ):
        batches = [some_step(method)] * 3
        steps = after(method, batches, tokens_per_micro=budget)
        means = [one.metrics["kl"] for one in steps]
        assert steps[-1].memory[name].item() == pytest.approx(expected(means), rel=1e-12)
        assert steps[-1].metrics[name] == steps[-1].memory[name].item()
        assert len({round(mean, 6) for mean in means}) == 3
    steps = after(bco(beta=0.5), [some_step(bco())] * 3, tokens_per_micro=budget)
    rewards = [(one.metrics["rewards/chosen"] + one.metrics["rewards/rejected"]) / 2 for one in steps]
    assert steps[-1].memory["delta"].item() == pytest.approx(sum(rewards) / 3, rel=1e-12)
    assert steps[-1].memory["delta_count"].item() == 24


def test_a_step_is_read_by_the_next_one_and_not_by_itself() -> None:
    method = bco(beta=0.5)
    first, second = after(method, [some_step(method)] * 2)
    of = some_models(seed=3)
    assert first.metrics["loss"] == pytest.approx(slope(method, of, some_step(method)).loss.item(), rel=1e-12)
    told = evaluate(of, method, some_step(method), memory=first.memory)["loss"]
    assert told == pytest.approx(loss_at(of, method, first.memory["delta"].item()), rel=1e-12)
    assert abs(told - first.metrics["loss"]) > 1e-3
    assert second.memory["delta_count"] == 16


def loss_at(of, method: Method, delta: float) -> float:
    batch = some_step(method)
    reward = 0.5 * implicit(of(batch.tokens, method.needs), batch).detach()
    sign = torch.where(batch.labels.good, 1.0, -1.0)
    return torch.nn.functional.softplus(-sign * (reward - delta)).mean().item()


def test_the_mean_over_a_data_set_counts_every_mismatched_completion_once() -> None:
    """Steps of two and of six completions: the mean is over eight, not over two means."""
    method = kto(baseline="dataset")
    assert method.remember
    memory = method.memory
    for ratios in ([0.1, 0.3], [1.0, 1.0, 2.0, 2.0, 4.0, 2.0]):
        batch = step(1, 1, len(ratios))
        scored = {"logp": numbers(0, 0, *ratios)[:, None], "ref_logp": torch.zeros(len(ratios) + 2, 1)}
        memory = method.remember(memory, scored, batch)
    assert memory["kl_dataset"].item() == pytest.approx(12.4 / 8, rel=1e-12)
    assert memory["kl_dataset_count"] == 8


def test_only_a_baseline_of_the_step_couples_its_records() -> None:
    assert [METHODS["kto"](baseline=name).coupled for name in ("batch", "running", "dataset")] == [True, False, False]
    assert [METHODS["bco"](shift=name).coupled for name in ("batch", "running")] == [True, False]
    assert not METHODS["apo_unpaired"]().coupled
    assert [method.stops for method in (kto(), bco(shift="batch"), kto(baseline="running"), bco())] == [
        True,
        True,
        False,
        False,
    ]
    at, moved = numbers(0.2, -0.3, 0.5), numbers(0.2, -0.3, 1.5)
    for name, same in (("batch", False), ("running", True)):
        loss = loss_of(METHODS["kto"](beta=1.0, baseline=name), step(1, 1, 1))
        assert torch.equal(gradient(loss, at)[:2], gradient(loss, moved)[:2]) == same
        assert gradient(loss, at)[2] == 0


# --- what is logged, and what is refused ---


def test_kl_is_logged_as_it_is() -> None:
    batch = step(1, 1, 2)
    scored = {"logp": numbers(0.5, 0.5, -0.7, 0.1)[:, None], "ref_logp": torch.zeros(4, 1)}
    assert merged([measured(kto(), scored, batch)])["kl"] == pytest.approx(-0.3)
    assert kl_estimate(scored, batch).item() == pytest.approx(-0.3)
    assert "kl" not in measured(bco(), scored, step(2, 2))


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (kto, {"baseline": "step"}, "baseline is 'step'; expected one of batch, running, dataset"),
        (kto, {"desirable_weight": 0.0}, "desirable_weight is 0.0; expected desirable_weight > 0"),
        (kto, {"undesirable_weight": -1.0}, "undesirable_weight is -1.0; expected undesirable_weight > 0"),
        (bco, {"shift": "dataset"}, "shift is 'dataset'; expected one of running, batch"),
    ],
)
def test_a_setting_out_of_its_range_is_one_clear_line(make: Callable, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_a_baseline_without_completions_of_other_prompts_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least two records a step"):
        loss_of(kto(), step(1, 1))(numbers(0.1, 0.2))
