"""A model's tokenizer and end tokens, without its weights."""

import json
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

PROBE = "It's 2026: naïve cats' plans cost 3,141 €\n\n  don't —  work."


class Spoken(NamedTuple):
    """How a model reads and ends text."""

    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]  # of its generation config, and the tokenizer's EOS
    notes: tuple[str, ...] = ()


def load_tokenizer(model: str, trust_remote_code: bool = False) -> Spoken:
    """The tokenizer of a directory or hub name (an adapter's may stand with its base), and its end tokens.

    A note says where transformers' class for this model type splits text otherwise than the directory's tokenizer.json.
    """
    home = model if (Path(model) / "tokenizer_config.json").is_file() else adapted(model) or model
    try:
        tokenizer = AutoTokenizer.from_pretrained(home, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        place = (
            "its tokenizer can not be read" if Path(home).is_dir() else "no such directory, nor such a model on the hub"
        )
        raise ValueError(f"model {model}: {place}") from error
    file = Path(home) / "tokenizer.json"
    written = Tokenizer.from_file(str(file)).encode(PROBE, add_special_tokens=False).ids if file.is_file() else None
    notes = []
    if written is not None and written != tokenizer.encode(PROBE, add_special_tokens=False):
        kind = type(tokenizer).__name__
        notes.append(
            f"transformers reads this tokenizer.json as a {kind}, which splits text in its own way; so will all who load it"
        )
    return Spoken(
        tokenizer, _ends(adapted(model) or model, trust_remote_code) | _listed(tokenizer.eos_token_id), tuple(notes)
    )


def adapted(name: str) -> str | None:
    """The model that an adapter in a directory changes; None where there is no adapter."""
    config = Path(name) / "adapter_config.json"
    if not config.is_file():
        return None
    try:
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{config} can not be read as an adapter's of peft: it names no base_model_name_or_path"
        ) from error
    if not isinstance(base, str) or not base:
        raise ValueError(f"{config} has base_model_name_or_path {base!r}; write there which model the adapter changes")
    return base


def _ends(model: str, trust_remote_code: bool) -> frozenset[int]:
    """The end tokens that generation stops at, as transformers finds them: the generation config's, else the config's."""
    try:
        return _listed(GenerationConfig.from_pretrained(model).eos_token_id)
    except OSError:
        pass
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):  # a tokenizer alone has neither
        return frozenset()
    return _listed(GenerationConfig.from_model_config(config).eos_token_id)


def _listed(ids: object) -> frozenset[int]:
    return frozenset(ids if isinstance(ids, list | tuple) else [ids] if isinstance(ids, int) else [])
