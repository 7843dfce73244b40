"""Weighted sums of methods: dpo + 0.2 · sft is a method like any other."""

from collections.abc import Callable, Sequence

from torch import Tensor

from softq.records import Batch, Method, Term, no_credit


def weighted_sum(summands: Sequence[tuple[Method, float]]) -> Method:
    """Σ_k w_k · method_k: all their terms on one batch, scored once.

    What is logged as rewards and scores is the first summand's. Demonstrations ("rows") are read off whatever another
    summand takes; two summands that take different feedback are refused, and so are two with credit or a memory.
    """
    methods = [method for method, _ in summands]
    weights = [weight for _, weight in summands]
    if min(weights) < 0 or not max(weights) > 0:
        raise ValueError(f"weights {weights}: expected numbers ≥ 0, one of them above 0")
    takes = list(dict.fromkeys(method.takes for method in methods if method.takes != "rows")) or ["rows"]
    if len(takes) > 1:
        raise ValueError(f"one batch can not be {' and '.join(takes)}: sum methods that take the same feedback")
    if any(method.credit is not no_credit or method.remember for method in methods):
        raise ValueError("a method with credit or a memory can not stand in a sum")
    needs = {readout.name: readout for method in methods for readout in method.needs}
    columns = dict.fromkeys(column for method in methods for column in method.columns)
    return methods[0]._replace(
        terms=tuple(_scaled(term, weight) for method, weight in summands for term in method.terms),
        needs=tuple(needs.values()),
        takes=takes[0],
        columns=tuple(columns),
        coupled=any(method.coupled for method in methods),
        stops=any(method.stops for method in methods),
        fixed_point=methods[0].fixed_point if len(methods) == 1 else None,
    )


def _scaled(term: Term, weight: float) -> Term:
    return term._replace(weigh=_times(term.weigh, weight), total=weight * term.total)


def _times(weigh: Callable[[Batch], Tensor], weight: float) -> Callable[[Batch], Tensor]:
    return lambda batch: weight * weigh(batch)
