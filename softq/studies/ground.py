"""What the trainings of one seed share: a world, a fine-tuned model, pairs of a crowd's answers and labels for them."""

import copy
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import NamedTuple, cast

from torch import Tensor

from softq.data.encode import Encoded
from softq.lm.load import Loaded, load
from softq.lm.model import CausalLM
from softq.lm.reference import fingerprint
from softq.studies.by_seed import fine_tuned
from softq.studies.small_model import Compared, completion, crowd_pairs
from softq.training.reference_cache import ReferenceCache, cached_reference
from softq.worlds.guidebook import guidebook
from softq.worlds.world import Words, World

REGRESSIONS = {"soft_preference", "rebel", "reward_regression", "kl_to_target"}
SURE = 0.99  # the most that a label is trusted


class Recipe(NamedTuple):
    """How large everything is; a study is of one recipe."""

    demonstrations: int = 24_000
    fine_tuning: int = 600  # steps
    pairs: int = 10_000
    batch: int = 32  # pairs a step
    steps: int = 92  # a fifth of the demo's
    long_steps: int = 460
    learning_rate: float = 3e-4
    samples: int = 15  # a held-out prompt
    held: int = 300  # pairs of answers to held-out prompts, labelled by the truth
    injected: int = 300


class Ground(NamedTuple):
    """What all trainings of a seed share."""

    world: World
    loaded: Loaded  # "policy" and "ref"
    start: Mapping[str, Tensor]  # the fine-tuned weights
    crowd: Sequence[Encoded]  # pairs with the crowd's own labels
    truth: Sequence[Encoded]  # pairs with the truth's labels, to train on
    held: Sequence[Encoded]  # the same of prompts that are held out
    reference: ReferenceCache  # of `crowd`
    recipe: Recipe
    seed: int


def prepare(directory: Path, recipe: Recipe, seed: int) -> None:
    """The fine-tuned model of a seed and the reference's log-probs of its pairs, unless they are there."""
    fine_tuned(guidebook(seed), directory, recipe, seed)
    ground(directory, recipe, seed)


@lru_cache(maxsize=1)
def ground(directory: Path, recipe: Recipe, seed: int) -> Ground:
    """The ground of a seed whose model is there; the last one is kept in memory."""
    world = guidebook(seed)
    loaded = load(str(directory / "models" / f"seed-{seed}"), "start")
    crowd = [encoded(pair, loaded) for pair in crowd_pairs(world, recipe.pairs, seed)]
    reference, _ = cached_reference(
        directory / "models",
        crowd,
        loaded.models,
        fingerprint=fingerprint(cast(CausalLM, loaded.models["ref"])),
        dtype="float32",
        tokens_per_micro=8192,
    )
    rng = Random(f"truth {seed}")
    truth = [encoded(judged_by_truth(world, world.prompts, rng), loaded) for _ in range(recipe.pairs)]
    held = [encoded(judged_by_truth(world, world.held_out, rng), loaded) for _ in range(recipe.held)]
    start = copy.deepcopy(loaded.policy.state_dict())
    return Ground(world, loaded, start, crowd, truth, held, reference, recipe, seed)


def encoded(pair: Compared, loaded: Loaded) -> Encoded:
    """Chosen and rejected in tokens."""
    return Encoded("", tuple(completion(pair.prompt, answer, loaded.tokenizer) for answer in pair[1:]))


def judged_by_truth(world: World, prompts: Sequence[Words], rng: Random) -> Compared:
    """Two answers of the crowd that differ in how many names are right; the better one is chosen, without noise."""
    while True:
        prompt = rng.choice(prompts)
        first, second = world.demonstration(prompt, rng), world.demonstration(prompt, rng)
        better = world.correct(prompt, first) - world.correct(prompt, second)
        if better:
            return Compared(prompt, first, second) if better > 0 else Compared(prompt, second, first)


def labelled(on: Ground, flips: float | None) -> list[Encoded]:
    """The pairs to train on: the crowd's, of which a share is swapped (a larger share swaps the same and more), or the
    truth's where flips is None."""
    if flips is None:
        return list(on.truth)
    rng = Random(f"flips {on.seed}")
    return [swapped(pair) if rng.random() < flips else pair for pair in on.crowd]


def swapped(pair: Encoded) -> Encoded:
    """The opposite label."""
    return pair._replace(completions=pair.completions[::-1])


def with_scores(pairs: Sequence[Encoded], method: str, flips: float | None) -> list[Encoded]:
    """The pairs with the scores of a method for which scores mean more than an order; other methods need none.

    With p = 1 - flips, at most SURE, the chance that a label is as the crowd gave it: sppo gets the win probabilities p and
    1 - p, the regressions rewards that differ by the log-odds of p, in nats of a Bradley-Terry model.
    """
    p = min(1 - (flips or 0.0), SURE)
    if method == "sppo":
        return [pair._replace(columns={"reward": (p, 1 - p)}) for pair in pairs]
    if method in REGRESSIONS:
        return [pair._replace(columns={"reward": (math.log(p / (1 - p)), 0.0)}) for pair in pairs]
    return list(pairs)
