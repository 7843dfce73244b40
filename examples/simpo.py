"""SimPO in one file: torch and transformers only, a row at a time, nothing shared and nothing fast.

    python examples/simpo.py MODEL pairs.jsonl OUTPUT

It says what softq computes in the fewest lines, and softq's tests hold the two together.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


def mean_log_prob(model, prompt: list[int], completion: list[int]) -> Tensor:
    """log π(completion | prompt) / |completion| in nats a token, its end token included."""
    ids = torch.tensor([prompt + completion])
    logp = model(ids).logits[0].float().log_softmax(-1)
    actions = torch.tensor(completion)
    states = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)  # state t predicts the token after it
    return logp[states, actions].sum() / len(completion)


def simpo_loss(policy, pairs: list[tuple[list[int], list[int], list[int]]], beta: float, gamma: float) -> Tensor:
    """Mean of -log σ(β log π(chosen)/|chosen| - β log π(rejected)/|rejected| - γ) (arXiv 2405.14734, eq 6)."""
    losses = []
    for prompt, chosen, rejected in pairs:
        better = mean_log_prob(policy, prompt, chosen) - mean_log_prob(policy, prompt, rejected)
        losses.append(-F.logsigmoid(beta * better - gamma))
    return torch.stack(losses).mean()


def main(model: str, data: str, output: str) -> None:
    """One pass in steps of eight pairs."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    pairs = []
    for row in map(json.loads, Path(data).read_text(encoding="utf-8").splitlines()):
        prompt, *sides = (
            tokenizer(row[key], add_special_tokens=False)["input_ids"] for key in ("prompt", "chosen", "rejected")
        )
        pairs.append((prompt, *([*side, tokenizer.eos_token_id] for side in sides)))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-7, weight_decay=0.0)
    for start in range(0, len(pairs), 8):
        loss = simpo_loss(policy, pairs[start : start + 8], beta=2.0, gamma=0.5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"{start + 8} pairs, loss {loss.item():.4f}")
    policy.save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
