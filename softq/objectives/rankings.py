"""Several completions of one prompt with a score each: the rows of one `prompt` number are a group.

A group never leaves its micro-batch, so these losses need no coupling. L(y) = Σ_t log π/π_ref.
"""

from collections.abc import Callable

from torch import Tensor

from softq.mdp.readouts import REF_LOGP
from softq.objectives import weights
from softq.objectives.fixed_points import softmax_of_reward
from softq.objectives.links import group_log_softmax, group_mean, group_pairs, group_sum, logistic, positive
from softq.records import Batch, FixedPoint, Method, Scored, Term, group_of, implicit

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (L [B], reward [B], group [B]) -> [G]


def by_group(name: str, loss: Loss, beta: float, rest: FixedPoint | None = None) -> Method:
    """A method whose loss is a value a group, of its log-ratios and scores; the mean over groups."""

    def of(scored: Scored, batch: Batch) -> Tensor:
        return loss(implicit(scored, batch), batch.columns["reward"], group_of(batch.tokens.prompt))

    terms = (Term(name, "group", of, weights.per_group),)
    return Method(terms, (REF_LOGP,), takes="groups", beta=beta, columns=("reward",), fixed_point=rest)


def infonca(*, beta: float = 0.01, alpha: float = 0.001) -> Method:
    """InfoNCA, arXiv 2402.05369: -Σ_k softmax(r/α)_k log softmax(βL)_k over a group's completions.

    The forward KL from the scores' distribution to the policy's, both among the candidates. alpha divides the scores: the
    official code's default is nearly one-hot, and the paper's α is its reciprocal. With two completions and a one-hot target
    it is DPO.

    Assumes: scores whose differences mean something, in units of α; candidates from anywhere.
    Rests: π ∝ π_ref e^{R/(αβ)} among the candidates, exactly, whatever they are.
    TRL: has none.
    Choose it: for scored candidates where the mass among them alone should be right; with nca_k their likelihood is held as well.
    """
    positive("beta", beta)
    positive("alpha", alpha)

    def loss(ratio: Tensor, reward: Tensor, group: Tensor) -> Tensor:
        target = group_log_softmax(reward / alpha, group).exp()
        return -group_sum(target * group_log_softmax(beta * ratio, group), group)

    return by_group("infonca", loss, beta, FixedPoint("groups", softmax_of_reward(alpha * beta)))


def nca_k(*, beta: float = 0.01, alpha: float = 0.001) -> Method:
    """NCA of K completions, arXiv 2402.05369: Σ_k softmax(r/α)_k h(βL_k) + (1/K) Σ_k h(-βL_k), h(z) = -log σ(z).

    Noise-contrastive estimation: each completion's own βL is held to log(K softmax(r/α)_k), not its difference from the others',
    so the likelihood of good ones does not fall. alpha divides the scores, as in infonca.

    Assumes: candidates that are samples of the reference.
    Rests: with β = 1 and candidates drawn from the reference, π ∝ π_ref e^{R/α}: only then do the ratios that the completions
    want sum to a probability. With another β, or other candidates, between what they want, in no closed form that is known.
    TRL: has none; `nca_pair` of its DPO trainer is the pair with a one-hot target.
    Choose it: for scored candidates whose good ones must not become less likely.
    """
    positive("beta", beta)
    positive("alpha", alpha)

    def loss(ratio: Tensor, reward: Tensor, group: Tensor) -> Tensor:
        target = group_log_softmax(reward / alpha, group).exp()
        noise = group_mean(logistic(-beta * ratio), group, int(group.max()) + 1)
        return group_sum(target * logistic(beta * ratio), group) + noise

    rest = FixedPoint("reference groups", softmax_of_reward(alpha)) if beta == 1 else None
    return by_group("nca_k", loss, beta, rest)


def exo_k(*, beta: float = 0.5, alpha: float = 0.5) -> Method:
    """EXO of K completions, arXiv 2402.00856: KL(softmax(βL) ‖ softmax(r/α)) over a group's completions.

    The reverse of infonca's KL: it leaves out what scores low before it covers all that scores high. alpha is the paper's β_r,
    beta its β_π. Where a group is ranked badly beyond doubt its gradient vanishes.

    Assumes: scores whose differences mean something, in units of α; candidates from anywhere.
    Rests: π ∝ π_ref e^{R/(αβ)} among the candidates, exactly, where infonca does.
    TRL: has none; `exo_pair` of its DPO trainer is the pair with target (1-ε, ε), here α = 1/log((1-ε)/ε) on scores 1 and 0.
    Choose it: for scored candidates, where a few very good answers are worth more than covering all good ones.
    """
    positive("beta", beta)
    positive("alpha", alpha)

    def loss(ratio: Tensor, reward: Tensor, group: Tensor) -> Tensor:
        return reverse_kl(group_log_softmax(beta * ratio, group), group_log_softmax(reward / alpha, group), group)

    return by_group("exo_k", loss, beta, FixedPoint("groups", softmax_of_reward(alpha * beta)))


def reverse_kl(logp: Tensor, target: Tensor, group: Tensor) -> Tensor:
    """[G]: KL(p‖target) = Σ_k p_k (log p_k - log target_k) of each group, in nats, from log-probabilities [B]."""
    return group_sum(logp.exp() * (logp - target), group)


def plackett_luce(*, beta: float = 0.1) -> Method:
    """DPO of rankings, arXiv 2305.18290, appendix A.3: Σ_k -log [e^{βL_k} / Σ_j e^{βL_j}], j over k and all that score less.

    The likelihood of a ranking that is drawn place by place, without replacement, by the odds e^{βL}. Completions that tie are
    not compared with each other, so no order is invented; of two it is DPO. Only the order of the scores is read.

    Assumes: rankings whose noise is Plackett and Luce's; a ranking that is always the same has no finite optimum.
    Rests: π ∝ π_ref e^{R/β} over rankings drawn by rewards R. Where the ranking of a prompt is always the same, nowhere: margins
    grow for ever.
    TRL: has none.
    Choose it: for full rankings whose scores mean nothing but their order.
    """
    positive("beta", beta)

    def loss(ratio: Tensor, reward: Tensor, group: Tensor) -> Tensor:
        i, j = group_pairs(group)
        compared = (i == j) | (reward[j] < reward[i])
        i, j = i[compared], j[compared]
        first = group_log_softmax(beta * ratio[j], i)[i == j]  # k's share of what it is compared with
        return -group_sum(first, group[i[i == j]])

    return by_group("plackett_luce", loss, beta)


def best_vs_rest(*, beta: float = 0.1) -> Method:
    """DPO of a group's best completion against each other one: the mean over k of h(β(L_best - L_k)), h(z) = -log σ(z).

    Several best ones are each compared with the rest and not with each other. Of a group whose scores are all equal the loss
    is 0; it counts in the mean over groups all the same. The loss is DPO's, arXiv 2305.18290, on these pairs.

    Assumes: scores that tell the best one; how the others are ordered is not read.
    Rests: π ∝ π_ref e^{R/β} where the best one is drawn by the odds e^R. Where it is always the same, nowhere: margins grow for
    ever.
    TRL: has none; pairs of them can be made before (softq data --pairs).
    Choose it: where annotators or a judge named the best of several.
    """

    def comparable(reward: Tensor, group: Tensor, i: Tensor, j: Tensor) -> Tensor:
        best = reward.new_full((int(group.max()) + 1,), -float("inf")).scatter_reduce(0, group, reward, "amax")
        return (reward[i] == best[group[i]]) & (reward[j] < reward[i])

    return _by_pairs("best_vs_rest", comparable, beta)


def all_pairs(*, beta: float = 0.1) -> Method:
    """DPO of all pairs of a group whose scores differ: the mean over (i, j), r_i > r_j, of h(β(L_i - L_j)), h(z) = -log σ(z).

    Ties make no pair, so scores may be levels (as in TRPA, arXiv 2504.04524, whose log-ratios are means over tokens, and whose
    mean is over the pairs of all groups). Of a group without a pair the loss is 0; it counts in the mean over groups all the
    same, so groups count alike however many pairs they have.

    Assumes: scores of which the order is right, pair by pair.
    Rests: π ∝ π_ref e^{R/β} where i is ranked above j with probability σ(R_i - R_j), as in rankings drawn by Plackett and Luce.
    Where a ranking is always the same, nowhere: margins grow for ever.
    TRL: has none; pairs of them can be made before (softq data --pairs).
    Choose it: for scores in levels, or where every comparison should count.
    """
    return _by_pairs("all_pairs", lambda reward, group, i, j: reward[j] < reward[i], beta)


def _by_pairs(name: str, comparable: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], beta: float) -> Method:
    """The mean of h(β(L_i - L_j)) over those ordered pairs of a group that comparable(reward, group, i, j) names."""
    positive("beta", beta)

    def loss(ratio: Tensor, reward: Tensor, group: Tensor) -> Tensor:
        i, j = group_pairs(group)
        which = comparable(reward, group, i, j)
        i, j = i[which], j[which]
        return group_mean(logistic(beta * (ratio[i] - ratio[j])), group[i], int(group.max()) + 1)

    return by_group(name, loss, beta)


def sppo(*, beta: float = 0.001) -> Method:
    """SPPO, arXiv 2405.00675: (L - (P - 1/2)/β)², the mean over completions; P is the column of scores, 1/β the paper's η.

    P is a completion's probability of winning against the policy that was sampled, such as its mean preference over the other
    candidates: a score outside 0 to 1 is an error. β = 0.001 asks for as many as 500 nats: the target is a direction rather than
    a place.

    Assumes: P estimated against samples of the reference, which is the policy of the round before.
    Rests: nowhere in closed form: the targets (P - 1/2)/β make probabilities that sum to one only where
    Σ π_ref e^{(P - 1/2)/β} = 1; the paper puts 1/2 for the logarithm of its normaliser.
    TRL: `loss_type: sppo_hard` is twice this on pairs, with P = 1 and 0; it has no soft P.
    Choose it: for rounds of self-play with a judge that gives win probabilities.
    """
    positive("beta", beta)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        chance = batch.columns["reward"]
        if not bool(((chance >= 0) & (chance <= 1)).all()):
            low, high = chance.min().item(), chance.max().item()
            raise ValueError(f"scores from {low:g} to {high:g}; sppo reads them as win probabilities: expected 0 to 1")
        return (implicit(scored, batch) - (chance - 0.5) / beta) ** 2

    terms = (Term("sppo", "row", loss, weights.per_row),)
    return Method(terms, (REF_LOGP,), takes="groups", beta=beta, columns=("reward",))
