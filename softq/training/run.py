"""A whole run from settings: read, load, train, evaluate, write. A generator of events; whoever calls it shows them."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed

from softq.lm.load import Loaded
from softq.lm.score import Models
from softq.lm.tokenizer import load_tokenizer
from softq.records import Method
from softq.training.loop import evaluate, train
from softq.training.output import MANIFEST, METRICS, account, claim, manifest, refuse, save, write_json
from softq.training.plan import NonFiniteLoss
from softq.training.prepare import Data, RunError, checked, facts, load_models, named, read_data
from softq.training.settings import Settings
from softq.training.source import Order, batch_of, batches
from softq.training.update import AdamW


class Note(NamedTuple):
    """Something a user should know."""

    text: str


class Progress(NamedTuple):
    """One optimiser step was made."""

    step: int
    steps: int
    metrics: Mapping[str, float]


class Evaluated(NamedTuple):
    """The held-out data was scored."""

    step: int
    metrics: Mapping[str, float]


class Saved(NamedTuple):
    """The run is finished and written."""

    directory: Path


Event = Note | Progress | Evaluated | Saved


def run(
    name: str, settings: Settings, method: Method, understood: Mapping[str, Any], *, dry: bool = False
) -> Iterator[Event]:
    """Train a method by its settings and write the result.

    dry: read the data, load the models, check step 0, say everything, train and write nothing. Raises DataError,
    OutputError, ValueError (settings) or RunError.
    """
    directory = Path(settings.output)
    if not dry:
        refuse(directory, overwrite=settings.overwrite)
    AcceleratorState._reset_state()  # it is one for the process, and an earlier run may have had another precision
    accelerator = Accelerator(mixed_precision="bf16" if settings.bf16 else "no")
    set_seed(settings.seed)
    spoken = load_tokenizer(settings.model, settings.trust_remote_code)
    data = read_data(name, settings, method, spoken)
    yield from map(Note, (*spoken.notes, *data.notes))
    device = str(accelerator.device)
    loaded = load_models(name, settings, method, data=data, tokenizer=spoken.tokenizer, device=device)
    yield from map(Note, (*loaded.notes, *checked(settings, method, loaded, data)))
    if dry:
        return
    claim(directory, overwrite=settings.overwrite)
    record = manifest(understood, facts(settings, method, loaded, data))
    write_json(directory / MANIFEST, record)
    account(directory, data.train, data.held_out)
    began = time.monotonic()
    metrics: dict[str, float] = {}
    with (directory / METRICS).open("w", encoding="utf-8") as log:
        for event in _training(settings, method, loaded, data, accelerator):
            metrics |= event.metrics
            log.write(json.dumps({"step": event.step, **event.metrics}) + "\n")
            log.flush()
            yield event
    record = {**record, "seconds": round(time.monotonic() - began, 1), "metrics": metrics}
    save(directory, loaded.policy, loaded.tokenizer, data.train.template_ends, record)
    yield Saved(directory)


def _training(
    settings: Settings, method: Method, loaded: Loaded, data: Data, accelerator: Accelerator
) -> Iterator[Progress | Evaluated]:
    records, weights = data.records, [source.weight for source in data.train.sources]
    order = Order.of(records, weights, settings.batch_size, settings.seed)
    steps = order.steps(settings.num_train_epochs)
    steps = min(steps, settings.max_steps or steps)
    epoch = order.steps_a_pass
    warmup = settings.warmup_steps if settings.warmup_steps >= 1 else settings.warmup_steps * steps
    update = AdamW(
        loaded.models,
        steps=steps,
        learning_rate=settings.learning_rate,
        schedule=settings.lr_scheduler_type,
        warmup_steps=round(warmup),
        weight_decay=settings.weight_decay,
        betas=(settings.adam_beta1, settings.adam_beta2),
        max_grad_norm=settings.max_grad_norm,
        backward=accelerator.backward,
    )
    models = cast(Models, accelerator.prepare_model(loaded.models))
    source = batches(
        records,
        method,
        batch_size=settings.batch_size,
        epochs=steps / epoch,
        seed=settings.seed,
        weights=weights,
    )
    every = settings.eval_steps or epoch
    held = batch_of(data.held, range(len(data.held)), method) if data.held else None
    loop = train(models, method, source, update, tokens_per_micro=settings.tokens_per_micro)
    for step in range(1, steps + 1):
        try:
            done = next(loop)
        except NonFiniteLoss as error:
            where = named(records, error.prompts)
            raise RunError(
                f"step {step}: the loss of {where} is not finite; lower --learning-rate or drop them"
            ) from error
        except FloatingPointError as error:
            where = named(records, order.step(step - 1))
            raise RunError(f"step {step}: {error}; its records: {where}; lower --learning-rate") from error
        yield Progress(step, steps, {"epoch": step / epoch, **data.named(done.metrics)})
        if held is not None and (step % every == 0 or step == steps):
            seen = evaluate(models, method, held, tokens_per_micro=settings.tokens_per_micro)
            yield Evaluated(step, {f"eval_{key}": value for key, value in data.named(seen, held=True).items()})
