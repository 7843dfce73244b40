"""Pairs compared by the derivative of an f-divergence."""

import math
from collections.abc import Callable

from plain.arithmetic import h, log_ratios, over_pairs


def compared(x: dict, beta: float, derivative: Callable[[float], float]) -> float:
    ratio = log_ratios(x)
    return over_pairs(x, lambda k, w, low: h(beta * (derivative(ratio[w]) - derivative(ratio[low]))))


def forward_kl_dpo(x: dict, p: dict) -> float:
    return compared(x, p["beta"], lambda ratio: -math.exp(min(-ratio, 80)))


def js_dpo(x: dict, p: dict) -> float:
    return compared(x, p["beta"], lambda ratio: -h(ratio))


def alpha_dpo(x: dict, p: dict) -> float:
    power = p["alpha"] - 1
    return compared(x, p["beta"], lambda ratio: math.exp(min(power * ratio, 80)) / power)


LOSSES = {"forward_kl_dpo": forward_kl_dpo, "js_dpo": js_dpo, "alpha_dpo": alpha_dpo}
