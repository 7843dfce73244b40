"""Two tiny tokenizers with known merges, messages, and encoded rows made readable."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from softq.data.encode import Encoded, Encoder
from softq.data.example import Example

SPECIAL = ["<eos>", "<bos>", "<|im_start|>", "<|im_end|>"]
MERGES = [("y", "e"), ("ye", "s"), ("Ġ", "yes"), ("n", "o"), ("Ġ", "no"), ("Ċ", "Ċ"), ("a", "b"), ("ab", "c")]


def wrapped(tokenizer: Tokenizer, eos: str | None = "<eos>", bos: bool = False) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(SPECIAL)
    if bos:
        ids = [(name, tokenizer.token_to_id(name)) for name in ("<bos>", "<eos>")]
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos)


@cache
def byte_level(eos: str | None = "<eos>", bos: bool = False) -> PreTrainedTokenizerFast:
    """GPT-2's kind: a space belongs to the word after it (Ġ), a newline is Ċ."""
    tokens = [*pre_tokenizers.ByteLevel.alphabet(), *("".join(pair) for pair in MERGES)]
    model = models.BPE({token: i for i, token in enumerate(sorted(tokens))}, MERGES)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return wrapped(tokenizer, eos, bos)


@cache
def metaspace(scheme: str = "always") -> PreTrainedTokenizerFast:
    """SentencePiece's kind: a text alone gets a space (▁) in front."""
    merges = [(a.replace("Ġ", "▁"), b) for a, b in MERGES if "Ċ" not in a]
    tokens = [*"abcdefghijklmnopqrstuvwxyz:!QA▁\n", *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return wrapped(tokenizer)


def encoder(
    tokenizer: PreTrainedTokenizerFast, template: str | None = None, ends=(), limit: int = 1000, keep: bool = False
) -> Encoder:
    ids = tokenizer.convert_tokens_to_ids(list(ends))
    return Encoder(tokenizer, frozenset(ids), limit, template, keep)


def pair(prompt, chosen, rejected, **more) -> Example:
    return Example("a.jsonl:1", prompt, (chosen, rejected), **more)


def alone(prompt, *completions, **more) -> Example:
    """An example of any number of completions."""
    return Example("a.jsonl:1", prompt, completions, **more)


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def shown(encoded, tokenizer, n: int = 0) -> str:
    """The n-th completion as tokens; what the policy chose stands in brackets."""
    assert isinstance(encoded, Encoded), encoded
    ids, action, _ = encoded.completions[n]
    tokens = tokenizer.convert_ids_to_tokens(ids.tolist())
    return " ".join(f"[{t}]" if chosen else t for t, chosen in zip(tokens, [False, *action.tolist()], strict=True))
