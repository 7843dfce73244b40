"""The tables: trees, trajectories and expectations counted out by hand, gradients by differences, a table as a language model."""

import itertools
import math

import pytest
import torch
from tiny import tiny
from torch import Tensor

from softq import masked
from softq.lm.layouts import LAYOUTS
from softq.lm.model import CausalLM
from softq.lm.score import Models, score
from softq.mdp.readouts import ENTROPY, KL, KL_FROM_REF, LOG_COLLISION, REF_LOGP
from softq.mdp.soft import implicit_reward, soft_backup, soft_value
from softq.mdp.tabular import (
    TabularLM,
    along,
    at_the_end,
    completions,
    difference,
    every_draw,
    every_pair,
    every_trajectory,
    expected,
    gradient,
    occupancy,
    policy_of,
    random_table,
    token_tree,
    with_mass,
)
from softq.objectives import METHODS
from softq.records import Batch, Pairs, Tokens, Tree

SMALL = token_tree([(5,), (1, 0)], vocabulary=3, horizon=2, end=2)
LEAVES = every_trajectory(SMALL)
TREE = token_tree([(0, 1), (2,), (1, 1, 0)], vocabulary=3, horizon=3, end=2)
EVERY = every_trajectory(TREE)
POLICY = random_table(TREE, 1).log_softmax(-1)
CUT = with_mass(POLICY, 1, 0.0)


def numbers(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same(found: Tensor, wanted: Tensor, within: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=within, atol=within)


def ids_of(tokens: Tokens, row: int) -> tuple[list[int], list[int]]:
    """The prompt and the completion of a row."""
    acted = tokens.action[row].nonzero()[:, 0]
    ids = tokens.ids[row].tolist()
    return ids[: int(acted[0]) + 1], ids[int(acted[0]) + 1 : int(acted[-1]) + 2]


# --- trees and trajectories ---


def test_a_tree_by_hand() -> None:
    """Prompts first, then what 0 and 1 lead to; 2 ends, and so does the second action."""
    assert SMALL.prefixes == ((5,), (1, 0), (5, 0), (5, 1), (1, 0, 0), (1, 0, 1))
    assert SMALL.depth.tolist() == [0, 0, 1, 1, 1, 1]
    assert SMALL.root.tolist() == [0, 1, 0, 0, 1, 1]
    assert SMALL.next.tolist() == [[2, 3, -1], [4, 5, -1], *[[-1, -1, -1]] * 4]
    assert SMALL.vocabulary == 3
    endless = token_tree([(5,)], vocabulary=2, horizon=2)
    assert endless.next.tolist() == [[1, 2], [-1, -1], [-1, -1]]


def test_states_are_numbered_after_their_parents() -> None:
    for s, a in (TREE.next >= 0).nonzero().tolist():
        after = int(TREE.next[s, a])
        assert TREE.prefixes[after] == (*TREE.prefixes[s], a)
        assert after > s
        assert TREE.depth[after] == TREE.depth[s] + 1
        assert TREE.root[after] == TREE.root[s]
    assert (TREE.next[:, 2] == -1).all()


def test_a_prompt_that_continues_another_is_refused() -> None:
    with pytest.raises(ValueError, match="two prompts lead to one state: a prompt must not continue another"):
        token_tree([(0,), (0, 1)], vocabulary=2, horizon=2)
    with pytest.raises(ValueError, match="two prompts"):
        token_tree([(0,), (0,)], vocabulary=2, horizon=1)


def test_an_episode_ends_at_the_horizon_also_where_another_prompt_goes_on() -> None:
    tree = token_tree([(0,), (0, 1)], vocabulary=2, horizon=1)
    assert (tree.next == -1).all()
    assert every_trajectory(tree).prompt.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("prompts", "horizon"), [([], 1), ([()], 1), ([(0,), ()], 2), ([(0,)], 0)])
def test_a_tree_needs_a_prompt_with_a_token_and_an_action(prompts: list, horizon: int) -> None:
    with pytest.raises(ValueError, match="a tree needs prompts of at least one token, and a horizon of at least 1"):
        token_tree(prompts, vocabulary=2, horizon=horizon)


def test_completions_are_equal_up_to_their_last_action() -> None:
    """Rows 0 and 1 differ in padding alone; row 2 is cut before the token that row 3 ends with; row 4 is another prompt's."""
    ids = torch.tensor([[5, 1, 0], [5, 1, 7], [5, 1, 2], [5, 1, 2], [5, 1, 0]])
    action = torch.tensor([[1, 0], [1, 0], [1, 0], [1, 1], [1, 0]], dtype=torch.bool)
    which = completions(Tokens(ids, action, torch.ones(5, dtype=torch.bool), torch.tensor([0, 0, 0, 0, 1]))).tolist()
    assert which[0] == which[1] == which[2]
    assert len(set(which)) == 3
    ids = torch.tensor([[5, 1, 0], [6, 1, 0], [5, 1, 0], [5, 3, 0], [5, 4, 0]])
    action = torch.tensor([[1, 0], [1, 0], [1, 1], [0, 0], [0, 0]], dtype=torch.bool)
    which = completions(
        Tokens(ids, action, torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.int64))
    ).tolist()
    assert len(set(which[:3])) == 3  # another first token; a 0 that was chosen
    assert which[3] == which[4]  # nothing was


def test_acting_where_there_is_no_state_is_no_number() -> None:
    lost = Tokens(
        torch.tensor([[9, 0]]), torch.ones(1, 1, dtype=torch.bool), torch.ones(1, dtype=torch.bool), torch.tensor([0])
    )
    of = Models({"policy": TabularLM(TREE, random_table(TREE, 0))})
    assert score(of, lost)["logp"].isnan().all()


def test_every_trajectory_by_hand() -> None:
    """In the order of their tokens, padded with 0; an early end has one action, and a longer prompt acts later."""
    of_one = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2]]
    assert [ids_of(LEAVES, row) for row in range(14)] == [([5], y) for y in of_one] + [([1, 0], y) for y in of_one]
    assert LEAVES.ids[6].tolist() == [5, 2, 0, 0]
    assert LEAVES.action[6].tolist() == [True, False, False]
    assert LEAVES.action[13].tolist() == [False, True, False]
    assert LEAVES.action[7].tolist() == [False, True, True]
    assert LEAVES.prompt.tolist() == [0] * 7 + [1] * 7
    assert LEAVES.ended.all()
    assert len(EVERY.ended) == 3 * (1 + 2 + 4 * 3)


def test_random_tables_are_drawn_once_for_all() -> None:
    generator = torch.Generator().manual_seed(5)
    same(random_table(TREE, 5), torch.randn(len(TREE.prefixes), 3, generator=generator, dtype=torch.float64))
    same(random_table(TREE, 5, scale=2.0), 2 * random_table(TREE, 5))
    assert (random_table(TREE, 5) != random_table(TREE, 6)).all()
    whole = random_table(token_tree([(0,)], vocabulary=5, horizon=4), 0)
    assert abs(whole.mean()) < 0.1
    assert abs(whole.std() - 1) < 0.05


@pytest.mark.parametrize("mass", [0.0, 1e-30, 0.3])
def test_a_mass_by_hand(mass: float) -> None:
    found = with_mass(numbers([0.0, 7.0, math.log(3)], [math.log(4), -9.0, math.log(4)]), 1, mass)
    rest = 1 - mass
    same(found.exp(), numbers([rest / 4, mass, rest * 3 / 4], [rest / 2, mass, rest / 2]))
    assert found[0, 1] == (math.log(mass) if mass else -torch.inf)
    same(with_mass(POLICY, 0, mass).logsumexp(-1), torch.zeros(len(POLICY), dtype=torch.float64))


# --- tables and trajectories, each made of the other ---


def test_along_by_hand() -> None:
    """Entry (state, action) of each action: [5, 0, 2] reads row 0 at 0 and row 2 at 2; [1, 0, 2] reads row 1 at 2."""
    table = torch.arange(18.0).view(6, 3)
    assert along(SMALL, table, LEAVES)[2].tolist() == [0.0, 8.0, 0.0]
    assert along(SMALL, table, LEAVES)[6].tolist() == [2.0, 0.0, 0.0]
    assert along(SMALL, table, LEAVES)[10].tolist() == [0.0, 4.0, 15.0]
    assert along(SMALL, table, LEAVES)[13].tolist() == [0.0, 5.0, 0.0]
    slope = gradient(lambda x: along(SMALL, x, LEAVES).sum(), table)
    passing = [[3.0, 3.0, 1.0], [3.0, 3.0, 1.0], *[[1.0, 1.0, 1.0]] * 4]
    assert slope.tolist() == passing


def test_a_value_at_the_end_is_the_whole_reward() -> None:
    values = random_table(SMALL, 9).flatten()[:14]
    table = at_the_end(SMALL, LEAVES, values)
    assert table[0].tolist() == [0, 0, values[6]]
    assert table[5].tolist() == values[10:13].tolist()
    same(along(SMALL, table, LEAVES).sum(-1), values)
    each = along(SMALL, table, LEAVES)
    last = LEAVES.action.int().cumsum(-1).argmax(-1)
    same(each.gather(1, last[:, None])[:, 0], values)
    assert at_the_end(SMALL, LEAVES, values.float()).dtype == torch.float32


@pytest.mark.parametrize("policy", [POLICY, CUT, with_mass(POLICY, 0, 1e-30)], ids=["full", "cut off", "1e-30"])
def test_occupancy_is_the_mass_of_the_trajectories_through_a_state(policy: Tensor) -> None:
    whole = along(TREE, policy, EVERY).sum(-1).exp()
    visits = occupancy(TREE, policy)
    for s, prefix in enumerate(TREE.prefixes):
        through = [
            row
            for row in range(len(whole))
            if tuple(EVERY.ids[row, : len(prefix)].tolist()) == prefix
            and EVERY.prompt[row] == TREE.root[s]
            and EVERY.action[row].sum() > TREE.depth[s]
        ]
        assert visits[s].item() == pytest.approx(whole[through].sum().item(), rel=1e-12, abs=1e-300)
    same(torch.zeros(3, dtype=torch.float64).index_add(0, TREE.root, visits * (TREE.depth == 0)), numbers(1, 1, 1))


def test_a_policy_by_its_trajectories() -> None:
    """The inverse of summing along, up to a constant a prompt, also from log-probabilities of e^±1000."""
    whole = along(TREE, POLICY, EVERY).sum(-1)
    same(policy_of(TREE, EVERY, whole), POLICY)
    same(policy_of(TREE, EVERY, whole + numbers(3.0, -1000.0, 1000.0)[EVERY.prompt]), POLICY, within=1e-11)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    moved = Tokens(EVERY.ids[order], EVERY.action[order], EVERY.ended[order], EVERY.prompt[order])
    same(policy_of(TREE, moved, whole[order]), POLICY)
    mass = numbers(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0).log().repeat(2)
    found = policy_of(SMALL, LEAVES, mass).exp()
    same(found[0], numbers(6 / 28, 15 / 28, 7 / 28))
    same(found[3], numbers(4 / 15, 5 / 15, 6 / 15))


def test_a_policy_where_nothing_leads() -> None:
    """A state that no trajectory of positive mass passes is uniform; the states around it are as they were."""
    found = policy_of(TREE, EVERY, along(TREE, CUT, EVERY).sum(-1))
    dead = occupancy(TREE, CUT) == 0
    assert 0 < dead.sum() < len(dead)
    same(found[~dead], CUT[~dead])
    same(found[dead].exp(), torch.full_like(found[dead], 1 / 3))


# --- expectations ---


def test_expectations_by_hand() -> None:
    """0.2 · 3 + 0.8 · 5 and 1 · 7; a value of mass 0 does not count, not even nan."""
    logp, group = numbers(0.2, 0.8, 1.0, 0.0).log(), torch.tensor([0, 0, 1, 1])
    same(expected(logp, numbers(3.0, 5.0, 7.0, math.nan), group), numbers(4.6, 7.0))
    same(expected(logp, numbers(3.0, 5.0, 7.0, -math.inf), group), numbers(4.6, 7.0))
    slope = gradient(lambda x: expected(x, numbers(3.0, 5.0, 7.0, math.nan), group) @ numbers(1.0, 10.0), logp)
    same(slope, numbers(0.6, 4.0, 70.0, 0.0))


def test_products_with_no_weight_are_nothing() -> None:
    weight, values = numbers(2.0, 0.0, 0.0, 0.0, -1.0), numbers(3.0, math.inf, -math.inf, math.nan, 4.0)
    same(masked.product(weight, values), numbers(6.0, 0.0, 0.0, 0.0, -4.0))
    same(gradient(lambda w: masked.product(w, values).sum(), weight), numbers(3.0, 0.0, 0.0, 0.0, 4.0))
    same(gradient(lambda x: masked.product(weight, x).sum(), values), weight)
    assert masked.product(numbers(1.0), numbers(math.inf)).item() == math.inf


def test_pairs_and_draws_are_all_there_are() -> None:
    group = torch.tensor([0, 1, 0, 1, 1])
    pairs = set(zip(*(x.tolist() for x in every_pair(group)), strict=True))
    assert pairs == {(0, 2), (2, 0), (1, 3), (3, 1), (1, 4), (4, 1), (3, 4), (4, 3)}
    assert len(every_pair(group)[0]) == len(pairs)
    assert every_draw(group, 1).tolist() == [[0], [2], [1], [3], [4]]
    two = every_draw(group, 2).tolist()
    assert two == [[a, b] for rows in ([0, 2], [1, 3, 4]) for a, b in itertools.product(rows, repeat=2)]
    assert len(every_draw(group, 3)) == 2**3 + 3**3


def test_expectations_of_pairs_and_groups() -> None:
    """Of three independent draws: E[mean] = E[R], E[Σ (R - mean)²/2] = Var[R]; of a pair: E[(R - R')²] = 2 Var[R]."""
    logp, reward = along(TREE, CUT, EVERY).sum(-1), along(TREE, random_table(TREE, 2), EVERY).sum(-1)
    mean = expected(logp, reward, EVERY.prompt)
    spread = expected(logp, (reward - mean[EVERY.prompt]) ** 2, EVERY.prompt)
    draws = every_draw(EVERY.prompt, 3)
    law, which, drawn = logp[draws].sum(-1), EVERY.prompt[draws[:, 0]], reward[draws]
    same(expected(law, torch.ones_like(law), which), torch.ones(3, dtype=torch.float64))
    same(expected(law, drawn.mean(-1), which), mean)
    same(expected(law, drawn.var(-1), which), spread)
    i, j = every_pair(EVERY.prompt)
    same(expected(logp[i] + logp[j], (reward[i] - reward[j]) ** 2, EVERY.prompt[i]), 2 * spread)


# --- gradients ---


def test_gradients_by_hand() -> None:
    """Of Σ x³ + x_00 x_01: 3x² and the other factor. Central differences are exact to h² for a cubic."""
    at = numbers([1.0, -2.0], [0.5, 0.0])
    wanted = numbers([3.0 - 2.0, 12.0 + 1.0], [0.75, 0.0])

    def loss(x: Tensor) -> Tensor:
        return (x**3).sum() + x[0, 0] * x[0, 1]

    same(gradient(loss, at), wanted)
    same(difference(loss, at), wanted, within=1e-9)
    same(difference(loss, at, step=0.1), wanted + 0.01, within=1e-12)
    assert at.tolist() == [[1.0, -2.0], [0.5, 0.0]]
    assert not gradient(loss, at.requires_grad_()).requires_grad
    assert not difference(loss, at).requires_grad


def test_a_policy_gradient_by_enumeration() -> None:
    """∇ E_π[R] = E_π[R ∇ log π], and that of states: occupancy · π · (Q - V), by autograd and by differences."""
    reward = random_table(TREE, 2)
    whole = along(TREE, reward, EVERY).sum(-1)

    def value(logits: Tensor) -> Tensor:
        return expected(along(TREE, logits.log_softmax(-1), EVERY).sum(-1), whole, EVERY.prompt).sum()

    at = random_table(TREE, 3)
    logp = at.log_softmax(-1)
    q, v = reward.clone(), torch.zeros(len(at), dtype=torch.float64)
    for s in reversed(range(len(at))):
        q[s] += torch.where(TREE.next[s] >= 0, v[TREE.next[s]], 0.0)
        v[s] = (logp[s].exp() * q[s]).sum()
    by_states = occupancy(TREE, logp)[:, None] * logp.exp() * (q - v[:, None])
    same(gradient(value, at), by_states)
    same(difference(value, at), by_states, within=1e-9)


# --- a table as a language model ---


def test_a_table_answers_the_two_questions() -> None:
    """Nodes 5, 0, 1 below 5, and the prompt [1, 0] of two nodes, whose inner state has no row: no number."""
    table = random_table(SMALL, 1)
    model = TabularLM(SMALL, table)
    forest = Tree(torch.tensor([5, 0, 1, 1, 0]), torch.tensor([-1, 0, 0, -1, 3]))
    states = model.states(forest)
    same(states[[0, 1, 2, 4]], table[[0, 2, 3, 1]])
    assert states[3].isnan().all()
    same(model.logits(states[:3]), states[:3])
    values = model.values(forest)  # of the nodes that an action of state 0 leads to
    same(values[[1, 2]], table[0, :2])
    assert values[[0, 3, 4]].isnan().all()
    assert model.vocabulary == 3
    model.table.data[0] += 1
    assert (table == random_table(SMALL, 1)).all()  # the model has its own
    model.states(forest)[0].sum().backward()
    assert model.table.grad is not None
    assert model.table.grad.tolist() == [[1.0, 1.0, 1.0], *[[0.0, 0.0, 0.0]] * 5]


def test_scoring_a_table_reads_its_log_probabilities() -> None:
    rows = torch.tensor([30, 2, 17, 44])
    tokens = Tokens(EVERY.ids[rows], EVERY.action[rows], EVERY.ended[rows], torch.tensor([7, 3, 3, 9]))
    models = Models({"policy": TabularLM(TREE, 5 + POLICY), "ref": TabularLM(TREE, CUT)})
    scored = score(models, tokens, (REF_LOGP, ENTROPY))
    same(scored["logp"], along(TREE, POLICY, tokens))
    same(scored["ref_logp"], along(TREE, CUT, tokens))
    entropy = -(POLICY.exp() * POLICY).sum(-1)[:, None].expand(-1, 3)
    same(scored["entropy"], along(TREE, entropy, tokens))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_table_of_a_transformer_scores_as_the_transformer_does(layout: str) -> None:
    """Two Llamas, tabulated by their own forward on every state of a tree: equal log-probs and readouts on every road."""
    small = {"vocab_size": 4, "pad_token_id": None, "bos_token_id": None, "eos_token_id": 3}
    tree = token_tree([(0, 1), (2,), (1, 1, 0)], vocabulary=4, horizon=3, end=3)
    kept = every_trajectory(tree)
    transformers, tables = {}, {}
    for name, layers in (("policy", 2), ("ref", 1)):
        model = tiny("llama", num_hidden_layers=layers, **small)
        with torch.no_grad():
            rows = [model(input_ids=torch.tensor([prefix]), use_cache=False).logits[0, -1] for prefix in tree.prefixes]
        transformers[name], tables[name] = CausalLM(model, layout=layout), TabularLM(tree, torch.stack(rows))
    needs = (REF_LOGP, ENTROPY, KL, KL_FROM_REF, LOG_COLLISION)
    with torch.no_grad():
        by_model, by_table = score(Models(transformers), kept, needs), score(Models(tables), kept, needs)
    assert by_model.keys() == by_table.keys() == {"logp", *(readout.name for readout in needs)}
    for name in by_model:
        same(by_table[name], by_model[name], within=1e-10)
    assert by_table["kl"].max() > 0.1


def test_a_constant_in_the_logits_of_a_state_changes_nothing_that_is_read() -> None:
    """Loss, gradient and implicit reward; logsumexp of the logits, which is V*/β for Q* itself, is not among them."""
    reward, shift = random_table(TREE, 2), 5 * random_table(TREE, 4)[:, :1]
    best, method = soft_backup(TREE, reward, POLICY, beta=0.7), METHODS["dpo"](beta=0.7)
    pairs = Batch(EVERY, Pairs(torch.tensor([0, 20, 33]), torch.tensor([4, 16, 44])))
    seen = []
    for logits in (best.q_maxent / 0.7, best.q_maxent / 0.7 + shift):
        models = Models({"policy": TabularLM(TREE, logits), "ref": TabularLM(TREE, POLICY)})
        scored = models(EVERY, (REF_LOGP,))
        loss = method.terms[0].loss(scored, pairs).sum()
        loss.backward()
        implicit = implicit_reward(scored["logp"], scored["ref_logp"], beta=0.7)
        seen.append((loss.detach(), models["policy"].table.grad, implicit.detach()))
    for one, other in zip(*seen, strict=True):
        same(one, other)
    same(seen[0][2].sum(-1), along(TREE, reward, EVERY).sum(-1) - best.v[EVERY.prompt])
    same(soft_value(best.q_maxent, beta=0.7), best.v)
    assert (soft_value(0.7 * best.logp, beta=0.7) - best.v).abs().max() > 0.5
