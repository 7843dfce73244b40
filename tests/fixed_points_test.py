"""Where losses come to rest, by independent roads: backward induction, counting, a linear solve, bisection, golden numbers."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from softq.mdp.soft import log_partition, sequence_kl, soft_backup
from softq.mdp.tabular import (
    TokenTree,
    along,
    difference,
    every_pair,
    every_trajectory,
    expected,
    gradient,
    policy_of,
    random_table,
    token_tree,
)
from softq.objectives.fixed_points import balanced, demonstrated, dominating, softmax_of_reward
from softq.objectives.links import logistic, smoothed_logistic
from softq.records import Batch, Pairs, Tokens

ENTRIES = {
    (e["fixture"], e["name"]): e
    for e in json.loads((Path(__file__).parent.parent / "conformance/golden.json").read_text())["entries"]
}
TREE = token_tree([(0,), (1, 1)], vocabulary=3, horizon=2, end=2)
LEAVES = every_trajectory(TREE)  # two prompts, seven completions each: of one token the last, of two the others
REF = random_table(TREE, 1).log_softmax(-1)
REWARD = random_table(TREE, 2)
Link = Callable[[Tensor], Tensor]


def numbers(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same(found: Tensor, wanted: Tensor, within: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=within, atol=within)


def sums(table: Tensor, tree: TokenTree = TREE) -> Tensor:
    return along(tree, table, every_trajectory(tree)).sum(-1)


def scored(ref: Tensor = REF, tree: TokenTree = TREE) -> dict[str, Tensor]:
    return {"ref_logp": along(tree, ref, every_trajectory(tree))}


def paired(weight: Tensor, leaves: Tokens = LEAVES) -> Batch:
    """Ordered pairs (i, j) of rows of one prompt, weighed by weight [B, B]; those of weight 0 are left out."""
    i, j = every_pair(leaves.prompt)
    some = weight[i, j] > 0
    return Batch(leaves, Pairs(i[some], j[some]), {"weight": weight[i, j][some]})


def normalised(logp: Tensor, group: Tensor) -> None:
    same(expected(logp, torch.ones_like(logp), group), torch.ones(int(group.max()) + 1, dtype=torch.float64))


def uneven(seed: int = 5, rows: int = 14) -> Tensor:
    """[B, B] positive weights of ordered pairs that no reward explains."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, rows, generator=generator, dtype=torch.float64).exp()


def soft(beta: float = 1.0) -> Tensor:
    """[B, B] weights that say σ((R_i - R_j)/β · β): what a pair is drawn with is the same in both orders."""
    drawn, reward = uneven(6), sums(REWARD)
    return (drawn + drawn.T) * torch.sigmoid(reward[:, None] - reward[None])


# --- the soft optimum, and maximum likelihood ---


@pytest.mark.parametrize("beta", [0.05, 0.7, 20.0])
def test_softmax_of_reward_is_backward_induction(beta: float) -> None:
    stated = softmax_of_reward(beta)(scored(), Batch(LEAVES, None, {"reward": sums(REWARD)}))
    best = soft_backup(TREE, REWARD, REF, beta=beta)
    same(policy_of(TREE, LEAVES, stated), best.logp, within=1e-11)
    same(stated - best.v[LEAVES.prompt] / beta, sums(best.logp), within=1e-11)


def test_demonstrated_counts() -> None:
    """Log of how often a completion stands there, under its own prompt: the same tokens after another count apart."""
    rows = torch.tensor([3, 0, 3, 6, 13, 3, 7, 7, 10, 0])
    tokens = Tokens(LEAVES.ids[rows], LEAVES.action[rows], LEAVES.ended[rows], LEAVES.prompt[rows])
    count = Counter(rows.tolist())
    same(demonstrated({}, Batch(tokens)), numbers(*(math.log(count[row]) for row in rows.tolist())))
    again = Tokens(tokens.ids, tokens.action, tokens.ended, torch.arange(10))
    same(demonstrated({}, Batch(again)), torch.zeros(10, dtype=torch.float64))


def test_demonstrated_is_the_maximum_of_the_likelihood() -> None:
    """The gradient of Σ log π over the rows is 0 at the policy of the counts, and not at another."""
    rows = torch.arange(14).repeat_interleave(1 + torch.arange(14) % 3)
    tokens = Tokens(LEAVES.ids[rows], LEAVES.action[rows], LEAVES.ended[rows], LEAVES.prompt[rows])
    first = torch.tensor([rows.tolist().index(row) for row in range(14)])
    policy = policy_of(TREE, LEAVES, demonstrated({}, Batch(tokens))[first])

    def likelihood(table: Tensor) -> Tensor:
        return along(TREE, table.log_softmax(-1), tokens).sum()

    assert gradient(likelihood, policy).abs().max() < 1e-12
    assert gradient(likelihood, REF).abs().max() > 1


# --- where pairs balance ---


@pytest.mark.parametrize("beta", [0.001, 0.1, 0.7, 5.0])
def test_balanced_logistic_with_soft_labels_is_the_softmax_of_reward(beta: float) -> None:
    stated = balanced(lambda m: logistic(beta * m))(scored(), paired(soft()))
    wanted = softmax_of_reward(beta)(scored(), Batch(LEAVES, None, {"reward": sums(REWARD)}))
    normalised(stated, LEAVES.prompt)
    same(stated, wanted - log_partition(sums(REF), sums(REWARD), LEAVES.prompt, beta=beta)[LEAVES.prompt], within=1e-11)


def solved(weight: np.ndarray, target: float) -> np.ndarray:
    """Scores of mean 0 with Σ_j (w_ij + w_ji)(s_i - s_j) = target Σ_j (w_ij - w_ji): the normal equations of the square."""
    both = weight + weight.T
    equations = np.diag(both.sum(1)) - both
    return np.linalg.lstsq(equations, target * (weight - weight.T).sum(1), rcond=None)[0]


def shifted(ref: np.ndarray, size: np.ndarray, score: np.ndarray) -> np.ndarray:
    """ref + size · (score + k), with k by bisection on Σ e^(...) = 1."""
    low, high = -1e3, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.logaddexp.reduce(ref + size * (score + middle)) < 0 else (low, middle)
    return ref + size * (score + low)


@pytest.mark.parametrize("per_token", [False, True])
def test_balanced_square_is_a_linear_solve(per_token: bool) -> None:
    """IPO: (m - 1/(2β))², with completions of one and two tokens; their lengths move mass where scores are means."""
    beta, weight = 0.3, uneven().fill_diagonal_(0.0)
    stated = balanced(lambda m: (m - 1 / (2 * beta)) ** 2, length_average=per_token)(scored(), paired(weight))
    normalised(stated, LEAVES.prompt)
    for prompt in range(2):
        rows = (LEAVES.prompt == prompt).nonzero()[:, 0]
        size = LEAVES.action[rows].sum(-1).double().numpy()
        score = solved(weight[rows][:, rows].numpy(), 1 / (2 * beta))
        by_hand = shifted(sums(REF)[rows].numpy(), size if per_token else np.ones(7), score)
        same(stated[rows], torch.from_numpy(by_hand), within=1e-10)
    other = balanced(lambda m: (m - 1 / (2 * beta)) ** 2, length_average=not per_token)(scored(), paired(weight))
    assert (other - stated).abs().max() > 0.1


PAIRS = token_tree([(0,), (1, 1), (1, 0)], vocabulary=2, horizon=1)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.45])
def test_balanced_of_two_completions_by_hand(epsilon: float) -> None:
    """Of a share p of the labels a is the better one: β(L_a - L_b) = logit((1-ε)p + ε(1-p))."""
    share = numbers(0.9, 0.5, 0.02)
    weight = torch.zeros(6, 6, dtype=torch.float64)
    for prompt, p in enumerate(share.tolist()):
        weight[2 * prompt, 2 * prompt + 1], weight[2 * prompt + 1, 2 * prompt] = 3 * p, 3 * (1 - p)
    ref = random_table(PAIRS, 3).log_softmax(-1)
    batch = paired(weight, every_trajectory(PAIRS))
    stated = balanced(lambda m: smoothed_logistic(0.4 * m, epsilon))(scored(ref, PAIRS), batch)
    ratio = (stated - ref.flatten()).view(3, 2)
    same(0.4 * (ratio[:, 0] - ratio[:, 1]), ((1 - epsilon) * share + epsilon * (1 - share)).logit())
    same(stated.view(3, 2).logsumexp(-1), torch.zeros(3, dtype=torch.float64))


def test_balanced_of_three_completions_whose_middle_never_moves() -> None:
    """R = (3, 0, -3), β = 1, a level reference: π ∝ e^R, after as many steps as the outer two need."""
    three, reward = token_tree([(0,)], vocabulary=3, horizon=1), numbers(3.0, 0.0, -3.0)
    batch = paired((reward[:, None] - reward[None]).sigmoid(), every_trajectory(three))
    stated = balanced(logistic)(scored(torch.full((1, 3), -math.log(3), dtype=torch.float64), three), batch)
    same(stated, reward.log_softmax(0), within=1e-11)


LINKS: dict[str, Link] = {
    "smoothed": lambda m: smoothed_logistic(0.7 * m, 0.2),
    "square": lambda m: (m - 0.8) ** 2,
    "exponential": lambda m: (-m).exp(),
}


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("name", LINKS)
def test_balanced_is_stationary_on_the_table(name: str, per_token: bool) -> None:
    """The population loss, as a function of the logits, has gradient 0 there, by autograd and by differences; not beside it."""
    i, j = every_pair(LEAVES.prompt)
    weight, size = uneven(), LEAVES.action.sum(-1) if per_token else torch.ones(14)
    policy = policy_of(TREE, LEAVES, balanced(LINKS[name], length_average=per_token)(scored(), paired(weight)))

    def loss(table: Tensor) -> Tensor:
        score = (sums(table.log_softmax(-1)) - sums(REF)) / size
        return (weight[i, j] * LINKS[name](score[i] - score[j])).sum()

    assert gradient(loss, policy).abs().max() < 1e-11
    assert difference(loss, policy).abs().max() < 1e-7
    assert gradient(loss, policy + 0.1 * REWARD).abs().max() > 0.1


def test_what_balances_depends_on_the_weights_up_to_a_factor() -> None:
    """Scaled weights change nothing; exchanged orders turn the scores round; and prompts do not see each other."""
    state = balanced(LINKS["smoothed"])
    plain = state(scored(), paired(uneven()))
    for factor in (1e-6, 1e6):
        same(state(scored(), paired(factor * uneven())), plain, within=1e-10)
    turned = state(scored(), paired(uneven().T))
    one, other = ((x - sums(REF))[:7] for x in (plain, turned))
    same(one - one.mean(), other.mean() - other, within=1e-11)
    mixed = uneven()
    mixed[:7, :7] *= 50 * uneven(8)[:7, :7]
    found = state(scored(), paired(mixed))
    same(found[7:], plain[7:], within=1e-11)
    assert (found - plain)[:7].abs().max() > 0.1


def test_a_completion_that_the_reference_never_gives_gets_nothing() -> None:
    ref = torch.where(torch.arange(3) == 1, -torch.inf, REF).log_softmax(-1)
    found = balanced(LINKS["square"])(scored(ref), paired(uneven()))
    normalised(found, LEAVES.prompt)
    assert (found == -torch.inf).equal(sums(ref) == -torch.inf)


# --- what has no answer ---


def blocks() -> Tensor:
    """[B, B] soft labels whose pairs join rows 0..2 and rows 3..6 of a prompt, and nothing joins the two."""
    side = torch.arange(14) % 7 < 3
    return soft() * (side[:, None] == side[None])


def test_inside_a_component_ratios_are_determined_and_between_them_they_are_not() -> None:
    """The loss of disconnected pairs is flat along what moves mass between components: π* shifted there balances as well."""
    i, j = every_pair(LEAVES.prompt)
    weight, side = blocks()[i, j], (torch.arange(14) % 7 < 3).double()

    def loss(score: Tensor) -> Tensor:
        return (weight * logistic(score[i] - score[j])).sum()

    for between in (0.0, 3.0, -3.0):
        slope = gradient(loss, sums(REWARD) + between * side)
        assert slope.abs().max() < 1e-14
    assert abs((gradient(loss, sums(REF)) * side).sum()) < 1e-14
    assert gradient(loss, sums(REF)).abs().max() > 1


@pytest.mark.parametrize("link", [logistic, *LINKS.values()])
def test_disconnected_pairs_are_refused(link: Link) -> None:
    with pytest.raises(ArithmeticError, match="connect"):
        balanced(link)(scored(), paired(blocks()))
    i, j = every_pair(LEAVES.prompt)
    with pytest.raises(ArithmeticError, match="connect"):  # pairs of weight 0 connect nothing
        balanced(link)(scored(), Batch(LEAVES, Pairs(i, j), {"weight": blocks()[i, j]}))


NOT_CONVEX: dict[str, Link] = {
    "concave": lambda m: -((m - 1) ** 2),
    "wave": torch.sin,
    "kinked": lambda m: (1 - m).relu(),
}


@pytest.mark.parametrize("name", NOT_CONVEX)
def test_links_that_are_not_strictly_convex_are_refused(name: str) -> None:
    with pytest.raises(ArithmeticError, match="convex"):
        balanced(NOT_CONVEX[name])(scored(), paired(uneven()))
    one_pair = paired(uneven(rows=6), every_trajectory(PAIRS))
    with pytest.raises(
        ArithmeticError, match="convex"
    ):  # with the one curvature of two scores gone, as with all of them
        balanced(NOT_CONVEX[name])(scored(random_table(PAIRS, 3).log_softmax(-1), PAIRS), one_pair)


def test_a_convex_link_that_is_nearly_straight_is_solved() -> None:
    def link(m: Tensor) -> Tensor:
        return (1 + (m - 3) ** 2).sqrt()

    found = balanced(link)(scored(), paired(uneven()))
    score, (i, j) = found - sums(REF), every_pair(LEAVES.prompt)
    slope = gradient(lambda s: (uneven()[i, j] * link(s[i] - s[j])).sum(), score)
    assert slope.abs().max() < 1e-10


# --- margins that dominate ---


def test_dominating_by_hand() -> None:
    """Two prompts, margins of π_ref log 3 and -log 4 (chosen first, then second): π's are those + 1, either way round."""
    two = token_tree([(0,), (1, 1)], vocabulary=2, horizon=1)
    ref = numbers([3 / 4, 1 / 4], [4 / 5, 1 / 5]).log()
    batch = Batch(every_trajectory(two), Pairs(torch.tensor([0, 3]), torch.tensor([1, 2])))
    found = dominating(1.0)(scored(ref, two), batch)
    a, b = math.log(3) + 1, -math.log(4) + 1
    same(found, numbers([a, 0.0, 0.0, b], [b, 0.0, 0.0, a]))


def test_dominating_lists_every_order_of_the_margins() -> None:
    ref = random_table(PAIRS, 3).log_softmax(-1)
    pairs = Pairs(torch.tensor([1, 2, 5]), torch.tensor([0, 3, 4]))
    found = dominating(0.7)(scored(ref, PAIRS), Batch(every_trajectory(PAIRS), pairs))
    margins = found[:, pairs.chosen] - found[:, pairs.rejected]
    of_ref = ref.flatten()[pairs.chosen] - ref.flatten()[pairs.rejected]
    same(margins.sort(-1).values, (of_ref.sort().values + 0.7).expand(6, 3))
    orders = {tuple(round(x, 9) for x in row) for row in margins.tolist()}
    assert orders == {tuple(round(x + 0.7, 9) for x in row) for row in itertools.permutations(of_ref.tolist())}


# --- the golden numbers ---

FOUR = token_tree([(5,)], vocabulary=2, horizon=2)
OF_FOUR = every_trajectory(FOUR)


def on_tree(values: dict) -> Tensor:
    return numbers(*(values[state] for state in ("root", "a", "b")))


GIVEN = ENTRIES[3, "leaves"]["inputs"]
REF4, R4 = sums(on_tree(GIVEN["ref"]).log(), FOUR), sums(on_tree(GIVEN["reward"]), FOUR)
STAR = softmax_of_reward(0.5)(
    scored(on_tree(GIVEN["ref"]).log(), FOUR), Batch(OF_FOUR, None, {"reward": R4})
).log_softmax(0)


def test_golden_optimum_and_expectations() -> None:
    same(STAR.exp(), numbers(*ENTRIES[3, "leaves"]["expected"]["pi_star"]))
    same(R4, numbers(*ENTRIES[3, "leaves"]["expected"]["R"]))
    wanted, group = ENTRIES[3, "expectations"]["expected"], OF_FOUR.prompt
    found = {
        "E_ref_beta_L": expected(REF4, 0.5 * (STAR - REF4), group),
        "KL_ref_pistar": sequence_kl(REF4, STAR, group),
        "E_pistar_beta_L": expected(STAR, 0.5 * (STAR - REF4), group),
        "KL_pistar_ref": sequence_kl(STAR, REF4, group),
        "E_pistar_R": expected(STAR, R4, group),
    }
    assert {name: pytest.approx(value, abs=1e-12) for name, value in wanted.items()} == {
        name: value.item() for name, value in found.items()
    }


@pytest.mark.parametrize("w", ["0.5", "2"])
def test_golden_mixtures(w: str) -> None:
    """π_ref^{1-w} π*^w is the soft optimum of w times the implicit reward."""
    entry = ENTRIES[3, f"mixing_w{w}"]
    reward = float(w) * 0.5 * (STAR - REF4)
    stated = softmax_of_reward(0.5)({"ref_logp": REF4[:, None]}, Batch(OF_FOUR, None, {"reward": reward}))
    same(stated.softmax(0), numbers(*entry["expected"]["sequence_optimum"]))


def test_golden_differential_information_is_learned_from_preferences() -> None:
    """q ∝ π*/π_ref. Chosen drawn by π_ref, rejected by π_l ∝ π_ref (π_ref/π*)^β: DPO with β comes to rest at π*."""
    wanted = ENTRIES[3, "differential_information"]["expected"]
    q = (STAR - REF4).log_softmax(0)
    same(q.exp(), numbers(*wanted["q"]))
    assert -(q.exp() * q).sum().item() == pytest.approx(wanted["entropy_nats"], abs=1e-12)
    assert (STAR - REF4).exp().sum().item() == pytest.approx(wanted["W"], abs=1e-12)
    rejected = (REF4 + 0.5 * (REF4 - STAR)).log_softmax(0)
    weight = (REF4[:, None] + rejected[None]).exp()
    ref = {"ref_logp": REF4[:, None]}
    same(balanced(lambda m: logistic(0.5 * m))(ref, paired(weight, OF_FOUR)), STAR, within=1e-11)
    other = balanced(lambda m: logistic(0.7 * m))(ref, paired(weight, OF_FOUR))
    assert (other - STAR).abs().max() > 0.1


def test_golden_odds_and_ends() -> None:
    """InfoNCA's target, the acceptance of rejection sampling and A*'s value are the soft optimum of three rewards."""
    level = torch.full((3, 1), -math.log(3), dtype=torch.float64)
    three = every_trajectory(token_tree([(0,)], vocabulary=3, horizon=1))

    def stated(beta: float, rewards: list[float]) -> Tensor:
        batch = Batch(three, None, {"reward": numbers(*rewards)})
        return softmax_of_reward(beta)({"ref_logp": level}, batch) - level[:, 0]

    entry = ENTRIES[4, "infonca"]
    same((0.5 * stated(0.5 * 0.5, entry["inputs"]["rewards"])).softmax(0), numbers(*entry["expected"]["soft"]))
    entry = ENTRIES[4, "rso_first_pass_acceptance"]
    ratio = stated(0.5, entry["inputs"]["rewards"])
    same((ratio - ratio.max()).exp(), numbers(*entry["expected"]["acceptance"]))
    entry = ENTRIES[4, "a_star_po_value"]
    value = log_partition(
        level[:, 0], numbers(*entry["inputs"]["rewards"]), torch.zeros(3, dtype=torch.int64), beta=0.5
    )
    same(0.5 * value, numbers(entry["expected"]["V"]))
