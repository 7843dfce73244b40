"""Several completions of one prompt with a score each."""

from collections.abc import Mapping

from softq.objectives.margins import dpo
from softq.objectives.rankings import infonca
from softq.verify.inputs import GROUP_STEPS, Family
from softq.verify.line import BEST_OF_TWO, LOG_2, PLAIN, Equal, Line
from softq.verify.tables import some_models

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
}

FAMILIES = (
    Family("infonca", "infonca", {"beta": 0.5, "alpha": 0.5}, "-sum_k softmax(reward/alpha)_k*logsoftmax(beta*L)_k",
           "one value per group, in ascending order of its prompt", GROUP_STEPS, {"golden": (4, "infonca")},
           {"nearly one-hot": {"beta": 0.01, "alpha": 0.001}}),
)  # fmt: skip
