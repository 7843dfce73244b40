"""Where a loss over a whole population comes to rest: distributions over completions that the lab holds methods to.

Each makes a `log_policy` (see records.FixedPoint) of a population whose rows are all completions of its prompts.
"""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from softq.mdp.tabular import completions
from softq.objectives.links import group_log_softmax, group_sum
from softq.records import Batch, Scored, group_of

LogPolicy = Callable[[Scored, Batch], Tensor]
Link = Callable[[Tensor], Tensor]


def softmax_of_reward(beta: float, share: float = 1.0, *, per_token: float = 0.0) -> LogPolicy:
    """π ∝ π_ref^share e^{R/β}: the soft optimum, of losses that rank by σ(R_w - R_l) (arXiv 2305.18290, eq 4).

    The share is how much of the reference the scores are taken against: all, or with 0 nothing. Where every token costs
    `per_token` of reward, R - per_token · |y| stands for R (arXiv 2403.19159).
    """

    def log_policy(scored: Scored, batch: Batch) -> Tensor:
        reward = batch.columns["reward"]
        cost = per_token * batch.tokens.action.sum(-1).to(reward)
        return share * scored["ref_logp"].sum(-1) + (reward - cost) / beta

    return log_policy


def transformed(transform: Link, inverse: Link, beta: float) -> LogPolicy:
    """β g(L) = R + c with an increasing g of the log-ratio: of losses that rank by σ(R_w - R_l) (arXiv 2309.16240).

    g falls below any bound as L does, so that every completion keeps some mass. c makes Σ π = 1: by bisection for L of the best
    completion, which is between 0 and -log π_ref of it.
    """

    def log_policy(scored: Scored, batch: Batch) -> Tensor:
        ref, reward = scored["ref_logp"].sum(-1), batch.columns["reward"]
        result = torch.zeros_like(ref)
        for rows in _prompts(batch):
            behind = (reward[rows] - reward[rows].max()) / beta
            low, high = torch.zeros((), dtype=ref.dtype), -ref[rows][behind.argmax()]
            for _ in range(100):
                middle = (low + high) / 2
                result[rows] = ref[rows] + inverse(transform(middle) + behind)
                low, high = (middle, high) if result[rows].logsumexp(0) < 0 else (low, middle)
        return result

    return log_policy


def improved(beta: float) -> LogPolicy:
    """π ∝ π_ref e^{Q_ref/β} at each state, Q_ref(s, a) = E_ref[R | s, a]: one soft step of improvement on the reference's own Q.

    Not the soft optimum, whose Q looks ahead under the optimal policy. β (L + K), K = Σ_t KL(π_ref‖π)(s_t), is R - E_ref[R]
    on every completion (TDPO, arXiv 2404.11999).
    """

    def log_policy(scored: Scored, batch: Batch) -> Tensor:
        ref, reward = scored["ref_logp"], batch.columns["reward"]
        ahead = ref.flip(-1).cumsum(-1).flip(-1)  # [B, T] log π_ref of the rest of the row, this action included
        total = torch.zeros_like(reward)
        for t in range(ref.shape[1]):
            rows = batch.tokens.action[:, t].nonzero()[:, 0]
            if not len(rows):
                continue
            after, before = _same_prefix(batch, rows, t + 2), _same_prefix(batch, rows, t + 1)
            rest = (ahead - ref)[rows, t]
            q = group_sum(rest.exp() * reward[rows], after)[after]
            total[rows] += group_log_softmax(ahead[rows, t] + q / beta, before) - rest
        return total

    return log_policy


def taught(teacher: str) -> LogPolicy:
    """π = a teacher, token by token: `teacher` names the readout of its log-probabilities."""
    return lambda scored, batch: scored[teacher].sum(-1)


def demonstrated(scored: Scored, batch: Batch) -> Tensor:
    """π = the share of each completion among the rows of its prompt: maximum likelihood."""
    which = completions(batch.tokens)
    return which.bincount()[which].double().log()


def balanced(link: Link, *, length_average: bool = False, share: float = 1.0) -> LogPolicy:
    """Of Σ weight · link(s_w - s_l), convex in the scores: solved for them, as no closed form is known.

    A score s is the log-ratio L, or L/|y| with length_average; with share = 0, of log π without a reference. The scores of a
    prompt are found up to a constant by Newton's method on the sum over its pairs; the constant then makes Σ_y π(y) = 1.
    """

    def log_policy(scored: Scored, batch: Batch) -> Tensor:
        ref = share * scored["ref_logp"].sum(-1)
        size = batch.tokens.action.sum(-1).to(ref) if length_average else torch.ones_like(ref)
        result = torch.zeros_like(ref)
        for rows in _prompts(batch):
            score = _stationary_scores(link, batch, rows)
            shift = _normalising_shift(ref[rows], size[rows], score)
            result[rows] = ref[rows] + size[rows] * (score + shift)
        return result

    return log_policy


def dominating(shift: float) -> LogPolicy:
    """Of losses on sorted margins: the margins of π are those of π_ref, all larger by `shift`, in any order.

    For a population of one pair a prompt. There are P! such distributions, one for each order: [P!, B].
    """

    def log_policy(scored: Scored, batch: Batch) -> Tensor:
        ref, pairs = scored["ref_logp"].sum(-1), batch.pairs
        margins = ref[pairs.chosen] - ref[pairs.rejected] + shift
        orders = torch.tensor(list(itertools.permutations(range(len(margins)))))
        return torch.zeros(len(orders), len(ref), dtype=ref.dtype).index_add(1, pairs.chosen, margins[orders])

    return log_policy


def dominating_sides(shift: float) -> LogPolicy:
    """Of losses on sorted log-ratios of the chosen and of the rejected: the first are the second, all larger by `shift`.

    For a population of one pair a prompt that is all of its completions. One such distribution for each order in which the
    rejected are matched: [P!, B], that in which each pair is matched with itself first. ArithmeticError where there is none
    for some order: the shift is small against how the references of the prompts differ.
    """

    def log_policy(scored: Scored, batch: Batch) -> Tensor:
        ref, pairs = scored["ref_logp"].sum(-1), batch.pairs
        orders = torch.tensor(list(itertools.permutations(range(len(pairs.chosen)))))
        margins = torch.stack([_matched(ref[pairs.chosen], ref[pairs.rejected], order, shift) for order in orders])
        result = torch.zeros(len(orders), len(ref), dtype=ref.dtype)
        result[:, pairs.chosen], result[:, pairs.rejected] = -F.softplus(-margins), -F.softplus(margins)
        return result

    return log_policy


def _matched(better: Tensor, worse: Tensor, order: Tensor, shift: float) -> Tensor:
    """The margins [P] with L_w = L_l[order] + shift, of log π_w = -softplus(-margin), log π_l = -softplus(margin).

    Newton's method, its steps halved until the distance falls, from where each pair is matched with itself.
    """
    margin, every = better - worse + shift, torch.arange(len(order))

    def off(margin: Tensor) -> Tensor:
        return (-F.softplus(-margin) - better) - (-F.softplus(margin) - worse)[order] - shift

    for _ in range(100):
        bend = torch.diag(torch.sigmoid(-margin))
        bend[every, order] += torch.sigmoid(margin[order])
        step = torch.linalg.pinv(bend) @ off(margin)
        while step.abs().max() > 1e-9 and not off(margin - step).norm() <= (1 - 1e-4) * off(margin).norm():
            step = step / 2
        margin = margin - step
        if step.abs().max() < 1e-13 * (1 + margin.abs().max()):
            break
    if off(margin).abs().max() > 1e-12 * (1 + abs(shift)):
        raise ArithmeticError(
            f"no margins were found at which log-ratios matched as {order.tolist()} differ by {shift}"
        )
    return margin


def _same_prefix(batch: Batch, rows: Tensor, length: int) -> Tensor:
    """Numbers 0.. of these rows, the same for rows of one prompt whose first `length` ids agree."""
    prefix = torch.cat([batch.tokens.prompt[rows, None], batch.tokens.ids[rows, :length]], -1)
    return torch.unique(prefix, dim=0, return_inverse=True)[1]


def _prompts(batch: Batch) -> list[Tensor]:
    group = group_of(batch.tokens.prompt)
    return [(group == g).nonzero()[:, 0] for g in range(int(group.max()) + 1)]


def _stationary_scores(link: Link, batch: Batch, rows: Tensor) -> Tensor:
    """The scores [n] of a prompt's rows where the weighted sum of links over its pairs is least; their mean is 0.

    Newton's method, its steps halved until the sum falls. ArithmeticError where the least is not one: pairs that do not connect
    all rows leave the mass between them free, and a link must be strictly convex.
    """
    where = torch.full((len(batch.tokens.ended),), -1)
    where[rows] = torch.arange(len(rows))
    inside = (where[batch.pairs.chosen] >= 0) & (batch.columns["weight"] > 0)
    chosen, rejected = where[batch.pairs.chosen][inside], where[batch.pairs.rejected][inside]
    weight = batch.columns["weight"][inside]
    if len(rows) == 1:
        return torch.zeros(1, dtype=weight.dtype)
    if not _connected(len(rows), chosen, rejected):
        raise ArithmeticError("the pairs of a prompt do not connect its completions: the mass between them is free")

    def total(score: Tensor) -> Tensor:
        # a constant in all scores changes no margin: the square pins it
        return (weight * link(score[chosen] - score[rejected])).sum() + weight.sum() * score.mean() ** 2

    rises = torch.func.grad(lambda margin: link(margin).sum())
    each = torch.eye(len(rows), dtype=weight.dtype)
    apart = each[chosen] - each[rejected]  # [P, n]
    pin = weight.mean()  # bends a constant in all scores; their mean stays 0, so it has no slope
    score = torch.zeros(len(rows), dtype=weight.dtype)
    for _ in range(200):
        margin = score[chosen] - score[rejected]
        first, second = torch.func.jvp(rises, (margin,), (torch.ones_like(margin),))[:2]
        bend, slope = apart.mT @ ((weight * second)[:, None] * apart) + pin, apart.mT @ (weight * first)
        curvature = torch.linalg.eigvalsh(bend)
        if not curvature[0] > 1e-13 * curvature[-1]:
            raise ArithmeticError("the link is not strictly convex: no one distribution is where the pairs balance")
        step = torch.linalg.solve(bend, slope)
        while step.abs().max() > 1e-9 and not total(score - step) <= total(score) - 1e-4 * slope @ step:
            step = step / 2
        score = score - step
        if step.abs().max() < 1e-12 * (1 + score.abs().max()):
            return score
    raise ArithmeticError("Newton's method found no scores where the pairs of a prompt balance")


def _connected(count: int, chosen: Tensor, rejected: Tensor) -> bool:
    """Whether pairs of `count` rows lead from each row to every other."""
    reached = {0}
    edges = [{*pair} for pair in zip(chosen.tolist(), rejected.tolist(), strict=True)]
    while grown := {row for edge in edges if edge & reached for row in edge} - reached:
        reached |= grown
    return len(reached) == count


def _normalising_shift(ref: Tensor, size: Tensor, score: Tensor) -> Tensor:
    """k with Σ_y π_ref e^{size · (score + k)} = 1: the root of a convex rising function, by Newton's method from the right."""
    shift = -score.min()  # every ratio is at least 1 there
    for _ in range(200):
        each = ref + size * (score + shift)
        value = each.logsumexp(0)
        step = value / (each.softmax(0) * size).sum()
        shift = shift - step
        if step.abs() < 1e-15:
            break
    return shift
