"""Rows to forests: values by hand, and what must hold of any rows."""

import torch
from depth import tries
from hypothesis import given, settings
from hypothesis import strategies as st

from softq.lm.forest import Forest, grow
from softq.records import Tokens

T, F = True, False


def forest(ids: list[list[int]], action: list[list[bool]], prompt: list[int]) -> Forest:
    ended = torch.ones(len(ids), dtype=torch.bool)
    return grow(Tokens(torch.tensor(ids), torch.tensor(action), ended, torch.tensor(prompt)))


def as_lists(found: Forest) -> tuple[list[int], list[int], list[list[int]]]:
    return found.tree.token.tolist(), found.tree.parent.tolist(), found.node.tolist()


def test_the_example_of_tokens() -> None:
    """[5, 6] answered by [7, 2] and by [8]: the last ids are no states, so 2 and 8 are no nodes."""
    found = forest([[5, 6, 7, 2], [5, 6, 8, 0]], [[F, T, T], [F, T, F]], [0, 0])
    assert as_lists(found) == ([5, 6, 7], [-1, 0, 1], [[0, 1, 2], [0, 1, -1]])


def test_completions_share_their_common_start() -> None:
    """After [5, 6]: [7, 8, 9], then [7, 8, 4, 3] and [7, 1, 1]. States 5 6 | 7 8 | 4 | 1."""
    ids = [[5, 6, 7, 8, 9, 0], [5, 6, 7, 8, 4, 3], [5, 6, 7, 1, 1, 0]]
    found = forest(ids, [[F, T, T, T, F], [F, T, T, T, T], [F, T, T, T, F]], [0, 0, 0])
    node = [[0, 1, 2, 3, -1], [0, 1, 2, 3, 4], [0, 1, 2, 5, -1]]
    assert as_lists(found) == ([5, 6, 7, 8, 4, 1], [-1, 0, 1, 2, 3, 2], node)


def test_a_row_shares_with_whichever_earlier_row_shares_most() -> None:
    ids = [[5, 6, 1, 1], [5, 7, 2, 1], [5, 7, 3, 1], [5, 7, 2, 9]]
    found = forest(ids, [[T, T, T]] * 4, [0] * 4)
    assert as_lists(found)[2] == [[0, 1, 2], [0, 3, 4], [0, 3, 5], [0, 3, 4]]
    assert found.tree.parent.tolist() == [-1, 0, 1, 0, 3, 3]


def test_equal_prompts_of_two_records_are_two_trees() -> None:
    found = forest([[5, 6, 7], [5, 6, 8]], [[F, T], [F, T]], [0, 1])
    assert as_lists(found) == ([5, 6, 5, 6], [-1, 0, -1, 2], [[0, 1], [2, 3]])


def test_a_row_that_continues_another_adds_only_the_rest() -> None:
    """In either order; the shorter row has no node of its own."""
    short, long = [5, 6, 7, 0, 0], [5, 6, 7, 8, 9]
    cut, whole = [F, T, F, F], [F, T, T, T]
    first = forest([short, long], [cut, whole], [0, 0])
    assert as_lists(first) == ([5, 6, 7, 8], [-1, 0, 1, 2], [[0, 1, -1, -1], [0, 1, 2, 3]])
    second = forest([long, short], [whole, cut], [0, 0])
    assert as_lists(second) == ([5, 6, 7, 8], [-1, 0, 1, 2], [[0, 1, 2, 3], [0, 1, -1, -1]])


def test_rows_of_a_record_need_not_be_adjacent() -> None:
    """Trees stand in the order in which their records first appear; a tree's nodes stand together."""
    ids = [[9, 6, 7], [5, 6, 7], [9, 6, 8], [9, 4, 8]]
    found = forest(ids, [[T, T]] * 4, [3, 1, 3, 3])
    assert as_lists(found) == ([9, 6, 4, 5, 6], [-1, 0, 0, -1, 3], [[0, 1], [3, 4], [0, 1], [0, 2]])


def test_padding_is_never_shared() -> None:
    """The padding of the first row looks like the start of the second row's completion."""
    found = forest([[5, 6, 7, 7, 7], [5, 6, 7, 7, 3]], [[F, T, F, F], [F, T, T, T]], [0, 0])
    assert as_lists(found) == ([5, 6, 7, 7], [-1, 0, 1, 2], [[0, 1, -1, -1], [0, 1, 2, 3]])


def test_context_between_actions_and_a_row_without_any() -> None:
    found = forest([[5, 6, 7, 8], [5, 6, 7, 8]], [[T, F, T], [F, F, F]], [0, 0])
    assert as_lists(found) == ([5, 6, 7], [-1, 0, 1], [[0, 1, 2], [-1, -1, -1]])


def test_one_token_prompts() -> None:
    found = forest([[5, 6], [5, 7], [4, 7]], [[T]] * 3, [0, 0, 1])
    assert as_lists(found) == ([5, 4], [-1, -1], [[0], [0], [1]])


@st.composite
def any_tokens(draw: st.DrawFn) -> Tokens:
    """Rows over three tokens, so that much is shared by chance; any actions, any records."""
    B, L = draw(st.integers(1, 7)), draw(st.integers(2, 7))
    ids = draw(st.lists(st.lists(st.integers(0, 2), min_size=L, max_size=L), min_size=B, max_size=B))
    action = draw(st.lists(st.lists(st.booleans(), min_size=L - 1, max_size=L - 1), min_size=B, max_size=B))
    prompt = draw(st.lists(st.integers(0, 2), min_size=B, max_size=B))
    return Tokens(torch.tensor(ids), torch.tensor(action), torch.ones(B, dtype=torch.bool), torch.tensor(prompt))


@settings(max_examples=tries(200), deadline=None)
@given(any_tokens())
def test_parents_spell_the_row(tokens: Tokens) -> None:
    """From the node of state t back to the root stand ids[:t+1]; every state up to the last action has a node, no other."""
    tree, node = grow(tokens)
    for b, t in torch.ones_like(tokens.action).nonzero().tolist():
        at, path = int(node[b, t]), []
        assert (at >= 0) == bool(tokens.action[b, t:].any())
        while at >= 0:
            path.append(int(tree.token[at]))
            at = int(tree.parent[at])
        assert path[::-1] == (tokens.ids[b, : t + 1].tolist() if node[b, t] >= 0 else [])


@settings(max_examples=tries(200), deadline=None)
@given(any_tokens())
def test_no_state_of_a_record_stands_twice(tokens: Tokens) -> None:
    tree, node = grow(tokens)
    states = {(int(tokens.prompt[b]), *tokens.ids[b, : t + 1].tolist()) for b, t in (node >= 0).nonzero().tolist()}
    assert len(tree.token) == len(states)
    assert sorted(set(node[node >= 0].tolist())) == list(range(len(states)))
