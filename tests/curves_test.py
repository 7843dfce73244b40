"""Curves: what stands in a log is drawn as it is, and checkpoints are means over their records."""

import json
import math
from pathlib import Path

import pytest
from scored import scored

from softq.inspection.curves import Curve, log_of, logged, thinned, trend

LINES = [
    {
        "step": 1,
        "loss": 0.7,
        "rewards/chosen": 0.1,
        "rewards/rejected": -0.3,
        "logps/chosen": -9.0,
        "rewards/margins": 0.4,
    },
    {"step": 2, "loss": float("nan"), "rewards/chosen": -0.2, "rewards/rejected": -0.4, "logps/chosen": -12.0},
    {"step": 2, "eval_loss": 0.5, "eval_rewards/chosen": -0.1, "eval_logps/chosen": -10.0},
]


def by_title(curves: list[Curve]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    return {curve.title: {line.name: line.points for line in curve.lines} for curve in curves}


def ours(directory: Path) -> Path:
    path = directory / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES) + '{"step": 3, "lo')
    return path


def theirs(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    history = [*LINES[:2], {"train_runtime": 3.5, "step": 2}, LINES[2]]
    (directory / "trainer_state.json").write_text(json.dumps({"log_history": history, "global_step": 2}))
    return directory / "trainer_state.json"


def test_both_logs_say_the_same(tmp_path: Path) -> None:
    one, two = logged(ours(tmp_path), beta=0.1), logged(theirs(tmp_path), beta=0.1)
    assert {curve.source for curve in one} == {"metrics.jsonl"}
    assert {curve.source for curve in two} == {"trainer_state.json"}
    assert by_title(one) == by_title(two)
    found = by_title(one)
    assert found["Reward"] == {
        "chosen": [(1, 0.1), (2, -0.2)],
        "rejected": [(1, -0.3), (2, -0.4)],
        "chosen, held out": [(2, -0.1)],
    }
    assert found["Loss"] == {"loss": [(1, 0.7)], "loss, held out": [(2, 0.5)]}
    moved = found["Displacement: Δ log π against the reference"]
    assert moved["chosen"] == [(1, pytest.approx(1.0)), (2, pytest.approx(-2.0))]
    assert moved["chosen, held out"] == [(2, pytest.approx(-1.0))]
    assert found["Log-probs of completions"]["chosen"] == [(1, -9.0), (2, -12.0)]


def test_a_reward_without_a_reference_is_no_displacement(tmp_path: Path) -> None:
    lines = [{"step": n, "rewards/chosen": -0.9 * n, "logps/chosen": -9.0 * n} for n in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Reward" in by_title(logged(tmp_path / "metrics.jsonl", beta=0.1))
    assert not any(title.startswith("Displacement") for title in by_title(logged(tmp_path / "metrics.jsonl", beta=0.1)))
    other = by_title(logged(tmp_path / "metrics.jsonl", beta=0.2))  # then they are not the same number
    assert any(title.startswith("Displacement") for title in other)
    assert not any(title.startswith("Displacement") for title in by_title(logged(tmp_path / "metrics.jsonl")))


def test_a_log_is_found_in_the_newest_checkpoint(tmp_path: Path) -> None:
    assert log_of(tmp_path) is None
    theirs(tmp_path / "checkpoint-9")
    newest = theirs(tmp_path / "checkpoint-10")
    assert log_of(tmp_path) == newest
    assert log_of(tmp_path / "checkpoint-9") == tmp_path / "checkpoint-9" / "trainer_state.json"
    top = theirs(tmp_path)
    assert log_of(tmp_path) == top


@pytest.mark.parametrize("text", ["{", "[]", '{"log_history": 3}', '{"log_history": [3]}', "{}"])
def test_what_is_no_trainer_state_is_said_in_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(ValueError, match=r"is no trainer_state\.json of transformers"):
        logged(tmp_path / "trainer_state.json")


def test_many_points_become_means_of_neighbours() -> None:
    points = [(float(n), float(n % 2)) for n in range(1000)]
    few = thinned(points, 100)
    assert len(few) == 100
    assert few[0] == (4.5, 0.5)
    assert math.isclose(sum(value for _, value in few) / 100, 0.5)
    assert thinned(points[:100], 100) == points[:100]


def test_a_trend_is_of_means_of_the_same_records(tmp_path: Path) -> None:
    def pair(chosen: float, rejected: float) -> tuple[list, list]:
        return [("a", chosen, -1.0)], [("b", rejected, -1.0)]

    early = scored(tmp_path / "early", [pair(-1.0, -1.5), pair(-0.5, -0.5)])
    late = scored(tmp_path / "late", [pair(-2.0, -4.0), pair(-9.0, -9.0), pair(-0.5, -0.75)])
    found = by_title(trend([(8, early, None), (16, late, [0, 2])]))
    assert found["Reward, by checkpoint"]["chosen"] == [(8, 0.5 * (0 + 0.5) / 2), (16, 0.5 * (-1 + 0.5) / 2)]
    assert found["Margin, by checkpoint"] == {"margin": [(8, 0.125), (16, 0.5 * (2 + 0.25) / 2)]}
    assert found["Pairs right, by checkpoint"] == {"right": [(8, 0.75), (16, 1.0)]}
    assert found["Displacement: Δ log π against the reference, by checkpoint"]["rejected"] == [(8, 0.0), (16, -1.375)]
    assert found["KL(π‖π_ref) along a completion, by checkpoint"]["chosen"] == [(8, 0.125), (16, 0.125)]
