"""What both contenders are given: pairs in a fixed order, a tokenizer, weights; and what the work costs at least.

Runs in a process of its own (`dpo_vs_trl.py --child prepare`), so that nothing of it counts as anybody's memory.
"""

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Config

import softq
from softq.data.encode import Encoded
from softq.data.files import read_rows
from softq.data.formats import Reading, parse_rows
from softq.data.rows import Dropped
from softq.lm.forest import grow
from softq.lm.layouts import depths
from softq.training.source import batch_of

SHAPES: Mapping[str, Mapping[str, int]] = {  # hidden, intermediate, layers, heads, key-value heads
    "4.5M": {"H": 256, "I": 768, "layers": 3, "heads": 4, "kv": 2},
    "12.6M": {"H": 384, "I": 1024, "layers": 6, "heads": 6, "kv": 2},
    "Qwen2.5-0.5B": {"H": 896, "I": 4864, "layers": 24, "heads": 14, "kv": 2},
    "Qwen2.5-1.5B": {"H": 1536, "I": 8960, "layers": 28, "heads": 12, "kv": 2},
}
TEXT_VOCABULARY = 8192  # of the tokenizer; a model's may be larger, then its further rows are never an action
EOS, PAD = "<|endoftext|>", "<|pad|>"  # ids 0 and 1
HH = ((97, 0.75), (28, 0.87), (37, 0.82))
"""Median and log-σ of log-normal lengths, in tokens, of prompt, chosen and rejected: a fit to the HH file."""
CONSONANTS, VOWELS, WORDS = "bcdfghjklmnpqrstvwxyz", "aeiou", 6000
GENERATED_ROWS = 1000

Pair = tuple[str, str, str]  # prompt, chosen, rejected


def prepare(work: Path) -> dict[str, Any]:
    """Writes tokenizer, policy, reference and pairs.jsonl to `work` and returns the facts of the workload."""
    plan = json.loads((work / "plan.json").read_text())
    pairs = read_text(plan["data"]) if plan["data"] and not plan["lengths"] else generated(plan["lengths"] or HH)
    random.Random(0).shuffle(pairs)
    tokenizer = trained_tokenizer([text for pair in pairs for text in pair])
    records, kept, straddled = usable(pairs, tokenizer, work, plan["max_length"])
    wanted = plan["pairs"] + plan["batch"]  # the first batch warms up
    if len(kept) < wanted:
        raise SystemExit(
            f"{len(kept)} usable pairs, {wanted} needed (the first {plan['batch']} warm up): lower --pairs"
        )
    write_pairs(work / "pairs.jsonl", kept[:wanted])
    write_models(qwen2(plan), tokenizer, work, plan["dtype"])
    steps = [records[at : at + plan["batch"]] for at in range(plan["batch"], wanted, plan["batch"])]
    fused = bool(softq.AdamW(torch.nn.Linear(1, 1), steps=1).optimizer.defaults.get("fused"))
    return {**costs(steps, SHAPES[plan["shape"]], plan["vocabulary"]), "fused_adamw": fused, "straddled": straddled}


def read_text(file: str) -> list[Pair]:
    """The pairs of a file as softq splits them; plain text only."""
    pairs: list[Pair] = []
    for example in parse_rows(read_rows(file), Reading())[1]:
        if isinstance(example, Dropped):
            continue
        if not isinstance(example.prompt, str):
            raise SystemExit(f"{file}: chat messages; this benchmark compares pairs of plain text, such as raw HH")
        chosen, rejected = map(str, example.completions)
        pairs.append((example.prompt, chosen, rejected))
    return pairs


def generated(lengths: Sequence[Sequence[float]]) -> list[Pair]:
    """Random words, each a token for a tokenizer trained on them, in log-normal numbers: (median, log-σ) of each text."""
    draw = random.Random(1)
    syllables = [c + v for c in CONSONANTS for v in VOWELS]
    words = draw.sample([a + b for a in syllables for b in syllables], WORDS)

    def text(median: float, sigma: float) -> str:
        size = max(1, round(median * draw.lognormvariate(0, sigma)))
        return "".join(f" {word}" for word in draw.choices(words, k=size))

    prompt, chosen, rejected = lengths
    return [(text(*prompt) + ":", text(*chosen), text(*rejected)) for _ in range(GENERATED_ROWS)]


def trained_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=TEXT_VOCABULARY,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)


def usable(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, work: Path, max_length: int
) -> tuple[list[Encoded], list[Pair], int]:
    """The pairs that both libraries turn into the same ids, and how many they do not.

    Where a token straddles the end of the prompt, TRL cuts the prompt's last token and softq the completion's first.
    """
    write_pairs(work / "candidates.jsonl", pairs)
    data = softq.read(work / "candidates.jsonl", tokenizer, max_length=max_length)
    records: list[Encoded] = []
    kept: list[Pair] = []
    for record in data.records:
        pair = pairs[int(record.where.rsplit(":", 1)[1]) - 1]
        if all(same_ids(*both) for both in zip(trl_ids(pair, tokenizer), record.completions, strict=True)):
            records.append(record)
            kept.append(pair)
    return records, kept, len(data.records) - len(kept)


def trl_ids(pair: Pair, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[list[int], int]]:
    """The ids of prompt + completion + EOS, and how many of them are the prompt's where that ends on a token."""
    prompt, *completions = pair
    head = tokenizer(prompt)["input_ids"]
    for completion in completions:
        ids = tokenizer(prompt + completion + EOS)["input_ids"]
        yield ids, len(head) if ids[: len(head)] == head else -1


def same_ids(theirs: tuple[list[int], int], ours: Any) -> bool:
    """Whether the ids and the place where the completion starts are equal."""
    return theirs == (ours.ids.tolist(), int(ours.action.argmax()) + 1)


def write_pairs(file: Path, pairs: Sequence[Pair]) -> None:
    """JSON lines with prompt, chosen and rejected."""
    names = ("prompt", "chosen", "rejected")
    file.write_text("".join(json.dumps(dict(zip(names, pair, strict=True))) + "\n" for pair in pairs))


def qwen2(plan: Mapping[str, Any]) -> Qwen2Config:
    """The shape of the plan."""
    shape = SHAPES[plan["shape"]]
    return Qwen2Config(
        vocab_size=plan["vocabulary"],
        hidden_size=shape["H"],
        intermediate_size=shape["I"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv"],
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=0,
        pad_token_id=1,
        bos_token_id=None,
    )


def write_models(config: Qwen2Config, tokenizer: PreTrainedTokenizerBase, work: Path, dtype: str) -> None:
    """A reference of random weights, and a policy that is the reference with noise: their first loss is not log 2."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(work / "reference")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(torch.randn_like(parameter), alpha=config.initializer_range / 2)
    model.save_pretrained(work / "policy")
    tokenizer.save_pretrained(work / "reference")
    tokenizer.save_pretrained(work / "policy")


def costs(steps: Sequence[Sequence[Encoded]], shape: Mapping[str, int], vocabulary: int) -> dict[str, float]:
    """What the timed steps cost a pair: distinct states, what padding makes of them, and the GFLOP that are needed."""
    states = actions = padded = flops = 0
    for step in steps:
        tokens = batch_of(step, range(len(step)), softq.METHODS["dpo"]()).tokens
        forest = grow(tokens)
        depth = depths(forest.tree)
        acted = len(forest.node[tokens.action].unique())
        states, actions, padded = states + len(depth), actions + acted, padded + tokens.ids.numel()
        flops += 4 * forward_flops(shape, vocabulary, depth, acted)
    pairs = sum(map(len, steps))
    totals = {"states": states, "actions": actions, "padded_tokens": padded, "gflop": flops / 1e9}
    return {name: total / pairs for name, total in totals.items()}


def forward_flops(shape: Mapping[str, int], vocabulary: int, depth: Sequence[int], acted: int) -> int:
    """FLOPs of the matrix products of one forward pass over states at these depths, with logits at `acted` of them.

    A state at depth d attends to d + 1 keys: in each layer two products of 2·H·(d+1) FLOPs. The policy's forward pass, its
    two backward products and the reference's forward pass make 4 of these.
    """
    H, keys = shape["H"], shape["H"] // shape["heads"] * shape["kv"]
    weights = 2 * H * H + 2 * H * keys + 3 * H * shape["I"]
    attended = sum(depth) + len(depth)
    return shape["layers"] * (2 * weights * len(depth) + 4 * H * attended) + 2 * H * vocabulary * acted


def gemm(work: Path) -> dict[str, float]:
    """FLOP/s of one large square product in the dtype and threads of the plan, the best of twenty."""
    plan = json.loads((work / "plan.json").read_text())
    torch.set_num_threads(plan["threads"])
    n, device = (8192, "cuda") if plan["device"] == "cuda" else (2048, "cpu")
    a, b, c = (torch.randn(n, n, device=device).to(getattr(torch, plan["dtype"])) for _ in range(3))
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        torch.matmul(a, b, out=c)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return {"flops": 2 * n**3 / best}
