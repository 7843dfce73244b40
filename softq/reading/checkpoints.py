"""The run behind a policy, as a trend: some of the records that the policy scored, scored by each of its checkpoints.

SCORES/checkpoints/NAME   as `softq score` writes it, by the checkpoint of that name: step-… of ours, checkpoint-… of
                          transformers' Trainer and what stands on it
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from softq.data.read import Dataset
from softq.inspection.shelf import FACTS, Shelf, said_of
from softq.lm.load import Loaded, reweigh
from softq.reading.choice import Choice, run_of
from softq.reading.outputs import claim
from softq.reading.tables import Asked, Part, written
from softq.training import checkpoint
from softq.training.events import Note
from softq.training.history import CHECKPOINTS, Run
from softq.training.output import left

POINTS = 12  # checkpoints that score
THEIRS = re.compile(r"checkpoint-(\d+)")


class Checkpoint(NamedTuple):
    """Weights on the way to a policy."""

    step: int
    directory: Path


class Scores(NamedTuple):
    """Scores of a checkpoint."""

    step: int
    shelf: Shelf
    records: Sequence[int] | None  # which of the shelf's; None: all


def checkpoints(policy: Path) -> list[Checkpoint]:
    """Those of the run that made the policy in a directory, evenly spaced: of ours those before its result; none of a name on the
    hub."""
    run = run_of(str(policy))
    if run is not None:
        found = [Checkpoint(step, checkpoint.at(policy, step)) for step in checkpoint.steps(policy) if step < last(run)]
    else:
        named = [(THEIRS.fullmatch(path.name), path) for path in policy.glob("checkpoint-*") if path.is_dir()]
        found = sorted(Checkpoint(int(match[1]), path) for match, path in named if match)
    return [found[n] for n in spaced(len(found), POINTS).tolist()] if found else []


def last(run: Run) -> int:
    """The step whose weights are the result of a run of ours."""
    return int((left(run.directory) or {}).get("weights_of_step") or run.step)


def spaced(count: int, most: int) -> np.ndarray:
    """At most so many of the numbers 0, 1, …, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def part(data: Dataset, most: int) -> Dataset:
    """At most so many of its records, evenly spaced."""
    return data._replace(records=data.records.take(spaced(len(data.records), most)))


def place(output: Path, of: Checkpoint) -> Path:
    """Where a checkpoint's scores go."""
    return output / CHECKPOINTS / of.directory.name


def scored_by(
    found: Sequence[Checkpoint], asked: Asked, chosen: Choice, data: Dataset, loaded: Loaded
) -> Iterator[Note | Part]:
    """Score `asked.checkpoints` of the records by each checkpoint; the policy is left with the weights of the last.

    What earlier checkpoints of a name were scored into is replaced. One that is damaged, or of another model, is passed over
    aloud.
    """
    few = part(data, asked.checkpoints)
    for each in found:
        if problem := _put(loaded, each.directory):
            yield Note(f"checkpoint {each.directory} is passed over: {problem}")
            continue
        yield Note(f"scoring {len(few.records)} of them by the checkpoint of step {each.step}")
        of = asked._replace(policy=str(each.directory), output=place(asked.output, each), overwrite=True, fresh=0)
        claim(of.output)
        yield from written(of, chosen, few, loaded)


def course(shelf: Shelf, policy: Path) -> list[Scores]:
    """What was scored by checkpoints, in the order of steps, on the same records; of a run of ours, and then by its result."""
    there = (
        (re.search(r"\d+$", file.parent.name), file.parent) for file in shelf.directory.glob(f"{CHECKPOINTS}/*/{FACTS}")
    )
    whole = sorted((int(match[0]), path) for match, path in there if match and (said_of(path) or {}).get("finished"))
    scores = [Scores(step, Shelf(path), None) for step, path in whole]
    run = run_of(str(policy))
    if not scores or run is None:
        return scores
    records = spaced(shelf.facts["records"], scores[0].shelf.facts["records"]).tolist()
    return [*(each for each in scores if each.step < last(run)), Scores(last(run), shelf, records)]


def _put(loaded: Loaded, weights: Path) -> str | None:
    """Put a checkpoint's weights into the policy; what is wrong if they can not be."""
    if not THEIRS.fullmatch(weights.name) and (damage := checkpoint.damaged(weights)):
        return damage
    try:
        reweigh(loaded.policy, weights)
    except ValueError as error:
        return str(error)
    return None
