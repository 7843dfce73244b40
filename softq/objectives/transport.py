"""Pairs compared as two distributions: the sort of optimal transport in one dimension couples a whole step."""

import math
from collections.abc import Callable

from torch import Tensor

from softq.mdp.readouts import REF_LOGP
from softq.objectives import weights
from softq.objectives.fixed_points import dominating, dominating_sides
from softq.objectives.links import flip_rate, positive, smoothed_logistic
from softq.objectives.margins import contrast
from softq.records import Batch, FixedPoint, Method, Scored, Term, implicit

SMALLEST = 0.2
"""Nats: of a smaller shift between sorted sides nothing is stated, as two prompts could change roles and part for ever."""


def aot(*, beta: float = 0.01, label_smoothing: float = 0.0) -> Method:
    """AOT (paired), arXiv 2406.05882: h(βd), d = sort(policy margins) - sort(reference margins), ascending.

    First-order dominance of the policy's margins over the reference's, margins of Σ_t log π. A value of the loss belongs to a
    sorted slot, not to a pair, so pairs have no weights; each step sorts all of its pairs. label_smoothing as in dpo.

    Assumes: steps of many pairs, whose margins stand for the distribution of margins.
    Rests: with label_smoothing ε on hard pairs, where the sorted margins are the reference's, all larger by log((1-ε)/ε)/β, in
    any order of the pairs; without it nowhere: margins grow for ever.
    TRL: `loss_type: aot`; it sorts within a device's micro-batch, here within the whole step.
    Choose it: when labels of single pairs are noisy and the ranking of the whole set is what counts.
    """
    epsilon = flip_rate(label_smoothing)
    positive("beta", beta)

    def sides(scored: Scored, batch: Batch) -> tuple[Tensor, Tensor]:
        return contrast(scored["logp"].sum(-1), batch), contrast(scored["ref_logp"].sum(-1), batch)

    rest = FixedPoint("hard pairs", dominating(math.log((1 - epsilon) / epsilon) / beta)) if epsilon else None
    return _by_slots("aot", sides, beta, epsilon, rest)


def aot_unpaired(*, beta: float = 0.01, label_smoothing: float = 0.0) -> Method:
    """AOT (unpaired), arXiv 2406.05882: h(βd), d = sort(L of the chosen) - sort(L of the rejected), ascending.

    First-order dominance of the chosen completions' log-ratios over those of the rejected ones: who was compared with whom is not
    read. A value of the loss belongs to a sorted slot, not to a pair, so pairs have no weights; each step sorts all of its
    pairs. label_smoothing as in dpo.

    Assumes: steps of many pairs; chosen and rejected completions that could be of any prompts, whose log-ratios compare.
    Rests: with label_smoothing ε on hard pairs, where the sorted log-ratios of the chosen are those of the rejected, all larger
    by log((1-ε)/ε)/β: each pair's margin at that is one such distribution, each other matching of the two sides gives another.
    Without it nowhere: margins grow for ever.
    TRL: `loss_type: aot_unpaired`; it sorts within a device's micro-batch, here within the whole step.
    Choose it: when good and bad completions are of different prompts, or pairs are badly matched.
    """
    epsilon = flip_rate(label_smoothing)
    positive("beta", beta)

    def sides(scored: Scored, batch: Batch) -> tuple[Tensor, Tensor]:
        ratio = implicit(scored, batch)
        return ratio[batch.pairs.chosen], ratio[batch.pairs.rejected]

    shift = math.log((1 - epsilon) / epsilon) / beta if epsilon else math.inf
    rest = FixedPoint("hard pairs", dominating_sides(shift)) if SMALLEST < shift < math.inf else None
    return _by_slots("aot_unpaired", sides, beta, epsilon, rest)


def _by_slots(
    name: str,
    sides: Callable[[Scored, Batch], tuple[Tensor, Tensor]],
    beta: float,
    epsilon: float,
    rest: FixedPoint | None,
) -> Method:
    """h(β (sort of one - sort of the other)), smoothed, each slot with the same weight."""

    def loss(scored: Scored, batch: Batch) -> Tensor:
        better, worse = sides(scored, batch)
        return smoothed_logistic(beta * (better.sort().values - worse.sort().values), epsilon)

    terms = (Term(name, "pair", loss, weights.per_slot),)
    return Method(terms, (REF_LOGP,), beta=beta, coupled=True, fixed_point=rest)
