"""Pairs whose sides are each held to a point of their own."""

from plain.arithmetic import h, log_ratios, over_pairs, sigmoid


def nca(x: dict, p: dict) -> float:
    s = [p["beta"] * ratio for ratio in log_ratios(x)]
    return over_pairs(x, lambda k, w, low: h(s[w]) + 0.5 * h(-s[w]) + 0.5 * h(-s[low]))


def bco_pair(x: dict, p: dict) -> float:
    s = [p["beta"] * ratio for ratio in log_ratios(x)]
    return over_pairs(x, lambda k, w, low: h(s[w]) + h(-s[low]))


def sppo_hard(x: dict, p: dict) -> float:
    ratio, target = log_ratios(x), 1 / (2 * p["beta"])
    return over_pairs(x, lambda k, w, low: (ratio[w] - target) ** 2 + (ratio[low] + target) ** 2)


def apo_zero(x: dict, p: dict) -> float:
    s = [p["beta"] * ratio for ratio in log_ratios(x)]
    return over_pairs(x, lambda k, w, low: sigmoid(-s[w]) + sigmoid(s[low]))


def apo_down(x: dict, p: dict) -> float:
    s = [p["beta"] * ratio for ratio in log_ratios(x)]
    return over_pairs(x, lambda k, w, low: sigmoid(s[w]) + sigmoid(s[low] - s[w]))


LOSSES = {
    "nca": nca,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
}
