"""Preference files to a `Dataset`: rows -> formats -> encode -> ledger."""

import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from softq.data.encode import Account, Encoded, Encoder
from softq.data.formats import FORMATS, Dropped, Example, detect, parse_rows
from softq.data.ledger import Ledger
from softq.data.rows import DataError, read_rows
from softq.data.templates import CHATML

SHOWN = 12  # ids on each side of a boundary


class Dataset(NamedTuple):
    """Preference data in tokens, and the account of it."""

    kind: str  # "pairs" or "groups"
    format: str  # a name of FORMATS
    records: list[Encoded]
    ledger: Ledger
    template_ends: frozenset[int]  # what the template ends answers with, where the end ids lack it
    other_columns: tuple[str, ...]  # fields that nobody reads


def read(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    end_ids: Iterable[int] | None = None,
    max_length: int = 1024,
    format: str | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    reads: Sequence[str] = (),
    method: str = "this method",
) -> Dataset:
    """The records of one or more files of one format, in order.

    `end_ids` are the generation config's end tokens (the tokenizer's EOS is always one), `chat_template` is "chatml" or
    a Jinja file (None: the tokenizer's own), `reads` are the columns that `method` reads.
    """
    files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    encoder = Encoder(tokenizer, frozenset(end_ids or ()), max_length, template(chat_template))
    rows = chain.from_iterable(read_rows(file) for file in files)
    first = next(rows, None)
    if first is None:
        raise DataError("no data file was given; name one")
    name = format or detect(first.value, first.where)
    ledger, records, ends, other = Ledger(), [], set(), {}
    for parsed in parse_rows(chain([first], rows), name, reads=reads, method=method):
        result, account = encoder.encode(parsed) if isinstance(parsed, Example) else (parsed, Account())
        ledger.add(result, account)
        records += [] if isinstance(result, Dropped) else [result]
        ends |= {account.template_end} - {None}
        other |= dict.fromkeys(parsed.other if isinstance(parsed, Example) else ())
    ledger.check()
    if not records:
        counts = ", ".join(f"{len(where)} {reason}" for reason, where in ledger.dropped.items())
        names = ", ".join(str(file) for file in files)
        raise DataError(f"{names}: all {ledger.rows} rows were dropped: {counts}; nothing is left to read")
    return Dataset(FORMATS[name].kind, name, records, ledger, frozenset(ends), tuple(other))


def template(name: str | os.PathLike[str] | None) -> str | None:
    """The Jinja text of a chat template: "chatml", or a file; None stays None."""
    if name is None or name == "chatml":
        return CHATML if name else None
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DataError(f"{name}: the chat template can not be read ({reason}); give a Jinja file or chatml") from error


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
        lines.append(f"{record.where}: {head!r}␟{both[len(head) :]!r}")
    return lines
