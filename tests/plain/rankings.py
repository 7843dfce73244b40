"""Several completions of one prompt with a score each."""

import math

from plain.arithmetic import h, log_ratios, logsumexp, mean, over_groups, softmax


def infonca(x: dict, p: dict) -> float:
    ratio = log_ratios(x)

    def value(rows: list[int]) -> float:
        target = softmax([x["reward"][row] / p["alpha"] for row in rows])
        scores = [p["beta"] * ratio[row] for row in rows]
        return -sum(t * (s - logsumexp(scores)) for t, s in zip(target, scores, strict=True))

    return over_groups(x, value)


def nca_k(x: dict, p: dict) -> float:
    ratio = log_ratios(x)

    def value(rows: list[int]) -> float:
        target = softmax([x["reward"][row] / p["alpha"] for row in rows])
        scores = [p["beta"] * ratio[row] for row in rows]
        return sum(t * h(s) for t, s in zip(target, scores, strict=True)) + mean([h(-s) for s in scores])

    return over_groups(x, value)


def divergence(scores: list[float], rewards: list[float]) -> float:
    """KL(softmax(scores) || softmax(rewards))."""
    low, high = logsumexp(rewards), logsumexp(scores)
    return sum(math.exp(s - high) * (s - high - r + low) for s, r in zip(scores, rewards, strict=True))


def exo_k(x: dict, p: dict) -> float:
    ratio, a, b = log_ratios(x), p["alpha"], p["beta"]
    return over_groups(x, lambda rows: divergence([b * ratio[k] for k in rows], [x["reward"][k] / a for k in rows]))


def plackett_luce(x: dict, p: dict) -> float:
    ratio, reward = log_ratios(x), x["reward"]

    def value(rows: list[int]) -> float:
        left = {k: [k] + [j for j in rows if reward[j] < reward[k]] for k in rows}
        return sum(logsumexp([p["beta"] * ratio[j] for j in left[k]]) - p["beta"] * ratio[k] for k in rows)

    return over_groups(x, value)


def compared(x: dict, p: dict, top: bool) -> float:
    ratio, reward = log_ratios(x), x["reward"]

    def value(rows: list[int]) -> float:
        best = max(reward[row] for row in rows)
        values = [
            h(p["beta"] * (ratio[i] - ratio[j]))
            for i in rows
            for j in rows
            if reward[i] > reward[j] and (not top or reward[i] == best)
        ]
        return mean(values) if values else 0.0

    return over_groups(x, value)


def sppo(x: dict, p: dict) -> float:
    return mean([(L - (chance - 0.5) / p["beta"]) ** 2 for L, chance in zip(log_ratios(x), x["reward"], strict=True)])


LOSSES = {
    "infonca": infonca,
    "nca_k": nca_k,
    "exo_k": exo_k,
    "plackett_luce": plackett_luce,
    "best_vs_rest": lambda x, p: compared(x, p, True),
    "all_pairs": lambda x, p: compared(x, p, False),
    "sppo": sppo,
}
