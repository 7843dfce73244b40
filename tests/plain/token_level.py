"""Pairs whose loss reads more of a state than the token taken."""

import math

from plain.arithmetic import h, log_ratios, logsumexp, mean, over_pairs, softmax


def tdpo2(x: dict, p: dict) -> float:
    ratio = log_ratios(x)

    def divergence(row: int) -> float:
        return sum(
            q * (math.log(q) - (b - logsumexp(pi))) if q else 0.0
            for pi, ref in zip(x["logits"][row], x["ref_logits"][row], strict=True)
            for q, b in zip(softmax(ref), pi, strict=True)
        )

    def value(k: int, w: int, low: int) -> float:
        return h(p["beta"] * (ratio[w] - ratio[low] - p["alpha"] * (divergence(low) - divergence(w))))

    return over_pairs(x, value)


def wpo(x: dict, p: dict) -> float:
    ratio = log_ratios(x)

    def typical(row: int) -> float:
        of = zip(x["tokens"][row], x["logits"][row], strict=True)
        return mean([s[a] - logsumexp(s) - math.log(sum(v * v for v in softmax(s))) for a, s in of])

    def value(k: int, w: int, low: int) -> float:
        return min(1.0, math.exp(typical(w) + typical(low))) * h(p["beta"] * (ratio[w] - ratio[low]))

    return over_pairs(x, value)


LOSSES = {"tdpo2": tdpo2, "wpo": wpo}
