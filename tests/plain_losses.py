"""The loss of any entry of the conformance vectors, from formulas in plain Python (tests/plain)."""

from plain import (
    anchored,
    demonstrations,
    distillation,
    divergences,
    lengths,
    margins,
    policy_gradient,
    rankings,
    reference_free,
    regression,
    reward_model,
    sides,
    token_level,
    transport,
    unpaired,
    values,
)
from plain.arithmetic import taken

SHAPES = (
    margins,
    divergences,
    lengths,
    sides,
    anchored,
    reference_free,
    token_level,
    transport,
    unpaired,
    rankings,
    regression,
    distillation,
    demonstrations,
    reward_model,
    values,
    policy_gradient,
)
LOSSES = {name: loss for shape in SHAPES for name, loss in shape.LOSSES.items()}


def plain(entry: dict) -> float:
    """The loss of a step from the cards' formulas, without softq and without torch."""
    x, p = dict(entry["inputs"]), entry["parameters"]
    if "logits" in x:
        x |= {"logp": taken(x, "logits")}
    if "ref_logits" in x:
        x |= {"ref_logp": taken(x, "ref_logits")}
    names = entry["method"].split("+")
    if len(names) == 1:
        return LOSSES[names[0]](x, p)
    parts = [LOSSES[name](x, p[name]) for name in names]
    return sum(weight * part for weight, part in zip(p["weights"], parts, strict=True))
