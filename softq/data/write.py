"""Records to a file in TRL's columns: what a record's row is, and a file that is written whole or not at all."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from softq.data.example import Example
from softq.data.formats import FORMATS, detect
from softq.data.rows import DataError
from softq.data.sinks import EXTENSIONS
from softq.records import COLUMNS

GIVEN = frozenset(name for name, column in COLUMNS.items() if column.given)


def row(example: Example, kind: str, *, empty_prompt: bool = False) -> dict[str, Any]:
    """The fields of one record, from which an equal one is read.

    Rows with the prompt "" or [] are text or messages, unless `empty_prompt`, which writes the prompt "". A column
    keeps its name; one number stands for itself, several are a list. An other field whose name is taken, or would put
    the row into another format, is written as other_NAME.
    """
    whole = kind == "rows" and not example.prompt and not (empty_prompt and example.prompt == "")
    texts = _whole(example) if whole else TEXTS[kind](example)
    options = {name: value for name, value in example.template_kwargs.items() if name != "tools"}
    tools = example.template_kwargs.get("tools")
    columns = {name: values for name, values in example.columns.items() if name != texts.column}
    fields = {
        **texts.fields,
        **({"tools": tools} if tools else {}),
        **({"chat_template_kwargs": options} if options else {}),
        **{name: values[0] if len(values) == 1 else list(values) for name, values in columns.items()},
    }
    return {**fields, **_beside(fields, example.other, texts.format)}


class Writer:
    """A file of rows, in order: `with Writer(path) as writer: writer.write(row)`.

    The extension says how: .jsonl, .json and .csv, also with .gz or .zst behind, or .parquet, which is compressed
    within. The rows go to a hidden file beside the path, which takes its place when all are written; after an error,
    and where there was no row, nothing is left.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.path, self.overwrite, self.rows = Path(path), overwrite, 0
        name = self.path.name.lower()
        extension = max((end for end in EXTENSIONS if name.endswith(end)), key=len, default=None)
        if extension is None:
            raise ValueError(f"{self.path}: unknown file type; expected one of {', '.join(EXTENSIONS)}")
        self._form, self._pack = EXTENSIONS[extension]
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        self._open = ExitStack()
        self._check()

    def __enter__(self) -> Self:
        with named(self.path):
            file = self._open.enter_context(self._partial.open("wb"))
            packed = self._pack(file)
            self._sink = self._form(packed if packed is file else self._open.enter_context(packed))
            self._open.callback(self._sink.close)
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        """The next row."""
        self.rows += 1
        with named(self.path):
            self._sink.write(row, self.rows)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            with named(self.path), self._open:
                if kind is None:
                    self._finish()
        finally:
            self._partial.unlink(missing_ok=True)

    def _finish(self) -> None:
        if not self.rows:
            raise DataError("there is no row to write")
        self._sink.end()
        self._open.close()
        with self._partial.open("r+b") as file:
            os.fsync(file.fileno())
        self._check()
        os.replace(self._partial, self.path)

    def _check(self) -> None:
        if not self.path.parent.is_dir():
            raise ValueError(f"{self.path}: there is no directory {self.path.parent}; make it, or name another")
        if self.path.is_dir():
            raise ValueError(f"{self.path}: is a directory; name a file")
        if self.path.exists() and not self.overwrite:
            raise ValueError(f"{self.path}: the file exists; name another, or --overwrite")


class Texts(NamedTuple):
    """The texts of a record as fields of a format of FORMATS, and the column that went into them."""

    format: str
    fields: dict[str, Any]
    column: str = ""


def _pair(example: Example) -> Texts:
    chosen, rejected = example.completions
    return Texts("preference", {"prompt": example.prompt, "chosen": chosen, "rejected": rejected})


def _group(example: Example) -> Texts:
    fields = {"completions": list(example.completions), "scores": list(example.columns["reward"])}
    return Texts("groups", {"prompt": example.prompt, **fields}, "reward")


def _label(example: Example) -> Texts:
    fields = _completion(example).fields
    return Texts("unpaired", {**fields, "label": bool(example.columns["label"][0])}, "label")


def _completion(example: Example) -> Texts:
    (completion,) = example.completions
    return Texts("prompt-completion", {"prompt": example.prompt, "completion": completion})


def _whole(example: Example) -> Texts:
    (text,) = example.completions
    return Texts("language-modeling", {"text" if isinstance(text, str) else "messages": text})


def _prompt(example: Example) -> Texts:
    return Texts("prompt-only", {"prompt": example.prompt})


def _steps(example: Example) -> Texts:
    labels = [bool(label) for label in example.columns["step_label"]]
    fields = {"completions": list(example.completions), "labels": labels}
    return Texts("stepwise", {"prompt": example.prompt, **fields}, "step_label")


TEXTS: Mapping[str, Callable[[Example], Texts]] = {
    "pairs": _pair,
    "groups": _group,
    "labels": _label,
    "rows": _completion,
    "prompts": _prompt,
    "steps": _steps,
}
"""By the kind of the record."""


def _beside(fields: Mapping[str, Any], other: Mapping[str, Any], format: str) -> dict[str, Any]:
    """The other fields under names that leave the row in its format."""
    reserved = {*fields, *FORMATS[format].fields, *GIVEN}
    while True:
        freed: dict[str, Any] = {}
        for name, value in other.items():
            free = name
            while free in reserved or free in freed or (free != name and free in other):
                free = f"other_{free}"
            freed[free] = value
        found = detect({**fields, **freed})
        if found is None or found == format:
            return freed
        reserved |= {*FORMATS[found].fields}


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Errors of a file and its rows, with its name."""
    try:
        yield
    except DataError as error:
        message = str(error)
        raise DataError(message if message.startswith(f"{path}: ") else f"{path}: {message}") from error
    except OSError as error:
        raise OSError(f"{path}: can not be written: {error.strerror or error}") from error
