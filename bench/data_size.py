"""How fast `softq data` reads and how much memory it takes, by the number of rows; and what a kept encoding saves.

    python bench/data_size.py [--rows 10000 1000000] [--encoded-rows 10000 100000] [--model DIR]

Short rows of random words, the same for each seed. Each file is read in a process of its own, whose peak resident memory
is the kernel's account. rows/s are those of one core: processor time, less what a file of one row takes. bytes/row is the
growth of the peak from the size before. --rows are read without a model, --encoded-rows with its tokenizer; without
--model one is trained on the spot.
"""

import argparse
import gzip
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
COLUMNS = ("prompt", "chosen", "rejected")
SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnpqrstvwxyz" for vowel in "aeiou"]
LENGTHS = (8, 6, 6)  # words of prompt, chosen and rejected, on average
GROUP = 10_000  # rows of a Parquet file that are written at once

HEADER = """\
| file | tokens | rows | seconds | rows/s | peak, MiB | bytes/row |
|---|---|---|---|---|---|---|"""


class Run(NamedTuple):
    """One reading of one file."""

    seconds: float
    worked: float  # seconds of all cores
    peak: int  # bytes


def generated(seed: int = 0) -> Iterator[dict[str, str]]:
    """Pairs without end."""
    draw = random.Random(seed)
    words = [" " + a + b for a in SYLLABLES for b in SYLLABLES]
    while True:
        texts = ("".join(draw.choices(words, k=draw.randint(n // 2, n * 3 // 2))) for n in LENGTHS)
        yield dict(zip(COLUMNS, texts, strict=True))


def write(file: str, rows: int) -> None:
    """A file of so many rows."""
    if file.endswith(".parquet"):
        _write_parquet(file, rows)
        return
    opened: Callable[..., IO[Any]] = gzip.open if file.endswith(".gz") else open
    with opened(file, "wt", encoding="utf-8") as lines:
        for row in islice(generated(), rows):
            lines.write(json.dumps(row) + "\n")


def _write_parquet(file: str, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    made = islice(generated(), rows)
    with pq.ParquetWriter(file, schema) as writer:
        while group := list(islice(made, GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def train(directory: str) -> None:
    """A byte-level BPE of the generated words, as transformers saves it."""
    sys.path.insert(0, str(Path(__file__).parent))
    from workload import trained_tokenizer

    tokenizer = trained_tokenizer([text for row in islice(generated(1), 2000) for text in row.values()])
    tokenizer.save_pretrained(directory)


def measured(file: str, model: str | None, *more: str) -> Run:
    """`softq data FILE --json` in a process of its own."""
    words = [sys.executable, "-m", "softq", "data", file, "--json", *(["--model", model] if model else []), *more]
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"softq data {file} ended with {process.returncode}")
    found = json.loads(out)
    assert found["rows_in"] == found["rows_used"], found["rows_dropped"]
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives in a fresh process: a process that is measured must not inherit a large one's peak."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def table(folder: Path, ending: str, sizes: Sequence[int], model: str | None, *more: str) -> None:
    """One line of the table for each number of rows."""
    runs: list[tuple[int, Run]] = []
    for rows in (1, *sizes):
        file = str(folder / f"rows{ending}")
        apart(write, file, rows)
        run = measured(file, model, *more)
        os.remove(file)
        speed = growth = "–"
        if runs:
            worked, (rows_before, before) = run.worked - runs[0][1].worked, runs[-1]
            speed = f"{rows / worked:,.0f}" if worked > 0 else speed
            growth = f"{(run.peak - before.peak) / (rows - rows_before):,.1f}"
        facts = (" ".join((ending, *more)), "yes" if model else "no", f"{rows:,}", f"{run.seconds:.1f}", speed)
        print(f"| {' | '.join(facts)} | {run.peak / 2**20:,.0f} | {growth} |", flush=True)
        runs.append((rows, run))


def kept(folder: str, model: str, rows: int) -> tuple[float, float]:
    """Seconds of a first reading of a file, and of a second one that finds what the first has kept. Equal, or it raises."""
    import softq
    from softq.lm.tokenizer import load_tokenizer

    file, cache = f"{folder}/kept.jsonl", f"{folder}/cache"
    write(file, rows)
    tokenizer = load_tokenizer(model).tokenizer
    seconds, found = [], []
    for _ in range(2):
        start = time.perf_counter()
        found.append(softq.read(file, tokenizer, cache=cache))
        seconds.append(time.perf_counter() - start)
    first, second = found
    if first.cached or not second.cached:
        raise AssertionError(f"the second reading {'found' if second.cached else 'did not find'} what was kept")
    if first.ledger.as_dict() != second.ledger.as_dict() or len(first.records) != len(second.records):
        raise AssertionError("the second reading has another account than the first")
    for one, other in zip(first.records, second.records, strict=True):
        if _plain(one) != _plain(other):
            raise AssertionError(f"{one.where} differs in the second reading")
    return seconds[0], seconds[1]


def _plain(record: Any) -> tuple[Any, ...]:
    completions = [(c.ids.tolist(), c.action.tolist(), c.ended) for c in record.completions]
    return record.where, completions, dict(record.columns), record.source


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 1_000_000])
    parser.add_argument("--encoded-rows", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--checked-rows", type=int, nargs="*", default=[10_000, 100_000], help="read with --check")
    parser.add_argument("--kept-rows", type=int, default=20_000, help="rows of the file that is read twice")
    parser.add_argument("--endings", nargs="+", default=ENDINGS, help=f"kinds of files {ENDINGS}")
    parser.add_argument("--model", help="a model's directory; default: a tokenizer that is trained on the spot")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="data-size-") as folder:
        model = options.model or f"{folder}/model"
        if not options.model:
            apart(train, model)
        print(HEADER, flush=True)
        for ending in options.endings:
            if options.rows:
                table(Path(folder), ending, sorted(options.rows), None)
            if options.encoded_rows:
                table(Path(folder), ending, sorted(options.encoded_rows), model)
        if options.checked_rows:
            table(Path(folder), ".jsonl", sorted(options.checked_rows), None, "--check")
        if options.kept_rows:
            first, second = apart(kept, folder, model, options.kept_rows)
            print(
                f"\nsoftq.read of {options.kept_rows:,} rows: {first:.1f} s, and {second:.2f} s when its encoding is kept; "
                "the records are equal."
            )


if __name__ == "__main__":
    main()
