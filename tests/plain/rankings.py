"""Several completions of one prompt with a score each."""

from plain.arithmetic import log_ratios, logsumexp, over_groups, softmax


def infonca(x: dict, p: dict) -> float:
    ratio = log_ratios(x)

    def value(rows: list[int]) -> float:
        target = softmax([x["reward"][row] / p["alpha"] for row in rows])
        scores = [p["beta"] * ratio[row] for row in rows]
        return -sum(t * (s - logsumexp(scores)) for t, s in zip(target, scores, strict=True))

    return over_groups(x, value)


LOSSES = {"infonca": infonca}
