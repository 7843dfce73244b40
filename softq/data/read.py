"""Preference data to a `Dataset`: rows -> formats -> encode -> ledger, kept on disk by content."""

import hashlib
import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from softq.data.encode import Encoder
from softq.data.example import Example
from softq.data.formats import Reading
from softq.data.ledger import Ledger, place
from softq.data.review import Review
from softq.data.rows import DataError, Dropped
from softq.data.sources import DataSource, Given, opened, sources
from softq.data.store import Records, Store, whole
from softq.data.stream import stream
from softq.data.templates import CHATML

_COMMIT = re.compile("[0-9a-f]{40}")
SHOWN = 12  # ids on each side of a boundary
DROPPED, MERGED = "dropped.jsonl", "merged.jsonl"


class Dataset(NamedTuple):
    """Preference data in tokens, and the account of it."""

    kind: str  # as in formats.Format: "pairs", "groups", "labels", "rows", ...
    formats: tuple[str, ...]  # of each source, a name of FORMATS
    sources: tuple[DataSource, ...]
    records: Records
    ledger: Ledger
    template_ends: frozenset[int]  # what the template ends answers with, where the end ids lack it
    other_columns: tuple[str, ...]  # fields that nobody reads
    directory: Path  # holds dropped.jsonl and, where a boundary was cut, merged.jsonl
    cached: bool = False  # nothing was encoded: an earlier run did
    fingerprint: str = ""  # of the data's content and of everything that its encoding depends on


def read(
    given: Given | Iterable[Given],
    tokenizer: PreTrainedTokenizerBase,
    *,
    end_ids: Iterable[int] | None = None,
    max_length: int = 1024,
    truncate: str = "drop",
    format: str | None = None,
    rename: Mapping[str, str] | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    reads: Sequence[str] = (),
    method: str = "this method",
    cache: str | os.PathLike[str] | None = None,
) -> Dataset:
    """The records of one or more sources (see `DataSource`) of one kind, in order.

    `end_ids` are the generation config's end tokens (the tokenizer's EOS is always one), `chat_template` is "chatml" or
    a Jinja file (None: the tokenizer's own), `reads` are the columns that `method` reads. `truncate` says what becomes
    of a record that is longer than `max_length`: "drop" or "keep", which cuts it. `rename` gives our names for the
    file's fields. With a directory `cache`, encoded data is found there again by the content of the files.
    """
    if truncate not in ("drop", "keep"):
        raise ValueError(f"truncate is {truncate!r}; expected drop or keep")
    of = sources(given)
    reading = Reading(format, rename or {}, tuple(reads), method)
    encoder = Encoder(tokenizer, frozenset(end_ids or ()), max_length, template(chat_template), truncate == "keep")
    fingerprint = _fingerprint(of, reading, encoder)
    kept = fingerprint is not None and cache is not None
    home = Path(cache) if cache is not None else Path(tempfile.gettempdir())
    home.mkdir(parents=True, exist_ok=True)
    directory = (
        home / fingerprint if kept and fingerprint else Path(tempfile.mkdtemp(prefix=".softq-", dir=home)) / "data"
    )
    meta = whole(directory) if kept else None
    cached = meta is not None
    try:
        meta = meta or _encode(of, reading, encoder, directory)
    except BaseException:
        if not kept:
            shutil.rmtree(directory.parent, ignore_errors=True)
        raise
    dataset = Dataset(
        meta["kind"],
        tuple(meta["formats"]),
        of,
        Records(directory),
        Ledger.of(meta["ledger"]),
        frozenset(meta["template_ends"]),
        tuple(meta["other_columns"]),
        directory,
        cached,
        fingerprint or "",
    )
    if not kept:
        weakref.finalize(dataset.records, shutil.rmtree, directory.parent, ignore_errors=True)
    return dataset


def _encode(of: Sequence[DataSource], reading: Reading, encoder: Encoder, directory: Path) -> Mapping[str, Any]:
    """Read and encode everything into a store at `directory`; what is said of it."""
    review = Review(stream(of, reading, encoder), of, encoder.max_length)
    ends: set[int] = set()
    with Store(directory) as store:
        for item in review.items():
            if isinstance(item.example, Dropped):
                store.line(DROPPED, dropped_line(item.example))
            if item.account.merged and isinstance(item.example, Example):
                store.line(MERGED, dict(zip(("file", "row"), place(item.example.where), strict=True)))
            if item.account.template_end is not None:
                ends.add(item.account.template_end)
            if item.encoded is not None:
                store.add(item.encoded)
        check_any(review)
        said = {
            "kind": review.stream.kind,
            "formats": review.stream.formats,
            "ledger": review.ledger.as_dict(),
            "template_ends": sorted(ends),
            "other_columns": list(review.other),
        }
        store.finish(said)
    return said


def check_any(review: Review) -> None:
    """DataError where no row is left."""
    ledger = review.ledger
    if ledger.used == 0 and review.troubles:
        first = next(iter(review.troubles.values()))
        counts = ", ".join(f"{count} {reason}" for reason, count in ledger.dropped.items())
        told = f"{first.where}: {first.message or first.reason}"
        rows = f"all {ledger.rows:,} rows were" if ledger.rows > 1 else "the only row was"
        raise DataError(f"{rows} dropped ({counts}), the first because {told}")


def dropped_line(row: Dropped) -> dict[str, Any]:
    """A dropped row as a line of dropped.jsonl."""
    file, number = place(row.where)
    named = {"field": row.field, "reason": row.reason, "message": row.message, "excerpt": row.excerpt}
    return {"file": file, "row": number, **named}


def cache_directory() -> Path:
    """Where encoded data is kept: $SOFTQ_CACHE, or softq in the user's cache directory."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SOFTQ_CACHE") or Path(home) / "softq")


def template(name: str | os.PathLike[str] | None) -> str | None:
    """The Jinja text of a chat template: "chatml", or a file; None stays None."""
    if name is None or name == "chatml":
        return CHATML if name else None
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ValueError(f"--chat-template {name} can not be read ({reason}); give a Jinja file or chatml") from error


def boundaries(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, n: int = 3) -> list[str]:
    """How the first prompts were split from their first completion: `where: end of prompt␟start of completion`."""
    lines = []
    for record in dataset.records[:n]:
        ids, action = record.completions[0].ids, record.completions[0].action
        start = int(action.argmax()) + 1
        head, both = (
            str(tokenizer.decode(ids[max(0, start - SHOWN) : stop].tolist(), clean_up_tokenization_spaces=False))
            for stop in (start, start + SHOWN)
        )
        cut = "…" if start > SHOWN else ""
        lines.append(f"{record.where}: {cut}{head!r}␟{both[len(head) :]!r}")
    return lines


def _fingerprint(of: Sequence[DataSource], reading: Reading, encoder: Encoder) -> str | None:
    """Of the content of the files and all that their encoding depends on; None where the content is not known.

    Of a data set of the hub it is known by its revision, where that is a commit.
    """
    there = [opened(source)[0] for source in of]
    if any(source.hub and not _COMMIT.fullmatch(source.revision or "") for source in there):
        return None
    digest = hashlib.sha256()
    backend = encoder.vocabulary.written
    said = {
        "sources": [[*source._replace(weight=1.0)] for source in of],
        "reading": [reading.format, sorted(reading.rename.items()), sorted(reading.reads or ())],
        "encoder": [sorted(encoder.end_ids), encoder.max_length, encoder.chat_template, encoder.keep],
        "template": encoder.tokenizer.chat_template,
        "tokenizer": [type(encoder.tokenizer).__name__, backend, encoder.tokenizer.special_tokens_map],
        "versions": [version("transformers"), version("tokenizers")],
    }
    digest.update(json.dumps(said, sort_keys=True, default=str).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):  # other code may encode otherwise
        digest.update(file.read_bytes())
    for name in dict.fromkeys(source.path for source in (*of, *there) if not source.hub):
        digest.update(_content(name))
    return digest.hexdigest()[:32]


def _content(name: str) -> bytes:
    try:
        with Path(name).open("rb") as content:
            return hashlib.file_digest(content, "sha256").digest()
    except OSError as error:
        raise DataError(f"{name}: can not be read: {error.strerror}") from error
