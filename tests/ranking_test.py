"""Ranking accuracy, what the idealised policy would have, and the pairs it could not learn: golden numbers and both theorems."""

import json
from pathlib import Path

import numpy as np
import pytest
from shelves import Shelved, shelf_of

from softq.inspection.columns import ROWS
from softq.inspection.ranking import (
    ALPHA,
    GRID,
    Ranked,
    figures,
    findings,
    idealised,
    in_order,
    not_learnable,
    ranked,
    threshold,
)
from softq.inspection.shelf import Shelf, put

ENTRIES = json.loads((Path(__file__).parent.parent / "conformance/golden.json").read_text())["entries"]
(RANKING,) = (entry for entry in ENTRIES if (entry["fixture"], entry["name"]) == (1, "ranking"))
IDEALISED = [entry for entry in ENTRIES if entry["name"].startswith("idealised_logratio")]
LOGIT = np.log(ALPHA / (1 - ALPHA))


def shelved(entry: dict) -> list[Shelved]:
    """Its pairs, each completion's tokens equally likely."""
    given = entry["inputs"]
    rows = zip(*(given[name] for name in ("LP_w", "LP_l", "len_w", "len_l", "LPref_w", "LPref_l")), strict=True)
    return [Shelved([w / n] * n, [low / m] * m, 0.0, (rw, rl)) for w, low, n, m, rw, rl in rows]


def test_golden_ranking(tmp_path: Path) -> None:
    pairs, expected = ranked(shelf_of(tmp_path, shelved(RANKING))), RANKING["expected"]
    assert pairs.right().astype(int).tolist() == expected["likelihood_ranking"]
    assert pairs.right_per_token().astype(int).tolist() == expected["length_normalised_ranking"]
    assert pairs.difficulty is not None
    assert (pairs.difficulty <= 0).astype(int).tolist() == expected["reference_ranking"]
    assert pairs.difficulty.tolist() == expected["difficulty"]
    at = threshold(pairs.difficulty, RANKING["parameters"]["beta"])
    assert at.tolist() == pytest.approx(expected["dpo_loss_threshold"], abs=1e-14)


@pytest.mark.parametrize("entry", IDEALISED, ids=[entry["name"] for entry in IDEALISED])
def test_golden_idealised_ratios(entry: dict) -> None:
    c, beta, alpha = -entry["inputs"]["ref_logratio"], entry["parameters"]["beta"], entry["inputs"]["alpha"]
    found = float(idealised(np.array([c]), beta, alpha)[0])
    assert found == pytest.approx(entry["expected"]["logratio"], abs=1e-12)
    assert (found > 0) == entry["expected"]["ranks_correctly"]


def test_a_pair_is_ranked_right_just_where_its_loss_is_below_the_threshold() -> None:
    grid = np.array([-9.0, -3.3, -1.1, -0.2, 0.4, 2.7, 8.0])
    policy, c = (axis.ravel() for axis in np.meshgrid(grid, grid + 0.05))  # log π_w/π_l, and the difficulty
    for beta in (0.05, 0.5, 3.0):
        loss = np.logaddexp(0, -beta * (policy + c))
        assert ((policy >= 0) == (loss <= threshold(c, beta))).all()
    assert (policy >= 0).any()
    assert (policy < 0).any()


def test_a_loss_can_fall_and_leave_the_ranking_wrong() -> None:
    c, before, after = 5.0, -5.0, -0.5
    loss = [np.logaddexp(0, -(policy + c)) for policy in (before, after)]
    assert loss[1] < 0.02 < loss[0]
    assert loss[1] > threshold(np.array([c]), 1.0)[0]


def test_the_idealised_ranking_is_the_references_for_large_beta_and_right_for_small() -> None:
    c = np.random.default_rng(0).normal(0.0, 20.0, 200)
    assert ((idealised(c, 1e6) > 0) == (c < 0)).all()
    assert (idealised(c, 1e-3) > 0).all()
    assert not (idealised(c, 1e-3, alpha=0.4) > 0).any()
    shares = [(idealised(c, beta) > 0).mean() for beta in GRID]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]


def test_the_best_policy_by_enumeration_has_this_ratio() -> None:
    """π* ∝ π_ref exp(r/β) over two completions, r_w - r_l = logit(α): Bradley and Terry's reward of that label."""
    ref, beta, alpha = np.array([0.2, 0.8]), 0.7, 0.9
    weight = ref * np.exp(np.array([np.log(alpha / (1 - alpha)), 0.0]) / beta)
    best = weight / weight.sum()
    c = np.log(ref[1] / ref[0])
    assert idealised(np.array([c]), beta, alpha)[0] == pytest.approx(np.log(best[0] / best[1]), abs=1e-12)


def hard(c: list[float]) -> list[Shelved]:
    """Pairs of these difficulties, of a policy that ranks the even ones right."""
    return [Shelved([-1.0 - n % 2], [-1.5], 0.0, (-value, 0.0)) for n, value in enumerate(c)]


def test_what_can_not_be_learned_is_named_the_hardest_first(tmp_path: Path) -> None:
    edge = LOGIT / 0.5
    shelf = shelf_of(tmp_path, hard([edge + 1e-9, edge - 1e-9, 99.0, -99.0, 50.0]), beta=0.5)
    assert not_learnable(ranked(shelf), 0.5).tolist() == [2, 4, 0]
    (finding,) = findings(shelf)
    assert (finding.level, list(finding.records)) == ("watch", [2, 4, 0])
    assert "3 of 5 pairs (60.0%) can not be learned at β = 0.5" in finding.told
    assert f"{edge:.1f} nats" in finding.told
    assert findings(shelf_of(tmp_path / "easy", hard([0.0, -3.0, 3.0]), beta=0.5)) == []
    rare = findings(shelf_of(tmp_path / "rare", hard([99.0, *[0.0] * 30]), beta=0.5))
    assert [each.level for each in rare] == ["expected"]


def test_figures_by_hand(tmp_path: Path) -> None:
    c = [80.0, 5.0, 1.0, -1.0]
    found = {each.name: each for each in figures(shelf_of(tmp_path, hard(c), beta=0.1))}
    assert found["ranking/R"].value == 0.5
    assert found["ranking/R_reference"].value == 0.25
    ideal = [sum(value < LOGIT / beta for value in c) / 4 for beta in GRID]
    assert [found[f"ranking/R_ideal/{beta:g}"].value for beta in GRID] == ideal == [1, 0.75, 0.75, 0.5, 0.25]
    assert found["ranking/gap"].value == 0.75 - 0.5
    assert found["ranking/difficulty/0.5"].value == 3.0
    assert found["ranking/not_learnable"].value == 0.25
    h = [np.log1p(np.exp(-0.1 * value)) for value in c]
    assert found["ranking/threshold"].value == pytest.approx(np.median(h))


def test_without_a_reference_or_beta_what_needs_it_is_absent(tmp_path: Path) -> None:
    bare = shelf_of(tmp_path / "bare", hard([1.0, 2.0]), compared=False)
    assert [each.name for each in figures(bare)] == ["ranking/R", "ranking/R_per_token"]
    assert findings(bare) == []
    unknown = shelf_of(tmp_path / "unknown", hard([1e9, 2.0]), beta=None)
    names = {each.name for each in figures(unknown)}
    assert "ranking/gap" in names
    assert not names & {"ranking/not_learnable", "ranking/threshold"}
    assert findings(unknown) == []
    empty = np.array([])
    assert len(not_learnable(Ranked(empty, empty, empty, empty, empty, None), 1.0)) == 0


def test_a_group_is_right_where_its_whole_order_is() -> None:
    score = np.array([2.0, 0.0, 1.0, 1.0])
    assert in_order(score, np.array([-1.0, -4.0, -2.0, -3.0]))
    assert in_order(score, np.array([-1.0, -4.0, -3.0, -2.0]))  # equal scores in any order
    assert in_order(score, np.array([-2.0, -4.0, -2.0, -3.0]))  # as likely is not wrong, as in R
    assert not in_order(score, np.array([-2.5, -4.0, -2.0, -3.0]))
    assert not in_order(score, np.array([-1.0, -2.5, -2.0, -3.0]))


def test_groups(tmp_path: Path) -> None:
    whole = [
        (0, 2.0, -6.0, 6),
        (0, 1.0, -5.0, 2),
        (1, 1.0, -1.0, 1),
        (1, 0.0, -2.0, 4),
        (2, 1.0, -1.0, 1),
        (2, 1.0, -2.0, 1),
    ]
    rows = dict(zip(("record", "score", "logp", "tokens"), map(list, zip(*whole, strict=True)), strict=True))
    blank = shelf_of(tmp_path, [])
    columns = {name: rows.get(name, [None] * len(whole)) for name in ROWS if not ROWS[name].compared}
    put(tmp_path, "rows", 0, columns, compared=False)
    facts = {**blank.facts, "kind": "groups", "reference": None}
    (tmp_path / "score.json").write_text(json.dumps(facts))
    found = {figure.name: (figure.value, figure.of) for figure in figures(Shelf(tmp_path))}
    assert found == {"ranking/groups": (0.5, 2), "ranking/groups_per_token": (0.5, 2)}
