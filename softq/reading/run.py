"""What `softq score` does: a policy, a reference and a data set opened, scored, by checkpoints too, and cross-fitted."""

from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from softq.data.formats import renames
from softq.data.read import Dataset, cache_directory, read
from softq.data.rows import DataError
from softq.inspection.shelf import facts
from softq.lm.load import Loaded, load
from softq.lm.tokenizer import load_tokenizer
from softq.reading.checkpoints import checkpoints, scored_by
from softq.reading.choice import Choice, choice, had_again, same_words
from softq.reading.cross_fit import CrossFit, Fold, check_data, check_same, cross_fit, crossed, described
from softq.reading.outputs import check_open, claim
from softq.reading.score import PART
from softq.reading.tables import Asked, Part, written
from softq.training import ranks
from softq.training.events import Note, RunError
from softq.training.output import alone


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
            found = checkpoints(Path(asked.policy)) if asked.checkpoints else []
            yield from scored_by(found, asked, chosen, data, loaded)
            if fit is not None:
                read_by = "policy" if fit.settings.model == asked.policy else "reference"
                tokenizer, mark = loaded.tokenizer, facts(asked.output)[read_by]["fingerprint"]
                del loaded  # to make room for what is trained
                yield from _crossed(asked, fit, data, tokenizer, mark)
        except OSError as error:
            why = f"{error.strerror or error}; mend it, then the same again goes on"
            raise RunError(f"--output {asked.output} can not be written: {why}") from error


def _check_settings(asked: Asked) -> None:
    """ValueError for lengths, counts and names that can not be."""
    if asked.checkpoints < 0:
        raise ValueError(f"--checkpoints {asked.checkpoints}: expected how many records each scores, or 0 for none")
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
    with had_again(chosen, asked.policy):
        loaded = _loaded(asked, chosen, data, spoken.tokenizer, device)
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
