"""Groups of scored completions: numbers of other code, ties, identities, and where drawn rankings come to rest."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from grouped import close, groups, loss_of, numbers, values
from torch import Tensor

from softq.mdp.tabular import gradient
from softq.objectives import METHODS
from softq.objectives.links import group_mean, group_pairs
from softq.objectives.rankings import all_pairs, best_vs_rest, exo_k, infonca, nca_k, plackett_luce, sppo
from softq.records import Method

GOLDEN = Path(__file__).parent.parent / "conformance/golden.json"
ENTRIES = {(e["fixture"], e["name"]): e for e in json.loads(GOLDEN.read_text())["entries"]}
W, L = [1.0, -1.0, 0.5], [0.5, 1.5, -4.0]  # the log-ratios of fixture 1, chosen and rejected


def h(z: float) -> float:
    return math.log1p(math.exp(-z))


@pytest.mark.parametrize(("name", "make"), [("infonca", infonca), ("nca", nca_k), ("exo_k", exo_k)])
def test_golden_numbers_of_three(name: str, make: Callable[..., Method]) -> None:
    entry = ENTRIES[4, name]
    loss = loss_of(make(beta=0.5, alpha=0.5), groups(entry["inputs"]["rewards"]))
    at = numbers(*entry["inputs"]["L"])
    close(loss(at), numbers(entry["expected"]["mean"])[0])
    close(gradient(loss, at), numbers(*entry["expected"]["grad_wrt_L"]))


@pytest.mark.parametrize(
    ("name", "method", "times"),
    [
        ("nca_pair", nca_k(beta=0.5, alpha=0.001), 1),
        ("exo_pair", exo_k(beta=0.5, alpha=1 / math.log(0.999 / 0.001)), 1),
        ("sigmoid", plackett_luce(beta=0.5), 1),
        ("sigmoid", best_vs_rest(beta=0.5), 1),
        ("sigmoid", all_pairs(beta=0.5), 1),
        ("sppo_hard", sppo(beta=0.5), 2),  # the official loss is the mean over both sides
    ],
)
def test_golden_numbers_of_pairs(name: str, method: Method, times: float) -> None:
    """On groups of two with scores 1 and 0 each is the loss of pairs."""
    expected, batch = ENTRIES[1, name]["expected"], groups([1, 0], [1, 0], [1, 0])
    at = numbers(*itertools.chain(*zip(W, L, strict=True)))
    loss = loss_of(method, batch)
    close(times * loss(at), numbers(expected["mean"])[0])
    pulls = zip(expected["grad_mean_wrt_LP_w"], expected["grad_mean_wrt_LP_l"], strict=True)
    close(times * gradient(loss, at), numbers(*itertools.chain(*pulls)))


def test_sppo_with_soft_chances() -> None:
    entry = ENTRIES[1, "sppo_soft"]["expected"]
    batch = groups([0.8, 0.2], [0.8, 0.2], [0.8, 0.2])
    at = numbers(*itertools.chain(*zip(W, L, strict=True)))
    close(
        values(sppo(beta=0.5), at, batch),
        numbers(*itertools.chain(*zip(entry["loss_w"], entry["loss_l"], strict=True))),
    )
    rests = numbers(0.6, -0.6, 0.0)  # η (P - 1/2), η = 2; a chance of one half asks for nothing
    assert gradient(loss_of(sppo(beta=0.5), groups([0.8, 0.2, 0.5])), rests).abs().max() < 1e-15


@pytest.mark.parametrize(
    ("wrong", "told"),
    [(1.01, "scores from 0.5 to 1.01"), (-0.01, "scores from -0.01 to 0.5"), (math.nan, "scores from nan to nan")],
)
def test_sppo_refuses_scores_that_are_no_probabilities(wrong: float, told: str) -> None:
    with pytest.raises(ValueError, match=f"{told}; sppo reads them as win probabilities: expected 0 to 1"):
        values(sppo(), numbers(0.0, 0.0), groups([0.5, wrong]))


# --- identities of NCA, InfoNCA and EXO ---

SCORES, RATIOS = [0.8, 0.2, -0.5], numbers(1.0, 0.5, -0.7)


@pytest.mark.parametrize("make", [infonca, nca_k, exo_k])
def test_a_constant_in_all_scores_changes_nothing(make: Callable[..., Method]) -> None:
    method = make(beta=0.5, alpha=0.5)
    one, other = (values(method, RATIOS, groups([r + c for r in SCORES])) for c in (0.0, 3.0))
    close(one, other)


def test_a_constant_in_all_ratios_is_seen_by_nca_alone() -> None:
    batch = groups(SCORES)
    moves = {}
    for make in (infonca, exo_k, nca_k):
        here, there = (values(make(beta=0.5, alpha=0.5), RATIOS + c, batch) for c in (0.0, 2.0))
        moves[make] = abs(float(there - here))
    assert max(moves[infonca], moves[exo_k]) < 1e-12
    assert moves[nca_k] > 0.1


def test_nca_holds_each_completion_to_a_place_of_its_own() -> None:
    """βL_k = log(K softmax(r/α)_k); with a one-hot target of two that is log 2, above which it pushes down."""
    soft = (numbers(*SCORES) / 0.5).softmax(0)
    loss = loss_of(nca_k(beta=0.5, alpha=0.5), groups(SCORES))
    assert gradient(loss, (3 * soft).log() / 0.5).abs().max() < 1e-15
    pair = loss_of(nca_k(beta=0.5, alpha=0.001), groups([1, 0]))
    below, at, above = (gradient(pair, numbers((math.log(2) + d) / 0.5, -1.0)) for d in (-0.1, 0.0, 0.1))
    assert below[0] < -1e-3
    assert abs(at[0]) < 1e-15
    assert above[0] > 1e-3
    assert min(below[1], at[1], above[1]) > 0  # and the worse one down, wherever it is


def test_exo_is_least_at_its_margin_and_gives_a_lost_pair_no_gradient() -> None:
    """Of two: 0 at z* = log((1-ε)/ε), q(1-q)(z - z*) around it, and nothing for z to -∞, where dpo pulls with β."""
    loss = loss_of(exo_k(beta=1.0, alpha=1 / math.log(0.999 / 0.001)), groups([1, 0]))
    rest = math.log(0.999 / 0.001)
    assert loss(numbers(rest, 0.0)).item() == pytest.approx(0, abs=1e-15)
    for z in (-2.0, 0.5, 8.0):
        q = 1 / (1 + math.exp(-z))
        assert gradient(loss, numbers(z, 0.0))[0].item() == pytest.approx(q * (1 - q) * (z - rest), rel=1e-9)
        assert loss(numbers(z, 0.0)) > 0
    lost = numbers(-60.0, 0.0)
    assert abs(gradient(loss, lost)[0]) < 1e-20
    assert gradient(loss_of(plackett_luce(beta=1.0), groups([1, 0])), lost)[0].item() == pytest.approx(-1)


# --- rankings ---


def test_plackett_luce_by_hand() -> None:
    """Odds 4, 2, 1 ranked c, a, b: -log(1/7) - log(4/6); with a and b tied: -log(1/7), and each by itself."""
    at, method = numbers(4, 2, 1).log() / 0.5, plackett_luce(beta=0.5)
    close(values(method, at, groups([2, 1, 3])), numbers(math.log(7) + math.log(6 / 4)))
    close(values(method, at, groups([1, 1, 3])), numbers(math.log(7)))
    close(values(method, at, groups([3, 3, 1])), numbers(math.log(5 / 4) + math.log(3 / 2)))
    close(values(method, at, groups([1, 1, 1])), numbers(0.0))
    close(values(method, torch.zeros_like(at), groups([5, 1, 2])), numbers(math.log(6)))  # one of 3! orders


def test_pairs_by_hand() -> None:
    """Scores 2, 5, 5, 1, and a group of one, and one of ties: what is compared with what."""
    at = numbers(0.3, -0.2, 1.1, 0.4, 9.0, 1.0, -1.0)
    batch = groups([2, 5, 5, 1], [3], [1, 1])
    tops = [h(2 * (at[i] - at[j]).item()) for i in (1, 2) for j in (0, 3)]
    best, every = values(best_vs_rest(beta=2.0), at, batch), values(all_pairs(beta=2.0), at, batch)
    close(best, numbers(sum(tops) / 4, 0.0, 0.0))
    close(every, numbers((sum(tops) + h(2 * (at[0] - at[3]).item())) / 5, 0.0, 0.0))
    close(loss_of(all_pairs(beta=2.0), batch)(at), every[0] / 3)  # a group without a pair counts in the mean
    close(values(plackett_luce(beta=2.0), at, batch)[1:], numbers(0.0, 0.0))


def test_levels_of_trpa() -> None:
    """Its pairs among levels 2, 2 and 4 (no anisotropy): the mean over two, and of n_1 n_2 + … pairs none within a level."""
    entry = ENTRIES[4, "trpa"]
    ratio, level = numbers(*entry["inputs"]["mean_logratio"])[1:], entry["inputs"]["levels"][1:]
    found = values(all_pairs(beta=0.1), ratio, groups([-number for number in level]))
    close(found, numbers(sum(entry["expected"]["loss"][3:]) / 2))


TRUE = [0.3, -0.9, 1.2, 0.1]
REF = numbers(0.1, 0.4, 0.2, 0.3).log()


def chance(order: tuple[int, ...]) -> float:
    """Of a ranking drawn place by place by the odds e^R."""
    odds = [math.exp(TRUE[k]) for k in order]
    return math.prod(odds[n] / sum(odds[n:]) for n in range(len(odds)))


@pytest.mark.parametrize("make", [plackett_luce, best_vs_rest, all_pairs])
def test_over_drawn_rankings_each_rests_at_the_soft_optimum(make: Callable[..., Method]) -> None:
    """The expected gradient over all 4! rankings by the logits of π: 0 at π_ref e^{R/β}, and not at half or twice β."""
    beta, orders = 0.4, list(itertools.permutations(range(4)))
    assert sum(map(chance, orders)) == pytest.approx(1, abs=1e-15)

    def population(logits: Tensor) -> Tensor:
        ratio, total = logits.log_softmax(0) - REF, torch.zeros((), dtype=torch.float64)
        for order in orders:
            ranks = [4.0 - order.index(k) for k in range(4)]
            total = total + chance(order) * values(make(beta=beta), ratio, groups(ranks))[0]
        return total

    assert gradient(population, REF + numbers(*TRUE) / beta).abs().max() < 1e-15
    for other in (0.5 * beta, 2 * beta):
        assert gradient(population, REF + numbers(*TRUE) / other).abs().max() > 1e-2


# --- links ---


def test_pairs_and_means_of_groups() -> None:
    i, j = group_pairs(torch.tensor([1, 0, 1, 2]))
    assert sorted(zip(i.tolist(), j.tolist(), strict=True)) == [(0, 0), (0, 2), (1, 1), (2, 0), (2, 2), (3, 3)]
    many = torch.arange(300) % 3  # so many that a sort which is not stable shows
    i, j = group_pairs(many)
    assert [b for a, b in zip(i.tolist(), j.tolist(), strict=True) if a == 4] == list(range(1, 300, 3))
    assert group_mean(numbers(1, 2, 6), torch.tensor([2, 0, 2]), 4).tolist() == [2, 0, 3.5, 0]


@pytest.mark.parametrize("name", ["infonca", "nca_k", "exo_k"])
def test_alpha_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match="expected alpha > 0"):
        METHODS[name](alpha=0.0)
