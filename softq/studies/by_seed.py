"""What studies of a few jobs a seed have in common: each job is a file, so a study that was stopped goes on where it was."""

import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from softq.data.store import write_json
from softq.studies.side_by_side import side_by_side
from softq.studies.small_model import Write, fine_tune
from softq.training.events import Note, OutputError
from softq.worlds.world import World

STUDY = "study.json"

Work = Callable[[Path, Any, int], Mapping[str, Any]]
"""(directory, recipe, seed) -> what the seed came to, as JSON can hold it; a module's own function."""

Job = tuple[Work, int]


def by_seed(
    directory: Path, study: str, recipe: Any, seeds: Sequence[int], *works: Work, processes: int
) -> Generator[Note, None, dict[int, dict[str, Any]]]:
    """Do the works of each seed that are not done yet, and return what all came to, with its "seconds" of a processor; events
    on the way.

    OutputError where the directory holds something else, or a study of another recipe.
    """
    claim(directory, recipe, study)
    left = [(work, seed) for work in works for seed in seeds if not file_of(directory, seed, work).exists()]
    yield Note(f"{len({seed for _, seed in left})} of {len(seeds)} seeds to do")
    for _ in side_by_side(partial(_done, directory, recipe), left, processes):
        pass
    return {seed: _read([file_of(directory, seed, work) for work in works]) for seed in seeds}


def claim(directory: Path, recipe: Any, study: str) -> None:
    """Make the directory, or take over an earlier study of this recipe; refuse one that holds anything else."""
    marked = directory / STUDY
    told = {"study": study, "recipe": recipe._asdict()}
    if marked.is_file():
        if (then := json.loads(marked.read_text(encoding="utf-8"))) != told:
            raise OutputError(f"--output {directory} holds another study, of {then}; give another directory")
    elif directory.exists() and any(directory.iterdir()):
        raise OutputError(f"--output {directory} is not empty and no earlier study's; give another directory")
    for name in ("models", "runs"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    write_json(marked, told)


def file_of(directory: Path, seed: int, work: Work) -> Path:
    """Where it is written down."""
    return directory / "runs" / f"seed={seed},{work.__name__}.json"


def fine_tuned(
    world: World, directory: Path, recipe: Any, seed: int, *, style: str = "", write: Write | None = None
) -> Path:
    """Where the fine-tuned model of a seed is, made once: of what the crowd writes, or another `style`. Two jobs that want it at
    the same time both make it, and it is the same."""
    place = directory / "models" / f"seed-{seed}{style}"
    if not place.exists():
        fresh = place.with_name(f"{place.name}.{os.getpid()}")
        fresh.mkdir(parents=True, exist_ok=True)
        fine_tune(world, fresh, seed, answers=recipe.demonstrations, steps=recipe.fine_tuning, write=write)
        try:
            fresh.rename(place)
        except OSError:  # the other was faster
            shutil.rmtree(fresh)
    return place


def _done(directory: Path, recipe: Any, job: Job) -> None:
    (work, seed), began = job, time.process_time()
    found = work(directory, recipe, seed)
    write_json(file_of(directory, seed, work), {**found, "seconds": time.process_time() - began})


def _read(files: Sequence[Path]) -> dict[str, Any]:
    parts = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    whole = {name: value for part in parts for name, value in part.items()}
    return {**whole, "seconds": sum(part["seconds"] for part in parts)}
