"""What "From r to Q*" (arXiv 2404.12358) found, asked again of a small world, with the controls that were left out.

Credit: is a wrong word found by log π/π_ref better than by log-probs, or by what a reward model says of prefixes? Search: do a
few beams over a policy help, do many lengthen and hurt, and is it more than sampling as much would do, or than beams over the
model before? Falling likelihood: do the chosen answers fall through training, and is that what the KL to the reference asks for?
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch

from softq.data.encode import Encoded
from softq.data.store import write_text
from softq.lm.load import Loaded, load, load_reward_model
from softq.lm.score import score
from softq.mdp.readouts import KL_FROM_REF, REF_LOGP
from softq.objectives import METHODS
from softq.records import Method
from softq.studies.by_seed import by_seed, fine_tuned
from softq.studies.credit import Answer, anyhow, injections, led_astray, localised, said_of
from softq.studies.decoding import beams, decoded
from softq.studies.formal import formal
from softq.studies.ground import encoded
from softq.studies.r_to_q_plot import pictures
from softq.studies.r_to_q_text import document, markdown
from softq.studies.shifts import styled
from softq.studies.small_model import completion, crowd_pairs, sampled
from softq.training.events import Event, Note
from softq.training.loop import train
from softq.training.source import batches, tokens_of
from softq.training.update import AdamW
from softq.worlds.guidebook import Guidebook, guidebook

PAGE, FIGURES = "r_to_q.md", "r_to_q.json"


class Recipe(NamedTuple):
    """How large everything is; a study is of one recipe."""

    demonstrations: int = 24_000
    fine_tuning: int = 600  # steps
    pairs: int = 10_000
    batch: int = 64  # pairs a step
    steps: int = 312  # of dpo, and of the reward model
    rate: float = 1e-3
    gentle_steps: int = 156  # of the trainings whose likelihood is followed
    gentle_rate: float = 1e-4
    looks: int = 8  # at a likelihood on the way
    beta: float = 1.0
    injected: int = 300
    held: int = 300  # pairs whose likelihood is followed
    fresh: int = 2000  # samples of the reference


class Found(NamedTuple):
    """What one seed came to."""

    credit: Mapping[str, Mapping[str, float]]  # kind of error -> figures of `credit.localised`
    search: Sequence[Mapping[str, Any]]  # a row a decoder and policy: see `decoding.decoded`
    falling: Mapping[str, Sequence[Mapping[str, float]]]  # arm -> "step", "chosen", "rejected": mean β Σ log π/π_ref
    law: Mapping[str, float]  # of the policy: "reward" E_ref[βL], "error" its standard error, "kl" -β KL(π_ref‖π)
    formal: Sequence[
        Mapping[str, Any]
    ]  # rows of beams, as `search` has them, where a few answers begin with a set phrase
    seconds: float  # of a processor


def r_to_q(directory: Path, seeds: Sequence[int], recipe: Recipe = Recipe(), *, processes: int = 2) -> Iterator[Event]:
    """Do what is not done yet, and write page and pictures into `directory`; events on the way.

    OutputError where the directory holds something else, or a study of another recipe.
    """
    done = yield from by_seed(directory, "r-to-q", recipe, seeds, searched, followed, formally, processes=processes)
    found = {seed: Found(**one) for seed, one in done.items()}
    write_text(directory / PAGE, markdown(found, recipe))
    write_text(directory / FIGURES, document(found, recipe))
    for name, picture in pictures(found).items():
        write_text(directory / name, picture)
    yield Note(f"written to {directory}: {PAGE}, {FIGURES}, {', '.join(pictures(found))}")


def searched(directory: Path, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Credit, search and the law, of one policy."""
    world = guidebook(seed)
    start = fine_tuned(world, directory, recipe, seed)
    loaded = load(str(start), "start")
    pairs = [encoded(pair, loaded) for pair in crowd_pairs(world, recipe.pairs, seed)]
    for _ in trained(loaded, METHODS["dpo"](beta=recipe.beta), pairs, recipe, seed):
        pass
    torch.manual_seed(seed)  # draws the head
    judge = load_reward_model(str(start))
    for _ in trained(judge, METHODS["rm"](), pairs, recipe, seed):
        pass
    return {
        "credit": {kind: localised(said) for kind, said in located(world, loaded, judge, recipe, seed)},
        "search": list(decoded(world, loaded, seed)),
        "law": law(world, loaded, recipe, seed),
    }


def formally(directory: Path, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Beams, before dpo and after it, where a few of the crowd begin with a set phrase; see `formal`."""
    world = guidebook(seed)
    write = partial(formal, world)
    loaded = load(str(fine_tuned(world, directory, recipe, seed, style="-formal", write=write)), "start")
    pairs = [encoded(pair, loaded) for pair in crowd_pairs(world, recipe.pairs, seed, write)]
    for _ in trained(loaded, METHODS["dpo"](beta=recipe.beta), pairs, recipe, seed):
        pass
    return {"formal": list(decoded(world, loaded, seed, beams))}


def trained(
    loaded: Loaded, method: Method, records: Sequence[Encoded], recipe: Recipe, seed: int, *, gentle: bool = False
) -> Iterator[int]:
    """Train the policy of `loaded`; the number of each step as it is made."""
    steps = recipe.gentle_steps if gentle else recipe.steps
    update = AdamW(
        loaded.models,
        steps=steps,
        learning_rate=recipe.gentle_rate if gentle else recipe.rate,
        schedule="linear",
        warmup_steps=min(10, steps // 10),
        weight_decay=0.01,
        betas=(0.9, 0.98),
    )
    epochs = steps * recipe.batch / len(records)
    source = batches(records, method, batch_size=recipe.batch, epochs=epochs, seed=seed)
    for step, _ in enumerate(train(loaded.models, method, source, update), 1):
        yield step


def located(
    world: Guidebook, loaded: Loaded, judge: Loaded, recipe: Recipe, seed: int
) -> Iterator[tuple[str, list[Answer]]]:
    """Kind of error -> answers with one, and what is said of their tokens."""
    crowd = injections(world, recipe.injected, seed)
    kinds = {
        "plausible": crowd,
        "random": [(prompt, anyhow(case, Random(f"{seed} {n}"))) for n, (prompt, case) in enumerate(crowd)],
        "garden path": [(prompt, case) for prompt, case in crowd if led_astray(world, prompt, case)],
    }
    for kind, cases in kinds.items():
        yield kind, said_of(cases, loaded, judge)


def followed(directory: Path, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Likelihood through gentle trainings: of a model that fits the crowd, and of one that was made of another style; each as it
    is, and fine-tuned on the chosen answers first."""
    world = guidebook(seed)
    start = fine_tuned(world, directory, recipe, seed)
    pairs = list(crowd_pairs(world, recipe.pairs, seed))
    fresh = list(crowd_pairs(world, recipe.held, seed + 1000))
    other = fine_tuned(world, directory, recipe, seed, style="-style", write=partial(styled, world))
    arms = {}
    for name, place in (("crowd", start), ("style", other)):
        for first in (False, True):
            loaded = load(str(place), None)
            records = [encoded(pair, loaded) for pair in pairs]
            if first:
                chosen = [record._replace(completions=record.completions[:1]) for record in records]
                for _ in trained(loaded, METHODS["sft"](), chosen, recipe._replace(steps=recipe.gentle_steps), seed):
                    pass
            loaded = load(loaded.policy.model, "start", tokenizer=loaded.tokenizer)  # pyright: ignore[reportArgumentType]
            held = [encoded(pair, loaded) for pair in fresh]
            arms[name + ", chosen first" * first] = list(_fallen(loaded, records, held, recipe, seed))
    return {"falling": arms}


def _fallen(
    loaded: Loaded, records: Sequence[Encoded], held: Sequence[Encoded], recipe: Recipe, seed: int
) -> Iterator[dict[str, float]]:
    looks = {round(recipe.gentle_steps * (n + 1) / recipe.looks) for n in range(recipe.looks)}
    yield {"step": 0, "chosen": 0.0, "rejected": 0.0}
    for step in trained(loaded, METHODS["dpo"](beta=recipe.beta), records, recipe, seed, gentle=True):
        if step in looks:
            tokens = tokens_of(
                [each for record in held for each in record.completions], [n // 2 for n in range(2 * len(held))]
            )
            with torch.no_grad():
                scored = score(loaded.models, tokens, (REF_LOGP,))
            reward = recipe.beta * (scored["logp"] - scored["ref_logp"]).double().sum(-1)
            yield {"step": step, "chosen": reward[::2].mean().item(), "rejected": reward[1::2].mean().item()}


def law(world: Guidebook, loaded: Loaded, recipe: Recipe, seed: int) -> dict[str, float]:
    """E_ref[βL] of fresh samples of the reference, and -β KL(π_ref‖π) along them, each state's part exact."""
    reference: Any = loaded.models["ref"]
    speaker = load(reference.model, None, tokenizer=loaded.tokenizer)
    each = max(2, recipe.fresh // len(world.held_out))
    answers = sampled(world, speaker, each, seed)
    rows = [completion(prompt, answer, loaded.tokenizer, ended=ended) for prompt, answer, ended in answers]
    tokens = tokens_of(rows, [n // each for n in range(len(rows))])
    with torch.no_grad():
        scored = score(loaded.models, tokens, (REF_LOGP, KL_FROM_REF))
    reward = recipe.beta * (scored["logp"] - scored["ref_logp"]).double().sum(-1)
    fall = -recipe.beta * scored["kl_from_ref"].double().sum(-1)
    apart = reward - fall
    return {
        "samples": len(rows),
        "reward": reward.mean().item(),
        "kl": fall.mean().item(),
        "error": (apart.std() / len(rows) ** 0.5).item(),  # of their difference
    }
