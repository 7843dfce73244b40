"""Pairs compared as two distributions."""

from plain.arithmetic import h, log_ratios, mean


def aot(x: dict, p: dict) -> float:
    pairs = list(zip(x["chosen"], x["rejected"], strict=True))
    policy, reference = (sorted(sum(x[of][w]) - sum(x[of][low]) for w, low in pairs) for of in ("logp", "ref_logp"))
    flipped = p.get("label_smoothing", 0.0)
    z = [p["beta"] * (a - b) for a, b in zip(policy, reference, strict=True)]
    return mean([(1 - flipped) * h(d) + flipped * h(-d) for d in z])


def aot_unpaired(x: dict, p: dict) -> float:
    ratio = log_ratios(x)
    better, worse = (sorted(ratio[row] for row in x[side]) for side in ("chosen", "rejected"))
    flipped = p.get("label_smoothing", 0.0)
    z = [p["beta"] * (a - b) for a, b in zip(better, worse, strict=True)]
    return mean([(1 - flipped) * h(d) + flipped * h(-d) for d in z])


LOSSES = {"aot": aot, "aot_unpaired": aot_unpaired}
