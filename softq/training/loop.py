"""The loop. It yields once a step; the caller logs, evaluates, saves and stops."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from softq.lm.score import Models
from softq.records import Batch, Method, Scored, like, moved, no_credit
from softq.training import ranks
from softq.training.measure import Sums, carried, measured, merged
from softq.training.plan import assembled, everywhere, losses, plan, scored_by, scored_whole
from softq.training.source import Source

TOKENS_PER_MICRO = {"cpu": 1024}
"""States that are scored at once, by device; 8,192 elsewhere. It bounds memory and changes no number."""


def default_budget(models: Models) -> int:
    """TOKENS_PER_MICRO of the device that the models are on: a processor gains nothing from more, a GPU does."""
    return TOKENS_PER_MICRO.get(next(models.parameters()).device.type, 8192)


class Step(NamedTuple):
    """What one optimiser step did."""

    metrics: Mapping[str, float]  # with the memory as it is after the step
    memory: Mapping[str, Tensor]


class Update(Protocol):
    """How parameters move: `backward` per micro-batch, then one call a step that returns what to log."""

    @property
    def backward(self) -> Callable[[Tensor], None]: ...

    def __call__(self) -> Mapping[str, float]: ...


def train(
    models: Models,
    method: Method,
    source: Source,
    update: Update,
    *,
    tokens_per_micro: int | None = None,
    memory: Mapping[str, Tensor] | None = None,
) -> Iterator[Step]:
    """Minimise the method's loss on each batch of the source; one yield an optimiser step.

    models: called as models(tokens, needs), so a wrapped `Models` serves as well. The micro-batches of a step hold at
    most `tokens_per_micro` states (TOKENS_PER_MICRO) and can not change its gradient. A loss that is not finite raises
    NonFiniteLoss, which names the data records, before the parameters move.
    """
    memory = method.memory if memory is None else memory
    budget = tokens_per_micro or default_budget(models)
    device = next(models.parameters()).device
    for batch in source(models):
        batch = credited(method, models, with_columns(batch, memory), budget)
        micros, whole = plan(method, models, batch, tokens_per_micro=budget)
        seen: list[Sums] = []
        parts: list[tuple[Tensor, Scored]] = []
        for number, micro in enumerate(micros, 1):
            with ranks.summing(models, last=number == len(micros)):
                scored = scored_by(models, micro.batch, method)
                share = micro.share(scored)
                update.backward(share * ranks.count())  # wrapped models take the mean over processes; a step is a sum
            if whole is None and len(micro.rows):
                seen.append(_seen(method, scored, micro.batch, share))
                if method.remember:
                    parts.append((micro.rows, {name: values.detach() for name, values in scored.items()}))
        moves = update()
        if whole is not None:
            metrics = merged([_seen(method, whole[0], batch, whole[1])])
        else:
            metrics = merged(seen if ranks.count() == 1 else ranks.gathered([carried(part) for part in seen]))
        if method.remember:
            scores = whole[0] if whole else assembled(batch, everywhere(parts), device)
            memory = method.remember(memory, scores, moved(batch, device))
        yield Step({**_numbers(memory), **metrics, **moves}, memory)


def evaluate(
    models: Models,
    method: Method,
    batch: Batch,
    *,
    tokens_per_micro: int | None = None,
    memory: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """Loss and metrics of a whole data set as one batch, without gradient; equal for any micro-batch size.

    memory: the method's, as training left it; default: as it starts.
    """
    budget = tokens_per_micro or default_budget(models)
    with torch.no_grad():
        batch = credited(method, models, with_columns(batch, method.memory if memory is None else memory), budget)
        whole = scored_whole(method, models, batch, budget)
        there = moved(batch, like(whole).device)
        loss = losses(method, whole, there, [term.weigh(batch) for term in method.terms])
        return merged([_seen(method, whole, batch, loss)])


def credited(method: Method, models: Models, batch: Batch, tokens_per_micro: int) -> Batch:
    """The batch with the columns of the method's credit, from scores of the whole batch without gradient."""
    if method.credit is no_credit:
        return batch
    whole = scored_whole(method, models, batch, tokens_per_micro)
    columns = method.credit(whole, moved(batch, like(whole).device))
    return with_columns(batch, {name: column.detach().cpu() for name, column in columns.items()})


def with_columns(batch: Batch, columns: Mapping[str, Tensor]) -> Batch:
    """The batch, and more columns."""
    return Batch(batch.tokens, batch.feedback, {**batch.columns, **columns}) if columns else batch


def _numbers(memory: Mapping[str, Tensor]) -> dict[str, float]:
    """What a method remembers, to be logged under its names."""
    return {name: value.item() for name, value in memory.items()}


def _seen(method: Method, scored: Scored, batch: Batch, loss: Tensor) -> Sums:
    return {"loss": (loss.detach(), 1), **measured(method, scored, moved(batch, like(scored).device))}
