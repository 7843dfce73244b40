"""Pairs compared by their margin."""

from plain.arithmetic import h, log_ratios, over_pairs


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


LOSSES = {"dpo": dpo, "ipo": ipo}
