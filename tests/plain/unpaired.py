"""Single completions judged good or bad."""

from plain.arithmetic import log_ratios, mean, over_labels, sigmoid


def kto(x: dict, p: dict) -> float:
    ratio = log_ratios(x)
    z0 = max(0.0, mean([ratio[row] for row in x["mismatched"]]))

    def value(row: int, good: bool) -> float:
        if good:
            return p.get("desirable_weight", 1.0) * sigmoid(-p["beta"] * (ratio[row] - z0))
        return p.get("undesirable_weight", 1.0) * sigmoid(p["beta"] * (ratio[row] - z0))

    return over_labels(x, value)


LOSSES = {"kto": kto}
