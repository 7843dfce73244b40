"""Several completions of one prompt with a score each."""

import math
from collections.abc import Mapping

from softq.objectives.margins import dpo, exo
from softq.objectives.rankings import all_pairs, best_vs_rest, exo_k, infonca, nca_k, plackett_luce, sppo
from softq.records import Method
from softq.verify.inputs import GOLDEN, GROUP_STEPS, LENGTHS, SIZES, Family
from softq.verify.line import BEST_OF_TWO, LOG_2, PLAIN, Equal, Line
from softq.verify.tables import some_models


def _dpo_of_two(method: Method) -> tuple[Equal, ...]:
    return (Equal("of two completions it is dpo", (method, BEST_OF_TWO), (dpo(beta=0.7), PLAIN), some_models()),)


DRAWN = (
    "where a ranking is always the same every margin grows for ever (over drawn rankings it rests at the soft optimum, "
    "as the tests show)"
)

LINES: Mapping[str, Line] = {
    "infonca": Line(
        infonca(beta=0.5, alpha=0.5),
        at_reference=LOG_2,
        rests=4.0,
        equals=(
            Equal(
                "of two completions, the better one sure: dpo",
                (infonca(beta=0.7, alpha=0.001), BEST_OF_TWO),
                (dpo(beta=0.7), PLAIN),
                some_models(),
            ),
        ),
    ),
    "nca_k": Line(
        nca_k(beta=0.5, alpha=0.5),
        why="unless β is 1 the ratios that the completions want sum to no probability; between them no closed form is known",
        at_reference=2 * LOG_2,
    ),
    "nca_k_1": Line(nca_k(beta=1.0, alpha=0.5), at_reference=2 * LOG_2),
    "exo_k": Line(
        exo_k(beta=0.5, alpha=0.5),
        rests=4.0,
        equals=(
            Equal(
                "of two completions exo, with α = 1/log((1-ε)/ε)",
                (exo_k(beta=0.7, alpha=1 / math.log(4)), BEST_OF_TWO),
                (exo(beta=0.7, label_smoothing=0.2), PLAIN),
                some_models(),
            ),
        ),
    ),
    "plackett_luce": Line(
        plackett_luce(beta=0.7), why=DRAWN, at_reference=LOG_2, rests=math.inf, equals=_dpo_of_two(plackett_luce(beta=0.7))
    ),
    "best_vs_rest": Line(
        best_vs_rest(beta=0.7), why=DRAWN, at_reference=LOG_2, rests=math.inf, equals=_dpo_of_two(best_vs_rest(beta=0.7))
    ),
    "all_pairs": Line(
        all_pairs(beta=0.7), why=DRAWN, at_reference=LOG_2, rests=math.inf, equals=_dpo_of_two(all_pairs(beta=0.7))
    ),
    "sppo": Line(
        sppo(beta=0.5),
        why="its targets make probabilities that sum to one only by chance; between them no closed form is known",
    ),
}  # fmt: skip

PER_GROUP = "one value per group, in ascending order of its prompt"
FEW = ("golden", "groups of different size", "tied rewards", "extreme rewards and ratios")
STEPS = {name: GROUP_STEPS[name] for name in FEW}
CHANCES = {
    "golden": {**GOLDEN, "reward": [0.8] * 3 + [0.2] * 3},
    "groups of different size": {**SIZES, "reward": [0.4, 0.05, 1.0, 0.9, 0.2, 0.0, 0.35, 0.5]},
    "at the reference": {**SIZES, "logp": LENGTHS["ref_logp"], "reward": [0.5, 1.0, 0.5, 0.25, 0.5, 0.0, 1.0, 0.75]},
}

FAMILIES = (
    Family("infonca", "infonca", {"beta": 0.5, "alpha": 0.5}, "-sum_k softmax(reward/alpha)_k*logsoftmax(beta*L)_k",
           PER_GROUP, GROUP_STEPS, {"golden": (4, "infonca")}, {"nearly one-hot": {"beta": 0.01, "alpha": 0.001}}),
    Family("nca_k", "nca_k", {"beta": 0.5, "alpha": 0.5},
           "sum_k softmax(reward/alpha)_k*h(beta*L_k) + (1/K)*sum_k h(-beta*L_k)", PER_GROUP, STEPS, {"golden": (4, "nca")}),
    Family("nca_k_1", "nca_k", {"beta": 1.0, "alpha": 0.5},
           "sum_k softmax(reward/alpha)_k*h(beta*L_k) + (1/K)*sum_k h(-beta*L_k)", PER_GROUP,
           {"tied rewards": STEPS["tied rewards"]}),
    Family("exo_k", "exo_k", {"beta": 0.5, "alpha": 0.5},
           "sum_k q_k*(log q_k - logsoftmax(reward/alpha)_k), q=softmax(beta*L)", PER_GROUP, STEPS, {"golden": (4, "exo_k")}),
    Family("plackett_luce", "plackett_luce", {"beta": 0.5},
           "sum_k log(sum_j exp(beta*(L_j - L_k))), j over k and all of lower reward", PER_GROUP, STEPS),
    Family("best_vs_rest", "best_vs_rest", {"beta": 0.5},
           "mean of h(beta*(L_i - L_j)) over i of the highest reward, j of a lower one; 0 without such", PER_GROUP, STEPS),
    Family("all_pairs", "all_pairs", {"beta": 0.5},
           "mean of h(beta*(L_i - L_j)) over pairs with reward_i > reward_j; 0 without such", PER_GROUP, STEPS),
    Family("sppo", "sppo", {"beta": 0.5}, "(L - (reward - 1/2)/beta)^2, reward a probability of winning",
           "one value per row", CHANCES, {"golden": (1, "sppo_soft")}),
)  # fmt: skip
