"""The steps of a run, from wherever it stands: train, move the reference, evaluate, sample; the caller logs and saves."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

from accelerate import Accelerator
from torch import Tensor

from softq.data.read import cache_directory
from softq.lm.load import Loaded
from softq.lm.model import AdapterOff
from softq.lm.reference import move_reference
from softq.lm.score import Models
from softq.records import Batch, Method
from softq.training import ranks
from softq.training.events import Evaluated, Progress, RunError, Sampled
from softq.training.loop import Step, evaluate, train
from softq.training.plan import NonFiniteLoss
from softq.training.prepare import Data, named
from softq.training.reference_cache import ReferenceCache, cached_reference
from softq.training.samples import sampled
from softq.training.settings import Call, Settings, flag
from softq.training.shard import shard
from softq.training.source import Order, Source, batch_of, batches
from softq.training.update import AdamW

LONGEST = 256
"""Tokens of a sampled answer."""


class References(NamedTuple):
    """Kept log-probs of a reference: of the data to train on, and of that to evaluate on."""

    train: ReferenceCache
    held: ReferenceCache


class Course(NamedTuple):
    """Everything that the steps of a run need."""

    settings: Settings
    method: Method
    loaded: Loaded
    data: Data
    models: Models  # of `loaded`, wrapped for several processes and for autocast
    update: AdamW
    order: Order
    steps: int
    tokens_per_micro: int
    references: References | None = None

    @property
    def every(self) -> int:
        """Steps between evaluations."""
        return self.settings.eval_steps or self.order.steps_a_pass

    @property
    def notes(self) -> list[str]:
        """What to say of how many steps there are."""
        epochs, most = self.settings.num_train_epochs, self.settings.max_steps or 0
        short = f"{flag('max_steps')} {most} is not reached: {flag('num_train_epochs')} {epochs:g} ends after step {self.steps}"
        return [f"{short}; raise it for more"] if most > self.steps else []

    def source(self, start: int) -> Source:
        """The batches behind step `start`."""
        read = batches(
            self.data.records,
            self.method,
            batch_size=self.settings.batch_size,
            epochs=self.steps / self.order.steps_a_pass,
            seed=self.settings.seed,
            weights=[source.weight for source in self.data.train.sources],
            start=start,
            max_length=self.settings.max_length,
        )
        kept = self.references
        return read if kept is None else lambda models: map(kept.train.filled, read(models))

    def held(self) -> Batch | None:
        """The records to evaluate on, as one batch."""
        if self.data.held is None:
            return None
        length = self.settings.max_length
        batch = batch_of(self.data.held, range(len(self.data.held)), self.method, max_length=length)
        return batch if self.references is None else self.references.held.filled(batch)


class Rest(NamedTuple):
    """Between two steps: everything is done, and may be saved."""

    step: int
    memory: Mapping[str, Tensor]
    evaluated: bool  # False where a signal came before an evaluation that was due
    signal: int


def kept_references(
    settings: Settings, loaded: Loaded, data: Data, fingerprint: str, tokens_per_micro: int
) -> tuple[References, list[str]]:
    """The reference's log-probs of the data, from an earlier run or scored now; a reference that costs memory is let go."""
    said: list[str] = []
    made: list[ReferenceCache] = []
    for dataset in [data.train] if data.held_out is None else [data.train, data.held_out]:
        cache, notes = cached_reference(
            cache_directory(),
            dataset.records,
            loaded.models,
            fingerprint=fingerprint,
            dtype=settings.dtype + "+bf16 autocast" * settings.bf16,
            tokens_per_micro=tokens_per_micro,
        )
        made.append(cache)
        said += notes
    if not isinstance(loaded.models["ref"], AdapterOff):
        del loaded.models["ref"]
    return References(made[0], made[-1]), said


def course(
    settings: Settings,
    method: Method,
    loaded: Loaded,
    data: Data,
    /,
    accelerator: Accelerator,
    tokens_per_micro: int,
) -> Course:
    """Wrap the models, make the optimiser, count the steps."""
    order = Order.of(data.records, [source.weight for source in data.train.sources], settings.batch_size, settings.seed)
    steps = order.steps(settings.num_train_epochs)
    steps = min(steps, settings.max_steps or steps)
    warmup = settings.warmup_steps if settings.warmup_steps >= 1 else settings.warmup_steps * steps
    if settings.shard:
        shard(loaded.models, str(accelerator.device))
    models = cast(Models, accelerator.prepare_model(loaded.models, evaluation_mode=settings.shard))
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
    return Course(settings, method, loaded, data, models, update, order, steps, tokens_per_micro)


def steps(
    run: Course, call: Call, *, start: int, evaluated: bool, memory: Mapping[str, Tensor] | None
) -> Iterator[Progress | Evaluated | Sampled | Rest]:
    """The steps behind `start`, each ended by a Rest; one that tells of a signal is the last."""
    held = run.held()
    call.stop()  # from here on there is something to save
    if not evaluated:
        yield from _evaluated(run, call, held, start, memory)
    loop = train(
        run.models, run.method, run.source(start), run.update, tokens_per_micro=run.tokens_per_micro, memory=memory
    )
    for step in range(start + 1, run.steps + 1):
        done = _next(run, loop, step)
        if run.settings.reference_mixup and step % run.settings.reference_every == 0:
            move_reference(run.loaded.models, run.settings.reference_mixup)
        yield Progress(step, run.steps, {"epoch": step / run.order.steps_a_pass, **run.data.named(done.metrics)})
        signal = max(ranks.gathered([call.stop()])) if step < run.steps else 0
        due = step % run.every == 0 or step == run.steps
        if due and not signal:
            yield from _evaluated(run, call, held, step, done.memory)
        yield Rest(step, done.memory, evaluated=not (due and signal), signal=signal)
        if signal:
            return


def _evaluated(
    run: Course, call: Call, held: Batch | None, step: int, memory: Mapping[str, Tensor] | None
) -> Iterator[Evaluated | Sampled]:
    if held is None or run.data.held is None:
        return
    try:
        seen = evaluate(run.models, run.method, held, tokens_per_micro=run.tokens_per_micro, memory=memory)
    except NonFiniteLoss as error:
        where = named(run.data.held, error.prompts)
        raise RunError(
            f"step {step}: the evaluation's loss of {where} is not finite; lower --learning-rate or drop them"
        ) from error
    yield Evaluated(step, {f"eval_{key}": value for key, value in run.data.named(seen, held=True).items()})
    if call.samples and ranks.first():
        ends = run.data.train.template_ends
        said = sampled(
            run.loaded, run.method, run.data.held, call.samples, seed=step, max_new_tokens=LONGEST, ends=ends
        )
        yield Sampled(step, said)


def _next(run: Course, loop: Iterator[Step], step: int) -> Step:
    try:
        return next(loop)
    except NonFiniteLoss as error:
        where = named(run.data.records, error.prompts)
        raise RunError(f"step {step}: the loss of {where} is not finite; lower --learning-rate or drop them") from error
    except (FloatingPointError, ValueError) as error:  # a ValueError: what a loss can not read of these records
        where = named(run.data.records, run.order.step(step - 1))
        advice = "; lower --learning-rate" if isinstance(error, FloatingPointError) else ""
        raise RunError(f"step {step}: {error}; its records: {where}{advice}") from error
