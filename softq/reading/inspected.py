"""What `softq inspect` is given, opened: scores, or a run of ours, which is scored first; and what is known of the run."""

from collections.abc import Iterator
from pathlib import Path

from softq.data.rows import DataError
from softq.inspection.curves import THEIRS, log_of, logged, trend
from softq.inspection.figures import Finding
from softq.inspection.report import Ran, Subject
from softq.inspection.shelf import FACTS, Shelf
from softq.reading.checkpoints import course
from softq.reading.choice import run_of
from softq.reading.held_out import INSPECTED, held_out
from softq.reading.tables import Part
from softq.training.events import Note
from softq.training.history import MANIFEST
from softq.training.output import left

TOLD = (
    "kind",
    "policy",
    "reference",
    "beta",
    "unit",
    "dtype",
    "layout",
    "data",
    "content",
    "records",
    "ledger",
    "versions",
)
"""What a report tells of its scores."""


def opened(directory: Path) -> Iterator[Note | Part | Subject]:
    """Events on the way, and at last the Subject. ValueError where a directory holds nothing to read, with what to do."""
    if (directory / FACTS).is_file():
        shelf = Shelf(directory)
        if lost := [name for name in TOLD if name not in shelf.facts]:
            raise DataError(
                f"{directory / FACTS} has no {lost[0]!r}, so it was changed: score again, into another directory"
            )
        yield Subject(shelf, ran(shelf, Path(shelf.facts["policy"]["model"])))
        return
    run = run_of(str(directory))
    if run is None:
        raise ValueError(_nothing(directory))
    yield from held_out(run)
    shelf = Shelf(directory / INSPECTED)
    yield Subject(shelf, ran(shelf, directory))


def ran(shelf: Shelf, directory: Path) -> Ran:
    """The run that made the policy in a directory: our manifest and metrics.jsonl, or another library's trainer_state.json; and
    its checkpoints, if they scored too."""
    log = log_of(directory)
    curves = logged(log, shelf.facts["beta"] if shelf.compared else None) if log else []
    curves += trend(course(shelf, directory))
    run = run_of(str(directory))
    if run is None:
        return Ran(curves)
    manifest = left(directory) or {}
    findings = [Finding("run/warned", "watch", said) for said in manifest.get("verdicts", ())]
    return Ran(curves, findings, run.settings, manifest["versions"])


def _nothing(directory: Path) -> str:
    """Why a directory can not be inspected, and what to do."""
    wanted = "give the output of softq score, or of softq train"
    if not directory.exists():
        return f"{directory}: no such directory; {wanted}"
    if not directory.is_dir():
        return f"{directory} is a file; {wanted}"
    models = ("config.json", "adapter_config.json", THEIRS)
    if any((directory / name).is_file() for name in models) or any(directory.glob(f"checkpoint-*/{THEIRS}")):
        return (
            f"{directory} is a model, not scores of one: softq score --policy {directory} --reference REFERENCE --data FILE "
            "--output SCORES, then softq inspect SCORES"
        )
    return f"{directory} holds neither a {FACTS} nor a {MANIFEST} of softq; {wanted}"
