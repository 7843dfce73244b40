"""Where rows come from: files, data sets of the hub, entries of a LLaMA-Factory dataset_info.json; each with a weight."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

from softq.data.factory import Entry, entry_of
from softq.data.files import EXTENSIONS, check_file, read_rows
from softq.data.rows import DataError, Dropped, Row
from softq.data.table_rows import table_row

Given = str | PathLike[str] | Mapping[str, Any]

_OPTION = re.compile(",(?=[a-z]+=)")
_HUB = re.compile(r"[\w.-]+/[\w.-]+")


class DataSource(NamedTuple):
    """One source of rows. On the command line: `FILE,name=N,weight=W,…`; in YAML: {path: FILE, name: N, weight: W, …}."""

    path: str  # a file, or `owner/name` on the hub
    name: str = ""  # in the ledger and the metrics; default: the file's
    weight: float = 1.0  # how often its records are seen in a pass over the data; 0.5 is a new half each time
    format: str | None = None  # None: detected
    split: str = "train"  # hub only, as are the next two
    config: str | None = None
    revision: str | None = None
    entry: str | None = None  # the name in a dataset_info.json

    @property
    def listed(self) -> bool:
        """Whether it is an entry of a dataset_info.json."""
        return Path(self.path).name == "dataset_info.json"

    @property
    def hub(self) -> bool:
        """Whether it is a data set of the hub."""
        named = _HUB.fullmatch(self.path) and not self.path.lower().endswith(EXTENSIONS)
        return bool(named) and not Path(self.path).exists() and not Path(self.path).parent.is_dir()


def sources(given: Given | Iterable[Given]) -> tuple[DataSource, ...]:
    """What the user named, checked; every file is there before any is read."""
    several: Iterable[Any] = [given] if isinstance(given, str | PathLike | Mapping) else given
    found = [_source(one) for one in several]
    if not found:
        raise ValueError("no data file was given; name one")
    for there in (opened(source)[0] for source in found):
        if not there.hub:
            check_file(there.path)
    return _distinct(found)


def rows_of(source: DataSource) -> Iterator[Row | Dropped]:
    """The rows of a source, in order and streamed."""
    there, entry = opened(source)
    rows = _streamed(there) if there.hub else read_rows(there.path)
    return rows if entry is None else (entry.tidied(row) for row in rows)


def opened(source: DataSource) -> tuple[DataSource, Entry | None]:
    """The source itself, or the one that its entry of a dataset_info.json names, and that entry."""
    if not source.listed:
        return source, None
    entry = entry_of(Path(source.path), source.entry)
    format = source.format or entry.format
    return source._replace(path=entry.path, format=format, split=entry.split, config=entry.config), entry


def _source(given: Given) -> DataSource:
    options: dict[str, Any]
    if isinstance(given, Mapping):
        options = dict(given)
        path = options.pop("path", None)
        if not isinstance(path, str):
            raise ValueError(f"data {dict(given)}: has no path; expected {{path: FILE, name: …, weight: …}}")
    else:
        path, *parts = _OPTION.split(fspath(given))
        options = dict(part.split("=", 1) for part in parts)
    unknown = sorted(set(options) - set(DataSource._fields))
    if unknown:
        raise ValueError(f"data {path}: option {unknown[0]!r} is unknown; expected {', '.join(DataSource._fields[1:])}")
    name = options.pop("name", None) or options.get("entry") or _stem(path)
    source = DataSource(path, str(name), _weight(path, options.pop("weight", 1.0)), **options)
    needed = {"entry": source.listed, **dict.fromkeys(("split", "config", "revision"), source.hub)}
    unread = next((option for option in options if not needed.get(option, True)), None)
    if unread is not None:
        where = "a dataset_info.json" if unread == "entry" else "data sets of the hub"
        raise ValueError(f"data {path}: option '{unread}' is read with {where} only; leave it out")
    return source


def _weight(path: str, given: Any) -> float:
    try:
        weight = float(given)
    except (TypeError, ValueError):
        weight = -1.0
    if not 0 < weight < float("inf"):
        raise ValueError(f"data {path}: weight is {given}; expected a number above 0")
    return weight


def _distinct(found: Sequence[DataSource]) -> tuple[DataSource, ...]:
    """The sources under names that differ: those that share one are called by all that was given."""
    short = [source.name for source in found]
    names = [_full(source) if short.count(source.name) > 1 else source.name for source in found]
    again = [f" ({names[: n + 1].count(name)})" if names.count(name) > 1 else "" for n, name in enumerate(names)]
    return tuple(s._replace(name=name + number) for s, name, number in zip(found, names, again, strict=True))


def _full(source: DataSource) -> str:
    split = source.split if source.split != "train" else None
    return ":".join(part for part in (source.path, source.entry, source.config, split, source.revision) if part)


def _stem(path: str) -> str:
    name = Path(path).name
    end = next((end for end in sorted(EXTENSIONS, key=len, reverse=True) if name.lower().endswith(end)), "")
    return name[: len(name) - len(end)] or name


def _streamed(source: DataSource) -> Iterator[Row | Dropped]:
    """The rows of a data set of the hub, as they arrive."""
    rows = 0
    try:
        from datasets import load_dataset  # half a second, for those who read from the hub

        stream = load_dataset(source.path, source.config, split=source.split, revision=source.revision, streaming=True)
        for value in stream:
            yield table_row(f"{source.path}[{rows}]", value)
            rows += 1
    except ImportError as error:
        came = f"{source.path}: no such file, and the hub is read with the package datasets, which is missing"
        raise DataError(f"{came}; pip install datasets") from error
    except (OSError, ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())[:300]
        came = f"the hub stopped after {rows:,} rows" if rows else "no such file, and the hub does not give it"
        raise DataError(f"{source.path}: {came} ({message})") from error
    if not rows:
        raise DataError(f"{source.path}: split {source.split!r} is empty; expected at least one row")
