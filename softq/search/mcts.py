"""Monte-Carlo tree search: every simulation walks down one path of each prompt's tree, looks one state on, and tells those above.

Rewards are implicit, r = β log π/π_ref a token, so that the sum over an answer is its implicit reward. In them the soft value
of what follows any state is exactly 0, since Σ_a π_ref e^{r/β} = 1: with a soft backup the search gives back the policy that it
was given, which is what "the policy is a Q-function" says. What it can add, it adds by looking for a maximum (hard backup), by
the mean of what was tried, or by a value that knows more than the policy. V* can not be read off a policy, only these sums.
Inside a chunk there is no choice, and it is worth its rewards' sum: over chunks a soft backup is not exact any more.
Where both models forbid a token its ratio is noise, and a search for a maximum would find it: only plausible tokens are actions.

Every node that was thought of knows `logp`, `ref_logp`, `reward`, `prior`, `visits` and `value`: its Q, the reward of its token
and what follows (of a prompt's last node, what follows). And for the search itself: `first` and `children`, the number of its
first child and how many they are; `guess`, what its leaf value was; `left`, log of the policy's mass on tokens that are no
children; `ended`. Nodes of rollouts know `logp`, `ref_logp`, `reward` and `ended` alone.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from softq.lm.growing import Growing
from softq.search.answer import Answer, Limits, answer
from softq.search.backups import BACKUPS, SELECTIONS, Edges
from softq.search.sampling import pick, uniform
from softq.search.voice import Voice, plausible

Valued = Callable[[Growing, Tensor], Tensor]
"""(forest, nodes [n]) -> [n]: the reward of what follows each, in units of β log π/π_ref."""


KNOWN: Mapping[str, Collection[str]] = {
    "selection": SELECTIONS,
    "backup": BACKUPS,
    "prior": ("policy", "ref"),
    "leaf": ("implicit", "rollout"),
}
"""What rules may say in words."""


class Rules(NamedTuple):
    """How a tree is searched."""

    simulations: int = 32  # before every action; the first of a search expands the root, so N(root) is their number
    top_k: int = 10  # actions of a state: the likeliest tokens by the prior; 0: all
    exploration: float = 3.0  # nats: Q/β + this times the bonus is followed
    selection: Literal["puct", "ucb"] = "puct"
    backup: Literal["mean", "max", "soft"] = "max"
    prior: Literal["policy", "ref"] = "policy"
    leaf: Literal["implicit", "rollout"] | Valued = "implicit"  # 0; a sampled end's rewards; or what a critic says
    chunk: int = 1  # tokens of an action: one of the top_k, and behind it the likeliest ones
    plausible: float = (
        0.1  # as likely under the policy as its likeliest token, at least: an action begins with no other
    )
    separators: frozenset[int] = frozenset()  # tokens that end a chunk early
    beta: float = 1.0  # reward per nat
    seed: int = 0  # of rollouts


def tree_search(
    policy: Voice, reference: Voice | None, limits: Limits, rules: Rules, *, numbers: Tensor | None = None
) -> list[list[Answer]]:
    """One answer to each prompt, played action by action; its score is its implicit reward, Σ β log π/π_ref.

    Before every action there are `simulations`, all prompts' leaves in one call of the voices (of a chunk: one call a token).
    What was found out behind the action that is played stays: N of the next root is what it had, and `simulations` more. The
    action of the highest Q is played (max), that of the most visits (mean), or that of the highest π_ref e^{Q/β} (soft). Without
    a reference rewards are β log π. `numbers` [P] name the prompts, as in `sample`.
    """
    search = Search(policy, reference, limits, rules, numbers)
    forest, roots = search.forest, search.forest.last
    answers: list[list[Answer]] = [[] for _ in roots]
    forest.put("visits", roots, torch.zeros(len(roots)))
    while len(roots):
        for _ in range(rules.simulations):
            simulate(search, roots)
        roots = play(search, roots)
        for node in roots[search.over(roots)].tolist():
            reward = float(forest.column("reward")[forest.answered(node)].sum())
            found = answer(forest, node, bool(forest.column("ended")[node]), reward)
            answers[found.prompt].append(found)
        roots = roots[~search.over(roots)]
        search.narrow(roots)
    return answers


class Search:
    """The tree, who speaks in it, and what is still open."""

    def __init__(
        self, policy: Voice, reference: Voice | None, limits: Limits, rules: Rules, numbers: Tensor | None
    ) -> None:
        _check(rules, reference)
        self.policy, self.reference, self.limits, self.rules = policy, reference, limits, rules
        self.forest = policy.forest
        self.open = self.forest.last  # nodes that may be gone on from
        self._numbers = torch.arange(len(self.forest.last)) if numbers is None else numbers
        self._expansions = 0
        self._followed: dict[int, int] = {}

    def over(self, nodes: Tensor) -> Tensor:
        """[n] bool: ended, or at the limit; nothing follows."""
        return (self.forest.column("ended")[nodes] == 1) | (self.length(nodes) >= self.limits.tokens)

    def length(self, nodes: Tensor) -> Tensor:
        """[n] tokens of each one's answer so far."""
        return self.forest.depth[nodes] - self.forest.depth[self.forest.last[self.forest.prompt[nodes]]]

    def edges(self, states: Tensor) -> Edges:
        """The actions of states [n] that were expanded."""
        first, count = (self.forest.column(name)[states, None].long() for name in ("first", "children"))
        place = torch.arange(int(count.max()))
        return Edges(self.forest, states, first + place * (place < count), place < count)

    def path(self, root: int) -> list[int]:
        """Down from a root by Q/β + exploration · bonus, until a node has no children."""
        path = [root]
        while (child := self._followed.get(path[-1])) is not None:
            path.append(child)
        return path

    def follow(self, edges: Edges) -> None:
        """Settle which children paths go by, until something is told to their states."""
        bonus = self.rules.exploration * SELECTIONS[self.rules.selection](edges)
        taken = _taken(edges, edges.of("value", -torch.inf) / self.rules.beta + bonus)
        self._followed |= zip(edges.states.tolist(), taken.tolist(), strict=True)

    def expand(self, paths: Sequence[list[int]]) -> None:
        """Paths go on to the end of their chunk, which gets children and a guess; or is over."""
        ends = torch.tensor([path[-1] for path in paths])
        going = (~self.over(ends)).nonzero()[:, 0]
        while len(going):
            at, branching = ends[going], self._branches(ends[going])
            logp, ref_logp = self._said(at)
            self._sprout(at, logp, ref_logp, branching)
            self._guess(at[branching], logp[branching], ref_logp[branching])
            going = going[~branching]
            ends[going] = self.forest.column("first")[ends[going]].long()
            for path, node in zip(going.tolist(), ends[going].tolist(), strict=True):
                paths[path].append(node)
            going = going[~self.over(ends[going])]

    def narrow(self, roots: Tensor) -> None:
        """Only what stands behind these, and has no children yet, is open."""
        forest = self.forest
        found = self.open[forest.column("first")[self.open].isnan()]
        fixed = torch.cat([torch.arange(int(forest.last[-1]) + 1), roots])
        above = forest.parent.clone()
        above[fixed] = fixed
        at = found
        while not torch.equal(higher := above[at], at):
            at, above = higher, above[above]  # twice as far each time
        self.open = found[torch.isin(at, roots)]

    def _said(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """log π and log π_ref of every next token, [n, V] each; asked once of each node."""
        voices = [self.policy] if self.reference is None else [self.policy, self.reference]
        for voice in voices:
            voice.keep(torch.cat([self.open, nodes]))
        logp, *others = (voice.logits(nodes).log_softmax(-1) for voice in voices)
        return logp, others[0] if others else torch.zeros_like(logp)

    def _branches(self, nodes: Tensor) -> Tensor:
        """[n] bool: whether a chunk ends here."""
        separators = torch.tensor([*self.rules.separators], dtype=torch.int64)
        return (self.length(nodes) % self.rules.chunk == 0) | torch.isin(self.forest.token[nodes], separators)

    def _sprout(self, at: Tensor, logp: Tensor, ref_logp: Tensor, branching: Tensor) -> None:
        """The top_k children of states where a chunk ends, and of others the policy's likeliest."""
        by_ref = branching[:, None].to(logp.device) & (self.rules.prior == "ref")
        likely = torch.where(by_ref, ref_logp, logp)
        likely = likely.masked_fill(~plausible(logp, self.rules.plausible) | (ref_logp == -torch.inf), -torch.inf)
        top, token = likely.topk(min(self.rules.top_k or likely.shape[1], likely.shape[1]), -1)
        there = (top > -torch.inf).cpu()
        there[:, 1:] &= branching[:, None]
        if not there[:, 0].all():
            raise ValueError("no token is possible for both the policy and the reference")
        logp, ref_logp = (x.gather(-1, token).double().cpu() for x in (logp, ref_logp))
        prior = top.double().cpu().masked_fill(~there, -torch.inf).softmax(-1)
        left = torch.log1p(-(logp.exp() * there).sum(-1).clamp(max=1.0))
        parent, token = at[there.nonzero()[:, 0]], token.cpu()[there]
        ended = self.limits.ended(self.forest, parent, token)
        kids = self._add(token, parent, logp[there], ref_logp[there])
        reward = self.forest.column("reward")[kids]
        columns = {"prior": prior[there], "visits": torch.zeros(len(kids)), "value": reward, "ended": ended}
        for name, values in columns.items():
            self.forest.put(name, kids, values)
        count = there.sum(-1)
        for name, values in {"first": kids[count.cumsum(0) - count], "children": count, "left": left}.items():
            self.forest.put(name, at, values)
        self.open = torch.cat([self.open, kids[~self.over(kids)]])

    def _add(self, token: Tensor, parent: Tensor, logp: Tensor, ref_logp: Tensor) -> Tensor:
        """New nodes [n], with what the voices say of them."""
        nodes = self.forest.add(token, parent)
        self.forest.put("logp", nodes, logp)
        if self.reference is not None:
            self.forest.put("ref_logp", nodes, ref_logp)
        self.forest.put("reward", nodes, self.rules.beta * (logp - ref_logp))
        return nodes

    def _guess(self, at: Tensor, logp: Tensor, ref_logp: Tensor) -> None:
        """The leaf values of states with children; and of a child, until it is tried, its reward and its state's leaf value.

        Of a rollout: its own rewards, for the state and the child that it went by; 0 behind the others.
        """
        if not len(at):
            return
        edges = self.edges(at)
        if self.rules.leaf == "rollout":
            token, first, guess = self._roll_out(at, logp, ref_logp)
            went = self.forest.token[edges.nodes] == token[:, None]
            ahead = torch.where(went, (guess - first)[:, None], 0.0)
        else:
            guess = torch.zeros(len(at)) if self.rules.leaf == "implicit" else self.rules.leaf(self.forest, at)
            guess = guess.double().cpu()
            ahead = guess[:, None].expand(edges.nodes.shape)
        kids, ahead = edges.nodes[edges.there], ahead[edges.there].masked_fill(self.over(edges.nodes[edges.there]), 0.0)
        self.forest.put("guess", at, guess)
        self.forest.put("value", kids, self.forest.column("reward")[kids] + ahead)

    def _roll_out(self, at: Tensor, logp: Tensor, ref_logp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """An answer's end drawn from the policy behind each state: its first token, its reward, and that of all, [n] each."""
        self._expansions += 1
        seed = self.rules.seed * 2**32 + self._expansions
        numbers = self._numbers[self.forest.prompt[at]].tolist()
        chance = torch.stack([uniform(seed, number, (self.limits.tokens,)) for number in numbers])
        live, total = torch.arange(len(at)), torch.zeros(len(at), dtype=torch.float64)
        firsts: tuple[Tensor, Tensor] | None = None
        for chances in chance.T:
            token = pick(logp.double().cpu(), chances[live])
            ended = self.limits.ended(self.forest, at, token)
            taken = (x.cpu().gather(-1, token[:, None])[:, 0] for x in (logp, ref_logp))
            nodes = self._add(token, at, *taken)
            self.forest.put("ended", nodes, ended)
            total[live] += self.forest.column("reward")[nodes]
            firsts = firsts or (token, total.clone())
            on = ~self.over(nodes)
            at, live = nodes[on], live[on]
            if not len(at):
                break
            logp, ref_logp = self._said(at)
        assert firsts is not None
        return *firsts, total


def simulate(search: Search, roots: Tensor) -> None:
    """One path down from each root [n], one state further, and what is found is told to those above."""
    paths = [search.path(root) for root in roots.tolist()]
    search.expand(paths)
    back_up(search, paths)


def back_up(search: Search, paths: Sequence[Sequence[int]]) -> None:
    """One more visit, and its value as it is now, of every node of these paths, root first.

    What is over is worth its reward, every time that it is visited.
    """
    forest, beta = search.forest, search.rules.beta
    nodes = torch.tensor([node for path in paths for node in path])
    went = torch.tensor([node for path in paths for node in (*path[1:], -1)])
    forest.put("visits", nodes, forest.column("visits")[nodes] + 1)
    inner = (~forest.column("first")[nodes].isnan()).nonzero()[:, 0]
    backup, edges = BACKUPS[search.rules.backup], search.edges(nodes[inner])
    others = torch.zeros(len(nodes), dtype=torch.float64)
    weight = torch.full_like(others, backup.sums.nothing)
    others[inner], weight[inner] = backup.around(edges, went[inner], beta)
    known = (each.tolist() for each in (forest.column("reward")[nodes].nan_to_num(), others, weight))
    values, q = list[float](), 0.0
    for reward, other, weighs in reversed([*zip(*known, strict=True)]):
        q = reward + backup.sums.after(other, weighs, q, beta)  # where a path ends, q of the one before weighs nothing
        values.append(q)
    forest.put("value", nodes, torch.tensor(values[::-1], dtype=torch.float64))
    search.follow(edges)


def play(search: Search, roots: Tensor) -> Tensor:
    """[n] roots -> [n]: what stands behind each one's action, the rest of its chunk included as far as it was said."""
    edges = search.edges(roots)
    at = _taken(edges, BACKUPS[search.rules.backup].choice(edges, search.rules.beta))
    forest = search.forest
    while len(inside := (forest.column("guess")[at].isnan() & ~forest.column("first")[at].isnan()).nonzero()[:, 0]):
        at[inside] = forest.column("first")[at[inside]].long()
    return at


def _check(rules: Rules, reference: Voice | None) -> None:
    """ValueError for rules that make no search."""
    if rules.simulations < 1 or rules.chunk < 1:
        raise ValueError(f"{rules.simulations} simulations of chunks of {rules.chunk}: expected at least 1 of each")
    if rules.top_k < 0:
        raise ValueError(f"top_k = {rules.top_k}: expected at least 1 action of a state, or 0 for all")
    for name, known in KNOWN.items():
        if not callable(given := getattr(rules, name)) and given not in known:
            raise ValueError(f"{name} = {given!r}: expected {' or '.join(known)}")
    if rules.prior == "ref" and reference is None:
        raise ValueError("the prior is the reference's, and there is none: give a reference, or prior = policy")
    if rules.backup == "soft" and rules.leaf == "rollout":
        raise ValueError("a soft backup knows what follows, 0 exactly: a rollout would only add noise")


def _taken(edges: Edges, score: Tensor) -> Tensor:
    """[n] the children of the highest score, the first where they tie."""
    return edges.nodes.gather(1, score.argmax(-1, keepdim=True))[:, 0]
