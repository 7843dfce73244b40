"""What a search thought of, as a page: every token a node, what was answered marked, what was given up faded.

One HTML file that needs nothing else, under the report's own rules (see `inspection.standalone`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from softq.inspection import standalone
from softq.inspection.colour import HIGH, LOW
from softq.inspection.page import SHADES, shown
from softq.inspection.standalone import embedded, environment, scripted

SCRIPTS = ("write.js", "tree.js", "tree_view.js", "tree_tip.js")
DIGITS = 5  # behind the point, of a node's numbers


class Given(NamedTuple):
    """An answer that the search gave back."""

    node: int  # its last
    text: str
    score: float  # what it was ranked by
    ended: bool  # False: cut at the limit
    logp: float  # Σ log π, nats
    reward: float | None  # β Σ log π/π_ref; None without a reference


class Explored(NamedTuple):
    """The tree of one prompt. Nodes are numbered from 0, parents first; the prompt itself is -1."""

    where: str
    prompt: str
    parent: Sequence[int]  # [N]
    piece: Sequence[str]  # [N] what each token adds to the text
    columns: Mapping[str, Sequence[float]]  # [N] of each: logp, ref_logp in nats, score, visits, …; nan where not known
    answers: Sequence[Given]  # best first
    thought_of: int  # nodes that there were: more than N where the page shows a part
    evaluations: float
    seconds: float


def tree_page(
    trees: Sequence[Explored], *, policy: str, method: str, settings: Mapping[str, Any], beta: float | None
) -> str:
    """The page of some trees, one shown at a time. `beta` is reward per nat; None: rewards are in nats."""
    templates = environment()
    templates.filters["shown"] = shown
    colours = {"low": LOW, "high": HIGH, "shades": SHADES}
    style = "".join(templates.get_template(name).render(colours) for name in ("page.css", "tree.css"))
    script = scripted(SCRIPTS)
    data = {
        "beta": beta or 1.0,
        "unit": "nats" if beta is None else "reward",
        "shades": SHADES,
        "trees": [_plain(tree) for tree in trees],
    }
    return templates.get_template("tree.html").render(
        policy=policy,
        method=method,
        settings=", ".join(f"{name} {value}" for name, value in settings.items()),
        trees=trees,
        style=style,
        script=script,
        rules=standalone.policy(script, style),
        data=embedded(data),
    )


def _plain(tree: Explored) -> dict[str, Any]:
    """As the scripts read it: what is no number is null."""
    columns = {name: [_number(value) for value in values] for name, values in tree.columns.items()}
    answers = [{**each._asdict(), "score": _number(each.score)} for each in tree.answers]
    return {**tree._asdict(), "columns": columns, "answers": answers}


def _number(value: float) -> float | None:
    return round(float(value), DIGITS) if math.isfinite(value) else None
