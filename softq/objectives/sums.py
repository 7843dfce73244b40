"""Weighted sums of methods: dpo + 0.2 · sft is a method like any other."""

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from softq.records import Batch, Method, Readout, Scored, Term, no_credit, valued

HOLDS: Mapping[str, tuple[str, ...]] = {
    "pairs": ("rows",),
    "groups": ("rows",),
    "labels": ("rows",),
    "labels+mismatched": ("labels", "rows"),
    "rows": (),
}
"""What else a method can be given of a batch that is made for another: demonstrations are in all, the better ones."""


def weighted_sum(summands: Sequence[tuple[Method, float]]) -> Method:
    """Σ_k w_k · method_k: all their terms on one batch, scored once.

    What is logged as rewards and scores, β too, is that of the first summand that judges completions: sft+dpo logs as dpo+sft
    does. Demonstrations ("rows") are read off whatever another summand takes, labels off labels with mismatched completions;
    other summands that take different feedback are refused. Each remembers what it remembered alone: two memories of one name
    are refused, and so is a summand with credit. A pair's weight counts in the summands whose columns have it.
    """
    methods = [method for method, _ in summands]
    weights = [weight for _, weight in summands]
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ValueError(f"weights {weights}: expected finite numbers ≥ 0, one of them above 0")
    if len({valued(method) for method in methods}) > 1:
        raise ValueError(
            "a reward model has no head over tokens: it can not be summed with a method that trains a policy"
        )
    if any(method.credit is not no_credit for method in methods):
        raise ValueError("a method with credit can not stand in a sum")
    names = [name for method in methods for name in method.memory]
    if again := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two summands remember {', '.join(again)}: a batch has one column of a name")
    needs: dict[str, Readout] = {}
    for readout in (readout for method in methods for readout in method.needs):
        if needs.setdefault(readout.name, readout) != readout:
            raise ValueError(
                f"two summands read different things by the name {readout.name}: one score has one value of a name"
            )
    columns = dict.fromkeys(column for method in methods for column in method.columns)
    shown = next((method for method in methods if method.takes != "rows"), methods[0])
    return shown._replace(
        terms=tuple(_scaled(term, weight) for method, weight in summands for term in method.terms),
        needs=tuple(needs.values()),
        takes=_taken([method.takes for method in methods]),
        columns=tuple(columns),
        memory={name: value for method in methods for name, value in method.memory.items()},
        remember=_remembering(methods) if any(method.remember for method in methods) else None,
        coupled=any(method.coupled for method in methods),
        stops=any(method.stops for method in methods),
        fixed_point=methods[0].fixed_point if len(methods) == 1 else None,
    )


def _taken(kinds: Sequence[str]) -> str:
    """The one of these kinds of feedback that every summand can be read off."""
    serving = [kind for kind in kinds if all(other == kind or other in HOLDS[kind] for other in kinds)]
    if not serving:
        different = " and ".join(dict.fromkeys(kind for kind in kinds if kind != "rows"))
        raise ValueError(f"one batch can not be {different}: sum methods that take the same feedback")
    return serving[0]


def _remembering(methods: Sequence[Method]) -> Callable[..., Mapping[str, Tensor]]:
    """Each summand's memory after a step, from its own."""

    def remember(memory: Mapping[str, Tensor], scored: Scored, batch: Batch) -> Mapping[str, Tensor]:
        after = dict(memory)
        for method in methods:
            if method.remember:
                after |= method.remember({name: memory[name] for name in method.memory}, scored, batch)
        return after

    return remember


def _scaled(term: Term, weight: float) -> Term:
    return term._replace(weigh=_times(term.weigh, weight), total=weight * term.total)


def _times(weigh: Callable[[Batch], Tensor], weight: float) -> Callable[[Batch], Tensor]:
    return lambda batch: weight * weigh(batch)
