"""From a directory or a hub name to models that can be scored and trained."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from softq.lm.model import AdapterOff, CausalLM, Uniform
from softq.lm.probe import choose_layout, plain_is_right, reward_is_right
from softq.lm.reward import HEAD, HEAD_WEIGHT, RewardModel, check_labels, is_reward_model, padded_by
from softq.lm.score import Models
from softq.lm.tokenizer import adapted, load_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
NOISE = re.compile("dropout|layerdrop|^(input_)?jitter_noise$")  # rates at which training drops or shakes something


class Lora(NamedTuple):
    """A fresh adapter (LoRA, arXiv 2106.09685)."""

    r: int = 16
    alpha: int = 32
    target_modules: Sequence[str] | str = "all-linear"


class Loaded(NamedTuple):
    """Models by name, the tokenizer, and what a user should be told about how they run."""

    models: Models
    tokenizer: PreTrainedTokenizerBase
    notes: tuple[str, ...] = ()

    @property
    def policy(self) -> CausalLM:
        """The model that is trained."""
        return self.models["policy"]  # pyright: ignore[reportReturnType]


def load(
    model: str | PreTrainedModel,
    reference: str | None = "start",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: str = "auto",
    dtype: str = "float32",
    lora: Lora | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    copied: bool = False,
    others: Mapping[str, str] | None = None,
) -> Loaded:
    """A policy to train, its reference and other frozen models, ready to be scored; dropout is off.

    model: a directory, a hub name, or a transformers causal LM. An adapter directory continues that adapter.
    reference: "start" is the policy as it is now (the weights under a fresh adapter, else a frozen copy); "uniform"
    gives every token the same probability; None is none; anything else names another model. layout: "auto", or a name
    of `lm.layouts.LAYOUTS`. dtype "nf4": 4-bit weights under an adapter (QLoRA, arXiv 2305.14314), by bitsandbytes.
    copied: the reference is a frozen copy even under a fresh adapter, for one that will move or be sharded. others: models by
    the names that readouts have for them, of as many tokens as the policy: to cut one whose vocabulary is padded to another size
    would change its probabilities.
    """
    started = _model(model, dtype, trust_remote_code) if isinstance(model, str) else model
    told: tuple[str, ...] = ()
    if tokenizer is None:
        if not isinstance(model, str):
            raise ValueError("a model object comes without a tokenizer: pass tokenizer=")
        tokenizer, _, told = load_tokenizer(model, trust_remote_code)
    if lora is not None:
        if isinstance(started, PeftModel):
            raise ValueError(
                f"{model} is an adapter, which training continues: leave lora out, or merge the adapter first"
            )
        started = _adapted_by(lora, started)
    policy, notes = _ready(started, layout, device)
    models: dict[str, nn.Module] = {"policy": policy}
    if reference == "start" and lora is not None and not copied:
        models["ref"] = AdapterOff(policy)
    elif reference == "start":
        models["ref"] = copy.deepcopy(policy).requires_grad_(False)
    elif reference == "uniform":
        models["ref"] = Uniform(policy.vocabulary, next(policy.parameters()))
    elif reference is not None:
        others = {"ref": reference, **(others or {})}
    for name, there in (others or {}).items():
        what = "reference" if name == "ref" else f"model {name}"
        frozen, more = _ready(_model(there, dtype, trust_remote_code), layout, device)
        notes += [f"{what}: {note}" for note in more]
        models[name] = frozen.requires_grad_(False)
        _same_vocabulary(policy, frozen, f"the {what} {there}")
    return Loaded(Models(models), tokenizer, (*told, *notes))


def load_reward_model(
    name: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: str = "auto",
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """An AutoModelForSequenceClassification of one label as the policy, ready to be scored; dropout is off.

    Of a language model the head over tokens is left out, and one of one number drawn by torch's generator, as the model's
    configuration draws weights.
    """
    if adapted(name):
        raise ValueError(f"{name} is an adapter; a reward model starts from a whole model: softq merge makes one of it")
    if dtype == "nf4":
        raise ValueError("--dtype nf4: a reward model is trained whole, and 4-bit weights can not be; leave it out")
    told: tuple[str, ...] = ()
    if tokenizer is None:
        tokenizer, _, told = load_tokenizer(name, trust_remote_code)
    config = _config(name, trust_remote_code)
    check_labels(name, config)
    kwargs = {"dtype": DTYPES[dtype], "trust_remote_code": trust_remote_code, "num_labels": 1}
    with without_bars() if Path(name).is_dir() else nullcontext():
        try:
            read = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"model {name}: its weights are damaged ({error}); fetch them again") from error
        except ValueError as error:
            said = str(error).splitlines()[0][:200]
            raise ValueError(f"{name} ({config.model_type}) has no reward model in transformers: {said}") from error
    model, found = read
    missing = sorted(set(found["missing_keys"]) - {HEAD_WEIGHT})
    if missing or HEAD not in dict(model.named_children()):
        what = f"weights for {missing[0]}" if missing else f"a head {HEAD}"
        raise ValueError(f"model {name}: a reward model of it lacks {what}; give a causal language model")
    if device is not None:
        model.to(device)
    no_dropout(model)
    plain = RewardModel(model, fresh=HEAD_WEIGHT in found["missing_keys"])
    if not reward_is_right(plain):
        raise ValueError(
            f"this {config.model_type} model gives a row another reward in a batch than alone; softq needs a causal model"
        )
    notes = ["its head over tokens is left out, and one of one number drawn"] if plain.fresh else []
    chosen, reason = choose_layout(plain, layout)
    notes += [f"layout plain, because {reason}"] if reason else []
    notes += [note] if (note := padded_by(model, tokenizer)) else []
    policy = RewardModel(model, chosen, fresh=plain.fresh)
    return Loaded(Models({"policy": policy}), tokenizer, (*told, *notes))


def no_dropout(model: nn.Module) -> None:
    """Rates of dropout and other noise to 0, wherever a forward pass reads them: in modules, in their numbers and in
    configurations. The model stays in train mode, which gradient checkpointing needs: p = 0, not eval()."""
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    for owner in [*model.modules(), *configs]:
        if isinstance(owner, nn.Dropout):
            owner.p = 0.0
        for name, value in vars(owner).items():
            if NOISE.search(name) and isinstance(value, float):
                setattr(owner, name, 0.0)
    model.train()


def _ready(model: nn.Module, layout: str, device: str | None) -> tuple[CausalLM, list[str]]:
    if device is not None:
        model.to(device)
    no_dropout(model)
    plain = CausalLM(model)  # pyright: ignore[reportArgumentType]
    plain.own_head = not plain_is_right(plain)
    if plain.own_head and not plain_is_right(plain):
        raise ValueError(
            f"this {plain.config.model_type} model scores a token otherwise in a batch than alone: it looks ahead or at "
            "padding, or draws at random in training; softq needs a causal language model"
        )
    notes = [
        "its body and head alone do not give its logits: scored through its own forward, which is slower"
    ] * plain.own_head
    chosen, reason = choose_layout(plain, layout)
    if reason:
        notes.append(f"layout plain, because {reason}")
    return CausalLM(plain.model, chosen, plain.own_head), notes


def _model(name: str, dtype: str, trust_remote_code: bool) -> PreTrainedModel | PeftModel:
    kwargs: dict[str, Any] = {"dtype": DTYPES.get(dtype, torch.bfloat16), "trust_remote_code": trust_remote_code}
    if dtype == "nf4":
        kwargs["quantization_config"] = _four_bits()
    with without_bars() if Path(name).is_dir() else nullcontext():
        if base := adapted(name):
            model = _base(name, base, kwargs)
            try:
                return PeftModel.from_pretrained(model, name, is_trainable=True)
            except (RuntimeError, SafetensorError) as error:
                said = " ".join(str(error).split())[:300]
                raise ValueError(f"model {name}: its adapter does not fit {base}, or is damaged ({said})") from error
        if is_reward_model(_config(name, trust_remote_code)):
            raise ValueError(
                f"{name} is a reward model: it has no head over tokens, so it is no policy and no reference"
            )
        return _from_pretrained(name, kwargs)


def _config(name: str, trust_remote_code: bool) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        here = Path(name).is_dir()
        why = "its config can not be read" if here else "no such directory, nor such a model on the hub"
        raise ValueError(f"model {name}: {why}") from error
    if config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder ({config.model_type}); softq trains causal language models")
    return config


def _base(adapter: str, base: str, kwargs: Mapping[str, Any]) -> PreTrainedModel:
    """The model under an adapter. ValueError where it is gone, or the adapter's own weights are."""
    if not any((Path(adapter) / f"adapter_model.{kind}").is_file() for kind in ("safetensors", "bin")):
        raise ValueError(f"model {adapter}: its adapter_model.safetensors is missing; fetch it again")
    try:
        return _from_pretrained(base, kwargs)
    except OSError as error:
        where = f"write in {Path(adapter) / 'adapter_config.json'} where it is now (base_model_name_or_path)"
        raise ValueError(
            f"model {adapter}: no such directory, nor such a model on the hub: {base}, its base; {where}"
        ) from error


def _from_pretrained(name: str, kwargs: Mapping[str, Any]) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_pretrained(name, **kwargs)
    except SafetensorError as error:
        raise ValueError(f"model {name}: its weights are damaged, or not whole ({error}); fetch them again") from error
    except OSError as error:
        if not Path(name).is_dir():
            raise
        raise ValueError(f"model {name}: its weights can not be read ({error}); fetch them again") from error


def _four_bits() -> BitsAndBytesConfig:
    if not util.find_spec("bitsandbytes"):
        raise ValueError("dtype nf4 needs bitsandbytes: pip install 'softq[qlora]'")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def reweigh(model: CausalLM, directory: Path) -> None:
    """Give a model the weights (or its adapter those) that `save_pretrained` wrote to a directory. ValueError where they are not
    this model's, or damaged; then the model may have some of them."""
    try:
        _put(model, directory)
    except (OSError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"{directory} holds no weights of this model, or damaged ones ({said})") from error


def _put(model: CausalLM, directory: Path) -> None:
    if isinstance(model.model, PeftModel):
        weights = load_file(directory / "adapter_model.safetensors")
        found = set_peft_model_state_dict(model.model, weights)
        lacks = [name for name in found.missing_keys if f".{model.model.active_adapter}." in name]
        if other := [f"has {name}" for name in found.unexpected_keys] + [f"lacks {name}" for name in lacks]:
            raise ValueError(f"{directory} is not an adapter of this model: it {other[0]}")
        return
    with without_bars():
        other = type(model.transformer).from_pretrained(directory, dtype=next(model.parameters()).dtype)
    model.model.load_state_dict(other.state_dict())


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers' progress bars off for a moment: reading and writing on a disk needs none, a download does."""
    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()


def _adapted_by(lora: Lora, model: PreTrainedModel) -> nn.Module:
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def _same_vocabulary(policy: CausalLM, other: CausalLM, what: str) -> None:
    if policy.vocabulary != other.vocabulary:
        raise ValueError(
            f"{what} has {other.vocabulary} tokens, the policy {policy.vocabulary}: it must share the policy's tokenizer"
        )
