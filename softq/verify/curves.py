"""The loss of a method and its gradient along one number, by the code that trains, on tables of one token: what its page draws.

Two tables. In the open one the compared completions are rare, so that the log-ratio L of each moves alone, as those of long
answers do; a loss of the margin alone gets one curve, any other one a side. In the closed one there are two tokens, and what
one loses the other gains: for losses that read more of a state than one token, or no reference.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from softq.lm.score import Models
from softq.mdp.tabular import every_trajectory, token_tree
from softq.objectives import METHODS
from softq.records import Batch, Labels, Method, Pairs, Tokens, valued
from softq.training.loop import with_columns
from softq.training.plan import scored_by
from softq.verify.tables import filled, models, slope

REACH = 6.0
POINTS = 49  # a curve's; four a unit of β m
TOLD = {"dpo": [-0.3, 0.0], "reverse": [0.2, 0.0]}
"""The logits of further models that a method of demonstrations may read: two that like the first token a little less, or more."""

Row = tuple[list[float], list[float]]  # [V] log π of a state in nats, and its derivative in x
Shares = tuple[float, float]  # how much of x the L of each side is, or where it starts, in nats
Walk = Callable[[Sequence[float]], list[tuple[float, float]]]  # some x -> loss and gradient of each


class Curve(NamedTuple):
    """A loss and its gradient at some x; `rests` are the x between them where descent in x ends."""

    name: str  # of what moves: "chosen", "rejected", "good", "bad"; "" where one curve says all
    x: list[float]
    loss: list[float]
    gradient: list[float]  # a nat of x
    rests: list[float]


class Curves(NamedTuple):
    """The curves of a method over one kind of x."""

    axis: str  # what x is, in nats
    beta: float
    reach: float  # x is between ±reach/β
    own: list[Curve]
    dpo: list[Curve]  # dpo's with the same β, where it could be trained on the same; else none


class Road(NamedTuple):
    """Where a curve runs: the policy at each x, and what is judged there."""

    name: str
    kind: str  # of data: what the method takes; of labels "good" or "bad"
    reference: list[float]  # [V] nats
    at: Callable[[float], Row]
    by: Shares = (0.5, -0.5)
    start: Shares = (0.0, 0.0)


def curves(method: Method, reach: float = REACH, aside: float = 0.0) -> Curves:
    """The curves of a method, over ±reach/β nats around the reference.

    The range is a tenth, as often as next to nothing happens in it; and if one side alone does nothing at all, the other one
    waits at `aside`/β on its way, not where it started.
    """
    span = reach / method.beta
    axis, roads = _roads(method, span, aside)
    xs = _range(span)
    if method.takes == "rows" and not method.needs:  # log π itself
        xs = [min(x, -1e-9) for x in xs if x < 1e-9]
    walks = [_walk(method, road) for road in roads]
    own = [_curve(road.name, xs, walk) for road, walk in zip(roads, walks, strict=True)]
    steepest = [max(map(abs, one.gradient)) for one in own]
    steep = max(steepest)
    if reach > 1e-3 and steep and all(sum(abs(g) > steep / 100 for g in one.gradient) < 10 for one in own):
        return curves(method, reach / 10, aside)
    if not aside and steep > 1e6 * min(steepest):
        return curves(method, reach, 1.0)
    own = [_finer(one, walk) for one, walk in zip(own, walks, strict=True)]
    own = [one._replace(rests=list(_rests(one, walk, steep))) for one, walk in zip(own, walks, strict=True)]
    compared = roads if method.takes in {"pairs", "groups"} else []
    return Curves(axis, method.beta, reach, own, [_dpo(method.beta, span, road.by, road.start) for road in compared])


def _range(span: float) -> list[float]:
    return [-span + 2 * span * n / (POINTS - 1) for n in range(POINTS)]


@cache
def _dpo(beta: float, span: float, by: Shares, start: Shares) -> Curve:
    """dpo's curve, where the sides move so; the same on both tables."""
    walk = _walk(METHODS["dpo"](beta=beta), _open("", "pairs", span, by, start))
    return _curve("", _range(span), walk)


def _curve(name: str, xs: list[float], walk: Walk) -> Curve:
    loss, gradient = (list(values) for values in zip(*walk(xs), strict=True))
    return Curve(name, xs, loss, gradient, [])


def _finer(curve: Curve, walk: Walk, rounds: int = 5) -> Curve:
    """More points where the gradient changes by much from one to the next: edges, and whatever is narrow."""
    some = (max(curve.gradient) - min(curve.gradient)) / 8
    steps = pairwise(zip(curve.x, curve.gradient, strict=True))
    between = [(x + y) / 2 for (x, before), (y, after) in steps if abs(after - before) > some]
    if not rounds or not between or not some:
        return curve
    more = _curve(curve.name, between, walk)
    points = sorted(zip(curve.x + more.x, curve.loss + more.loss, curve.gradient + more.gradient, strict=True))
    x, loss, gradient = (list(values) for values in zip(*points, strict=True))
    return _finer(Curve(curve.name, x, loss, gradient, []), walk, rounds - 1)


def _rests(curve: Curve, walk: Walk, steep: float) -> Iterator[float]:
    """Where a gradient below 0 rises through it, or is 0 behind an edge. What is not steep is rounding."""
    known = [(x, g) for x, g in zip(curve.x, curve.gradient, strict=True) if abs(g) > 1e-9 * steep or g == 0]
    for n, ((low, before), (high, _)) in enumerate(pairwise(known)):
        after = next((g for _, g in known[n + 1 :] if g), 0.0)
        if before < 0 <= after and known[n + 1][1] >= 0:
            for _ in range(24):  # each leaves a quarter
                inside = [low + (high - low) * part / 4 for part in range(5)]
                rising = next(k for k, (_, g) in enumerate([*walk(inside[:-1]), (0.0, 0.0)]) if g >= 0)
                low, high = inside[max(rising - 1, 0)], inside[rising]
            edge = curve.x[1] - curve.x[0]
            if after > 0 or walk([high - edge / 100])[0][1] < -1e-3 * steep:  # else it only fades away
                yield high


def _walk(method: Method, road: Road) -> Walk:
    """The loss at some x, each by itself; all in one step, which changes nothing, unless the method couples its records."""
    return (lambda xs: [_together(method, road, [x])[0] for x in xs]) if method.coupled else (
        lambda xs: _together(method, road, xs)
    )  # fmt: skip


def _together(method: Method, road: Road, xs: Sequence[float]) -> list[tuple[float, float]]:
    """Loss and gradient of a step of one record an x, each of one token after a prompt of its own, times their number."""
    policy, direction = (torch.tensor(table, dtype=torch.float64) for table in zip(*map(road.at, xs), strict=True))
    still = torch.tensor([road.reference], dtype=torch.float64)  # one more prompt, where the policy is the reference
    count, tree = len(xs), token_tree([(p,) for p in range(len(xs) + 1)], len(road.reference), 1)
    reference = still.expand(count + 1, -1)
    told = {name: torch.tensor([logits] * (count + 1), dtype=torch.float64) for name, logits in TOLD.items()}
    of = models(torch.cat([policy, still]), reference, tree, told)
    tokens = every_trajectory(tree)
    batch = _batch(road.kind, tokens, count, len(road.reference), method.takes == "labels+mismatched")
    given = {"diff": batch.tokens.action.double()} if "diff" in method.columns else {}
    batch = filled(method, with_columns(batch, given), of)
    gradient = (slope(method, of, batch).gradient[:count] * direction).sum(-1) * count
    return list(zip((_each(method, of, batch)[:count] * count).tolist(), gradient.tolist(), strict=True))


def _each(method: Method, of: Models, batch: Batch) -> Tensor:
    """What each record adds to the loss of the step."""
    batch = with_columns(batch, method.memory)
    with torch.no_grad():
        scored = scored_by(of, batch, method)
        parts = [(term.unit, term.loss(scored, batch) * term.weigh(batch)) for term in method.terms]
    total = torch.zeros(int(batch.tokens.prompt.max()) + 1, dtype=torch.float64)
    for unit, values in parts:
        if unit in {"token", "row"}:
            total.index_add_(0, batch.tokens.prompt, values.reshape(len(values), -1).sum(-1).double())
        else:  # one pair, label or group a record, in the order of the records
            total[: len(values)] += values
    return total


def _roads(method: Method, span: float, aside: float) -> tuple[str, list[Road]]:
    """What x is, and the roads of a method."""
    takes = method.takes
    if takes == "rows":
        return (
            ("log π/(1 − π) of the completion", [_closed(takes)])
            if method.needs
            else ("log π of the completion", [_alone()])
        )
    if takes.startswith("labels"):
        return "L = log π/π_ref of the completion", [_open(kind, kind, span, (1.0, 0.0)) for kind in ("good", "bad")]
    better, worse = ("chosen", "rejected") if takes == "pairs" else ("better", "worse")
    if valued(method):
        axis = "margin r(chosen) − r(rejected)" if takes == "pairs" else "value of what scores 1; beside it 0 scores 0"
        return axis, [_closed(takes)]
    margin = f"margin L({better}) − L({worse})"
    if not any("ref" in readout.models for readout in method.needs):
        return f"log π({better})/π({worse})", [_closed(takes)]
    if any(readout.name != "ref_logp" for readout in method.needs):
        return margin, [_closed(takes)]
    if _of_the_margin(method, span):
        return margin, [_open("", takes, span, (0.5, -0.5))]
    off = aside / method.beta
    sides = [_open(better, takes, span, (1.0, 0.0), (0.0, -off)), _open(worse, takes, span, (0.0, 1.0), (off, 0.0))]
    return f"L = log π/π_ref of one side, the other’s at {f'∓{aside:g}/β' if aside else '0'}", sides


def _of_the_margin(method: Method, span: float) -> bool:
    """Whether the loss stays the same where both sides move alike."""
    walks = [_walk(method, _open("", method.takes, span, (share, share - 1))) for share in (0.9, 0.2)]
    one, other = (walk([-span / 2, span / 3]) for walk in walks)
    return all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12) for (a, _), (b, _) in zip(one, other, strict=True))


def _open(name: str, kind: str, span: float, by: Shares, start: Shares = (0.0, 0.0)) -> Road:
    """L of the first two tokens is start + by · x; a third token holds the rest, nearly all."""
    rare = -span - 2  # nats: L of either may be `span`

    def at(x: float) -> Row:
        logp = [rare + begin + share * x for begin, share in zip(start, by, strict=True)]
        rest = 1 - sum(map(math.exp, logp))
        third = -sum(math.exp(one) * share for one, share in zip(logp, by, strict=True)) / rest
        return [*logp, math.log(rest)], [*by, third]

    return Road(name, kind, [rare, rare, math.log1p(-2 * math.exp(rare))], at, by, start)


def _closed(kind: str) -> Road:
    """x is the difference of two logits, of a reference that is uniform."""
    return Road("", kind, [0.0, 0.0], lambda x: ([x, 0.0], [1.0, 0.0]))


def _alone() -> Road:
    """x is log π of the first of two tokens, below 0."""

    def at(x: float) -> Row:
        other = -math.expm1(x)
        return [x, math.log(other)], [1.0, -math.exp(x) / other]

    return _closed("rows")._replace(at=at)


def _batch(kind: str, tokens: Tokens, count: int, vocabulary: int, mismatched: bool) -> Batch:
    """One pair, group, judged completion or demonstration of the first tokens after each of so many prompts.

    With labels goes a mismatched completion where they want one, after the prompt at which the policy is the reference.
    """
    records = torch.arange(count)
    first = vocabulary * records
    sides = torch.stack([first, first + 1], -1).flatten()
    if kind == "pairs":
        return Batch(_rows(tokens, sides), Pairs(2 * records, 2 * records + 1))
    if kind == "groups":
        return Batch(_rows(tokens, sides), None, {"reward": torch.tensor([1.0, 0.0] * count, dtype=torch.float64)})
    if kind == "rows":
        return Batch(_rows(tokens, first))
    if kind not in {"good", "bad"}:
        raise ValueError(f"a method takes {kind!r}; expected pairs, groups, labels, labels+mismatched or rows")
    other = torch.tensor([vocabulary * count] * mismatched, dtype=torch.int64)
    labels = Labels(records, torch.full((count,), kind == "good"), torch.arange(count, count + mismatched))
    return Batch(_rows(tokens, torch.cat([first, other])), labels)


def _rows(tokens: Tokens, rows: Tensor) -> Tokens:
    return Tokens(tokens.ids[rows], tokens.action[rows], tokens.ended[rows], tokens.prompt[rows])
