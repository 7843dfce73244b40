"""Pairs whose sides are each held to a point of their own: golden numbers, what each pushes where, and where it rests."""

import itertools
import math

import pytest
import torch
from golden_steps import GOLDEN, golden, of_ratios, seen, step, tensor, total
from torch import Tensor

from softq.mdp.tabular import along, every_pair, every_trajectory, policy_of, random_table
from softq.objectives import METHODS
from softq.objectives.sums import weighted_sum
from softq.records import Batch, Method, Pairs
from softq.verify.contract import CONTRACT
from softq.verify.populations import SMALL, Population
from softq.verify.tables import slope

SIDES = {
    "nca": "nca_pair",
    "bco_pair": "bco_pair",
    "sppo_hard": "sppo_hard",
    "apo_zero": "apo_zero",
    "apo_down": "apo_down",
}
GRID = list(itertools.product((-9.0, -2.0, -0.3, 0.0, 0.7, 4.0), repeat=2))


def made(name: str, beta: float = 0.5) -> Method:
    return METHODS[name](beta=beta)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", SIDES)
def test_golden_numbers(name: str, dtype: torch.dtype) -> None:
    golden(made(name), SIDES[name], dtype)


@pytest.mark.parametrize("name", SIDES)
def test_at_the_reference_and_beside_it(name: str) -> None:
    """The closed value at L = 0; a constant added to both log-ratios changes no margin, and changes these losses."""
    at = of_ratios(made(name), 0.0, 0.0)[0]
    assert at == pytest.approx(GOLDEN["at_reference"]["expected"][SIDES[name]], rel=1e-12)
    assert abs(of_ratios(made(name), 1.4, 0.9)[0] - of_ratios(made(name), 0.5, 0.0)[0]) > 1e-3


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("ratios", list(itertools.product((-1e4, 0.0, 1e4), repeat=2)))
def test_far_ratios_are_finite_in_float32(name: str, ratios: tuple[float, float]) -> None:
    loss, slopes = of_ratios(METHODS[name](), *ratios, dtype=torch.float32)
    assert all(map(math.isfinite, (loss, *slopes)))


def test_nca_holds_the_chosen_at_log_two() -> None:
    """β = 0.5: L_w rises below log 4, rests there, and falls above; the rejected one always falls."""
    slopes = [of_ratios(made("nca"), math.log(4) + by, -0.3)[1][0] for by in (-0.2, 0.0, 0.2)]
    assert slopes[0] < -0.01
    assert slopes[1] == pytest.approx(0, abs=1e-15)
    assert slopes[2] > 0.01
    assert all(of_ratios(made("nca"), w, low)[1][1] > 0 for w, low in GRID)


def drawn_from_the_reference(share: float) -> tuple[Population, Tensor]:
    """Pairs of two independent draws from π_ref^share, labelled by σ(R_w - R_l); and how often each completion wins."""
    leaves, reference = every_trajectory(SMALL), random_table(SMALL, 12).log_softmax(-1)
    reward = along(SMALL, random_table(SMALL, 11), leaves).sum(-1)
    chance = (share * along(SMALL, reference, leaves).sum(-1)).exp()
    i, j = every_pair(leaves.prompt)
    alone = torch.arange(len(leaves.ended))  # two draws may be the same
    i, j = torch.cat([i[i != j], alone]), torch.cat([j[i != j], alone])
    weight = chance[i] * chance[j] * torch.sigmoid(reward[i] - reward[j])
    wins, loses = (torch.zeros_like(chance).index_add(0, rows, weight) for rows in (i, j))
    batch = Batch(leaves, Pairs(i, j), {"weight": weight})
    return Population(SMALL, reference, batch), wins / (wins + loses)


def steepest(method: Method, whole: Population, wins: Tensor) -> float:
    """The slope at π ∝ π_ref 2P(wins)."""
    logp = along(SMALL, whole.reference, whole.batch.tokens).sum(-1) + (2 * wins).log()
    policy = policy_of(SMALL, whole.batch.tokens, logp)
    return float(slope(method, whole.at(policy), whole.batch).gradient.abs().max())


def test_nca_rests_at_twice_the_win_rate_where_pairs_are_drawn_from_the_reference() -> None:
    whole, wins = drawn_from_the_reference(1.0)
    assert steepest(made("nca", 1.0), whole, wins) < 1e-15
    assert steepest(made("nca", 0.8), whole, wins) > 1e-3
    assert steepest(made("bco_pair", 1.0), whole, wins) > 1e-3
    assert steepest(made("nca", 1.0), *drawn_from_the_reference(0.5)) > 1e-4


@pytest.mark.parametrize("shift", [-3.0, 0.0, 0.4])
def test_bco_is_at_least_dpo_whatever_its_threshold(shift: float) -> None:
    """h(u - δ) + h(δ - v) ≥ h(u - v): the product of the two odds is theirs."""
    for u, v in GRID:
        assert of_ratios(made("bco_pair"), u - shift, v - shift)[0] > of_ratios(METHODS["dpo"](beta=0.5), u, v)[0]


def test_sppo_is_least_half_an_eta_on_both_sides_and_twice_the_papers_mean() -> None:
    eta = 1 / 0.25
    assert of_ratios(made("sppo_hard", 0.25), eta / 2, -eta / 2) == (0, [0, 0])
    for w, low in GRID:
        official = ((w - eta * (1 - 0.5)) ** 2 + (low - eta * (0 - 0.5)) ** 2) / 2
        assert of_ratios(made("sppo_hard", 0.25), w, low)[0] == pytest.approx(2 * official, rel=1e-12)


def shared(method: Method, margin: float) -> float:
    """The slope in the margin of one pair that has all the mass; the reference prefers the chosen one by 0.3."""
    ref = tensor(0.3, 0.0).log_softmax(0)
    by = tensor(margin).requires_grad_()
    batch = step()
    policy = torch.cat([by + 0.3, tensor(0.0)]).log_softmax(0)
    return torch.autograd.grad(total(method, seen(batch, policy, ref), batch), by)[0].item()


def test_sppo_rests_where_its_two_sides_pull_alike() -> None:
    """By bisection of 1/(2β) - L_w (1-p) + L_l p, with β = 0.5."""
    low, high = 0.0, 3.0
    ref = math.exp(0.3) / (1 + math.exp(0.3))
    for _ in range(60):
        margin = (low + high) / 2
        p = 1 / (1 + math.exp(-margin - 0.3))
        pull = 1.0 - math.log(p / ref) * (1 - p) + math.log((1 - p) / (1 - ref)) * p
        low, high = (margin, high) if pull > 0 else (low, margin)
    assert CONTRACT["sppo_hard"].rests == pytest.approx(low, abs=1e-12)
    assert shared(made("sppo_hard"), low) == pytest.approx(0, abs=1e-12)


def test_apo_zero_moves_both_sides_apart_always_and_is_bounded() -> None:
    for w, low in GRID:
        loss, (up, down) = of_ratios(made("apo_zero"), w, low)
        assert 0 < loss < 2
        assert up < 0 < down


def test_apo_down_by_its_derivatives() -> None:
    """β [σ'(βL_w) - σ'(βm)] in L_w, of either sign; β σ'(βm) in L_l."""

    def bend(z: float) -> float:
        return 1 / (1 + math.exp(-z)) / (1 + math.exp(z))

    signs = set()
    for w, low in GRID:
        loss, slopes = of_ratios(made("apo_down"), w, low)
        assert 0 < loss < 2
        expected = 0.5 * (bend(0.5 * w) - bend(0.5 * (w - low))), 0.5 * bend(0.5 * (w - low))
        assert slopes == pytest.approx(expected, rel=1e-9, abs=1e-15)
        signs.add(slopes[0] > 1e-6)
    assert signs == {True, False}


def test_apo_down_gives_up_a_pair_that_is_far_wrong_where_the_two_share_all_mass() -> None:
    assert shared(made("apo_down"), -6.0) > 0.005
    assert shared(made("apo_down"), 0.0) < -0.03
    assert shared(made("apo_zero"), -6.0) < -0.005


def test_mpo_is_a_sum() -> None:
    """0.8 sigmoid + 0.2 bco_pair + sft at the reference: 1.2 log 2 and the cross-entropy, a mean over 5 chosen tokens."""
    mpo = weighted_sum([(METHODS["dpo"](), 0.8), (made("bco_pair"), 0.2), (METHODS["sft"](), 1.0)])
    batch = step(lengths=[2, 3, 4, 1], P=2)
    logp = tensor(-1.0, -2.5, -3.0, -0.5)
    assert total(mpo, seen(batch, logp, logp), batch).item() == pytest.approx(1.2 * math.log(2) + 3.5 / 5, rel=1e-12)
