"""The reference's log-probabilities of a data set, scored once and kept: later epochs and runs need no reference forward.

One file per (content of the data, reference, dtype), in the safetensors format, mapped into memory when it is read:

    key     [R, 16] uint8   sorted, unique: blake2b of a row's ids up to its last action, and of which of them are actions
    start   [R] int64       where the row's values begin in `logp`
    length  [R] int64       how many they are: its actions
    logp    [N] float32     nats, one per action in order; float64 where the model is

A key is of content alone, so that padding, order, record, seed and method share a row. R counts rows that differ.
"""

import json
import os
import secrets
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from softq.data.encode import Encoded
from softq.data.store import synced
from softq.lm.load import DTYPES
from softq.lm.probe import TOLERANCE
from softq.lm.score import Models
from softq.records import Batch, Method
from softq.training import ranks
from softq.training.events import RunError
from softq.training.plan import scored_whole
from softq.training.source import tokens_of

FORMAT = "softq reference log-probs 1"
KEY = np.dtype("V16")  # sorted and found as bytes, whatever the machine's order of them
ROWS = 512  # rows that are scored together, and then written
SAMPLE = 8  # rows that are recomputed when a file is opened
PARTIAL, DAY = ".partial-", 86_400
LONGEST_HEADER, BLOCK = 4096, 1 << 20  # bytes

Chunk = Sequence[tuple[int, int]]  # rows to score: the number of the record, and which of its completions


class ReferenceCache:
    """The reference's log-probs of a data set, in a file that is mapped into memory; see the module for its form."""

    def __init__(self, file: Path, said: Mapping[str, str]) -> None:
        """Opens and verifies all of it. RunError where it is not whole, or is not of what is `said`; see `described`."""
        self.file = file
        try:
            size, rows, actions = _verified(file, said)
        except OSError as error:
            raise RunError(f"{file} can not be read: {error.strerror}") from error
        ends = np.cumsum([size, 16 * rows, 8 * rows, 8 * rows]).tolist()
        self.key = np.memmap(file, KEY, "r", ends[0], (rows,))
        self.start, self.length = (np.memmap(file, "<i8", "r", at, (rows,)) for at in ends[1:3])
        self.values = np.memmap(file, _kind(said["dtype"]), "r", ends[3], (actions,))

    def logp(self, keys: Sequence[bytes]) -> list[np.ndarray | None]:
        """Of each row, by its `row_key`, the log-probs of its actions in nats; None where the file lacks it."""
        asked = np.frombuffer(b"".join(keys), KEY)
        at = np.searchsorted(self.key, asked).clip(max=len(self.key) - 1)
        return [
            self.values[int(self.start[n]) :][: int(self.length[n])] if known else None
            for n, known in zip(at, self.key[at] == asked, strict=True)
        ]

    def filled(self, batch: Batch) -> Batch:
        """The batch with the column `ref_logp` [B, T], 0 outside action. RunError names a row that is not in the file."""
        ids, action = batch.tokens.ids.numpy(), batch.tokens.action.numpy()
        ref_logp = np.zeros(action.shape, self.values.dtype)
        rows = np.flatnonzero(action.any(-1))
        found = self.logp([row_key(ids[b], action[b]) for b in rows])
        for b, values in zip(rows, found, strict=True):
            if values is None:
                raise RunError(
                    f"{self.file} holds no log-probs of prompt number {batch.tokens.prompt[b]} (row {b} of its batch): "
                    "the data changed since they were scored; delete the file, and it is made again"
                )
            ref_logp[b, action[b]] = values
        return Batch(batch.tokens, batch.feedback, {**batch.columns, "ref_logp": torch.from_numpy(ref_logp)})


def cached_reference(
    directory: Path,
    records: Sequence[Encoded],
    models: Models,
    *,
    fingerprint: str,
    dtype: str,
    tokens_per_micro: int,
) -> tuple[ReferenceCache, list[str]]:
    """The log-probs of `models["ref"]` for every completion of the records, and what to say of them.

    They are read from `directory`/reference, or scored and kept there. `fingerprint` is `lm.reference.fingerprint` of the
    reference, `dtype` a name of `lm.load.DTYPES`, and " autocast" with its own dtype where that is on: "float32+bf16 autocast"
    (score inside it). Give whole data sets, not a seed's split: they share their files between runs. Memory does not
    grow with N, only by about 100 bytes a row while they are scored. RunError where a file is damaged or stale, which a
    sample of recomputed rows shows. The reference is not read after this. All processes of a run call it; the first one
    writes, so `directory` is one that all of them see.
    """
    said = described(records, fingerprint, dtype)
    name = blake2b("\n".join(said.values()).encode(), digest_size=16).hexdigest()
    file = directory / "reference" / f"{name}.safetensors"
    told = f"reference log-probs of {_many(len(records), 'record')}"
    if ranks.gathered([file.exists()])[0]:
        cache = ReferenceCache(file, said)
        sample = _sampled(records, ranks.gathered([secrets.randbits(64)])[0])  # others each time; it changes no result
        apart = _apart(cache, records, sample, chunk_logp(records, sample, models, tokens_per_micro), _tolerance(dtype))
        recomputed = f"{_many(len(sample), 'row')} recomputed, at most {apart:.1e} nats apart"
        return cache, [f"{told}: read from {file}, of an earlier run; {recomputed}"]
    index = _index(records)
    logp = (chunk_logp(records, chunk, models, tokens_per_micro) for chunk in index.chunks())
    if ranks.first():
        _write(file, said, index, logp)
    else:
        deque(logp, maxlen=0)
    ranks.wait()
    return ReferenceCache(file, said), [f"{told}: scored and kept in {file}"]


def described(records: Sequence[Encoded], fingerprint: str, dtype: str) -> dict[str, str]:
    """What a file is of: the form, the rows of the records in their order, the reference, and how it was run."""
    content = blake2b(digest_size=16)
    for row in _rows(records):
        content.update(row[0])
    return {"format": FORMAT, "content": content.hexdigest(), "fingerprint": fingerprint, "dtype": dtype}


def row_key(ids: np.ndarray, action: np.ndarray) -> bytes:
    """16 bytes of the content of a row that has an action: ids [L] up to the last of them, action [L - 1] up to it."""
    states = len(action) - int(action[::-1].argmax())
    digest = blake2b(ids[: states + 1].astype("<i8").tobytes(), digest_size=16)
    digest.update(action[:states].astype(np.uint8).tobytes())
    return digest.digest()


def chunk_logp(records: Sequence[Encoded], chunk: Chunk, models: Models, tokens_per_micro: int) -> np.ndarray:
    """log π_ref of the actions of some rows, one row behind the other: [n] nats. RunError where one is not finite.

    Of several processes each scores its share, and all know the whole, so all must call it.
    """
    completions = [records[n].completions[k] for n, k in chunk]
    batch = Batch(tokens_of(completions, [n for n, _ in chunk]))
    # Under the policy's name, since that is scored always: as "ref" it would be a second forward pass. The policy is there
    # because a reference that is the policy without its adapter has no parameters, thus no device, of its own.
    alone = Models({"policy": models["ref"], "trained": models["policy"]})
    logp = scored_whole(Method(()), alone, batch, tokens_per_micro)["logp"].cpu()
    finite = torch.isfinite(logp).all(-1)
    if not finite.all():
        n, k = chunk[int(finite.int().argmin())]
        raise RunError(f"the reference gives {_place(records, n, k)} a log-probability that is not finite")
    return logp[batch.tokens.action].numpy()


class _Index(NamedTuple):
    """The rows of a data set, each content once: by key as in the file, and in the order in which they are scored."""

    key: np.ndarray  # [R] V16, sorted
    start: np.ndarray  # [R]
    length: np.ndarray  # [R]
    row: np.ndarray  # [R, 2] record and completion, by `start`

    def chunks(self) -> Iterator[Chunk]:
        """The rows, ROWS at a time."""
        for at in range(0, len(self.row), ROWS):
            yield [(n, k) for n, k in self.row[at : at + ROWS].tolist()]


def _rows(records: Sequence[Encoded]) -> Iterator[tuple[bytes, int, int, int]]:
    """Of every completion with an action: key, number of actions, number of the record, which completion of it."""
    for n, record in enumerate(records):
        for k, completion in enumerate(record.completions):
            if completion.action.any():
                yield row_key(completion.ids, completion.action), int(completion.action.sum()), n, k


def _index(records: Sequence[Encoded]) -> _Index:
    names = [("key", KEY), ("length", "<i8"), ("record", "<i8"), ("completion", "<i8")]
    rows = np.fromiter(_rows(records), names)
    if not len(rows):
        raise RunError("the data holds no completion of which a reference could be asked")
    key, first = np.unique(rows["key"], return_index=True)
    length = rows["length"][first]
    order = first.argsort()
    start = np.empty_like(length)
    start[order] = length[order].cumsum() - length[order]
    seen = rows[first[order]]
    return _Index(key, start, length, np.stack([seen["record"], seen["completion"]], -1))


def _sampled(records: Sequence[Encoded], seed: int) -> Chunk:
    """Rows of up to SAMPLE records, one of each."""
    draw = np.random.default_rng(seed)
    rows = []
    for n in draw.choice(len(records), min(SAMPLE, len(records)), replace=False).tolist():
        acted = [k for k, completion in enumerate(records[n].completions) if completion.action.any()]
        rows += [(n, int(draw.choice(acted)))] if acted else []
    return rows


def _apart(cache: ReferenceCache, records: Sequence[Encoded], rows: Chunk, logp: np.ndarray, tolerance: float) -> float:
    """The largest |Δ log-prob| between the file and rows that were scored again; RunError beyond rounding."""
    completions = [records[n].completions[k] for n, k in rows]
    ends = np.cumsum([completion.action.sum() for completion in completions])[:-1]
    largest = 0.0
    kept = cache.logp([row_key(completion.ids, completion.action) for completion in completions])
    for (n, k), old, new in zip(rows, kept, np.split(logp, ends), strict=True):
        off = np.abs(new - old) if old is not None and len(old) == len(new) else np.array([np.inf])
        if not off.mean() <= tolerance:
            raise RunError(
                f"{cache.file} is stale: {_place(records, n, k)} is {off.mean():.1e} nats a token from what the reference "
                f"says of it now (at most {tolerance:.0e} is rounding); delete it, and it is made again"
            )
        largest = max(largest, float(off.max()))
    return largest


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _place(records: Sequence[Encoded], n: int, k: int) -> str:
    return f"{records[n].where} (completion {k + 1})"


def _kind(dtype: str) -> np.dtype:
    return np.dtype("<f8" if dtype.startswith("float64") else "<f4")


def _tolerance(dtype: str) -> float:
    return TOLERANCE[torch.bfloat16 if "bf16" in dtype or "nf4" in dtype else DTYPES[dtype.partition("+")[0]]]


def _header(said: Mapping[str, str], rows: int, actions: int, digest: str) -> bytes:
    """The head of the file: the length of a JSON text, and the text, padded so that the data begins at a multiple of 8."""
    tensors, end = {}, 0
    logp = ("F64" if _kind(said["dtype"]).itemsize == 8 else "F32", [actions], _kind(said["dtype"]).itemsize)
    forms = {"key": ("U8", [rows, 16], 1), "start": ("I64", [rows], 8), "length": ("I64", [rows], 8), "logp": logp}
    for name, (kind, shape, size) in forms.items():
        start, end = end, end + int(np.prod(shape)) * size
        tensors[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {**said, "rows": str(rows), "blake2b": digest}, **tensors}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(file: Path, said: Mapping[str, str], index: _Index, logp: Iterable[np.ndarray]) -> None:
    """The whole file or none of it. `logp` comes in the order of `start`, so the file is one stream, and memory flat."""
    facts = said, len(index.key), int(index.length.sum())
    name = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _sweep(file.parent)
        handle, name = tempfile.mkstemp(prefix=PARTIAL, dir=file.parent)
        digest = blake2b(digest_size=16)
        with os.fdopen(handle, "wb") as out:
            out.write(_header(*facts, digest="0" * 32))
            columns = (index.key, index.start.astype("<i8"), index.length.astype("<i8"))
            for part in chain(columns, (values.astype(_kind(said["dtype"])) for values in logp)):
                out.write(part.tobytes())
                digest.update(part.tobytes())
            out.seek(0)
            out.write(_header(*facts, digest=digest.hexdigest()))
            out.flush()
            os.fsync(out.fileno())
        os.replace(name, file)
        synced(file.parent)
    except OSError as error:
        raise RunError(f"{file} can not be written: {error.strerror}; make room, or set SOFTQ_CACHE") from error
    finally:
        if name is not None:
            Path(name).unlink(missing_ok=True)


def _verified(file: Path, said: Mapping[str, str]) -> tuple[int, int, int]:
    """Bytes of the header, R and N, where the file is whole and of what is said. It is read once, block by block."""
    with file.open("rb") as content:
        size = content.read(8)
        text = content.read(min(int.from_bytes(size, "little"), LONGEST_HEADER))
        try:
            head = json.loads(text)
            found = {name: str(head["__metadata__"][name]) for name in (*said, "blake2b")}
            rows, actions = int(head["key"]["shape"][0]), int(head["logp"]["shape"][0])
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise _damaged(file, f"it has no header of {FORMAT!r}") from error
        for name, asked in said.items():
            if found[name] != asked:
                raise RunError(
                    f"{file} is stale: its {name} is {found[name]}, asked was {asked}; delete it, and it is made again"
                )
        header = _header(said, rows, actions, found["blake2b"])
        if header != size + text:
            raise _damaged(file, "its header does not fit its contents")
        expected = len(header) + rows * 32 + actions * _kind(said["dtype"]).itemsize
        if (there := file.stat().st_size) != expected:
            raise _damaged(file, f"it has {there:,} bytes of {expected:,}")
        digest = blake2b(digest_size=16)
        while block := content.read(BLOCK):
            digest.update(block)
        if digest.hexdigest() != found["blake2b"]:
            raise _damaged(file, "its contents do not fit their digest")
    return len(header), rows, actions


def _damaged(file: Path, why: str) -> RunError:
    return RunError(f"{file} is damaged: {why}; delete it, and it is made again")


def _sweep(directory: Path) -> None:
    """Remove what builders that were killed left behind."""
    for path in directory.glob(f"{PARTIAL}*"):
        try:
            if time.time() - path.stat().st_mtime > DAY:
                path.unlink()
        except FileNotFoundError:  # another one was faster
            continue
