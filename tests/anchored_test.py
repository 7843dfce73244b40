"""DPO with an anchor: golden numbers, the kink, and what each anchor adds."""

import itertools
import math

import pytest
import torch
from golden_steps import golden, of_ratios, seen, step, tensor, total

from softq.objectives import METHODS
from softq.objectives.sums import weighted_sum

GRID = list(itertools.product((-3.0, -0.4, 0.0, 0.6, 2.0), repeat=2))
DPO = METHODS["dpo"](beta=0.5)


def h(z: float) -> float:
    return math.log1p(math.exp(-z))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_golden_numbers(dtype: torch.dtype) -> None:
    golden(METHODS["dpop"](beta=0.5, penalty=5.0), "dpop", dtype)
    golden(METHODS["rpo"](beta=0.5), "sigmoid", dtype)
    golden(METHODS["dpo_anchor"](beta=0.5), "sigmoid", dtype)


@pytest.mark.parametrize("name", ["dpop", "rpo", "dpo_anchor"])
@pytest.mark.parametrize("ratios", list(itertools.product((-1e4, 0.0, 1e4), repeat=2)))
def test_far_ratios_are_finite_in_float32(name: str, ratios: tuple[float, float]) -> None:
    loss, slopes = of_ratios(METHODS[name](), *ratios, dtype=torch.float32)
    assert all(map(math.isfinite, (loss, *slopes)))


@pytest.mark.parametrize(("name", "setting"), [("dpop", "penalty"), ("rpo", "alpha")])
def test_a_negative_anchor_is_refused(name: str, setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} is -0.1; expected {setting} ≥ 0"):
        METHODS[name](**{setting: -0.1})


def test_dpop_is_dpo_while_the_chosen_is_at_least_as_likely_as_in_the_reference() -> None:
    for w, low in GRID:
        found, dpo = of_ratios(METHODS["dpop"](beta=0.5, penalty=7.0), w, low), of_ratios(DPO, w, low)
        if w > 0:
            assert found == dpo
        elif w < 0:
            assert found[0] > dpo[0] + 0.01
        assert of_ratios(METHODS["dpop"](beta=0.5, penalty=0.0), w, low) == dpo


def test_dpop_pushes_a_fallen_chosen_one_up_by_one_more_than_the_penalty() -> None:
    """At the argument m - λ|L_w| it has DPO's slopes there, that of L_w times 1 + λ: the penalty stands inside of h."""
    value, (up, down) = of_ratios(METHODS["dpop"](beta=0.5, penalty=3.0), -0.4, 0.6)
    same, (dpo_up, dpo_down) = of_ratios(DPO, -0.4 - 3 * 0.4, 0.6)
    assert value == pytest.approx(same, rel=1e-14)
    assert up == pytest.approx(4 * dpo_up, rel=1e-12)
    assert down == pytest.approx(dpo_down, rel=1e-12)


def test_dpop_is_continuous_with_a_kink() -> None:
    method = METHODS["dpop"](beta=0.5, penalty=3.0)
    (left, (steep, _)), (right, (flat, _)) = (of_ratios(method, by, 0.6) for by in (-1e-9, 1e-9))
    assert left == pytest.approx(right, abs=1e-8)
    assert steep == pytest.approx(4 * flat, rel=1e-6)


def test_dpop_scores_what_its_margin_is_made_of() -> None:
    method, batch = METHODS["dpop"](beta=0.5, penalty=3.0), step()
    scored = seen(batch, tensor(-0.4, -0.6), tensor(0.0, 0.0))
    assert method.reward(scored, batch).tolist() == pytest.approx([-1.6, -0.6], rel=1e-12)
    assert total(method, scored, batch).item() == pytest.approx(h(0.5 * (-1.6 + 0.6)), rel=1e-12)


def test_rpo_means_each_completion_by_itself() -> None:
    """Chosen answers of 2 and 3 tokens, 1 and 2.5 nats: (0.5 + 0.833)/2 a pair, and not 3.5/5 a token as in dpo + sft."""
    batch = step(lengths=[2, 3, 4, 1], P=2)
    scored = seen(batch, tensor(-1.0, -2.5, -3.0, -0.5), tensor(-2.0, -2.0, -3.0, -1.0))
    pair = (h(0.5 * (1.0 - 0.0)) + h(0.5 * (-0.5 - 0.5))) / 2
    anchor = (0.5 + 2.5 / 3) / 2
    assert total(METHODS["rpo"](beta=0.5, alpha=0.4), scored, batch).item() == pytest.approx(pair + 0.4 * anchor)
    trl = weighted_sum([(DPO, 1.0), (METHODS["sft"](), 0.4)])
    assert total(trl, scored, batch).item() == pytest.approx(pair + 0.4 * 0.7)


def test_a_pairs_weight_and_margin_count_in_a_sum() -> None:
    """A weight for both parts, a margin for DPO's."""
    batch = step(lengths=[2, 3, 4, 1], P=2, weight=tensor(3.0, 1.0), margin=tensor(0.2, 0.0))
    scored = seen(batch, tensor(-1.0, -2.5, -3.0, -0.5), tensor(-2.0, -2.0, -3.0, -1.0))
    pair = 0.75 * h(0.5 - 0.2) + 0.25 * h(-0.5)
    rpo = pair + 0.4 * (0.75 * 0.5 + 0.25 * 2.5 / 3)
    assert total(METHODS["rpo"](beta=0.5, alpha=0.4), scored, batch).item() == pytest.approx(rpo, rel=1e-12)
    anchored = pair + 0.75 * h(0.5 - 0.1) + 0.25 * h(-0.25 - 0.1)
    found = total(METHODS["dpo_anchor"](beta=0.5, delta=0.1), scored, batch).item()
    assert found == pytest.approx(anchored, rel=1e-12)


def test_the_reward_anchor_lifts_the_chosen_one_alone() -> None:
    """h(βm) + h(βL_w - δ): at the reference with δ = 0 the chosen one has twice DPO's slope, the rejected one the same."""
    loss, slopes = of_ratios(METHODS["dpo_anchor"](beta=0.5), 0.0, 0.0)
    assert loss == pytest.approx(2 * math.log(2), rel=1e-12)
    assert slopes == pytest.approx([-0.5, 0.25], rel=1e-12)
    for w, low in GRID:
        found = of_ratios(METHODS["dpo_anchor"](beta=0.5, delta=0.7), w, low)[0]
        assert found == pytest.approx(h(0.5 * (w - low)) + h(0.5 * w - 0.7), rel=1e-12)
