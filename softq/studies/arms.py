"""Which trainings the study of the family is made of, and what each is for."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import NamedTuple

from softq.objectives import METHODS
from softq.studies.trial import Result, Trial

START = "start"
NOISE = (0.0, 0.1, 0.2, 0.3)
FLIPS = 0.2
Settings = Mapping[str, float]

ROBUST: Mapping[str, tuple[str, Settings, bool]] = {
    "dpo": ("dpo", {"beta": 1.0}, False),
    "cdpo": ("dpo", {"beta": 1.0}, True),
    "robust": ("robust", {"beta": 1.0}, True),
    "ipo": ("ipo", {"beta": 3.0}, False),
    "hinge": ("hinge", {"beta": 1.0}, False),
    "nca": ("nca", {"beta": 0.3}, False),
}
"""Name -> method, settings, and whether it is told the share of flipped labels, as `label_smoothing`."""
BETAS: Mapping[str, tuple[float, ...]] = {
    "dpo": (3.0, 1.0, 0.1, 0.01),
    "ipo": (10.0, 3.0, 1.0, 0.1),
    "hinge": (3.0, 1.0, 0.1, 0.01),
    "simpo": (10.0, 5.0, 2.0, 0.5),
    "nca": (1.0, 0.3, 0.1, 0.01),
    "tdpo2": (3.0, 1.0, 0.1, 0.01),
}
"""Method -> four β, its default among them."""
LONG: Sequence[tuple[str, Settings]] = (
    ("dpo", {}),
    ("dpo", {"beta": 1.0}),
    ("simpo", {}),
    ("tdpo2", {}),
    ("aligndistil", {}),
    ("aligndistil", {"beta": 1.0, "ratio": 1.0}),
)
CERTAIN: Sequence[tuple[str, Settings]] = (("dpo", {"beta": 1.0}), ("ipo", {"beta": 5.0}), ("sppo_hard", {"beta": 0.5}))
"""Methods and settings that are trained longer: on flipped labels, and on the truth's."""

Results = Mapping[str, Mapping[int, Result]]  # by the name of the trial, by seed; "start" is the fine-tuned model


class Arms(NamedTuple):
    """Which trainings there are, and what for; one may be in several arms, and is run once."""

    default: Mapping[str, Trial]  # by method
    noise: Mapping[str, Mapping[float, Trial]]  # by name in ROBUST, by share of flips
    beta: Mapping[str, Mapping[float, Trial]]  # by method, by β
    long: Mapping[str, Trial]  # by label
    certain: Mapping[str, Trial]  # by label

    def all(self) -> list[Trial]:
        """Each once; the long ones first, so that no process ends with one alone."""
        several = [*self.noise.values(), *self.beta.values()]
        trials = [*self.long.values(), *self.certain.values(), *self.default.values()]
        return list(dict.fromkeys([*trials, *(trial for one in several for trial in one.values())]))


def arms(methods: Sequence[str]) -> Arms:
    """The trainings of these methods."""
    return Arms(
        default={method: Trial(method, flips=FLIPS) for method in methods},
        noise={name: _noisy(*told) for name, told in ROBUST.items() if told[0] in methods},
        beta={name: {beta: trial(name, {"beta": beta}) for beta in BETAS[name]} for name in BETAS if name in methods},
        long=_longer(LONG, FLIPS, methods),
        certain=_longer(CERTAIN, None, methods),
    )


def _noisy(method: str, settings: Settings, told: bool) -> dict[float, Trial]:
    return {
        flips: trial(method, {**settings, **({"label_smoothing": flips} if told else {})}, flips) for flips in NOISE
    }


def _longer(several: Sequence[tuple[str, Settings]], flips: float | None, methods: Sequence[str]) -> dict[str, Trial]:
    chosen = [trial(method, settings, flips)._replace(long=True) for method, settings in several if method in methods]
    return {one.label: one for one in chosen}


def trial(method: str, settings: Settings, flips: float | None = FLIPS) -> Trial:
    """A training; settings that are the method's defaults are left out, so that equal trainings are equal."""
    defaults = {name: parameter.default for name, parameter in signature(METHODS[method]).parameters.items()}
    return Trial(method, tuple((name, value) for name, value in settings.items() if value != defaults[name]), flips)


def shape_of(method: str) -> str:
    """The file of `softq.objectives` that a method stands in."""
    return METHODS[method].__module__.rpartition(".")[2]
