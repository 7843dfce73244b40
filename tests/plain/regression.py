"""The four constructions of the unified framework, on groups."""

import math

from plain.arithmetic import h, log_ratios, logsumexp, mean, over_groups, sigmoid
from plain.rankings import divergence


def reward_regression(x: dict, p: dict) -> float:
    ratio, reward, beta = log_ratios(x), x["reward"], p["beta"]

    def value(rows: list[int]) -> float:
        left = [reward[k] - beta * ratio[k] for k in rows]
        fitted = p.get("value") == "fitted"
        v = mean(left) if fitted else beta * (logsumexp([reward[k] / beta for k in rows]) - math.log(len(rows)))
        return mean([(one - v) ** 2 for one in left])

    return over_groups(x, value)


def over_two(x: dict, p: dict, loss) -> float:
    """The mean of loss(difference of rewards, β times the difference of log-ratios) over ordered pairs of a group."""
    ratio, reward = log_ratios(x), x["reward"]

    def value(rows: list[int]) -> float:
        two = [(i, j) for i in rows for j in rows if i != j]
        values = [loss(reward[i] - reward[j], p["beta"] * (ratio[i] - ratio[j])) for i, j in two]
        return mean(values) if values else 0.0

    return over_groups(x, value)


def rebel(x: dict, p: dict) -> float:
    return over_two(x, p, lambda r, z: (r - z) ** 2)


def soft_preference(x: dict, p: dict) -> float:
    return over_two(x, p, lambda r, z: sigmoid(r) * h(z) + sigmoid(-r) * h(-z))


def kl_to_target(x: dict, p: dict) -> float:
    ratio, b = log_ratios(x), p["beta"]
    return over_groups(x, lambda rows: divergence([ratio[k] for k in rows], [x["reward"][k] / b for k in rows]))


LOSSES = {
    "reward_regression": reward_regression,
    "rebel": rebel,
    "soft_preference": soft_preference,
    "kl_to_target": kl_to_target,
}
