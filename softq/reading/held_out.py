"""A run of ours, read: its held-out records, MOST at most, scored into RUN/inspect as `softq score` does it, checkpoints too.

That is made once: what is newer than the run's manifest is taken as it is.
"""

from collections.abc import Iterator
from pathlib import Path

from softq.data.read import Dataset
from softq.data.rows import DataError
from softq.inspection.shelf import FACTS, facts
from softq.inspection.shelf import place as file_of
from softq.lm.load import DTYPES, Loaded, load
from softq.lm.tokenizer import load_tokenizer
from softq.reading.checkpoints import checkpoints, part, place, scored_by
from softq.reading.choice import Choice, choice
from softq.reading.outputs import claim
from softq.reading.tables import Asked, Part, written
from softq.training import ranks
from softq.training.events import Note, OutputError
from softq.training.history import CHECKPOINTS, MANIFEST, Run
from softq.training.prepare import read_data
from softq.training.settings import Settings, build

INSPECTED = "inspect"
MOST = 512


def held_out(run: Run) -> Iterator[Note | Part]:
    """Score what is not scored yet. ValueError where the run is not finished, held nothing out, or can not be read again as it
    was; DataError where its data can not be read."""
    directory, output = run.directory, run.directory / INSPECTED
    _readable(run)
    before = checkpoints(directory)
    if all(_made(there, run) for there in (output, *(place(output, each) for each in before))):
        yield Note(f"scored before: {output}")
        return
    settings, held = _data(run)
    try:
        chosen = choice(str(directory), None, None)
    except ValueError as error:
        raise ValueError(f"{error}; that is {_instead(directory)}") from error
    loaded = _loaded(directory, settings, chosen, held[0])
    data = part(held[1], MOST)
    asked = Asked(str(directory), (), output, max_length=settings.max_length, dtype=_dtype(settings), overwrite=True)
    yield from map(Note, chosen.notes)
    yield Note(f"scoring {len(data.records):,} of {len(held[1].records):,} held-out records into {output}")
    try:
        claim(output)
        yield from written(asked, chosen, data, loaded)
        yield from scored_by(before, asked, chosen, data, loaded)
    except PermissionError as error:
        raise OutputError(f"{output} can not be written: {error.strerror}; {_instead(directory)}") from error


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


def _made(output: Path, run: Run) -> bool:
    """Whether scores are there, whole, and no older than the run's result."""
    file = output / FACTS
    if not file.is_file() or file.stat().st_mtime < (run.directory / MANIFEST).stat().st_mtime:
        return False
    said = facts(output)
    tables = ("pairs" if said["kind"] == "pairs" else "rows", "tokens")
    return said["finished"] and all(file_of(output, name, n).exists() for name in tables for n in range(said["parts"]))
