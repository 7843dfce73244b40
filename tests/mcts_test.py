"""Tree search on tables: every node's numbers against a search written down once more, and exact values of what it finds."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from tiny import tiny, tokenizer
from torch import Tensor

from softq.lm.growing import Growing
from softq.lm.load import load
from softq.lm.model import CausalLM
from softq.lm.score import Models, score
from softq.mdp.readouts import REF_LOGP
from softq.mdp.tabular import Prefix, TabularLM, along, every_trajectory, random_table, token_tree
from softq.search.answer import Answer, Limits
from softq.search.backups import BACKUPS, Edges
from softq.search.decoders import DECODERS
from softq.search.heard import Heard
from softq.search.mcts import Rules, Search, play, simulate, tree_search
from softq.search.sampling import uniform
from softq.search.scoring import tokens_of
from softq.search.voice import Speaker

PROMPTS = [torch.tensor([0, 1]), torch.tensor([2])]
TREE = token_tree([(0, 1), (2,)], 4, 3, end=3)
LEAVES = every_trajectory(TREE)
LIMITS = Limits(3, frozenset([3]))
ROWS = {prefix: row for row, prefix in enumerate(TREE.prefixes)}
LOGP, REF_LOGPS = (random_table(TREE, seed, 1.5).log_softmax(-1) for seed in (0, 1))
BETA = 0.4
REWARD = BETA * (LOGP - REF_LOGPS)
RAGGED = LOGP.masked_fill((torch.arange(len(TREE.prefixes))[:, None] + torch.arange(4)) % 5 == 0, -torch.inf)
RAGGED[0, 1] = -torch.inf
RAGGED = RAGGED.log_softmax(-1)  # of the two first states one has two tokens, the other all


whole = partial(Rules, plausible=0.0)
"""Every possible token is plausible."""


def speakers(policy: Tensor = LOGP, reference: Tensor = REF_LOGPS) -> list[Speaker]:
    forest = Growing(PROMPTS)
    return [Speaker(TabularLM(TREE, table), forest, 9) for table in (policy, reference)]


def searched(rules: Rules, *tables: Tensor, limits: Limits = LIMITS) -> tuple[list[Answer], Growing]:
    policy, reference = speakers(*tables)
    found = tree_search(policy, reference, limits, rules)
    assert [len(answers) for answers in found] == [1, 1]
    return [answers[0] for answers in found], policy.forest


def grown(rules: Rules, policy: Tensor = LOGP) -> tuple[Search, Growing]:
    """The search before its first action is played."""
    search = Search(*speakers(policy), LIMITS, rules, None)
    roots = search.forest.last
    search.forest.put("visits", roots, torch.zeros(2))
    for _ in range(rules.simulations):
        simulate(search, roots)
    return search, search.forest


def sums(table: Tensor, prompt: int) -> dict[tuple[int, ...], float]:
    """A table summed along every answer to a prompt."""
    each = along(TREE, table, LEAVES).sum(-1)
    rows = (LEAVES.prompt == prompt).nonzero()[:, 0].tolist()
    return {tuple(LEAVES.ids[row, 1:][LEAVES.action[row]].tolist()): float(each[row]) for row in rows}


def highest(table: Tensor, prompt: int) -> tuple[int, ...]:
    found = sums(table, prompt)
    return max(found, key=lambda tokens: found[tokens])


class Node:
    """The same search, of one prompt, one node at a time, with a dictionary for each state."""

    def __init__(self, state: Prefix, said: int, policy: Tensor) -> None:
        self.state, self.said, self.policy = state, said, policy
        self.kids: dict[int, Node] = {}
        self.over = said == 3 or (said > 0 and state[-1] == 3)
        self.guess = 0.0

    def numbers(self, token: int, rules: Rules) -> tuple[float, float, float]:
        row = ROWS[self.state]
        logp, ref = float(self.policy[row, token]), float(REF_LOGPS[row, token])
        return logp, ref, rules.beta * (logp - ref)

    def possible(self, rules: Rules) -> list[int]:
        return [token for token in range(4) if self.numbers(token, rules)[0] > -math.inf]

    def plausible(self, rules: Rules) -> list[int]:
        logp = {token: self.numbers(token, rules)[0] for token in self.possible(rules)}
        return [token for token in logp if math.exp(logp[token] - max(logp.values())) >= rules.plausible]

    def simulate(self, rules: Rules, critic: Any) -> float:
        """One simulation below; what the state is worth then."""
        if self.over:
            return 0.0
        if not self.kids:
            said = [self.numbers(token, rules)[rules.prior == "ref"] for token in range(4)]
            best = sorted(self.plausible(rules), key=lambda token: -said[token])[: rules.top_k or 4]
            mass = sum(math.exp(said[token]) for token in best)
            self.prior = {token: math.exp(said[token]) / mass for token in best}
            self.kids = {token: Node((*self.state, token), self.said + 1, self.policy) for token in best}
            self.n = dict.fromkeys(best, 0)
            self.guess = critic(self.state)
            self.q = {a: self.numbers(a, rules)[2] + (0 if self.kids[a].over else self.guess) for a in best}
        else:
            action = max(self.kids, key=lambda a: self.q[a] / rules.beta + rules.exploration * self.bonus(a, rules))
            self.q[action] = self.numbers(action, rules)[2] + self.kids[action].simulate(rules, critic)
            self.n[action] += 1
        return self.worth(rules)

    def bonus(self, action: int, rules: Rules) -> float:
        total, tried = max(1, sum(self.n.values())), 1 + self.n[action]
        if rules.selection == "ucb":
            return math.sqrt(math.log(total) / tried)
        return self.prior[action] * math.sqrt(total) / tried

    def worth(self, rules: Rules) -> float:
        if rules.backup == "mean":
            tried = sum(self.n[a] * self.q[a] for a in self.kids)
            return (self.guess + tried) / (1 + sum(self.n.values()))
        if rules.backup == "max":
            return max(self.q.values())
        each = {
            a: self.numbers(a, rules) for a in self.possible(rules)
        }  # every token; those that are no children at their guess
        q = {a: self.q.get(a, each[a][2] + self.guess) for a in each}
        return rules.beta * math.log(sum(math.exp(each[a][1] + q[a] / rules.beta) for a in each))

    def choice(self, rules: Rules) -> int:
        """What is played: the highest Q, the most visits, or the highest π_ref e^{Q/β}."""
        if rules.backup == "mean":
            return max(self.kids, key=lambda a: (self.n[a], self.q[a]))
        if rules.backup == "max":
            return max(self.kids, key=lambda a: self.q[a])
        return max(self.kids, key=lambda a: self.numbers(a, rules)[1] + self.q[a] / rules.beta)


def same(forest: Growing, number: int, node: Node) -> int:
    """Every number of a node and of all below it; how many there are."""
    first, count = forest.column("first")[number], forest.column("children")[number]
    assert math.isnan(first) == (not node.kids)
    if not node.kids:
        return 1
    assert forest.column("guess")[number] == pytest.approx(node.guess)
    kids = list(range(int(first), int(first) + int(count)))
    assert [int(forest.token[kid]) for kid in kids] == list(node.kids)
    for kid, token in zip(kids, node.kids, strict=True):
        assert forest.column("visits")[kid] == node.n[token]
        assert forest.column("value")[kid] == pytest.approx(node.q[token], abs=1e-12)
        assert forest.column("prior")[kid] == pytest.approx(node.prior[token])
        logp, ref_logp = float(node.policy[ROWS[node.state], token]), float(REF_LOGPS[ROWS[node.state], token])
        assert forest.column("logp")[kid] == pytest.approx(logp)
        assert forest.column("ref_logp")[kid] == pytest.approx(ref_logp)
        assert forest.column("reward")[kid] == pytest.approx(BETA * (logp - ref_logp))
    return 1 + sum(same(forest, kid, below) for kid, below in zip(kids, node.kids.values(), strict=True))


def knowing(forest: Growing, nodes: Tensor) -> Tensor:
    """Some critic: a number of its own for every state."""
    assert not torch.isin(forest.token[nodes[nodes > forest.last[-1]]], torch.tensor([3])).any(), (
        "nothing follows an end"
    )
    states = [(*PROMPTS[forest.prompt[n]].tolist(), *forest.answer(n)) for n in nodes.tolist()]
    return torch.tensor([made_up(state) for state in states], dtype=torch.float64)


def made_up(state: Prefix) -> float:
    return 0.3 * math.sin(sum((k + 1) * token for k, token in enumerate(state)))


@pytest.mark.parametrize("leaf", ["implicit", "critic"])
@pytest.mark.parametrize("backup", ["mean", "max", "soft"])
@pytest.mark.parametrize(
    ("selection", "prior", "top_k", "plausible", "policy"),
    [
        ("puct", "policy", 0, 0.0, LOGP),
        ("puct", "ref", 3, 0.0, RAGGED),
        ("ucb", "policy", 2, 0.0, LOGP),
        ("ucb", "ref", 0, 0.0, RAGGED),
        ("ucb", "ref", 3, 0.3, LOGP),
    ],
)
def test_every_number_is_that_of_a_search_written_down_once_more(
    selection: Any, prior: Any, top_k: int, plausible: float, policy: Tensor, backup: Any, leaf: str
) -> None:
    """Before the first action, and, with what is below it kept, before every other."""
    judge = (lambda state: 0.0) if leaf == "implicit" else made_up
    critic = "implicit" if leaf == "implicit" else knowing
    rules = Rules(23, top_k, 8.0, selection, backup, prior, critic, plausible=plausible, beta=BETA)
    search, forest = grown(rules, policy)
    at = {prompt: Node(tuple(ids.tolist()), 0, policy) for prompt, ids in enumerate(PROMPTS)}
    roots, counted, played = forest.last, 0, 0
    while len(roots):
        for root in roots.tolist():
            node = at[int(forest.prompt[root])]
            before = sum(node.n.values()) if node.kids else -1
            worth = [node.simulate(rules, judge) for _ in range(23)][-1]
            paid = float(forest.column("reward")[root].nan_to_num())
            assert forest.column("value")[root] == pytest.approx(paid + worth, abs=1e-12)
            assert sum(node.n.values()) == before + 23, "the first simulation expands the root"
            assert forest.column("visits")[root] == 23 if not played else forest.column("visits")[root] > 23
            counted += same(forest, root, node) if not played else 0
            assert played == 0 or same(forest, root, node)
        if not played:
            assert counted == len(forest) - 1 > 10, "the two prompts' last nodes, and all behind them"
        roots, played = play(search, roots), played + 1
        for root in roots.tolist():
            prompt = int(forest.prompt[root])
            choice = at[prompt].choice(rules)
            assert int(forest.token[root]) == choice
            at[prompt] = at[prompt].kids[choice]
        roots = roots[~search.over(roots)]
        search.narrow(roots)
        for _ in range(23 if len(roots) else 0):
            simulate(search, roots)
    assert played > 1


def test_the_first_simulations_by_hand() -> None:
    """Two tokens, one step: π = (3/4, 1/4), π_ref = (1/2, 1/2); Q = β log 3/2, β log 1/2 from the start, both ends."""
    tree = token_tree([(0,)], 2, 1)
    forest = Growing([torch.tensor([0])])
    tables = (torch.tensor([[share, 1 - share]], dtype=torch.float64).log() for share in (0.75, 0.5))
    policy, reference = (Speaker(TabularLM(tree, table), forest, 2) for table in tables)
    ((answer,),) = tree_search(policy, reference, Limits(1), whole(4, exploration=9.0, backup="mean", beta=2.0))
    # PUCT, with ΣN = 0, 1, 2 (√ of at least 1): the second token has Q/β = -0.69 and bonuses 9 · 1/4 · (1, 1, √2)
    # the first 0.41 + 9 · 3/4 · (1, 1/2, √2/3): first, first again (3.78 > 1.56), first (3.59 > 2.49)
    q = [2 * math.log(1.5), 2 * math.log(0.5)]
    assert forest.column("visits").tolist() == [4, 3, 0]
    assert forest.column("value").tolist() == pytest.approx([(0 + 3 * q[0]) / 4, *q])
    assert answer == Answer(0, 1, (0,), False, pytest.approx(q[0]), pytest.approx(math.log(0.75)))
    assert policy.evaluations == 0


def test_the_most_tried_action_is_played_whatever_its_value() -> None:
    """Two states side by side, of three actions and of one that was never tried."""
    forest = Growing(PROMPTS)
    kids = forest.add(torch.tensor([0, 1, 2, 0]), forest.last[[0, 0, 0, 1]])
    forest.put("visits", kids, torch.tensor([3.0, 7.0, 7.0, 0.0]))
    forest.put("value", kids, torch.tensor([9.0, -2.0, -1.0, 4.0]))
    nodes, there = kids[torch.tensor([[0, 1, 2], [3, 3, 3]])], torch.tensor([[True, True, True], [True, False, False]])
    scores = BACKUPS["mean"].choice(Edges(forest, forest.last, nodes, there), 1.0)
    assert scores.argmax(-1).tolist() == [2, 0]
    assert scores.tolist() == [[-math.inf, -2.0, -1.0], [4.0, -math.inf, -math.inf]]


def test_a_soft_search_plays_what_is_likely_and_worth_it() -> None:
    """log π_ref + Q/β, by what a critic says of what follows: log π less the token's own reward, plus its Q."""
    forest = Growing(PROMPTS)
    kids = forest.add(torch.tensor([0, 1, 2]), forest.last[[0, 0, 1]])
    forest.put("logp", kids, torch.tensor([-1.0, -2.0, -3.0]))
    forest.put("reward", kids, torch.tensor([0.5, -0.25, 1.0]))
    forest.put("value", kids, torch.tensor([1.0, 2.0, 1.0]))
    nodes, there = kids[torch.tensor([[0, 1], [2, 2]])], torch.tensor([[True, True], [True, False]])
    scores = BACKUPS["soft"].choice(Edges(forest, forest.last, nodes, there), 0.5)
    assert scores.tolist() == [[-1.0 + 0.5 / 0.5, -2.0 + 2.25 / 0.5], [-3.0, -math.inf]]


def test_of_actions_tried_alike_the_better_is_played() -> None:
    search, forest = grown(whole(40, 0, 1e9, "ucb", "mean", beta=BETA), RAGGED)
    played = play(search, forest.last)
    for prompt in range(2):
        first, count = (int(forest.column(name)[forest.last[prompt]]) for name in ("first", "children"))
        visits, value = (forest.column(name)[first : first + count] for name in ("visits", "value"))
        tied = visits == visits.max()
        assert (count, int(tied.sum())) == ((2, 1), (4, 3))[prompt], "39 visits in two, and in four"
        assert played[prompt] - first == int(value.masked_fill(~tied, -9).argmax())


@pytest.mark.parametrize("top_k", [0, 2])
def test_a_soft_search_gives_the_policy_back(top_k: int) -> None:
    """Its root is worth 0 after any number of simulations, of any policy; it plays what is likeliest, and is greedy."""
    for simulations in (1, 2, 17):
        rules = whole(simulations, top_k, backup="soft", beta=BETA)
        _, forest = grown(rules)
        assert forest.column("value")[forest.last].tolist() == pytest.approx([0, 0], abs=1e-12)
        found, _ = searched(rules)
        for prompt, answer in enumerate(found):
            said: tuple[int, ...] = ()
            while len(said) < 3 and 3 not in said:
                said = (*said, int(LOGP[ROWS[*PROMPTS[prompt].tolist(), *said]].argmax()))
            assert answer.tokens == said


@pytest.mark.parametrize("selection", ["puct", "ucb"])
def test_a_hard_search_finds_the_highest_implicit_reward(selection: Any) -> None:
    found, forest = searched(whole(60, 0, 20.0, selection, beta=BETA))
    for prompt, answer in enumerate(found):
        assert answer.tokens == highest(REWARD, prompt)
        assert answer.score == pytest.approx(sums(REWARD, prompt)[answer.tokens])
        assert answer.logp == pytest.approx(sums(LOGP, prompt)[answer.tokens])
        assert answer.ended == (answer.tokens[-1] == 3)
        assert forest.column("value")[forest.last[prompt]] == pytest.approx(answer.score)
    by_mean, below = searched(whole(60, 0, 20.0, selection, "mean", beta=BETA))
    assert all(below.column("value")[below.last] < forest.column("value")[forest.last] - 0.1)
    assert all(mean.score <= best.score + 1e-12 for mean, best in zip(by_mean, found, strict=True))


def test_without_a_reference_the_likeliest_answer_is_looked_for() -> None:
    policy, _ = speakers()
    found = tree_search(policy, None, LIMITS, whole(60, 0, 20.0, beta=BETA))
    for prompt, (answer,) in enumerate(found):
        assert answer.tokens == highest(LOGP, prompt)
        assert answer.score == pytest.approx(BETA * answer.logp)
    assert "ref_logp" not in policy.forest.columns


def test_beta_scales_values_and_changes_no_choice() -> None:
    for leaf in ("implicit", "rollout"):
        (small, one), (large, other) = (searched(whole(12, 3, 1.0, leaf=leaf, beta=beta)) for beta in (0.1, 5.0))
        assert [answer.tokens for answer in small] == [answer.tokens for answer in large]
        torch.testing.assert_close(50 * one.column("value"), other.column("value"), equal_nan=True)


def test_what_was_found_out_below_an_action_stays() -> None:
    rules = whole(14, 0, 3.0, beta=BETA)
    search, forest = grown(rules)
    before = forest.column("visits").clone()
    roots = play(search, forest.last)
    search.narrow(roots)
    below = [n for n in range(3, len(forest)) if int(roots[forest.prompt[n]]) in forest.answered(n)]
    inner = forest.column("first").isnan() & ~search.over(torch.arange(len(forest)))
    assert sorted(search.open.tolist()) == [n for n in below if inner[n]]
    assert 0 < len(search.open) < inner[3:].sum()
    both = search.open
    search.narrow(roots[1:])
    assert search.open.tolist() == [node for node in both.tolist() if forest.prompt[node] == 1]
    search.open = both
    for _ in range(5):
        simulate(search, roots)
    after = forest.column("visits")
    assert (after[roots] == before[roots] + 5).all()
    others = torch.tensor([n for n in range(len(before)) if n not in below])  # below: the roots too
    assert torch.equal(after[others].nan_to_num(-1), before[others].nan_to_num(-1))


def test_an_end_pays_every_time_that_it_is_visited() -> None:
    table = torch.zeros_like(LOGP)
    table[:, 3] = 4.0  # the end has the highest ratio by far
    found, forest = searched(whole(11, 0, 0.1, backup="mean", beta=BETA), table.log_softmax(-1))
    reward = BETA * (table.log_softmax(-1) - REF_LOGPS)
    for prompt, answer in enumerate(found):
        pays = float(reward[ROWS[tuple(PROMPTS[prompt].tolist())], 3])
        assert (answer.tokens, answer.ended) == ((3,), True)
        assert forest.column("visits")[answer.node] == 10
        assert forest.column("value")[answer.node] == pytest.approx(pays)
        assert forest.column("value")[forest.last[prompt]] == pytest.approx(10 * pays / 11)


@pytest.mark.parametrize("seed", [2, 3, 5])
def test_a_critic_that_knows_needs_fewer_simulations(seed: int) -> None:
    """The exact highest reward of what follows."""
    tables = [random_table(TREE, of, 1.5).log_softmax(-1) for of in (seed, seed + 50)]
    reward = BETA * (tables[0] - tables[1])
    pays = [sums(reward, prompt) for prompt in range(2)]

    def follows(forest: Growing, nodes: Tensor) -> Tensor:
        ahead = []
        for node in nodes.tolist():
            said, of = tuple(forest.answer(node)), pays[int(forest.prompt[node])]
            paid = float(forest.column("reward")[forest.answered(node)].sum())
            ahead.append(max(value for tokens, value in of.items() if tokens[: len(said)] == said) - paid)
        return torch.tensor(ahead, dtype=torch.float64)

    best = [highest(reward, prompt) for prompt in range(2)]
    knowing, blind = (
        searched(whole(5, 0, 1.0, "ucb", leaf=leaf, beta=BETA), *tables)[0] for leaf in (follows, "implicit")
    )
    assert [answer.tokens for answer in knowing] == best
    assert [answer.tokens for answer in blind] != best


def test_rollouts_are_drawn_ends_and_their_rewards() -> None:
    search, forest = grown(whole(1, 0, backup="mean", leaf="rollout", beta=BETA, seed=5))
    for prompt in range(2):
        last = int(forest.last[prompt])
        first = int(forest.column("first")[last])
        drawn = [n for n in range(3, len(forest)) if forest.prompt[n] == prompt and forest.column("visits")[n].isnan()]
        path = forest.answered(drawn[-1])
        assert path == drawn, "one path, on nodes of its own"
        tokens = forest.answer(drawn[-1])
        assert forest.column("guess")[last] == pytest.approx(sums(REWARD, prompt)[tuple(tokens)])
        assert forest.column("value")[last] == forest.column("guess")[last]
        assert len(tokens) > 1
        for child in range(first, first + 4):
            went = int(forest.token[child]) == tokens[0]
            ahead = sum(float(forest.column("reward")[n]) for n in drawn[1:]) if went else 0.0
            assert forest.column("value")[child] == pytest.approx(float(forest.column("reward")[child]) + ahead)
    assert search.policy.evaluations == sum(forest.column("visits").isnan()[3:]) - 2


def test_every_rollout_has_chances_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def told(seed: int, number: int, shape: tuple[int, ...]) -> Tensor:
        asked.append((seed, number, shape))
        return uniform(seed, number, shape)

    monkeypatch.setattr("softq.search.mcts.uniform", told)
    for seed in (0, 3):
        search = Search(*speakers(), LIMITS, whole(leaf="rollout", seed=seed), torch.tensor([5, 8]))
        search.expand([[node] for node in search.forest.last.tolist()])
        behind = [node for node in search.open.tolist() if node > search.forest.last[-1]]
        search.expand([[behind[0]], [behind[-1]]])
    assert asked == [(seed * 2**32 + k, number, (3,)) for seed in (0, 3) for k in (1, 2) for number in (5, 8)]
    assert whole().seed == 0


def test_rollouts_follow_the_policy_and_depend_on_nothing_else() -> None:
    """The mean of the first leaf value is KL(π‖π_ref) of whole answers, and a neighbour changes nothing."""
    guesses = torch.stack(
        [(f := grown(whole(1, leaf="rollout", seed=s))[1]).column("guess")[f.last] for s in range(150)]
    )
    for prompt in range(2):
        logp, ratio = sums(LOGP, prompt), sums(LOGP - REF_LOGPS, prompt)
        mean = sum(math.exp(logp[y]) * ratio[y] for y in logp)
        spread = math.sqrt(sum(math.exp(logp[y]) * (ratio[y] - mean) ** 2 for y in logp) / 150)
        assert abs(float(guesses[:, prompt].mean()) - mean) < 3 * spread
    rules = whole(8, 3, backup="mean", leaf="rollout", seed=5)
    both, forest = searched(rules)
    assert searched(rules)[1].column("value").nan_to_num().tolist() == forest.column("value").nan_to_num().tolist()
    alone = Growing(PROMPTS[1:])
    voices = [Speaker(TabularLM(TREE, table), alone, 9) for table in (LOGP, REF_LOGPS)]
    ((one,),) = tree_search(*voices, LIMITS, rules, numbers=torch.tensor([1]))
    assert (one.tokens, one.score) == (both[1].tokens, both[1].score)
    mine = forest.column("value")[forest.prompt == 1].nan_to_num()
    assert alone.column("value").nan_to_num().tolist() == mine.tolist()


def test_a_chunk_is_one_action() -> None:
    """As long as answers are, a chunk is a first token and the likeliest end."""
    found, forest = searched(whole(12, 0, 50.0, "ucb", chunk=3, beta=BETA))
    _, of_mean = grown(whole(12, 0, 50.0, "ucb", "mean", chunk=3, beta=BETA))
    _, of_soft = grown(whole(12, 0, 50.0, "ucb", "soft", chunk=3, beta=BETA))
    for prompt, answer in enumerate(found):
        ends = {}
        for token in range(4):
            said: tuple[int, ...] = (token,)
            while len(said) < 3 and 3 not in said:
                said = (*said, int(LOGP[ROWS[*PROMPTS[prompt].tolist(), *said]].argmax()))
            ends[said] = sums(REWARD, prompt)[said]
        assert answer.tokens == max(ends, key=lambda said: ends[said])
        assert answer.score == pytest.approx(max(ends.values()))
        last = int(forest.last[prompt])
        assert forest.column("value")[last] == pytest.approx(answer.score)
        first = int(of_mean.column("first")[last])
        total = 0.0
        for child in range(first, first + 4):
            (reward,) = (value for said, value in ends.items() if said[0] == int(of_mean.token[child]))
            assert of_mean.column("visits")[child] > 0
            for below in (of_mean, of_soft):
                assert below.column("value")[child] == pytest.approx(reward), "inside a chunk nothing is guessed"
            total += float(of_mean.column("visits")[child]) * reward
        assert of_mean.column("value")[last] == pytest.approx(total / 12)


def test_chunks_end_at_their_length_and_at_separators() -> None:
    tables = [random_table(token_tree([(0, 1), (2,)], 4, 6), seed, 1.5) for seed in (2, 3)]
    tree = token_tree([(0, 1), (2,)], 4, 6)
    for chunk, separators in ((2, frozenset[int]()), (6, frozenset([1, 2]))):
        forest = Growing(PROMPTS)
        voices = [Speaker(TabularLM(tree, table), forest, 9) for table in tables]
        found = tree_search(
            *voices, Limits(6), whole(12, 3, 5.0, "ucb", prior="ref", chunk=chunk, separators=separators)
        )
        assert all(len(answer.tokens) == 6 and not answer.ended for (answer,) in found)
        inner = 0
        for node in (~forest.column("first").isnan()).nonzero()[:, 0].tolist():
            said = forest.answer(node)
            branches = len(said) % chunk == 0 or bool(said and said[-1] in separators)
            assert forest.column("children")[node] == (3 if branches else 1)
            assert forest.column("guess")[node].isnan() == (not branches)
            if not branches:
                child, inner = int(forest.column("first")[node]), inner + 1
                state = (*PROMPTS[forest.prompt[node]].tolist(), *said)
                assert forest.token[child] == int(tables[0][tree.prefixes.index(state)].argmax())
                played = node in forest.answered(found[int(forest.prompt[node])][0].node)
                assert played or forest.column("visits")[child] == forest.column("visits")[node]
        assert inner > 5


def test_a_token_that_one_of_them_forbids_is_no_action() -> None:
    closed = LOGP.clone()
    closed[:, 0] = -torch.inf
    for prior in ("policy", "ref"):
        for tables in ((closed.log_softmax(-1), REF_LOGPS), (LOGP, closed.log_softmax(-1))):
            _, forest = searched(whole(30, 0, 20.0, "ucb", prior=prior, beta=BETA), *tables)
            assert not (forest.token[3:] == 0).any()
    other = REF_LOGPS.clone()
    other[ROWS[2,], 1:] = -torch.inf  # one of the prompts
    with pytest.raises(ValueError, match="no token is possible for both"):
        searched(whole(3), closed.log_softmax(-1), other)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (Rules(0), "0 simulations of chunks of 1: expected at least 1 of each"),
        (Rules(chunk=0), "32 simulations of chunks of 0: expected at least 1 of each"),
        (Rules(top_k=-1), "top_k = -1: expected at least 1 action of a state, or 0 for all"),
        (Rules(prior="ref"), "the prior is the reference's, and there is none"),
        (Rules(backup="soft", leaf="rollout"), "a soft backup knows what follows, 0 exactly"),
        (Rules(selection="pucd"), "selection = 'pucd': expected puct or ucb"),
        (Rules(backup="hard"), "backup = 'hard': expected mean or max or soft"),
        (Rules(prior="base"), "prior = 'base': expected policy or ref"),
        (Rules(leaf="critic"), "leaf = 'critic': expected implicit or rollout"),
        (Rules(plausible=-0.1), "plausible = -0.1: expected from 0, any token, to 1, the likeliest alone"),
        (Rules(plausible=1.1), "plausible = 1.1: expected from 0"),
    ],
)
def test_rules_that_make_no_search_are_refused(rules: Rules, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tree_search(speakers()[0], None, LIMITS, rules)


def test_the_decoder_passes_its_settings_on() -> None:
    def on(seed: int = 0) -> Heard:
        tables = {"policy": TabularLM(TREE, LOGP), "ref": TabularLM(TREE, REF_LOGPS)}
        return Heard(tables, PROMPTS, LIMITS, seed=seed, numbers=[4, 9])

    given: dict[str, Any] = {
        "simulations": 7, "top_k": 3, "exploration": 0.5, "selection": "ucb", "backup": "mean", "prior": "ref",
        "leaf": "rollout", "chunk": 2, "plausible": 0.25,
    }  # fmt: skip
    heard = on(3)
    found = DECODERS["mcts"](heard, **given)
    policy, reference = speakers()
    assert found == tree_search(policy, reference, LIMITS, Rules(**given, seed=3), numbers=torch.tensor([4, 9]))
    assert heard.evaluations == policy.evaluations + reference.evaluations
    plain, _ = searched(Rules())
    assert DECODERS["mcts"](on()) == [[answer] for answer in plain]


def small(layout: str) -> list[CausalLM]:
    """A policy and a reference: the policy moved by noise."""
    found = []
    for seed in range(2):
        model = tiny("llama", torch.float32)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.6).add_(0.03 * torch.randn(parameter.shape, generator=generator))
            model.get_output_embeddings().weight[2] *= 3
        found.append(load(model, None, tokenizer=tokenizer(), layout=layout).policy)
    return found


@pytest.mark.parametrize("rules", [whole(20, 5, 5.0), whole(9, 4, 5.0, "ucb", "mean", leaf="rollout", chunk=2)])
def test_on_a_transformer_numbers_are_those_of_the_full_score_and_each_state_is_computed_once(rules: Rules) -> None:
    policy, reference = small("packed")
    prompts = [torch.tensor([5, 6, 7, 8, 9, 10, 11]), torch.tensor([12]), torch.tensor([13, 14, 15])]
    forest = Growing(prompts)
    voices = [Speaker(model, forest, 30) for model in (policy, reference)]
    found = [answers[0] for answers in tree_search(*voices, Limits(9, frozenset([2])), rules)]
    tokens = tokens_of(prompts, found)
    with torch.no_grad():
        full = score(Models({"policy": policy, "ref": reference}), tokens, (REF_LOGP,))
    for row, answer in enumerate(found):
        path, action = forest.answered(answer.node), tokens.action[row]
        for name in ("logp", "ref_logp"):
            torch.testing.assert_close(forest.column(name)[path].float(), full[name][row, action], rtol=0, atol=1e-5)
        assert answer.score == pytest.approx(float((full["logp"] - full["ref_logp"])[row].sum()), abs=2e-5)
    parents = forest.parent[int(forest.last[-1]) + 1 :].unique()
    asked = int((parents > forest.last[-1]).sum())
    assert [voice.evaluations for voice in voices] == [asked, asked]
    assert asked > 100, "more than there is room for at first: what is needed again was kept"
