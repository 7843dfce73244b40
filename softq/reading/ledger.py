"""The account of every row of the data as a table: used, or dropped and why."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from softq.data.ledger import place
from softq.data.read import DROPPED, Dataset

KINDS = {"file": pa.string(), "row": pa.int64(), "record": pa.int64(), "scored": pa.int64(), "context": pa.int64()}
KINDS |= {"reason": pa.string(), "field": pa.string(), "message": pa.string()}


def write_ledger(directory: Path, data: Dataset) -> None:
    """ledger.parquet: a row a row of the data. `record` is null where it was dropped, `reason` where it was used; scored and
    context are its tokens, the prompt counted in each completion."""
    used = []
    for n, record in enumerate(data.records):
        file, row = place(record.where)
        scored = sum(int(completion.action.sum()) for completion in record.completions)
        read = sum(len(completion.ids) for completion in record.completions)
        used.append({"file": file, "row": row, "record": n, "scored": scored, "context": read - scored})
    dropped = data.directory / DROPPED
    lines = dropped.read_text(encoding="utf-8").splitlines() if dropped.is_file() else []
    rows = [*used, *({name: json.loads(line).get(name) for name in KINDS} for line in lines)]
    table = pa.Table.from_pylist([{name: row.get(name) for name in KINDS} for row in rows], pa.schema(KINDS.items()))
    partial = directory / ".ledger.parquet.partial"
    pq.write_table(table, partial, compression="zstd")
    os.replace(partial, directory / "ledger.parquet")
