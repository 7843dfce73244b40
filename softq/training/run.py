"""A whole run from settings: read, load, train, evaluate, write. A generator of events; whoever calls it shows them."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from softq.lm.tokenizer import load_tokenizer
from softq.records import Method
from softq.training import checkpoint, ranks
from softq.training.checkpoint import Checkpoint
from softq.training.course import Course, Rest, course, kept_references, steps
from softq.training.estimate import estimate
from softq.training.events import Event, Kept, Note, RunError, Sampled, Saved, Stopped
from softq.training.labels import judged
from softq.training.log import Log
from softq.training.loop import default_budget
from softq.training.output import (
    MANIFEST,
    account,
    alone,
    claim,
    finished,
    left,
    manifest,
    now,
    refuse,
    save,
    weights,
    write_json,
    write_model,
    write_words,
)
from softq.training.prepare import checked, facts, load_models, read_data, reads_reference
from softq.training.resume import (
    copy_model,
    keep,
    other_settings,
    same_run,
    same_start,
    state_back,
    weights_back,
)
from softq.training.settings import Call, Settings
from softq.training.trackers import trackers
from softq.training.watch import Watch


def run(
    name: str, settings: Settings, method: Method, understood: Mapping[str, Any], call: Call | None = None
) -> Iterator[Event]:
    """Train a method by its settings and write the result.

    On several processes each runs this, and the first writes. Raises DataError, OutputError, ValueError (settings) or
    RunError.
    """
    call = call or Call()
    directory = Path(settings.output)
    if not (call.dry or call.resume):
        refuse(directory, overwrite=call.overwrite)
    accelerator = ranks.join(bf16=settings.bf16)
    if settings.shard and ranks.count() == 1:
        raise ValueError(
            "--shard: there is one process to share among; launch several, with torchrun or accelerate launch"
        )
    set_seed(settings.seed)
    with ranks.company(), ExitStack() as held:
        found = None
        if call.resume and not call.dry:
            held.enter_context(alone(directory))
            if finished(directory):
                then = left(directory) or {}
                if other := other_settings(then["settings"], understood):
                    raise ValueError(f"--resume: {directory} is finished, and of another run: {'; '.join(other)}")
                yield Note(f"{directory} is finished: there is nothing to resume")
                yield Saved(directory)
                return
            found, said = _found(directory)
            yield from map(Note, said)
        spoken = load_tokenizer(settings.model, call.trust_remote_code)
        data = ranks.one_after_another(lambda: read_data(name, settings, method, spoken))
        yield from map(Note, (*spoken.notes, *data.notes, *judged(settings, understood, method, data)))
        device = str(accelerator.device)
        loaded = load_models(name, settings, method, call, data=data, tokenizer=spoken.tokenizer, device=device)
        budget = settings.tokens_per_micro or (found.manifest["tokens_per_micro"] if found else None)
        budget = budget or default_budget(loaded.models)
        yield from map(Note, (*loaded.notes, *checked(settings, method, loaded, data, call, tokens_per_micro=budget)))
        if call.dry:
            if not settings.cache_reference:  # it would change what the steps cost
                going = course(settings, method, loaded, data, accelerator, budget)
                yield from map(Note, (*going.notes, str(estimate(going))))
            return
        found_out = {**facts(name, settings, method, loaded, data), "tokens_per_micro": budget}
        record = manifest(understood, {**found_out, "verified": dict(call.verified)})
        if found:
            yield from map(Note, same_run(found, record))
            weights_back(found, loaded, moving=bool(settings.reference_mixup))
        elif call.resume:
            same_start(directory, record)
        else:
            held.enter_context(alone(directory))
        references = None
        if settings.cache_reference:
            with accelerator.autocast():
                references, said = kept_references(settings, loaded, data, record["reference"]["fingerprint"], budget)
            yield from map(Note, said)
        going = course(settings, method, loaded, data, accelerator, budget)._replace(references=references)
        yield from _trained(going, call, found, record)


def _found(directory: Path) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint to go on from, which the first process verifies, and what to say."""
    found, said = checkpoint.newest(directory) if ranks.first() else (None, [])
    chosen = ranks.gathered([found])[0]
    return chosen, said if chosen else [*said, f"{directory} has no whole checkpoint: starting from the start"]


def _trained(going: Course, call: Call, found: Checkpoint | None, record: dict[str, Any]) -> Iterator[Event]:
    """The steps, each written down and saved when it is due; then the result."""
    yield from map(Note, going.notes)
    directory = Path(going.settings.output)
    record |= {"steps": going.steps}
    if ranks.first():
        _begin(going, call, found, record)
    ranks.wait()
    memory = state_back(found, going.update) if found else None
    log = Log(directory, going.settings.best, ranks.first(), found.directory if found else None)
    if found and log.best and (damage := checkpoint.damaged(checkpoint.at(directory, log.best.step))):
        raise RunError(
            f"the checkpoint of the best evaluation, of step {log.best.step}, is not there whole: {damage}; --resume without "
            "--best goes on and writes the last weights"
        )
    report = trackers(call.report_to if ranks.first() else (), directory, record["settings"], step=log.step)
    began = time.monotonic() - (found.manifest["seconds"] if found else 0)
    evaluated = found.record["evaluated"] if found else True
    watch = _watch(going)
    record["verdicts"] = [said for line in log.lines for said in watch(line["step"], line)]
    for event in steps(going, call, start=log.step, evaluated=evaluated, memory=memory):
        if isinstance(event, Rest):
            record |= {"seconds": round(time.monotonic() - began, 1), "metrics": dict(log.metrics)}
            yield from _rested(going, log, record, event)
        else:
            log.add(event)
            yield event
            if not isinstance(event, Sampled):
                report.log(event.metrics, event.step)
                verdicts = watch(event.step, event.metrics)
                record["verdicts"] += verdicts
                yield from map(Note, verdicts)
    log.close()
    report.close()
    if log.step == going.steps:
        _finish(going, log, record)
        yield Saved(directory)


def _watch(going: Course) -> Watch:
    settings = going.settings
    start = reads_reference(going.method) and settings.reference is None and not going.data.stored
    moves = bool(settings.reference_mixup)
    return Watch(reference_is_start=start, reference_moves=moves, beta=going.method.beta)


def _begin(going: Course, call: Call, found: Checkpoint | None, record: dict[str, Any]) -> None:
    """Make the output this run's: its manifest, its accounts, and no checkpoint that is not its past."""
    directory = Path(going.settings.output)
    if found:
        earlier = found.manifest.get("resumed", [])
        record |= {"started": found.manifest["started"], "resumed": [*earlier, {"step": found.step, "at": now()}]}
        if files := (left(directory) or {}).get(
            "files"
        ):  # of a result that was being written: --overwrite removes them
            record["files"] = files
        checkpoint.tidy(directory)
        checkpoint.forget(directory, after=found.step)
    else:
        claim(directory, overwrite=call.overwrite or (call.resume and (directory / MANIFEST).exists()))
    try:
        write_json(directory / MANIFEST, record)
        account(directory, going.data.train, going.data.held_out)
    except OSError as error:
        raise RunError(f"--output {directory} can not be written: {error.strerror}; mend it and --resume") from error


def _rested(going: Course, log: Log, record: dict[str, Any], rest: Rest) -> Iterator[Kept | Stopped]:
    """Save what is between two steps, if it is due, is the best so far, or a signal asks for it."""
    settings, directory = going.settings, Path(going.settings.output)
    due = bool(settings.save_every) and rest.step % settings.save_every == 0
    best = {log.best.step} if log.best else set()
    if rest.step == going.steps or not (rest.signal or due or rest.step in best):
        return
    there = keep(going, log, record, rest)
    if ranks.first():
        checkpoint.trim(directory, settings.keep, best)
    yield Kept(rest.step, there)
    if rest.signal:
        if ranks.first():
            write_json(directory / MANIFEST, {**record, "stopped": {"step": rest.step, "signal": rest.signal}})
        yield Stopped(rest.signal, rest.step, directory)


def _finish(going: Course, log: Log, record: dict[str, Any]) -> None:
    """The result: the weights as they are now or, with --best, those of the best evaluation's checkpoint."""
    directory, loaded = Path(going.settings.output), going.loaded
    record["weights_of_step"] = log.best.step if log.best else going.steps
    record["metrics"] = log.best.metrics if log.best else log.metrics  # of what is written, as the card shows them
    state = weights(loaded.policy)

    def model(partial: Path) -> None:
        if record["weights_of_step"] < going.steps:
            copy_model(checkpoint.at(directory, record["weights_of_step"]), partial)
        else:
            write_model(partial, loaded.policy, state)
            write_words(partial, loaded.policy, loaded.tokenizer, going.data.train.template_ends)

    if ranks.first():
        checkpoint.trim(directory, going.settings.keep, {log.best.step} if log.best else set())  # a killed run did not
        save(directory, model, record)
    ranks.wait()
