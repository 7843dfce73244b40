"""Two values of one model, composed at decode time: how much of one reward is given for how much of another, untrained between.

A model is fine-tuned on what a crowd writes, once a seed. Its own samples are scored twice, by how many names are right and by
how few letters they have, and a value is trained of each. Then it decodes, guided by both, by one pair of weights after another.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from softq.data.encode import Encoded
from softq.data.store import write_text
from softq.lm.load import Loaded, load, load_reward_model
from softq.lm.score import LanguageModel, score
from softq.objectives import METHODS
from softq.search.answer import Limits
from softq.search.decoders import DECODERS
from softq.search.heard import Heard
from softq.studies.by_seed import by_seed, fine_tuned
from softq.studies.frontier_plot import picture
from softq.studies.frontier_text import Place, document, markdown
from softq.studies.small_model import LONGEST, Said, completion, ids_of
from softq.training.events import Event, Note
from softq.training.loop import train
from softq.training.source import batches, tokens_of
from softq.training.update import AdamW
from softq.worlds.guidebook import guidebook
from softq.worlds.world import Words, World

TABLE, FIGURES, PICTURE = "frontier.md", "frontier.json", "frontier.svg"
SCORES: Mapping[str, Callable[[World, Words, Words], float]] = {
    "names": lambda world, prompt, answer: 3 * world.correct(prompt, answer),
    "brevity": lambda world, prompt, answer: 10 - len(" ".join(answer)) / 10,
}
"""The rewards by name, of an answer to a prompt: right names of three; tens of letters below a hundred."""


class Recipe(NamedTuple):
    """How large everything is; a study is of one recipe."""

    demonstrations: int = 24_000
    fine_tuning: int = 600  # steps
    samples: int = 16  # the model's answers to a prompt, which values are learned from
    batch: int = 4  # prompts a step
    steps_of_names: int = 600
    steps_of_brevity: int = 150
    learning_rate: float = 1.5e-3
    levels_of_names: int = 4  # of a weight: 0, and then doubled up to the largest
    levels_of_brevity: int = 5
    most_of_names: float = 8.0  # nats a right name
    most_of_brevity: float = 16.0  # nats for ten letters less
    top_k: int = 10
    answers: int = 8  # to a held-out prompt, by each pair of weights


def frontier(
    directory: Path, seeds: Sequence[int], recipe: Recipe = Recipe(), *, processes: int = 2
) -> Iterator[Event]:
    """Train what is not yet trained, decode, and write table and picture into `directory`; events on the way.

    OutputError where the directory holds something else, or a study of another recipe.
    """
    done = yield from by_seed(directory, "frontier", recipe, seeds, weighed, processes=processes)
    places = {seed: [Place(**place) for place in one["places"]] for seed, one in done.items()}
    seconds = fmean(one["seconds"] for one in done.values())
    write_text(directory / TABLE, markdown(places, recipe, seconds))
    write_text(directory / FIGURES, document(places, recipe))
    write_text(directory / PICTURE, picture(places))
    yield Note(f"written to {directory}: {TABLE}, {FIGURES}, {PICTURE}")


def weighed(directory: Path, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Both values of a seed, trained, and what is decoded by them; its fine-tuned model is kept in `directory`."""
    world = guidebook(seed)
    start = fine_tuned(world, directory, recipe, seed)
    policy = load(str(start), None)
    said = [one for one, _ in answered(policy, world.prompts, {}, seed, n=recipe.samples)]
    steps = {"names": recipe.steps_of_names, "brevity": recipe.steps_of_brevity}
    values: dict[str, LanguageModel] = {}
    for name in SCORES:
        torch.manual_seed(seed)  # draws the head
        model = load_reward_model(str(start))
        learned(model, scored(world, model, said, name), recipe, seed, steps=steps[name])
        values[name] = model.policy
    names = levels(recipe.most_of_names, recipe.levels_of_names)
    grid = product(names, levels(recipe.most_of_brevity, recipe.levels_of_brevity))
    asked = partial(answered, policy, world.held_out, values, seed, n=recipe.answers, top_k=recipe.top_k)
    return {"places": [place(world, policy, weights, asked)._asdict() for weights in grid]}


def levels(most: float, count: int) -> list[float]:
    """Weights: 0, and then doubled up to the largest."""
    return [0.0, *(most / 2**k for k in reversed(range(count - 1)))]


def answered(
    loaded: Loaded, prompts: Sequence[Words], judges: Mapping[str, LanguageModel], seed: int, **settings: Any
) -> list[tuple[Said, float]]:
    """Answers to prompts at T = 1, and the log-probability that each was drawn with, nats: guided where there are judges."""
    end: Any = loaded.tokenizer.eos_token_id
    ids = [torch.tensor(ids_of(prompt, loaded.tokenizer)) for prompt in prompts]
    on = Heard({"policy": loaded.policy, **judges}, ids, Limits(LONGEST, frozenset([end])), seed=seed)
    found = DECODERS["guided" if judges else "sample"](on, **settings)
    answers = []
    for prompt, one in ((prompt, one) for prompt, each in zip(prompts, found, strict=True) for one in each):
        words: Any = loaded.tokenizer.convert_ids_to_tokens(list(one.tokens[: -1 if one.ended else None]))
        answers.append((Said(prompt, tuple(words), one.ended), one.logp))
    return answers


def scored(world: World, loaded: Loaded, said: Sequence[Said], name: str) -> list[Encoded]:
    """A record a prompt: all its answers, and what a reward says of each."""
    found = []
    for prompt in dict.fromkeys(one.prompt for one in said):
        own = [one for one in said if one.prompt == prompt]
        completions = tuple(completion(prompt, one.answer, loaded.tokenizer, ended=one.ended) for one in own)
        found.append(
            Encoded("", completions, {"reward": tuple(SCORES[name](world, prompt, one.answer) for one in own)})
        )
    return found


def learned(loaded: Loaded, records: Sequence[Encoded], recipe: Recipe, seed: int, *, steps: int) -> None:
    """Train a value (TD(λ)) on the records."""
    method = METHODS["value"]()
    update = AdamW(
        loaded.models,
        steps=steps,
        learning_rate=recipe.learning_rate,
        schedule="cosine",
        warmup_steps=steps // 10,
        weight_decay=0.01,
        betas=(0.9, 0.98),
    )
    epochs = steps / math.ceil(len(records) / recipe.batch)
    for _ in train(
        loaded.models, method, batches(records, method, batch_size=recipe.batch, epochs=epochs, seed=seed), update
    ):
        pass


def place(
    world: World, loaded: Loaded, weights: tuple[float, float], asked: Callable[..., list[tuple[Said, float]]]
) -> Place:
    """What the model answers where both values have these weights."""
    found = asked(values="+".join(f"{name}={weight!r}" for name, weight in zip(SCORES, weights, strict=True)))
    said = [one for one, _ in found]
    rows = [completion(one.prompt, one.answer, loaded.tokenizer, ended=one.ended) for one in said]
    tokens = tokens_of(rows, range(len(rows)))
    with torch.no_grad():
        own = score(loaded.models, tokens)["logp"].sum(-1).tolist()
    return Place(
        *weights,
        names=fmean(SCORES["names"](world, one.prompt, one.answer) for one in said),
        letters=fmean(len(" ".join(one.answer)) for one in said),
        kl=fmean(logp - plain for (_, logp), plain in zip(found, own, strict=True)),
    )
