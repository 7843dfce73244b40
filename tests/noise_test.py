"""Wrong labels told from margins: by hand, from draws whose truth is known, and as findings."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from shelves import Shelved, shelf_of

from softq.inspection import noise
from softq.inspection.noise import Flips, estimated, likelihood, preferred, ranked, wrong
from softq.inspection.shelf import Shelf, put

LN = math.log


def drawn(rate: float, scale: float, count: int = 8000) -> tuple[np.ndarray, np.ndarray]:
    """Margins of labelled pairs, and whether the label was flipped."""
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 2, count)
    better = rng.random(count) < 1 / (1 + np.exp(-scale * margin))
    flipped = rng.random(count) < rate
    return np.where(better != flipped, margin, -margin), flipped


def test_the_likelihood_of_labels_by_hand() -> None:
    margin = np.array([LN(3), -LN(3)])  # σ = 3/4 and 1/4; of which a tenth is flipped: .7 and .3
    found = likelihood(margin, np.array([0.0, 0.1]), np.array([1.0, 2.0]))
    assert found[0, 0] == pytest.approx(LN(3 / 16))
    assert found[1, 0] == pytest.approx(LN(0.21))
    assert found[0, 1] == pytest.approx(LN(0.9 * 0.1))


def test_the_probability_that_a_label_is_wrong_by_hand() -> None:
    margin = np.array([-LN(9), 0.0, LN(9), -LN(99), -1e6])
    expected = [0.5, 0.1, 0.01 / 0.82, 0.099 / 0.108, 1.0]  # ε (1 - σ) / (ε + (1 - 2ε) σ), ε = 1/10
    assert wrong(margin, Flips(0.1, 0, 0, 1.0)) == pytest.approx(expected)
    assert wrong(margin / 4, Flips(0.1, 0, 0, 4.0)) == pytest.approx(expected)
    assert wrong(margin, Flips(0.0, 0, 0, 1.0)) == pytest.approx([0] * 5)


@pytest.mark.parametrize(("rate", "scale"), [(0.0, 1.0), (0.1, 2.0), (0.25, 4.0)])
def test_what_was_drawn_is_estimated(rate: float, scale: float) -> None:
    margin, flipped = drawn(rate, scale)
    flips = estimated(margin)
    assert flips.low <= rate + 1e-9
    assert rate <= flips.high < flips.low + 0.06
    assert flips.scale == pytest.approx(scale, rel=0.1)
    if rate:
        chance = wrong(margin, flips)
        for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.0)):
            of = (chance >= low) & (chance < high)
            assert flipped[of].mean() == pytest.approx(chance[of].mean(), abs=0.08)  # it is calibrated


def test_the_interval_is_the_whole_profile_s() -> None:
    rng = np.random.default_rng(3)
    margin = 1.05 * rng.normal(
        size=300
    )  # few and small: a larger share of flips with surer margins says almost the same
    margin *= np.where(rng.random(300) < 1 / (1 + np.exp(-margin / 0.7)), 1, -1)
    margin *= np.where(rng.random(300) < 0.1, -1, 1)
    rates = np.linspace(0, noise.MOST, 200)
    profile = likelihood(margin, rates, np.geomspace(1 / 32, 32, 400)).max(1)
    inside = rates[profile >= profile.max() - noise.WITHIN]
    found = estimated(margin)
    assert (found.low, found.high) == pytest.approx((inside.min(), inside.max()), abs=0.01)


def test_the_unit_of_rewards_changes_nothing() -> None:
    margin, _ = drawn(0.1, 2.0, 2000)
    one, other = estimated(margin), estimated(100 * margin)
    assert one[:3] == pytest.approx(other[:3], abs=1e-9)
    assert wrong(margin, one) == pytest.approx(wrong(100 * margin, other), abs=1e-6)


def test_margins_that_know_nothing_bound_nothing() -> None:
    rng = np.random.default_rng(1)
    flips = estimated(rng.normal(0, 1, 2000))
    assert flips.high - flips.low > noise.LOOSE
    with pytest.raises(ValueError, match="every margin is 0"):
        estimated(np.zeros(3))


def shelved(directory: Path, margin: list[float], flips: Flips) -> Shelf:
    """Pairs whose labels were cross-fitted; the reference holds the rejected one of every second pair for likelier."""
    pairs = [Shelved([-1.0, -2.0], [-1.0], ref=((-2.0, -1.5), (-2.0, -0.5))[n % 2]) for n in range(len(margin))]
    shelf = shelf_of(directory, pairs)
    chance = wrong(np.array(margin), flips)
    columns = {"record": np.arange(len(margin)), "fold": np.arange(len(margin)) % 2, "margin": margin, "wrong": chance}
    put(directory, "noise", 0, columns, compared=True)
    rate = {"rate": flips.rate, "rate_low": flips.low, "rate_high": flips.high, "scale": flips.scale}
    (directory / "noise.json").write_text(json.dumps({**rate, "finished": True}))
    return shelf


MARGIN = [3.0, -LN(99), 2.0, 4.0, -LN(8), 1.0, 5.0, -LN(999), 2.5, 3.5, *[3.0] * 10]


def test_figures_and_the_finding(tmp_path: Path) -> None:
    shelf = shelved(tmp_path, MARGIN, Flips(0.1, 0.05, 0.15, 1.0))
    known = {figure.name: figure for figure in noise.figures(shelf)}
    assert (known["noise/rate"].value, known["noise/rate"].interval) == (0.1, (0.05, 0.15))
    assert known["noise/suspected"].value == 2 / 20
    sure = (0.099 / 0.108 + 0.0999 / 0.1008) / 2
    assert known["noise/sure"].value == pytest.approx(sure)
    assert known["noise/accuracy"].value == 17 / 20
    assert known["noise/reference_disagrees"].value == 10 / 20
    finding, reference = noise.findings(shelf)
    assert (finding.level, list(finding.records)) == ("act", [7, 1])
    assert "an estimated 10.0% (5.0% to 15.0%) of 20 labels are wrong; 2 are likelier wrong than right" in finding.told
    assert "label_smoothing or robust at 0.1" in finding.act
    assert (reference.level, list(reference.records)) == ("expected", list(range(1, 20, 2)))
    assert "the likelier one, per token, in 10 of 20 pairs" in reference.told


def test_the_ranking_leads_with_the_worst(tmp_path: Path) -> None:
    table = ranked(shelved(tmp_path, MARGIN, Flips(0.1, 0.05, 0.15, 1.0)))
    assert table["record"].to_pylist()[:4] == [7, 1, 4, 5]
    assert table["suspected"].to_pylist()[:3] == [True, True, False]
    assert table["reference"].to_pylist()[:3] == pytest.approx([-0.5, -0.5, 0.5])  # of 7, 1 and 4, in nats a token


def test_the_chance_of_each_record(tmp_path: Path) -> None:
    known = noise.chances(shelved(tmp_path / "a", [3.0, -LN(9)], Flips(0.1, 0.05, 0.15, 1.0)))
    assert known is not None
    assert (list(known), known[1]) == ([0, 1], pytest.approx(0.5))
    assert noise.chances(shelf_of(tmp_path / "b", [Shelved([-1.0], [-1.0])])) is None


def test_what_the_reference_prefers_is_per_token(tmp_path: Path) -> None:
    shelf = shelved(tmp_path, [1.0, 1.0], Flips(0.1, 0.0, 0.2, 1.0))
    assert preferred(shelf) == pytest.approx([-2 / 2 + 1.5, -2 / 2 + 0.5])


def test_levels(tmp_path: Path) -> None:
    def level(name: str, margin: list[float], flips: Flips) -> tuple[str, str]:
        finding, _ = noise.findings(shelved(tmp_path / name, margin, flips))
        return finding.name, finding.level

    assert level("few", MARGIN, Flips(0.1, 0.01, 0.15, 1.0)) == ("noise/suspected", "watch")
    assert level("none", [3.0] * 20, Flips(0.0, 0.0, 0.1, 1.0)) == ("noise/suspected", "expected")
    assert level("loose", MARGIN, Flips(0.1, 0.0, 0.4, 1.0)) == ("noise/unknown", "watch")
    assert level("blind", [1.0, -1.0] * 10, Flips(0.1, 0.05, 0.15, 1.0)) == ("noise/unknown", "watch")


def test_without_a_cross_fit_only_the_reference_speaks(tmp_path: Path) -> None:
    shelf = shelf_of(tmp_path / "a", [Shelved([-1.0], [-1.0], ref=(-2.0, -1.0))])
    assert [(figure.name, figure.value) for figure in noise.figures(shelf)] == [("noise/reference_disagrees", 1.0)]
    assert [(finding.name, list(finding.records)) for finding in noise.findings(shelf)] == [("noise/reference", [0])]
    shelf = shelf_of(tmp_path / "c", [Shelved([-1.0], [-1.0] * 3, ref=(-0.1, -0.1 - 0.1 - 0.1))])
    assert [figure.value for figure in noise.figures(shelf)] == [0.5]  # per token the same, but for rounding
    alone = shelf_of(tmp_path / "b", [Shelved([-1.0], [-1.0])], compared=False)
    assert (noise.figures(alone), noise.findings(alone)) == ([], [])
    (tmp_path / "b" / "noise.json").write_text('{"finished": false}')
    assert noise.figures(alone) == []
