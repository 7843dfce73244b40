"""The inputs of the conformance vectors, written by hand: small steps, each odd in one way (conformance/README.md).

Log-probabilities are in nats, one list a row with one number an action, so rows are as long as their completions.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

Inputs = Mapping[str, Any]
Rows = list[list[float]]


class Family(NamedTuple):
    """One method at one kind of setting, and the steps that it is run on."""

    name: str  # of its line in the contract; the entries are named "name/step"
    method: str
    parameters: Mapping[str, Any]
    formula: str
    layout: str
    steps: Mapping[str, Inputs]
    golden: Mapping[str, tuple[int, str]] = {}  # step -> fixture and name of the entry of golden.json with these inputs
    at: Mapping[str, Mapping[str, Any]] = {}  # step -> parameters that differ there


def _on_first(sums: list[float]) -> Rows:
    """Sums of rows as the golden numbers give them: each on the first action of its row."""
    return [[total] + [0.0] * (length - 1) for total, length in zip(sums, (5, 10, 4, 6, 8, 4), strict=True)]


def _taken(logits: list[Rows], tokens: list[list[int]]) -> Rows:
    """log softmax(logits)[token] of each action."""
    return [
        [state[token] - math.log(sum(map(math.exp, state))) for state, token in zip(row, taken, strict=True)]
        for row, taken in zip(logits, tokens, strict=True)
    ]


GOLDEN = {
    "prompt": [0, 1, 2, 0, 1, 2],
    "logp": _on_first([-10.0, -20.0, -5.0, -12.0, -18.0, -9.0]),
    "ref_logp": _on_first([-11.0, -19.0, -5.5, -12.5, -19.5, -5.0]),
}
PAIRED = {"chosen": [0, 1, 2], "rejected": [3, 4, 5]}
LENGTHS = {
    "prompt": [0, 0, 1, 1, 2, 2, 3, 3],
    "logp": [[-0.2, -1.5], [-2.25], [-0.7, -0.1, -3.0], [-1.1, -0.4, -0.9, -0.05], [-0.6], [-2.0, -0.3],
             [-1.2, -1.3, -0.8], [-0.45, -2.6]],
    "ref_logp": [[-0.9, -1.1], [-1.75], [-0.5, -0.6, -1.9], [-1.0, -0.8, -0.2, -0.35], [-1.4], [-0.8, -0.9],
                 [-2.1, -0.7, -1.5], [-0.65, -0.95]],
}  # fmt: skip
UNEVEN = {**LENGTHS, "chosen": [0, 3, 4, 6], "rejected": [1, 2, 5, 7]}
ONE_TOKEN = {"prompt": [0, 0], "logp": [[-0.4], [-1.7]], "ref_logp": [[-0.9], [-1.1]], "chosen": [0], "rejected": [1]}
WEIGHTS = {**UNEVEN, "weight": [1.0, 0.5, 2.0, 0.0]}
SAME = {**UNEVEN, "logp": LENGTHS["ref_logp"]}
FAR = {
    "prompt": [0, 0, 1, 1, 2, 2, 3, 3],
    "logp": [[-0.5], [-10000.5, -0.25], [-10000.25], [-0.75], [-0.5], [-10000.0], [-5000.0, -5000.5], [-1.25]],
    "ref_logp": [[-10000.5], [-0.5, -0.25], [-0.25], [-10000.75], [-10000.5], [-20000.0], [-0.25, -0.25], [-1.25]],
}
EXTREME = {**FAR, "chosen": [0, 2, 4, 6], "rejected": [1, 3, 5, 7]}
PAIR_STEPS = {
    "golden": {**GOLDEN, **PAIRED},
    "uneven lengths": UNEVEN,
    "one token": ONE_TOKEN,
    "weights": WEIGHTS,
    "at the reference": SAME,
    "extreme margins": EXTREME,
}
DPO_STEPS = {
    **PAIR_STEPS,
    "margins": {**UNEVEN, "margin": [0.5, 0.0, 1.5, -0.25]},
    "label probabilities": {**UNEVEN, "label_probability": [0.9, 0.6, 1.0, 0.3]},
    "all columns": {**WEIGHTS, "margin": [0.5, 0.0, 1.5, -0.25], "label_probability": [0.9, 0.6, 1.0, 0.3]},
    "shared rows": {**LENGTHS, "prompt": [0, 0, 0, 0, 1, 1, 2, 2], "chosen": [0, 0, 1, 4], "rejected": [1, 2, 2, 5]},
}
SORTED_STEPS = {
    **{name: step for name, step in PAIR_STEPS.items() if name not in ("weights", "at the reference")},
    "tied reference margins": {**UNEVEN, "ref_logp": [[-0.9, -1.1], [-1.75], [-0.5, -0.5, -1.0], [-1.0, -0.25, -0.75],
                               [-1.5], [-1.0, -1.0], [-2.0, -0.75, -1.5], [-0.75, -4.0]],
                               "logp": [*LENGTHS["logp"][:3], [-1.1, -0.4, -0.9], *LENGTHS["logp"][4:]]},
}  # fmt: skip

FIXTURE_2 = {
    "prompt": [0, 0],
    "vocabulary": 3,
    "tokens": [[0, 2], [1, 0, 2]],
    "logits": [[[1.0, 0.0, -1.0], [0.0, 0.5, 1.5]], [[1.0, 0.0, -1.0], [0.2, -0.3, 0.0], [0.0, 1.0, 0.5]]],
    "ref_logits": [[[0.5, 0.0, 0.0], [0.0, 0.0, 1.0]], [[0.5, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.5, 1.0]]],
    "chosen": [0],
    "rejected": [1],
}
TOKENS_2 = {
    "prompt": [0, 0],
    "logp": _taken(FIXTURE_2["logits"], FIXTURE_2["tokens"]),
    "ref_logp": _taken(FIXTURE_2["ref_logits"], FIXTURE_2["tokens"]),
    "chosen": [0],
    "rejected": [1],
}
LOGITS = {
    "prompt": [0, 0, 1, 1, 2, 2],
    "vocabulary": 3,
    "tokens": [[2], [0, 1, 2], [1, 2], [0, 2], [0, 0, 2], [1, 2]],
    "logits": [[[0.3, -0.4, 1.1]], [[1.2, 0.1, -0.5], [0.0, 0.9, -1.3], [-0.2, 0.4, 0.8]],
               [[0.6, 0.2, 0.0], [-1.0, 0.5, 0.7]], [[0.6, 0.2, 0.0], [0.1, -0.3, 0.4]],
               [[-0.8, 1.4, 0.3], [0.2, 0.0, -0.6], [1.0, -1.1, 0.5]], [[-0.8, 1.4, 0.3], [0.7, -0.2, 1.6]]],
    "ref_logits": [[[0.0, 0.2, 0.4]], [[0.5, 0.3, -0.1], [0.6, -0.7, 0.2], [0.9, 0.0, 0.1]],
                   [[-0.3, 0.8, 0.1], [0.0, 0.0, 0.5]], [[-0.3, 0.8, 0.1], [1.3, 0.2, -0.4]],
                   [[0.4, 0.4, -0.9], [-0.5, 0.6, 0.3], [0.2, 0.1, 0.0]], [[0.4, 0.4, -0.9], [0.0, 1.0, 0.0]]],
    "chosen": [0, 3, 4],
    "rejected": [1, 2, 5],
}  # fmt: skip
FAR_LOGITS = {
    "prompt": [0, 0, 1, 1],
    "vocabulary": 3,
    "tokens": [[0], [1, 2], [1, 2], [0]],
    "logits": [[[10000.0, 0.0, 0.5]], [[10000.0, 0.0, 0.5], [0.0, 0.0, 1.0]],
               [[0.3, 0.8, 0.0], [0.0, 0.5, 1.0]], [[1.0, 0.0, -0.5]]],
    "ref_logits": [[[0.0, 10000.0, 0.0]], [[0.0, 10000.0, 0.0], [0.5, 0.0, 0.0]],
                   [[0.0, 0.5, 0.0], [0.0, 0.0, 0.5]], [[-10000.0, 0.5, 0.0]]],
    "chosen": [0, 2],
    "rejected": [1, 3],
}  # fmt: skip
LOGIT_STEPS = {
    "golden": FIXTURE_2,
    "uneven lengths": LOGITS,
    "one token": {
        "prompt": [0, 0], "vocabulary": 3, "tokens": [[2], [0]], "logits": [[[0.3, -0.4, 1.1]], [[0.3, -0.4, 1.1]]],
        "ref_logits": [[[0.0, 0.2, 0.4]], [[0.0, 0.2, 0.4]]], "chosen": [0], "rejected": [1],
    },
    "weights": {**LOGITS, "weight": [0.5, 2.0, 1.0]},
    "at the reference": {**LOGITS, "logits": LOGITS["ref_logits"]},
    "extreme margins": FAR_LOGITS,
}  # fmt: skip

DRIFT_STEPS = {
    **LOGIT_STEPS,  # L and K of one token do not cancel where they are extreme: float32 could not tell what is left
    "extreme margins": {**FAR_LOGITS, "tokens": [[0], [2, 2], [1, 2], [0]], "chosen": [1, 2], "rejected": [0, 3]},
}
CRINGE_STEPS = {
    name: {key: value for key, value in step.items() if key != "ref_logits"}
    for name, step in {
        "fixture 2": FIXTURE_2,
        **{name: LOGIT_STEPS[name] for name in ("uneven lengths", "weights", "extreme margins")},
        "one other token": LOGITS,
        "all other tokens": LOGITS,
    }.items()
}
DIFFS = [[1, 0], [1], [0, 1, 1], [0, 0, 1, 0], [1], [0, 0], [1, 1, 1], [0, 1]]
DIFF_STEPS = {
    "golden": {**TOKENS_2, "diff": [[1, 0], [1, 1, 0]]},
    "golden difflib": {**TOKENS_2, "diff": [[0, 0], [1, 0, 0]]},
    "uneven lengths": {**UNEVEN, "diff": DIFFS},
    "one token": {**ONE_TOKEN, "diff": [[1], [1]]},
    "weights": {**WEIGHTS, "diff": DIFFS},
    "at the reference": {**SAME, "diff": DIFFS},
    "nothing differs": {**UNEVEN, "diff": [[0] * len(row) for row in DIFFS]},
    "extreme margins": {**EXTREME, "diff": [[1] * len(row) for row in FAR["logp"]]},
}
SIDES_STEPS = {
    **{name: SORTED_STEPS[name] for name in ("golden", "uneven lengths", "one token")},
    "extreme margins": {
        **EXTREME,
        "logp": [*FAR["logp"][:4], [-2.5], [-9999.0], [-5000.0, -4999.5], [-1.5]],
    },  # no ties
}
_TAUGHT = {name: LOGITS[name] for name in ("vocabulary", "tokens", "logits")}
TEACHER_STEPS = {
    "fixture 2": {
        "prompt": [0], "vocabulary": 3, "tokens": [[0, 2]], "logits": [[[0.2, 0.6, -0.4], [0.3, -0.1, 0.8]]],
        "dpo_logits": FIXTURE_2["logits"][:1], "reverse_logits": FIXTURE_2["ref_logits"][:1],
    },
    "uneven lengths": {
        "prompt": [0, 0, 1, 1, 2, 2], **_TAUGHT, "dpo_logits": LOGITS["ref_logits"],
        "reverse_logits": [[[1.1, 0.0, -0.3]], [[0.2, 0.9, 0.4], [-0.6, 0.0, 0.5], [0.3, 1.2, 0.0]],
                           [[0.0, 0.4, 1.5], [0.8, -0.2, 0.1]], [[0.0, 0.4, 1.5], [0.5, 0.5, 0.6]],
                           [[0.7, -0.1, 0.2], [0.1, 0.0, 0.9], [-1.0, 0.6, 0.3]], [[0.7, -0.1, 0.2], [0.4, 0.2, -0.5]]],
    },
    "near": {"prompt": [0, 0, 1, 1, 2, 2], **_TAUGHT, "dpo_logits": LOGITS["ref_logits"], "reverse_logits": LOGITS["ref_logits"]},
    "extreme": {
        "prompt": [0, 0, 1, 1], "vocabulary": 3, "tokens": FAR_LOGITS["tokens"], "logits": FAR_LOGITS["logits"],
        "dpo_logits": FAR_LOGITS["ref_logits"],
        "reverse_logits": [[[0.0, 0.0, 5000.0]], [[0.0, 0.0, 5000.0], [0.0, 2.0, 0.0]],
                           [[0.0, 0.5, -3000.0], [1.0, 0.0, 0.0]], [[0.0, 0.5, 0.0]]],
    },
}  # fmt: skip

OTHERS = {
    "prompt": [1, 2, 3, 0],
    "logp": [[-2.9, -1.4], [-3.3], [-0.9, -2.2, -1.7], [-1.6]],
    "ref_logp": [[-3.5, -1.9], [-2.8], [-1.5, -2.4, -1.1], [-2.3]],
}
"""Completions under another's prompt: their mean log-ratio is positive."""


def _labelled(rows: Inputs, others: Inputs, good: list[bool]) -> dict[str, Any]:
    """Rows with a label each, then rows that are only a baseline."""
    together = {name: [*rows[name], *others[name]] for name in ("prompt", "logp", "ref_logp")}
    count = len(good)
    return {
        **together,
        "row": list(range(count)),
        "good": good,
        "mismatched": list(range(count, len(together["logp"]))),
    }


GOOD = [True, False, True, True, False, True, False, False]
LABEL_STEPS = {
    "golden": _labelled(GOLDEN, {"prompt": [1], "logp": [[-1.0]], "ref_logp": [[-1.2]]}, [True] * 3 + [False] * 3),
    "uneven lengths": _labelled(LENGTHS, OTHERS, GOOD),
    "baseline 0": _labelled(LENGTHS, {**OTHERS, "logp": OTHERS["ref_logp"], "ref_logp": OTHERS["logp"]}, GOOD),
    "class weights": _labelled(LENGTHS, OTHERS, GOOD),
    "only good": _labelled(LENGTHS, OTHERS, [True] * 8),
    "one token": _labelled(ONE_TOKEN, {"prompt": [1], "logp": [[-0.8]], "ref_logp": [[-1.5]]}, [True, False]),
    "extreme ratios": _labelled(
        FAR, {"prompt": [1, 0], "logp": [[-0.5], [-9998.5]], "ref_logp": [[-10000.5], [-0.5]]}, GOOD
    ),
}
REWARDS = [0.4, -1.1, 0.3, 0.9, -0.2, 1.6, -0.7, 0.1]
SIZES = {**LENGTHS, "prompt": [7, 2, 7, 7, 2, 9, 4, 4]}
"""Groups of two, two, three and one, not in order."""

GROUP_STEPS = {
    "golden": {
        "prompt": [0, 0, 0], "logp": [[-1.0], [-1.0], [-2.0]], "ref_logp": [[-2.0], [-1.5], [-1.3]],
        "reward": [0.8, 0.2, -0.5],
    },
    "groups of different size": {**SIZES, "reward": REWARDS},
    "tied rewards": {**SIZES, "reward": [1.0, 0.5, 1.0, 0.0, 0.5, 1.0, 0.0, 2.0]},
    "nearly one-hot": {**SIZES, "reward": REWARDS},
    "at the reference": {**SIZES, "logp": LENGTHS["ref_logp"], "reward": REWARDS},
    "extreme rewards and ratios": {**FAR, "prompt": SIZES["prompt"], "reward": [1e4, -1e4, 9999.5, -1e4, 1e4, 0.0, 1.0, 1.5]},
}  # fmt: skip
SHOWN_STEPS = {
    "golden": {"prompt": [0], "logp": TOKENS_2["logp"][:1]},
    "uneven lengths": {name: LENGTHS[name] for name in ("prompt", "logp")},
    "one token": {"prompt": [0], "logp": [[-1.7]]},
    "extreme": {name: FAR[name] for name in ("prompt", "logp")},
}
OLD = [[-0.5, -1.3], [-2.0], [-0.9, -0.15, -2.2], [-1.0, -0.75, -0.95, -0.3], [-1.1], [-1.9, -0.2],
       [-1.25, -0.8, -0.9], [-0.4, -1.6]]  # fmt: skip
LOG = math.log
ROLLOUT_STEPS = {
    "by hand": {
        "prompt": [3, 3],
        "logp": [[LOG(0.3), LOG(0.36)], [LOG(0.3)]],
        "old_logp": [[LOG(0.2), LOG(0.4)], [LOG(0.6)]],
        "ref_logp": [[LOG(0.3), LOG(0.36)], [LOG(0.3) - 0.3]],
        "reward": [1.0, 0.0],
    },
    "groups of different size": {**SIZES, "old_logp": OLD, "reward": REWARDS},
    "tied rewards": {**SIZES, "old_logp": OLD, "reward": [0.7, 1.0, 0.7, 0.7, 1.0, 4.0, 0.0, 2.0]},
    "on policy": {**SIZES, "old_logp": LENGTHS["logp"], "reward": REWARDS},
    "no reference": {"prompt": SIZES["prompt"], "logp": LENGTHS["logp"], "old_logp": OLD, "reward": REWARDS},
    "extreme rewards and ratios": {
        "prompt": [0, 0, 0, 0], "logp": [[-0.5], [-0.5], [-9.0, -0.25], [-9.0]],
        "old_logp": [[-9.0], [-9.0], [-0.5, -0.25], [-0.5]], "ref_logp": [[-8.5], [-0.5], [-0.5, -8.25], [-9.0]],
        "reward": [1e4, -1e4, 1e4, -9999.5],
    },
}  # fmt: skip

PER_PAIR = "one value per pair"
