"""A run of ours, read: its held-out records scored by what came of it, and some of them by each of its checkpoints.

RUN/inspect                       as `softq score` writes it: MOST held-out records at most, evenly spaced
RUN/inspect/checkpoints/step-…    likewise, SAMPLE of these records, by that checkpoint

Both are made once: what is newer than the run's manifest is taken as it is.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from softq.data.read import Dataset
from softq.data.rows import DataError
from softq.inspection.shelf import FACTS, Shelf, facts, place
from softq.lm.load import DTYPES, Loaded, load, reweigh
from softq.lm.tokenizer import load_tokenizer
from softq.reading.choice import Choice, choice
from softq.reading.outputs import claim
from softq.reading.run import Asked, Part, written
from softq.training import checkpoint, ranks
from softq.training.events import Note, OutputError
from softq.training.history import CHECKPOINTS, MANIFEST, Run
from softq.training.output import left
from softq.training.prepare import read_data
from softq.training.settings import Settings, build

INSPECTED = "inspect"
MOST, SAMPLE, POINTS = 512, 64, 12
"""Records that are scored by the result, and by each checkpoint; checkpoints that are."""


class Scores(NamedTuple):
    """Scores of a checkpoint."""

    step: int
    shelf: Shelf
    records: Sequence[int] | None  # which of the shelf's; None: all


def held_out(run: Run) -> Iterator[Note | Part]:
    """Score what is not scored yet. ValueError where the run is not finished, held nothing out, or can not be read again as it
    was; DataError where its data can not be read."""
    directory, output = run.directory, run.directory / INSPECTED
    _readable(run)
    steps = _steps(run)
    if all(_made(place, run) for place in (output, *(_place(output, step) for step in steps))):
        yield Note(f"scored before: {output}")
        return
    settings, held = _data(run)
    try:
        chosen = choice(str(directory), None, None)
    except ValueError as error:
        raise ValueError(f"{error}; that is {_instead(directory)}") from error
    loaded = _loaded(directory, settings, chosen, held[0])
    data = _part(held[1], MOST)
    asked = Asked(str(directory), (), output, max_length=settings.max_length, dtype=_dtype(settings))
    yield from map(Note, chosen.notes)
    yield Note(f"scoring {len(data.records):,} of {len(held[1].records):,} held-out records into {output}")
    yield from _written(asked, chosen, data, loaded)
    for step in steps:
        place, weights = _place(output, step), checkpoint.at(directory, step)
        if damage := checkpoint.damaged(weights):
            yield Note(f"checkpoint {weights} is damaged and passed over: {damage}")
            continue
        yield Note(f"scoring {min(SAMPLE, len(data.records))} of them by the checkpoint of step {step}")
        reweigh(loaded.policy, weights)
        asked = asked._replace(policy=str(weights), output=place)
        yield from _written(asked, chosen, _part(data, SAMPLE), loaded)


def course(run: Run) -> list[Scores]:
    """What was scored of a run, in the order of steps, on the same records: its checkpoints that are whole, then its
    result."""
    output = run.directory / INSPECTED
    last = Shelf(output)
    records = spaced(last.facts["records"], SAMPLE).tolist()
    scored = [(step, _place(output, step)) for step in _steps(run)]
    scores = [Scores(step, Shelf(place), None) for step, place in scored if (place / FACTS).is_file()]
    return [*scores, Scores(_last(run), last, records)] if scores else []


def spaced(count: int, most: int) -> np.ndarray:
    """At most so many of the numbers 0, 1, …, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _readable(run: Run) -> None:
    if run.state not in ("finished", "merged"):
        raise ValueError(
            f"{run.directory} is not finished ({run.state}); softq train … --resume finishes it, or score one of its "
            f"{CHECKPOINTS} with softq score --policy"
        )
    if not run.data.get("held_out"):
        raise ValueError(
            f"{run.directory} held no records out, so there is nothing to read it on; {_instead(run.directory)}"
        )


def _instead(directory: Path) -> str:
    return f"softq score --policy {directory} --data FILE --output SCORES, then softq inspect SCORES"


def _data(run: Run) -> tuple[Settings, tuple[str, Dataset]]:
    """The settings, and what was held out, read as training read it."""
    values = {name: value for name, value in run.settings.items() if name != "method"}
    settings, method, _ = build(run.method, values)
    try:
        data = read_data(run.method, settings, method, load_tokenizer(settings.model))
    except ValueError as error:  # most often a path that was relative to where the training ran
        kind = DataError if isinstance(error, DataError) else ValueError
        there = f"run softq inspect in the directory where softq train ran, or {_instead(run.directory)}"
        raise kind(f"{error}; {there}") from error
    content = [dataset.records.digest() for dataset in (data.train, data.held_out) if dataset]
    if content != run.data.get("content") or data.held is None:
        raise ValueError(
            f"the data of {run.directory} is not what it was trained on any more, so what was held out is not known; "
            f"{_instead(run.directory)}"
        )
    return settings, (settings.model, (data.held_out or data.train)._replace(records=data.held))


def _loaded(directory: Path, settings: Settings, chosen: Choice, spoken: str) -> Loaded:
    loaded = load(
        str(directory),
        chosen.reference,
        tokenizer=load_tokenizer(spoken).tokenizer,
        dtype=_dtype(settings),
        device=str(ranks.join(bf16=False).device),
    )
    chosen.check(loaded)
    return loaded


def _dtype(settings: Settings) -> str:
    return settings.dtype if settings.dtype in DTYPES else "bfloat16"


def _part(data: Dataset, most: int) -> Dataset:
    return data._replace(records=data.records.take(spaced(len(data.records), most)))


def _written(asked: Asked, chosen: Choice, data: Dataset, loaded: Loaded) -> Iterator[Note | Part]:
    """What an earlier result was scored into is replaced: the directory is ours."""
    try:
        claim(asked.output)
        yield from written(asked._replace(overwrite=True), chosen, data, loaded)
    except PermissionError as error:
        raise OutputError(
            f"{asked.output} can not be written: {error.strerror}; {_instead(asked.output.parent)}"
        ) from error


def _made(output: Path, run: Run) -> bool:
    """Whether scores are there, whole, and no older than the run's result."""
    file = output / FACTS
    if not file.is_file() or file.stat().st_mtime < (run.directory / MANIFEST).stat().st_mtime:
        return False
    said = facts(output)
    tables = ("pairs" if said["kind"] == "pairs" else "rows", "tokens")
    return said["finished"] and all(place(output, name, n).exists() for name in tables for n in range(said["parts"]))


def _steps(run: Run) -> list[int]:
    """The checkpoints that are scored: those before the result, evenly spaced."""
    before = [step for step in checkpoint.steps(run.directory) if step < _last(run)]
    return [before[n] for n in spaced(len(before), POINTS).tolist()] if before else []


def _last(run: Run) -> int:
    """The step whose weights are the result."""
    return int((left(run.directory) or {}).get("weights_of_step") or run.step)


def _place(output: Path, step: int) -> Path:
    return checkpoint.at(output, step)
