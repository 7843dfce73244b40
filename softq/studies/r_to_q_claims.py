"""What is claimed in the study of "From r to Q*": differences, seed by seed and prompt by prompt, and what they come to."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, variance
from typing import Any, NamedTuple, Protocol

from softq.studies.claims import verdict
from softq.studies.seeds import Spread, spread

SCORES = {
    "localisation": "log π/π_ref",
    "control": "log π_ref",
    "control_dpo": "log π",
    "control_rm": "change of a reward model's word",
}
ARMS = {
    "crowd": "fits the crowd",
    "crowd, chosen first": "… chosen first",
    "style": "another style",
    "style, chosen first": "… chosen first ",
}
MEAN = "beam, length penalty 1"
NORMAL = 1.96
LEAST = {"auc": 0.005, "reward": 0.05, "length": 0.5, "nats": 0.02}
"""The least difference that would be worth a claim."""


class Seed(Protocol):
    """What one seed came to; see `r_to_q.Found`."""

    @property
    def credit(self) -> Mapping[str, Mapping[str, float]]: ...

    @property
    def search(self) -> Sequence[Mapping[str, Any]]: ...

    @property
    def formal(self) -> Sequence[Mapping[str, Any]]: ...

    @property
    def falling(self) -> Mapping[str, Sequence[Mapping[str, float]]]: ...

    @property
    def law(self) -> Mapping[str, float]: ...

    @property
    def seconds(self) -> float: ...


Results = Mapping[int, Seed]


class Claim(NamedTuple):
    """A difference that the paper, or the theory, says is above 0."""

    said: str
    measured: str
    values: Mapping[int, float]  # by seed
    kind: str  # of LEAST
    prompts: Mapping[
        int, Sequence[float]
    ] = {}  # by seed, of every prompt, where there are such; they average to `values`

    @property
    def spread(self) -> Spread:
        """Over the seeds."""
        return spread(self.values)

    @property
    def here(self) -> tuple[float, float] | None:
        """The 95 % interval over the prompts of these very worlds; None where there are no prompts."""
        if not self.prompts:
            return None
        error = math.sqrt(sum(variance(each) / len(each) for each in self.prompts.values())) / len(self.prompts)
        return self.spread.mean - NORMAL * error, self.spread.mean + NORMAL * error

    @property
    def verdict(self) -> str:
        """Over the seeds; where those leave it open, whether it shows in these worlds."""
        said = verdict(self.spread, LEAST[self.kind])
        return "shows in these worlds" if said == "unclear" and self.here and self.here[0] > 0 else said


class Differences(NamedTuple):
    """One decoder less another, (family, size) each."""

    found: Results
    crowd: str  # whose beams: "search" or "formal"
    policy: str
    one: tuple[str, int]
    other: tuple[str, int]
    figure: str  # "reward" or "length"


def _compared(said: str, measured: str, of: Differences) -> Claim:
    rows = [searched(of.found, of.crowd, (of.policy, *which), "each") for which in (of.one, of.other)]
    prompts = {seed: [a - b for a, b in zip(*(row[seed][of.figure] for row in rows), strict=True)] for seed in of.found}
    return Claim(said, measured, {seed: fmean(each) for seed, each in prompts.items()}, of.figure, prompts)


def searched(found: Results, crowd: str, key: tuple[str, str, int], figure: str) -> dict[int, Any]:
    """A figure of one decoder, (policy, family, size), by seed."""
    return {
        seed: next(row[figure] for row in getattr(one, crowd) if (row["policy"], row["family"], row["size"]) == key)
        for seed, one in found.items()
    }


def claims(found: Results) -> list[Claim]:
    """All, in the paper's order."""
    return [*_credit(found), *_search(found), *_falling(found)]


def _credit(found: Results) -> Iterator[Claim]:
    for kind, errors in (("plausible", "the crowd's own errors"), ("random", "names drawn at random")):
        for control in ("control", "control_dpo", "control_rm"):
            values = {
                seed: one.credit[kind]["localisation_auc"] - one.credit[kind][f"{control}_auc"]
                for seed, one in found.items()
            }
            yield Claim(
                f"log π/π_ref finds {errors} better than {SCORES[control]}", "AUC, less the control's", values, "auc"
            )


def _search(found: Results) -> Iterator[Claim]:
    def less(policy: str, one: tuple[str, int], other: tuple[str, int], figure: str = "reward") -> Differences:
        return Differences(found, "search", policy, one, other, figure)

    five = ("beam", 5)
    yield _compared("a few beams help the policy", "reward of 5 beams less greedy's", less("dpo", five, ("beam", 1)))
    yield _compared("… and the model before it (control)", "the same", less("sft", five, ("beam", 1)))
    yield _compared(
        "beams beat as many samples ranked by likelihood",
        "reward of 5 beams less best of 5's",
        less("dpo", five, ("best of n by likelihood", 5)),
    )
    yield _compared(
        "best of 5 by likelihood beats any sample (control)",
        "reward",
        less("dpo", ("best of n by likelihood", 5), ("any sample", 1)),
    )
    yield _compared(
        "beams over likelihood beat beams over the log-ratio",
        "reward at 5 beams",
        less("dpo", five, ("beam over the log-ratio", 5)),
    )
    for crowd, where in (("search", ""), ("formal", "with a set phrase, ")):
        for family, how in (("beam", "by the sum"), (MEAN, "with transformers' length penalty")):
            wide, few = (family, 20), (family, 5)
            longer = Differences(found, crowd, "dpo", wide, few, "length")
            yield _compared(f"{where}many beams lengthen, {how}", "tokens at 20 beams less at 5", longer)
            worse = Differences(found, crowd, "dpo", few, wide, "reward")
            yield _compared(f"{where}many beams hurt, {how}", "reward at 5 beams less at 20", worse)
        before = Differences(found, crowd, "sft", (MEAN, 20), (MEAN, 5), "length")
        measured = "tokens at 20 beams less at 5, length penalty 1"
        yield _compared(f"{where}many beams lengthen the model before too (control)", measured, before)


def _falling(found: Results) -> Iterator[Claim]:
    for arm, said in (
        ("crowd, chosen first", "fine-tuned on the chosen answers first, chosen answers fall"),
        ("crowd", "not so fine-tuned, of a model that fits the crowd, they fall too"),
        ("style", "not so fine-tuned, of a model of another style, they fall too"),
        ("style, chosen first", "of that one after the chosen answers, they fall"),
    ):
        values = {seed: -one.falling[arm][-1]["chosen"] for seed, one in found.items()}
        yield Claim(said, "fall of the chosen answers' reward", values, "nats")
    for arm in ARMS:
        values = {
            seed: one.falling[arm][-1]["chosen"] - one.falling[arm][-1]["rejected"] for seed, one in found.items()
        }
        yield Claim(f"the margin grows: {arm}", "chosen less rejected", values, "nats")
