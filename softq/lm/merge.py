"""An adapter into the weights under it: one model that needs no peft, and the proof that it is the same model."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from softq.lm.load import DTYPES, without_bars
from softq.lm.model import CausalLM
from softq.lm.probe import TOLERANCE
from softq.lm.reference import fingerprint
from softq.lm.tokenizer import adapted, load_tokenizer

WEIGHTS = "adapter_model.safetensors"


class Merged(NamedTuple):
    """A model with its adapter merged, how it reads text, and what was found.

    facts: adapter and base, their fingerprints and the merged model's, the dtype, and over a fixed sample of tokens how
    far merged and adapter are apart (`difference`), and adapter and base (`moved`): |Δ log-prob| in nats, over the
    whole vocabulary.
    """

    policy: CausalLM
    tokenizer: PreTrainedTokenizerBase
    facts: dict[str, Any]
    notes: tuple[str, ...]


def merge(adapter: str, *, dtype: str | None = None, trust_remote_code: bool = False) -> Merged:
    """The base of an adapter's directory with the adapter merged in; dtype None: as the base is stored.

    Raises ValueError where there is no adapter, its base is not to be had, it does not fit, or what was merged gives
    other log-probabilities than the adapter by more than rounding (`probe.TOLERANCE`).
    """
    name = _base(adapter)
    base = _loaded(name, adapter, dtype, trust_remote_code)
    marks, tied = {"base": fingerprint(CausalLM(base))}, _tied(base)
    with _quiet():
        model = _under(base, name, adapter)
        marks["adapter"] = fingerprint(CausalLM(model))
        sample = _sample(CausalLM(model))
        wanted = _log_probs(model, sample)
        with model.disable_adapter():
            moved = _apart(wanted, _log_probs(model, sample))
        _untie(model)
        try:
            merged = model.merge_and_unload(safe_merge=True)  # pyright: ignore[reportCallIssue]
        except (ValueError, NotImplementedError) as error:
            raise ValueError(f"the adapter {adapter} can not be merged: {_line(error)}") from error
    difference = _apart(wanted, _log_probs(merged, sample))
    marks["merged"] = fingerprint(CausalLM(merged))
    notes = _proved(difference, moved, merged.dtype)
    if tied and not _tied(merged):
        notes.append("the base ties its embeddings and the adapter changes them: the merged model stores both")
    if (Path(adapter) / "generation_config.json").is_file():
        merged.generation_config = GenerationConfig.from_pretrained(adapter)
    facts = {"adapter": adapter, "base": name, "dtype": str(merged.dtype).removeprefix("torch."), "fingerprints": marks}
    facts |= {"difference": difference, "moved": moved, "tolerance": TOLERANCE[merged.dtype]}
    facts["versions"] = {library: version(library) for library in ("softq", "torch", "transformers", "peft")}
    return Merged(CausalLM(merged), _tokenizer(adapter, name, trust_remote_code), facts, tuple(notes))


def _base(adapter: str) -> str:
    """The name of the model under an adapter; ValueError says what a path is that holds no adapter."""
    directory = Path(adapter)
    if not directory.is_dir():
        kind = "a file" if directory.exists() else "no such directory"
        raise ValueError(
            f"{adapter}: {kind}; give an adapter's directory (hf download NAME --local-dir DIR fetches one)"
        )
    name = adapted(adapter)
    if name is None:
        what = "a whole model, with nothing to merge" if (directory / "config.json").is_file() else "no adapter"
        raise ValueError(f"{adapter} is {what}: it has no adapter_config.json")
    try:
        kind = PeftConfig.from_pretrained(adapter)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{adapter}: its adapter_config.json can not be read ({_line(error)})") from error
    if kind.is_prompt_learning:
        raise ValueError(f"{adapter} is an adapter of type {kind.peft_type}, which adds tokens: it can not be merged")
    if not (directory / WEIGHTS).is_file():
        raise ValueError(f"{adapter} has no {WEIGHTS}; other formats can run code when they are read, and are not")
    return name


def _loaded(name: str, adapter: str, dtype: str | None, trust_remote_code: bool) -> PreTrainedModel:
    if adapted(name):
        raise ValueError(f"the base {name} of {adapter} is an adapter itself; merge that one first")
    kind = "auto" if dtype is None else DTYPES[dtype]
    try:
        with without_bars() if Path(name).is_dir() else nullcontext():
            model = AutoModelForCausalLM.from_pretrained(name, dtype=kind, trust_remote_code=trust_remote_code).eval()
    except (OSError, ValueError, ImportError) as error:
        place = "it can not be read" if Path(name).is_dir() else "no such directory, nor such a model on the hub"
        raise ValueError(
            f"the base {name} of {adapter}: {place} ({_line(error)}); put it there, or write where it is into "
            "base_model_name_or_path of adapter_config.json"
        ) from error
    if model.dtype not in TOLERANCE or "quantization_config" in model.config.to_dict():
        raise ValueError(
            f"the base {name} of {adapter} is quantised; name the model it was made from as the base, and merge"
        )
    return model


def _under(base: PreTrainedModel, name: str, adapter: str) -> PeftModel:
    """The base under its adapter; ValueError where weights are missing or of another shape."""
    warnings.filterwarnings("error", message="Found missing adapter keys")
    try:
        model = PeftModel.from_pretrained(base, adapter).eval()
    except (RuntimeError, ValueError, KeyError, UserWarning, SafetensorError) as error:
        raise ValueError(f"the adapter {adapter} does not fit its base {name}: {_line(error)}") from error
    if not isinstance(model.base_model, BaseTuner):
        raise ValueError(f"{adapter} is an adapter of type {model.active_peft_config.peft_type}: it can not be merged")
    return model


def _untie(model: PeftModel) -> None:
    """Give tied embeddings a weight each where the adapter is merged into one: in place, it would change the other too."""
    transformer: Any = model.get_base_model()
    layers = [transformer.get_input_embeddings(), transformer.get_output_embeddings()]
    plain: list[Any] = [layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in layers]
    if any(isinstance(layer, BaseTunerLayer) for layer in layers) and plain[0].weight is plain[1].weight:
        plain[1].weight = nn.Parameter(plain[1].weight.detach().clone(), requires_grad=False)
        for config in (transformer.config, transformer.config.get_text_config()):
            config.tie_word_embeddings = False


def _tied(model: Any) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def _proved(difference: dict[str, float], moved: dict[str, float], dtype: torch.dtype) -> list[str]:
    """What the merge cost, to say; ValueError where it is more than rounding."""
    apart, tolerance = difference["mean"], TOLERANCE[dtype]
    if not apart <= tolerance:
        raise ValueError(
            f"the merged model is {apart:.1e} nats a token from the adapter on average, where rounding in {dtype} explains "
            f"{tolerance:.0e}: nothing was written; this kind of adapter can not be merged into this base"
        )
    said = f"log-probs of the merged model are within {difference['max']:.1e} nats of the adapter's ({apart:.1e} on average)"
    if moved["mean"] > 0 and 2 * apart >= moved["mean"]:
        cure = "" if dtype == torch.float32 else "; --dtype float32 keeps it"
        return [said, f"that is over half of what the adapter changes ({moved['mean']:.1e}): rounding drowns it{cure}"]
    return [said]


def _sample(model: CausalLM) -> Tensor:
    """[4, 24] tokens at random but always the same."""
    return torch.randint(0, model.vocabulary, (4, 24), generator=torch.Generator().manual_seed(0))


def _log_probs(model: nn.Module, ids: Tensor) -> Tensor:
    """[B, L] -> [B, L, V]: by the model's own forward, as those who load it will run it."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)


def _apart(a: Tensor, b: Tensor) -> dict[str, float]:
    apart = (a - b).abs()
    return {"mean": apart.mean().item(), "max": apart.max().item()}


def _tokenizer(adapter: str, base: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The adapter's tokenizer and chat template; where it has none, its base's."""
    tokenizer = load_tokenizer(adapter, trust_remote_code).tokenizer
    if tokenizer.chat_template is None:
        tokenizer.chat_template = load_tokenizer(base, trust_remote_code).tokenizer.chat_template
    return tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """Without peft's warnings: what they warn of is measured."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _line(error: BaseException) -> str:
    """The first lines of an error in one."""
    return " ".join(str(error).split())[:200]
