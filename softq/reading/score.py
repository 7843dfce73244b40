"""A data set scored once, at full speed, into tables: `softq score`.

Records are scored PART at a time. What a part holds depends on nothing but its records, so parts that are there already are not
made again, several processes share them out, and memory does not grow with the data.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from softq.data.encode import Encoded
from softq.data.read import Dataset
from softq.data.rows import DataError
from softq.inspection.pieces import Pieces
from softq.inspection.shelf import place, put
from softq.inspection.tables import Table, completion_of, completion_table, pair_table, readouts, token_table
from softq.lm.load import Loaded
from softq.lm.model import Uniform
from softq.lm.score import score
from softq.records import Tokens
from softq.training.plan import shares
from softq.training.samples import prompt_of
from softq.training.source import tokens_of

PART = 512  # records


class Scoring(NamedTuple):
    """What is scored, by what, and where to."""

    directory: Path
    data: Dataset
    loaded: Loaded
    beta: float  # reward per nat
    tokens_per_micro: int

    @property
    def compared(self) -> bool:
        """Whether there is a reference."""
        return "ref" in self.loaded.models

    @property
    def kind(self) -> str:
        """The table beside that of tokens: "pairs" or "rows"."""
        return "pairs" if self.data.kind == "pairs" else "rows"

    @property
    def parts(self) -> int:
        """How many parts there are."""
        return -(-len(self.data.records) // PART)


def missing(of: Scoring) -> list[int]:
    """The parts that are not written yet, or of which a table was removed."""
    return [
        n for n in range(of.parts) if not all(place(of.directory, name, n).exists() for name in (of.kind, "tokens"))
    ]


def scored_parts(of: Scoring, parts: Sequence[int]) -> Iterator[int]:
    """Score and write these parts; yields how many records each held.

    The table of tokens is written first, so a part is there when its other table is. DataError where nothing was said.
    """
    pieces = pieces_of(of.loaded.tokenizer)
    for n in parts:
        records = list(of.data.records[n * PART : (n + 1) * PART])
        tokens, table = tables(of, records, range(n * PART, n * PART + len(records)), pieces)
        put(of.directory, "tokens", n, tokens, compared=of.compared)
        put(of.directory, of.kind, n, table, compared=of.compared)
        yield len(records)


def tables(of: Scoring, records: Sequence[Encoded], numbers: Sequence[int], pieces: Pieces) -> tuple[Table, Table]:
    """The tables of tokens, and of pairs or rows, of some records, in their order."""
    rows = [(n, completion) for n, record in zip(numbers, records, strict=True) for completion in record.completions]
    if not any(completion.action.any() for _, completion in rows):
        raise DataError(f"{records[0].where}: no completion to score; give rows that answer their prompts")
    whole = tokens_of([completion for _, completion in rows], [n for n, _ in rows])
    needs = readouts(of.compared, hidden=of.kind == "pairs" and not hides_states(of.loaded))
    made: list[tuple[Table, Table]] = []
    for part in shares(whole, of.tokens_per_micro)[0]:
        tokens = taken(whole, part)
        with torch.no_grad():
            scored = score(of.loaded.models, tokens, needs)
        table = completion_table(scored, tokens, pieces, of.beta)
        if of.kind == "pairs":
            table = pair_table(table, scored, tokens) | {"record": tokens.prompt.numpy()[::2]}
        else:
            table |= {"record": tokens.prompt.numpy(), "completion": completion_of(tokens.prompt).numpy()}
        made.append((token_table(scored, tokens, pieces, of.beta), table))
    said, table = (_together(each) for each in zip(*made, strict=True))
    return said, table | _of_records(of, records, numbers[0], table)


def pieces_of(tokenizer: PreTrainedTokenizerBase) -> Pieces:
    """What each token adds to a text, by this tokenizer."""
    return Pieces(lambda ids: str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)))


def hides_states(loaded: Loaded) -> bool:
    """Whether a model that is read has no states to be seen: it runs its own head, or is uniform."""
    return any(isinstance(model, Uniform) or getattr(model, "own_head", False) for model in loaded.models.values())


def taken(tokens: Tokens, rows: torch.Tensor) -> Tokens:
    """Some rows, without the padding that only others need."""
    width = int(tokens.action[rows].any(0).nonzero().max()) + 2 if tokens.action[rows].any() else 2
    ids, action = tokens.ids[rows, :width], tokens.action[rows, : width - 1]
    return Tokens(ids, action, tokens.ended[rows], tokens.prompt[rows])


def _together(tables: Sequence[Table]) -> Table:
    """One table in the order of record, completion and position."""
    columns = {name: [table[name] for table in tables] for name in tables[0]}
    keys = [np.concatenate(columns[name]) for name in ("position", "completion", "record") if name in columns]
    order = np.lexsort(keys)
    return {name: _ordered(parts, order) for name, parts in columns.items()}


def _ordered(parts: Sequence[Any], order: np.ndarray) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)[order]
    flat = [value for part in parts for value in part]
    return [flat[n] for n in order.tolist()]


def _of_records(of: Scoring, records: Sequence[Encoded], first: int, table: Mapping[str, Any]) -> Table:
    """The columns of a record, for each row of a table."""
    each = [records[n - first] for n in table["record"].tolist()]
    named = len(of.data.sources) > 1
    decode = of.loaded.tokenizer.decode
    prompts = {
        id(record): str(decode(prompt_of(record).tolist(), clean_up_tokenization_spaces=False)) for record in records
    }
    columns: Table = {
        "where": [record.where for record in each],
        "source": [of.data.sources[record.source or 0].name if named else None for record in each],
        "prompt": [prompts[id(record)] for record in each],
    }
    if of.kind == "rows":
        judged = next((name for name in ("reward", "label") if name in records[0].columns), None)
        at = zip(each, table["completion"].tolist(), strict=True)
        columns["score"] = [record.columns[judged][k] if judged else None for record, k in at]
    return columns
