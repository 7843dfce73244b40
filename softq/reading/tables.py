"""What models are to score, and the directory of tables that they score it into, which says what it holds."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from softq.data.read import Dataset
from softq.data.store import write_json
from softq.inspection.columns import TOP
from softq.inspection.shelf import FACTS, FORMAT
from softq.lm.load import Loaded
from softq.lm.reference import fingerprint
from softq.reading.choice import Choice
from softq.reading.fresh import fresh_parts
from softq.reading.ledger import write_ledger
from softq.reading.outputs import keep_or_remove
from softq.reading.score import PART, Scoring, missing, scored_parts
from softq.training import ranks
from softq.training.events import Note
from softq.training.loop import default_budget

SAMPLE = 64


class Asked(NamedTuple):
    """What is to be scored, and how."""

    policy: str
    data: tuple[Any, ...]
    output: Path
    reference: str | None = None  # None: as the policy's manifest says; "none": none
    beta: float | None = None
    max_length: int = 2048
    truncate: str = "drop"
    format: str | None = None
    rename: tuple[str, ...] = ()
    chat_template: str | None = None
    dtype: str = "float32"
    layout: str = "auto"
    tokens_per_micro: int | None = None
    fresh: int = 0  # samples of the reference
    checkpoints: int = SAMPLE  # records that each checkpoint beside the policy scores too
    overwrite: bool = False
    trust_remote_code: bool = False
    cross_fit: int = 0  # folds; 0: labels are not cross-fitted
    fit: tuple[str, ...] = ()  # NAME=VALUE, of its trainings


class Part(NamedTuple):
    """Some records were scored."""

    records: int
    done: int  # by this process
    of: int  # all that were missing when it began, of all processes


def written(
    asked: Asked, chosen: Choice, data: Dataset, loaded: Loaded, ends: frozenset[int] = frozenset()
) -> Iterator[Note | Part]:
    """Score what is not scored yet of data that is read, by models that are loaded, and write it; `ends` end fresh samples."""
    budget = asked.tokens_per_micro or default_budget(loaded.models)
    of = Scoring(asked.output, data, loaded, 1.0 if chosen.beta is None else chosen.beta, budget)
    said = _facts(asked, chosen, of)
    if said["reference"] and said["reference"]["fingerprint"] == said["policy"]["fingerprint"]:
        yield Note("the reference is the policy itself, so every reward is 0")
    keep_or_remove(asked.output, said, overwrite=asked.overwrite)
    if ranks.first():
        asked.output.mkdir(parents=True, exist_ok=True)
        write_json(asked.output / FACTS, said)
        write_ledger(asked.output, data)
    ranks.wait()
    left = missing(of)
    if len(left) < of.parts:
        yield Note(f"{of.parts - len(left):,} of {of.parts:,} parts were scored before")
    total, done = sum(len(data.records[n * PART : (n + 1) * PART]) for n in left), 0
    ranks.wait()
    for count in scored_parts(of, left[ranks.rank() :: ranks.count()]):
        done += count
        yield Part(count, done, total)
    if asked.fresh:
        yield Note("sampling from the reference, a prompt at a time")
        share = ranks.rank(), ranks.count()
        yield from (Note(f"{count:,} fresh samples") for count in fresh_parts(of, asked.fresh, ends, share) if count)
    ranks.wait()
    if ranks.first():
        write_json(asked.output / FACTS, {**said, "finished": True})


def _facts(asked: Asked, chosen: Choice, of: Scoring) -> dict[str, Any]:
    """What the directory says of itself."""
    models = of.loaded.models
    return {
        "format": FORMAT,
        "kind": of.data.kind,
        "policy": {"model": asked.policy, "fingerprint": fingerprint(of.loaded.policy)},
        "reference": {"model": chosen.reference, "fingerprint": fingerprint(models["ref"])} if of.compared else None,  # pyright: ignore[reportArgumentType]
        "method": chosen.method,
        "beta": chosen.beta,
        "unit": "nats" if chosen.beta is None else "reward",
        "dtype": asked.dtype,
        "layout": of.loaded.policy.layout,
        "top": TOP,
        "data": [source.path for source in of.data.sources],
        "content": of.data.records.digest(),
        "records": len(of.data.records),
        "fresh": asked.fresh,
        "parts": of.parts,
        "ledger": of.data.ledger.as_dict(),
        "versions": {name: version(name) for name in ("softq", "torch", "transformers")},
        "finished": False,
    }
