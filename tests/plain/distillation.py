"""Completions on which the policy is drawn to a teacher."""

from plain.arithmetic import logsumexp, mean, softmax


def aligndistil(x: dict, p: dict) -> float:
    def token(pi: list[float], d: list[float], r: list[float]) -> float:
        apart = sum(abs(a - b) for a, b in zip(softmax(d), softmax(r), strict=True)) / 2
        alpha = p["ratio"] * apart + p["epsilon"]
        z = [a + alpha * (a - b) for a, b in zip(d, r, strict=True)]
        gaps = [(q, (a - logsumexp(pi)) - (b - logsumexp(z))) for q, a, b in zip(softmax(pi), pi, z, strict=True)]
        return p["beta"] / alpha * sum(q * gap for q, gap in gaps if q)

    states = zip(x["logits"], x["dpo_logits"], x["reverse_logits"], strict=True)
    return mean([mean([token(*each) for each in zip(*row, strict=True)]) for row in states])


LOSSES = {"aligndistil": aligndistil}
