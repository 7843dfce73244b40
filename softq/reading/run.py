"""A policy, a reference and a data set, opened and scored into a directory that says what it holds."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from softq.data.formats import renames
from softq.data.read import Dataset, cache_directory, read
from softq.data.rows import DataError
from softq.data.store import write_json
from softq.inspection.columns import TOP
from softq.inspection.shelf import FACTS, FORMAT, facts
from softq.lm.load import Loaded, load
from softq.lm.reference import fingerprint
from softq.lm.tokenizer import load_tokenizer
from softq.reading.choice import Choice, choice, same_words
from softq.reading.cross_fit import CrossFit, Fold, check_data, check_same, cross_fit, crossed, described
from softq.reading.fresh import fresh_parts
from softq.reading.ledger import write_ledger
from softq.reading.outputs import check_open, claim, keep_or_remove
from softq.reading.score import PART, Scoring, missing, scored_parts
from softq.training import ranks
from softq.training.events import Note, RunError
from softq.training.loop import default_budget
from softq.training.output import alone


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
    overwrite: bool = False
    trust_remote_code: bool = False
    cross_fit: int = 0  # folds; 0: labels are not cross-fitted
    fit: tuple[str, ...] = ()  # NAME=VALUE, of its trainings


class Part(NamedTuple):
    """Some records were scored."""

    records: int
    done: int  # by this process
    of: int  # all that were missing when it began, of all processes


def scored(asked: Asked) -> Iterator[Note | Part | Fold]:
    """Read, load, score what is not scored yet, cross-fit if asked to, and write; events on the way.

    OutputError where the directory holds something else, ValueError for wrong settings, DataError for bad data. Of several
    processes (torchrun) each scores its share of the parts.
    """
    _check_settings(asked)
    device = str(ranks.join(bf16=False).device)
    chosen = choice(asked.policy, asked.reference, asked.beta)
    _check_fresh(asked.fresh, chosen.reference)
    yield from map(Note, chosen.notes)
    fit = _cross_fit(asked, chosen)
    claim(asked.output)
    check_open(asked.output)
    data, loaded, ends = _opened(asked, chosen, device)
    if fit is not None:
        check_data(fit, data)
    yield from map(Note, (*data.ledger.lines(), *loaded.notes))
    with alone(asked.output):
        try:
            yield from written(asked, chosen, data, loaded, ends)
            if fit is not None:
                read_by = "policy" if fit.settings.model == asked.policy else "reference"
                tokenizer, mark = loaded.tokenizer, facts(asked.output)[read_by]["fingerprint"]
                del loaded  # to make room for what is trained
                yield from _crossed(asked, fit, data, tokenizer, mark)
        except OSError as error:
            why = f"{error.strerror or error}; mend it, then the same again goes on"
            raise RunError(f"--output {asked.output} can not be written: {why}") from error


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


def _check_settings(asked: Asked) -> None:
    """ValueError for lengths and names that can not be."""
    for name in ("max_length", "tokens_per_micro"):
        if (given := getattr(asked, name)) is not None and given < 2:
            raise ValueError(f"--{name.replace('_', '-')} {given}: expected at least 2 tokens")
    for path in map(str, asked.data):
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"--data {path!r}: its name is not UTF-8, so no table can hold it; rename it") from error


def _cross_fit(asked: Asked, chosen: Choice) -> CrossFit | None:
    """What is to be trained, if anything."""
    if not asked.cross_fit:
        if asked.fit:
            raise ValueError(f"--fit {asked.fit[0]}: read with --cross-fit only")
        return None
    run = {"data": ["-"], "output": "-", "max_length": asked.max_length, "layout": asked.layout}
    if asked.tokens_per_micro:
        run["tokens_per_micro"] = asked.tokens_per_micro
    return cross_fit(asked.policy, chosen, asked.cross_fit, asked.fit, run, trust_remote_code=asked.trust_remote_code)


def _crossed(
    asked: Asked, fit: CrossFit, data: Dataset, tokenizer: PreTrainedTokenizerBase, mark: str
) -> Iterator[Note | Fold]:
    """The cross-fit, if it is not there already."""
    said = described(fit, data, mark)
    if check_same(asked.output, said, overwrite=asked.overwrite):
        yield Note("labels were cross-fitted before")
        return
    yield Note(fit.line())
    yield from crossed(asked.output, fit, data, tokenizer, said)


def _opened(asked: Asked, chosen: Choice, device: str) -> tuple[Dataset, Loaded, frozenset[int]]:
    """The data, the models, and the tokens that end a completion."""
    spoken = load_tokenizer(asked.policy, asked.trust_remote_code)

    def of() -> Dataset:
        return read(
            asked.data,
            spoken.tokenizer,
            end_ids=spoken.end_ids,
            max_length=asked.max_length,
            truncate=asked.truncate,
            format=asked.format,
            rename=renames(list(asked.rename)),
            chat_template=asked.chat_template,
            reads=(),
            method="softq score",
            cache=cache_directory(),
        )

    data = ranks.one_after_another(of)
    if data.kind == "prompts":
        raise DataError(f"{data.records[0].where}: no completion to score; give rows that answer their prompts")
    try:
        loaded = _loaded(asked, chosen, data, spoken.tokenizer, device)
    except ValueError as error:
        if chosen.fingerprint is None or not str(error).startswith(f"model {chosen.reference}:"):
            raise
        where = f"{asked.policy} was trained with it: give --reference DIR, where it is now, or none"
        raise ValueError(f"{error}; {where}") from error
    notes = (*spoken.notes, *loaded.notes, *chosen.check(loaded))
    return data, loaded._replace(notes=notes), spoken.end_ids


def _loaded(asked: Asked, chosen: Choice, data: Dataset, tokenizer: PreTrainedTokenizerBase, device: str) -> Loaded:
    if chosen.reference not in (None, "uniform"):
        same_words(chosen.reference, tokenizer, data.records[:PART])
    return load(
        asked.policy,
        chosen.reference,
        tokenizer=tokenizer,
        layout=asked.layout,
        dtype=asked.dtype,
        device=device,
        trust_remote_code=asked.trust_remote_code,
    )


def _check_fresh(count: int, reference: str | None) -> None:
    """ValueError unless so many samples can be had of this reference."""
    if count < 0:
        raise ValueError(f"--fresh {count}: expected how many samples of the reference, or 0 for none")
    if count and reference in (None, "uniform"):
        raise ValueError(
            f"--fresh {count} samples from the reference, which is {reference or 'none'}: give --reference MODEL"
        )


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
