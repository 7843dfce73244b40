"""Pairs compared by their margin."""

import math

from plain.arithmetic import h, log_ratios, over_pairs, sigmoid


def dpo(x: dict, p: dict) -> float:
    ratio = log_ratios(x)

    def value(k: int, w: int, low: int) -> float:
        z = p["beta"] * (ratio[w] - ratio[low]) - x.get("margin", [0.0] * (k + 1))[k]
        flipped = 1 - x["label_probability"][k] if "label_probability" in x else p.get("label_smoothing", 0.0)
        return (1 - flipped) * h(z) + flipped * h(-z)

    return over_pairs(x, value)


def ipo(x: dict, p: dict) -> float:
    ratio = log_ratios(x)
    size = [len(row) if p.get("length_average", True) else 1 for row in x["logp"]]
    return over_pairs(x, lambda k, w, low: (ratio[w] / size[w] - ratio[low] / size[low] - 1 / (2 * p["beta"])) ** 2)


def robust(x: dict, p: dict) -> float:
    ratio, eps = log_ratios(x), p["label_smoothing"]

    def value(k: int, w: int, low: int) -> float:
        z = p["beta"] * (ratio[w] - ratio[low])
        return ((1 - eps) * h(z) - eps * h(-z)) / (1 - 2 * eps)

    return over_pairs(x, value)


def hinge(x: dict, p: dict) -> float:
    ratio = log_ratios(x)
    return over_pairs(x, lambda k, w, low: max(0.0, 1 - p["beta"] * (ratio[w] - ratio[low])))


def exo(x: dict, p: dict) -> float:
    ratio, eps = log_ratios(x), p["label_smoothing"]

    def value(k: int, w: int, low: int) -> float:
        z = p["beta"] * (ratio[w] - ratio[low])
        return sigmoid(z) * (-h(z) - math.log(1 - eps)) + sigmoid(-z) * (-h(-z) - math.log(eps))

    return over_pairs(x, value)


def discopop(x: dict, p: dict) -> float:
    ratio = log_ratios(x)

    def value(k: int, w: int, low: int) -> float:
        u = p["beta"] * (ratio[w] - ratio[low])
        return sigmoid(-u / p["tau"]) * h(u) + math.exp(-h(u / p["tau"]) - u)

    return over_pairs(x, value)


LOSSES = {"dpo": dpo, "ipo": ipo, "robust": robust, "hinge": hinge, "exo": exo, "discopop": discopop}
