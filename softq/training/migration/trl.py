"""Configs of TRL: model and data. Its file does not say which trainer it is for; its command did."""

from collections.abc import Mapping
from typing import Any

from softq.data.sources import DataSource
from softq.training.migration.reading import Reading, adapted, number, precision
from softq.training.migration.tables import TRL, TRL_OWN
from softq.training.migration.trl_losses import trainer_of

FOREVER = 2**20  # tokens: a max_length that bounds nothing


def reading(given: Mapping[str, Any], method: str | None) -> Reading:
    """The config, with the defaults of the trainer that it is for."""
    trainer = trainer_of(given, method)
    return Reading(given, TRL._replace(defaults={**TRL.defaults, **TRL_OWN[trainer]}), trainer)


def model(read: Reading) -> None:
    """What is trained: model, precision, adapter, reference."""
    values = read.values
    if "model_name_or_path" in read:
        values["model"] = read("model_name_or_path")
    values["gradient_checkpointing"] = read("gradient_checkpointing")
    dtype = str(read("dtype"))
    known = dtype in ("float32", "bfloat16", "float64")
    values["dtype"] = "nf4" if read("load_in_4bit") else dtype if known else "float32"
    if not known and not read("load_in_4bit"):
        read.lost.append(
            f"dtype: {dtype} is float32 here; write dtype: bfloat16 if the weights are to be trained in it"
        )
    if read("load_in_4bit") and not read("use_bnb_nested_quant"):
        read.lost.append(
            "load_in_4bit: nf4 quantises the scales too (as use_bnb_nested_quant), and computes in bfloat16"
        )
    precision(read, read("bf16") if "bf16" in read else not read("fp16"))
    values["use_peft"] = read("use_peft")
    if read("use_peft"):
        values |= {key: read(key) for key in ("lora_r", "lora_alpha")}
        adapted(read, "lora_target_modules")
    if read.trainer not in ("dpo", "kto"):
        return
    values["cache_reference"] = read("precompute_ref_log_probs")
    if read("sync_ref_model"):
        values |= {
            "reference_mixup": float(read("ref_model_mixup_alpha")),
            "reference_every": read("ref_model_sync_steps"),
        }


def data(read: Reading) -> None:
    """What is learned from, and how much of a record."""
    values, name, config = read.values, read("dataset_name"), read("dataset_config")
    values |= {"max_length": read("max_length") or FOREVER, "truncate": "keep"}
    if read("truncation_mode") != "keep_start":
        read.lost.append(f"{read.shown('truncation_mode')}: longer records are cut at their end here")
    if read("datasets"):
        values["data"] = [one for listed in read("datasets") for one in _listed(read, listed)]
        share = number("test_split_size", read("test_split_size") or 0)
        values["eval_fraction"] = share if share < 1 else 0.0
        if share >= 1:
            read.lost.append(f"{read.shown('test_split_size')} is a number of rows; give eval_fraction, a share")
        return
    if name is not None:
        values["data"] = [_set(name, read("dataset_train_split"), config)]
    if read("eval_strategy") == "no":
        values["eval_fraction"] = 0.0
    elif name is not None and DataSource(name).hub:
        values["eval_data"] = [_set(name, read("dataset_test_split"), config)]
    else:
        read.lost.append(f"the split {read('dataset_test_split')} of {name}: 5 % are held out; or give eval_data")


def _listed(read: Reading, one: Any) -> list[dict[str, Any]]:
    """One entry of TRL's `datasets:`."""
    if not isinstance(one, Mapping) or "path" not in one:
        raise ValueError(f"datasets: {one!r} has no path; expected {{path: NAME, name: CONFIG, split: SPLIT}}")
    for key in ("fraction", "data_dir"):
        if one.get(key) is not None:
            read.lost.append(f"datasets: {key} {one[key]} of {one['path']} has no counterpart (weight says how often)")
    files, split = one.get("data_files"), str(one.get("split") or "train")
    if files is None:
        return [_set(str(one["path"]), split, one.get("name"))]
    files = files.get(split, []) if isinstance(files, Mapping) else files
    return [{"path": file} for file in ([files] if isinstance(files, str) else files)]


def _set(name: str, split: str, config: str | None = None) -> dict[str, Any]:
    """A data set: a path, or where it is on the hub, with its split and configuration."""
    if not DataSource(name).hub:
        return {"path": name}
    return {"path": name, "split": split, **({"config": config} if config else {})}
