"""Verdicts on simulated runs: silence over healthy ones, and each failure found in a stated number of steps."""

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
from depth import tries

from softq.training.watch import WINDOW, Trail, Watch, Window

Lines = list[dict[str, float]]
BETA = 0.1


def healthy(seed: int, steps: int = 500, *, learns: float = 1.0, heavy: bool = False) -> Lines:
    """Lines of one's own of a run that went well."""
    return [dict(line) for line in _healthy(seed, steps, learns, heavy)]


@cache
def _healthy(seed: int, steps: int, learns: float, heavy: bool) -> Lines:
    """A DPO run of three epochs: the margin saturates and steps up at epochs, chosen falls a little, norms are lognormal.

    Step lengths and records vary by seed; heavy: noise with Student's tails (3 degrees of freedom). learns=0: nothing can
    be learned, so the margin is noise about 0.
    """
    rng = np.random.default_rng(seed)
    gain, pace, noise = learns * rng.uniform(0.5, 3), rng.uniform(20, 150), rng.uniform(0.05, 0.5)
    shift, length, spread = rng.uniform(-0.5, 0.2), rng.uniform(20, 400), rng.uniform(0.1, 0.5)
    warm, draw = int(rng.integers(1, 30)), (lambda: rng.standard_t(3)) if heavy else rng.standard_normal
    lines = []
    for step in range(1, steps + 1):
        epoch = 3 * step / steps
        learned = gain * (1 - math.exp(-step / pace)) * (1 + 0.3 * int(epoch))
        margin = 0.0 if step == 1 else learned + noise * draw()
        chosen = 0.0 if step == 1 else shift * learned + 0.5 * noise * draw()
        base = -length * (1 + 0.15 * draw())
        lines.append(
            {
                "loss": math.log1p(math.exp(-margin)),
                "rewards/chosen": chosen,
                "rewards/rejected": chosen - margin,
                "rewards/margins": margin,
                "rewards/ties": float(step == 1),
                "scores/chosen": chosen,
                "scores/rejected": chosen - margin,
                "logps/chosen": base + chosen / BETA,
                "logps/rejected": base * 1.1 + (chosen - margin) / BETA,
                "grad_norm": (1 + 4 * math.exp(-step / 100)) * math.exp(spread * rng.standard_normal()),
                "learning_rate": 1e-6 * min(step / warm, 1.0, 1.2 * (1 - step / (steps + 1))),
                "epoch": epoch,
            }
        )
    return lines


def fine_tuned(seed: int, steps: int = 500) -> Lines:
    """An SFT run: no pairs, a loss that falls and flattens."""
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(1, steps + 1):
        nats = 1.5 + 2 * math.exp(-step / 60) + 0.1 * rng.standard_normal()
        norm = math.exp(0.4 * rng.standard_normal())
        lines.append({"loss": nats, "logps/chosen": -80 * nats, "logps/token": -nats, "grad_norm": norm})
    return lines


def unpaired(seed: int, steps: int = 500) -> Lines:
    """A KTO run: no margins or ties, and steps without a good or without a bad completion."""
    rng, lines = np.random.default_rng(seed), healthy(seed, steps)
    for line in lines:
        del line["rewards/margins"], line["rewards/ties"]
        if rng.random() < 0.2:
            side = rng.choice(["chosen", "rejected"])
            for name in [name for name in line if name.endswith(side)]:
                del line[name]
    return lines


def verdicts(lines: Lines, watch: Watch | None = None, first: int = 1) -> list[tuple[int, str]]:
    watch = watch or Watch(reference_is_start=True, beta=BETA)
    return [(step, said) for step, line in enumerate(lines, first) for said in watch(step, line)]


@pytest.mark.parametrize("seed", range(tries(20)))
@pytest.mark.parametrize(
    "run",
    [healthy, lambda s: healthy(s, learns=0), lambda s: healthy(s, heavy=True), fine_tuned, unpaired],
    ids=["dpo", "nothing to learn", "heavy tails", "sft", "kto"],
)
def test_a_healthy_run_is_left_alone(run: Callable[[int], Lines], seed: int) -> None:
    assert verdicts(run(seed)) == []


def wandering(seed: int) -> Lines:
    """A margin whose noise has a memory (AR(1), 0.6): a policy moves smoothly."""
    rng, lines, noise = np.random.default_rng(seed + 1000), healthy(seed), 0.0
    for line in lines[1:]:
        noise = 0.6 * noise + 0.24 * rng.standard_normal()
        line["scores/chosen"] += noise
        line["logps/chosen"] += noise / BETA
    return lines


@pytest.mark.parametrize("seed", range(tries(20)))
def test_noise_with_a_memory_is_no_fall(seed: int) -> None:
    assert verdicts(wandering(seed)) == []


FAILS = 201  # the step at which the failures begin


def falling(lines: Lines) -> None:
    """From step FAILS on the margin is lost again, over a hundred steps."""
    for n, line in enumerate(lines[FAILS - 1 :]):
        for name in ("rewards/margins", "scores/chosen"):
            line[name] -= 0.04 * min(n, 100)


def displaced(lines: Lines) -> None:
    """Both sides lose 1 % of the chosen log-probability a step; the rejected side a fifth more."""
    for n, line in enumerate(lines[FAILS - 1 :]):
        nats = 0.01 * n * abs(line["logps/chosen"])
        line["logps/chosen"] -= nats
        line["logps/rejected"] -= 1.2 * nats


def burst(lines: Lines) -> None:
    for line in lines[FAILS - 1 : FAILS + 9]:
        line["grad_norm"] *= 60


def growing(lines: Lines) -> None:
    """Norms that double every 20 steps."""
    for n, line in enumerate(lines[FAILS - 1 :]):
        line["grad_norm"] *= 2 ** (n / 20)


def tied(lines: Lines) -> None:
    for line in lines[FAILS - 1 :]:
        line["rewards/ties"] = 1.0


def unmoved(lines: Lines) -> None:
    for line in lines[FAILS - 1 :]:
        line["loss"] = 0.6931471805599453


FAILURES: dict[str, tuple[Callable[[Lines], None], str, int]] = {
    "falling": (
        falling,
        r"^the margin falls: \S+ over steps (\d+)-\d+, after \S+ over steps \d+-\d+\. Not expected",
        100,
    ),
    "displaced": (
        displaced,
        r"^chosen completions lose likelihood: .*Usual .* to some degree, .*dpo\+sft --weights",
        130,
    ),
    "burst": (burst, r"^the gradient's norm is \S+, \S+, \S+ since step 201, the median before is", 2),
    "growing": (growing, r"^the gradient's norm (grows without end: median|is \S+, \S+, \S+ since)", 110),
    "tied": (tied, r"^every pair is a tie, in 5 steps after the warm-up", 4),
    "unmoved": (unmoved, r"^the loss has not moved from 0\.693147 since step 201\. Not expected", WINDOW - 1),
}
"""What is made to fail from step FAILS on, what must be said of it, and within how many steps."""


@pytest.mark.parametrize("seed", range(tries(20)))
@pytest.mark.parametrize("kind", FAILURES)
def test_each_failure_is_found_in_time_and_nothing_else_is_said(kind: str, seed: int) -> None:
    fail, pattern, within = FAILURES[kind]
    lines = healthy(seed)
    fail(lines)
    said = verdicts(lines)
    assert len(said) >= 1
    for step, line in said:
        assert "\n" not in line
        assert re.match(pattern, line.removeprefix(f"step {step}: ")), line
    assert FAILS <= said[0][0] <= FAILS + within


def test_log_ratios_at_the_start() -> None:
    lines = healthy(0, 5)
    lines[0] |= {"rewards/chosen": 0.2, "rewards/rejected": -0.03}
    ((step, line),) = verdicts(lines)
    assert step == 1
    assert "not 0 before anything was trained (chosen +2, rejected -0.3 nats a completion)" in line
    assert verdicts(lines, Watch(reference_is_start=False, beta=BETA)) == []
    lines[0] |= {"rewards/chosen": 0.0, "rewards/rejected": 0.9e-4 * BETA * abs(lines[0]["logps/rejected"])}
    assert verdicts(lines) == []
    lines[0]["rewards/rejected"] *= -1.2
    assert "(rejected -" in verdicts(lines)[0][1]


def test_a_moving_reference_shrinks_margins_by_design() -> None:
    lines = healthy(3)
    falling(lines)
    displaced(lines)
    assert verdicts(lines) != []
    assert verdicts(lines, Watch(reference_is_start=True, reference_moves=True, beta=BETA)) == []


def test_the_margin_that_the_loss_trains_is_judged() -> None:
    """A length-normalised score may grow while summed log-ratios fall."""
    lines = healthy(3)
    for n, line in enumerate(lines):
        line["rewards/margins"] -= 0.05 * n
    assert verdicts(lines) == []
    for line in lines:
        del line["scores/chosen"]
    assert "the margin falls" in verdicts(lines)[0][1]


def test_usual_displacement_is_no_free_fall() -> None:
    """A third of the log-probability lost, or much lost and more gained: not yet."""
    for share, ratio in ((0.35, 1.2), (0.9, 2.2)):
        lines = healthy(1)
        for n, line in enumerate(lines):
            nats = share * min(n / 400, 1) * abs(line["logps/chosen"])
            line["logps/chosen"] -= nats
            line["logps/rejected"] -= ratio * nats
        assert verdicts(lines) == []


def test_norms_that_rise_fivefold_and_stay_are_no_growth_without_end() -> None:
    lines = healthy(7)
    for n, line in enumerate(lines):
        line["grad_norm"] = 5 ** min(n / 300, 1) * (1 + 0.1 * (n % 3))
    assert verdicts(lines) == []


def still(why: dict[str, float]) -> Iterator[dict[str, float]]:
    for step in range(1, 60):
        yield {"loss": math.log(2), "rewards/ties": 1.0, "grad_norm": 1.0, "learning_rate": min(step, 10) * 1e-8, **why}


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ({"learning_rate": 0.0}, "the learning rate is 0"),
        ({"grad_norm": 0.0}, "no gradient reaches the policy"),
        ({}, r"the weights do not move at a learning rate of 1e-07: .*bfloat16"),
    ],
)
def test_a_policy_that_does_not_move_is_told_why_once(why: dict[str, float], said: str) -> None:
    ((step, line),) = verdicts(list(still(why)))
    assert step == (5 if why.get("learning_rate") == 0 else 15)  # ten steps of warm-up, five of ties
    assert re.search(said, line)


def test_nothing_left_to_learn_is_not_a_loss_that_is_stuck() -> None:
    lines = [{"loss": max(0.0, 1 - step / 50), "grad_norm": float(step < 50)} for step in range(200)]
    ((step, line),) = verdicts(lines, first=0)
    assert step == 50 + WINDOW - 1
    assert "the loss is 0 since step 50: every record is learned" in line


def test_a_kind_is_said_again_only_after_it_was_well_for_a_window() -> None:
    def bursts(*starts: int) -> list[int]:
        lines = healthy(4)
        for start in starts:
            for line in lines[start - 1 : start + 4]:
                line["grad_norm"] *= 60
        return [step for step, _ in verdicts(lines)]

    assert bursts(100) == [102]
    assert bursts(100, 115) == [102]
    assert bursts(100, 200) == [102, 202]


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("cut", [1, 100, 203, 260, 340])
def test_a_resumed_watch_says_the_same(kind: str, cut: int) -> None:
    """The kept lines as JSON, evaluations between them; then the rest."""
    lines = healthy(5)
    FAILURES[kind][0](lines)
    whole = verdicts(lines)
    resumed = Watch(reference_is_start=True, beta=BETA)
    for step, line in enumerate(lines[:cut], 1):
        kept = json.loads(json.dumps({"step": step, **line}))
        resumed(kept["step"], kept)
        resumed(step, {"step": step, "eval_loss": 0.7, "eval_rewards/margins": -9.0})
    assert verdicts(lines[cut:], resumed, cut + 1) == [(step, said) for step, said in whole if step > cut]


def test_values_that_are_not_finite_are_passed_over() -> None:
    lines = healthy(6)
    for line in lines[50:60]:
        line.update(dict.fromkeys(("rewards/margins", "scores/chosen", "logps/chosen", "grad_norm"), math.nan))
    assert verdicts(lines) == []


def test_a_margin_below_its_start_was_never_learned() -> None:
    """It begins at exactly 0 where policy and reference are equal; a first window that is negative has fallen."""
    lines = healthy(2, 60, learns=0)
    for line in lines[1:]:
        line["scores/chosen"] -= 1.0
    ((step, line),) = verdicts(lines)
    assert step <= WINDOW + 6
    assert "after 0 over steps 1-1" in line


def test_a_trail_keeps_its_windows() -> None:
    trail = Trail()
    values = [*range(40), *range(40, -40, -1)]
    for step, value in enumerate(values, 1):
        trail.add(step, value + 5)
    assert trail.start == pytest.approx((1, 24, 16.5, 0.0))
    assert trail.best is not None
    assert trail.latest is not None
    assert (trail.best.first, trail.best.last, trail.best.mean) == (29, 52, 39.0)
    assert trail.latest.mean == sum(values[-WINDOW:]) / WINDOW + 5
    assert trail.fell(trail.best, trail.latest)
    assert not trail.fell(trail.latest, trail.best)


@pytest.mark.parametrize("memory", [-0.5, 0.0, 0.5])
def test_the_error_of_a_mean_is_that_of_noise_about_a_line(memory: float) -> None:
    rng, at = np.random.default_rng(1), np.arange(WINDOW)
    noise = rng.standard_normal(WINDOW)
    for n in range(1, WINDOW):
        noise[n] += memory * noise[n - 1]
    values = 3 + 0.7 * at + noise
    left = values - np.polyval(np.polyfit(at, values, 1), at)
    together = max(0.0, (left[1:] * left[:-1]).sum() / (left**2).sum())
    trail = Trail()
    for step, value in enumerate(values):
        trail.add(step, float(value))
    assert trail.start is not None
    expected = (left**2).sum() / (WINDOW - 2) / WINDOW * (1 + together) / (1 - together)
    assert trail.start.error == pytest.approx(expected)
    assert (together > 0) == (memory > 0)


def test_chance_grows_with_the_windows_that_were_seen() -> None:
    """fell() asks for 4 + 2√(ln N) standard errors after N windows."""
    trail = Trail()
    for step in range(10 * WINDOW):
        trail.add(step, 0.0)
    limit = (4 + 2 * math.sqrt(math.log(10))) * math.sqrt(0.05)
    for drop, fell in ((0.99 * limit, False), (1.01 * limit, True)):
        assert trail.fell(Window(0, 9, 1.0, 0.03), Window(10, 19, 1.0 - drop, 0.02)) is fell
