"""Configs of LLaMA-Factory: model, data and loss, for the stages dpo, kto and sft."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softq.training.migration.reading import KL_OF_THE_STEP, Reading, adapted, method_of, own_settings, precision
from softq.training.migration.tables import FACTORY

WITHOUT_REFERENCE = ("orpo", "simpo")
"""Losses of pairs that read no reference there, nor here; a ref_model is not loaded."""


def reading(given: Mapping[str, Any], method: str | None) -> Reading:
    """The config, for the stage that it names."""
    stage = given.get("stage", FACTORY.defaults["stage"])
    if stage not in ("dpo", "kto", "sft"):
        raise ValueError(f"stage {stage!r} has no counterpart; expected dpo, kto or sft")
    if method not in (None, stage):
        raise ValueError(f"the config is of stage {stage}, not of {method}; leave the method out")
    return Reading(given, FACTORY, stage)


def method(read: Reading) -> tuple[list[str], list[float]]:
    """Names and weights of the summands."""
    loss = read("pref_loss")
    name = method_of(loss, {"sigmoid": "dpo"}, "pref_loss") if read.trainer == "dpo" else read.trainer
    settings = {
        "beta": read("pref_beta"),
        "label_smoothing": read("dpo_label_smoothing"),
        "desirable_weight": read("kto_chosen_weight"),
        "undesirable_weight": read("kto_rejected_weight"),
        "gamma": read("simpo_gamma"),
    }
    share = read("pref_ftx") if read.trainer != "sft" else 0.0
    names = [name, "sft"] if share else [name]
    own_settings(read, names, [settings, {}][: len(names)])
    if share:
        read.lost.append(f"pref_ftx {share:g}: sft is the mean over the step's tokens, there over completions' means")
    if name == "orpo":
        read.lost.append("pref_loss orpo: its NLL is the mean over the step's tokens, there over completions' means")
    if read.trainer == "kto":
        read.changed.append(KL_OF_THE_STEP)
    return names, [1.0, share][: len(names)]


def model(read: Reading) -> None:
    """What is trained: model, precision, adapter, reference."""
    values = read.values
    kind = read("finetuning_type")
    if kind not in ("lora", "full"):
        raise ValueError(f"finetuning_type {kind!r} has no counterpart; expected lora or full")
    adapters = str(read("adapter_name_or_path") or "")
    if "," in adapters:
        raise ValueError(f"adapter_name_or_path: {adapters} are several; merge them first, and name the model")
    if adapters or "model_name_or_path" in read:
        values["model"] = adapters or read("model_name_or_path")
    if adapters:
        read.lost.append("adapter_name_or_path: the reference is the adapter as it starts; there it is the bare model")
    values["use_peft"] = kind == "lora" and not adapters
    if values["use_peft"]:
        values |= {"lora_r": read("lora_rank"), "lora_alpha": int(read("lora_alpha") or 2 * read("lora_rank"))}
        adapted(read, "lora_target")
    if "ref_model" in read and read.trainer != "sft" and read("pref_loss") not in WITHOUT_REFERENCE:
        values["reference"] = read("ref_model")
    bits = read("quantization_bit")
    values["dtype"] = "nf4" if str(bits) == "4" else "bfloat16" if read("pure_bf16") else "float32"
    if bits is not None and str(bits) != "4":
        read.lost.append(f"{read.shown('quantization_bit')} has no counterpart; there is 4 (dtype nf4)")
    precision(read, read("bf16"))
    if not (read("bf16") or read("fp16") or read("pure_bf16")):
        read.lost.append(
            "neither bf16 nor fp16: there the checkpoint's dtype computes, here float32; bf16: true autocasts"
        )
    values["gradient_checkpointing"] = not read("disable_gradient_checkpointing")


def data(read: Reading) -> None:
    """What is learned from, and how much of a record."""
    values = read.values
    values |= {"max_length": read("cutoff_len"), "truncate": "keep"}
    read.lost.append(f"cutoff_len {read('cutoff_len')}: longer records are cut at their end; there prompts are cut too")
    if "template" in read:
        read.lost.append(
            f"{read.shown('template')}: the tokenizer's own chat template is used, or --chat-template FILE"
        )
    for key, ours in {"dataset": "data", "eval_dataset": "eval_data"}.items():
        if key in read:
            names = read(key).split(",") if isinstance(read(key), str) else list(read(key))
            values[ours] = [_entry(read("dataset_dir"), name.strip()) for name in names]
    held = read("val_size")
    if held >= 1:
        read.lost.append(f"{read.shown('val_size')} is a number of rows; give eval_fraction, a share")
    if "eval_data" not in values:
        values["eval_fraction"] = held if held < 1 else 0.0


def _entry(directory: Any, name: str) -> dict[str, Any]:
    """A data set by its name in dataset_info.json, or on the hub."""
    if not isinstance(directory, str) or directory.startswith("REMOTE:"):
        raise ValueError(f"dataset_dir {directory!r}: expected a directory that holds dataset_info.json, or ONLINE")
    return (
        {"path": name} if directory == "ONLINE" else {"path": str(Path(directory, "dataset_info.json")), "entry": name}
    )
