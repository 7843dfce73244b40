"""KTO in one file: torch and transformers only, a completion at a time, nothing shared and nothing fast.

    python examples/kto.py MODEL pairs.jsonl OUTPUT

Pairs are read as judgements of single completions: the chosen are good, the rejected bad. It says what softq computes in
the fewest lines, and softq's tests hold the two together.
"""

import copy
import json
import sys
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

Judged = tuple[list[int], list[int], bool]  # prompt, completion, whether it is good
Pair = tuple[list[int], list[int], list[int]]  # prompt, chosen, rejected


def log_prob(model, prompt: list[int], completion: list[int]) -> Tensor:
    """log π(completion | prompt) in nats, its end token included."""
    ids = torch.tensor([prompt + completion])
    logp = model(ids).logits[0].float().log_softmax(-1)
    actions = torch.tensor(completion)
    states = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)  # state t predicts the token after it
    return logp[states, actions].sum()


def log_ratio(policy, reference, prompt: list[int], completion: list[int]) -> Tensor:
    """L(y) = log π/π_ref(y | x): β times it is the implicit reward."""
    with torch.no_grad():
        referred = log_prob(reference, prompt, completion)
    return log_prob(policy, prompt, completion) - referred


@torch.no_grad()
def kl_baseline(policy, reference, strangers: list[tuple[list[int], list[int]]]) -> Tensor:
    """z0 = max(0, mean L of completions that were given to other prompts): a crude KL(π‖π_ref), a constant to the loss."""
    return torch.stack([log_ratio(policy, reference, *each) for each in strangers]).mean().clamp(min=0)


def kto_loss(
    policy, reference, judged: list[Judged], strangers: list[tuple[list[int], list[int]]], beta: float,
    desirable_weight: float = 1.0, undesirable_weight: float = 1.0,
) -> Tensor:  # fmt: skip
    """Mean of λ_D (1 - σ(β(L - z0))) over good and λ_U (1 - σ(β(z0 - L))) over bad ones together (arXiv 2402.01306, eq 8)."""
    z0 = kl_baseline(policy, reference, strangers)
    losses = []
    for prompt, completion, good in judged:
        gain = beta * (log_ratio(policy, reference, prompt, completion) - z0)
        value = desirable_weight * gain.sigmoid() if good else undesirable_weight * (-gain).sigmoid()
        losses.append((desirable_weight if good else undesirable_weight) - value)
    return torch.stack(losses).mean()


def judgements(pairs: list[Pair]) -> tuple[list[Judged], list[tuple[list[int], list[int]]]]:
    """Both completions of each pair with their labels, and each completion under the prompt of the pair before its own."""
    judged = [(prompt, side, side is chosen) for prompt, chosen, rejected in pairs for side in (chosen, rejected)]
    strangers = [
        (prompt, side) for (prompt, _, _), after in zip(pairs, pairs[1:] + pairs[:1], strict=True) for side in after[1:]
    ]
    return judged, strangers


def main(model: str, data: str, output: str) -> None:
    """One pass in steps of eight pairs. A single pair has no other prompt, so a last one is left out."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    reference = copy.deepcopy(policy).requires_grad_(False)
    pairs: list[Pair] = []
    for row in map(json.loads, Path(data).read_text(encoding="utf-8").splitlines()):
        prompt, *sides = (
            tokenizer(row[key], add_special_tokens=False)["input_ids"] for key in ("prompt", "chosen", "rejected")
        )
        chosen, rejected = ([*side, tokenizer.eos_token_id] for side in sides)
        pairs.append((prompt, chosen, rejected))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, weight_decay=0.0)
    for start in range(0, len(pairs) - 1, 8):
        loss = kto_loss(policy, reference, *judgements(pairs[start : start + 8]), beta=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"{start + 8} pairs, loss {loss.item():.4f}")
    policy.save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
