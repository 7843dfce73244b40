"""Right answers with one wrong name put in: does the score of single words find it?"""

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

import numpy as np
import torch

from softq.lm.load import Loaded
from softq.lm.score import score
from softq.mdp.readouts import REF_LOGP
from softq.studies.small_model import completion
from softq.training.source import tokens_of
from softq.worlds.world import Injected, Words, World


class Answer(NamedTuple):
    """One injected answer and what the models say of its tokens, the end token last."""

    prompt: Words
    injected: Injected
    reward: list[float]  # log π/π_ref
    before: list[float]  # log-prob of the reference, the fine-tuned model
    after: list[float]  # log-prob of the policy


def credit(world: World, loaded: Loaded, count: int, seed: int) -> list[Answer]:
    """Right answers with one of the crowd's errors put in, so many, and the scores of their tokens."""
    rng = Random(f"injected {seed}")
    cases = []
    for n in range(count):
        prompt = world.held_out[n % len(world.held_out)]
        cases.append((prompt, world.injected(prompt, rng)))
    tokens = tokens_of([completion(prompt, case.answer, loaded.tokenizer) for prompt, case in cases], range(count))
    with torch.no_grad():
        scored = score(loaded.models, tokens, (REF_LOGP,))
    answers = []
    for row, (prompt, case) in enumerate(cases):
        after, before = (scored[name][row][tokens.action[row]].tolist() for name in ("logp", "ref_logp"))
        reward = [a - b for a, b in zip(after, before, strict=True)]
        answers.append(Answer(prompt, case, reward, before, after))
    return answers


def localised(answers: Sequence[Answer]) -> dict[str, float]:
    """How well the lowest score finds the error, for the implicit reward and for two controls.

    top1: the lowest-scored token of the answer is a word of the wrong name. auc: the probability that the word where the
    answer leaves the truth scores below another token of any answer.
    """
    figures = {}
    kinds: dict[str, Callable[[Answer], list[float]]] = {
        "localisation": lambda answer: answer.reward,
        "control": lambda answer: answer.before,
        "control_dpo": lambda answer: answer.after,
    }
    for name, values in kinds.items():
        hits = [int(np.argmin(values(answer))) in answer.injected.span for answer in answers]
        wrong = [values(answer)[answer.injected.first_wrong] for answer in answers]
        other = [
            value for answer in answers for n, value in enumerate(values(answer)) if n != answer.injected.first_wrong
        ]
        figures |= {f"{name}_top1": sum(hits) / len(hits), f"{name}_auc": below(wrong, other)}
    return figures


def below(low: Sequence[float], high: Sequence[float]) -> float:
    """P(a value of `low` is below one of `high`), a tie counting half: the area under the ROC curve."""
    ordered = np.sort(np.asarray(high))
    left, right = np.searchsorted(ordered, low, "left"), np.searchsorted(ordered, low, "right")
    return float(1 - ((left + right) / 2).mean() / len(ordered))
