"""Right answers with one wrong name put in: does the score of single words find it?"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np
import torch

from softq.inspection.localisation import Errors, hits, lower
from softq.lm.load import Loaded
from softq.lm.score import score
from softq.mdp.readouts import REF_LOGP, VALUE
from softq.studies.small_model import completion
from softq.training.source import tokens_of
from softq.worlds.guidebook import NAMES, Guidebook, asked
from softq.worlds.world import Injected, Words, World


class Answer(NamedTuple):
    """One injected answer and what the models say of its tokens, the end token last."""

    prompt: Words
    injected: Injected
    reward: list[float]  # log π/π_ref
    before: list[float]  # log-prob of the reference, the fine-tuned model
    after: list[float]  # log-prob of the policy
    judged: Sequence[float] = ()  # by how much a reward model's word on the text so far changed; none without one


Case = tuple[Words, Injected]


def credit(world: World, loaded: Loaded, count: int, seed: int) -> list[Answer]:
    """Right answers with one of the crowd's errors put in, so many, and the scores of their tokens."""
    return said_of(injections(world, count, seed), loaded)


def injections(world: World, count: int, seed: int) -> list[Case]:
    """Held-out prompts, and right answers with one of the crowd's errors put in."""
    rng = Random(f"injected {seed}")
    prompts = [world.held_out[n % len(world.held_out)] for n in range(count)]
    return [(prompt, world.injected(prompt, rng)) for prompt in prompts]


def anyhow(case: Injected, rng: Random) -> Injected:
    """The same answer with another wrong name of the topic, all as likely as each other."""
    names = next(names for names in NAMES.values() if case.right in names)
    wrong = rng.choice([name for name in names if name != case.right])
    words = list(case.answer)
    for at, word in zip(case.span, wrong, strict=True):
        words[at] = word
    first = next(at for at, word, right in zip(case.span, wrong, case.right, strict=True) if word != right)
    return Injected(tuple(words), case.span, first, case.right)


def led_astray(world: Guidebook, prompt: Words, case: Injected) -> bool:
    """Whether the wrong name is of a fact of which most of the crowd goes the same wrong way."""
    return any(world.facts[fact] == case.right and fact in world.garden_paths for fact in asked(prompt))


def said_of(cases: Sequence[Case], loaded: Loaded, judge: Loaded | None = None) -> list[Answer]:
    """What the models say of the tokens of each; `judge` is a reward model."""
    rows = [completion(prompt, case.answer, loaded.tokenizer) for prompt, case in cases]
    tokens = tokens_of(rows, range(len(cases)))
    with torch.no_grad():
        scored = score(loaded.models, tokens, (REF_LOGP,))
    judged = _judged(cases, judge) if judge is not None else [[] for _ in cases]
    answers = []
    for row, (prompt, case) in enumerate(cases):
        after, before = (scored[name][row][tokens.action[row]].tolist() for name in ("logp", "ref_logp"))
        reward = [a - b for a, b in zip(after, before, strict=True)]
        answers.append(Answer(prompt, case, reward, before, after, judged[row]))
    return answers


def _judged(cases: Sequence[Case], judge: Loaded) -> list[list[float]]:
    """The change of r with each token; the prompt's last is read too, so that the first has one."""
    rows = [completion(prompt[:-1], (*prompt[-1:], *case.answer), judge.tokenizer) for prompt, case in cases]
    tokens = tokens_of(rows, range(len(cases)))
    with torch.no_grad():
        value = score(judge.models, tokens, (VALUE,))["value"].double()
    return [of[action].diff().tolist() for of, action in zip(value, tokens.action, strict=True)]


def localised(answers: Sequence[Answer]) -> dict[str, float]:
    """How well the lowest score finds the error, for the implicit reward and for two controls, or three with a reward model.

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
    columns = {"localisation": "reward", "control": "before", "control_dpo": "after"}
    if answers and answers[0].judged:
        columns["control_rm"] = "judged"
    for name, column in columns.items():
        values = np.concatenate([getattr(answer, column) for answer in answers])
        figures |= {f"{name}_top1": float(hits(values, errors).mean())}
        figures |= {f"{name}_auc": float(lower(values, errors).mean())}
    return figures
