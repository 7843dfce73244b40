"""A config of another library while it is read, and what TRL's and LLaMA-Factory's have in common."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softq.objectives import METHODS
from softq.training.methods import method_settings, nearest
from softq.training.migration.tables import COPIED, Kind
from softq.training.settings import Settings

EXPECTED = {str: (str, list), list: (str, list), type(None): (str, int, float, bool, list, Mapping)}
"""What a value may be, by the kind of its default."""
FORMS: Mapping[str, tuple[type, ...]] = {
    "model_name_or_path": (str,),
    "dataset_name": (str,),
    "output_dir": (str,),
    "dataset": (str, list),
    "loss_weights": (list,),
    "lora_target_modules": (str, list),
}
"""What a value may be, where the default is none."""
NAMES = {str: "a text", list: "a list"}
SECRET = ("token", "key", "secret", "password")
TRACKERS = ("tensorboard", "wandb", "trackio")
SCHEDULERS = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}
KL_OF_THE_STEP = "the KL baseline is of the whole step; there of each device's micro-batch"


@dataclass
class Reading:
    """A config while it is read: asked by key it gives the value, or the other library's default."""

    given: Mapping[str, Any]
    kind: Kind
    trainer: str  # dpo, kto or sft
    values: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)

    def __contains__(self, key: str) -> bool:
        return key in self.given

    def __call__(self, key: str) -> Any:
        """The value of `key` in the type of the default: YAML 1.1 reads 5e-7 as a string."""
        default = self.kind.defaults.get(key)
        value = self.given.get(key, default)
        if value is False and isinstance(default, str):
            return "no"  # as YAML 1.1 reads it
        if isinstance(value, str) and isinstance(default, bool):
            if value.lower() not in ("true", "false"):
                raise ValueError(f"{key}: {value!r} is not valid; expected true or false")
            return value.lower() == "true"
        expected = EXPECTED.get(type(default))
        if value is not None and expected and not isinstance(value, expected):
            raise ValueError(f"{key}: {value!r} is not valid; expected a text" + " or a list" * (list in expected))
        if value is not None and not isinstance(value, FORMS.get(key, object)):
            raise ValueError(
                f"{key}: {value!r} is not valid; expected {' or '.join(NAMES[form] for form in FORMS[key])}"
            )
        if key == "dataset" and isinstance(value, list) and not all(isinstance(name, str) for name in value):
            raise ValueError(f"{key}: {value!r} is not valid; expected names")
        if value is None or isinstance(default, bool) or not isinstance(default, int | float):
            return value
        return type(default)(number(key, value))

    def shown(self, key: str) -> str:
        """`key: value` for a note; nothing secret, nothing long."""
        text = "…" if any(word in key.lower() for word in SECRET) or key == "env" else str(self.given[key])
        return f"{key}: {text if len(text) <= 60 else text[:59] + '…'}"


def number(key: str, value: Any) -> float:
    """A number, also where it is a string."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key}: {value!r} is not valid; expected a number") from None


def optimiser(read: Reading, processes: int) -> None:
    """The settings that both take over from transformers' training arguments."""
    read.values |= {key: read(key) for key in COPIED}
    if "output_dir" in read:
        read.values["output"] = read("output_dir")
    each, times = read("per_device_train_batch_size"), read("gradient_accumulation_steps")
    read.values["batch_size"] = each * times * processes
    read.changed.append(
        f"batch_size {each * times * processes} = per_device_train_batch_size {each} × gradient_accumulation_steps {times}"
        f" × {processes} process(es)"
    )
    if (limit := read("max_steps")) > 0:
        read.values |= {"max_steps": limit, "num_train_epochs": float(limit)}
        read.changed.append("max_steps wins there over num_train_epochs, which here is as many as it may need")
    shape = read("lr_scheduler_type")
    warmup = read("warmup_steps") or read("warmup_ratio")
    if shape not in SCHEDULERS:
        read.lost.append(f"{read.shown('lr_scheduler_type')} is not there; expected {', '.join(SCHEDULERS)}")
    if shape == "constant" and warmup:
        read.changed.append("warmup_steps: the scheduler 'constant' ignores a warm-up there, so there is none")
        warmup = 0.0
    near = "cosine" if str(shape).startswith("cosine") else "linear"
    read.values |= {"warmup_steps": warmup, "lr_scheduler_type": SCHEDULERS.get(shape, near)}
    read.values["max_grad_norm"] = norm = read("max_grad_norm") or 1e9
    if norm == 1e9:
        read.changed.append("max_grad_norm 1e9: gradients are not clipped there")


def evaluation(read: Reading) -> None:
    """When to evaluate, when to save, which weights to keep."""
    steps = number("eval_steps", read("eval_steps") or read("logging_steps"))
    if read("eval_strategy") == "steps" and steps >= 1:
        read.values["eval_steps"] = int(steps)
    elif read("eval_strategy") == "steps":
        read.lost.append(f"eval_steps: {steps:g} is a share of all steps there; give a number of steps")
    every = read("save_steps")
    if read("save_strategy") == "steps" and every >= 1:
        read.values["save_every"] = int(every)
    elif read("save_strategy") == "no":
        read.values["save_every"] = 0
    else:
        read.idle.append("save_strategy, save_steps: save_every counts steps; give a number")
    if (limit := number("save_total_limit", read("save_total_limit") or 0)) > 0:
        read.values["keep"] = int(limit)
    if read("load_best_model_at_end"):
        metric = str(read("metric_for_best_model") or "loss")
        read.values["best"] = metric if metric.startswith("eval_") else f"eval_{metric}"
        greater = read("greater_is_better")
        if greater is not None and bool(greater) == metric.endswith("loss"):
            read.lost.append(f"{read.shown('greater_is_better')}: which way is better follows from the metric here")
    if read("fsdp"):
        read.values["shard"] = True


def call(read: Reading) -> None:
    """What is an option of the command, and no setting of a run."""
    read.options["logging_steps"] = max(1, int(read("logging_steps")))
    trackers = read("report_to")
    wanted = [trackers] if isinstance(trackers, str) else list(trackers)
    read.options |= {"report_to": ours} if (ours := [name for name in wanted if name in TRACKERS]) else {}
    if other := [name for name in wanted if name not in (*TRACKERS, "none")]:
        read.idle.append(f"report_to {', '.join(other)}: there are {', '.join(TRACKERS)}, and metrics.jsonl always")
    if read("push_to_hub"):
        read.options["push_to_hub"] = read("hub_model_id") or Path(str(read("output_dir") or "")).name
    if read("overwrite_output_dir"):
        read.options["overwrite"] = True
    if read("trust_remote_code"):
        read.changed.append(
            "trust_remote_code: no file can ask for that; give --trust-remote-code if you trust the model's"
        )
    if read("resume_from_checkpoint") not in (None, False, "false"):
        read.options["resume"] = True
        read.changed.append(
            "resume_from_checkpoint: --resume goes on from the newest checkpoint of softq's in the output"
        )


def rest(read: Reading) -> None:
    """Every key that nothing has read: not known, not kept, or without effect; and what the config left to defaults."""
    plain = []
    known = [*read.kind.read, *read.kind.harmless, *read.kind.idle]
    for key in read.given:
        if key in read.kind.read:
            continue
        if key in read.kind.harmless:
            harmless, hint = read.kind.harmless[key]
            if not any(_same(read.given[key], value) for value in harmless):
                read.lost.append(f"{read.shown(key)} has no counterpart{f' ({hint})' if hint else ''}")
        elif key in read.kind.idle or key.startswith(read.kind.parts):
            hint = read.kind.idle.get(key, "")
            (read.idle if hint else plain).append(f"{key}: {hint}" if hint else key)
        else:
            read.lost.append(f"{read.shown(key)} is not known to {read.kind.name}{nearest(key, known)}")
    if plain:
        read.idle.append(f"{', '.join(plain)}: no counterpart, no effect on the result")
    told = {name for theirs, ours in read.kind.read.items() if theirs in read for name in ours.split(", ")}
    fields = Settings.model_fields
    silent = {k: v for k, v in read.values.items() if k in fields and k not in told and v != fields[k].default}
    if silent := {key: value for key, value in silent.items() if key not in ("data", "output")}:
        filled = ", ".join(
            f"{key} {_worded(value)} (ours: {_worded(fields[key].default)})" for key, value in silent.items()
        )
        read.changed.append(f"not in the config, so the default of {read.kind.name}: {filled}")


def _same(given: Any, value: Any) -> bool:
    """Equal, also where YAML 1.1 made a string of a number."""
    if isinstance(given, str) and isinstance(value, float):
        return given.replace(".", "").replace("e-", "").isdigit() and float(given) == value
    return given == value


def _worded(value: Any) -> str:
    """A value as YAML spells it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def own_settings(read: Reading, names: Sequence[str], wanted: Iterable[Mapping[str, Any]]) -> None:
    """The settings of each method, as far as it has them; those of a sum stand under its name."""
    for name, settings in zip(names, wanted, strict=True):
        prefix = f"{name}." if len(names) > 1 else ""
        has = method_settings(name).model_fields
        read.values |= {prefix + key: value for key, value in settings.items() if key in has}


def method_of(given: str, names: Mapping[str, str], key: str) -> str:
    """Our name of a loss, if there is such a method."""
    name = names.get(given, given)
    if name not in METHODS:
        raise ValueError(f"{key} {given!r} is no method here yet{nearest(name, METHODS)}; `softq methods` lists them")
    return name


def precision(read: Reading, bf16: Any) -> None:
    """Autocast, which here stands over float32 weights only."""
    bf16 = str(bf16).lower() == "true"
    read.values["bf16"] = bf16 and read.values["dtype"] == "float32"
    if bf16 and read.values["dtype"] != "float32":
        read.changed.append(
            f"bf16 is left out: it is autocast over float32 weights, and these are {read.values['dtype']}"
        )
    if read("fp16"):
        read.lost.append("fp16 has no counterpart; bf16 has its speed, and no loss scale")


def adapted(read: Reading, key: str) -> None:
    """Which layers get an adapter."""
    targets = read(key)
    listed = targets.split(",") if isinstance(targets, str) else targets
    if listed is None:
        read.lost.append(
            f"{key} is not given: TRL takes peft's for the architecture (often q_proj and v_proj), here all-linear"
        )
        return
    read.values["lora_target_modules"] = ["all-linear" if name == "all" else str(name).strip() for name in listed]
