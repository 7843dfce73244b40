"""The directory that scores go to: what may be there before, and what may not."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softq.data.store import write_json
from softq.inspection.columns import TABLES
from softq.inspection.shelf import FACTS, place, said_of
from softq.reading.cross_fit import removed
from softq.training import ranks
from softq.training.events import OutputError
from softq.training.history import CHECKPOINTS

UNTOLD: Mapping[str, str] = dict.fromkeys(("content", "ledger"), "data set of the same name")
"""Facts that are too long for a message, and what it says in their place."""


def claim(there: Path) -> None:
    """OutputError where an output holds what softq score did not write."""
    if there.exists() and not there.is_dir():
        raise OutputError(f"--output {there} is a file; give a directory")
    if not there.is_dir() or said_of(there) is not None:
        return
    held = {path.name for path in there.iterdir()} - {f".{FACTS}.partial"}  # all that one leaves, killed at its start
    if held:
        raise OutputError(f"--output {there} is not empty, and softq score did not write what is there; give another")


def check_open(there: Path) -> None:
    """OutputError where an output can not be made or written, before anything is read for it."""
    home = next(path for path in (there, *there.parents) if path.exists())
    if not home.is_dir():
        raise OutputError(f"--output {there} can not be made: {home} is a file; give another")
    if not os.access(home, os.W_OK | os.X_OK):
        raise OutputError(f"--output {there} can not be written: {home} is closed to you; give another")


def keep_or_remove(there: Path, said: Mapping[str, Any], *, overwrite: bool) -> None:
    """What is there is kept if it is a part of the same. Else it is removed, if that was asked for, or an OutputError."""
    before = said_of(there)
    changed = [name for name in ("dtype", *said) if name != "finished" and before and before.get(name) != said[name]]
    if before is None or not changed or (changed == ["fresh"] and not before["fresh"]):
        return  # samples may be added to what is there
    if not overwrite:
        told = (
            UNTOLD.get(changed[0]) or f"{changed[0]} ({_told(before.get(changed[0]))}, now {_told(said[changed[0]])})"
        )
        raise OutputError(f"--output {there} holds scores of another {told}; give another, or --overwrite")
    if ranks.first():
        unfinished = {**before, "finished": False}  # said first, so that what is left is whole or says that it is not
        write_json(there / FACTS, unfinished)
        for table in TABLES:
            for part in range(before["parts"]):
                place(there, table, part).unlink(missing_ok=True)
        removed(there)
        for scores in there.glob(f"{CHECKPOINTS}/*/{FACTS}"):
            shutil.rmtree(scores.parent)
    ranks.wait()


def _told(value: Any) -> str:
    """A fact in a line: a model by its name and the beginning of its fingerprint."""
    if isinstance(value, Mapping) and {"model", "fingerprint"} <= value.keys():
        known = value["model"] == "uniform"
        return value["model"] if known else f"{value['model']} {value['fingerprint'][:8]}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
