"""MDPs small enough to enumerate: a token tree, every trajectory through it, and a language model that is a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from softq.records import Tokens, Tree

Prefix = tuple[int, ...]


@dataclass(frozen=True)
class TokenTree:
    """A token MDP: states are prompts and what was said so far, every token of the vocabulary is an action.

    An episode ends with the end token or at the horizon; both are terminal states of value 0. A state is numbered after
    its parent, so one pass backwards over the numbers visits children first.
    """

    prefixes: tuple[Prefix, ...]  # [S] the tokens of each state, prompt included
    depth: Tensor  # [S] int64; actions taken so far
    root: Tensor  # [S] int64; the number of the prompt it belongs to
    next: Tensor  # [S, V] int64; the state after an action, -1 if that ends the episode

    @property
    def vocabulary(self) -> int:
        """V, the number of actions of a state."""
        return self.next.shape[1]


def token_tree(prompts: Sequence[Prefix], vocabulary: int, horizon: int, end: int | None = None) -> TokenTree:
    """Every state that can be reached from the prompts in fewer than `horizon` actions; `end` ends an episode early."""
    layer = [(prompt, number) for number, prompt in enumerate(prompts)]
    prefixes, depths, roots = [], [], []
    for depth in range(horizon):
        prefixes += [prefix for prefix, _ in layer]
        roots += [number for _, number in layer]
        depths += [depth] * len(layer)
        layer = [((*p, a), number) for p, number in layer for a in range(vocabulary) if a != end]
    rows = {prefix: s for s, prefix in enumerate(prefixes)}
    if len(rows) < len(prefixes):
        raise ValueError("two prompts lead to one state: a prompt must not continue another")
    after = [[rows.get((*p, a), -1) if a != end else -1 for a in range(vocabulary)] for p in prefixes]
    return TokenTree(tuple(prefixes), torch.tensor(depths), torch.tensor(roots), torch.tensor(after))


def every_trajectory(tree: TokenTree) -> Tokens:
    """All complete episodes, one a row, in the order of their tokens; `prompt` is the number of the prompt."""
    rows = []
    for s, prefix in enumerate(tree.prefixes):
        ends = [a for a in range(tree.vocabulary) if tree.next[s, a] < 0]
        rows += [((*prefix, a), int(tree.depth[s]) + 1, int(tree.root[s])) for a in ends]
    rows.sort(key=lambda row: (row[2], row[0]))
    width = max(len(ids) for ids, _, _ in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    action = torch.zeros(len(rows), width - 1, dtype=torch.bool)
    for b, (tokens, taken, _) in enumerate(rows):
        ids[b, : len(tokens)] = torch.tensor(tokens)
        action[b, len(tokens) - 1 - taken : len(tokens) - 1] = True
    prompt = torch.tensor([number for _, _, number in rows])
    return Tokens(ids, action, torch.ones(len(rows), dtype=torch.bool), prompt)


def along(tree: TokenTree, table: Tensor, tokens: Tokens) -> Tensor:
    """The entries of a table [S, V] that the trajectories [B, T] pass through; 0 outside action."""
    rows = {prefix: s for s, prefix in enumerate(tree.prefixes)}
    values = torch.zeros(tokens.action.shape, dtype=table.dtype)
    for b, t in tokens.action.nonzero().tolist():
        prefix = tuple(tokens.ids[b, : t + 1].tolist())
        values[b, t] = table[rows[prefix], tokens.ids[b, t + 1]]
    return values


class TabularLM(nn.Module):
    """A language model that is a table of logits [S, V], one row a state of a token tree.

    It answers the two questions of any language model, `states` and `logits`, so everything that scores, trains or
    searches a transformer runs on it unchanged. A state of it is its row of logits.
    """

    def __init__(self, tree: TokenTree, logits: Tensor) -> None:
        super().__init__()
        self.rows: Mapping[Prefix, int] = {prefix: s for s, prefix in enumerate(tree.prefixes)}
        self.table = nn.Parameter(logits.clone())
        self.vocabulary = tree.vocabulary

    def states(self, tree: Tree) -> Tensor:
        """[N] nodes -> [N, V] rows of the table. A state inside a prompt has no row: 0, and nobody acts there."""
        prefixes: list[Prefix] = []
        for token, parent in zip(tree.token.tolist(), tree.parent.tolist(), strict=True):
            prefixes.append((*(prefixes[parent] if parent >= 0 else ()), token))
        row = torch.tensor([self.rows.get(prefix, -1) for prefix in prefixes], device=self.table.device)
        return torch.where((row >= 0)[:, None], self.table[row.clamp(min=0)], 0.0)

    def logits(self, states: Tensor) -> Tensor:
        """[n, V] -> [n, V]: the rows themselves."""
        return states
