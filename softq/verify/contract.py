"""The contract list: every method with the settings the lab runs it at, and what is stated of it beside its fixed point.

A new method adds one line and one family of vectors to the file of its shape in verify/lines, and a method without one fails the
tests. `Method.fixed_point` states where training ends; a line whose method has none says why.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from softq.verify.inputs import Family
from softq.verify.line import Line
from softq.verify.lines import (
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
    sums,
    token_level,
    transport,
    unpaired,
    values,
)

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
    sums,
    policy_gradient,
)
CONTRACT: Mapping[str, Line] = {
    name: line._replace(name=name) for shape in SHAPES for name, line in shape.LINES.items()
}
FAMILIES: tuple[Family, ...] = tuple(family for shape in SHAPES for family in shape.FAMILIES)


def steps() -> Iterator[dict[str, Any]]:
    """The entries of conformance/vectors.json that are one step of training, without what is expected of them."""
    for family in FAMILIES:
        for name, inputs in family.steps.items():
            fixture = {"golden": list(family.golden[name])} if name in family.golden else {}
            yield {
                "name": f"{family.name}/{name}",
                "method": family.method,
                "formula": family.formula,
                "parameters": {**family.parameters, **family.at.get(name, {})},
                "layout": family.layout,
                **fixture,
                "inputs": dict(inputs),
            }
