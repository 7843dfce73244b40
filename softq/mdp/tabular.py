"""MDPs small enough to enumerate: a token tree, every trajectory through it, and a language model that is a table.

A table [S, V] holds one number for each action of each state: a reward, a Q, a log-probability. Trajectories [B] are rows of
`every_trajectory`; a distribution over them is their log-probabilities [B], normalised within each prompt.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from softq import masked
from softq.records import Tokens, Tree, last_action

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
    if not prompts or not all(prompts) or horizon < 1:
        raise ValueError("a tree needs prompts of at least one token, and a horizon of at least 1")
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
    inner = [
        depth + 1 < horizon for depth in depths
    ]  # what follows the others may be another prompt, and is not theirs
    after = [
        [rows[*p, a] if more and a != end else -1 for a in range(vocabulary)]
        for p, more in zip(prefixes, inner, strict=True)
    ]
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


def completions(tokens: Tokens) -> Tensor:
    """[B]: a number for each row, the same for rows of one prompt number with the same ids up to the last action."""
    seen = tokens.action.flip(-1).cumsum(-1).flip(-1) > 0
    ids = torch.cat([tokens.prompt[:, None], tokens.ids[:, :1], tokens.ids[:, 1:].masked_fill(~seen, -1)], -1)
    return torch.unique(ids, dim=0, return_inverse=True)[1]


def random_table(tree: TokenTree, seed: int, scale: float = 1.0) -> Tensor:
    """[S, V] float64 normal numbers, always the same for a seed: a reward, or logits of a policy."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(len(tree.prefixes), tree.vocabulary, generator=generator, dtype=torch.float64)


def with_mass(logp: Tensor, action: int, mass: float) -> Tensor:
    """A policy [S, V] in nats that gives one action this probability at every state, the others in proportion.

    1e-30 makes a reference that hardly ever takes it; 0 cuts off everything that follows it.
    """
    rest = logp.clone()
    rest[:, action] = -torch.inf
    rest = rest.log_softmax(-1) + math.log1p(-mass)
    rest[:, action] = math.log(mass) if mass else -torch.inf
    return rest


def at_the_end(tree: TokenTree, tokens: Tokens, values: Tensor) -> Tensor:
    """A reward table [S, V] that is 0 but for the last action of each trajectory, where it is its value [B]."""
    table = torch.zeros(tree.next.shape, dtype=values.dtype)
    rows = {prefix: s for s, prefix in enumerate(tree.prefixes)}
    for b in range(len(values)):
        last = last_action(tokens.action[b : b + 1])
        table[rows[tuple(tokens.ids[b, : last + 1].tolist())], tokens.ids[b, last + 1]] = values[b]
    return table


def along(tree: TokenTree, table: Tensor, tokens: Tokens) -> Tensor:
    """The entries of a table [S, V] that the trajectories [B, T] pass through; 0 outside action."""
    rows = {prefix: s for s, prefix in enumerate(tree.prefixes)}
    values = torch.zeros(tokens.action.shape, dtype=table.dtype)
    for b, t in tokens.action.nonzero().tolist():
        prefix = tuple(tokens.ids[b, : t + 1].tolist())
        values[b, t] = table[rows[prefix], tokens.ids[b, t + 1]]
    return values


def occupancy(tree: TokenTree, logp: Tensor) -> Tensor:
    """[S]: how likely a policy [S, V] in nats comes to each state, from its prompt."""
    visits = (tree.depth == 0).to(logp.dtype)
    for s in range(len(tree.prefixes)):
        inner = tree.next[s] >= 0
        visits = visits.index_add(0, tree.next[s][inner], visits[s] * logp[s][inner].exp())
    return visits


def policy_of(tree: TokenTree, tokens: Tokens, logp: Tensor) -> Tensor:
    """The policy [S, V] in nats under which every trajectory [B] has a log-probability `logp` [B], up to a constant a prompt.

    The inverse of summing `along`: an action is as likely as all trajectories through it together. Uniform where none leads.
    Without gradient.
    """
    mass = torch.full(tree.next.shape, -torch.inf, dtype=logp.dtype)
    rows = {prefix: s for s, prefix in enumerate(tree.prefixes)}
    for b, t in tokens.action.nonzero().tolist():
        at = rows[tuple(tokens.ids[b, : t + 1].tolist())], int(tokens.ids[b, t + 1])
        mass[at] = torch.logaddexp(mass[at], logp[b])
    return torch.where(mass.isinf().all(-1, keepdim=True), 0.0, mass).log_softmax(-1)


def expected(logp: Tensor, values: Tensor, group: Tensor) -> Tensor:
    """[G]: the exact expectation of values [B] in each group, under log-probabilities [B]. What has no mass does not count.

    Of a function of pairs or larger draws from one group, with draws [N, K] of `every_draw`:
    expected(logp[draws].sum(-1), values, group[draws[:, 0]]), values [N].
    """
    weighted = masked.product(logp.exp(), values)
    return values.new_zeros(int(group.max()) + 1).index_add(0, group, weighted)


def every_pair(group: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers (i, j) [P] of all ordered pairs of two rows of one group [B]."""
    same = group[:, None] == group[None]
    first, second = (same & ~torch.eye(len(group), dtype=torch.bool)).nonzero(as_tuple=True)
    return first, second


def every_draw(group: Tensor, size: int) -> Tensor:
    """[N, size] row numbers: everything that `size` independent draws from one group [B] can be, in order."""
    members = [(group == g).nonzero()[:, 0].tolist() for g in group.unique().tolist()]
    return torch.tensor([draw for rows in members for draw in itertools.product(rows, repeat=size)])


def gradient(loss: Callable[[Tensor], Tensor], table: Tensor) -> Tensor:
    """The derivative of a scalar function of a table, of the table's shape, by autograd."""
    leaf = table.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


def difference(loss: Callable[[Tensor], Tensor], table: Tensor, step: float = 1e-5) -> Tensor:
    """The same derivative by central differences, entry by entry: an independent witness, good to about 1e-9 in float64."""
    slopes = torch.zeros_like(table).flatten()
    for n in range(table.numel()):
        sides = []
        for move in (step, -step):
            moved = table.detach().clone().flatten()
            moved[n] += move
            sides.append(loss(moved.view_as(table)).detach())
        slopes[n] = (sides[0] - sides[1]) / (2 * step)
    return slopes.view_as(table)


class TabularLM(nn.Module):
    """A language model that is a table of logits [S, V], one row a state of a token tree.

    It answers the two questions of any language model, `states` and `logits`, so everything that scores, trains or
    searches a transformer runs on it unchanged. A state of it is its row of logits.
    """

    def __init__(self, tree: TokenTree, logits: Tensor) -> None:
        super().__init__()
        self.tree = tree
        self.rows: Mapping[Prefix, int] = {prefix: s for s, prefix in enumerate(tree.prefixes)}
        self.table = nn.Parameter(logits.clone())
        self.vocabulary = tree.vocabulary

    def states(self, tree: Tree) -> Tensor:
        """[N] nodes -> [N, V] rows of the table. What is no state of the tree, as inside a prompt, has none: nan."""
        row = torch.tensor([self.rows.get(prefix, -1) for prefix in self._prefixes(tree)], device=self.table.device)
        return torch.where((row >= 0)[:, None], self.table[row.clamp(min=0)], torch.nan)

    def logits(self, states: Tensor) -> Tensor:
        """[n, V] -> [n, V]: the rows themselves."""
        return states

    def values(self, tree: Tree) -> Tensor:
        """[N] nodes -> [N]: read as a reward model, the entry of the action that led to each. Where none did it is nan."""
        prefixes = self._prefixes(tree)
        row = torch.tensor([self.rows.get(prefix[:-1], -1) for prefix in prefixes], device=self.table.device)
        token = tree.token.to(row.device).where(row >= 0, 0)  # a prompt's may be none of the vocabulary
        return torch.where(row >= 0, self.table[row.clamp(min=0), token], torch.nan)

    @staticmethod
    def _prefixes(tree: Tree) -> list[Prefix]:
        """The tokens up to each node."""
        prefixes: list[Prefix] = []
        for token, parent in zip(tree.token.tolist(), tree.parent.tolist(), strict=True):
            prefixes.append((*(prefixes[parent] if parent >= 0 else ()), token))
        return prefixes
