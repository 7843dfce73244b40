"""Values of the states behind tokens, row by row."""

import math


def lambda_return(row: list[float], reward: float, lam: float) -> list[float]:
    """Of each state the mean of n-step returns: (1-λ) Σ_n λ^(n-1) V(n steps on), and the rest of the weight on R."""
    targets = []
    for t in range(len(row)):
        ahead = row[t + 1 : -1]  # what lies behind the last token is R
        share = [(1 - lam) * lam**n for n in range(len(ahead))]
        targets.append((1 - sum(share)) * reward + sum(a * v for a, v in zip(share, ahead, strict=True)))
    return targets


def value(x: dict, p: dict) -> float:
    made = [lambda_return(row, reward, p["lam"]) for row, reward in zip(x["value"], x["reward"], strict=True)]
    targets = x.get("value_target", made)
    losses = [
        (v - target) ** 2 / 2
        for row, drawn_to in zip(x["value"], targets, strict=True)
        for v, target in zip(row, drawn_to, strict=True)
    ]
    return sum(losses) / len(losses)


def soft_value(x: dict, p: dict) -> float:
    def rise(z: float) -> float:
        return math.exp(z) - 1 - z if z <= 20 else math.exp(20) - 21 + (math.exp(20) - 1) * (z - 20)

    losses = [
        p["beta"] ** 2 * rise((reward - v) / p["beta"])
        for row, reward in zip(x["value"], x["reward"], strict=True)
        for v in row
    ]
    return sum(losses) / len(losses)


LOSSES = {"value": value, "soft_value": soft_value}
