"""A small language model of a generated world: its words, its fine-tuning, the pairs that it learns from, its answers."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from softq.data.encode import Completion, Encoded
from softq.lm.load import Loaded, load, without_bars
from softq.objectives import METHODS
from softq.training.loop import train
from softq.training.source import batches
from softq.training.update import AdamW
from softq.worlds.world import Words, World

LONGEST = 80  # words of a sampled answer
END, PAD = "<end>", "<pad>"


class Compared(NamedTuple):
    """Two answers to a prompt, and which of them a judge took."""

    prompt: Words
    chosen: Words
    rejected: Words


class Said(NamedTuple):
    """One sampled answer; not `ended` where it was cut at LONGEST words."""

    prompt: Words
    answer: Words
    ended: bool


def tokenizer_of(world: World) -> PreTrainedTokenizerFast:
    """One token a word."""
    words = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate([PAD, END, *world.vocabulary])}, unk_token=PAD)
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=END, pad_token=PAD)


Write = Callable[[Words, Random], Words]
"""(prompt, chance) -> an answer."""


def fine_tune(
    world: World, directory: Path, seed: int, *, answers: int, steps: int, write: Write | None = None
) -> None:
    """A language model from nothing: sft on so many answers of the crowd, or of another who can `write`, 64 a step, saved as
    transformers saves it."""
    torch.manual_seed(seed)
    tokenizer = tokenizer_of(world)
    end: Any = tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=end,
    )
    loaded = load(AutoModelForCausalLM.from_config(config), None, tokenizer=tokenizer)
    rng = Random(f"crowd {seed}")
    write = write or world.demonstration
    records = []
    for n in range(answers):
        prompt = rng.choice(world.prompts)
        records.append(Encoded(f"answer {n}", (completion(prompt, write(prompt, rng), tokenizer),)))
    update = AdamW(
        loaded.models,
        steps=steps,
        learning_rate=6e-3,
        schedule="cosine",
        warmup_steps=3 * steps // 10,
        weight_decay=0.01,
        betas=(0.9, 0.98),
    )
    method = METHODS["sft"]()
    source = batches(records, method, batch_size=64, epochs=steps / math.ceil(len(records) / 64), seed=seed)
    for _ in train(loaded.models, method, source, update):
        pass
    with without_bars():
        loaded.policy.model.save_pretrained(str(directory))
    tokenizer.save_pretrained(str(directory))


def crowd_pairs(world: World, count: int, seed: int, write: Write | None = None) -> Iterator[Compared]:
    """Pairs of the crowd's answers, or of another's who can `write`, to the prompts to train on, each with one noisy label for
    the whole answer."""
    rng, write = Random(f"pairs {seed}"), write or world.demonstration
    for _ in range(count):
        prompt = rng.choice(world.prompts)
        first, second = write(prompt, rng), write(prompt, rng)
        taken, left = (first, second) if world.prefer(prompt, first, second, rng) else (second, first)
        yield Compared(prompt, taken, left)


def sampled(world: World, loaded: Loaded, samples: int, seed: int) -> list[Said]:
    """Answers to the held-out prompts: `samples` each at T = 1, or one greedy answer."""
    ids = torch.tensor([ids_of(prompt, loaded.tokenizer) for prompt in world.held_out])
    torch.manual_seed(seed)
    choice: dict[str, Any] = {"do_sample": True, "num_return_sequences": samples, "top_k": 0} if samples > 1 else {}
    with torch.no_grad():
        out = loaded.policy.transformer.generate(  # pyright: ignore[reportCallIssue]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=LONGEST, **{"do_sample": False, **choice}
        )
    answers = []
    end: Any = loaded.tokenizer.eos_token_id
    for n, row in enumerate(out[:, ids.shape[1] :].tolist()):
        said = row[: row.index(end)] if end in row else row
        words: Any = loaded.tokenizer.convert_ids_to_tokens(said)
        answers.append(Said(world.held_out[n // samples], tuple(words), end in row))
    return answers


def completion(prompt: Words, answer: Words, tokenizer: Any, *, ended: bool = True) -> Completion:
    """A prompt and an answer in tokens; the end token is the last action, where the answer ended."""
    before = ids_of(prompt, tokenizer)
    ids = np.array([*before, *ids_of(answer, tokenizer), *[tokenizer.eos_token_id] * ended])
    return Completion(ids, np.arange(1, len(ids)) >= len(before), ended)


def ids_of(words: Words, tokenizer: Any) -> list[int]:
    """One id a word."""
    return tokenizer.convert_tokens_to_ids(list(words))
