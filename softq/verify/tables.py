"""The lab's bench: models that are tables, a small uneven step for any method, and its loss and gradient by the river."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast
from zlib import crc32

import torch
from torch import Tensor, nn

from softq.lm.score import Models
from softq.mdp.tabular import TabularLM, TokenTree, every_trajectory, random_table, token_tree
from softq.records import COLUMNS, Batch, Labels, Method, Pairs, Readout, Scored, Tokens, no_credit, take
from softq.training.loop import with_columns
from softq.training.plan import Plan, losses, plan, scored_by
from softq.verify.law import apart

TREE = token_tree([(0, 1), (2,), (1, 1, 0)], vocabulary=4, horizon=3, end=3)
"""Three prompts of different lengths, completions of one to three tokens."""

EVERY = every_trajectory(TREE)
WHOLE = 10**9  # states a part: all of them


class Tables(Models):
    """Models that are tables. A further frozen one, by a name that a user's own method has for it, is random, and made when
    first read: the same of every name."""

    def forward(self, tokens: Tokens, needs: Sequence[Readout] = ()) -> Scored:
        """See `lm.score.score`."""
        tree = cast(TabularLM, self["policy"]).tree
        for name in {name for readout in needs for name in readout.models} - {*self}:
            self[name] = TabularLM(tree, random_table(tree, crc32(name.encode()), 0.3)).requires_grad_(False)
        return super().forward(tokens, needs)


class Slope(NamedTuple):
    """A step's loss, and its gradient with respect to the policy's table of logits [S, V]."""

    loss: Tensor
    gradient: Tensor


def models(
    policy: Tensor, reference: Tensor, tree: TokenTree = TREE, others: Mapping[str, Tensor] | None = None
) -> Models:
    """Tables of logits [S, V] as the policy, its frozen reference, and further frozen models: `others`, or `further`."""
    frozen = {"ref": reference, **(further(tree) if others is None else others)}
    tables = {name: TabularLM(tree, logits).requires_grad_(False) for name, logits in frozen.items()}
    return Tables({"policy": TabularLM(tree, policy), **tables})


def further(tree: TokenTree, scale: float = 0.3) -> dict[str, Tensor]:
    """Random tables [S, V] of the models that a method may read beside the policy and its reference, by their names."""
    return {"dpo": random_table(tree, 21, scale), "reverse": random_table(tree, 22, scale)}


def some_models(seed: int = 0, tree: TokenTree = TREE, scale: float = 1.0) -> Models:
    """A random policy and a random reference, and what else a method may read."""
    return models(random_table(tree, seed, scale), random_table(tree, seed + 1, scale), tree)


def table(of: Models) -> nn.Parameter:
    """The policy's logits [S, V], which training moves."""
    return cast(TabularLM, of["policy"]).table


def slope(method: Method, of: Models, batch: Batch, tokens_per_micro: int = WHOLE) -> Slope:
    """Loss and gradient of one step, cut as training cuts it into parts of at most so many states."""
    return planned_slope(method, of, planned(method, of, batch, tokens_per_micro))


def planned(method: Method, of: Models, batch: Batch, tokens_per_micro: int = WHOLE) -> Plan:
    """A step cut into parts. Of one part, the cut is the same wherever the policy is."""
    return plan(method, of, with_columns(batch, method.memory), tokens_per_micro=tokens_per_micro)


def planned_slope(method: Method, of: Models, planned: Plan) -> Slope:
    """Loss and gradient of a step that is cut already."""
    of.zero_grad()
    parts = []
    for micro in planned.micros:
        share = micro.share(scored_by(of, micro.batch, method))
        share.backward()
        parts.append(share.detach())
    found = table(of).grad
    gradient = torch.zeros_like(table(of)) if found is None else found.clone()
    return Slope(planned.whole[1] if planned.whole else torch.stack(parts).sum(), gradient)


def differ(one: Slope, other: Slope) -> float:
    """The larger of the differences of losses and gradients, relative where the loss is large."""
    size = max(1.0, abs(other.loss.item()))
    return max(apart(one.loss, other.loss), apart(one.gradient, other.gradient)) / size


def step_loss(method: Method, of: Models, batch: Batch) -> Tensor:
    """The loss alone, without a graph."""
    batch = with_columns(batch, method.memory)
    with torch.no_grad():
        return losses(method, scored_by(of, batch, method), batch, [term.weigh(batch) for term in method.terms])


def rows(which: list[int], prompt: list[int] | None = None) -> Tokens:
    """Some trajectories of TREE, with data records of one's own choice."""
    index = torch.tensor(which)
    own = EVERY.prompt[index] if prompt is None else torch.tensor(prompt)
    return Tokens(EVERY.ids[index], EVERY.action[index], EVERY.ended[index], own)


def some_step(method: Method) -> Batch:
    """Four records on three prompts with completions of one to three tokens, in the form that the method takes."""
    records = [0, 0, 1, 1, 2, 2, 3, 3]
    feedback: Pairs | Labels | None = None
    tokens = rows(OWN, records)
    if method.takes.startswith("labels"):
        if mismatched := method.takes == "labels+mismatched":
            tokens = rows(OWN + OTHERS, [*records, 1, 2, 3, 0])
        good = torch.tensor([True, False, True, True, False, True, False, False])
        feedback = Labels(torch.arange(8), good, torch.arange(8, 12 if mismatched else 8))
    if method.takes == "pairs":
        feedback = Pairs(torch.tensor([0, 3, 4, 6]), torch.tensor([1, 2, 5, 7]))
    spare = [0.0] * (len(tokens.ended) - 8)
    known = {name: [*values, *(spare if name == "reward" else [])] for name, values in KNOWN.items()}
    columns = {name: torch.tensor(known[name], dtype=torch.float64) for name in method.columns if name in known}
    return filled(method, Batch(tokens, feedback, columns), some_models(40))


KNOWN: Mapping[str, list[float]] = {
    "reward": [
        0.4,
        0.05,
        0.3,
        0.9,
        0.2,
        1.0,
        0.15,
        0.6,
    ],  # within 0 to 1: probabilities for a method that reads them so
    "weight": [1.0, 0.5, 2.0, 0.25],
    "margin": [0.5, 0.0, 1.5, -0.25],
    "label_probability": [0.9, 0.6, 1.0, 0.3],
}
"""What data may bring with a step of four records."""


def filled(method: Method, batch: Batch, of: Models) -> Batch:
    """The batch with every other column that the method reads: what its credit makes of the models, else random numbers.

    What data may leave out stays out. Credit is given once, by models that stand still: it has no gradient.
    """
    B, T = batch.tokens.action.shape
    pairs = len(batch.feedback.chosen) if isinstance(batch.feedback, Pairs) else 0
    shape = {"token": (B, T), "row": (B,), "pair": (pairs,), "step": ()}
    generator = torch.Generator().manual_seed(6)
    found: dict[str, Tensor] = {}
    for name in (name for name in method.columns if not {name} & {*batch.columns, *method.memory, *KNOWN}):
        unit = COLUMNS[name].unit if name in COLUMNS else "step"
        values = torch.randn(shape[unit], generator=generator, dtype=torch.float64)
        if name in COLUMNS and COLUMNS[name].measure == "0 or 1":
            values = (values > 0).double()
        found[name] = values * batch.tokens.action if unit == "token" else values
    whole = with_columns(with_columns(batch, found), method.memory)
    if method.credit is not no_credit:
        with torch.no_grad():
            found |= method.credit(scored_by(of, whole, method), whole)
    return with_columns(batch, found)


def _completions(prompt: int, length: int) -> list[int]:
    of = (EVERY.prompt == prompt) & (EVERY.action.sum(-1) == length)
    return of.nonzero()[:, 0].tolist()


OWN = [
    *(_completions(0, 1)[0], _completions(0, 3)[5]),
    *(_completions(1, 2)[1], _completions(1, 3)[20]),
    *(_completions(2, 3)[3], _completions(2, 1)[0]),
    *(_completions(0, 3)[11], _completions(0, 2)[0]),
]
OTHERS = [_completions(1, 3)[2], _completions(2, 3)[7], _completions(0, 3)[9], _completions(1, 2)[2]]


def one_by_one(of: Models, batch: Batch, method: Method) -> dict[str, Tensor]:
    """The scores of a step with every row scored by itself: nothing shared, nothing padded."""
    B, T = batch.tokens.action.shape
    scored: dict[str, list[Tensor]] = {}
    for row in range(B):
        alone = Batch(take(Batch(batch.tokens), torch.tensor([row]))[0].tokens)
        for name, values in of(alone.tokens, method.needs).items():
            wide = torch.nn.functional.pad(values[0], (0, T - values.shape[1]))
            scored.setdefault(name, []).append(wide)
    return {name: torch.stack(values) for name, values in scored.items()}
