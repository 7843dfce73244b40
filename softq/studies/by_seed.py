"""What studies of one job a seed have in common: each seed is a file, so a study that was stopped goes on where it was."""

import json
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


def by_seed(
    directory: Path, study: str, recipe: Any, seeds: Sequence[int], work: Work, *, processes: int
) -> Generator[Note, None, dict[int, dict[str, Any]]]:
    """Do the work of each seed that is not done yet, and return what all came to; events on the way.

    OutputError where the directory holds something else, or a study of another recipe.
    """
    claim(directory, recipe, study)
    left = [seed for seed in seeds if not file_of(directory, seed).exists()]
    yield Note(f"{len(left)} of {len(seeds)} seeds to do")
    for _ in side_by_side(partial(_done, directory, recipe, work), left, processes):
        pass
    return {seed: json.loads(file_of(directory, seed).read_text(encoding="utf-8")) for seed in seeds}


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


def file_of(directory: Path, seed: int) -> Path:
    """Where a seed is written down."""
    return directory / "runs" / f"seed={seed}.json"


def fine_tuned(
    world: World, directory: Path, recipe: Any, seed: int, *, style: str = "", write: Write | None = None
) -> Path:
    """Where the fine-tuned model of a seed is, made once: of what the crowd writes, or another `style`."""
    place = directory / "models" / f"seed-{seed}{style}"
    if not (place / "tokenizer_config.json").exists():  # which is written last
        place.mkdir(parents=True, exist_ok=True)
        fine_tune(world, place, seed, answers=recipe.demonstrations, steps=recipe.fine_tuning, write=write)
    return place


def _done(directory: Path, recipe: Any, work: Work, seed: int) -> None:
    write_json(file_of(directory, seed), work(directory, recipe, seed))
