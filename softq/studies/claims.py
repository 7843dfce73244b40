"""What papers say of their methods, against what was measured here: a difference a seed, its interval, a verdict.

A seed draws a world, so figures of two seeds differ by more than chance in training; what is compared is always of the same
seed, the same pairs and the same draws of answers.
"""

import math
from collections.abc import Iterator, Mapping
from inspect import signature
from itertools import pairwise
from typing import NamedTuple

from softq.objectives import METHODS
from softq.studies.arms import START, Arms, Results
from softq.studies.seeds import Spread, spread
from softq.studies.trial import Trial

LEAST: Mapping[str, float] = {
    "reward": 0.05,
    "chosen": 0.1,
    "length": 0.1,
    "auc": 0.005,
    "margin_a_token": 0.02,
    "ratio": 0.25,
}
"""Figure -> the least difference that would be worth a claim, in the figure's unit."""
UNITS: Mapping[str, str] = {
    "reward": "true reward",
    "chosen": "nats",
    "length": "tokens",
    "auc": "AUC",
    "margin_a_token": "nats a token",
    "ratio": "halvings",
}
SHARE = 0.9  # of dpo's best gain in reward: what a method must reach to be called there


class Claim(NamedTuple):
    """One comparison."""

    says: str  # what is said of the method
    measure: str  # the difference that is measured; above 0 is as it is said
    unit: str
    spread: Spread  # of the difference, over the seeds
    verdict: str  # "shows", "does not show" or "unclear"


def verdict(found: Spread, least: float) -> str:
    """By the 95 % interval of a difference: shows above 0; does not show below `least`, the least that would matter."""
    if found.interval is None:
        return "unclear"
    low, high = found.interval
    return "shows" if low > 0 else "does not show" if high < least else "unclear"


def claims(results: Results, arms: Arms) -> list[Claim]:
    """Every claim of which the trainings are there."""
    parts = (_flips, _held_up, _shorter, _bounded, _credit, _sooner, _smaller)
    return [claim for part in parts for claim in part(results, arms)]


def values(results: Results, trial: Trial | str, figure: str) -> dict[int, float]:
    """A figure by seed, of the seeds in which the training did not fail."""
    runs = results[trial if isinstance(trial, str) else trial.name]
    return {seed: run.figures[figure] for seed, run in runs.items() if not run.failed}


def less(high: Mapping[int, float], low: Mapping[int, float]) -> dict[int, float]:
    """high - low, seed by seed."""
    return {seed: high[seed] - low[seed] for seed in high if seed in low}


def _claim(says: str, measure: str, figure: str, differences: Mapping[int, float]) -> Iterator[Claim]:
    if differences:
        found = spread(differences)
        yield Claim(says, measure, UNITS[figure], found, verdict(found, LEAST[figure]))


def _flips(results: Results, arms: Arms) -> Iterator[Claim]:
    """The robust losses against dpo, at the same β and the same flipped labels."""
    for name, says in (("robust", "robust beats dpo under flips"), ("cdpo", "cdpo beats dpo under flips")):
        for flips, trial in arms.noise.get(name, {}).items():
            if flips and "dpo" in arms.noise:
                there, other = values(results, trial, "reward"), values(results, arms.noise["dpo"][flips], "reward")
                yield from _claim(
                    says, f"reward of {name} less dpo's, {flips:.0%} flipped", "reward", less(there, other)
                )


def _held_up(results: Results, arms: Arms) -> Iterator[Claim]:
    """Losses that anchor the chosen completion, against where it started and against dpo."""
    for name in ("dpop", "nca", "rpo", "dpo_anchor"):
        if name in arms.default:
            says = f"{name} holds the chosen likelihood up"
            there = values(results, arms.default[name], "chosen")
            yield from _claim(says, f"log π of the chosen, {name} less the start", "chosen", there)
            if dpo := _dpo_like(arms, name):
                measure = f"log π of the chosen, {name} less {dpo.label}"
                yield from _claim(says, measure, "chosen", less(there, values(results, dpo, "chosen")))


def _dpo_like(arms: Arms, name: str) -> Trial | None:
    """dpo at the default β of a method, where that was trained, else at its own."""
    beta = signature(METHODS[name]).parameters["beta"].default
    return arms.beta.get("dpo", {}).get(beta, arms.default.get("dpo"))


def _shorter(results: Results, arms: Arms) -> Iterator[Claim]:
    for name in ("simpo", "alphapo", "dpo_norm", "rdpo", "ld_dpo", "ipo"):
        if name in arms.default and "dpo" in arms.default:
            there, other = (values(results, arms.default[method], "length") for method in (name, "dpo"))
            says = f"{name}, which counts length, answers shorter than dpo"
            yield from _claim(says, f"length of dpo's answers less {name}'s", "length", less(other, there))


def _bounded(results: Results, arms: Arms) -> Iterator[Claim]:
    dpo = next((one for one in arms.certain.values() if one.method == "dpo"), None)
    for label, one in arms.certain.items():
        if dpo and one.method != "dpo":
            there, other = (values(results, run, "margin_a_token") for run in (one, dpo))
            says = f"{one.method} stays bounded where labels are certain"
            measure = f"margin of {dpo.label} less that of {label}, after the longest training"
            yield from _claim(says, measure, "margin_a_token", less(other, there))


def _credit(results: Results, arms: Arms) -> Iterator[Claim]:
    if "bmc" in arms.default and (dpo := _dpo_like(arms, "bmc")):
        there, other = (values(results, one, "auc") for one in (arms.default["bmc"], dpo))
        measure = f"AUC of finding the wrong word, bmc less {dpo.label}"
        yield from _claim("bmc sharpens credit", measure, "auc", less(there, other))


def _sooner(results: Results, arms: Arms) -> Iterator[Claim]:
    """In how many steps a method's reward gets where dpo's best is, but for a tenth; the halvings of dpo's number."""
    if "dpo" not in arms.long:
        return
    dpo = steps_to(results, arms, "dpo")
    for label, one in arms.long.items():
        if one.method != "dpo":
            ratio = {seed: math.log2(dpo[seed] / steps) for seed, steps in steps_to(results, arms, label).items()}
            says = f"{one.method} converges in fewer steps than dpo"
            measure = f"halvings of dpo's steps to {SHARE:.0%} of its best gain, by {label}"
            yield from _claim(says, measure, "ratio", ratio)


def steps_to(results: Results, arms: Arms, label: str) -> dict[int, float]:
    """By seed, the steps after which a long training first had SHARE of dpo's best gain in reward, between two looks by the
    straight line; one that never had is given twice the steps it had."""
    needed = {}
    for seed, run in results[arms.long[label].name].items():
        other, start = results[arms.long["dpo"].name][seed], results[START][seed].figures["reward"]
        if run.failed or other.failed:
            continue
        goal = start + SHARE * (max(look["reward"] for look in other.path) - start)
        needed[seed] = crossing([(0.0, start), *((look["step"], look["reward"]) for look in run.path)], goal)
    return needed


def crossing(path: list[tuple[float, float]], goal: float) -> float:
    """Where the line through (x, y), x ascending, first reaches y = goal; twice the last x if it never does."""
    for (x, y), (after, there) in pairwise(path):
        if there >= goal:
            return after if there == y else x + (after - x) * max(0.0, goal - y) / (there - y)
    return 2 * path[-1][0]


def _smaller(results: Results, arms: Arms) -> Iterator[Claim]:
    """Of four β: does reward rise towards smaller ones, and fall again at the smallest?"""
    for name, by_beta in arms.beta.items():
        reward = {beta: values(results, trial, "reward") for beta, trial in by_beta.items()}
        if not all(reward.values()):
            continue
        large, small = max(reward), min(reward)
        up, down = (max(set(reward) - {end}, key=lambda beta: _mean(reward[beta])) for end in (large, small))
        says = f"{name}: a smaller β is better"
        measure = f"reward at β = {up:g}, the best smaller one, less at {large:g}"
        yield from _claim(says, measure, "reward", less(reward[up], reward[large]))
        says = f"{name}: … until it collapses"
        measure = f"reward at β = {down:g}, the best larger one, less at {small:g}"
        yield from _claim(says, measure, "reward", less(reward[down], reward[small]))
    if {"dpo", "dpo, β 1"} <= set(arms.long):
        small, large = (values(results, arms.long[label], "reward") for label in ("dpo", "dpo, β 1"))
        measure = "reward at β = 1 less at its default, 0.1, after the longest training"
        yield from _claim("dpo: … until it collapses", measure, "reward", less(large, small))


def _mean(values: Mapping[int, float]) -> float:
    return sum(values.values()) / len(values)
