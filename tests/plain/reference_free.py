"""Pairs compared by log π alone, or by a share of the reference."""

import math

from plain.arithmetic import h, mean, over_pairs
from plain.demonstrations import sft


def gamma_dpo(x: dict, p: dict) -> float:
    total = [sum(row) for row in x["logp"]]
    if p["gamma"]:
        total = [of - p["gamma"] * sum(row) for of, row in zip(total, x["ref_logp"], strict=True)]
    return over_pairs(x, lambda k, w, low: h(p["beta"] * (total[w] - total[low])))


def simpo(x: dict, p: dict) -> float:
    each = [mean(row) for row in x["logp"]]
    return over_pairs(x, lambda k, w, low: h(p["beta"] * (each[w] - each[low]) - p["gamma"]))


def alphapo(x: dict, p: dict) -> float:
    each = [(1 - math.exp(min(-p["alpha"] * mean(row), 80))) / p["alpha"] for row in x["logp"]]
    return over_pairs(x, lambda k, w, low: h(p["beta"] * (each[w] - each[low]) - p["gamma"]))


def cpo(x: dict, p: dict) -> float:
    return gamma_dpo(x, {**p, "gamma": 0.0}) + p["alpha"] * sft(x, {})


def orpo(x: dict, p: dict) -> float:
    each = [min(mean(row), -1e-7) for row in x["logp"]]
    odds = [value - math.log(-math.expm1(value)) for value in each]
    return p["beta"] * over_pairs(x, lambda k, w, low: h(odds[w] - odds[low])) + sft(x, {})


def slic(x: dict, p: dict) -> float:
    total = [sum(row) for row in x["logp"]]
    return over_pairs(x, lambda k, w, low: max(0.0, p["delta"] - total[w] + total[low]) - p["alpha"] * total[w])


LOSSES = {"gamma_dpo": gamma_dpo, "simpo": simpo, "alphapo": alphapo, "cpo": cpo, "orpo": orpo, "slic": slic}
