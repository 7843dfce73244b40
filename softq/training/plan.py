"""One optimiser step cut into micro-batches that can not change its gradient."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from softq.lm.forest import grow
from softq.lm.score import Models
from softq.records import Batch, Method, Scored, Tokens, like, moved, take
from softq.training import ranks


class NonFiniteLoss(ValueError):
    """A loss that is nan or infinite; `prompts` are the data records it came from."""

    def __init__(self, prompts: list[int]) -> None:
        super().__init__(f"the loss of data record(s) {prompts} is not finite")
        self.prompts = prompts


class Micro(NamedTuple):
    """A part of a step: its rows, and what to run backward on once they are scored."""

    rows: Tensor  # row numbers in the step; none where it is run for nothing, because another process has one more
    batch: Batch
    share: Callable[
        [Scored], Tensor
    ]  # a scalar; the shares of a step add up to its loss, or for coupled ones to its gradient


class Plan(NamedTuple):
    """This process's micro-batches of a step and, where the step had to be scored as a whole, what was seen."""

    micros: list[Micro]
    whole: tuple[Scored, Tensor] | None  # the scores of all rows and the loss, without gradient


def plan(method: Method, models: Models, batch: Batch, *, tokens_per_micro: int) -> Plan:
    """Weights once for the whole step, then parts of at most `tokens_per_micro` states (a record is never cut).

    A coupled method needs the gradient of a whole step's loss with respect to the scores. It is taken first, without
    a graph through the model; each part then runs Σ score · cotangent, whose gradient is exactly the step's. Gradients of
    all parts of all processes add up to the step's.
    """
    weights = [term.weigh(batch) for term in method.terms]
    parts = shares(batch.tokens, tokens_per_micro, ranks.count())
    whole = None
    if method.coupled and sum(map(len, parts)) > 1:
        scored = scored_whole(method, models, batch, tokens_per_micro)
        loss, cotangents = _cotangents(method, batch, weights, scored)
        whole = (scored, loss)
        alive = _alive(cotangents)
        parts = [[rows[alive[rows]] for rows in share if bool(alive[rows].any())] for share in parts]
        each = [[_pulled(batch, cotangents, rows) for rows in share] for share in parts]
    else:
        each = [[_part(method, batch, weights, rows) for rows in share] for share in parts]
    mine, longest = each[ranks.rank()], max(each, key=len)
    return Plan(mine + [_for_nothing(micro) for micro in longest[len(mine) :]], whole)


def shares(tokens: Tokens, tokens_per_micro: int, processes: int = 1) -> list[list[Tensor]]:
    """Of each process, the row numbers of each of its parts: every record is in one part of one process.

    The length of a record is the number of its states, shared prefixes counted once. Records go, the longest first, to the
    process that has least; each cuts its own into parts of like length, each within the budget unless one record alone is not.
    """
    lengths = _lengths(tokens)
    dealt: list[list[int]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for prompt in sorted(lengths, key=lambda prompt: (-lengths[prompt], prompt)):
        least = loads.index(min(loads))
        dealt[least].append(prompt)
        loads[least] += lengths[prompt]
    return [[_rows(tokens, part) for part in _cut(own, lengths, tokens_per_micro)] for own in dealt]


def _cut(prompts: Iterable[int], lengths: Mapping[int, int], tokens_per_micro: int) -> list[list[int]]:
    parts: list[list[int]] = []
    used = tokens_per_micro
    for prompt in sorted(prompts, key=lambda prompt: (lengths[prompt], prompt)):
        if used + lengths[prompt] > tokens_per_micro:
            parts.append([])
            used = 0
        parts[-1].append(prompt)
        used += lengths[prompt]
    return parts


def _lengths(tokens: Tokens) -> dict[int, int]:
    node = grow(tokens).node
    first = torch.where(node >= 0, node, node.max() + 1).amin(-1)
    found = {}
    for prompt in tokens.prompt.unique().tolist():
        rows = tokens.prompt == prompt
        found[prompt] = int(node[rows].max() - first[rows].min()) + 1
    return found


def _rows(tokens: Tokens, prompts: list[int]) -> Tensor:
    return torch.isin(tokens.prompt, torch.tensor(prompts)).nonzero()[:, 0]


def losses(method: Method, scored: Scored, batch: Batch, weights: Iterable[Tensor]) -> Tensor:
    """Σ over terms and their values of loss · weight: a scalar. A value that is not finite is an error naming its records."""
    total = torch.zeros((), dtype=like(scored).dtype, device=like(scored).device)
    for term, weight in zip(method.terms, weights, strict=True):
        values = term.loss(scored, batch)
        if not isinstance(values, Tensor) or values.shape != weight.shape:
            came = f"shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"the loss of term {term.name!r} is of {came}; expected {list(weight.shape)}, one a {term.unit}"
            )
        summand = (values * weight.to(values.dtype).to(values.device)).sum()
        if not torch.isfinite(summand):
            raise NonFiniteLoss(_records(term.unit, ~torch.isfinite(values), batch))
        total = total + summand
    return total


def scored_by(models: Models, batch: Batch, method: Method) -> Scored:
    """What the method needs of a batch. A readout whose values the batch brings, as a column of its name, is not computed."""
    stored = [readout.name for readout in method.needs if readout.name in batch.columns]
    scored = models(batch.tokens, tuple(readout for readout in method.needs if readout.name not in stored))
    return {**scored, **{name: batch.columns[name].to(like(scored)) for name in stored}}


def scored_whole(method: Method, models: Models, batch: Batch, tokens_per_micro: int) -> Scored:
    """The scores of all rows of a step, part by part, without gradient; known to every process."""
    parts = shares(batch.tokens, tokens_per_micro, ranks.count())
    mine, longest = parts[ranks.rank()], max(parts, key=len)
    device = next(models.parameters()).device
    with torch.no_grad():
        scores = [(rows, scored_by(models, take(batch, rows)[0], method)) for rows in mine]
        for rows in longest[len(mine) :]:  # for nothing: sharded models need every process in every forward pass
            scored_by(models, take(batch, rows)[0], method)
    return assembled(batch, everywhere(scores), device)


def everywhere(scores: list[tuple[Tensor, Scored]]) -> list[tuple[Tensor, Scored]]:
    """The scores that every process made."""
    if ranks.count() == 1:
        return scores
    return ranks.gathered([(rows, ranks.on_cpu(scored)) for rows, scored in scores])


def assembled(batch: Batch, parts: Iterable[tuple[Tensor, Scored]], device: torch.device) -> Scored:
    """The scores of a whole batch from those of its parts (row numbers, scores), without gradient, on a device."""
    B, T = batch.tokens.action.shape
    whole: dict[str, Tensor] = {}
    for rows, scored in parts:
        for name, values in scored.items():
            if name not in whole:
                whole[name] = torch.zeros(B, T, *values.shape[2:], dtype=values.dtype, device=device)
            whole[name][rows.to(device), : values.shape[1]] = values.detach().to(device)
    return whole


def _part(method: Method, batch: Batch, weights: list[Tensor], rows: Tensor) -> Micro:
    part, kept = take(batch, rows)
    width = part.tokens.action.shape[1]
    shares = [
        weight[kept[term.unit], :width] if term.unit == "token" else weight[kept[term.unit]]
        for term, weight in zip(method.terms, weights, strict=True)
    ]

    def share(scored: Scored) -> Tensor:
        return losses(method, scored, moved(part, like(scored).device), shares)

    return Micro(rows, part, share)


def _for_nothing(micro: Micro) -> Micro:
    """A micro-batch of another process, without its gradient: this one takes part and adds nothing."""
    return micro._replace(rows=micro.rows[:0], share=lambda scored: micro.share(scored) * 0)


def _cotangents(
    method: Method, batch: Batch, weights: list[Tensor], whole: Scored
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The loss of a whole step, and its gradient with respect to the scores."""
    leaves = {name: values.clone().requires_grad_() for name, values in whole.items()}
    with torch.enable_grad():
        loss = losses(method, leaves, moved(batch, like(whole).device), weights)
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return loss.detach(), {name: g for name, g in zip(leaves, gradients, strict=True) if g is not None}


def _alive(cotangents: Mapping[str, Tensor]) -> Tensor:
    """[B] rows with a cotangent: others, such as KTO's mismatched ones, need no backward pass and no second forward one."""
    return torch.stack([(g != 0).reshape(len(g), -1).any(-1) for g in cotangents.values()]).any(0).cpu()


def _pulled(batch: Batch, cotangents: Mapping[str, Tensor], rows: Tensor) -> Micro:
    part = take(batch, rows)[0]
    width = part.tokens.action.shape[1]

    def share(scored: Scored) -> Tensor:
        pulls = [
            (scored[name] * g[rows.to(g.device), :width]).sum()
            for name, g in cotangents.items()
            if scored[name].requires_grad
        ]
        return torch.stack(pulls).sum()

    return Micro(rows, part, share)


def _records(unit: str, bad: Tensor, batch: Batch) -> list[int]:
    prompt = batch.tokens.prompt
    if unit == "token":
        return sorted(set(prompt[bad.any(-1)].tolist()))
    if unit == "group":
        return prompt.unique()[bad].tolist()
    row = {
        "pair": lambda: batch.pairs.chosen,
        "label": lambda: batch.labels.row,
        "row": lambda: torch.arange(len(prompt)),
    }
    return sorted(set(prompt[row[unit]().to(prompt.device)[bad]].tolist()))
