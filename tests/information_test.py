"""Differential information: the golden numbers, its limits, and the estimate against the exact value."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from softq.data.store import write_json
from softq.inspection.columns import schema
from softq.inspection.information import estimated, exact, figures
from softq.inspection.shelf import FACTS, Shelf, put
from softq.mdp.tabular import along, every_trajectory, random_table, token_tree

GOLDEN = json.loads((Path(__file__).parents[1] / "conformance/golden.json").read_text())["entries"]


def leaves() -> tuple[np.ndarray, np.ndarray, dict]:
    """The fixture's two-step tree: log π* and log π_ref of its four completions."""
    entry = next(each for each in GOLDEN if each["name"] == "differential_information")
    of, reward = entry["inputs"]["ref"], entry["inputs"]["reward"]
    ref = np.log([of["root"][k] * of[s][a] for k, s in enumerate("ab") for a in range(2)])
    tilted = ref + [
        (reward["root"][k] + reward[s][a]) / entry["parameters"]["beta"] for k, s in enumerate("ab") for a in range(2)
    ]
    return tilted - np.log(np.exp(tilted).sum()), ref, entry["expected"]


def test_golden_numbers() -> None:
    logp, ref, expected = leaves()
    found = exact(logp, ref)
    assert found.entropy == pytest.approx(expected["entropy_nats"], abs=1e-12)
    assert math.exp(found.log_w) == pytest.approx(expected["W"], rel=1e-12)
    assert np.exp(logp - ref - found.log_w) == pytest.approx(expected["q"], abs=1e-12)


def test_q_is_uniform_exactly_where_the_policy_is_its_reference() -> None:
    logp, ref, _ = leaves()
    assert exact(ref, ref)[:2] == pytest.approx((math.log(4), math.log(4)))
    assert exact(logp, ref).entropy < math.log(4) - 1
    assert exact(np.array([0.0, -np.inf]), np.log([0.5, 0.5]))[:2] == pytest.approx((math.log(2), 0.0))


def test_completions_that_are_not_all_are_refused() -> None:
    logp, ref, _ = leaves()
    with pytest.raises(ValueError, match="not 1: give all of them"):
        exact(logp[1:], ref[1:])


def test_the_estimate_of_many_samples_is_the_lab_s_exact_value() -> None:
    tree = token_tree([(0,)], vocabulary=3, horizon=3, end=2)
    tokens = every_trajectory(tree)
    logp, ref = (along(tree, random_table(tree, s).log_softmax(-1), tokens).sum(-1).numpy() for s in (3, 4))
    drawn = np.random.default_rng(0).choice(len(logp), 200_000, p=np.exp(logp) / np.exp(logp).sum())
    truth, found = exact(logp, ref), estimated(logp[drawn], ref[drawn], len(drawn))
    assert found[:2] == pytest.approx(truth[:2], abs=0.02)
    assert abs(truth.log_w - truth.entropy) > 0.1
    # Weights 1/π_ref of N draws: the effective size is N E[w]²/E[w²].
    p, w = np.exp(logp), np.exp(-ref)
    assert found.effective == pytest.approx(len(drawn) * (p @ w) ** 2 / (p @ w**2), rel=0.05)


def test_mass_on_samples_that_were_cut_is_no_part_of_the_estimate() -> None:
    pi, ref = np.array([0.2, 0.1, 0.3]), np.array([0.1, 0.4, 0.2])  # the other 0.4 of π is on what does not end
    ratio = pi / ref
    q = ratio / ratio.sum()
    drawn = np.repeat(np.arange(4), [200, 100, 300, 400])
    whole = drawn[drawn < 3]
    found = estimated(np.log(pi)[whole], np.log(ref)[whole], len(drawn))
    assert found.log_w == pytest.approx(math.log(ratio.sum()), abs=1e-12)
    assert found.entropy == pytest.approx(-(q * np.log(q)).sum(), abs=1e-12)


def test_by_hand_and_without_overflow() -> None:
    logp, ref = np.array([-1.0, -2.0]), np.array([math.log(0.25), math.log(0.75)])
    w = np.array([4.0, 4 / 3])
    found = estimated(logp, ref, 2)
    assert found.log_w == pytest.approx(math.log(w.mean()))
    assert found.entropy == pytest.approx(math.log(w.mean()) - (w * (logp - ref)).sum() / w.sum())
    assert found.effective == pytest.approx(w.sum() ** 2 / (w**2).sum())
    far = estimated(logp - 5000, ref - 5000, 2)
    assert far.log_w == pytest.approx(found.log_w + 5000)
    assert far.effective == pytest.approx(found.effective)


def shelf(directory: Path, record: list[int], ended: list[bool], logp: list[float], ref: list[float]) -> Shelf:
    """Rows on disk; what information does not read is empty."""
    empty = dict.fromkeys(schema("rows", True).names, [None] * len(record))
    put(directory, "rows", 0, empty | {"record": record, "ended": ended, "logp": logp, "ref_logp": ref}, compared=True)
    write_json(
        directory / FACTS,
        {"format": "softq scores 1", "finished": True, "kind": "rows", "reference": "r", "parts": 1, "unit": "nats"},
    )
    return Shelf(directory)


def test_figures_are_of_whole_completions_prompt_by_prompt(tmp_path: Path) -> None:
    of = shelf(
        tmp_path,
        [0, 0, 0, 1, 2, 2],
        [True, True, False, True, True, True],
        [-1, -2, -9, -1, -3, -3],
        [-2, -2, -9, -1, -1, -1],
    )
    found = {figure.name: figure for figure in figures(of)}
    one, two = (
        estimated(np.array([-1.0, -2]), np.array([-2.0, -2]), 3),
        estimated(np.array([-3.0, -3]), np.array([-1.0, -1]), 2),
    )
    assert [figure.value for figure in found.values()] == pytest.approx(
        [(a + b) / 2 for a, b in zip(one, two, strict=True)]
    )
    assert found["information/entropy"].value == pytest.approx((2 + math.log(2 / 3) - 0.5 + 1 + 2) / 2)
    assert found["information/log_w"].of == 2
    ended, broken = [True] * 4, [-1.0, -2.0, math.nan, -1.0]
    lost = shelf(tmp_path / "lost", [0] * 4, ended, broken, [-2.0, -2.0, -1.0, -math.inf])
    assert [figure.value for figure in figures(lost)] == pytest.approx(
        list(estimated(np.array([-1.0, -2]), np.array([-2.0, -2]), 2))
    )
