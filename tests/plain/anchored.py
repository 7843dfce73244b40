"""DPO with an anchor for the chosen side."""

from plain.arithmetic import h, log_ratios, mean, over_pairs


def dpop(x: dict, p: dict) -> float:
    ratio = log_ratios(x)

    def value(k: int, w: int, low: int) -> float:
        return h(p["beta"] * (ratio[w] - ratio[low] - p["penalty"] * max(0.0, -ratio[w])))

    return over_pairs(x, value)


def rpo(x: dict, p: dict) -> float:
    ratio = log_ratios(x)
    return over_pairs(x, lambda k, w, low: h(p["beta"] * (ratio[w] - ratio[low])) - p["alpha"] * mean(x["logp"][w]))


def dpo_anchor(x: dict, p: dict) -> float:
    ratio = log_ratios(x)
    return over_pairs(
        x, lambda k, w, low: h(p["beta"] * (ratio[w] - ratio[low])) + h(p["beta"] * ratio[w] - p["delta"])
    )


LOSSES = {"dpop": dpop, "rpo": rpo, "dpo_anchor": dpo_anchor}
