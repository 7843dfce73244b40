"""Right answers with one wrong name put in: does the score of single words find it?"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np
import torch

from softq.inspection.localisation import Errors, hits, lower
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
    prompts = [world.held_out[n % len(world.held_out)] for n in range(count)]
    cases = [(prompt, world.injected(prompt, rng)) for prompt in prompts]
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
    row = np.repeat(np.arange(len(answers)), [len(answer.reward) for answer in answers])
    errors = Errors(
        row,
        wrong=np.concatenate([np.isin(np.arange(len(each.reward)), each.injected.span) for each in answers]),
        first=np.concatenate([np.arange(len(each.reward)) == each.injected.first_wrong for each in answers]),
    )
    figures = {}
    for name, column in {"localisation": "reward", "control": "before", "control_dpo": "after"}.items():
        values = np.concatenate([getattr(answer, column) for answer in answers])
        figures |= {f"{name}_top1": float(hits(values, errors).mean())}
        figures |= {f"{name}_auc": float(lower(values, errors).mean())}
    return figures
