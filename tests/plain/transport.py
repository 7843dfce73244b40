"""Pairs compared as two distributions."""

from plain.arithmetic import h, mean


def aot(x: dict, p: dict) -> float:
    pairs = list(zip(x["chosen"], x["rejected"], strict=True))
    policy, reference = (sorted(sum(x[of][w]) - sum(x[of][low]) for w, low in pairs) for of in ("logp", "ref_logp"))
    flipped = p.get("label_smoothing", 0.0)
    z = [p["beta"] * (a - b) for a, b in zip(policy, reference, strict=True)]
    return mean([(1 - flipped) * h(d) + flipped * h(-d) for d in z])


LOSSES = {"aot": aot}
