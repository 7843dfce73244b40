"""The laws of one step of a method on tables: how its loss is added up, its gradient, and what it reads."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from softq.lm.score import Models
from softq.records import COLUMNS, Batch, Labels, Method, Pairs, Tokens, valued
from softq.training.loop import with_columns
from softq.training.plan import losses, scored_by, shares
from softq.verify.law import EXACT, Finding, Law
from softq.verify.line import UNSTATED, Line
from softq.verify.tables import (
    Slope,
    differ,
    models,
    one_by_one,
    slope,
    some_models,
    some_step,
    step_loss,
    table,
)


def _weights(line: Line) -> Finding:
    batch = with_columns(some_step(line.method), line.method.memory)
    off = [abs(term.weigh(batch).sum().item() - term.total) for term in line.method.terms]
    return Finding(max(off), EXACT)


def _micro_batches(line: Line) -> Finding:
    of, batch = some_models(), some_step(line.method)
    whole = slope(line.method, of, batch)
    budgets = (1, 7, 11)
    if min(len(shares(batch.tokens, budget)[0]) for budget in budgets) < 2 or not whole.gradient.any():
        return Finding(math.inf, EXACT, "the step has no gradient, or is not cut at all")
    return Finding(max(differ(slope(line.method, of, batch, budget), whole) for budget in budgets), EXACT)


def _padding(line: Line) -> Finding:
    of, batch = some_models(), some_step(line.method)
    return Finding(differ(slope(line.method, of, padded(batch, 3)), slope(line.method, of, batch)), EXACT)


def padded(batch: Batch, by: int) -> Batch:
    """The batch with more columns, and other tokens after each row's last action."""
    tokens, pad = batch.tokens, torch.nn.functional.pad
    ids = pad(tokens.ids, (0, by), value=1)
    last = tokens.action.int().cumsum(-1).argmax(-1)
    after = torch.arange(ids.shape[1])[None] > last[:, None] + 1
    ids = torch.where(after, ids.max() - ids, ids)
    wider = Tokens(ids, pad(tokens.action, (0, by)), tokens.ended, tokens.prompt)
    return Batch(wider, batch.feedback, {k: pad(v, (0, by)) if v.dim() == 2 else v for k, v in batch.columns.items()})


def _row_order(line: Line) -> Finding:
    of, batch = some_models(), some_step(line.method)
    order = torch.randperm(len(batch.tokens.ended), generator=torch.Generator().manual_seed(3))
    return Finding(differ(slope(line.method, of, _in_order(batch, order)), slope(line.method, of, batch)), EXACT)


def _in_order(batch: Batch, order: Tensor) -> Batch:
    where, feedback, t = order.argsort(), batch.feedback, batch.tokens
    if isinstance(feedback, Pairs):
        feedback = Pairs(where[feedback.chosen], where[feedback.rejected])
    if isinstance(feedback, Labels):
        feedback = Labels(where[feedback.row], feedback.good, where[feedback.mismatched])
    tokens = Tokens(t.ids[order], t.action[order], t.ended[order], t.prompt[order])
    by_row = {name for name in batch.columns if name in COLUMNS and COLUMNS[name].unit in ("row", "token")}
    return Batch(tokens, feedback, {k: v[order] if k in by_row else v for k, v in batch.columns.items()})


def _layout(line: Line) -> Finding:
    of, batch, method = some_models(), some_step(line.method), line.method
    batch = with_columns(batch, method.memory)
    of.zero_grad()
    loss = losses(method, one_by_one(of, batch, method), batch, [term.weigh(batch) for term in method.terms])
    loss.backward()
    found = table(of).grad
    if found is None:
        return Finding(math.inf, EXACT, "the loss has no gradient")
    alone = Slope(loss.detach(), found.clone())
    return Finding(differ(alone, slope(method, of, batch)), EXACT)


def _gauge(line: Line) -> Finding | str:
    if valued(line.method):
        return "it reads values, which are what they are"
    of, batch = some_models(), some_step(line.method)
    before = slope(line.method, of, batch)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for model in of.values():
            logits: Tensor = model.table  # pyright: ignore[reportAssignmentType]
            logits += 3 * torch.randn(len(logits), 1, generator=generator, dtype=logits.dtype)
    return Finding(differ(slope(line.method, of, batch), before), EXACT)


def _gradient(line: Line) -> Finding | str:
    """Central differences at the entries that move the loss most; good to about 1e-9 in float64."""
    narrow = 1 / max(1.0, line.method.beta)  # where β is large, only small log-ratios do not saturate
    seeds = (2, 3, 4, 5)  # KTO's baseline is 0 at some
    batch = some_step(line.method)
    off = max(_slope_error(line.method, batch, some_models(seed, scale=narrow), 1e-5 * narrow) for seed in seeds)
    if line.method.stops:
        return f"a part is held constant by definition: {off:.1e} of the gradient"
    return Finding(off, 1e-6)


def _slope_error(method: Method, batch: Batch, of: Models, step: float) -> float:
    found = slope(method, of, batch).gradient
    logits, off = table(of), 0.0
    for s, a in (found.abs() > 0.2 * found.abs().max()).nonzero().tolist()[:4]:
        sides = []
        for move in (step, -step):
            with torch.no_grad():
                logits[s, a] += move
                sides.append(step_loss(method, of, batch))
                logits[s, a] -= move
        off = max(off, float(((sides[0] - sides[1]) / (2 * step) - found[s, a]).abs() / found.abs().max()))
    return off


class _Reads(dict[str, Tensor]):
    """A mapping that remembers what was asked of it."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


def _reads(line: Line) -> Finding:
    method, of = line.method, some_models()
    batch = with_columns(some_step(method), method.memory)
    columns, scored = _Reads(batch.columns), _Reads(scored_by(of, batch, method))
    seen = Batch(batch.tokens, batch.feedback, columns)
    for term in method.terms:
        term.weigh(seen)
        term.loss(scored, seen)
    made = set(method.credit(scored, seen))
    memory = _Reads(method.memory)
    if method.remember and columns.read & {*memory}:  # such as the count that a mean is of
        method.remember(memory, scored, seen)
    readouts, known = {readout.name for readout in method.needs}, {*method.columns, *method.memory}
    idle = (readouts - scored.read) | (known - columns.read - memory.read)  # what is only logged does not count as read
    method.reward(scored, seen)
    extra = (scored.read - readouts - {"logp"}) | (columns.read - known - made)
    said = [f"{name} is declared, and read by nothing" for name in sorted(idle)]
    said += [f"{name} is read, and not declared" for name in sorted(extra)]
    return Finding(len(said), 0, "; ".join(said))


def _at_reference(line: Line) -> Finding | str:
    if line.at_reference is None:
        return UNSTATED
    of, batch = some_models(), some_step(line.method)
    columns = {k: v for k, v in batch.columns.items() if k not in ("margin", "label_probability")}
    same = models(of["ref"].table, of["ref"].table)  # pyright: ignore[reportArgumentType]
    loss = slope(line.method, same, Batch(batch.tokens, batch.feedback, columns)).loss
    return Finding(abs(loss.item() - line.at_reference), EXACT)


STEP_LAWS: tuple[Law[Line], ...] = (
    Law(
        "weights",
        "The weights of a step sum to what its terms state.",
        "Steps of different sizes count differently: the learning rate means something else in every step.",
        _weights,
    ),
    Law(
        "micro-batches",
        "A step cut into micro-batches has the loss and gradient of the whole.",
        "Results depend on the memory of the machine: accumulation, packing and several processes train something else.",
        _micro_batches,
    ),
    Law(
        "padding",
        "Columns of padding, whatever they hold, change nothing.",
        "A row is trained on what stands behind its end, so results depend on the longest row beside it.",
        _padding,
    ),
    Law(
        "row order",
        "The order of the rows in a step changes nothing.",
        "Chosen and rejected, or values and rows, are mixed up for some order of the data.",
        _row_order,
    ),
    Law(
        "layout",
        "Rows that share their prompt score as each row by itself.",
        "Sharing prompts, which is where the speed comes from, changes what is trained.",
        _layout,
    ),
    Law(
        "gauge",
        "A constant added to all logits of a state changes nothing.",
        "The loss reads logits where it should read log-probabilities.",
        _gauge,
    ),
    Law(
        "gradient",
        "The gradient is that of the loss, by differences; or the method says that a part of it is held constant.",
        "What is minimised is not what is logged: something is detached without the method's saying so (stops).",
        _gradient,
    ),
    Law(
        "reads",
        "The loss reads what the method declares, all of it and nothing else.",
        "Columns of the data would be taken and ignored, or a model loaded for nothing, or one is missing.",
        _reads,
    ),
    Law(
        "at the reference",
        "Where the policy is the reference, the loss is the number that its paper implies.",
        "A sign, a constant or the reference is wrong: the first logged loss of every run is off.",
        _at_reference,
    ),
)
