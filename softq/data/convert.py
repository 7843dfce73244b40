"""A data set rewritten: transforms in a fixed order, then a file in TRL's columns, with its own account beside it."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from softq.data import transform
from softq.data.example import Example
from softq.data.read import dropped_line
from softq.data.rows import DataError, Dropped
from softq.data.store import write_json
from softq.data.transform import Record
from softq.data.write import Writer, row

ACCOUNT = ("ledger.json", "dropped.jsonl")  # what stands beside a file


class Changes(NamedTuple):
    """What is to be done, in this order; None or False: not done."""

    pairs: str | None = None  # of groups: "best-worst" or "all"
    margin: float = 0.0  # of these pairs: scores differ by more
    best: bool = False  # of groups: demonstrations
    unpair: bool = False  # pairs or groups to labels
    threshold: float | None = None  # of groups: a score above it is good
    demonstrations: bool = False  # of pairs: the chosen completions
    swap: bool = False
    flip: float | None = None  # the share of records whose label is turned
    length_match: bool = False
    relabel: str | None = None  # of pairs: where the goal stands, "system" or "user"
    sample: float | None = None  # a share below 1, or so many records
    split: float | None = None  # the share of prompts that is held out
    seed: int = 42


class Written(NamedTuple):
    """What came of a conversion."""

    kind: str
    rows: Mapping[str, int]  # file -> rows
    left_out: Mapping[str, int]  # reason -> records, or completions, that a transform left out


class Target(NamedTuple):
    """Where to write."""

    file: Path
    held_out: Path | None = None
    overwrite: bool = False


def convert(records: Iterable[Record], kind: str, changes: Changes, target: Target, *, empty_prompt: bool) -> Written:
    """Write the records, changed; dropped rows and what a transform left out go to FILE's dropped.jsonl.

    A file is there whole or not at all, and of new ones all or none. Where no record is left nothing is written: DataError.
    """
    read: Counter[str] = Counter()
    became, changed = _changed(_counted(records, read), kind, changes)
    held_out = transform.split(changes.split, seed=changes.seed) if changes.split is not None else None
    rows: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    files = [target.file, *([target.held_out] if target.held_out else [])]
    writers = [Writer(file, overwrite=target.overwrite) for file in files]
    _check_beside(files, target)
    new, done = [file for file in files if not file.exists()], []
    dropped = beside(target.file, "dropped.jsonl")
    partial = dropped.with_name(f".{dropped.name}.{os.getpid()}.partial")
    try:
        with ExitStack() as opened:
            for file, writer in zip(files, writers, strict=True):
                opened.push(_noting(file, done))
                opened.enter_context(writer)
            lost = opened.enter_context(partial.open("w", encoding="utf-8", errors="backslashreplace"))
            for record in changed:
                if isinstance(record, Dropped):
                    left_out[record.reason] += 1
                    lost.write(json.dumps(dropped_line(record), ensure_ascii=False) + "\n")
                    continue
                side = int(held_out is not None and held_out(record))
                writers[side].write(row(record, became, empty_prompt=empty_prompt))
                rows[str(files[side])] += 1
            _check_rows(rows, files, left_out)
        os.replace(partial, dropped)
    except BaseException:
        for file in {*new}.intersection(done):  # one may have been finished before the other failed
            file.unlink()
        raise
    finally:
        with suppress(OSError):
            partial.unlink()
    return Written(became, {str(file): rows[str(file)] for file in files}, dict(left_out - read))


def write_ledger(file: Path, document: Mapping[str, Any]) -> None:
    """FILE's ledger.json, whole or not at all."""
    write_json(beside(file, "ledger.json"), document)


def beside(file: Path, what: str) -> Path:
    """pairs.jsonl.gz, "ledger.json" -> pairs.jsonl.gz.ledger.json, in the same directory."""
    return file.with_name(f"{file.name}.{what}")


def _changed(records: Iterable[Record], kind: str, changes: Changes) -> tuple[str, Iterator[Record]]:
    """The records after all changes, and of which kind they then are."""
    seed, made = changes.seed, iter(records)
    if changes.pairs is not None:
        kind, made = "pairs", transform.pairs_of(made, changes.pairs, margin=changes.margin)
    if changes.best:
        kind, made = "rows", transform.best_of(made)
    if changes.unpair:
        kind, made = "labels", transform.unpair(made, threshold=changes.threshold)
    if changes.demonstrations:
        kind, made = "rows", transform.demonstrations(made)
    if changes.swap:
        made = (transform.swap(record) if isinstance(record, Example) else record for record in made)
    if changes.flip is not None:
        made = transform.flip(made, changes.flip, seed=seed)
    if changes.length_match:
        made = transform.length_match(made, seed=seed)
    if changes.relabel is not None:
        made = transform.relabel(made, changes.relabel)
    if changes.sample is not None and changes.sample < 1:
        made = transform.sample(made, changes.sample, seed=seed)
    elif changes.sample is not None:
        made = transform.sample_exactly(made, round(changes.sample), seed=seed)
    return kind, made


def _counted(records: Iterable[Record], read: Counter[str]) -> Iterator[Record]:
    """The records; those that were dropped before any change are counted."""
    for record in records:
        if isinstance(record, Dropped):
            read[record.reason] += 1
        yield record


def _noting(file: Path, done: list[Path]) -> Callable[..., None]:
    """What notes a file when its writer has finished."""
    return lambda kind, *error: done.append(file) if kind is None else None


def _check_beside(files: Sequence[Path], target: Target) -> None:
    """The account of FILE takes the place of nothing that is not its own."""
    for file in (beside(target.file, what) for what in ACCOUNT):
        if file in files:
            raise ValueError(f"{file}: is where the account of {target.file} goes; name another")
        if file.exists() and not target.overwrite:
            raise ValueError(f"{file}: the file exists; name another than {target.file}, or --overwrite")


def _check_rows(rows: Mapping[str, int], files: list[Path], left_out: Mapping[str, int]) -> None:
    empty = [str(file) for file in files if not rows.get(str(file))]
    if empty:
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
        raise DataError(f"{empty[0]}: no record is left to write (left out: {counts}); nothing was written")
