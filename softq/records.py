"""The records that everything is made of: what happened in tokens, what is known about it, what a model says of it.

Shapes: B rows, L ids, T = L - 1 actions, P pairs, U labels, G groups, V vocabulary, H width, N tree nodes.
State t is ids[:, :t+1], action t is ids[:, t+1], and logp[:, t] = log π(action t | state t).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

Scored = Mapping[str, Tensor]
"""What the models say of a batch: "logp" [B, T] in nats with gradient, and every readout by its name; 0 outside action.

A reward model has no "logp": it has no head over tokens.
"""


@dataclass(frozen=True)
class Tokens:
    """What happened, in tokens: one row is one prompt and one completion, padded on the right.

    A prompt [5, 6] answered by [7, 2], where 2 is the end token, and by [8], which was cut:

        ids    = [[5, 6, 7, 2], [5, 6, 8, 0]]
        action = [[F, T, T], [F, T, F]]        action[:, t] speaks of ids[:, t+1]
        ended  = [True, False]
        prompt = [0, 0]                        both rows share the states of prompt 0
    """

    ids: Tensor  # [B, L] int64, right-padded
    action: Tensor  # [B, T] bool; True where ids[:, t+1] was chosen by the policy, its end token included
    ended: Tensor  # [B] bool; False: cut at the length limit, so the last state still has value
    prompt: Tensor  # [B] int64; the data record a row belongs to: its rows share their common prefix and stay together

    def __post_init__(self) -> None:
        B, L = _shape(self.ids, "ids", torch.int64, 2)
        _expect(L >= 2, f"ids has {L} column(s); a row needs at least one prompt token and one action")
        _expect_shape(self.action, "action", torch.bool, (B, L - 1))
        _expect_shape(self.ended, "ended", torch.bool, (B,))
        _expect_shape(self.prompt, "prompt", torch.int64, (B,))


@dataclass(frozen=True)
class Tree:
    """The same tokens without repetition; depth is the position, ancestors are what a node attends to.

    The two rows of `Tokens` above, without their last ids (which are no states): token [5, 6, 7], parent [-1, 0, 1].
    A parent stands before its children.
    """

    token: Tensor  # [N] int64
    parent: Tensor  # [N] int64; -1 at a root

    def __post_init__(self) -> None:
        (N,) = _shape(self.token, "token", torch.int64, 1)
        _expect_shape(self.parent, "parent", torch.int64, (N,))
        before = self.parent < torch.arange(N, device=self.parent.device)
        _expect(bool(before.all()), "a node stands before its parent; list parents first")


@dataclass(frozen=True)
class Pairs:
    """Preferences: row `chosen[p]` was preferred to row `rejected[p]`."""

    chosen: Tensor  # [P] int64, rows of Tokens
    rejected: Tensor  # [P] int64, rows of Tokens

    def __post_init__(self) -> None:
        (P,) = _shape(self.chosen, "chosen", torch.int64, 1)
        _expect_shape(self.rejected, "rejected", torch.int64, (P,))


@dataclass(frozen=True)
class Labels:
    """Unpaired feedback: `row[u]` was judged good or bad; rows `mismatched` hold a completion under another's prompt."""

    row: Tensor  # [U] int64, rows of Tokens
    good: Tensor  # [U] bool
    mismatched: Tensor  # [M] int64, rows of Tokens, not among `row`

    def __post_init__(self) -> None:
        (U,) = _shape(self.row, "row", torch.int64, 1)
        _expect_shape(self.good, "good", torch.bool, (U,))
        _shape(self.mismatched, "mismatched", torch.int64, 1)


class Column(NamedTuple):
    """One kind of extra knowledge about a batch: what it belongs to, its unit and its meaning."""

    unit: str  # "token" [B, T], "row" [B], "pair" [P] or "step" (a scalar of the whole step)
    measure: str
    meaning: str
    given: bool = False  # a row of a data file may bring it; then the method must read it


COLUMNS: Mapping[str, Column] = {
    "weight": Column(
        "pair", "none, ≥ 0", "how much a pair counts, relative to the other pairs of its step", given=True
    ),
    "margin": Column("pair", "reward", "by how much the chosen one should be better", given=True),
    "label_probability": Column("pair", "none, 0 to 1", "how likely the chosen one is the better one", given=True),
    "ref_logps": Column("row", "nats", "the reference's log-probability of the whole completion, stored", given=True),
    "reward": Column("row", "reward", "the score of a whole completion"),
    "advantage": Column("token", "reward", "how much better an action was than expected"),
    "old_logp": Column("token", "nats", "log-probability under the policy that sampled the action"),
    "ref_logp": Column("token", "nats", "log-probability under the reference, stored: it need not be scored again"),
    "value_target": Column("token", "reward", "what the value of the state behind the action is drawn to"),
    "diff": Column("token", "0 or 1", "whether the action stands in what a pair's completions do not share"),
    "source": Column("row", "number", "which source of data the row came from"),
}
"""Every column that a method may read, or that a readout of its name is taken from."""


@dataclass(frozen=True)
class Batch:
    """One optimiser step, or a part of it: tokens, the feedback on them, and what else is known."""

    tokens: Tokens
    feedback: Pairs | Labels | None = None  # None: demonstrations, rollouts, groups (`prompt` is the group)
    columns: Mapping[str, Tensor] = field(default_factory=dict)  # names of COLUMNS, and a method's memory as scalars

    def __post_init__(self) -> None:
        B, T = self.tokens.action.shape
        for name, rows in _relations(self.feedback):
            inside = bool(((rows >= 0) & (rows < B)).all())
            _expect(inside, f"{name} names a row outside 0..{B - 1}")
        pairs = self.feedback.chosen.shape[0] if isinstance(self.feedback, Pairs) else 0
        expected = {"token": (B, T), "row": (B,), "pair": (pairs,), "step": ()}
        for name, column in self.columns.items():
            unit = COLUMNS[name].unit if name in COLUMNS else "step"
            _expect(
                tuple(column.shape) == expected[unit],
                f"column {name!r} has shape {list(column.shape)}; one value a {unit} is {list(expected[unit])}",
            )

    @property
    def pairs(self) -> Pairs:
        """The feedback, where it must be pairs."""
        if not isinstance(self.feedback, Pairs):
            raise ValueError(f"this loss compares pairs; the batch holds {_kind(self.feedback)}")
        return self.feedback

    @property
    def labels(self) -> Labels:
        """The feedback, where it must be labels."""
        if not isinstance(self.feedback, Labels):
            raise ValueError(f"this loss reads labels; the batch holds {_kind(self.feedback)}")
        return self.feedback


class Readout(NamedTuple):
    """Something of the size of the vocabulary (or of the hidden state), reduced to numbers per action where it is seen."""

    name: str
    models: tuple[str, ...]  # ("policy",), ("policy", "ref"), ...
    at: str  # "log_probs" of the state; "hidden": the head's input; "value": what a head says of the state behind the action
    fn: Callable[[Mapping[str, Tensor], Tensor], Tensor]  # {model: [n, V], [n, H] or [n]}, action [n] -> [n, ...]


class Term(NamedTuple):
    """One summand of a loss. The step's loss is Σ loss · weigh over everything in the step."""

    name: str
    unit: str  # what one value of the loss belongs to: "token" [B, T], "row" [B], "label" [U], "pair" [P], "group" [G]
    loss: Callable[[Scored, Batch], Tensor]
    weigh: Callable[[Batch], Tensor]  # the same shape; computed once for a whole optimiser step, before any split
    total: float = 1.0  # what the weights of a step sum to


def no_credit(scored: Scored, batch: Batch) -> Mapping[str, Tensor]:
    """No new columns: the feedback is the credit."""
    return {}


def implicit(scored: Scored, batch: Batch) -> Tensor:
    """log π(y|x)/π_ref(y|x) [B] in nats, or log π(y|x) where no reference was scored."""
    ratio = scored["logp"] - scored["ref_logp"] if "ref_logp" in scored else scored["logp"]
    return ratio.sum(-1)


def like(scored: Scored) -> Tensor:
    """Any of the scores: all are of one dtype and on one device."""
    return next(iter(scored.values()))


def valued(method: "Method") -> bool:
    """Whether the method trains a reward model: what it reads of the policy is what a value head says."""
    return any(readout.at == "value" and "policy" in readout.models for readout in method.needs)


class FixedPoint(NamedTuple):
    """The distribution that a method's loss over a whole population is stationary at: what the lab holds it to."""

    population: str  # which population, a name of `verify.populations.POPULATIONS`: "soft pairs", "groups", ...
    log_policy: Callable[
        [Scored, Batch], Tensor
    ]  # of a population with every completion of its prompts: log π(y|x) [B]
    # up to a constant a prompt, from the reference's log-probs, the column "reward" and the feedback; several: [K, B]
    reads: tuple[Readout, ...] = ()  # what else `log_policy` reads, of frozen models


class Method(NamedTuple):
    """A training method: data and a few pure functions."""

    terms: tuple[Term, ...]
    needs: tuple[Readout, ...] = ()  # beside "logp"; without one that reads "ref" no reference is loaded
    takes: str = "pairs"  # "pairs", "labels", "labels+mismatched", "groups" (scored completions) or "rows"
    beta: float = 1.0  # reward per nat, for rewards/*; of a sum, see `weighted_sum`
    columns: tuple[str, ...] = ()  # columns that the loss reads
    credit: Callable[[Scored, Batch], Mapping[str, Tensor]] = no_credit  # new columns, on the whole batch, no gradient
    reward: Callable[[Scored, Batch], Tensor] = (
        implicit  # [B]; beta times it is the score that this loss trains (scores/*)
    )
    memory: Mapping[str, Tensor] = {}  # running statistics (scalars): columns of every batch, saved in checkpoints
    remember: Callable[[Mapping[str, Tensor], Scored, Batch], Mapping[str, Tensor]] | None = (
        None  # after each step, pure
    )
    coupled: bool = False  # the gradient of one row depends on rows of other prompts (AOT's sort, KTO's batch KL)
    stops: bool = (
        False  # a part of the loss is held constant by definition (WPO's weight): its gradient is not the loss's own
    )
    fixed_point: FixedPoint | None = None  # where training ends, if that is known; `softq verify` proves it


def take(batch: Batch, rows: Tensor) -> tuple[Batch, Mapping[str, Tensor]]:
    """The part of a batch that stands on `rows` [b], and, per unit, which values of the whole it keeps.

    A relation is kept when all of its rows are kept. Padding that only the dropped rows needed is cut.
    """
    B = batch.tokens.ids.shape[0]
    device = batch.tokens.ids.device
    where = torch.full((B,), -1, dtype=torch.int64, device=device)
    where[rows] = torch.arange(len(rows), device=device)
    width = last_action(batch.tokens.action[rows]) + 2
    kept = {"row": rows, "token": rows, "group": _groups_kept(batch.tokens.prompt, rows)}
    feedback = batch.feedback
    if isinstance(feedback, Pairs):
        kept["pair"] = ((where[feedback.chosen] >= 0) & (where[feedback.rejected] >= 0)).nonzero()[:, 0]
        feedback = Pairs(where[feedback.chosen[kept["pair"]]], where[feedback.rejected[kept["pair"]]])
    if isinstance(feedback, Labels):
        kept["label"] = (where[feedback.row] >= 0).nonzero()[:, 0]
        mismatched = where[feedback.mismatched]
        feedback = Labels(where[feedback.row[kept["label"]]], feedback.good[kept["label"]], mismatched[mismatched >= 0])
    tokens = Tokens(
        batch.tokens.ids[rows, :width],
        batch.tokens.action[rows, : width - 1],
        batch.tokens.ended[rows],
        batch.tokens.prompt[rows],
    )
    columns = {name: _part(name, column, kept, width - 1) for name, column in batch.columns.items()}
    return Batch(tokens, feedback, columns), kept


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on another device."""
    tokens, feedback = batch.tokens, batch.feedback
    if isinstance(feedback, Pairs):
        feedback = Pairs(feedback.chosen.to(device), feedback.rejected.to(device))
    if isinstance(feedback, Labels):
        feedback = Labels(feedback.row.to(device), feedback.good.to(device), feedback.mismatched.to(device))
    return Batch(
        Tokens(tokens.ids.to(device), tokens.action.to(device), tokens.ended.to(device), tokens.prompt.to(device)),
        feedback,
        {name: column.to(device) for name, column in batch.columns.items()},
    )


def group_of(prompt: Tensor) -> Tensor:
    """[B] prompt numbers -> [B] group numbers 0..G-1, in ascending order of the prompt number."""
    return torch.unique(prompt, return_inverse=True)[1]


def last_action(action: Tensor) -> int:
    """The last column of `action` [B, T] that holds an action; 0 where there is none."""
    columns = action.any(0).nonzero()
    return int(columns[-1]) if len(columns) else 0


def _groups_kept(prompt: Tensor, rows: Tensor) -> Tensor:
    return torch.unique(group_of(prompt)[rows])


def _part(name: str, column: Tensor, kept: Mapping[str, Tensor], width: int) -> Tensor:
    unit = COLUMNS[name].unit if name in COLUMNS else "step"
    if unit == "step":
        return column
    return column[kept[unit], :width] if unit == "token" else column[kept[unit]]


def _relations(feedback: Pairs | Labels | None) -> list[tuple[str, Tensor]]:
    if isinstance(feedback, Pairs):
        return [("chosen", feedback.chosen), ("rejected", feedback.rejected)]
    if isinstance(feedback, Labels):
        return [("row", feedback.row), ("mismatched", feedback.mismatched)]
    return []


def _kind(feedback: Pairs | Labels | None) -> str:
    return "no feedback" if feedback is None else type(feedback).__name__.lower()


def _shape(tensor: Tensor, name: str, dtype: torch.dtype, rank: int) -> tuple[int, ...]:
    _expect(
        tensor.dtype == dtype and tensor.dim() == rank,
        f"{name} is {tensor.dtype} of shape {list(tensor.shape)}; expected {dtype} with {rank} dimension(s)",
    )
    return tuple(tensor.shape)


def _expect_shape(tensor: Tensor, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    _expect(
        tensor.dtype == dtype and tuple(tensor.shape) == shape,
        f"{name} is {tensor.dtype} of shape {list(tensor.shape)}; expected {dtype} of shape {list(shape)}",
    )


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
