"""Before the first step: models, data, and the checks that a run must pass to be worth its hours."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from softq.data.encode import Encoded
from softq.data.read import Dataset, boundaries, read, template
from softq.lm.load import Loaded, Lora, load
from softq.lm.model import AdapterOff
from softq.lm.probe import verify_layout
from softq.lm.reference import fingerprint
from softq.records import Batch, Method
from softq.training.loop import default_budget, evaluate
from softq.training.output import end_tokens
from softq.training.plan import NonFiniteLoss, plan, scored_whole
from softq.training.settings import Settings
from softq.training.source import batch_of, conversion, drawn


class RunError(RuntimeError):
    """A run that can not go on; the message says where and why."""


class Data(NamedTuple):
    """The records to train on and to evaluate on, and what to say about them."""

    train: Dataset
    held: list[Encoded]
    notes: tuple[str, ...]


def reads_reference(method: Method) -> bool:
    """Whether a readout of the method sees a reference."""
    return any("ref" in readout.models for readout in method.needs)


def load_models(name: str, settings: Settings, method: Method, device: str) -> Loaded:
    """The policy and, if the method reads one, its reference."""
    if settings.reference is not None and not reads_reference(method):
        raise ValueError(f"--reference: {name} reads no reference; leave it out")
    targets = settings.lora_target_modules
    lora = Lora(settings.lora_r, settings.lora_alpha, targets[0] if targets == ["all-linear"] else targets)
    loaded = load(
        settings.model,
        (settings.reference or "start") if reads_reference(method) else None,
        layout=settings.layout,
        dtype=settings.dtype,
        lora=lora if settings.use_peft else None,
        device=device,
        trust_remote_code=settings.trust_remote_code,
    )
    if settings.gradient_checkpointing:
        kwargs = {"use_reentrant": False}
        loaded.policy.transformer.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    return loaded


def read_data(name: str, settings: Settings, method: Method, loaded: Loaded) -> Data:
    """The data as tokens, split by the seed, and what to say about it."""
    ends = end_tokens(loaded.policy, loaded.tokenizer)
    if settings.chat_template is not None:
        loaded.tokenizer.chat_template = template(settings.chat_template)

    def of(files: Sequence[str]) -> Dataset:
        return read(
            files,
            loaded.tokenizer,
            end_ids=ends,
            max_length=settings.max_length,
            format=settings.format,
            reads=method.columns,
            method=name,
        )

    data = of(settings.data)
    said = conversion(data.kind, method, name)
    notes = [f"data: {data.format}", *data.ledger.lines(), *([said] if said else [])]
    if data.other_columns:
        notes.append(f"fields that {name} does not read: {', '.join(data.other_columns)}")
    if data.template_ends:
        tokens = ", ".join(map(repr, loaded.tokenizer.convert_ids_to_tokens(sorted(data.template_ends))))
        notes.append(
            f"the chat template ends a turn with {tokens}, which the generation config lacks: added to the output's"
        )
    notes += [f"prompt | completion: {line}" for line in boundaries(data, loaded.tokenizer)]
    train, held = _split(data.records, settings)
    if settings.eval_data:
        train, held = data.records, of(settings.eval_data).records
    if len(held) == 1 and method.coupled:
        train, held = [*train, *held], []
        notes.append(f"no evaluation: {name} compares records, and only one was held out")
    notes.append(f"{len(train)} records to train on, {len(held)} to evaluate on")
    return Data(data._replace(records=train), held, tuple(notes))


def checked(settings: Settings, method: Method, loaded: Loaded, data: Data) -> list[str]:
    """Score the first step before anything is trained: the loss is finite, and a reference that is the start is the start."""
    numbers = drawn(len(data.train.records), settings.batch_size, settings.seed, 0)
    batch = batch_of([data.train.records[n] for n in numbers], numbers, method)
    budget = settings.tokens_per_micro or default_budget(loaded.models)
    notes = []
    if method.coupled and settings.batch_size == 1:
        raise ValueError("--batch-size 1: this method couples the records of a step; it needs at least two records")
    if reads_reference(method):
        scored = scored_whole(method, loaded.models, batch, budget)
        apart = (scored["logp"] - scored["ref_logp"]).abs().max().item()
        if settings.reference is None and apart > 0:
            raise RunError(f"step 0: policy and reference are the same weights, yet {apart:.1e} nats apart on a token")
        where = "exactly 0" if apart == 0 else f"up to {apart:.2f} nats a token"
        notes.append(f"step 0: log π/π_ref is {where} on the first step's tokens")
    try:
        loss = evaluate(loaded.models, method, batch, tokens_per_micro=budget)["loss"]
    except NonFiniteLoss as error:
        where = ", ".join(data.train.records[n].where for n in error.prompts[:8])
        raise RunError(f"step 0: the loss of {where} is not finite; check the model and these records") from error
    _pulls(method, loaded, batch, budget)
    notes.append(f"step 0: loss {loss:.4f}")
    if settings.verify_layout:
        notes.append(verify_layout(loaded.models, batch.tokens))
    return notes


def _pulls(method: Method, loaded: Loaded, batch: Batch, budget: int) -> None:
    """Raise where the loss has no gradient: a method of one's own that detaches what it should train."""
    micro = plan(method, loaded.models, batch, tokens_per_micro=budget).micros[0]
    if not micro.share(loaded.models(micro.batch.tokens, method.needs)).requires_grad:
        raise ValueError("the loss has no gradient: it must be a function of scored['logp'] that is not detached")


def facts(settings: Settings, method: Method, loaded: Loaded, data: Data) -> dict[str, Any]:
    """What the manifest says beside the settings: reference, data, how rows ran."""
    return {
        "reference": _reference(settings, loaded) if reads_reference(method) else None,
        "data": {
            "files": {name: _sha256(name) for name in [*settings.data, *settings.eval_data]},
            "format": data.train.format,
            "records": len(data.train.records),
            "held_out": len(data.held),
            "ledger": data.train.ledger.as_dict(),
        },
        "layout": loaded.policy.layout,
        "tokens_per_micro": settings.tokens_per_micro or default_budget(loaded.models),
        "device": str(next(loaded.policy.parameters()).device),
    }


def _reference(settings: Settings, loaded: Loaded) -> dict[str, str]:
    reference = loaded.models["ref"]
    if isinstance(reference, AdapterOff):
        kind, mark = "the model under the fresh adapter", fingerprint(loaded.policy, adapter=False)
    else:
        kind = settings.reference or "a frozen copy of the model as it started"
        mark = fingerprint(reference)  # pyright: ignore[reportArgumentType]
    return {"model": kind, "fingerprint": mark, "dtype": settings.dtype}


def _split(records: list[Encoded], settings: Settings) -> tuple[list[Encoded], list[Encoded]]:
    """Train and held-out records, drawn by the seed, in the order of the file."""
    count = min(len(records) - 1, round(settings.eval_fraction * len(records)))
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    return [records[n] for n in sorted(order[count:])], [records[n] for n in sorted(order[:count])]


def _sha256(name: str) -> str:
    with Path(name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
