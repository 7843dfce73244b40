"""The four constructions of the unified framework, on groups."""

from collections.abc import Mapping

import torch

from softq.objectives.margins import dpo
from softq.objectives.rankings import exo_k
from softq.objectives.regression import kl_to_target, rebel, reward_regression, soft_preference
from softq.objectives.sums import weighted_sum
from softq.records import Batch
from softq.verify.inputs import GROUP_STEPS, Family
from softq.verify.line import BEST_OF_TWO, LOG_2, PLAIN, Equal, Line, also, equal
from softq.verify.tables import KNOWN, OWN, rows, some_models

UNEVEN_GROUPS = Batch(
    rows(OWN, [0, 0, 1, 1, 2, 2, 0, 0]), None, {"reward": torch.tensor(KNOWN["reward"], dtype=torch.float64)}
)
SIGMA_1 = 0.7310585786300049

LINES: Mapping[str, Line] = {
    "reward_regression": Line(reward_regression(beta=0.5)),
    "reward_regression_fitted": Line(reward_regression(beta=0.5, value="fitted"), rests=2.0),
    "rebel": Line(
        rebel(beta=0.5),
        rests=2.0,
        equals=equal(
            "of two completions, 4 times reward_regression with a fitted value",
            rebel(beta=0.5),
            weighted_sum([(reward_regression(beta=0.5, value="fitted"), 4.0)]),
            BEST_OF_TWO,
        ),
    ),
    "soft_preference": Line(
        soft_preference(beta=0.5),
        at_reference=LOG_2,
        rests=2.0,
        equals=(
            Equal(
                "of two completions, dpo with the label probability σ(r_w - r_l)",
                (soft_preference(beta=0.5), BEST_OF_TWO),
                (dpo(beta=0.5), also(PLAIN, label_probability=[SIGMA_1] * 4)),
                some_models(),
            ),
        ),
    ),
    "kl_to_target": Line(
        kl_to_target(beta=0.5),
        rests=2.0,
        equals=equal(
            "exo_k with beta 1 and alpha β", kl_to_target(beta=0.5), exo_k(beta=1.0, alpha=0.5), UNEVEN_GROUPS
        ),
    ),
}

PER_GROUP = "one value per group, in ascending order of its prompt"
FEW = ("groups of different size", "tied rewards", "extreme rewards and ratios")
STEPS = {name: GROUP_STEPS[name] for name in FEW}
PAIRS = "over i != j of a group; 0 in a group of one"

FAMILIES = (
    Family("reward_regression", "reward_regression", {"beta": 0.5},
           "mean_k (reward_k - beta*L_k - V)^2, V=beta*log(mean_k exp(reward_k/beta))", PER_GROUP, STEPS),
    Family("reward_regression_fitted", "reward_regression", {"beta": 0.5, "value": "fitted"},
           "mean_k (reward_k - beta*L_k - V)^2, V=mean_k (reward_k - beta*L_k)", PER_GROUP, STEPS),
    Family("rebel", "rebel", {"beta": 0.5}, "mean of (reward_i - reward_j - beta*(L_i - L_j))^2 " + PAIRS, PER_GROUP, STEPS),
    Family("soft_preference", "soft_preference", {"beta": 0.5},
           "mean of p*h(z) + (1-p)*h(-z), p=s(reward_i - reward_j), z=beta*(L_i - L_j), " + PAIRS, PER_GROUP, STEPS),
    Family("kl_to_target", "kl_to_target", {"beta": 0.5},
           "sum_k w_k*(log w_k - logsoftmax(reward/beta)_k), w=softmax(L)", PER_GROUP, STEPS),
)  # fmt: skip
