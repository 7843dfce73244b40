"""What plain Python needs: sums, softmax, and the ways in which values of a step are averaged."""

import math
from collections.abc import Callable


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    each = [math.exp(value - top) for value in values]
    return [value / sum(each) for value in each]


def logsumexp(values: list[float]) -> float:
    return max(values) + math.log(sum(math.exp(value - max(values)) for value in values))


def h(x: float) -> float:
    return max(-x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def taken(inputs: dict, side: str) -> list[list[float]]:
    """log π of each action, from logits."""
    return [
        [state[a] - logsumexp(state) for a, state in zip(tokens, states, strict=True)]
        for tokens, states in zip(inputs["tokens"], inputs[side], strict=True)
    ]


def log_ratios(x: dict) -> list[float]:
    """L of each row: Σ_t log π/π_ref."""
    return [sum(a) - sum(b) for a, b in zip(x["logp"], x["ref_logp"], strict=True)]


def over_pairs(x: dict, value: Callable[[int, int, int], float]) -> float:
    """The mean of value(k, chosen row, rejected row), by the column `weight` if there is one."""
    weight = x.get("weight", [1.0] * len(x["chosen"]))
    values = [value(k, w, low) for k, (w, low) in enumerate(zip(x["chosen"], x["rejected"], strict=True))]
    return sum(a * b for a, b in zip(weight, values, strict=True)) / sum(weight)


def over_groups(x: dict, value: Callable[[list[int]], float]) -> float:
    """The mean of value(rows of a group)."""
    groups = [[row for row, of in enumerate(x["prompt"]) if of == prompt] for prompt in sorted(set(x["prompt"]))]
    return mean([value(rows) for rows in groups])


def over_labels(x: dict, value: Callable[[int, bool], float]) -> float:
    """The mean of value(row, whether it is good)."""
    return mean([value(row, good) for row, good in zip(x["row"], x["good"], strict=True)])
