"""Prompts to search from: the prompts of any data, or a text, as the policy reads them; and what ends an answer to them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from softq.data.encode import Encoder
from softq.data.example import Example, Text
from softq.data.formats import Reading
from softq.data.read import template
from softq.data.rows import DataError, Dropped
from softq.data.sources import sources
from softq.data.stream import stream

UNLIMITED = 2**31
ANSWER = "Yes."  # stands for an answer, to see with what the template ends one


class Prompt(NamedTuple):
    """What an answer is searched for."""

    where: str  # file and row
    text: Text  # as the data has it
    ids: Tensor  # [n] int64, on the CPU
    options: Mapping[str, Any] = {}  # the row's chat_template_kwargs, and its tools


class Asking(NamedTuple):
    """Prompts in the order of their data."""

    prompts: tuple[Prompt, ...]
    ends: frozenset[int]  # tokens with which the template ends an answer, where the tokenizer and the model have others
    notes: tuple[str, ...]


def asking(
    given: Sequence[str] | str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    end_ids: frozenset[int] = frozenset(),
    format: str | None = None,
    rename: Mapping[str, str] | None = None,
    chat_template: str | None = None,
) -> Asking:
    """The prompts of data files, or one text, which is a user's message where there is a chat template.

    What training calls a prompt, with what the template puts before an answer. Data that answers its prompts may ask one several
    times, once for each answer: it is searched once. DataError where no prompt is left.
    """
    encoder = Encoder(tokenizer, end_ids, UNLIMITED, template(chat_template))
    kind, examples = ("prompts", [_said(given, encoder)]) if isinstance(given, str) else _read(given, format, rename)
    found: dict[Any, Prompt] = {}
    ends: frozenset[int] = frozenset()
    faults: list[Dropped] = []
    again = 0
    for example in examples:
        prompt = example if isinstance(example, Dropped) else _prompt(example, encoder)
        if isinstance(prompt, Dropped):
            faults.append(prompt)
            continue
        if isinstance(example, Example) and not found:
            ends = _ends(example, encoder)
        key = prompt.where if kind == "prompts" else (repr(prompt.text), tuple(prompt.ids.tolist()))
        again += key in found
        found.setdefault(key, prompt)
    if not found:
        told = f"{faults[0].where}: {faults[0].message or faults[0].reason}" if faults else "the data holds no row"
        raise DataError(f"no prompt is left to search from: {told}")
    notes = [f"{again:,} rows ask what another one asks: each prompt is searched once"] if again else []
    if faults:
        notes.append(f"{len(faults):,} rows dropped, the first because {faults[0].where}: {faults[0].message}")
    return Asking(tuple(found.values()), ends, tuple(notes))


def _said(text: str, encoder: Encoder) -> Example:
    chat = encoder.chat_template is not None or encoder.tokenizer.chat_template is not None
    return Example("--prompt", [{"role": "user", "content": text}] if chat else text, ())


def _read(
    files: Iterable[str], format: str | None, rename: Mapping[str, str] | None
) -> tuple[str, Iterator[Example | Dropped]]:
    of = stream(sources(list(files)), Reading(format, rename or {}))
    return of.kind, (item.example for item in of.items)


def _prompt(example: Example, encoder: Encoder) -> Prompt | Dropped:
    """The ids that stand before an answer."""
    bare = example._replace(completions=(), columns={})
    encoded, _ = encoder.encode(bare)
    if isinstance(encoded, Dropped):
        return encoded
    return Prompt(example.where, example.prompt, torch.from_numpy(encoded.completions[0].ids), example.template_kwargs)


def _ends(example: Example, encoder: Encoder) -> frozenset[int]:
    """The end token of the template, if it is one that the encoder would not know of."""
    if isinstance(example.prompt, str):
        return frozenset()
    answered = example._replace(completions=([{"role": "assistant", "content": ANSWER}],), columns={})
    _, account = encoder.encode(answered)
    return frozenset() if account.template_end is None else frozenset({account.template_end})
