"""Pairs whose loss reads more of a state than the token taken."""

import math

from plain.arithmetic import h, log_ratios, logsumexp, mean, over_pairs, sigmoid, softmax


def tdpo1(x: dict, p: dict) -> float:
    ratio = log_ratios(x)

    def value(k: int, w: int, low: int) -> float:
        return h(p["beta"] * ((ratio[w] - ratio[low]) - (divergence(x, low) - divergence(x, w))))

    return over_pairs(x, value)


def tdpo2(x: dict, p: dict) -> float:
    ratio = log_ratios(x)

    def value(k: int, w: int, low: int) -> float:
        return h(p["beta"] * (ratio[w] - ratio[low] - p["alpha"] * (divergence(x, low) - divergence(x, w))))

    return over_pairs(x, value)


def divergence(x: dict, row: int) -> float:
    """Σ_t KL(π_ref‖π)."""
    return sum(
        q * (math.log(q) - (b - logsumexp(pi))) if q else 0.0
        for pi, ref in zip(x["logits"][row], x["ref_logits"][row], strict=True)
        for q, b in zip(softmax(ref), pi, strict=True)
    )


def wpo(x: dict, p: dict) -> float:
    ratio = log_ratios(x)

    def typical(row: int) -> float:
        of = zip(x["tokens"][row], x["logits"][row], strict=True)
        return mean([s[a] - logsumexp(s) - math.log(sum(v * v for v in softmax(s))) for a, s in of])

    def value(k: int, w: int, low: int) -> float:
        return min(1.0, math.exp(typical(w) + typical(low))) * h(p["beta"] * (ratio[w] - ratio[low]))

    return over_pairs(x, value)


def bmc(x: dict, p: dict) -> float:
    def score(row: int) -> float:
        total = 0.0
        for differs, pi, ref in zip(x["diff"][row], x["logp"][row], x["ref_logp"][row], strict=True):
            times = 1 + (min(math.exp(min(-pi, 700.0)), p["delta"]) if differs else 0.0)
            total += times * (pi - ref)
        return total

    return over_pairs(x, lambda k, w, low: h(p["beta"] * (score(w) - score(low))))


def cringe(x: dict, p: dict) -> float:
    def token(state: list[float], taken: int) -> float:
        others = sorted((v for a, v in enumerate(state) if a != taken), reverse=True)[: p["k"]]
        return sum(q * h(v - state[taken]) for q, v in zip(softmax(others), others, strict=True))

    def value(k: int, w: int, low: int) -> float:
        total_w, total_l = sum(x["logp"][w]), sum(x["logp"][low])
        gate = sigmoid((p["bar"] - (total_w - total_l)) / p["tau"])
        against = [token(s, a) for s, a in zip(x["logits"][low], x["tokens"][low], strict=True)]
        return gate * (-total_w + p["alpha"] * sum(against))

    return over_pairs(x, value)


LOSSES = {"tdpo1": tdpo1, "tdpo2": tdpo2, "wpo": wpo, "bmc": bmc, "cringe": cringe}
