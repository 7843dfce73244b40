"""What a search thought of, as plain data to draw: the tree behind each prompt."""

from collections.abc import Sequence

import torch
from torch import Tensor

from softq.inspection.pieces import Pieces
from softq.inspection.tree_page import Explored, Given
from softq.searching.full import full
from softq.searching.opened import Opened
from softq.searching.run import Found
from softq.searching.words import decoder

MOST = 4000  # nodes of a tree that are drawn
OWN = ("logp", "ref_logp")
"""Columns that are scored anew, in full: what a decoder wrote may be of a mixture of models, or missing."""

NATS = ("value", "guess")
"""Columns of a tree search, which searches at β = 1; of any other decoder a value is in reward."""

INNER = ("reward", "first", "children", "left", "ended")
"""Columns that a decoder keeps for itself, or that the page makes of the full scores."""


def explored(of: Opened, found: Found) -> Explored:
    """The tree of one prompt: all answers, and where the rest is too much, what was visited, or thought of first."""
    forest = found.forest
    behind = (forest.prompt == found.member).nonzero()[:, 0]
    behind = behind[behind > forest.last[-1]]
    nodes = _kept(found, behind)
    place = {node: n for n, node in enumerate(nodes.tolist())}
    parent = [place.get(above, -1) for above in forest.parent[nodes].tolist()]
    token = forest.token[nodes].tolist()
    nats = (of.beta or 1.0) if "visits" in forest.columns else 1.0
    columns = {
        name: (forest.column(name)[nodes] * (nats if name in NATS else 1.0)).tolist()
        for name in forest.columns
        if name not in OWN + INNER
    }
    answers = [
        Given(place[answer.node], _text(row["completion"]), answer.score, answer.ended, row["logp"], row["reward"])
        for answer, row in zip(found.answers, found.rows, strict=True)
    ]
    return Explored(
        found.prompt.where,
        _text(found.prompt.text),
        parent,
        _pieces(of, int(found.prompt.ids[-1]), parent, token),
        {**_scored(of, found.prompt.ids, parent, token), **columns},
        answers,
        len(behind),
        found.rows[0]["evaluations"] if found.rows else 0.0,
        found.rows[0]["seconds"] if found.rows else 0.0,
    )


def _kept(found: Found, behind: Tensor) -> Tensor:
    """At most MOST nodes, and those of answers, in order: visited ones before the others, where visits are counted."""
    forest = found.forest
    visited = forest.column("visits")[behind] > 0
    some = torch.cat([behind[visited], behind[~visited]])[:MOST]
    ends = torch.tensor([answer.node for answer in found.answers], dtype=torch.int64)
    return forest.above(torch.cat([some, ends]))


def _text(text: object) -> str:
    """A text, or what messages say, one a line."""
    if isinstance(text, str):
        return text
    return "\n".join(str(message.get("content") or "") for message in text)  # pyright: ignore[reportGeneralTypeIssues]


def _paths(parent: Sequence[int]) -> list[list[int]]:
    """From below the prompt to each leaf: the nodes."""
    leaves = sorted({*range(len(parent))} - {*parent})
    paths = []
    for leaf in leaves:
        path = [leaf]
        while parent[path[-1]] >= 0:
            path.append(parent[path[-1]])
        paths.append(path[::-1])
    return paths


def _scored(of: Opened, prompt: Tensor, parent: Sequence[int], token: Sequence[int]) -> dict[str, list[float]]:
    """The policy's log π of each node, and the reference's where there is one."""
    found = {name: [torch.nan] * len(parent) for name in OWN}
    paths = _paths(parent)
    scored = full(of.loaded, [prompt], [(0, [token[node] for node in path]) for path in paths])
    for path, values in zip(paths, scored, strict=True):
        for name, column in zip(OWN, values, strict=True):
            for node, value in zip(path, [] if column is None else column.tolist(), strict=column is not None):
                found[name][node] = value
    return {name: column for name, column in found.items() if name == "logp" or "ref" in of.loaded.models}


def _pieces(of: Opened, before: int, parent: Sequence[int], token: Sequence[int]) -> list[str]:
    pieces = Pieces(decoder(of.loaded.tokenizer))
    found = [""] * len(parent)
    for path in _paths(parent):
        for node, piece in zip(path, pieces.of(before, [token[node] for node in path]), strict=True):
            found[node] = piece
    return found
