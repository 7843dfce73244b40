"""The whole family of methods in one small world: does each do what its paper says, and what of it can be seen here?

A model is fine-tuned on what an imperfect crowd writes, once a seed. Every method then trains it on the same pairs of the
crowd's answers, for a fifth of the demo's steps; the true reward of what it answers afterwards is known. Each training is a
file, so a study that was stopped goes on where it was.
"""

import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from softq.data.store import write_json, write_text
from softq.studies.arms import START, Results, arms
from softq.studies.by_seed import claim
from softq.studies.claims import claims
from softq.studies.family_plot import picture
from softq.studies.family_table import document, markdown
from softq.studies.ground import Recipe, ground, prepare
from softq.studies.side_by_side import side_by_side
from softq.studies.trial import Result, Trial, tried, untrained
from softq.training.events import Event, Note

EVERY = 10  # trainings between two notes
TABLE, FIGURES, PICTURE = "family.md", "family.json", "family.svg"


def family(
    directory: Path, seeds: Sequence[int], methods: Sequence[str], recipe: Recipe = Recipe(), *, processes: int = 2
) -> Iterator[Event]:
    """Train what is not yet trained, and write tables and picture into `directory`; events on the way.

    OutputError where the directory holds something else, or a study of another recipe.
    """
    claim(directory, recipe, "family")
    planned = arms(methods)
    jobs = [(trial, seed) for seed in seeds for trial in planned.all()]
    yield from _together(directory, recipe, [(None, seed) for seed in seeds], "models fine-tuned", processes)
    yield from _together(directory, recipe, jobs, "trainings done", processes)
    trials = [None, *planned.all()]
    results: Results = {
        START if trial is None else trial.name: {seed: read(file_of(directory, trial, seed)) for seed in seeds}
        for trial in trials
    }
    found = claims(results, planned)
    write_text(directory / TABLE, markdown(results, planned, found, recipe))
    write_text(directory / FIGURES, document(results, found, recipe))
    write_text(directory / PICTURE, picture(results, planned))
    yield Note(f"written to {directory}: {TABLE}, {FIGURES}, {PICTURE}")


def file_of(directory: Path, trial: Trial | None, seed: int) -> Path:
    """Where a training is written down; no trial: what the fine-tuned model is like."""
    name = START if trial is None else trial.name.replace(" ", "_")
    return directory / "runs" / f"{name}_seed={seed}.json"


def read(file: Path) -> Result:
    """A training that was written down."""
    return Result(**json.loads(file.read_text(encoding="utf-8")))


def _together(
    directory: Path, recipe: Recipe, jobs: Sequence[tuple[Trial | None, int]], done: str, processes: int
) -> Iterator[Event]:
    """Do what is not done yet, and say how far it is."""
    files = {job: file_of(directory, *job) for job in jobs}
    left = [job for job in jobs if not files[job].exists()]
    if len(left) < len(jobs):
        yield Note(f"{len(jobs) - len(left)} of {len(jobs)} {done}, by an earlier run")
    began, told = time.monotonic(), len(left)
    for _ in side_by_side(partial(_written, directory, recipe), left, processes):
        waiting = [job for job in left if not files[job].exists()]
        if told - len(waiting) >= EVERY or told > len(waiting) == 0:
            told = len(waiting)
            rest = _steps(recipe, waiting)
            minutes = (time.monotonic() - began) / 60 / (_steps(recipe, left) - rest) * rest
            yield Note(
                f"{len(jobs) - told} of {len(jobs)} {done}{f', about {minutes:.0f} min to go' if waiting else ''}"
            )


def _steps(recipe: Recipe, jobs: Sequence[tuple[Trial | None, int]]) -> int:
    """What they cost, as far as it can be told before."""
    return sum(recipe.long_steps if trial and trial.long else recipe.steps for trial, _ in jobs)


def _written(directory: Path, recipe: Recipe, job: tuple[Trial | None, int]) -> None:
    """One training, or the fine-tuning that all of a seed share, and its file."""
    trial, seed = job
    if trial is None:
        prepare(directory, recipe, seed)
    on = ground(directory, recipe, seed)
    found = untrained(on) if trial is None else tried(on, trial)
    write_json(file_of(directory, trial, seed), found._asdict())
