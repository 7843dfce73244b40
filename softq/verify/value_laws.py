"""The laws of decoding that values guide: the distribution of whole answers, exactly, as the decoder's own voice makes it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from softq import masked
from softq.lm.growing import Growing
from softq.mdp.soft import mean_backup, soft_backup
from softq.mdp.tabular import TabularLM, at_the_end
from softq.search.guided import Guided
from softq.search.voice import Speaker
from softq.verify.law import EXACT, Finding, Law, apart
from softq.verify.theory import Table

FAR = 1e3  # a β at which terms of order 1/β are as good as gone


def spoken(on: Table, parts: Sequence[tuple[float, Tensor]], top_k: int) -> Tensor:
    """[S, V] nats: the reference, guided by values [S, V] of what each action leads to, asked at every state of the tree."""
    forest, node = Growing([torch.tensor(prefix) for prefix in on.tree.prefixes[: int((on.tree.depth == 0).sum())]]), {}
    for prefix, depth, root in zip(on.tree.prefixes, on.tree.depth.tolist(), on.tree.root.tolist(), strict=True):
        behind = [torch.tensor([each]) for each in (prefix[-1], node.get(prefix[:-1], 0))]
        node[prefix] = int(forest.add(*behind)) if depth else int(forest.last[root])
    longest = max(map(len, on.tree.prefixes)) + 1
    base = Speaker(TabularLM(on.tree, on.reference), forest, longest)
    values = [(weight, TabularLM(on.tree, table)) for weight, table in parts]
    states = torch.tensor([node[prefix] for prefix in on.tree.prefixes])
    return Guided(base, values, longest, top_k=top_k).logits(states).log_softmax(-1)


def _at_end(on: Table) -> Tensor:
    """The reward [S, V] of whole answers, paid at their ends: what a value of prefixes is of."""
    return at_the_end(on.tree, on.leaves, on.sums(on.reward))


def _optimal(on: Table) -> Finding:
    """Token by token and multiplied out over the whole tree, against π_ref e^{R/β}/Z of whole answers."""
    value = soft_backup(on.tree, _at_end(on), on.reference, beta=on.beta).q_kl
    found = spoken(on, [(1 / on.beta, value)], on.tree.vocabulary)
    whole = apart(on.sums(found).exp(), on.sums(on.optimum.logp).exp())
    return Finding(max(whole, apart(found.exp(), on.optimum.logp.exp())), EXACT * max(1.0, 1 / on.beta))


def _unmoved(on: Table) -> Finding:
    """Values that are 0, or all alike, and any value of weight 0; of all tokens and of the two likeliest."""
    nothing, some = torch.zeros_like(on.reward), mean_backup(on.tree, _at_end(on), on.reference)
    off = 0.0
    for top_k in (2, on.tree.vocabulary):
        exactly = [[(3.0, nothing)], [(0.0, some)], [(0.0, nothing), (0.0, some)]]
        off = max(
            off, *(float(not torch.equal(spoken(on, parts, top_k), on.reference.log_softmax(-1))) for parts in exactly)
        )
        off = max(off, apart(spoken(on, [(3.0, nothing + 0.7)], top_k), on.reference))
    return Finding(off, EXACT)


def _bias(on: Table) -> Finding:
    """β² log π*/π_mean of whole answers, extrapolated to β = ∞, against its closed form there."""
    earned = _at_end(on)
    mean = mean_backup(on.tree, earned, on.reference)
    variance = mean_backup(on.tree, earned**2, on.reference) - mean**2  # of R behind each action: only one token pays
    expected = masked.product(on.reference.exp(), variance).sum(-1, keepdim=True)
    limit = on.sums((variance - expected) / 2)[on.alive]

    def scaled(beta: float) -> Tensor:
        best = soft_backup(on.tree, earned, on.reference, beta=beta).logp
        found = spoken(on, [(1 / beta, mean)], on.tree.vocabulary)
        return beta**2 * (on.sums(best) - on.sums(found))[on.alive]

    off = apart(2 * scaled(2 * FAR) - scaled(FAR), limit)
    here = spoken(on, [(1 / on.beta, mean)], on.tree.vocabulary)
    gap = apart(on.sums(here).exp(), on.sums(on.optimum.logp).exp())
    size = float(limit.abs().max())
    note = f"up to {size:.2g}/β² nats an answer; at β = {on.beta:g} its probability is up to {gap:.2g} off"
    return Finding(off if size > 1e-3 else 1.0, 1e-5, note)


def _composed(on: Table) -> Finding:
    """Two values with weights, in any order, against the value of the weighted rewards: E[w_1 R_1 + w_2 R_2 | s]."""
    earned = [_at_end(on), _at_end(on).roll(1, 0).where(on.tree.next < 0, 0.0)]
    one, other = (mean_backup(on.tree, each, on.reference) for each in earned)
    both = mean_backup(on.tree, 2 * earned[0] - 0.5 * earned[1], on.reference)
    off = 0.0
    for top_k in (2, on.tree.vocabulary):
        found = spoken(on, [(2.0, one), (-0.5, other)], top_k)
        turned = spoken(on, [(-0.5, other), (2.0, one)], top_k)
        off = max(off, apart(found, spoken(on, [(1.0, both)], top_k)), apart(found, turned))
    moved = apart(found.exp(), on.reference.exp())
    return Finding(
        off if moved > 1e-3 else 1.0, EXACT, f"together they move a token's probability by up to {moved:.2g}"
    )


VALUE_LAWS: tuple[Law[Table], ...] = (
    Law(
        "guided by V*",
        "The reference, guided by the exact V* of every next token with w = 1/β over the whole vocabulary, samples π*: the exact "
        "distribution of whole answers.",
        "Guided decoding does not sample what it says: a sign, β, or the value of the wrong state.",
        _optimal,
    ),
    Law(
        "unmoved",
        "Values that are 0 change no logit by a bit, values that are all alike nothing, whatever top_k is.",
        "A value that knows nothing moves the reference: tokens outside the candidates gain or lose against those inside.",
        _unmoved,
    ),
    Law(
        "bias of the mean",
        "Guided by E_ref[R | s] instead of V*, β² log π*/π of an answer goes to ½ Σ_t (Var[R | s'] - E_ref Var[R | s']): the "
        "error vanishes as 1/β².",
        "The error of value-augmented sampling is not the one that is stated: nobody knows how far it is from π*.",
        _bias,
    ),
    Law(
        "composed values",
        "Values with weights guide as their weighted sum does, which of means is the value of the weighted rewards.",
        "Rewards that are weighed at decode time are not weighed as asked.",
        _composed,
    ),
)
