"""The loop on tables: it reaches what theory says, counts everything once, and stops on what is not finite."""

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor

from softq.lm.score import Models, score
from softq.mdp.soft import state_kl
from softq.mdp.tabular import random_table
from softq.objectives import METHODS
from softq.objectives.policy_gradient import grpo
from softq.records import Batch, Method, Scored, Term, implicit
from softq.training.loop import evaluate, train
from softq.training.measure import measured, merged
from softq.training.plan import NonFiniteLoss
from softq.training.update import AdamW
from softq.verify.populations import population
from softq.verify.tables import some_models, some_step

close = {"rtol": 1e-10, "atol": 1e-12}


class Descent:
    """Plain gradient descent, so that a step can be checked by hand."""

    def __init__(self, of: Models, rate: float) -> None:
        self.parameters = [p for p in of.parameters() if p.requires_grad]
        self.rate = rate
        self.backward = torch.Tensor.backward

    def __call__(self) -> Mapping[str, float]:
        with torch.no_grad():
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter -= self.rate * parameter.grad
                    parameter.grad = None
        return {"learning_rate": self.rate}


def again(batch: Batch, times: int):
    def source(of: Models) -> Iterator[Batch]:
        for _ in range(times):
            yield batch

    return source


def test_the_loop_reaches_the_soft_optimum_from_a_random_table() -> None:
    method = METHODS["dpo"](beta=0.7)
    assert method.fixed_point
    whole = population(method.fixed_point)
    of, batch = whole.at(random_table(whole.tree, 4)), whole.batch
    update = AdamW(of, steps=400, learning_rate=0.2, schedule="cosine", max_grad_norm=1e9)
    *_, last = train(of, method, again(batch, 400), update)
    (target,) = whole.targets(method.fixed_point)
    assert state_kl(target, of["policy"].table.detach().log_softmax(-1)).max() < 1e-4
    assert last.metrics["learning_rate"] < 1e-4


@pytest.mark.parametrize("name", [*METHODS, "grpo"])
@pytest.mark.parametrize("budget", [1, 9])
def test_a_step_and_its_metrics_do_not_depend_on_the_micro_batches(name: str, budget: int) -> None:
    method = {**{n: make() for n, make in METHODS.items()}, "grpo": grpo()}[name]
    batch = some_step(method)
    results = []
    for tokens in (10**9, budget):
        of = some_models()
        (step,) = train(of, method, again(batch, 1), Descent(of, 0.1), tokens_per_micro=tokens)
        held = evaluate(of, method, batch, tokens_per_micro=tokens)
        results.append((of["policy"].table.detach(), step.metrics, held))
    (table, metrics, held), (split_table, split_metrics, split_held) = results
    torch.testing.assert_close(split_table, table, **close)
    assert split_metrics == pytest.approx(metrics, rel=1e-10)
    assert split_held == pytest.approx(held, rel=1e-10)
    assert held["loss"] != pytest.approx(metrics["loss"], rel=1e-8)  # where β is small a step moves little


def test_metrics_by_hand() -> None:
    """Two pairs: margins 3 (right) and 0 (a tie); the tie counts as wrong, and is named."""
    batch = some_step(METHODS["dpo"]())
    scored = {"logp": torch.zeros(8, 5, dtype=torch.float64), "ref_logp": torch.zeros(8, 5, dtype=torch.float64)}
    scored["logp"][0, 1], scored["logp"][1, 1] = -1.0, -2.5
    scored["ref_logp"][0, 1] = -2.0
    seen = merged([measured(METHODS["dpo"](beta=0.5), scored, batch)])
    assert seen["rewards/chosen"] == pytest.approx(0.5 * 1.0 / 4)
    assert seen["rewards/rejected"] == pytest.approx(0.5 * -2.5 / 4)
    assert seen["rewards/margins"] == pytest.approx(0.5 * 3.5 / 4)
    assert (seen["rewards/accuracies"], seen["rewards/ties"]) == (0.25, 0.75)
    assert seen["logps/chosen"] == pytest.approx(-1 / 4)
    assert seen["num_tokens"] == batch.tokens.action.sum()
    seen = merged([measured(METHODS["ipo"](beta=0.5), scored, batch)])
    length = int(batch.tokens.action[0].sum())
    assert seen["scores/chosen"] == pytest.approx(0.5 * 1.0 / length / 4)
    assert seen["rewards/chosen"] == pytest.approx(0.5 * 1.0 / 4)


def test_groups_are_measured_by_their_best_and_worst() -> None:
    method = METHODS["infonca"](beta=2.0)
    batch = some_step(method)
    batch = Batch(batch.tokens, None, {"reward": torch.tensor([1.0, 3, 2, 0, 5, 4, 7, 6], dtype=torch.float64)})
    logp = torch.zeros(8, 5, dtype=torch.float64)
    logp[:, 1] = torch.tensor([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8])
    seen = merged([measured(method, {"logp": logp, "ref_logp": torch.zeros_like(logp)}, batch)])
    assert seen["rewards/chosen"] == pytest.approx(2 * (0.2 + 0.4 + 1.6 + 6.4) / 4)
    assert seen["rewards/rejected"] == pytest.approx(2 * (0.1 + 0.8 + 3.2 + 12.8) / 4)
    assert seen["rewards/accuracies"] == 0.25


def test_a_loss_that_is_not_finite_names_its_records_and_moves_nothing() -> None:
    of = some_models()
    batch = some_step(METHODS["dpo"]())
    with torch.no_grad():
        of["ref"].table[1, :] = float("nan")  # the root of the second prompt
    before = of["policy"].table.detach().clone()
    for name in ("dpo", "aot"):
        method = METHODS[name]()
        with pytest.raises(NonFiniteLoss) as caught:
            list(train(of, method, again(some_step(method), 1), Descent(of, 0.1), tokens_per_micro=1))
        if name == "dpo":
            assert caught.value.prompts == [1]
    assert torch.equal(of["policy"].table.detach(), before)
    assert len(batch.pairs.chosen) == 4


def test_memory_is_a_column_and_is_remembered_after_each_step() -> None:
    """A baseline that is the running mean of the implicit reward, as BCO's: δ ← 0.5 δ + 0.5 mean L."""

    def loss(scored: Scored, batch: Batch) -> Tensor:
        return (implicit(scored, batch) - batch.columns["delta"]) ** 2

    def remember(memory: Mapping[str, Tensor], scored: Scored, batch: Batch) -> Mapping[str, Tensor]:
        return {"delta": 0.5 * memory["delta"] + 0.5 * implicit(scored, batch).mean()}

    def weigh(batch: Batch) -> Tensor:
        return torch.full((len(batch.tokens.ended),), 1 / 8, dtype=torch.float64)

    dpo = METHODS["dpo"]()
    start = {"delta": torch.tensor(0.25, dtype=torch.float64)}
    method = Method((Term("toy", "row", loss, weigh),), dpo.needs, memory=start, remember=remember)
    batch = some_step(dpo)
    for budget in (10**9, 1):
        of = some_models()
        expected = 0.25
        for step in train(of, method, again(batch, 3), Descent(of, 0.0), tokens_per_micro=budget):
            scored = score(of, batch.tokens, method.needs)
            ratio = implicit(scored, batch)
            assert step.metrics["loss"] == pytest.approx(((ratio - expected) ** 2).mean().item(), rel=1e-10)
            expected = 0.5 * expected + 0.5 * ratio.mean().item()
            assert step.memory["delta"].item() == pytest.approx(expected, rel=1e-10)


def test_weight_decay_draws_matrices_and_leaves_vectors() -> None:
    model = torch.nn.Linear(2, 2)
    torch.nn.init.ones_(model.weight)
    torch.nn.init.ones_(model.bias)
    update = AdamW(model, learning_rate=0.5, weight_decay=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    update()
    assert torch.allclose(model.weight, torch.full((2, 2), 1 - 0.5 * 0.1))
    assert torch.equal(model.bias, torch.ones(2))


def test_update_warms_up_clips_and_decays() -> None:
    of = some_models()
    update = AdamW(of, steps=6, learning_rate=1.0, warmup_steps=2, schedule="linear", max_grad_norm=0.5)
    rates, norms = [], []
    for _ in range(6):
        for parameter in update.parameters.values():
            parameter.grad = torch.full_like(parameter, 3.0)
        seen = update()
        rates.append(seen["learning_rate"])
        norms.append(seen["grad_norm"])
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    assert norms[0] == pytest.approx(3.0 * next(iter(update.parameters.values())).numel() ** 0.5)
    assert [len(update.parameters), of["ref"].table.requires_grad] == [1, False]
    next(iter(update.parameters.values())).grad = torch.full_like(next(iter(update.parameters.values())), float("inf"))
    before = next(iter(update.parameters.values())).detach().clone()
    with pytest.raises(FloatingPointError, match=r"norm is (inf|nan)"):
        update()
    assert torch.equal(next(iter(update.parameters.values())).detach(), before)
