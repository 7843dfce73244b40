"""A small pair of models with a tokenizer of its own: what the policy said is told to it as text.

The pair reads a prompt as its own chat template renders it, or as the text that it is, and behind it what was said so far, in the
tokens that its tokenizer makes of that text there. They are made anew for every score, never added to: a chunk may end inside a
word, and what goes on may have other tokens. A character of which bytes are missing is not told before it is whole. Where the
policy said an end token, the pair is told its own: the one with which its template ends an answer, or its EOS behind plain text.
An answer that goes on, or that was cut or ended by a stop text, has none.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase

from softq.data.encode import Encoder
from softq.data.example import Example
from softq.data.read import template
from softq.data.rows import DataError, Dropped, Unusable
from softq.data.templates import Template
from softq.data.vocabulary import Ids, Vocabulary
from softq.lm.growing import Growing
from softq.lm.load import Loaded, load
from softq.lm.score import Models
from softq.lm.tokenizer import adapted, load_tokenizer
from softq.search.heard import PAIR
from softq.searching.full import full
from softq.searching.prompts import ANSWER, UNLIMITED, Prompt
from softq.searching.words import completion
from softq.training.samples import positions

BROKEN = "\ufffd"  # what is decoded from bytes that are no character, or not yet


class Heading(NamedTuple):
    """A prompt as the pair reads it."""

    where: str
    text: str  # as its template renders it
    ids: Tensor  # [n] int64
    end: Ids  # what ends an answer


class Pair(NamedTuple):
    """The models, their tokenizer, and all prompts in its tokens."""

    loaded: Loaded  # "policy" is the tuned one, "ref" the untuned one
    vocabulary: Vocabulary
    prompts: tuple[Heading, ...]
    positions: int  # that both have


class TextRatio:
    """Σ log π_tuned/π_untuned of what was said up to a node, nats, read as text by a pair: a `PathScore`."""

    def __init__(
        self, pair: Pair, numbers: Sequence[int], decode: Callable[[Sequence[int]], str], ends: frozenset[int]
    ) -> None:
        """numbers: which of the pair's prompts those of the forest are; decode, ends: the policy's."""
        self.pair, self.decode, self.ends = pair, decode, ends
        self.prompts = [pair.prompts[number] for number in numbers]
        self.evaluations = 0

    def __call__(self, forest: Growing, nodes: Tensor) -> Tensor:
        """See `PathScore`. Each text is read whole; where nothing can be told yet, it is 0."""
        told = [(int(forest.prompt[node]), self.told(forest, node), n) for n, node in enumerate(nodes.tolist())]
        rows = sorted(row for row in told if row[1])  # a prompt's come together, and share what they begin with
        ratio = torch.zeros(len(nodes), dtype=torch.float64)
        scored = full(self.pair.loaded, [prompt.ids for prompt in self.prompts], [row[:2] for row in rows])
        for (_, _, n), (tuned, untuned) in zip(rows, scored, strict=True):
            assert untuned is not None
            ratio[n] = (tuned - untuned).sum()
        self.evaluations += 2 * _states([row[:2] for row in rows])
        forest.put("ratio", nodes, ratio)
        return ratio

    def told(self, forest: Growing, node: int) -> Ids:
        """What was said up to a node, in the pair's tokens. ValueError where it has no positions for them."""
        prompt, tokens = self.prompts[int(forest.prompt[node])], forest.answer(node)
        before = int(forest.token[forest.last[forest.prompt[node]]])
        ended = tokens[-1] in self.ends
        text = completion(self.decode, before, tokens, self.ends, ())
        try:
            ids, _ = self.pair.vocabulary.after(prompt.text, text if ended else text.rstrip(BROKEN))
        except Unusable as error:
            raise DataError(f"{prompt.where}: tuned and untuned can not read an answer to it: {error}") from error
        ids += prompt.end * ended
        _check_room(prompt, len(ids), self.pair.positions)
        return ids


def reads_text(models: Mapping[str, str], policy: str, tokenizer: PreTrainedTokenizerBase, trust: bool) -> bool:
    """Whether "tuned" or "untuned" has other tokens than the policy, or a head of another size, as padded ones have."""
    for there in (models[name] for name in PAIR if name in models):
        own = _tokenizer(there, trust)
        if (own is not None and not shared(own, tokenizer)) or _size(there, trust) != _size(policy, trust):
            return True
    return False


def shared(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether an id is the same token to both; added ones may differ: a chat model often names what its base had in reserve."""
    added = {id for each in (one, other) for id in each.added_tokens_decoder}
    ours, theirs = ({id: token for token, id in each.get_vocab().items() if id not in added} for each in (one, other))
    return ours == theirs


def opened_pair(models: Mapping[str, str], prompts: Sequence[Prompt], *, chat_template: str | None, **how: Any) -> Pair:
    """Both models loaded, and every prompt as they read it. how: as of `load`. chat_template: where their tokenizer has none.

    ValueError where one is missing, they do not share a tokenizer, or have no position to answer in.
    """
    if missing := [name for name in PAIR if name not in models]:
        (there,) = (models[name] for name in PAIR if name in models)
        raise ValueError(
            f"{there} does not have the policy's tokens, and scores text in a pair: give {missing[0]}=MODEL"
        )
    trust = bool(how.get("trust_remote_code"))
    spoken = load_tokenizer(models["tuned"], trust)
    other = _tokenizer(models["untuned"], trust)
    if other is not None and not shared(spoken.tokenizer, other):
        raise ValueError(
            f"tuned {models['tuned']} and untuned {models['untuned']} have different tokenizers: give a pair that shares one"
        )
    given = None if spoken.tokenizer.chat_template is not None else template(chat_template)
    encoder = Encoder(spoken.tokenizer, spoken.end_ids, UNLIMITED, given)
    headings = tuple(_heading(prompt, encoder) for prompt in prompts)
    parts = {name: load(models[name], None, tokenizer=spoken.tokenizer, **how) for name in PAIR}
    both = {
        name: part.policy.requires_grad_(False) for name, part in zip(("policy", "ref"), parts.values(), strict=True)
    }
    room = min(positions(part.policy) for part in parts.values())
    for heading in headings:
        _check_room(heading, 1, room)
    notes = ["tuned and untuned do not have the policy's tokens: chunk_beam tells them text", *spoken.notes]
    notes += [f"model {name}: {note}" for name, part in parts.items() for note in part.notes]
    return Pair(Loaded(Models(both), spoken.tokenizer, tuple(notes)), encoder.vocabulary, headings, room)


def _heading(prompt: Prompt, encoder: Encoder) -> Heading:
    """A prompt, and what ends an answer to it. DataError where the pair's tokenizer can not read it."""
    bare, text = Example(prompt.where, prompt.text, (), {}, prompt.options), prompt.text
    try:
        encoded, _ = encoder.encode(bare)
        if isinstance(encoded, Dropped):
            raise Unusable(encoded.reason, encoded.message)
        answer = ANSWER if isinstance(text, str) else [{"role": "assistant", "content": ANSWER}]
        (coded,) = encoder.explain(bare._replace(completions=(answer,)))
        if not isinstance(text, str):
            own = Template(encoder.tokenizer, encoder.chat_template, prompt.options, prompt.where)
            text = own.scripts(text, [])[0].prompt
    except Unusable as error:
        raise DataError(f"{prompt.where}: tuned and untuned can not read it: {error}") from error
    end = sum((piece.ids for piece in coded.pieces if piece.part == "scored" and piece.by != "text"), ())
    return Heading(prompt.where, text, torch.from_numpy(encoded.completions[0].ids), end)


def _check_room(prompt: Heading, more: int, room: int) -> None:
    if len(prompt.ids) + more > room:
        raise ValueError(
            f"{prompt.where}: prompt and answer have {len(prompt.ids) + more:,} tokens to tuned and untuned, and they "
            f"{room:,} positions: lower --max-new-tokens, or leave the prompt out"
        )


def _states(rows: Sequence[tuple[int, Ids]]) -> int:
    """How many states sorted rows (prompt, ids) have behind prompts: a common beginning counts once, a last token not at all."""
    found = 0
    for _, group in groupby(rows, key=lambda row: row[0]):
        acted = [ids[:-1] for _, ids in group]
        found += sum(map(len, acted)) - sum(_common(*each) for each in pairwise(acted))
    return found


def _common(one: Ids, other: Ids) -> int:
    """How many ids two rows begin with alike."""
    alike = (a == b for a, b in zip(one, other, strict=False))
    return next((n for n, same in enumerate(alike) if not same), min(len(one), len(other)))


def _tokenizer(name: str, trust: bool) -> PreTrainedTokenizerBase | None:
    """A model's own; None of weights alone."""
    try:
        return load_tokenizer(name, trust).tokenizer
    except ValueError:
        return None


def _size(name: str, trust: bool) -> int | None:
    """Rows of its head, as its configuration says; what is wrong with a model is said when it is loaded."""
    try:
        config = AutoConfig.from_pretrained(adapted(name) or name, trust_remote_code=trust)
    except (OSError, ValueError):
        return None
    return config.get_text_config().vocab_size
