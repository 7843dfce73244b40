"""Encoded records on disk: flat arrays, mapped into memory, so that a data set may be larger than it."""

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from softq.data.encode import Completion, Encoded

META = "dataset.json"
TYPES = {"ids": np.int32, "action": np.bool_, "ended": np.bool_, "where": np.uint8, "source": np.int16}
ENDS = np.int64
BUFFER = 1 << 20  # bytes of a file that are held before they are written


class Records(Sequence[Encoded]):
    """The records of a store, each built when it is asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._columns = tuple(json.loads((directory / META).read_text(encoding="utf-8"))["columns"])
        self._ids, self._action = (_Ragged(directory, "ids", values) for values in ("ids", "action"))
        self._ended = _mapped(directory / "ended.bin", TYPES["ended"])
        self._record = _mapped(directory / "record.ends", ENDS)
        self._where = _Ragged(directory, "where")
        self._values = {name: _Ragged(directory, f"column-{name}") for name in self._columns}
        source = _mapped(directory / "source.bin", TYPES["source"])
        self.of = np.arange(len(source))  # the records that are held, by their numbers in the store
        self.source = np.array(source)
        self.whole: Records | None = None

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, n: Any) -> Any:
        if isinstance(n, slice):
            return self.take(np.arange(len(self))[n])
        k = int(self.of[n])
        first = int(self._record[k - 1]) if k else 0
        completions = tuple(
            Completion(self._ids[c].astype(np.int64), np.array(self._action[c][1:]), bool(self._ended[c]))
            for c in range(first, int(self._record[k]))
        )
        columns = {name: tuple(values[k].tolist()) for name, values in self._values.items()}
        where = self._where[k].tobytes().decode("utf-8", "surrogatepass")
        source = int(self.source[n])
        return Encoded(where, completions, columns, None if source < 0 else source)

    def digest(self) -> str:
        """A hash of every record, in order: tokens, masks, columns, sources."""
        digest = hashlib.sha256()
        for file in sorted(self._directory.glob("*.bin")) + sorted(self._directory.glob("*.ends")):
            if not file.name.startswith("where."):
                with file.open("rb") as content:
                    digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
        if self.whole is not None:
            digest.update(self.of.tobytes())
        return digest.hexdigest()

    def take(self, numbers: Sequence[int] | np.ndarray) -> "Records":
        """Some of these records."""
        part = copy(self)
        part.of = self.of[np.asarray(numbers, dtype=np.int64)]
        part.source = self.source[np.asarray(numbers, dtype=np.int64)]
        part.whole = self.whole or self  # a temporary store lives as long as its records
        return part


class Store:
    """Writes records into a directory that comes to be whole or not at all.

    with Store(directory) as store: store.add(...); store.finish({...})
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.parent.mkdir(parents=True, exist_ok=True)
        self.partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=directory.parent))
        self._files: dict[str, BinaryIO] = {}
        self._held: dict[str, bytearray] = {}
        self._sizes: dict[str, int] = {}
        self._columns: tuple[str, ...] = ()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()
        shutil.rmtree(self.partial, ignore_errors=True)

    def add(self, record: Encoded) -> None:
        """One record."""
        for ids, action, ended in record.completions:
            self._append("ids.bin", ids.astype(TYPES["ids"]).tobytes())
            self._append("action.bin", b"\0" + action.tobytes())
            self._append("ended.bin", bytes([ended]))
            self._end("ids.ends", len(ids))
        self._end("record.ends", len(record.completions))
        number = -1 if record.source is None else record.source
        self._append("source.bin", number.to_bytes(2, sys.byteorder, signed=True))
        where = record.where.encode("utf-8", "surrogatepass")
        self._append("where.bin", where)
        self._end("where.ends", len(where))
        self._columns = tuple(record.columns)
        for name, values in record.columns.items():
            self._append(f"column-{name}.bin", np.array(values, np.float64).tobytes())
            self._end(f"column-{name}.ends", len(values))

    def line(self, name: str, document: Mapping[str, Any]) -> None:
        """One line of JSON in a file beside the records."""
        text = json.dumps(document, ensure_ascii=False) + "\n"
        self._append(name, text.encode("utf-8", "backslashreplace"))

    def finish(self, meta: Mapping[str, Any]) -> None:
        """Everything is added: the directory takes its name."""
        for name in list(self._held):
            self._flush(name)
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        sizes = {name: (self.partial / name).stat().st_size for name in self._files}
        text = json.dumps({**meta, "columns": self._columns, "sizes": sizes}, ensure_ascii=False)
        (self.partial / META).write_text(text, encoding="utf-8", errors="backslashreplace")
        if self.directory.exists():  # another process was faster, or the old one is damaged
            shutil.rmtree(self.directory, ignore_errors=True)
        os.replace(self.partial, self.directory)

    def _end(self, name: str, length: int) -> None:
        self._sizes[name] = self._sizes.get(name, 0) + length
        self._append(name, self._sizes[name].to_bytes(8, sys.byteorder))

    def _append(self, name: str, data: bytes) -> None:
        held = self._held.setdefault(name, bytearray())
        held += data
        if len(held) >= BUFFER:
            self._flush(name)

    def _flush(self, name: str) -> None:
        if name not in self._files:
            self._files[name] = (self.partial / name).open("wb")
        self._files[name].write(self._held[name])
        self._held[name] = bytearray()


class _Ragged:
    """Stretches of different lengths: their values one behind the other, and where each ends."""

    def __init__(self, directory: Path, name: str, values: str | None = None) -> None:
        values = values or name
        self.values = _mapped(directory / f"{values}.bin", TYPES.get(values, np.float64))
        self.ends = _mapped(directory / f"{name}.ends", ENDS)

    def __getitem__(self, n: int) -> np.ndarray:
        return self.values[int(self.ends[n - 1]) if n else 0 : int(self.ends[n])]


def whole(directory: Path) -> Mapping[str, Any] | None:
    """What `finish` wrote of a store; None where there is none, or it is damaged."""
    try:
        meta = json.loads((directory / META).read_text(encoding="utf-8"))
        sizes = {name: (directory / name).stat().st_size for name in meta["sizes"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta if sizes == meta["sizes"] else None


def _mapped(file: Path, kind: Any) -> np.ndarray:
    return np.memmap(file, kind, "r") if file.stat().st_size else np.empty(0, kind)


def write_json(path: Path, document: Any) -> None:
    """The whole file or none of it."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """The whole file or none of it. OSError where something that is no file has the name: a device or a pipe is not replaced."""
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "it is there and is no file", str(path))
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        synced(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def synced(path: Path) -> None:
    """Have a file, or the names in a directory, outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
