"""Sources to records, as they come: rows -> examples -> tokens, in chunks, so that memory does not grow with the data."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from softq.data.encode import Account, Encoded, Encoder
from softq.data.example import Example
from softq.data.formats import FORMATS, Reading, parse_rows
from softq.data.rows import DataError, Dropped
from softq.data.sources import DataSource, opened, rows_of

CHUNK = 256  # rows that are tokenised together
CHECKED = 16  # first records of a source whose ids are compared with the tokenizer's own of the whole text
NOTHING = Account()


class Item(NamedTuple):
    """One row on its way: what it says, and its tokens where there is an encoder."""

    source: int
    example: Example | Dropped
    encoded: Encoded | None = None
    account: Account = NOTHING


class Stream(NamedTuple):
    """Sources that were opened, the format of each, and their rows."""

    kind: str  # as in formats.Format
    formats: tuple[str, ...]
    items: Iterator[Item]


def stream(sources: Sequence[DataSource], reading: Reading, encoder: Encoder | None = None) -> Stream:
    """The rows of all sources in order. All are of one kind and bring the same columns; DataError where not."""
    parsed = [_parsed(source, reading) for source in sources]
    formats = tuple(format for format, _ in parsed)
    for source, format in zip(sources, formats, strict=True):
        if FORMATS[format].kind != FORMATS[formats[0]].kind:
            first = f"{sources[0].path} holds {FORMATS[formats[0]].kind} ({formats[0]})"
            raise DataError(
                f"{source.path}: holds {FORMATS[format].kind} ({format}), but {first}; give data of one kind"
            )
    examples = ((n, example) for n, (_, those) in enumerate(parsed) for example in those)
    return Stream(FORMATS[formats[0]].kind, formats, _encoded(examples, encoder, len(sources) > 1))


def _encoded(
    examples: Iterable[tuple[int, Example | Dropped]], encoder: Encoder | None, several: bool
) -> Iterator[Item]:
    """Examples with the numbers of their sources, in tokens; without an encoder as they are."""
    examples = _alike(examples)
    if encoder is None:
        yield from (Item(n, example) for n, example in examples)
        return
    left: dict[int, int] = {}
    while chunk := list(islice(examples, CHUNK)):
        found = iter(encoder.encode_all([example for _, example in chunk if isinstance(example, Example)]))
        for n, example in chunk:
            if isinstance(example, Dropped):
                yield Item(n, example)
                continue
            result, account = next(found)
            if isinstance(result, Dropped):
                yield Item(n, result, None, account)
                continue
            if left.setdefault(n, CHECKED):
                left[n] -= 1
                encoder.check_whole(example)
                account = account._replace(compared=True)
            yield Item(n, example, result._replace(source=n if several else None), account)


def _parsed(source: DataSource, reading: Reading) -> tuple[str, Iterator[Example | Dropped]]:
    format = opened(source)[0].format or reading.format
    return parse_rows(rows_of(source), reading._replace(format=format))


def _alike(examples: Iterable[tuple[int, Example | Dropped]]) -> Iterator[tuple[int, Example | Dropped]]:
    """The examples; each source must bring the columns that the first one brings."""
    columns: Mapping[str, object] | None = None
    begun: set[int] = set()
    for n, example in examples:
        if isinstance(example, Example) and n not in begun:
            begun.add(n)
            columns = example.columns if columns is None else columns
            for name in sorted(set(columns) ^ set(example.columns)):
                has = "brings" if name in example.columns else "lacks"
                raise DataError(f"{example.where}: this source {has} column '{name}', unlike the first; give it in all")
        yield n, example
