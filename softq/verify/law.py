"""A law: what must hold, what it means if it does not, and a check that says how far off it is."""

import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

Subject = TypeVar("Subject")

EXACT = 1e-10  # what float64 may round; most laws are nearer by far


class Finding(NamedTuple):
    """How far off a law is; green while the error is within the bound."""

    error: float  # the largest that was seen, in the unit of the law; nan is red
    bound: float
    note: str = ""  # what was seen, where a number does not say it
    raised: bool = False  # the check itself broke off, which says nothing of the law

    @property
    def green(self) -> bool:
        """Whether the law holds."""
        return self.error <= self.bound


class Law(NamedTuple, Generic[Subject]):
    """What must hold of a subject: of the theory (None), of a method's contract line, or of a user's model."""

    name: str  # one to three words
    holds: str  # what holds, a sentence
    red: str  # what it means for a person if it does not, a sentence
    check: Callable[[Subject], Finding | str]  # a str: why the law says nothing of this subject


class Result(NamedTuple):
    """A law, a subject's name, and what was found."""

    law: Law
    subject: str
    finding: Finding | str

    @property
    def green(self) -> bool:
        """Whether nothing is wrong; a law that does not apply is not wrong."""
        return isinstance(self.finding, str) or self.finding.green


def checked(laws: Sequence[Law[Subject]], subject: Subject, name: str) -> Iterator[Result]:
    """Every law on a subject, one at a time. Whatever a loss of one's own raises makes the law red, with the error."""
    for law in laws:
        try:
            finding = law.check(subject)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = "" if isinstance(error, ValueError) else f" ({Path(last.filename).name}:{last.lineno})"
            finding = Finding(math.inf, 0.0, f"{type(error).__name__}: {error}{where}", raised=True)
        yield Result(law, name, finding)


def apart(found: Tensor, expected: Tensor) -> float:
    """max |found - expected| over all entries; nan where an entry of either is. Equal infinities are 0 apart."""
    same = found == expected
    return float((found - expected).abs().masked_fill(same, 0.0).max()) if found.numel() else 0.0
