"""The models, the prompts and the limits of a search, from what a user named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from transformers import AutoConfig

from softq.data.encode import Completion, Encoded
from softq.data.formats import renames
from softq.lm.load import Loaded, load, load_reward_model
from softq.lm.reward import is_reward_model
from softq.lm.score import Models
from softq.lm.tokenizer import adapted, load_tokenizer
from softq.reading.choice import Choice, choice, had_again, same_words
from softq.search.heard import PAIR
from softq.searching.pair import Pair, opened_pair, reads_text, shared
from softq.searching.prompts import Prompt, asking
from softq.training import ranks
from softq.training.output import end_tokens
from softq.training.samples import positions


class Asked(NamedTuple):
    """What a search is to be made of; as the options of `softq search`."""

    policy: str
    prompts: tuple[str, ...] | str  # data files, or a text
    reference: str | None = None  # None: what the policy's manifest says
    models: Mapping[str, str] = {}  # further ones, by the names that decoders have for them
    beta: float | None = None
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int = 0
    format: str | None = None
    rename: tuple[str, ...] = ()
    chat_template: str | None = None
    dtype: str = "float32"
    layout: str = "auto"
    trust_remote_code: bool = False


class Opened(NamedTuple):
    """All that a search reads."""

    loaded: Loaded  # "policy", "ref" if there is one, and the further models
    prompts: tuple[Prompt, ...]
    ends: frozenset[int]  # tokens that end an answer
    positions: int  # that the policy has
    beta: float | None  # reward per nat; None: not known, so rewards are in nats
    notes: tuple[str, ...]
    pair: Pair | None = None  # "tuned" and "untuned", where their tokens are not the policy's
    policy: str = ""  # where it is


def opened(asked: Asked) -> Opened:
    """Prompts read, then models loaded. ValueError for wrong settings, DataError for bad data."""
    if asked.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {asked.max_new_tokens}: expected 1 or more")
    if ours := sorted({"policy", "ref"} & set(asked.models)):
        raise ValueError(f"--models {ours[0]}=…: that is --{'policy' if ours[0] == 'policy' else 'reference'}")
    device = str(ranks.join(bf16=False).device)
    chosen = choice(asked.policy, asked.reference, asked.beta)
    spoken = load_tokenizer(asked.policy, asked.trust_remote_code)
    of = asking(
        asked.prompts,
        spoken.tokenizer,
        end_ids=spoken.end_ids,
        format=asked.format,
        rename=renames(list(asked.rename)),
        chat_template=asked.chat_template,
    )
    if chosen.reference not in (None, "uniform"):
        same_words(chosen.reference, spoken.tokenizer, (_as_record(prompt) for prompt in of.prompts))
    how = {"dtype": asked.dtype, "layout": asked.layout, "device": device, "trust_remote_code": asked.trust_remote_code}
    apart = reads_text(asked.models, asked.policy, spoken.tokenizer, asked.trust_remote_code)
    together = {name: there for name, there in asked.models.items() if not (apart and name in PAIR)}
    with had_again(chosen, asked.policy):
        loaded = _loaded(asked.policy, chosen, together, **how)
    pair = opened_pair(asked.models, of.prompts, chat_template=asked.chat_template, **how) if apart else None
    ends = frozenset(end_tokens(loaded.policy, loaded.tokenizer, of.ends | spoken.end_ids))
    others = pair.loaded.notes if pair is not None else ()
    notes = (*chosen.notes, *of.notes, *loaded.notes, *others, *chosen.check(loaded), *_endless(ends))
    return Opened(loaded, of.prompts, ends, positions(loaded.policy), chosen.beta, notes, pair, asked.policy)


def _loaded(policy: str, chosen: Choice, further: Mapping[str, str], **how: Any) -> Loaded:
    """Policy, reference and further models; one that is a reward model is there as one."""
    valued = {name: there for name, there in further.items() if _valued(there, how["trust_remote_code"])}
    speaking = {name: there for name, there in further.items() if name not in valued}
    if "value" in speaking and Path(speaking["value"]).is_dir():
        raise ValueError(
            f"--value {speaking['value']} has a head over tokens: give a value model, as softq train value makes"
        )
    loaded = load(policy, chosen.reference, others=speaking, **how)
    models: dict[str, nn.Module] = dict(loaded.models.items())
    notes = list(loaded.notes)
    for name, there in valued.items():
        one = load_reward_model(there, **how)
        if not shared(one.tokenizer, loaded.tokenizer):
            raise ValueError(f"the model {name} {there} has another tokenizer than the policy, whose tokens it judges")
        models[name] = one.policy.requires_grad_(False)
        notes += [f"model {name}: {note}" for note in one.notes]
    return Loaded(Models(models), loaded.tokenizer, tuple(notes))


def _valued(name: str, trust_remote_code: bool) -> bool:
    """Whether it is a reward model. What is wrong with a model is said when it is loaded."""
    if adapted(name):
        return False
    try:
        return is_reward_model(AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code))
    except (OSError, ValueError):
        return False


def _as_record(prompt: Prompt) -> Encoded:
    ids = prompt.ids.numpy()
    return Encoded(prompt.where, (Completion(ids, np.zeros(len(ids) - 1, np.bool_), False),))


def _endless(ends: frozenset[int]) -> tuple[str, ...]:
    told = "neither the model nor the tokenizer names an end token: answers end at --stop or --max-new-tokens alone"
    return () if ends else (told,)
