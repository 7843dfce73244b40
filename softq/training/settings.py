"""The settings of a run: one typed schema for YAML, the command line, the manifest and the documentation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from softq.objectives.sums import weighted_sum
from softq.records import Method
from softq.training.methods import made, nearest, schema

Count = Annotated[int, Field(ge=1)]


class Call(NamedTuple):
    """What is asked of one call, beside the settings that make a run what it is. No file can ask for these."""

    dry: bool = False  # read the data, load the models, check step 0, train and write nothing
    resume: bool = False  # go on from the newest checkpoint
    overwrite: bool = False  # replace what an earlier run wrote
    verify_layout: bool = False  # compare the layout with plain on the first step, with gradient
    trust_remote_code: bool = False  # run code that a model repository brings
    samples: int = 0  # held-out prompts that the policy completes at each evaluation
    report_to: Sequence[str] = ()  # trackers, beside metrics.jsonl
    verified: Mapping[str, Any] = {}  # what the laws of the method came to on tables, for the manifest and the card
    stop: Callable[[], int] = lambda: 0  # the signal that asks the run to save and end, if one came


def _by_name(given: Any) -> Any:
    """NAME=DIR,NAME=DIR as a mapping; anything else as it is."""
    if not isinstance(given, str):
        return given
    named = [part.partition("=") for part in given.split(",")]
    if not all(name and directory for name, _, directory in named) or len({name for name, _, _ in named}) < len(named):
        raise ValueError("expected names and models, each name once, such as dpo=DIR,reverse=DIR")
    return {name.strip(): directory.strip() for name, _, directory in named}


def _named(given: str) -> str:
    """A name that is not empty. (pydantic's min_length refuses names of files that are not UTF-8.)"""
    if not given:
        raise ValueError("expected a directory or a hub name")
    return given


class Settings(BaseModel):
    """Everything that makes a run what it is, beside its method's own settings. TRL's names where it has one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: Annotated[str, AfterValidator(_named)] = Field(
        description="what is trained: a directory, a hub name, or an adapter to continue"
    )
    data: list[str | dict[str, Any]] = Field(
        min_length=1, description="files, hub data sets, or FILE,name=N,weight=W,split=S,entry=E with any of these"
    )
    output: str = Field(description="the directory to write; refused if it holds anything")
    reference: Annotated[str, AfterValidator(_named)] | None = Field(
        None, description="another model as the reference, or uniform; default: the model as it starts"
    )
    models: Annotated[dict[str, str], BeforeValidator(_by_name)] = Field(
        {}, description="further frozen models that a method reads, by name: dpo=DIR,reverse=DIR"
    )
    reference_mixup: float = Field(
        0.0,
        ge=0,
        le=1,
        description="α of a moving reference (TR-DPO): α policy + (1 - α) reference; 0: it stands still",
    )
    reference_every: Count = Field(512, description="steps between two moves of a moving reference")
    cache_reference: bool = Field(False, description="score the reference once and keep its log-probs between runs")

    format: str | None = Field(None, description="the data's format, where it should not be detected")
    rename: list[str] = Field([], description="fields by other names: OURS=THEIRS, such as prompt=question")
    chat_template: str | None = Field(None, description="chatml, or a Jinja file; default: the tokenizer's own")
    max_length: Count = Field(
        1024, description="longest prompt + completion in tokens; longer records are dropped, counted"
    )
    truncate: Literal["drop", "keep"] = Field("drop", description="what becomes of longer records; keep cuts them")
    eval_data: list[str | dict[str, Any]] = Field(
        [], description="files to evaluate on; default: held out from the data"
    )
    eval_fraction: float = Field(0.05, ge=0, lt=1, description="share of the data held out, if there is no --eval-data")
    eval_steps: Count | None = Field(None, description="evaluate every so many steps; default: after each epoch")

    learning_rate: float = Field(1e-6, gt=0, description="peak learning rate of AdamW")
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = Field("linear", description="shape after warm-up")
    warmup_steps: float = Field(0.0, ge=0, description="steps of warm-up; below 1, a share of all steps")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the mean")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's decay of the square")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    batch_size: Count = Field(
        32, description="data records an optimiser step (TRL: per-device size × accumulation × devices)"
    )
    num_train_epochs: float = Field(1.0, gt=0, description="passes over the data")
    max_steps: Count | None = Field(None, description="stop after so many steps")
    seed: int = Field(42, ge=0, lt=2**32, description="of the held-out split, the order of the data and fresh adapters")

    tokens_per_micro: Count | None = Field(
        None, description="states scored at once: bounds memory, changes no number; default: 1024 on a CPU, else 8192"
    )
    layout: Literal["auto", "packed", "padded", "plain"] = Field("auto", description="how rows run through the model")
    gradient_checkpointing: bool = Field(False, description="less memory, one more forward pass")
    dtype: Literal["float32", "bfloat16", "float64", "nf4"] = Field(
        "float32", description="of the weights; nf4: 4 bits under an adapter (QLoRA)"
    )
    bf16: bool = Field(False, description="autocast to bfloat16 over float32 weights")
    shard: bool = Field(False, description="share weights, gradients and optimiser among the processes (FSDP2)")

    use_peft: bool = Field(False, description="train a fresh LoRA adapter; the model under it is the reference")
    lora_r: Count = Field(16, description="rank of the adapter")
    lora_alpha: Count = Field(32, description="scale of the adapter, over its rank")
    lora_target_modules: list[str] = Field(["all-linear"], description="which layers get an adapter")

    save_every: int = Field(500, ge=0, description="steps between checkpoints; 0: only when a signal stops the run")
    keep: Count = Field(2, description="how many checkpoints stay")
    best: str | None = Field(
        None,
        description="write the weights of the best evaluation by this metric, such as eval_loss; default: the last",
    )


def build(name: str, values: Mapping[str, Any]) -> tuple[Settings, Method, dict[str, Any]]:
    """Flat values -> the run's settings, the method, and every value as it was understood. ValueError says what is wrong."""
    parts = schema(name)
    known = [*Settings.model_fields, *(prefix + field for prefix, part in parts.items() for field in part.model_fields)]
    known += ["weights"] if len(parts) > 1 else []
    for key in values:
        if key not in known:
            raise ValueError(f"{flag(key)}: no such setting of a run of {name}{nearest(flag(key), map(flag, known))}")
    run = _validated(Settings, values, "")
    _all_read(run)
    own = {prefix: _validated(part, values, prefix).model_dump() for prefix, part in parts.items()}
    methods = [_made(name, prefix, settings) for prefix, settings in own.items()]
    understood = {"method": name, **run.model_dump()}
    understood |= {prefix + key: value for prefix, settings in own.items() for key, value in settings.items()}
    if len(methods) == 1:
        return run, methods[0], understood
    weights = _weights(values.get("weights"), len(methods))
    return run, weighted_sum(list(zip(methods, weights, strict=True))), {**understood, "weights": weights}


def _made(name: str, prefix: str, settings: dict[str, Any]) -> Method:
    """The method of a prefix; what is wrong with a summand's settings is said with its name."""
    try:
        return made(prefix[:-1] or name, settings)
    except ValueError as error:
        raise ValueError(f"{prefix[:-1]}: {error}" if prefix else str(error)) from error


def flattened(document: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """A YAML document -> (method's name, flat values). `method` is a name, or a list of {name: settings, weight: w}."""
    values = {str(key).replace("-", "_"): value for key, value in document.items() if key != "method"}
    values |= {name: [values[name]] for name in ("data", "eval_data") if isinstance(values.get(name), str | Mapping)}
    if isinstance(values.get("rename"), Mapping):
        values["rename"] = [f"{ours}={theirs}" for ours, theirs in values["rename"].items()]
    method = document.get("method")
    if method is None or isinstance(method, str):
        return method, values
    if not isinstance(method, Sequence) or not all(isinstance(part, Mapping) for part in method):
        raise ValueError(
            "method: expected a name, or a list such as [{dpo: {beta: 0.1}, weight: 0.8}, {sft: {}, weight: 0.2}]"
        )
    names, weights = [], []
    for part in method:
        chosen = [key for key in part if key != "weight"]
        if len(chosen) != 1:
            raise ValueError(f"method: {dict(part)} names {len(chosen)} methods; expected one and a weight")
        names.append(str(chosen[0]))
        weights.append(part.get("weight", 1.0))
        if not isinstance(own := part[chosen[0]] or {}, Mapping):
            raise ValueError(f"method: {chosen[0]}: {own!r} is not valid: expected its settings, such as {{beta: 0.1}}")
        if len(method) == 1 and "weight" in part:
            raise ValueError(f"method: nothing reads the weight of {chosen[0]} alone; leave it out")
        prefix = "" if len(method) == 1 else f"{chosen[0]}."
        values |= {prefix + str(key): value for key, value in own.items()}
    return "+".join(names), {**values, **({"weights": weights} if len(names) > 1 else {})}


def flag(key: str) -> str:
    """A setting's name on the command line."""
    return "--" + key.replace("_", "-")


def _all_read(run: Settings) -> None:
    """Refuse what would be set and read by nothing."""
    changed = {name for name, field in Settings.model_fields.items() if vars(run)[name] != field.default}
    if not run.use_peft and (lora := sorted(name for name in changed if name.startswith("lora_"))):
        raise ValueError(f"{flag(lora[0])} is read with --use-peft only")
    if run.eval_data and "eval_fraction" in changed:
        raise ValueError("--eval-fraction: nothing is held out where --eval-data is given; leave one out")
    if run.bf16 and run.dtype != "float32":
        raise ValueError(f"--bf16 is autocast over float32 weights; with --dtype {run.dtype} leave it out")
    if not run.eval_data and not run.eval_fraction and "eval_steps" in changed:
        raise ValueError("--eval-steps: with --eval-fraction 0 nothing is held out to evaluate on; leave one out")
    if run.dtype == "nf4" and not run.use_peft:
        raise ValueError("--dtype nf4: 4-bit weights can not be trained themselves; add --use-peft")
    if run.dtype == "nf4" and run.shard:
        raise ValueError("--shard: 4-bit weights are not made to be shared among processes; leave one out")
    if "reference_every" in changed and not run.reference_mixup:
        raise ValueError("--reference-every is read with --reference-mixup only")
    if run.reference_mixup and run.cache_reference:
        raise ValueError("--cache-reference: a reference that moves can not be kept; leave out --reference-mixup")
    if run.best and not run.best.startswith("eval_"):
        raise ValueError(f"--best {run.best}: expected a metric of the evaluation, such as eval_loss")


def _validated(part: type[BaseModel], values: Mapping[str, Any], prefix: str) -> Any:
    """The settings of one part, from the flat values that carry its prefix."""
    try:
        return part.model_validate(
            {name: values[prefix + name] for name in part.model_fields if prefix + name in values}
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = flag(prefix + str(first["loc"][0]))
        if first["type"] == "missing":
            raise ValueError(f"{name} is missing") from None
        said = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{name}: {first['input']!r} is not valid: {said[0].lower()}{said[1:]}") from None


def _weights(weights: Any, count: int) -> list[float]:
    parts = weights.split(",") if isinstance(weights, str) else [1.0] * count if weights is None else weights
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        raise ValueError(f"--weights: {weights!r} is not valid: expected numbers, such as 0.8,0.2") from None
    if len(numbers) != count:
        raise ValueError(f"--weights: {len(numbers)} numbers for {count} methods")
    return numbers
