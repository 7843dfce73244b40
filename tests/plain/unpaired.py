"""Single completions judged good or bad."""

from plain.arithmetic import h, log_ratios, mean, over_labels, sigmoid


def kto(x: dict, p: dict) -> float:
    ratio, baseline = log_ratios(x), p.get("baseline", "batch")
    seen = mean([ratio[row] for row in x["mismatched"]]) if baseline == "batch" else x.get(f"kl_{baseline}", 0.0)
    z0 = max(0.0, seen)

    def value(row: int, good: bool) -> float:
        if good:
            return p.get("desirable_weight", 1.0) * sigmoid(-p["beta"] * (ratio[row] - z0))
        return p.get("undesirable_weight", 1.0) * sigmoid(p["beta"] * (ratio[row] - z0))

    return over_labels(x, value)


def bco(x: dict, p: dict) -> float:
    reward = [p["beta"] * ratio for ratio in log_ratios(x)]
    delta = mean([reward[row] for row in x["row"]]) if p.get("shift") == "batch" else x.get("delta", 0.0)
    return over_labels(x, lambda row, good: h(reward[row] - delta) if good else h(delta - reward[row]))


def apo_unpaired(x: dict, p: dict) -> float:
    ratio = log_ratios(x)
    return over_labels(x, lambda row, good: sigmoid((-1 if good else 1) * p["beta"] * ratio[row]))


LOSSES = {"kto": kto, "bco": bco, "apo_unpaired": apo_unpaired}
