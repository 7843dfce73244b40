"""Before the first step: models, data, and the checks that a run must pass to be worth its hours."""

import hashlib
import inspect
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from softq.data.formats import renames
from softq.data.read import Dataset, boundaries, cache_directory, read, template
from softq.data.rows import DataError
from softq.data.sources import opened
from softq.data.store import Records
from softq.lm.load import Loaded, Lora, load, load_reward_model
from softq.lm.model import AdapterOff
from softq.lm.probe import verify_layout
from softq.lm.reference import fingerprint
from softq.lm.reward import RewardModel
from softq.lm.tokenizer import Spoken
from softq.records import Batch, Method, valued
from softq.training import ranks
from softq.training.events import RunError
from softq.training.loop import credited, evaluate, with_columns
from softq.training.methods import method_names
from softq.training.plan import NonFiniteLoss, plan, scored_by, scored_whole
from softq.training.settings import Call, Settings
from softq.training.source import Order, batch_of, conversion, usable
from softq.training.stored import UNSTORE, check_readouts, check_sums

MAKE = {"dpo": "softq train dpo on the data", "reverse": "softq train dpo on what softq data FILE --swap writes"}
"""How to come by the models that methods read beside the policy and its reference."""


class Data(NamedTuple):
    """The records to train on and to evaluate on, and what to say about them."""

    train: Dataset
    records: Records  # of `train`, to train on
    held: Records | None  # to evaluate on: of `train`, or of `held_out`
    held_out: Dataset | None
    notes: tuple[str, ...]

    @property
    def stored(self) -> bool:
        """Whether the data brings the reference's log-probs of its completions."""
        return "ref_logps" in self.records[0].columns

    def named(self, metrics: Mapping[str, float], *, held: bool = False) -> dict[str, float]:
        """Metrics by source, of the training data or of the held-out data, under the sources' names."""
        sources = self.held_out.sources if held and self.held_out else self.train.sources
        names = {f"source {n}": source.name for n, source in enumerate(sources)}
        parts = {key: key.partition("/") for key in metrics}
        return {names.get(head, head) + slash + rest: metrics[key] for key, (head, slash, rest) in parts.items()}


def reads_reference(method: Method) -> bool:
    """Whether a readout of the method sees a reference."""
    return any("ref" in readout.models for readout in method.needs)


def read_models(method: Method) -> list[str]:
    """The models beside the policy and a reference that readouts of the method see, by name."""
    seen = dict.fromkeys(model for readout in method.needs for model in readout.models)
    return [model for model in seen if model not in ("policy", "ref")]


def load_models(
    name: str,
    settings: Settings,
    method: Method,
    call: Call,
    *,
    data: Data,
    tokenizer: PreTrainedTokenizerBase,
    device: str,
) -> Loaded:
    """The policy and what else the method reads: its reference, if the data does not store that, and models by name."""
    if settings.reference is not None and not reads_reference(method):
        raise ValueError(f"--reference: {name} reads no reference; leave it out")
    if settings.reference_mixup and not reads_reference(method):
        raise ValueError(f"--reference-mixup: {name} reads no reference; leave it out")
    if settings.reference is not None and data.stored:
        raise ValueError("--reference: the data stores the reference's log-probs (ref_logps); leave one of them out")
    if valued(method):
        loaded = _reward_model(name, settings, call, tokenizer, device)
    else:
        loaded = _policy(settings, method, call, data, tokenizer=tokenizer, device=device)
    if settings.gradient_checkpointing:
        kwargs = {"use_reentrant": False}
        loaded.policy.transformer.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    return loaded


def _reward_model(name: str, settings: Settings, call: Call, tokenizer: PreTrainedTokenizerBase, device: str) -> Loaded:
    if settings.use_peft:
        raise ValueError(f"--use-peft: {name} trains a reward model whole, with a head of its own; leave it out")
    return load_reward_model(
        settings.model,
        tokenizer=tokenizer,
        layout=settings.layout,
        dtype=settings.dtype,
        device=device,
        trust_remote_code=call.trust_remote_code,
    )


def _policy(
    settings: Settings, method: Method, call: Call, data: Data, *, tokenizer: PreTrainedTokenizerBase, device: str
) -> Loaded:
    targets = settings.lora_target_modules
    lora = Lora(settings.lora_r, settings.lora_alpha, targets[0] if targets == ["all-linear"] else targets)
    loaded = load(
        settings.model,
        (settings.reference or "start") if reads_reference(method) and not data.stored else None,
        tokenizer=tokenizer,
        layout=settings.layout,
        dtype=settings.dtype,
        lora=lora if settings.use_peft else None,
        device=device,
        trust_remote_code=call.trust_remote_code,
        copied=bool(settings.reference_mixup) or settings.shard,
        others=settings.models,
    )
    if settings.reference_mixup:
        there = {name: tensor.shape for name, tensor in loaded.models["ref"].named_parameters()}
        trained = {name: tensor.shape for name, tensor in loaded.policy.named_parameters() if tensor.requires_grad}
        if unlike := [name for name, shape in trained.items() if there.get(name) != shape]:
            raise ValueError(
                f"--reference-mixup: the reference {settings.reference} has no {unlike[0]} like the policy's, so it can "
                "not follow it; leave --reference out, or give the model that training starts from"
            )
    return loaded


def _check_models(name: str, settings: Settings, method: Method) -> None:
    """ValueError unless --models are those that the method reads."""
    wanted = read_models(method)
    if idle := [model for model in settings.models if model not in wanted]:
        reads = f"the models {', '.join(wanted)} alone" if wanted else "no model but the policy and a reference"
        raise ValueError(f"--models {idle[0]}={settings.models[idle[0]]}: {name} reads {reads}; leave it out")
    if missing := [model for model in wanted if model not in settings.models]:
        known = [MAKE[model] for model in missing if model in MAKE]
        made = f"; make {'them' if len(known) > 1 else 'it'} with {' and with '.join(known)}" if known else ""
        given = ",".join(f"{model}={settings.models.get(model, 'DIR')}" for model in wanted)
        models = f"the models {', '.join(wanted)}" if len(wanted) > 1 else f"the model {wanted[0]}"
        raise ValueError(f"{name} reads {models}: give --models {given}{made}")


def read_data(name: str, settings: Settings, method: Method, spoken: Spoken) -> Data:
    """The data as tokens, split by the seed, and what to say about it."""
    _check_models(name, settings, method)  # reading may take long
    tokenizer = spoken.tokenizer
    if settings.chat_template is not None:
        tokenizer.chat_template = template(settings.chat_template)
    cache, notes = _cache()

    def of(files: Sequence[Any]) -> Dataset:
        return read(
            files,
            tokenizer,
            end_ids=spoken.end_ids,
            max_length=settings.max_length,
            truncate=settings.truncate,
            format=settings.format,
            rename=renames(settings.rename),
            reads=(*method.columns, *(["ref_logps"] if reads_reference(method) else [])),
            method=name,
            cache=cache,
        )

    data = of(settings.data)
    said = conversion(data.kind, method, name)
    notes += [f"data: {source.name}: {format}" for source, format in zip(data.sources, data.formats, strict=True)]
    notes += [*data.ledger.lines(), *(["encoded by an earlier run"] if data.cached else []), *([said] if said else [])]
    if data.other_columns:
        notes.append(f"fields that {name} does not read: {', '.join(data.other_columns)}")
    if data.template_ends:
        tokens = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(sorted(data.template_ends))))
        notes.append(
            f"the chat template ends a turn with {tokens}, which the generation config lacks: added to the output's"
        )
    notes += [f"prompt | completion: {line}" for line in boundaries(data, tokenizer)]
    held_out = of(settings.eval_data) if settings.eval_data else None
    if held_out is not None and held_out.kind != data.kind:
        raise ValueError(f"--eval-data holds {held_out.kind}, --data {data.kind}; give data of one kind")
    records = usable(data.records, data.kind, method)
    if not len(records):
        raise DataError(f"no row is left that {name} can use: {said}")
    train, held = (records, usable(held_out.records, held_out.kind, method)) if held_out else _split(records, settings)
    if len(held) == 1 and method.coupled:
        train, held = records if held_out is None else train, held.take([])
        notes.append(f"no evaluation: {name} compares records, and only one was held out")
    notes.append(f"{len(train):,} records to train on, {len(held):,} to evaluate on")
    found = Data(data, train, held if len(held) else None, held_out, tuple(notes))
    _check_stored(name, settings, method, found)
    return found


def _cache() -> tuple[Path | None, list[str]]:
    """Where encoded data is kept between runs, and what to say where it can not be."""
    directory = cache_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory, []
    except OSError as error:
        return None, [f"encoded data is not kept: {directory} can not be written ({error.strerror}); set SOFTQ_CACHE"]


def _check_stored(name: str, settings: Settings, method: Method, data: Data) -> None:
    """What is stored stands for REF_LOGP and for nothing else that a method reads of its reference."""
    if settings.cache_reference:
        if not reads_reference(method) or data.stored:
            why = "the data stores its log-probs already (ref_logps)" if data.stored else f"{name} reads no reference"
            raise ValueError(f"--cache-reference: {why}; leave it out")
        check_readouts(name, method, "--cache-reference keeps its log-probs alone", "leave it out")
    if data.held is not None and ("ref_logps" in data.held[0].columns) != data.stored:
        raise ValueError(
            "only one of --data and --eval-data stores the reference's log-probs (ref_logps); give both or none"
        )
    if not data.stored:
        return
    if any(dataset.ledger.tokens["cut"] for dataset in (data.train, data.held_out) if dataset):
        raise ValueError(
            f"--truncate keep: completions are cut, and the log-probs that the data stores are of whole ones; {UNSTORE}"
        )
    if settings.reference_mixup:
        raise ValueError(
            "--reference-mixup: the data stores the reference's log-probs, which can not move; leave one out"
        )
    check_readouts(name, method, "the data stores its log-probs alone", UNSTORE)


def checked(
    settings: Settings, method: Method, loaded: Loaded, data: Data, call: Call, *, tokens_per_micro: int
) -> list[str]:
    """Score the first step before anything is trained: the loss is finite, and a reference that is the start is the start."""
    records = data.records
    weights = [source.weight for source in data.train.sources]
    order = Order.of(records, weights, settings.batch_size, settings.seed)
    fewest = order.records // order.steps_a_pass
    if fewest < 2 and (method.coupled or method.takes == "labels+mismatched"):
        raise ValueError(
            f"--batch-size {settings.batch_size} cuts {order.records} record(s) into steps of as few as {fewest}: this method "
            "compares the records of a step, and needs at least two records in each; raise it, or give more data"
        )
    numbers = order.step(0)
    drawn = [records[n % len(records)] for n in numbers]
    batch = batch_of(drawn, numbers, method, max_length=settings.max_length)
    budget = tokens_per_micro
    notes = []
    if settings.best and data.held is None:
        raise ValueError(f"--best {settings.best}: nothing is held out; give --eval-data or --eval-fraction")
    if call.samples and (data.held is None or settings.shard or valued(method)):
        why = "a sharded model can not generate here" if settings.shard else "nothing is held out to answer"
        why = "a reward model answers nothing" if valued(method) else why
        raise ValueError(f"--samples {call.samples}: {why}; leave it out")
    if call.verify_layout and settings.layout == "plain":
        raise ValueError(
            "--verify-layout compares a layout with plain; with --layout plain there is nothing to compare"
        )
    try:
        if reads_reference(method):
            notes.append(_apart(settings, method, loaded, batch, budget))
        seen = evaluate(loaded.models, method, batch, tokens_per_micro=budget)
    except NonFiniteLoss as error:
        where = named(records, error.prompts) or "the step, by its weights,"
        raise RunError(f"step 0: the loss of {where} is not finite; check the model and these records") from error
    _pulls(method, loaded, batch, budget)
    if settings.best and settings.best.removeprefix("eval_") not in seen:
        known = ", ".join(f"eval_{key}" for key in seen)
        raise ValueError(f"--best {settings.best}: no such metric of this method; there are {known}")
    notes.append(f"step 0: loss {seen['loss']:.4f}")
    if call.verify_layout:
        notes.append(verify_layout(loaded.models, batch.tokens))
    return notes


def named(records: Records, numbers: Sequence[int]) -> str:
    """Where the first of these records stand."""
    return ", ".join(dict.fromkeys(records[n % len(records)].where for n in numbers[:8]))


def _apart(settings: Settings, method: Method, loaded: Loaded, batch: Batch, budget: int) -> str:
    """How far policy and reference are apart; RunError where they are the same weights and yet are."""
    scored = scored_whole(method, loaded.models, batch, budget)
    ratio = scored["logp"] - scored["ref_logp"]
    if "ref_logp" in batch.columns:
        check_sums(method, loaded, batch, budget)
        return f"step 0: log π/π_ref, with the stored reference, is up to {ratio.sum(-1).abs().max():.2f} nats a completion"
    apart = ratio.abs().max().item()
    if settings.reference is None and apart > 0:
        raise RunError(f"step 0: policy and reference are the same weights, yet {apart:.1e} nats apart on a token")
    where = "exactly 0" if apart == 0 else f"up to {apart:.2f} nats a token"
    return f"step 0: log π/π_ref is {where} on the first step's tokens"


def _pulls(method: Method, loaded: Loaded, batch: Batch, budget: int) -> None:
    """Raise where the loss has no gradient: a method of one's own that detaches what it should train."""
    batch = credited(method, loaded.models, with_columns(batch, method.memory), budget)
    micro = plan(method, loaded.models, batch, tokens_per_micro=budget).micros[0]
    if not micro.share(scored_by(loaded.models, micro.batch, method)).requires_grad:
        what = "value" if valued(method) else "logp"
        raise ValueError(f"the loss has no gradient: it must be a function of scored[{what!r}] that is not detached")


def facts(name: str, settings: Settings, method: Method, loaded: Loaded, data: Data) -> dict[str, Any]:
    """What the manifest says beside the settings: reference, data, how rows ran."""
    referred = reads_reference(method)
    told = (
        referred and not data.stored and settings.reference is None
    )  # then the reference is what training starts from
    drawn = isinstance(loaded.policy, RewardModel) and loaded.policy.fresh
    names = len(data.train.sources) > 1  # then metrics are logged by them
    return {
        "reference": _reference(settings, loaded, data) if referred else None,
        "models": {model: _frozen(loaded, model, there, settings.dtype) for model, there in settings.models.items()},
        "base": None if told else {"fingerprint": fingerprint(loaded.policy, adapter=not (settings.use_peft or drawn))},
        "adapter": loaded.policy.adapted,
        "reward_model": valued(method),
        "code": _code(name),
        "data": {
            "files": {path: sha256(path) for path in _files(data)},
            "fingerprint": data.train.fingerprint or None,
            "format": data.train.formats[0] if len(data.train.formats) == 1 else list(data.train.formats),
            "records": len(data.records),
            "held_out": len(data.held or ()),
            "ledger": data.train.ledger.as_dict(),
            "content": [dataset.records.digest() for dataset in (data.train, data.held_out) if dataset],
            "weights": [[source.name if names else None, source.weight] for source in data.train.sources],
        },
        "layout": loaded.policy.layout,
        "device": str(next(loaded.policy.parameters()).device),
        "ranks": ranks.count(),
        "threads": torch.get_num_threads(),
    }


def _code(name: str) -> str | None:
    """A hash of the source of the user's own methods, if there are any."""
    modules = sorted({part.split(":")[0] for part in method_names(name) if ":" in part})
    if not modules:
        return None
    return hashlib.sha256("".join(inspect.getsource(import_module(module)) for module in modules).encode()).hexdigest()


def _files(data: Data) -> list[str]:
    """The files that were read; data sets of the hub have none."""
    given = [*data.train.sources, *(data.held_out.sources if data.held_out else ())]
    there = [opened(source)[0] for source in given]
    return list(dict.fromkeys(source.path for source in there if not source.hub))


def _reference(settings: Settings, loaded: Loaded, data: Data) -> dict[str, str | None]:
    if data.stored:
        return {"model": "log-probs that the data stores (ref_logps)", "fingerprint": None, "dtype": None}
    reference = loaded.models["ref"]
    if isinstance(reference, AdapterOff) or (settings.use_peft and settings.reference is None):
        kind, mark = "the model under the fresh adapter", fingerprint(loaded.policy, adapter=False)
    else:
        kind = settings.reference or "a frozen copy of the model as it started"
        mark = fingerprint(reference)  # pyright: ignore[reportArgumentType]
    return {"model": kind, "fingerprint": mark, "dtype": settings.dtype}


def _frozen(loaded: Loaded, name: str, there: str, dtype: str) -> dict[str, str]:
    mark = fingerprint(loaded.models[name])  # pyright: ignore[reportArgumentType]
    return {"model": there, "fingerprint": mark, "dtype": dtype}


def _split(records: Records, settings: Settings) -> tuple[Records, Records]:
    """Train and held-out records, drawn by the seed, in the order of the file."""
    count = min(len(records) - 1, round(settings.eval_fraction * len(records)))
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(settings.seed)).tolist()
    return records.take(sorted(order[count:])), records.take(sorted(order[:count]))


def sha256(name: str) -> str | None:
    """Of a file's content; None where there is none any more."""
    if not Path(name).is_file():
        return None
    with Path(name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
