"""The losses of the conformance vectors in plain Python, formula by formula: no torch, no softq, an independent text."""

import math


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    each = [math.exp(value - top) for value in values]
    return [value / sum(each) for value in each]


def logsumexp(values: list[float]) -> float:
    return max(values) + math.log(sum(math.exp(value - max(values)) for value in values))


def h(x: float) -> float:
    return max(-x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def taken(inputs: dict, side: str) -> list[list[float]]:
    """log π of each action, from logits."""
    return [
        [state[a] - logsumexp(state) for a, state in zip(tokens, states, strict=True)]
        for tokens, states in zip(inputs["tokens"], inputs[side], strict=True)
    ]


def pairs_loss(entry: dict, x: dict, p: dict, ratio: list[float]) -> float:
    """Losses of pairs: dpo, ipo, tdpo2, wpo."""
    weight = x.get("weight", [1.0] * len(x["chosen"]))
    losses = []
    for k, (w, low) in enumerate(zip(x["chosen"], x["rejected"], strict=True)):
        m = ratio[w] - ratio[low]
        if entry["method"] == "ipo":
            if p.get("length_average", True):
                m = ratio[w] / len(x["logp"][w]) - ratio[low] / len(x["logp"][low])
            losses.append((m - 1 / (2 * p["beta"])) ** 2)
        elif entry["method"] == "tdpo2":
            divergence = [
                sum(
                    q * (math.log(q) - (b - logsumexp(pi))) if q else 0.0
                    for pi, ref in zip(x["logits"][row], x["ref_logits"][row], strict=True)
                    for q, b in zip(softmax(ref), pi, strict=True)
                )
                for row in (w, low)
            ]
            losses.append(h(p["beta"] * (m - p["alpha"] * (divergence[1] - divergence[0]))))
        else:
            z = p["beta"] * m - x.get("margin", [0.0] * (k + 1))[k]
            flipped = p.get("label_smoothing", 0.0)
            if "label_probability" in x:
                flipped = 1 - x["label_probability"][k]
            value = (1 - flipped) * h(z) + flipped * h(-z)
            if entry["method"] == "wpo":
                typical = [
                    mean(
                        [
                            state[a] - logsumexp(state) - math.log(sum(v * v for v in softmax(state)))
                            for a, state in zip(x["tokens"][row], x["logits"][row], strict=True)
                        ]
                    )
                    for row in (w, low)
                ]
                value *= min(1.0, math.exp(sum(typical)))
            losses.append(value)
    return sum(a * b for a, b in zip(weight, losses, strict=True)) / sum(weight)


def groups_loss(x: dict, p: dict, ratio: list[float]) -> float:
    losses = []
    for prompt in sorted(set(x["prompt"])):
        rows = [row for row, of in enumerate(x["prompt"]) if of == prompt]
        target = softmax([x["reward"][row] / p["alpha"] for row in rows])
        scores = [p["beta"] * ratio[row] for row in rows]
        losses.append(-sum(t * (s - logsumexp(scores)) for t, s in zip(target, scores, strict=True)))
    return mean(losses)


def rollouts_loss(x: dict, p: dict) -> float:
    losses = []
    for row, of in enumerate(x["prompt"]):
        rewards = [x["reward"][other] for other, prompt in enumerate(x["prompt"]) if prompt == of]
        spread = math.sqrt(sum((r - mean(rewards)) ** 2 for r in rewards) / max(len(rewards) - 1, 1))
        a = (x["reward"][row] - mean(rewards)) / (spread + 1e-4)
        values = []
        for t, logp in enumerate(x["logp"][row]):
            rho = math.exp(logp - x["old_logp"][row][t])
            value = -min(rho * a, max(1 - p["epsilon"], min(1 + p["epsilon"], rho)) * a)
            if p["beta"]:
                d = logp - x["ref_logp"][row][t]
                value += p["beta"] * (math.exp(-d) - 1 + d)
            values.append(value)
        losses.append(mean(values))
    return mean(losses)


def plain(entry: dict) -> float:
    """The loss of a step from the cards' formulas, without softq and without torch."""
    x, p = dict(entry["inputs"]), entry["parameters"]
    if "logits" in x:
        x |= {"logp": taken(x, "logits"), "ref_logp": taken(x, "ref_logits")}
    if entry["method"] == "dpo+sft":
        parts = [plain({**entry, "method": name, "parameters": p[name]}) for name in ("dpo", "sft")]
        return sum(weight * part for weight, part in zip(p["weights"], parts, strict=True))
    if entry["method"] == "sft":
        shown = sorted(set(x["chosen"])) if "chosen" in x else range(len(x["logp"]))
        return -mean([logp for row in shown for logp in x["logp"][row]])
    if entry["method"] == "grpo":
        return rollouts_loss(x, p)
    ratio = [sum(a) - sum(b) for a, b in zip(x["logp"], x["ref_logp"], strict=True)]
    if entry["method"] == "infonca":
        return groups_loss(x, p, ratio)
    if entry["method"] == "kto":
        z0 = max(0.0, mean([ratio[row] for row in x["mismatched"]]))
        each = [
            p.get("desirable_weight", 1.0) * sigmoid(-p["beta"] * (ratio[row] - z0))
            if good
            else p.get("undesirable_weight", 1.0) * sigmoid(p["beta"] * (ratio[row] - z0))
            for row, good in zip(x["row"], x["good"], strict=True)
        ]
        return mean(each)
    if entry["method"] == "aot":
        pairs = list(zip(x["chosen"], x["rejected"], strict=True))
        policy, reference = (sorted(sum(x[of][w]) - sum(x[of][low]) for w, low in pairs) for of in ("logp", "ref_logp"))
        flipped = p.get("label_smoothing", 0.0)
        z = [p["beta"] * (a - b) for a, b in zip(policy, reference, strict=True)]
        return mean([(1 - flipped) * h(d) + flipped * h(-d) for d in z])
    return pairs_loss(entry, x, p, ratio)
