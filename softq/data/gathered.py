"""Rows that come in any order, to a file in order: what came is kept at once, and stays if something stops the work."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from softq.data.sinks import EXTENSIONS, Lines
from softq.data.write import Writer, named

PART = ".part.jsonl"


class Gathered:
    """A file of numbered rows: `with Gathered(path) as out: out.add(number, rows)`.

    What is added goes at once to a file beside the path, `part`: JSON lines, in the order in which they came. When all are there
    the path is written, whole and in order of the numbers (see `Writer`), and the part is removed. After an error, or Ctrl-C, the
    part stays: rows as the path would have had them. ValueError where there is one already, which holds rows of another time.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.writer = Writer(path, overwrite=overwrite)
        place = self.writer.path
        extension = max((end for end in EXTENSIONS if place.name.lower().endswith(end)), key=len)
        self.part = place.with_name(place.name[: -len(extension)] + PART)
        self._rows: dict[int, tuple[Mapping[str, Any], ...]] = {}
        self._open = ExitStack()
        if self.part.exists() and not overwrite:
            raise ValueError(f"{place}: {self.part} has rows of a call that was stopped; move it away, or --overwrite")

    @property
    def numbers(self) -> int:
        """How many numbers were added."""
        return len(self._rows)

    def __enter__(self) -> Self:
        with named(self.part):
            self._file = self._open.enter_context(self.part.open("wb"))
        self._lines = Lines(self._file)
        return self

    def add(self, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows that stand behind those of smaller numbers."""
        with named(self.part):
            for row in rows:
                self._lines.write(row, number)
            self._file.flush()
        self._rows[number] = (*rows,)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()
        if not any(self._rows.values()):
            self.part.unlink(missing_ok=True)
        if kind is None:
            with self.writer as writer:
                for number in sorted(self._rows):
                    for row in self._rows[number]:
                        writer.write(row)
            self.part.unlink(missing_ok=True)
