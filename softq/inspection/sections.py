"""Every measure of a scored data set, in the order in which a reader asks: one table, a line a measure."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from softq.inspection import (
    accuracy,
    agreement,
    calibration,
    credit,
    displacement,
    fresh,
    information,
    localisation,
    noise,
    ranking,
    segments,
    values,
)
from softq.inspection.figures import Figure, Finding, as_json
from softq.inspection.shelf import Shelf


class Measure(NamedTuple):
    """A measure: what it is called, what it asks, and what computes it. It gives nothing where it does not apply."""

    title: str
    told: str
    figures: Callable[[Shelf], list[Figure]]
    findings: Callable[[Shelf], list[Finding]] = lambda shelf: []


MEASURES: dict[str, Measure] = {
    "accuracy": Measure(
        "Accuracy of the implicit reward",
        "Does the policy hold the chosen completion for the better one, and is it more than length?",
        accuracy.figures,
        accuracy.findings,
    ),
    "displacement": Measure(
        "Displacement",
        "Did the chosen completions lose likelihood, where did it go, and is that to be expected of this loss and reference?",
        displacement.figures,
        displacement.findings,
    ),
    "fresh": Measure(
        "What the reference itself would say",
        "How far do completions of the reference fall, as those of any policy that leaves it must?",
        fresh.figures,
        fresh.findings,
    ),
    "ranking": Measure(
        "Ranking, and what can be learned",
        "Is the chosen completion also the likelier one, and could it be at this β from this reference?",
        ranking.figures,
        ranking.findings,
    ),
    "calibration": Measure(
        "Calibration of the margins",
        "Is the margin as sure as it is right?",
        calibration.figures,
        calibration.findings,
    ),
    "credit": Measure(
        "Credit: where the margin comes from",
        "Which tokens have the reward: where the two part, the end, a few, or all of them?",
        credit.figures,
        credit.findings,
    ),
    "segments": Measure(
        "Credit by sentence, line and step",
        "How much of a completion's reward is in one of its sentences, lines or steps?",
        segments.figures,
    ),
    "localisation": Measure(
        "Errors found",
        "Where a rejected answer is the chosen one with an error put in: is the lowest reward on the error?",
        localisation.figures,
        localisation.findings,
    ),
    "values": Measure(
        "Values of states and tokens",
        "How much better is what the policy would rather have said, and of which answers is a value known?",
        values.figures,
        values.findings,
    ),
    "noise": Measure(
        "Labels that may be wrong",
        "Which labels do policies that never saw their prompt contradict, and which does the reference?",
        noise.figures,
        noise.findings,
    ),
    "information": Measure(
        "Differential information",
        "Of the policy's own samples: did training reinforce a few completions, or many?",
        information.figures,
    ),
}


class Section(NamedTuple):
    """What one measure came to."""

    name: str
    title: str
    told: str
    figures: Sequence[Figure]
    findings: Sequence[Finding]

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        items = {name: [as_json(item) for item in getattr(self, name)] for name in ("figures", "findings")}
        return {**self._asdict(), **items}


def sections(shelf: Shelf) -> Iterator[Section]:
    """What the measures that apply came to, in order. Nothing of a data set without records."""
    for name, measure in MEASURES.items() if shelf.facts["records"] else ():
        figures, findings = measure.figures(shelf), measure.findings(shelf)
        if figures or findings:
            yield Section(name, measure.title, measure.told, figures, findings)


def agreed(shelf: Shelf, other: Shelf) -> Section | None:
    """How far two policies agree; None where they have no tokens, or no references, to agree on."""
    same = all(shelf.facts[name] == other.facts[name] for name in ("content", "parts", "kind"))
    if not (same and shelf.compared and other.compared and shelf.facts["records"]):
        return None
    return Section(
        "agreement",
        "Agreement of the two policies",
        "Do both give credit to the same tokens, and have they the same pairs right?",
        agreement.figures(shelf, other),
        agreement.findings(shelf, other),
    )
