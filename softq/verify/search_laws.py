"""The laws of search: decoders, run on tables, against what can be enumerated of all answers (arXiv 2404.12358, section 4.3)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softq import masked
from softq.lm.growing import Growing
from softq.mdp.soft import maxent, sequence_kl, soft_backup
from softq.mdp.tabular import TabularLM, expected, occupancy, random_table
from softq.search.answer import Answer, Limits
from softq.search.beam import Objective, beam
from softq.search.mcts import Rules, tree_search
from softq.search.sampling import filtered, pick, sample
from softq.search.voice import Likelihood, LogRatio, Rated, Speaker, Voice, realigned, tuned
from softq.verify.law import EXACT, Finding, Law, apart
from softq.verify.theory import Table

GAP = 1e-9  # nats that a decoder which is not exact is off by at least, in these tables

Listened = Callable[..., Voice]
"""Voices, one a table, to the voice that is heard."""


def limits(on: Table) -> Limits:
    """Where the table's answers end."""
    ends = (on.tree.next < 0).all(0).nonzero()[:, 0].tolist()
    return Limits(int(on.tree.depth.max()) + 1, frozenset(ends))


def speakers(on: Table, *tables: Tensor) -> list[Speaker]:
    """Tables [S, V] that speak behind the table's prompts, in one forest."""
    forest = Growing([torch.tensor(on.tree.prefixes[s]) for s in (on.tree.depth == 0).nonzero()[:, 0].tolist()])
    return [Speaker(TabularLM(on.tree, table), forest, max(map(len, on.tree.prefixes)) + 1) for table in tables]


def said(on: Table, listened: Listened, *tables: Tensor) -> Tensor:
    """[S, V] nats: what a voice made of these tables says at every state."""
    voices = speakers(on, *tables)
    forest, node = voices[0].forest, torch.zeros(len(on.tree.prefixes), dtype=torch.int64)
    node[on.tree.depth == 0] = forest.last
    for depth in range(int(on.tree.depth.max())):
        state, token = ((on.tree.depth == depth)[:, None] & (on.tree.next >= 0)).nonzero(as_tuple=True)
        node[on.tree.next[state, token]] = forest.add(token, node[state])
    return listened(*voices).logits(node).log_softmax(-1)


def found_in(on: Table, answers: Sequence[Answer]) -> Tensor:
    """[n] the leaves that answers are."""
    rows = {
        (int(prompt), *ids[action].tolist()): b
        for b, (prompt, ids, action) in enumerate(
            zip(on.leaves.prompt, on.leaves.ids[:, 1:], on.leaves.action, strict=True)
        )
    }
    return torch.tensor([rows[each.prompt, *each.tokens] for each in answers])


def scores(answers: Sequence[Answer]) -> Tensor:
    """[n] float64."""
    return torch.tensor([each.score for each in answers], dtype=torch.float64)


def worst(*errors: float) -> float:
    """The largest; nan if one is."""
    return float(torch.tensor(errors, dtype=torch.float64).max())


def flat(answers: Sequence[Sequence[Answer]]) -> list[Answer]:
    """Those of all prompts."""
    return [each for of in answers for each in of]


def both_modes(on: Table, policy: Tensor, reference: Tensor) -> tuple[Objective, Objective]:
    """Likelihood, and the log-ratio over every token that is possible: each in a forest of its own."""
    (alone,) = speakers(on, policy)
    return Likelihood(alone), LogRatio(*speakers(on, policy, reference), plausible=0.0)


def _exhaustive(on: Table) -> Finding:
    """As wide as there are answers: all are found, each at its reward (and what the reference makes of it) less V*(s_0)."""
    start, group = on.optimum.v[on.leaves.prompt], on.leaves.prompt
    ratio = on.sums(on.reward) - start
    off, width = 0.0, int(on.alive.sum())
    for n in (1, width):
        values = (ratio + on.beta * on.sums(on.reference), ratio)
        for objective, value in zip(both_modes(on, on.optimum.logp, on.reference), values, strict=True):
            answers = beam(objective, limits(on), width=width, n=n)
            first, rows = found_in(on, [each[0] for each in answers]), found_in(on, flat(answers))
            best = torch.stack([value[on.alive & (group == g)].max() for g in range(len(answers))])
            off = worst(off, apart(on.beta * scores(flat(answers)), value[rows]), apart(value[first], best))
            off += abs(len(rows.unique()) - (len(answers) if n == 1 else width))
    return Finding(off, EXACT * max(1.0, on.beta))


def _greedy(on: Table) -> Finding:
    """By likelihood one beam takes the highest of every state. By log-ratio it also looks on behind an end, and finds no less."""
    off = 0.0
    for policy in (on.optimum.logp, on.other, on.reference):
        likely, ratio = (beam(objective, limits(on), width=1) for objective in both_modes(on, policy, on.reference))
        for g, ((answer,), (other,)) in enumerate(zip(likely, ratio, strict=True)):
            total, tokens = _highest(on, policy, g)
            off = worst(off, abs(answer.score - total), float(answer.tokens != tokens))
            off = worst(off, _highest(on, _ratio(on, policy), g)[0] - other.score)
    return Finding(off, EXACT)


def _highest(on: Table, gain: Tensor, prompt: int) -> tuple[float, tuple[int, ...]]:
    """What the highest entries [S, V] of all states along a path sum to, and their tokens."""
    state, total, tokens = int((on.tree.root == prompt).nonzero()[0]), 0.0, []
    while state >= 0:
        tokens.append(int(gain[state].argmax()))
        total, state = total + float(gain[state, tokens[-1]]), int(on.tree.next[state, tokens[-1]])
    return total, tuple(tokens)


def _ratio(on: Table, policy: Tensor) -> Tensor:
    """[S, V] log π/π_ref; -inf where neither has mass."""
    return torch.where(on.reference > -torch.inf, policy - on.reference, -torch.inf)


def _two_objectives(on: Table) -> Finding:
    """Without any reward π* is the reference: the likeliest answer is the reference's, and all ratios are 0."""
    nothing = soft_backup(on.tree, torch.zeros_like(on.reward), on.reference, beta=on.beta).logp
    width, off = int(on.alive.sum()), 0.0
    likely, level = (beam(of, limits(on), width=width, n=width) for of in both_modes(on, nothing, on.reference))
    for answers in likely:
        reference = on.sums(on.reference)[on.alive & (on.leaves.prompt == answers[0].prompt)]
        off = worst(off, apart(scores(answers), reference.sort(descending=True).values))
    return Finding(worst(off, float(scores(flat(level)).abs().max())), EXACT)


def _constants(on: Table) -> Finding:
    """What is added to all logits of a state moves no answer and no score, of any decoder."""
    moved = [table + 9 * random_table(on.tree, seed)[:, :1] for seed, table in ((31, on.other), (32, on.reference))]
    off = 0.0
    for decode in (_beams, _ratio_beams, _draws, _tree):
        plain, other = (flat(decode(on, *tables)) for tables in ((on.other, on.reference), moved))
        off = worst(off, float([each.tokens for each in plain] != [each.tokens for each in other]))
        off = worst(off, apart(scores(plain)[: len(other)], scores(other)[: len(plain)]))
    return Finding(off, EXACT * max(1.0, on.beta))


def _beams(on: Table, policy: Tensor, reference: Tensor) -> list[list[Answer]]:
    return beam(both_modes(on, policy, reference)[0], limits(on), width=3, n=3)


def _ratio_beams(on: Table, policy: Tensor, reference: Tensor) -> list[list[Answer]]:
    return beam(both_modes(on, policy, reference)[1], limits(on), width=3, n=3)


def _draws(on: Table, policy: Tensor, reference: Tensor) -> list[list[Answer]]:
    return sample(speakers(on, policy)[0], limits(on), n=20, temperature=0.7)


def _tree(on: Table, policy: Tensor, reference: Tensor) -> list[list[Answer]]:
    own, ref = speakers(on, policy, reference)
    return tree_search(own, ref, limits(on), Rules(8, 3, backup="mean", plausible=0.0, beta=on.beta))


class Guided(NamedTuple):
    """A path's score by a table [S, V] of what every action adds."""

    voice: Voice
    falling = False

    @property
    def voices(self) -> tuple[Voice, ...]:
        """All that speak."""
        return (self.voice,)

    def rated(self, nodes: Tensor) -> Rated:
        """The table's rows."""
        return Rated(self.voice.logits(nodes), torch.zeros(len(nodes)), {})


def _guided(on: Table) -> Finding:
    """Rewards and V*, with the reference's part and without it, find what log π* and log π*/π_ref find."""
    after = torch.where(on.tree.next >= 0, on.optimum.v[on.tree.next.clamp(min=0)], 0.0)
    gain = torch.where(on.reference > -torch.inf, on.reward + after - on.optimum.v[:, None], -torch.inf)
    off = 0.0
    for width in (1, 2, 3, 5):
        tables = (maxent(gain, on.reference, beta=on.beta), gain)
        for objective, table in zip(both_modes(on, on.optimum.logp, on.reference), tables, strict=True):
            own = flat(beam(objective, limits(on), width=width, n=width))
            valued = flat(beam(Guided(speakers(on, table)[0]), limits(on), width=width, n=width))
            off = worst(off, float([each.tokens for each in own] != [each.tokens for each in valued]))
            off = worst(off, apart(on.beta * scores(own)[: len(valued)], scores(valued)[: len(own)]))
    return Finding(off, EXACT * max(1.0, on.beta))


def _soft_tree(on: Table) -> Finding:
    """What follows any state is worth 0, and Q says of its actions what the policy says: of π*, and of any other."""
    off = 0.0
    for policy in (on.optimum.logp, on.other):
        for simulations, top_k, plausible in ((1, 0, 0.0), (9, 0, 0.0), (9, 2, 0.1)):
            own, reference = speakers(on, policy, on.reference)
            rules = Rules(simulations, top_k, backup="soft", plausible=plausible, beta=on.beta)
            tree_search(own, reference, limits(on), rules)
            forest = own.forest
            thought_of = ~forest.column("visits").isnan()
            value, paid = (forest.column(name)[thought_of] for name in ("value", "reward"))
            off = worst(off, apart(value, paid.nan_to_num()))  # a prompt's last token pays nothing
            behind = torch.arange(len(forest)) > forest.last[-1]
            tilted = (forest.column("ref_logp") + forest.column("value") / on.beta)[behind]
            off = worst(off, on.beta * apart(tilted, forest.column("logp")[behind]))
    return Finding(off, EXACT * max(1.0, on.beta))


def _hard_tree(on: Table) -> Finding:
    """Enough simulations find the highest reward, and the root is worth it, less V*(s_0)."""
    far = float(on.optimum.advantage_kl.abs().max()) / on.beta
    policy, reference = speakers(on, on.optimum.logp, on.reference)
    rules = Rules(40, 0, exploration=2 * far, selection="ucb", plausible=0.0, beta=on.beta)
    answers = flat(tree_search(policy, reference, limits(on), rules))
    reward = on.sums(on.reward).masked_fill(~on.alive, -torch.inf)
    best = torch.stack([reward[on.leaves.prompt == each.prompt].max() for each in answers])
    start = on.optimum.v[: len(answers)]
    worth = policy.forest.column("value")[policy.forest.last]
    off = worst(
        apart(reward[found_in(on, answers)], best), apart(scores(answers), best - start), apart(worth, best - start)
    )
    return Finding(off, EXACT * max(1.0, on.beta))


def _realigned(on: Table) -> Finding:
    """Token by token against whole answers ∝ π_ref^(1-λ) π*^λ, the optimum at β/λ: off by log Z - E Σ log z(s), where z(s)
    is what a state's tokens sum to before they are normalised."""
    off, notes = 0.0, []
    for strength in (0.0, 0.5, 1.0, 2.0):
        found = said(on, lambda p, r, of=strength: realigned(p, r, of), on.optimum.logp, on.reference)
        exact = soft_backup(on.tree, strength * on.reward, on.reference, beta=on.beta).logp  # β/λ; the reference at 0
        gap, error = _gap(on, found, exact, on.reference, strength * _ratio(on, on.optimum.logp))
        off = worst(off, error, float(gap.abs().max()) if strength in (0, 1) else float(gap.max() < GAP))
        notes += [f"{float(gap.max()):.2g} at λ = {strength:g}"] * (strength not in (0, 1))
    return Finding(off, EXACT, f"KL of answers in nats: {', '.join(notes)}")


def _tuned(on: Table) -> Finding:
    """A small pair on a base of its own is the expert; an expert like the novice, or weight 0, is the base; a part of the
    weight is realignment. On another base it is off, by a KL, from the optimum of the same reward under that base."""
    expert, novice, base = on.optimum.logp, on.reference, on.other

    def of(strength: float, *tables: Tensor) -> Tensor:
        return said(on, lambda b, e, n: tuned(b, e, n, strength), *tables).exp()

    between = said(on, lambda p, r: realigned(p, r, 0.3), expert, novice).exp()
    same = (
        (of(1.0, novice, expert, novice), expert.exp()),
        (of(0.3, novice, expert, novice), between),
        (of(1.0, base, expert, expert), base.exp()),
        (of(0.0, base, expert, novice), base.exp()),
    )
    exact = soft_backup(on.tree, on.reward, base, beta=on.beta).logp
    gap, error = _gap(on, of(1.0, base, expert, novice).log(), exact, base, _ratio(on, expert))
    off = worst(error, float(gap.max() < GAP), *(apart(found, wanted) for found, wanted in same))
    return Finding(off, EXACT, f"KL of answers on another base: {float(gap.max()):.2g} nats")


def _gap(on: Table, found: Tensor, exact: Tensor, base: Tensor, tilt: Tensor) -> tuple[Tensor, float]:
    """KL [G] of answers between π̂(a|s) ∝ base e^tilt and exact, the whole answers' base e^(Σ tilt) / Z; and how far off it is
    from log Z - E_π̂ Σ log z(s), or π̂ from exact where an action is the last: there is no gap at horizon 1."""
    group, kl = on.leaves.prompt, sequence_kl(on.sums(found), on.sums(exact), on.leaves.prompt)
    tilted = torch.where(base > -torch.inf, base + tilt, -torch.inf)
    whole = on.sums(tilted)
    log_z = torch.stack([whole[group == g].logsumexp(0) for g in range(len(kl))])
    each = masked.product(occupancy(on.tree, found), tilted.logsumexp(-1))
    lost = torch.zeros_like(kl).index_add(0, on.tree.root, each)
    last = (on.tree.next < 0).all(-1)
    return kl, worst(apart(kl, log_z - lost), apart(found[last].exp(), exact[last].exp()))


def _drawn(on: Table) -> Finding:
    """Filtered distributions multiply to the law of whole answers; draws carry it, and tokens come as often as it says."""
    off, grid = 0.0, (torch.arange(997, dtype=torch.float64) + 0.5) / 997
    filters: tuple[dict[str, Any], ...] = ({}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.7}, {"min_p": 0.3})
    for given in filters:
        table = filtered(said(on, lambda voice: voice, on.other), **given)
        total = expected(on.sums(table), torch.ones(len(on.leaves.prompt), dtype=table.dtype), on.leaves.prompt)
        off = worst(off, apart(total, torch.ones_like(total)))
        off = worst(off, 0.0 if given else apart(on.sums(table).exp(), on.sums(on.other).exp()))
        (voice,) = speakers(on, on.other)
        drawn = flat(sample(voice, limits(on), n=9, **given))
        carried = [voice.forest.column("drawn_logp")[voice.forest.answered(each.node)].sum() for each in drawn]
        off = worst(off, apart(torch.stack(carried), on.sums(table)[found_in(on, drawn)]))
        often = torch.stack([torch.bincount(pick(row.expand(997, -1), grid), minlength=len(row)) for row in table])
        off = worst(off, float(((often / 997 - table.exp()).abs() - 1 / 997).max()))
    return Finding(off, EXACT)


SEARCH_LAWS: tuple[Law[Table], ...] = (
    Law(
        "full beam",
        "As wide as there are answers, beams find all of them: π* at R + β log π_ref - V*(s_0), π*/π_ref at R - V*(s_0).",
        "A beam would lose answers, or rank them by another objective than it says.",
        _exhaustive,
    ),
    Law(
        "one beam",
        "One beam takes the likeliest token of every state; by log-ratio it finds no less than the highest tokens give.",
        "Beams would not be greedy decoding with more room.",
        _greedy,
    ),
    Law(
        "two objectives",
        "Without a reward π* = π_ref: likelihood still finds the reference's favourite, and every log-ratio is 0.",
        "Searching for likelihood and searching for reward would be taken for each other.",
        _two_objectives,
    ),
    Law(
        "state constants",
        "A constant added to all logits of a state changes no answer and no score of beams, samples and tree search.",
        "Raw logits and log-probabilities are mixed in a score.",
        _constants,
    ),
    Law(
        "guided beam",
        "Beams of any width by rewards, V* and β log π_ref are those by log π*; without the reference, by log π*/π_ref.",
        "A policy would not be its own value function.",
        _guided,
    ),
    Law(
        "soft tree",
        "Tree search with a soft backup gives the policy back: what follows is worth 0 after one simulation and any more.",
        "The backup is none of the soft Bellman equation, or leaves part of the vocabulary out.",
        _soft_tree,
    ),
    Law(
        "hard tree",
        "Tree search with a hard backup finds the highest reward of all answers; the root is worth max R - V*(s_0).",
        "Tree search would look for something else than reward.",
        _hard_tree,
    ),
    Law(
        "realigned",
        "π_ref^(1-λ) π*^λ a token is the optimum at β/λ for λ = 0 and 1; else its answers are off by log Z - E Σ log z(s).",
        "Decoding at another β would be more wrong than it has to be, or wrong where it is exact.",
        _realigned,
    ),
    Law(
        "tuned",
        "A pair's log-ratio on its own base is the expert; on another it is off by log Z - E Σ log z(s), 0 at horizon 1.",
        "Fine-tuning would be carried over to a base with the wrong sign or weight.",
        _tuned,
    ),
    Law(
        "drawn",
        "Filtered distributions multiply to the law of whole answers, and what is drawn carries it.",
        "Samples would not be what their log-probabilities say.",
        _drawn,
    ),
)
