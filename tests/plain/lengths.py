"""Pairs whose completions differ in length."""

from plain.arithmetic import h, log_ratios, over_pairs


def dpo_norm(x: dict, p: dict) -> float:
    each = [ratio / len(row) for ratio, row in zip(log_ratios(x), x["logp"], strict=True)]
    return over_pairs(x, lambda k, w, low: h(p["beta"] * (each[w] - each[low])))


def rdpo(x: dict, p: dict) -> float:
    ratio, size = log_ratios(x), [len(row) for row in x["logp"]]
    return over_pairs(x, lambda k, w, low: h(p["beta"] * (ratio[w] - ratio[low]) + p["alpha"] * (size[w] - size[low])))


def ld_dpo(x: dict, p: dict) -> float:
    def cut(row: int, at: int) -> float:
        each = [a - b for a, b in zip(x["logp"][row], x["ref_logp"][row], strict=True)]
        return sum(each[:at]) + p["alpha"] * sum(each[at:])

    def value(k: int, w: int, low: int) -> float:
        shorter = min(len(x["logp"][w]), len(x["logp"][low]))
        return h(p["beta"] * (cut(w, shorter) - cut(low, shorter)))

    return over_pairs(x, value)


LOSSES = {"dpo_norm": dpo_norm, "rdpo": rdpo, "ld_dpo": ld_dpo}
