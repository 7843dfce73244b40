"""A walk through a growing forest gives each node the state that it has alone, whatever is kept, dropped and asked for again."""

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from tiny import ALONE, SHARING, VOCABULARY, tiny, tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from softq.lm.growing import Growing
from softq.lm.kept import SPARE, Kept
from softq.lm.load import Lora, load
from softq.lm.model import AdapterOff, CausalLM, Uniform, switched_off
from softq.lm.walk import Again, Cached, Walk, walk
from softq.mdp.tabular import TabularLM, random_table, token_tree
from softq.records import Tree

PROMPTS = [torch.tensor([5, 6, 7, 8, 9, 10, 11]), torch.tensor([12]), torch.arange(3, 43), torch.tensor([13, 14, 15])]

FLOAT32 = ("gemma2", "bloom", "mamba", "recurrent_gemma")  # their softmax, or their scan, is in float32


@cache
def model_of(name: str) -> PreTrainedModel:
    return tiny(name)


def loaded(name: str, **more) -> CausalLM:
    return load(model_of(name), None, tokenizer=tokenizer(), **more).policy


def alone(model: CausalLM, forest: Growing, nodes: Tensor) -> Tensor:
    """Log-probs behind each node, by the model's own forward on its path alone."""
    rows = []
    for node in nodes.tolist():
        path = [node]
        while (above := int(forest.parent[path[-1]])) >= 0:
            path.append(above)
        rows.append(model.transformer(input_ids=forest.token[path[::-1]][None], use_cache=False).logits[0, -1])
    return torch.stack(rows).log_softmax(-1)


def grown(forest: Growing, seed: int, steps: int) -> Iterator[Tensor]:
    """The prompts' ends, then nodes at random: some prompts get many, some none; behind new ones, old ones and each other."""
    generator = torch.Generator().manual_seed(seed)
    yield forest.last
    behind = forest.last
    for _ in range(steps):
        new = []
        for parents in (behind, None):
            above = behind if parents is not None else new[0]
            pick = above[torch.randint(len(above), (4,), generator=generator)]
            new.append(forest.add(torch.randint(3, VOCABULARY, (4,), generator=generator), pick))
        yield torch.cat(new)
        behind = torch.cat([behind, *new])


@pytest.mark.parametrize("name", [*SHARING, *ALONE])
def test_states_are_those_of_each_path_alone(name: str) -> None:
    model = loaded(name)
    forest = Growing(PROMPTS)
    walker = walk(model, forest, 70)
    assert isinstance(walker, Cached if name in SHARING else Again)
    with torch.no_grad():
        for nodes in grown(forest, 0, 8):
            got = model.logits(walker.states(nodes)).log_softmax(-1)
            within = 1e-5 if name in FLOAT32 else 1e-10
            torch.testing.assert_close(got, alone(model, forest, nodes), rtol=within, atol=within, check_dtype=False)
    assert walker.evaluations == 8 * 8
    if isinstance(walker, Cached):
        assert [group.prompts.tolist() for group in walker.kept.groups] == [[1, 3, 0], [2]]


def beams(forest: Growing, walker: Walk, model: CausalLM, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """As a beam search goes: three nodes a prompt, of which one or two are gone on from; the second prompt ends midway."""
    live = forest.last
    yield live, model.logits(walker.states(live))
    for step in range(steps):
        if step > steps // 2:
            live = live[forest.prompt[live] != 1]
        parents = live.repeat_interleave(3 if step == 0 else 2)[: 12 if step % 2 else 9]
        nodes = forest.add((17 * torch.arange(len(parents)) + 5 * step) % VOCABULARY, parents)
        yield nodes, model.logits(walker.states(nodes))
        live = torch.cat([nodes[forest.prompt[nodes] == p][-2:] for p in range(4)])
        walker.keep(live)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_what_is_dropped_makes_room_and_changes_nothing(name: str) -> None:
    model, forest = loaded(name), Growing(PROMPTS)
    walker = walk(model, forest, 110)
    assert isinstance(walker, Cached)
    with torch.no_grad():
        for nodes, logits in beams(forest, walker, model, 60):
            torch.testing.assert_close(
                logits.log_softmax(-1), alone(model, forest, nodes), rtol=1e-10, atol=1e-10, check_dtype=False
            )
    visited = (forest.prompt[len(torch.cat(PROMPTS)) :] == 0).sum()
    kept = walker.kept
    assert visited > 100
    assert max(group.room for group in kept.groups) <= 80, (
        "slots follow what is alive, 60 steps deep, not what was visited"
    )
    for group in kept.groups:
        assert all(keys.shape[2] == group.width + group.room for keys, _ in group.layers.values())
    behind = torch.arange(len(torch.cat(PROMPTS)), len(forest))
    dropped = behind[kept.slot_of(behind) < 0][:3]
    with torch.no_grad():
        again = model.logits(walker.states(dropped)).log_softmax(-1)
        torch.testing.assert_close(again, alone(model, forest, dropped), rtol=1e-10, atol=1e-10, check_dtype=False)


def test_a_state_is_given_once() -> None:
    model, forest = loaded("llama"), Growing(PROMPTS)
    walker = walk(model, forest, 70)
    node = forest.add(torch.tensor([4]), forest.last[:1])
    with torch.no_grad():
        walker.states(node)
        with pytest.raises(ValueError, match="given once"):
            walker.states(node)
        with pytest.raises(ValueError, match="inside a prompt never"):
            walker.states(torch.tensor([0]))


def test_a_state_is_given_once_whatever_else_is_asked_for() -> None:
    model, forest = loaded("llama"), Growing(PROMPTS)
    walker = walk(model, forest, 70)
    first = forest.add(torch.tensor([4]), forest.last[:1])
    with torch.no_grad():
        walker.states(first)
        with pytest.raises(ValueError, match="given once"):
            walker.states(torch.cat([forest.add(torch.tensor([5]), first), first]))


def agrees(model: CausalLM, forest: Growing, walker: Walk, nodes: Tensor) -> None:
    """Asks for nodes, and checks what is said."""
    got = model.logits(walker.states(nodes)).log_softmax(-1)
    torch.testing.assert_close(got, alone(model, forest, nodes), rtol=1e-10, atol=1e-10, check_dtype=False)


def test_a_walk_may_begin_in_a_forest_that_has_grown() -> None:
    model, forest = loaded("llama"), Growing(PROMPTS)
    first = forest.add(torch.tensor([4, 5, 6]), forest.last[[2, 0, 0]])
    second = forest.add(torch.tensor([7, 8]), first[:2])
    walker = walk(model, forest, 70)
    with torch.no_grad():
        agrees(model, forest, walker, torch.cat([forest.last, second, first[2:]]))
        assert walker.evaluations == 5
        agrees(model, forest, walker, forest.add(torch.tensor([9, 10]), torch.cat([second[1:], first[2:]])))
        assert walker.evaluations == 7


def test_room_is_made_when_there_is_none_left() -> None:
    """SPARE nodes fit behind a prompt; of more, the dead make way. What is asked for behind a dead one brings it to life."""
    model, forest = loaded("llama"), Growing([PROMPTS[0], PROMPTS[3]])
    walker = walk(model, forest, 70)
    assert isinstance(walker, Cached)
    (group,) = walker.kept.groups
    dead = forest.add(torch.arange(3, 11), forest.last[:1].expand(8))
    with torch.no_grad():
        agrees(model, forest, walker, dead)
        living = forest.add(torch.arange(3, 11), forest.last[:1].expand(8))
        walker.keep(living)
        agrees(model, forest, walker, living)
        assert (group.room, walker.kept.slot_of(torch.cat([dead, living])).tolist()) == (SPARE, list(range(SPARE)))
        behind = forest.add(torch.tensor([11, 12, 13]), torch.cat([dead[5:6], living[:2]]))
        agrees(model, forest, walker, behind)
        assert walker.evaluations == 16 + 3
        assert (walker.kept.slot_of(dead) >= 0).tolist() == [node == dead[5] for node in dead]
        assert group.room == SPARE


def test_what_was_dropped_is_computed_again() -> None:
    model, forest = loaded("llama"), Growing([PROMPTS[0], PROMPTS[3]])
    walker = walk(model, forest, 70)
    first = forest.add(torch.arange(3, 19), forest.last.repeat(8))
    with torch.no_grad():
        agrees(model, forest, walker, first)
        walker.keep(forest.last)  # nothing that is behind a prompt
        agrees(model, forest, walker, forest.add(torch.arange(20, 40), forest.last.repeat(10)))
        assert walker.evaluations == 36
        second = forest.add(torch.arange(3, 19), first)
        agrees(model, forest, walker, second)
        assert walker.evaluations == 36 + 32, "each, and what it stands behind"


def test_prompts_of_about_one_length_share_a_group() -> None:
    sizes = [22, 4, 21, 100, 4, 140, 142]
    groups = Kept(Growing([torch.ones(size) for size in sizes]), torch.device("cpu")).groups
    assert [group.prompts.tolist() for group in groups] == [[1, 4, 2], [0], [3, 5], [6]]
    assert [group.width for group in groups] == [21, 22, 140, 142]


class Asked(Uniform):
    """A model that remembers the forests that it was asked of."""

    def states(self, tree: Tree) -> Tensor:
        """[N] nodes -> [N, 1]: how many ancestors each has."""
        self.trees = [*getattr(self, "trees", []), tree]
        depth = []
        for parent in tree.parent.tolist():
            depth.append(depth[parent] + 1 if parent >= 0 else 0)
        return torch.tensor(depth, dtype=torch.float64)[:, None]


def test_a_walk_that_keeps_nothing_asks_for_the_paths_alone() -> None:
    model, forest = Asked(VOCABULARY, torch.zeros(1)), Growing(PROMPTS)
    walker = Again(model, forest)
    first = forest.add(torch.tensor([4, 5, 6]), forest.last[[3, 0, 0]])
    second = forest.add(torch.tensor([7, 8]), first[:2])
    assert walker.states(torch.cat([second[:1], first[2:]])).tolist() == [[4], [7]]
    (tree,) = model.trees
    assert sorted(tree.token.tolist()) == sorted([*PROMPTS[3].tolist(), 4, 7, *PROMPTS[0].tolist(), 6])
    assert walker.evaluations == 3


def test_a_window_that_paths_reach_beyond_is_walked_plainly() -> None:
    model = load(tiny("mistral", sliding_window=12), None, tokenizer=tokenizer()).policy
    short = [*PROMPTS[:2], *PROMPTS[3:]]
    assert isinstance(walk(model, Growing(short), 11), Cached)
    forest = Growing(short)
    far = walk(model, forest, 12)
    assert isinstance(far, Again)
    with torch.no_grad():
        for nodes in grown(forest, 1, 6):
            got = model.logits(far.states(nodes)).log_softmax(-1)
            torch.testing.assert_close(got, alone(model, forest, nodes), rtol=1e-10, atol=1e-10, check_dtype=False)


def test_the_model_under_an_adapter_is_walked_without_it() -> None:
    policy = load(tiny("llama"), None, tokenizer=tokenizer(), lora=Lora(4, 8)).policy
    reference = AdapterOff(policy)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) if "lora_B" in name else 0.0)
        forest = Growing(PROMPTS)
        own, base = walk(policy, forest, 70), walk(reference, forest, 70)
        assert isinstance(own, Cached)
        assert isinstance(base, Cached)
        for nodes in grown(forest, 2, 3):
            got = policy.logits(own.states(nodes)).log_softmax(-1)
            below = reference.logits(base.states(nodes)).log_softmax(-1)
            torch.testing.assert_close(got, alone(policy, forest, nodes), rtol=1e-9, atol=1e-9, check_dtype=False)
            with switched_off(policy):
                torch.testing.assert_close(below, alone(policy, forest, nodes), rtol=1e-9, atol=1e-9, check_dtype=False)
            assert (got - below).abs().max() > 1e-3


def test_a_table_and_a_uniform_reference_are_walked_too() -> None:
    tree = token_tree([(0, 1), (2,)], 3, 4, end=2)
    table = TabularLM(tree, random_table(tree, 0))
    forest = Growing([torch.tensor([0, 1]), torch.tensor([2])])
    node = forest.add(torch.tensor([1, 0]), forest.last)
    after = forest.add(torch.tensor([1]), node[1:])
    walker = walk(table, forest, 9)
    with torch.no_grad():
        got = walker.states(torch.cat([forest.last, node, after]))
        want = [table.table[table.rows[p]] for p in ((0, 1), (2,), (0, 1, 1), (2, 0), (2, 0, 1))]
        assert torch.equal(got, torch.stack(want))
        assert walker.evaluations == 3
        flat = Uniform(3, torch.zeros(1))
        assert walk(flat, forest, 9).states(node).shape == (2, 1)


def test_a_forest_keeps_numbers_without_their_gradient() -> None:
    forest = Growing([torch.tensor([3, 4])])
    forest.put("value", torch.tensor([1]), torch.tensor([2.0], requires_grad=True) * 3)
    assert not forest.column("value").requires_grad
    assert forest.column("value").nan_to_num(nan=-1).tolist() == [-1, 6]
    nodes = forest.add(torch.arange(9), torch.full((9,), 1))
    assert forest.column("value")[nodes].isnan().all()


def test_a_forest_knows_its_answers() -> None:
    forest = Growing(PROMPTS)
    first = forest.add(torch.tensor([3, 4]), forest.last[[2, 0]])
    second = forest.add(torch.tensor([7]), first[:1])
    forest.put("logp", second, torch.tensor([-0.5]))
    assert (forest.answer(int(second)), forest.answered(int(second))) == ([3, 7], [int(first[0]), int(second)])
    assert forest.depth[second].tolist() == [41]
    assert forest.prompt[torch.cat([first, second])].tolist() == [2, 0, 2]
    assert forest.above(second).tolist() == [int(first[0]), int(second)]
    third = forest.add(torch.tensor([7, 8]), torch.cat([second, first[1:]]))
    known = torch.zeros(len(forest), dtype=torch.bool)
    known[first[0]] = True
    assert forest.above(third, known).tolist() == [int(first[1]), int(second), *third.tolist()]
    assert forest.column("logp")[second].tolist() == [-0.5]
    assert forest.column("logp").isnan().sum() == len(forest) - 1
    assert forest.tree().parent.tolist()[: len(PROMPTS[0])] == [-1, 0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="at least one token"):
        Growing([torch.tensor([], dtype=torch.int64)])
    with pytest.raises(ValueError, match="at least one token"):
        Growing([torch.tensor([3]), torch.tensor([], dtype=torch.int64)])
