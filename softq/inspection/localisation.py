"""Does the reward of single tokens find an error that was put into a right answer? (arXiv 2404.12358, section 5.1)

Of completions with known errors, by any value of their tokens:
    top1  the share in which the lowest token is a wrong one
    auc   P(the token at which an error begins has less than another token of any of them), a tie counting half

In a data set of pairs the errors are known where the rejected completion is an edit of the chosen one: its tokens that the chosen
one has not are wrong. log π and log π_ref are the controls: an error may be found because it is rare.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from softq.data.differing import differing
from softq.inspection.figures import Figure, Finding, bootstrapped
from softq.inspection.shelf import Shelf

EDIT = 0.25
"""A rejected completion is an edit of the chosen one where at most this share of its tokens is not in it."""

FEW = 20  # errors below which nothing is told
BY: Mapping[str, str] = {
    "reward": "reward",
    "logp": "log-prob (control)",
    "ref_logp": "log-prob of the reference (control)",
}
COLUMNS = ["record", "completion", "token", *BY]


class Errors(NamedTuple):
    """Where the errors are in the tokens [N] of some completions."""

    row: np.ndarray  # which completion, from 0, in order
    wrong: np.ndarray  # bool: is part of an error
    first: np.ndarray  # bool: an error begins


class Edits(NamedTuple):
    """The rejected completions of a data set that are edits of the chosen ones."""

    record: np.ndarray  # [C]
    errors: Errors
    values: Mapping[str, np.ndarray]  # [N] of each name in BY


def hits(values: np.ndarray, of: Errors) -> np.ndarray:
    """[C] bool: whether the lowest value [N] of a completion is of a wrong token. Of equal values the earlier is lowest."""
    lowest = np.lexsort((values, of.row))[np.unique(of.row, return_index=True)[1]]
    return of.wrong[lowest]


def lower(values: np.ndarray, of: Errors) -> np.ndarray:
    """[E] of each token at which an error begins, the share of all others [N - E] that have more; their mean is auc."""
    return above(values[of.first], values[~of.first])


def above(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """[n], [m] -> [n]: what share of `high` is above each of `low`; an equal value counts half."""
    ordered = np.sort(high)
    left, right = np.searchsorted(ordered, low, "left"), np.searchsorted(ordered, low, "right")
    return 1 - (left + right) / 2 / len(ordered)


def edits(tokens: pa.Table) -> Edits:
    """Of pairs: the rejected completions that are edits of the chosen ones, and their wrong tokens."""
    column = {name: tokens[name].to_numpy() for name in COLUMNS}
    change = (np.diff(column["record"], prepend=-1) != 0) | (np.diff(column["completion"], prepend=-1) != 0)
    bounds = [*np.flatnonzero(change).tolist(), len(change)]
    records, wrongs, at = list[int](), list[np.ndarray](), list[np.ndarray]()
    for start, middle, end in zip(bounds[:-2:2], bounds[1:-1:2], bounds[2::2], strict=True):
        wrong = edited(column["token"][start:middle], column["token"][middle:end])
        if wrong is not None:
            records.append(int(column["record"][start]))
            wrongs.append(wrong)
            at.append(np.arange(middle, end))
    row = np.repeat(np.arange(len(at)), [len(each) for each in at])
    wrong, index = (np.concatenate(each) if at else np.zeros(0, kind) for each, kind in ((wrongs, bool), (at, int)))
    begins = np.concatenate([np.diff(each, prepend=False) & each for each in wrongs]) if at else wrong
    values = {name: column[name][index].astype(np.float64) for name in BY}
    return Edits(np.array(records, dtype=np.int64), Errors(row, wrong, begins), values)


def edited(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray | None:
    """ids [n], [m] -> [m] bool, the tokens of the rejected one that the chosen one has not; None where it is no edit of it.

    What is only missing is no error: no token of the rejected one could be blamed for it.
    """
    (a, n), (b, m) = (np.unique(ids, return_counts=True) for ids in (chosen, rejected))
    there, at = np.isin(b, a), np.searchsorted(a, b).clip(max=len(a) - 1)
    if (m - np.where(there, n[at], 0)).clip(min=0).sum() > EDIT * len(rejected):
        return None  # no need to align them
    wrong = differing(chosen, rejected)[1]
    return wrong if 0 < wrong.sum() <= EDIT * len(rejected) else None


def read(shelf: Shelf) -> Edits:
    """All edits of a scored data set of pairs. It must have a reference."""
    found = [edits(tokens) for tokens in shelf.parts("tokens", COLUMNS)]
    offset = np.cumsum([0, *(len(each.record) for each in found)])
    errors = [each.errors._replace(row=each.errors.row + add) for each, add in zip(found, offset[:-1], strict=True)]
    return Edits(
        np.concatenate([each.record for each in found]),
        Errors(*(np.concatenate(column) for column in zip(*errors, strict=True))),
        {name: np.concatenate([each.values[name] for each in found]) for name in BY},
    )


def figures(shelf: Shelf) -> list[Figure]:
    """top1 and auc by reward and by the controls, and what chance would find; none where no rejected completion is an edit.

    Intervals of auc are over errors, the other tokens held as they are.
    """
    of = _read(shelf)
    return [] if of is None else _figures(of)


def findings(shelf: Shelf) -> list[Finding]:
    """Whether the reward knows where the errors are, in words; the records whose lowest token is not one of them come with it."""
    if (of := _read(shelf)) is None:
        return []
    value = {figure.name.removeprefix("localisation/"): figure for figure in _figures(of)}
    if value["reward/auc"].of < FEW:
        return []
    found, control = value["reward/auc"], value["ref_logp/auc"]
    told = (
        f"in {found.of} errors of {len(of.record)} rejected completions that are edits of the chosen one, the lowest reward is "
        f"on a wrong token in {value['reward/top1'].value:.0%} (lowest log-prob of the reference: "
        f"{value['ref_logp/top1'].value:.0%}, chance: {value['chance'].value:.0%}); AUC {found.value:.2f}, of the reference "
        f"{control.value:.2f}"
    )
    missed = of.record[~hits(of.values["reward"], of.errors)].tolist()
    better = found.interval is not None and found.interval[0] > max(0.5, control.value)
    act = (
        "" if better else "do not read single tokens as blame: how rare a token is says as much of where the errors are"
    )
    return [Finding("localisation", "expected", told, act, missed)]  # a policy that blames the wrong token may be well


def _read(shelf: Shelf) -> Edits | None:
    of = read(shelf) if shelf.compared and shelf.kind == "pairs" else None
    return of if of is not None and len(of.record) else None


def _figures(of: Edits) -> list[Figure]:
    found = [
        _figure("chance", _chance(of), "share of wrong tokens in an edited completion: what a guess would find"),
    ]
    for name, told in BY.items():
        found += [
            _figure(
                f"{name}/top1",
                hits(of.values[name], of.errors),
                f"share of edited completions in which the token of lowest {told} is a wrong one",
            ),
            _figure(
                f"{name}/auc",
                lower(of.values[name], of.errors),
                f"P(the token at which an error begins has lower {told} than another token)",
            ),
        ]
    return found


def _chance(of: Edits) -> np.ndarray:
    return np.bincount(of.errors.row, of.errors.wrong) / np.bincount(of.errors.row)


def _figure(name: str, values: np.ndarray, meaning: str) -> Figure:
    interval = bootstrapped(lambda rows: float(values[rows].mean()), len(values))
    return Figure(
        f"localisation/{name}",
        float(values.mean()),
        "" if name.endswith("auc") else "share",
        len(values),
        meaning,
        interval,
    )
