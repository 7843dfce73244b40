"""Rewards of sampled completions."""

import math

from plain.arithmetic import mean


def grpo(x: dict, p: dict) -> float:
    losses = []
    for row, of in enumerate(x["prompt"]):
        rewards = [x["reward"][other] for other, prompt in enumerate(x["prompt"]) if prompt == of]
        spread = math.sqrt(sum((r - mean(rewards)) ** 2 for r in rewards) / max(len(rewards) - 1, 1))
        a = (x["reward"][row] - mean(rewards)) / (spread + 1e-4)
        values = []
        for t, logp in enumerate(x["logp"][row]):
            rho = math.exp(logp - x["old_logp"][row][t])
            value = -min(rho * a, max(1 - p["epsilon"], min(1 + p["epsilon"], rho)) * a)
            if p["beta"]:
                d = logp - x["ref_logp"][row][t]
                value += p["beta"] * (math.exp(-d) - 1 + d)
            values.append(value)
        losses.append(mean(values))
    return mean(losses)


LOSSES = {"grpo": grpo}
