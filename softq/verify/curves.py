"""The loss of a method and its gradient along one number, by the code that trains, on tables of one token: what its page draws.

Two tables. In the open one the compared completions are rare, so that the log-ratio L of each moves alone, as those of long
answers do; a loss of the margin alone gets one curve, any other one a side. In the closed one there are two tokens, and what
one loses the other gains: for losses that read more of a state than one token, or no reference.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from softq.mdp.tabular import TokenTree, every_trajectory, token_tree
from softq.objectives import METHODS
from softq.records import Batch, Labels, Method, Pairs, Tokens
from softq.verify.tables import filled, models, slope

REACH = 6.0
POINTS = 49  # a curve's; four a unit of β m
OPEN = token_tree([(0,), (1,)], vocabulary=3, horizon=1)
CLOSED = token_tree([(0,)], vocabulary=2, horizon=1)

Shares = tuple[float, float]  # how much of x the L of each side is, or where it starts, in nats
Walk = Callable[[float], tuple[float, float]]  # x -> loss, gradient
Place = Callable[[float], tuple[Tensor, Tensor]]  # x -> the policy's logits [S, V], and their derivative in x


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
    """Where a curve runs: a batch, the reference it is scored with, and the policy at each x."""

    name: str
    tree: TokenTree
    reference: Tensor  # [S, V]
    batch: Batch
    at: Place
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
    if method.takes == "rows":
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
    road = _open("", _batch("pairs", OPEN), span, by, start)
    return _curve("", _range(span), _walk(METHODS["dpo"](beta=beta), road))


def _curve(name: str, xs: list[float], walk: Walk) -> Curve:
    loss, gradient = (list(values) for values in zip(*map(walk, xs), strict=True))
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


def _walk(method: Method, road: Road) -> Walk:
    batch = filled(method, road.batch, models(road.reference, road.reference, road.tree))

    def at(x: float) -> tuple[float, float]:
        policy, direction = road.at(x)
        found = slope(method, models(policy, road.reference, road.tree), batch)
        return float(found.loss), float((found.gradient * direction).sum())

    return at


def _rests(curve: Curve, walk: Walk, steep: float) -> Iterator[float]:
    """Where a gradient below 0 rises through it, or is 0 behind an edge, by bisection. What is not steep is rounding."""
    known = [(x, g) for x, g in zip(curve.x, curve.gradient, strict=True) if abs(g) > 1e-9 * steep or g == 0]
    for n, ((low, before), (high, _)) in enumerate(pairwise(known)):
        after = next((g for _, g in known[n + 1 :] if g), 0.0)
        if before < 0 <= after and known[n + 1][1] >= 0:
            for _ in range(50):
                middle = (low + high) / 2
                low, high = (middle, high) if walk(middle)[1] < 0 else (low, middle)
            edge = curve.x[1] - curve.x[0]
            if after > 0 or walk(high - edge / 100)[1] < -1e-3 * steep:  # else it only fades away
                yield high


def _roads(method: Method, span: float, aside: float) -> tuple[str, list[Road]]:
    """What x is, and the roads of a method."""
    if method.takes == "rows":
        return "log π of the completion", [_alone(method)]
    if method.takes.startswith("labels"):
        judged = [(name, _judged(name == "good", method.takes == "labels+mismatched")) for name in ("good", "bad")]
        return "L = log π/π_ref of the completion", [_open(name, batch, span, (1.0, 0.0)) for name, batch in judged]
    better, worse = ("chosen", "rejected") if method.takes == "pairs" else ("better", "worse")
    margin = f"margin L({better}) − L({worse})"
    if not any("ref" in readout.models for readout in method.needs):
        return f"log π({better})/π({worse})", [_closed(method)]
    if any(readout.name != "ref_logp" for readout in method.needs):
        return margin, [_closed(method)]
    batch = _batch(method.takes, OPEN)
    if _of_the_margin(method, batch, span):
        return margin, [_open("", batch, span, (0.5, -0.5))]
    off = aside / method.beta
    sides = [
        _open(better, batch, span, (1.0, 0.0), (0.0, -off)),
        _open(worse, batch, span, (0.0, 1.0), (off, 0.0)),
    ]
    return f"L = log π/π_ref of one side, the other’s at {f'∓{aside:g}/β' if aside else '0'}", sides


def _of_the_margin(method: Method, batch: Batch, span: float) -> bool:
    """Whether the loss stays the same where both sides move alike."""
    one, other = (_walk(method, _open("", batch, span, (share, share - 1))) for share in (0.9, 0.2))
    return all(math.isclose(one(x)[0], other(x)[0], rel_tol=1e-6, abs_tol=1e-12) for x in (-span / 2, span / 3))


def _open(name: str, batch: Batch, span: float, by: Shares, start: Shares = (0.0, 0.0)) -> Road:
    """L of the first two tokens is start + by · x; a third token holds the rest, nearly all."""
    rare = -span - 2  # nats: L of either may be `span`
    reference = torch.tensor([[rare, rare, math.log1p(-2 * math.exp(rare))]] * 2, dtype=torch.float64)

    def at(x: float) -> tuple[Tensor, Tensor]:
        logp = [rare + begin + share * x for begin, share in zip(start, by, strict=True)]
        rest = 1 - sum(map(math.exp, logp))
        third = -sum(math.exp(one) * share for one, share in zip(logp, by, strict=True)) / rest
        policy, direction = reference.clone(), torch.zeros_like(reference)
        policy[0] = torch.tensor([*logp, math.log(rest)], dtype=torch.float64)
        direction[0] = torch.tensor([*by, third], dtype=torch.float64)
        return policy, direction  # the second prompt stands still

    return Road(name, OPEN, reference, batch, at, by, start)


def _closed(method: Method) -> Road:
    """x is the difference of two logits, of a reference that is uniform."""
    reference, direction = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    return Road("", CLOSED, reference, _batch(method.takes, CLOSED), lambda x: (x * direction, direction))


def _alone(method: Method) -> Road:
    """x is log π of the first of two tokens, below 0."""

    def at(x: float) -> tuple[Tensor, Tensor]:
        other = -math.expm1(x)
        policy = torch.tensor([[x, math.log(other)]], dtype=torch.float64)
        return policy, torch.tensor([[1.0, -math.exp(x) / other]], dtype=torch.float64)

    return _closed(method)._replace(at=at)


def _batch(what: str, tree: TokenTree) -> Batch:
    """One pair, group or demonstration, of the first tokens after the first prompt."""
    if what == "rows":
        return Batch(_rows(tree, 0))
    if what == "pairs":
        return Batch(_rows(tree, 0, 1), Pairs(torch.tensor([0]), torch.tensor([1])))
    if what == "groups":
        return Batch(_rows(tree, 0, 1), None, {"reward": torch.tensor([1.0, 0.0], dtype=torch.float64)})
    raise ValueError(f"a method takes {what!r}; expected pairs, groups, labels, labels+mismatched or rows")


def _judged(good: bool, mismatched: bool) -> Batch:
    """One judged completion of the first prompt; mismatched is one of the second, where the policy is the reference."""
    rows = (0, OPEN.vocabulary) if mismatched else (0,)
    return Batch(_rows(OPEN, *rows), Labels(torch.tensor([0]), torch.tensor([good]), torch.arange(1, len(rows))))


def _rows(tree: TokenTree, *which: int) -> Tokens:
    every, rows = every_trajectory(tree), torch.tensor(which)
    return Tokens(every.ids[rows], every.action[rows], every.ended[rows], every.prompt[rows])
