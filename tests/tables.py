"""Batches on tables for the tests: rows that differ in prompt, length and end, in float64."""

import torch
from torch import Tensor

from softq.lm.score import Models
from softq.mdp.tabular import TabularLM, TokenTree, every_trajectory, token_tree
from softq.records import Batch, Labels, Method, Pairs, Tokens

TREE = token_tree([(0, 1), (2,), (1, 1, 0)], vocabulary=4, horizon=3, end=3)


def random_logits(tree: TokenTree, seed: int, scale: float = 1.0) -> Tensor:
    """[S, V] float64."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(len(tree.prefixes), tree.vocabulary, generator=generator, dtype=torch.float64)


def models(tree: TokenTree = TREE, seed: int = 0) -> Models:
    """A random policy and a random reference on a tree; the reference is frozen."""
    reference = TabularLM(tree, random_logits(tree, seed + 1)).requires_grad_(False)
    return Models({"policy": TabularLM(tree, random_logits(tree, seed)), "ref": reference})


def rows(which: list[int], prompt: list[int] | None = None, tree: TokenTree = TREE) -> Tokens:
    """Some trajectories of a tree, with data records of one's own choice."""
    every = every_trajectory(tree)
    index = torch.tensor(which)
    return Tokens(
        every.ids[index],
        every.action[index],
        every.ended[index],
        every.prompt[index] if prompt is None else torch.tensor(prompt),
    )


def batch_for(method: Method) -> Batch:
    """Four records on three prompts with completions of one to three tokens, in the form the method takes."""
    every = every_trajectory(TREE)
    by_prompt = [(every.prompt == p).nonzero()[:, 0].tolist() for p in range(3)]
    lengths = every.action.sum(-1)
    short = [next(r for r in rows if lengths[r] == 1) for rows in by_prompt]
    middle = [[r for r in rows if lengths[r] == 2] for rows in by_prompt]
    long = [[r for r in rows if lengths[r] == 3] for rows in by_prompt]
    pick = [short[0], long[0][5], middle[1][1], long[1][20], long[2][3], short[2], long[0][11], middle[0][0]]
    records = [0, 0, 1, 1, 2, 2, 3, 3]
    if method.takes == "labels+mismatched":
        other = [long[1][2], long[2][7], long[0][9], middle[1][2]]
        tokens = rows(pick + other, [*records, 1, 2, 3, 0])
        good = torch.tensor([True, False, True, True, False, True, False, False])
        return Batch(tokens, Labels(torch.arange(8), good, torch.arange(8, 12)))
    tokens = rows(pick, records)
    columns = {}
    generator = torch.Generator().manual_seed(5)
    if "reward" in method.columns:
        columns["reward"] = torch.randn(8, generator=generator, dtype=torch.float64)
    if "weight" in method.columns:
        columns["weight"] = torch.tensor([1.0, 0.5, 2.0, 0.25], dtype=torch.float64)
    if "margin" in method.columns:
        columns["margin"] = torch.tensor([0.5, 0.0, 1.5, -0.25], dtype=torch.float64)
    if "label_probability" in method.columns:
        columns["label_probability"] = torch.tensor([0.9, 0.6, 1.0, 0.3], dtype=torch.float64)
    if "advantage" in method.columns:
        action = tokens.action
        columns["advantage"] = torch.randn(8, 1, generator=generator, dtype=torch.float64) * action
        columns["old_logp"] = (torch.rand(action.shape, generator=generator, dtype=torch.float64) - 1.5) * action
    pairs = Pairs(torch.tensor([0, 3, 4, 6]), torch.tensor([1, 2, 5, 7])) if method.takes == "pairs" else None
    return Batch(tokens, pairs, columns)
