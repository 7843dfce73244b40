"""The laws of where training with a method ends, on exact populations, and of what it must equal."""

import math

import torch
from torch import Tensor

from softq.lm.score import Models
from softq.mdp.tabular import every_trajectory, random_table, token_tree
from softq.records import Batch, Labels, Method, Pairs, Tokens
from softq.verify.law import EXACT, Finding, Law, apart
from softq.verify.line import UNSTATED, Line
from softq.verify.populations import Population, population
from softq.verify.tables import (
    differ,
    filled,
    models,
    planned,
    planned_slope,
    slope,
    some_models,
    table,
)
from softq.verify.vectors import entries, method_of, worst


def _stationary(line: Line) -> Finding | str:
    rest = line.method.fixed_point
    if rest is None:
        return line.why or UNSTATED
    whole = population(rest)
    elsewhere = _steepest(line.method, whole, random_table(whole.tree, 5))
    if not elsewhere:
        return Finding(math.inf, EXACT, "there is no gradient anywhere")
    worst = max(_steepest(line.method, whole, policy) for policy in whole.targets(rest))
    return Finding(worst / elsewhere, EXACT)


def _steepest(method: Method, whole: Population, policy: Tensor) -> float:
    return float(slope(method, whole.at(policy), whole.batch).gradient.abs().max())


def _descent(line: Line) -> Finding | str:
    rest = line.method.fixed_point
    if rest is None:
        return line.why or UNSTATED
    whole = population(rest)
    targets = whole.targets(rest)
    worst, wide = 0.0, 1 / max(1.0, line.method.beta)  # far from the reference a large β saturates
    for seed in (7, 8):
        start = whole.reference + random_table(whole.tree, seed, wide)
        reached = descended(line.method, whole, start)
        if _steepest(line.method, whole, reached) > 1e-4 * _steepest(line.method, whole, start):
            return "descent did not come to rest in the steps it was given"
        worst = max(worst, min(apart(reached.exp(), target.exp()) for target in targets))
    return Finding(worst, 1e-4, f"{len(targets)} of them" if len(targets) > 1 else "")


def descended(method: Method, whole: Population, start: Tensor) -> Tensor:
    """Where descent from a table of logits ends: the policy [S, V] in nats. LBFGS on the gradient that training follows.

    A line search needs a loss whose gradient that is. Where a part of it is held constant steps are damped instead, and
    more so if the gradient did not vanish.
    """
    scale = 1 / max(_steepest(method, whole, start), 1e-300)
    step = planned(method, whole.at(start), whole.batch)
    end = start
    for rate, steps in ((0.5, 400), (0.1, 1000)) if method.stops else ((None, 400),):
        of = whole.at(start)

        def closure(of: Models = of) -> Tensor:
            found = planned_slope(method, of, step)
            table(of).grad = scale * found.gradient
            return scale * found.loss

        torch.optim.LBFGS(
            [table(of)],
            lr=rate or 1.0,
            max_iter=steps,
            tolerance_grad=1e-9,
            tolerance_change=0,
            history_size=30,
            line_search_fn=None if rate else "strong_wolfe",
        ).step(closure)  # pyright: ignore[reportArgumentType]
        end = table(of).detach()
        if scale * _steepest(method, whole, end) < 1e-6:
            break
    return end.log_softmax(-1)


PAIR = token_tree([(0,), (1,)], vocabulary=2, horizon=1)
"""Two prompts with two completions of one token, the first of which is better."""
TOLD = {"dpo": 1.0, "reverse": -1.0}
"""What further models that a method reads have learned of them: the difference of their logits."""


def _hard(line: Line) -> Finding:
    """The slope of the loss in the margin m of a hard pair: down for ever, or down to where it rests and up behind it.

    Where nothing is stated of it, that a pair is pushed the right way where it is ranked wrongly, or at the reference: a loss may
    give up what is far off (apo_down).
    """
    method, beta = line.method, line.method.beta
    reference = torch.tensor([[0.3, 0.0], [0.3, 0.0]], dtype=torch.float64)
    others = {name: torch.tensor([[margin, 0.0]] * 2, dtype=torch.float64) for name, margin in TOLD.items()}
    batch = filled(method, _hard_batch(method), models(reference, reference, PAIR, others))

    def downhill(margin: float) -> float:
        policy = reference + torch.tensor([[margin, 0.0]], dtype=torch.float64)
        return slope(method, models(policy, reference, PAIR, others), batch).gradient[:, 0].sum().item()

    if line.rests is None or math.isinf(line.rests):
        stated = line.rests is not None
        margins = (-3.0, -1.0, 0.0, 1.0, 3.0, 10.0) if stated else (-3.0, 0.0)
        wrong = [m for m in margins if not downhill(max(m / beta, -60.0)) < 0]  # further off exponents may be clamped
        off = f"at margins {wrong} / β it is pushed the wrong way, or not at all"
        right = "grows for ever" if stated else "pushed the right way; where it rests is not stated"
        enough = not wrong if stated else len(wrong) < len(margins)
        return Finding(0.0 if enough else len(wrong), 0, right if enough else off)
    behind = downhill(line.rests + 0.1 / beta)  # exactly 0 where a hinge is flat
    sides = downhill(line.rests - 0.1 / beta) < 0 and behind >= 0
    return Finding(abs(downhill(line.rests)) if sides else math.inf, EXACT, f"rests at {line.rests:.3f} nats")


def _hard_batch(method: Method) -> Batch:
    tokens = every_trajectory(PAIR)
    better, worse = torch.tensor([0, 2]), torch.tensor([1, 3])
    if method.takes == "pairs":
        return Batch(tokens, Pairs(better, worse))
    if method.takes == "groups":
        return Batch(tokens, None, {"reward": torch.tensor([1.0, 0, 1, 0], dtype=torch.float64)})
    if method.takes == "rows":
        return Batch(Tokens(tokens.ids[better], tokens.action[better], tokens.ended[better], tokens.prompt[better]))
    judged = torch.tensor([True, False, True, False])
    if method.takes == "labels":
        return Batch(tokens, Labels(torch.arange(4), judged, torch.arange(0)))
    twice = torch.arange(8) % 4
    tokens = Tokens(tokens.ids[twice], tokens.action[twice], tokens.ended[twice], tokens.prompt[twice])
    return Batch(tokens, Labels(torch.arange(4), judged, torch.arange(4, 8)))


ISLANDS = token_tree([(0,)], vocabulary=4, horizon=1)
"""One prompt with four completions of one token: pairs inside {0, 1} and inside {2, 3} connect nothing."""


def _free_mass(line: Line) -> Finding | str:
    """The slope along moving mass from one island to the other: none where it is free."""
    if line.free is None or line.method.takes != "pairs":
        return UNSTATED
    pairs = Pairs(torch.tensor([0, 1, 2, 3]), torch.tensor([1, 0, 3, 2]))
    often = torch.tensor([0.7, 0.3, 0.6, 0.4], dtype=torch.float64)
    batch = Batch(every_trajectory(ISLANDS), pairs, {"weight": often} if "weight" in line.method.columns else {})
    of = some_models(4, ISLANDS)
    found = slope(line.method, of, filled(line.method, batch, of)).gradient
    along = abs(float(found[0, :2].sum()))
    if line.free:
        return Finding(along, EXACT, "the mass between unconnected pairs is free")
    return Finding(0.0 if along > 1e-4 else math.inf, 0, f"the mass between unconnected pairs is held, by {along:.1e}")


def _reductions(line: Line) -> Finding | str:
    if not line.equals:
        return UNSTATED
    off = [differ(slope(*_of(equal.one, equal.of)), slope(*_of(equal.other, equal.of))) for equal in line.equals]
    return Finding(max(off), EXACT, "; ".join(equal.says for equal in line.equals))


def _vectors(line: Line) -> Finding | str:
    """The shipped numbers, of losses, gradients, rewards and fixed points (conformance/)."""
    of = [entry for entry in entries() if entry["name"].split("/")[0] == line.name]
    if not of:
        return UNSTATED
    return Finding(max(worst(entry, method_of(entry)) for entry in of), EXACT, f"{len(of)} vectors")


def _of(part: tuple[Method, Batch], of: Models) -> tuple[Method, Models, Batch]:
    return part[0], of, part[1]


END_LAWS: tuple[Law[Line], ...] = (
    Law(
        "fixed point",
        "The gradient over a whole population is 0 at the distribution that the method states.",
        "Training does not end where the theory of this loss says: formula, sign, reference or β is wrong.",
        _stationary,
    ),
    Law(
        "descent",
        "Descent from random tables ends at a stated distribution.",
        "The stated distribution is not where training goes: it is no minimum, or not the only one.",
        _descent,
    ),
    Law(
        "hard labels",
        "A pair that is always labelled the same way moves apart: for ever, or to the stated margin.",
        "On clean labels the loss pushes the wrong way, as with a flipped sign, or stops elsewhere than stated.",
        _hard,
    ),
    Law(
        "free mass",
        "Pairs that nothing connects leave the mass between them free, or the loss holds it, as stated.",
        "The loss moves likelihood between answers that were never compared, or fails to hold what it says it holds.",
        _free_mass,
    ),
    Law(
        "reductions",
        "Where it should equal another method, it does, in loss and gradient.",
        "One of two methods that are the same by their papers is wrong.",
        _reductions,
    ),
    Law(
        "vectors",
        "On the conformance vectors, loss, gradient, rewards and scores are the numbers that are shipped.",
        "This version gives other numbers than the one that made the vectors: the loss has changed.",
        _vectors,
    ),
)
