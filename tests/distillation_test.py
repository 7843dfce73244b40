"""AlignDistil: the teacher's golden numbers, its limits, and that it is not the optimum of a sequence's reward."""

import json
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from softq.mdp.readouts import extrapolated, kl, step_size
from softq.mdp.soft import sequence_kl
from softq.mdp.tabular import TabularLM, along, every_trajectory, random_table, token_tree
from softq.objectives import METHODS
from softq.objectives.sums import weighted_sum
from softq.records import Batch, Pairs
from softq.training.plan import scored_by
from softq.verify.tables import OWN, models, rows, slope, some_models

GOLDEN = {
    (e["fixture"], e["name"]): e
    for e in json.loads((Path(__file__).parent.parent / "conformance/golden.json").read_text())["entries"]
}
TREE = token_tree([(5,)], vocabulary=2, horizon=2)  # root, a, b
LEAVES = every_trajectory(TREE)


def numbers(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_golden_teacher() -> None:
    entry = GOLDEN[2, "aligndistil_teacher"]
    dpo, reverse = (numbers(*entry["inputs"][f"logits_{name}"]).log_softmax(-1) for name in ("dpo", "reverse"))
    alpha, wanted = step_size(dpo, reverse, 10.0, 0.001), entry["expected"]
    assert alpha.tolist() == pytest.approx(wanted["alpha"], abs=1e-12)
    assert ((alpha - 0.001) / 10).tolist() == pytest.approx(wanted["tvd"], abs=1e-12)
    teacher = extrapolated(dpo, reverse, alpha).exp()
    assert teacher.tolist() == [pytest.approx(row, abs=1e-12) for row in wanted["teacher"]]
    whole = (dpo.exp() - reverse.exp()).abs().sum(-1)
    assert abs(10 * whole[0] + 0.001 - wanted["alpha"][0]) > 2  # the official code's distance, without the ½


def test_its_limits() -> None:
    dpo, reverse = (random_table(TREE, seed).log_softmax(-1) for seed in (1, 2))
    same = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(extrapolated(dpo, reverse, same), dpo)  # α = 0: the DPO model
    assert step_size(dpo, dpo, 20.0, 0.001).tolist() == [0.001] * 3
    torch.testing.assert_close(extrapolated(dpo, dpo, same + 7), dpo)
    far = step_size(numbers([0.0, -90.0]), numbers([-90.0, 0.0]), 1.0, 0.0)
    assert far.item() == pytest.approx(1.0)  # the largest distance
    shifted = extrapolated(dpo + 3, reverse - 8, same + 2)
    torch.testing.assert_close(shifted, extrapolated(dpo, reverse, same + 2))


@pytest.mark.parametrize("w", [0.5, 2.0])
def test_the_token_teacher_is_not_the_sequence_optimum(w: float) -> None:
    """π_ref^(1-w) π*^w, normalised a token at a time, and once: the numbers of fixture 3, and their distance."""
    best = GOLDEN[3, "soft_optimum"]["expected"]["pi_star"]
    ref, star = (
        numbers(*(table[state] for state in ("root", "a", "b"))).log()
        for table in (GOLDEN[3, "soft_optimum"]["inputs"]["ref"], best)
    )
    wanted = GOLDEN[3, f"mixing_w{w:g}"]["expected"]
    teacher = along(TREE, extrapolated(star, ref, torch.full((3,), w - 1, dtype=torch.float64)), LEAVES).sum(-1)
    assert teacher.exp().tolist() == pytest.approx(wanted["token_teacher"], abs=1e-12)
    sequence = (along(TREE, ref, LEAVES).sum(-1) * (1 - w) + along(TREE, star, LEAVES).sum(-1) * w).log_softmax(-1)
    assert sequence.exp().tolist() == pytest.approx(wanted["sequence_optimum"], abs=1e-12)
    apart = sequence_kl(teacher, sequence, LEAVES.prompt).item()
    assert apart == pytest.approx(wanted["KL_token_sequence"], abs=1e-12)
    assert apart > 1e-3


def test_training_rests_at_the_token_teacher_and_not_at_the_sequence_optimum() -> None:
    """α = 1 from π* away from π_ref is w = 2: there the loss and its gradient are 0, at the sequence optimum they are not."""
    ref = numbers([0.6, 0.4], [0.5, 0.5], [0.9, 0.1]).log()
    star = numbers(*(GOLDEN[3, "soft_optimum"]["expected"]["pi_star"][state] for state in ("root", "a", "b"))).log()
    method = METHODS["aligndistil"](beta=0.5, ratio=0.0, epsilon=1.0)
    batch, others = Batch(LEAVES), {"dpo": star, "reverse": ref}
    token = (2 * star - ref).log_softmax(-1)
    found = slope(method, models(token, ref, TREE, others), batch)
    assert abs(found.loss) < 1e-14
    assert found.gradient.abs().max() < 1e-14
    sums = numbers(*GOLDEN[3, "mixing_w2"]["expected"]["sequence_optimum"]).view(2, 2)
    sequence = torch.stack([sums.sum(-1), *(sums / sums.sum(-1, keepdim=True))]).log()
    assert slope(method, models(sequence, ref, TREE, others), batch).gradient.abs().max() > 1e-5


def test_the_loss_by_hand() -> None:
    """mean over rows of (1/|y|) Σ_t β/α_t KL(π‖teacher): rows of one and three actions."""
    method = METHODS["aligndistil"](beta=0.3, ratio=4.0, epsilon=0.2)
    of, tokens = some_models(), rows(OWN[:2])
    told, policy = cast(dict[str, TabularLM], of), cast(TabularLM, of["policy"])
    of_dpo, of_reverse = (told[name].table.detach().log_softmax(-1) for name in ("dpo", "reverse"))
    alpha = step_size(of_dpo, of_reverse, 4.0, 0.2)
    each = 0.3 / alpha * kl(policy.table.detach().log_softmax(-1), extrapolated(of_dpo, of_reverse, alpha))
    means = []
    for ids, action in zip(tokens.ids.tolist(), tokens.action, strict=True):
        states = [policy.rows[tuple(ids[: t + 1])] for t in action.nonzero()[:, 0].tolist()]
        means.append(sum(each[s].item() for s in states) / len(states))
    assert len({int(row.sum()) for row in tokens.action}) == 2
    assert slope(method, of, Batch(tokens)).loss.item() == pytest.approx(sum(means) / 2, rel=1e-12)


def test_only_the_policy_has_a_gradient() -> None:
    method, of = METHODS["aligndistil"](), some_models()
    for name in ("dpo", "reverse"):
        of[name].requires_grad_(True)
    scored = scored_by(of, Batch(rows([0, 30])), method)
    scored["distillation"].sum().backward()
    assert of["policy"].table.grad is not None  # pyright: ignore[reportAttributeAccessIssue]
    assert of["dpo"].table.grad is None  # pyright: ignore[reportAttributeAccessIssue]


def test_in_a_sum_it_reads_the_chosen_rows_alone() -> None:
    method, of, tokens = METHODS["aligndistil"](), some_models(), rows([0, 30, 5, 17], [0, 0, 1, 1])
    pairs = Batch(tokens, Pairs(torch.tensor([0, 2]), torch.tensor([1, 3])))
    both = weighted_sum([(METHODS["dpo"](), 0.0), (method, 1.0)])
    alone = Batch(rows([0, 5]))
    one, other = slope(both, of, pairs), slope(method, of, alone)
    torch.testing.assert_close(one.loss, other.loss, rtol=0, atol=1e-14)
    torch.testing.assert_close(one.gradient, other.gradient, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "expected beta > 0"),
        ({"epsilon": 0.0}, "epsilon is 0.0; expected epsilon > 0"),
        ({"ratio": -1.0}, "ratio is -1.0; expected ratio ≥ 0"),
    ],
)
def test_a_setting_out_of_range_is_one_clear_line(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METHODS["aligndistil"](**settings)
