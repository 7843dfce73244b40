"""Decoders side by side: the same prompts, a judge that none of them sees, and controls that cost what they cost.

Of each prompt the first answer of a decoder is judged: the one that a user would take. What it cost is counted in
token-evaluations a prompt: nodes behind the prompt, once for each model that computed them.

The controls spend the same on plain samples of the policy, and know nothing of the reward: for each decoder, of each prompt as
many samples as cost no more than what the decoder took for a prompt on average, at least one. From these one is taken at random
(its expectation, the mean of all, is what is told), or the likeliest. What is matched is token-evaluations alone: neither
seconds nor length, which are told beside.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from softq.inspection.figures import bootstrapped
from softq.search.answer import Answer
from softq.search.decoders import DECODERS
from softq.searching.judges import Judge, Said, judged
from softq.searching.opened import Opened
from softq.searching.run import Method, searched
from softq.training.events import Note

POOL = 128  # samples of a prompt that controls choose from, at most
CONTROLS: Mapping[str, str] = {
    "random": "any of as many samples as cost the same",
    "likeliest": "the likeliest of as many samples as cost the same",
}


class Arm(NamedTuple):
    """What one decoder came to, a prompt each in the order of the data."""

    name: str  # as --compare has it
    method: Method
    rows: tuple[dict[str, Any], ...]  # the judged answers, with `judged`
    reward: np.ndarray  # [P] by the judge
    evaluations: float  # a prompt, on average
    seconds: float  # likewise


class Control(NamedTuple):
    """What samples of the same cost came to."""

    name: str  # of CONTROLS
    reward: np.ndarray  # [P] expected, by the judge
    samples: float  # a prompt, on average
    evaluations: float  # likewise


class Comparison(NamedTuple):
    """All arms, and the controls of each."""

    arms: tuple[Arm, ...]
    controls: tuple[tuple[Control, ...], ...]


class _Sample(NamedTuple):
    tokens: tuple[int, ...]
    logp: float
    reward: float


def compared(of: Opened, methods: Mapping[str, Method], by: Judge, **how: Any) -> Iterator[Note | Comparison]:
    """Each decoder on every prompt, then the controls. `how`: as of `searched`."""
    arms = []
    for name, method in methods.items():
        arms.append(_arm(of, name, method, by, how))
        told = f"judged {arms[-1].reward.mean():.3f}, {arms[-1].evaluations:,.0f} token-evaluations a prompt"
        yield Note(f"{name}: {told}")
    budgets = [arm.evaluations for arm in arms]
    pool = _pool(of, by, max(budgets), how)
    yield Note(f"controls from {len(pool[0])} samples a prompt")
    yield Comparison(tuple(arms), tuple(_controls(pool, budget) for budget in budgets))


def figures(comparison: Comparison) -> list[dict[str, Any]]:
    """A row each decoder: what it came to, with 95 % bootstrap intervals over prompts, and by how much it is above its controls.

    log_ratio is the mean of Σ log π/π_ref over the answers, in nats. Of samples of the policy it estimates KL(π‖π_ref); of
    answers that were searched for it is no KL of their law, but tells how far into what training made likelier they lie.
    """
    found = []
    for arm, controls in zip(comparison.arms, comparison.controls, strict=True):
        ratios = [row["logp"] - row["ref_logp"] for row in arm.rows if row["ref_logp"] is not None]
        found.append(
            {
                "name": arm.name,
                "method": arm.method.name,
                "settings": dict(arm.method.settings),
                "prompts": len(arm.rows),
                "reward": _mean(arm.reward),
                "tokens": float(np.mean([row["tokens"] for row in arm.rows])),
                "ended": float(np.mean([row["ended"] for row in arm.rows])),
                "log_ratio": float(np.mean(ratios)) if ratios else None,
                "evaluations": arm.evaluations,
                "seconds": arm.seconds,
                "controls": {
                    control.name: {
                        "reward": _mean(control.reward),
                        "above_it": _mean(arm.reward - control.reward),
                        "samples": control.samples,
                        "evaluations": control.evaluations,
                    }
                    for control in controls
                },
            }
        )
    return found


def _mean(values: np.ndarray) -> dict[str, Any]:
    interval = bootstrapped(lambda rows: float(values[rows].mean()), len(values))
    return {"mean": float(values.mean()), "interval": interval and list(interval)}


def _arm(of: Opened, name: str, method: Method, by: Judge, how: Mapping[str, Any]) -> Arm:
    found = sorted(searched(of, method, **how), key=lambda each: each.number)
    first = [(Said(each.prompt, _text(each.rows[0]), each.answers[0]), each.rows[0]) for each in found if each.rows]
    if len(first) < len(found):
        none = next(each for each in found if not each.rows)
        raise ValueError(f"{name} gives no answer to {none.prompt.where}, so it can not be compared")
    values = judged(by, [said for said, _ in first])
    rows = tuple({**row, "decoder": name, "judged": value} for (_, row), value in zip(first, values, strict=True))
    spent = [float(np.mean([row[unit] for row in rows])) for unit in ("evaluations", "seconds")]
    return Arm(name, method, rows, np.array(values), *spent)


def _text(row: Mapping[str, Any]) -> str:
    said = row["completion"]
    return said if isinstance(said, str) else said[-1]["content"]


def _pool(of: Opened, by: Judge, budget: float, how: Mapping[str, Any]) -> list[list[_Sample]]:
    """Samples of each prompt that together cost the largest budget, if POOL are enough."""
    count = 4
    while True:
        method = Method("sample", DECODERS["sample"], {"n": count})
        found = sorted(searched(of, method, **how), key=lambda each: each.number)
        cost = np.mean([spent([answer.tokens for answer in each.answers])[-1] for each in found])
        if cost >= budget or count >= POOL:
            break
        count = min(POOL, 2 * count)
    said = [
        Said(each.prompt, _text(row), answer)
        for each in found
        for row, answer in zip(each.rows, each.answers, strict=True)
    ]
    values = iter(judged(by, said))
    return [[_sample(answer, next(values)) for answer in each.answers] for each in found]


def _sample(answer: Answer, value: float) -> _Sample:
    return _Sample(answer.tokens, answer.logp, value)


def spent(samples: Sequence[tuple[int, ...]]) -> list[int]:
    """Token-evaluations of the first 1, 2, … samples of a prompt: a beginning that several share is computed once, and the state
    behind a last token is not needed."""
    known: set[tuple[int, ...]] = set()
    costs = []
    for tokens in samples:
        known |= {tokens[:end] for end in range(1, len(tokens))}
        costs.append(len(known))
    return costs


def _controls(pool: Sequence[Sequence[_Sample]], budget: float) -> tuple[Control, ...]:
    """Both controls at so many token-evaluations a prompt."""
    taken, costs = [], []
    for samples in pool:
        cost = spent([sample.tokens for sample in samples])
        count = max(1, sum(each <= budget for each in cost))
        taken.append(samples[:count])
        costs.append(cost[count - 1])
    rewards = {
        "random": [float(np.mean([sample.reward for sample in some])) for some in taken],
        "likeliest": [max(some, key=lambda sample: sample.logp).reward for some in taken],
    }
    count, cost = float(np.mean([len(some) for some in taken])), float(np.mean(costs))
    return tuple(Control(name, np.array(rewards[name]), count, cost) for name in CONTROLS)
