"""Monte-Carlo tree search: every simulation walks down one path of each prompt's tree, looks one state on, and tells those above.

Rewards are implicit, r = β log π/π_ref a token, so that the sum over an answer is its implicit reward. In them the soft value
of what follows any state is exactly 0, since Σ_a π_ref e^{r/β} = 1: with a soft backup the search gives back the policy that it
was given, which is what "the policy is a Q-function" says. What it can add, it adds by looking for a maximum (hard backup), by
the mean of what was tried, or by a value that knows more than the policy. V* can not be read off a policy, only these sums.
Inside a chunk there is no choice, and it is worth its rewards' sum: over chunks a soft backup is not exact any more.

Every node that was thought of knows `logp`, `ref_logp`, `reward`, `prior`, `visits` and `value`: its Q, the reward of its token
and what follows (of a prompt's last node, what follows). And for the search itself: `first` and `children`, the number of its
first child and how many they are; `guess`, what its leaf value was; `left`, log of the policy's mass on tokens that are no
children; `ended`. Nodes of rollouts know `logp`, `ref_logp`, `reward` and `ended` alone.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from softq.lm.growing import Growing
from softq.search.answer import Answer, Limits, answer
from softq.search.sampling import pick, uniform
from softq.search.voice import Voice

Valued = Callable[[Growing, Tensor], Tensor]
"""(forest, nodes [n]) -> [n]: the reward of what follows each, in units of β log π/π_ref."""


class Edges(NamedTuple):
    """The actions of n states, side by side."""

    forest: Growing
    states: Tensor  # [n]
    nodes: Tensor  # [n, k] the children
    there: Tensor  # [n, k] bool; where False, there is none

    def of(self, name: str, otherwise: float = 0.0) -> Tensor:
        """[n, k] what a column says of the children, and of what is none."""
        return torch.where(self.there, self.forest.column(name)[self.nodes], otherwise)

    def own(self, name: str) -> Tensor:
        """[n] what a column says of the states."""
        return self.forest.column(name)[self.states]


def puct(edges: Edges) -> Tensor:
    """P √ΣN / (1 + N) [n, k]: how much there is to find out, where the prior is high first (arXiv 2309.15028)."""
    visits = edges.of("visits")
    return edges.of("prior") * visits.sum(-1, keepdim=True).clamp(min=1).sqrt() / (1 + visits)


def ucb(edges: Edges) -> Tensor:
    """√(log ΣN / (1 + N)) [n, k], whatever the prior says (arXiv 2408.07199)."""
    visits = edges.of("visits")
    return (visits.sum(-1, keepdim=True).clamp(min=1).log() / (1 + visits)).sqrt()


class Backup(NamedTuple):
    """What a state is worth by its actions, and which of them is taken in the end."""

    value: Callable[[Edges, float], Tensor]  # of β too; [n]
    choice: Callable[[Edges, float], Tensor]  # [n, k]: the highest is taken


def mean(edges: Edges, beta: float) -> Tensor:
    """(V_0 + Σ N Q) / (1 + Σ N) [n]: below the maximum, as long as other actions were tried."""
    visits = edges.of("visits")
    return (edges.own("guess") + (visits * edges.of("value")).sum(-1)) / (1 + visits.sum(-1))


def hard(edges: Edges, beta: float) -> Tensor:
    """max Q [n], actions that were not tried with what is guessed of them."""
    return edges.of("value", -torch.inf).amax(-1)


def soft(edges: Edges, beta: float) -> Tensor:
    """β log Σ_a π_ref e^{Q/β} [n] over the whole vocabulary: a token that is no child has its reward and its state's guess."""
    others = edges.own("left") + edges.own("guess") / beta
    return beta * torch.cat([_tilted(edges, beta), others[:, None]], -1).logsumexp(-1)


def _tilted(edges: Edges, beta: float) -> Tensor:
    """log π_ref + Q/β, where log π_ref = log π - r/β: 0 without a reference."""
    return edges.of("logp", -torch.inf) + (edges.of("value") - edges.of("reward")) / beta


def _most_tried(edges: Edges, beta: float) -> Tensor:
    """N, and Q where it ties."""
    visits = edges.of("visits", -1.0)
    return edges.of("value").masked_fill(visits < visits.amax(-1, keepdim=True), -torch.inf)


def _highest(edges: Edges, beta: float) -> Tensor:
    return edges.of("value", -torch.inf)


SELECTIONS: Mapping[str, Callable[[Edges], Tensor]] = {"puct": puct, "ucb": ucb}
BACKUPS: Mapping[str, Backup] = {
    "mean": Backup(mean, _most_tried),
    "max": Backup(hard, _highest),
    "soft": Backup(soft, _tilted),
}


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
            back_up(search, search.expand(select(search, roots)), roots)
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
        if rules.simulations < 1 or rules.chunk < 1:
            raise ValueError(f"{rules.simulations} simulations of chunks of {rules.chunk}: expected at least 1 of each")
        if rules.top_k < 0:
            raise ValueError(f"top_k = {rules.top_k}: expected at least 1 action of a state, or 0 for all")
        if rules.prior == "ref" and reference is None:
            raise ValueError("the prior is the reference's, and there is none: give a reference, or prior = policy")
        if rules.backup == "soft" and rules.leaf == "rollout":
            raise ValueError("a soft backup knows what follows, 0 exactly: a rollout would only add noise")
        self.policy, self.reference, self.limits, self.rules = policy, reference, limits, rules
        self.forest = policy.forest
        self.open = self.forest.last  # nodes that may be gone on from
        self._numbers = torch.arange(len(self.forest.last)) if numbers is None else numbers
        self._expansions = 0

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

    def expand(self, leaves: Tensor) -> Tensor:
        """[n] leaves -> [n]: what stands at the end of each one's chunk now, with children and a guess; or it is over."""
        ends = leaves.clone()
        going = (~self.over(leaves)).nonzero()[:, 0]
        while len(going):
            at, branching = ends[going], self._branches(ends[going])
            logp, ref_logp = self._said(at)
            self._sprout(at, logp, ref_logp, branching)
            self._guess(at[branching], logp[branching], ref_logp[branching])
            ends[going[~branching]] = self.forest.column("first")[at[~branching]].long()
            going = going[~branching]
            going = going[~self.over(ends[going])]
        return ends

    def narrow(self, roots: Tensor) -> None:
        """Only what stands behind these, and has no children yet, is open."""
        forest = self.forest
        under = torch.zeros_like(forest.last)
        under[forest.prompt[roots]] = roots
        going = torch.isin(forest.prompt[self.open], forest.prompt[roots])
        found = self.open[forest.column("first")[self.open].isnan() & going]
        goal, above = under[forest.prompt[found]], found
        while len(lower := (forest.depth[above] > forest.depth[goal]).nonzero()[:, 0]):
            above = above.index_copy(0, lower, forest.parent[above[lower]])
        self.open = found[above == goal]

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
        likely = likely.masked_fill((logp == -torch.inf) | (ref_logp == -torch.inf), -torch.inf)
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


def select(search: Search, roots: Tensor) -> Tensor:
    """[n] roots -> [n] leaves: down by Q/β + exploration · bonus, until a state has no children."""
    rules, at = search.rules, roots.clone()
    while len(inner := (~search.forest.column("first")[at].isnan()).nonzero()[:, 0]):
        edges = search.edges(at[inner])
        bonus = rules.exploration * SELECTIONS[rules.selection](edges)
        at[inner] = _taken(edges, edges.of("value", -torch.inf) / rules.beta + bonus)
    return at


def back_up(search: Search, leaves: Tensor, roots: Tensor) -> None:
    """One more visit, and its value as it is now, of every node from the leaves [n] up to the roots [n].

    What is over is worth its reward, every time that it is visited.
    """
    forest, rules = search.forest, search.rules
    while len(leaves):
        ahead = torch.zeros(len(leaves), dtype=torch.float64)
        inner = (~forest.column("first")[leaves].isnan()).nonzero()[:, 0]
        if len(inner):
            edges = search.edges(leaves[inner])
            worth = BACKUPS[rules.backup].value(edges, rules.beta)
            ahead[inner] = torch.where(edges.own("guess").isnan(), edges.of("value")[:, 0], worth)
        forest.put("value", leaves, forest.column("reward")[leaves].nan_to_num() + ahead)
        forest.put("visits", leaves, forest.column("visits")[leaves] + 1)
        up = leaves != roots
        leaves, roots = forest.parent[leaves[up]], roots[up]


def play(search: Search, roots: Tensor) -> Tensor:
    """[n] roots -> [n]: what stands behind each one's action, the rest of its chunk included as far as it was said."""
    edges = search.edges(roots)
    at = _taken(edges, BACKUPS[search.rules.backup].choice(edges, search.rules.beta))
    forest = search.forest
    while len(inside := (forest.column("guess")[at].isnan() & ~forest.column("first")[at].isnan()).nonzero()[:, 0]):
        at[inside] = forest.column("first")[at[inside]].long()
    return at


def _taken(edges: Edges, score: Tensor) -> Tensor:
    """[n] the children of the highest score, the first where they tie."""
    return edges.nodes.gather(1, score.argmax(-1, keepdim=True))[:, 0]
