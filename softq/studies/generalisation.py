"""An implicit and an explicit reward from one start on one data set: which of them is right about answers of another kind?

A model is fine-tuned on what a crowd writes, once a seed. From it dpo trains a policy, whose log π/π_ref is an implicit reward,
and rm a reward model, on the same pairs in the same order. The truth of the world says how often each is right: on new pairs of
the same kind, and under shifts of the prompt, of the response and of the policy (arXiv 2409.03650).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch

from softq.data.encode import Encoded
from softq.data.store import write_text
from softq.lm.load import Loaded, load, load_reward_model
from softq.objectives import METHODS
from softq.objectives.margins import contrast
from softq.records import Method
from softq.studies.by_seed import by_seed, fine_tuned
from softq.studies.generalisation_text import document, markdown, picture
from softq.studies.ground import encoded
from softq.studies.shifts import CROWD, written_by
from softq.studies.small_model import Compared, crowd_pairs
from softq.training.events import Event, Note
from softq.training.loop import default_budget, train
from softq.training.plan import scored_whole
from softq.training.source import batch_of, batches
from softq.training.update import AdamW
from softq.worlds.guidebook import guidebook

TABLE, FIGURES, PICTURE = "generalisation.md", "generalisation.json", "generalisation.svg"


class Recipe(NamedTuple):
    """How large everything is; a study is of one recipe."""

    demonstrations: int = 24_000
    fine_tuning: int = 600  # steps
    pairs: int = 10_000
    batch: int = 32  # pairs a step
    steps: int = 800
    policy_rate: float = 1e-4  # the learning rate of dpo
    model_rate: float = 1e-3  # that of rm
    beta: float = 0.1  # of dpo
    judged: int = 1000  # pairs of each kind


class Found(NamedTuple):
    """What one seed came to: by kind of pairs, how many there were and the share that each reward has right; a tie is wrong."""

    right: Mapping[str, Mapping[str, float]]  # of "implicit" and "explicit"
    pairs: Mapping[str, int]
    seconds: float  # of a processor


def generalisation(
    directory: Path, seeds: Sequence[int], recipe: Recipe = Recipe(), *, processes: int = 2
) -> Iterator[Event]:
    """Train what is not yet trained, and write table and picture into `directory`; events on the way.

    OutputError where the directory holds something else, or a study of another recipe.
    """
    done = yield from by_seed(directory, "generalisation", recipe, seeds, compared, processes=processes)
    found = {seed: Found(**one) for seed, one in done.items()}
    write_text(directory / TABLE, markdown(found, recipe))
    write_text(directory / FIGURES, document(found, recipe))
    write_text(directory / PICTURE, picture(found))
    yield Note(f"written to {directory}: {TABLE}, {FIGURES}, {PICTURE}")


def compared(directory: Path, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Both rewards of a seed, trained and judged; its fine-tuned model is kept in `directory`."""
    world = guidebook(seed)
    start = fine_tuned(world, directory, recipe, seed)
    policy = load(str(start), "start")
    torch.manual_seed(seed)  # draws the head
    model = load_reward_model(str(start))
    dpo, rm = METHODS["dpo"](beta=recipe.beta), METHODS["rm"]()
    seen = _encoded(crowd_pairs(world, recipe.pairs, seed), policy)
    kinds = {
        kind: _encoded(made(world, recipe.judged, Random(f"{kind} {seed}")), policy) for kind, made in CROWD.items()
    }
    kinds["fine-tuned"] = _encoded(written_by(world, policy, recipe.judged, seed), policy)
    trained(policy, dpo, seen, recipe, seed, learning_rate=recipe.policy_rate)
    trained(model, rm, seen, recipe, seed, learning_rate=recipe.model_rate)
    kinds["trained"] = _encoded(written_by(world, policy, recipe.judged, seed + 1), policy)
    kinds = {"trained on": seen[: recipe.judged], **kinds}
    rewards = {"implicit": (policy, dpo), "explicit": (model, rm)}
    right = {name: {kind: accuracy(*of, pairs) for kind, pairs in kinds.items()} for name, of in rewards.items()}
    return {"right": right, "pairs": {kind: len(pairs) for kind, pairs in kinds.items()}}


def trained(
    loaded: Loaded, method: Method, pairs: Sequence[Encoded], recipe: Recipe, seed: int, *, learning_rate: float
) -> None:
    """Train the policy of `loaded`; the batches of a seed are the same for every method."""
    update = AdamW(
        loaded.models,
        steps=recipe.steps,
        learning_rate=learning_rate,
        schedule="cosine",
        warmup_steps=recipe.steps // 10,
        weight_decay=0.01,
        betas=(0.9, 0.98),
    )
    epochs = recipe.steps * recipe.batch / len(pairs)
    for _ in train(
        loaded.models, method, batches(pairs, method, batch_size=recipe.batch, epochs=epochs, seed=seed), update
    ):
        pass


def accuracy(loaded: Loaded, method: Method, pairs: Sequence[Encoded]) -> float:
    """The share of pairs whose chosen completion has the strictly larger reward, that which the method trains."""
    batch = batch_of(pairs, range(len(pairs)), method)
    scored = scored_whole(method, loaded.models, batch, default_budget(loaded.models))
    return (contrast(method.reward(scored, batch), batch) > 0).double().mean().item()


def _encoded(pairs: Iterator[Compared] | Sequence[Compared], loaded: Loaded) -> list[Encoded]:
    return [encoded(pair, loaded) for pair in pairs]
