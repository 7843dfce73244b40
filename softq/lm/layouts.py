"""Ways to run a forest through a transformer. They differ in speed and memory, never in the numbers.

A layout takes the transformer's body and a forest and returns one hidden state a node, [N, H].

    plain    every root-to-leaf path is a row, padded on the right, ordinary attention: what any library does
    padded   every tree is a row: shared prefixes once, padding to the longest tree
    packed   all trees in one row: shared prefixes once, no padding
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from softq.lm.attention import Sight, packed, padded
from softq.records import Tree

Layout = Callable[[nn.Module, Tree], Tensor]


def depths(tree: Tree) -> list[int]:
    """The depth of each node, its position in its own row."""
    depth: list[int] = []
    for parent in tree.parent.tolist():
        depth.append(depth[parent] + 1 if parent >= 0 else 0)
    return depth


def run_plain(body: nn.Module, tree: Tree) -> Tensor:
    """Rows are the paths to the leaves; a node that stands in several rows is read from the first."""
    parent = tree.parent.tolist()
    leaves = sorted(set(range(len(parent))) - set(parent))
    rows: list[list[int]] = []
    place: dict[int, tuple[int, int]] = {}
    for leaf in leaves:
        path, node = [], leaf
        while node >= 0:
            path.append(node)
            node = parent[node]
        rows.append(path[::-1])
        for depth, node in enumerate(rows[-1]):
            place.setdefault(node, (len(rows) - 1, depth))
    width = max(map(len, rows))
    device = _device(body)
    ids = torch.stack([_fill(tree.token[row], width) for row in rows]).to(device)
    mask = (torch.arange(width)[None] < torch.tensor([len(row) for row in rows])[:, None]).to(device)
    hidden = body(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
    index = torch.tensor([place[node][0] * width + place[node][1] for node in range(len(parent))], device=device)
    return hidden.flatten(0, 1).index_select(0, index)


def run_padded(body: nn.Module, tree: Tree) -> Tensor:
    """One row a tree, with a mask that shows each node its ancestors."""
    depth = torch.tensor(depths(tree))
    roots = (tree.parent < 0).nonzero()[:, 0].tolist()
    spans = list(zip(roots, [*roots[1:], len(depth)], strict=True))
    width = max(end - start for start, end in spans)
    ids, positions = (torch.stack([_fill(of[s:e], width) for s, e in spans]) for of in (tree.token, depth))
    hidden = seen_by(body, ids, positions, padded(tree, spans, _device(body)))
    return torch.cat([hidden[row, : e - s] for row, (s, e) in enumerate(spans)])


def run_packed(body: nn.Module, tree: Tree) -> Tensor:
    """All trees end to end in one row; attention runs tree by tree, so nobody sees a neighbour."""
    return seen_by(body, tree.token[None], torch.tensor(depths(tree))[None], packed(tree, _device(body)))[0]


def seen_by(body: nn.Module, ids: Tensor, positions: Tensor, sight: Sight) -> Tensor:
    """[R, L] ids at their positions, each seeing what `sight` shows it -> [R, L, H]."""
    device = _device(body)
    return body(
        input_ids=ids.to(device),
        position_ids=positions.to(device),
        attention_mask=_no_mask(device),
        tree=sight,
        use_cache=False,
    ).last_hidden_state


LAYOUTS: Mapping[str, Layout] = {"plain": run_plain, "padded": run_padded, "packed": run_packed}


def _device(body: nn.Module) -> torch.device:
    return next(body.parameters()).device


def _fill(values: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - len(values)))


def _no_mask(device: torch.device) -> Tensor:
    """A four-dimensional mask, which models hand on as it is; `tree` replaces it. Without one they would build their own."""
    return torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device)
