"""Tokens as actions with a value: what a policy would do at a state, what its reference would, and what a prefix is worth.

Read as optimal, a policy says of each action how much better it is than the state (arXiv 2404.12358, eq 10):

    A(s,a) = β log π(a|s)/π_ref(a|s) = Q*(s,a) - V*(s),   E_π[A] = β KL(π‖π_ref) ≥ 0 ≥ -β KL(π_ref‖π) = E_ref[A]

A has no gauge. Values of states have one, GAUGE: along a response they are the running sum of A, and no more.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from softq.inspection.columns import SIDES
from softq.inspection.figures import Figure, Finding, bootstrapped
from softq.inspection.shelf import Shelf

GAUGE = (
    "The running sum of β log π/π_ref up to a token is V*(prefix) - V*(prompt) if all reward is paid at the end; what is paid on "
    "the way has to be taken off. V*(prompt) is not known: values of two prompts do not compare, those of two responses to one "
    "prompt do. However the reward is paid: at the end of a response the sum is its whole reward less V*(prompt), and the sum "
    "over the tokens still to come is their reward less V*(prefix). "
    "Of a response that was cut the end is not seen: nothing is known."
)
COLUMNS = ["record", "completion", "reward", "top_logp", "top_ref_logp"]
CUT = 0.05  # share of completions without an end from which on it is told


class State(NamedTuple):
    """What policy and reference would do at one state: the policy's likeliest tokens [K], the likeliest first."""

    text: list[str]
    policy: np.ndarray  # π of each
    reference: np.ndarray  # π_ref of each
    advantage: np.ndarray  # A of each; nan where neither would ever take it
    entropy: tuple[float, float]  # nats, of the policy and of the reference
    mean: tuple[float, float]  # E_π[A] ≥ 0 and E_ref[A] ≤ 0, over the whole vocabulary


class Values(NamedTuple):
    """Along responses, after each token [N]; nan in those that were cut."""

    prefix: (
        np.ndarray
    )  # V*(s') - V*(s_0) if all reward is paid at the end; after the last token the reward less V*(s_0)
    rest: np.ndarray  # the reward still to come less V*(s'): how much better it went on than was to be expected


def state(token: Mapping[str, Any], beta: float | None) -> State:
    """The state before a token: one row of the table "tokens" of a scored data set with a reference. β None: in nats."""
    logp, ref_logp = (np.array(token[name], dtype=np.float64) for name in ("top_logp", "top_ref_logp"))
    scale = 1.0 if beta is None else beta
    with np.errstate(invalid="ignore"):
        advantage = scale * (logp - ref_logp)
    return State(
        list(token["top_text"]),
        np.exp(logp),
        np.exp(ref_logp),
        advantage,
        (float(token["entropy"]), float(token["ref_entropy"])),
        (scale * float(token["kl"]), -scale * float(token["kl_from_ref"])),
    )


def prefixes(reward: np.ndarray, row: np.ndarray, ended: np.ndarray) -> Values:
    """Rewards [N] of tokens of completions `row` [N], numbered from 0 in order; ended [C] bool."""
    total = np.bincount(row, reward, len(ended))
    before = (np.cumsum(total) - total)[row]
    running = np.cumsum(reward) - before
    known = ended[row]
    return Values(np.where(known, running, np.nan), np.where(known, total[row] - running, np.nan))


def lost(advantage: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """[N, K] A of the policy's likeliest tokens, [N] of the token taken -> [N] ≥ 0: how much more the best of all these has. An A
    that is nan, of a token that neither would take, is none."""
    with np.errstate(invalid="ignore"):
        return np.maximum(np.fmax.reduce(advantage, -1) - taken, 0.0)


def figures(shelf: Shelf) -> list[Figure]:
    """How many completions ended, what taken tokens lose, and how often both models prefer one token, by side. Intervals are over
    records. None without a reference."""
    if not shelf.compared:
        return []
    (record, ended), unit = _ended(shelf), str(shelf.facts["unit"])
    meaning = "share of completions that ended: of the others no value is known"
    found = [_figure("identified", record, ended, "share", meaning)]
    parts = [_seen(tokens, shelf.facts["beta"]) for tokens in shelf.parts("tokens", COLUMNS) if tokens.num_rows]
    record, completion, numbers = (np.concatenate(each) for each in zip(*parts, strict=True))
    for k, side in enumerate(SIDES if shelf.kind == "pairs" else ("all",)):
        mine = np.isfinite(numbers).all(-1) & (completion == k if shelf.kind == "pairs" else True)
        if not mine.any():
            continue
        told = {
            "lost": (
                unit,
                f"mean A of the best of the policy's likely tokens less that of the taken one, {side} completions",
            ),
            "same": (
                "share",
                f"share of states at which both models hold the policy's likeliest token best, {side} completions",
            ),
        }
        found += [
            _figure(f"{side}/{name}", record[mine], numbers[mine, n], *of) for n, (name, of) in enumerate(told.items())
        ]
    return found


def findings(shelf: Shelf) -> list[Finding]:
    """A warning where completions were cut: their running sums are read as rewards, and are none."""
    cut = 1 - float(_ended(shelf)[1].mean()) if shelf.compared else 0.0
    if cut <= CUT:
        return []
    told = f"{cut:.0%} of completions were cut at a length limit: their reward lacks what is behind the cut"
    return [Finding("values/cut", "watch", told, "score with a larger --max-length, or leave them out")]


def _seen(tokens: pa.Table, beta: float | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each completion [C] its record, its number, and means over its tokens [C, 2]: `lost`, and whether the reference too
    holds the policy's likeliest token best of its likely ones."""
    column = {name: tokens[name].to_numpy() for name in ("record", "completion", "reward")}
    logp, ref_logp = (
        tokens[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(tokens.num_rows, -1)
        for name in ("top_logp", "top_ref_logp")
    )
    with np.errstate(invalid="ignore"):
        advantage = (1.0 if beta is None else beta) * (logp.astype(np.float64) - ref_logp)
    each = np.stack([lost(advantage, column["reward"]), ref_logp.argmax(-1) == 0], -1)
    first = np.flatnonzero(
        (np.diff(column["record"], prepend=-1) != 0) | (np.diff(column["completion"], prepend=-1) != 0)
    )
    count = np.diff([*first, tokens.num_rows])
    return column["record"][first], column["completion"][first], np.add.reduceat(each, first) / count[:, None]


def _ended(shelf: Shelf) -> tuple[np.ndarray, np.ndarray]:
    """Of each completion its record, and whether it ended."""
    names = [f"{side}_ended" for side in SIDES] if shelf.kind == "pairs" else ["ended"]
    table = shelf.table(shelf.kind, ["record", *names])
    record = table["record"].to_numpy()
    return np.tile(record, len(names)), np.concatenate([table[name].to_numpy() for name in names])


def _figure(name: str, record: np.ndarray, values: np.ndarray, unit: str, meaning: str) -> Figure:
    """A mean over completions [C]; the interval draws records."""
    at = np.unique(record, return_inverse=True)[1]
    total, count = np.bincount(at, values), np.bincount(at)
    interval = bootstrapped(lambda rows: float(total[rows].sum() / count[rows].sum()), len(total))
    return Figure(f"values/{name}", float(np.mean(values)), unit, len(values), meaning, interval)
