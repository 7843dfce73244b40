"""Decoders side by side in the embedded world: the true reward of what they find, its length, and what it costs to find it."""

from collections.abc import Callable, Iterator, Mapping
from statistics import fmean
from typing import Any, NamedTuple

import torch

from softq.lm.load import Loaded
from softq.search.answer import Answer, Limits
from softq.search.decoders import DECODERS
from softq.search.heard import Heard
from softq.studies.small_model import LONGEST, ids_of
from softq.worlds.world import World

WIDTHS = (2, 5, 10, 20)
DRAWS = 4  # of decoders that draw: their figures are means over so many seeds


class Tried(NamedTuple):
    """A decoder and its settings."""

    family: str  # what is drawn as one line
    decoder: str
    settings: Mapping[str, Any]
    draws: int = 1


def beams(_: bool) -> Iterator[Tried]:
    """Beams by the sum of log-probabilities and by their mean."""
    yield Tried("beam", "greedy", {})
    for width in WIDTHS:
        yield Tried("beam", "beam", {"beams": width})
        yield Tried("beam, length penalty 1", "beam", {"beams": width, "length_penalty": 1.0})


def plan(compared: bool) -> Iterator[Tried]:
    """All that is tried on a policy; with a reference if there is one."""
    yield from beams(compared)
    yield Tried("any sample", "best_of_n_random", {"samples": 1}, DRAWS)
    for samples in WIDTHS:
        yield Tried("best of n by likelihood", "best_of_n_likelihood", {"samples": samples}, DRAWS)
    if compared:
        for width in WIDTHS:
            yield Tried("beam over the log-ratio", "beam_logratio", {"beams": width})
            yield Tried("best of n by implicit reward", "best_of_n", {"samples": width}, DRAWS)


def decoded(
    world: World, loaded: Loaded, seed: int, planned: Callable[[bool], Iterator[Tried]] = plan
) -> Iterator[dict[str, Any]]:
    """Rows, of the policy ("dpo") and of its reference ("sft"): see `row`."""
    models = {"dpo": dict(loaded.models.items()), "sft": {"policy": loaded.models["ref"]}}
    for policy, heard in models.items():
        greedy: list[Answer] = []
        for tried in planned("ref" in heard):
            runs = [_run(world, loaded, heard, tried, seed + 1000 * draw) for draw in range(tried.draws)]
            greedy = greedy or runs[0][0]
            yield {"policy": policy, **row(world, loaded, tried, runs, greedy)}


def row(
    world: World, loaded: Loaded, tried: Tried, runs: list[tuple[list[Answer], int]], greedy: list[Answer]
) -> dict[str, Any]:
    """Means over prompts and draws: true `reward`, `right` names (a share), `length` in tokens with the end token, `cut`, and
    `evaluations`, the tokens that models read a prompt. Length-matched: `alike`, the share of answers as long as the greedy one,
    and `gain`, by how much their reward is above it. `each`: reward and length of every prompt, means over the draws."""
    told = [[_judged(world, loaded, answer) for answer in answers] for answers, _ in runs]
    each = [one for draw in told for one in draw]
    prompts = {
        name: [fmean(one[name] for one in of) for of in zip(*told, strict=True)] for name in ("reward", "length")
    }
    before = [_judged(world, loaded, answer) for answer in greedy]
    same = [
        one["reward"] - first["reward"]
        for draw in told
        for one, first in zip(draw, before, strict=True)
        if one["length"] == first["length"]
    ]
    size = next(iter(tried.settings.values()), 1)
    figures = {name: fmean(one[name] for one in each) for name in ("reward", "right", "length", "cut")}
    evaluations = fmean(cost for _, cost in runs) / len(world.held_out)
    matched = {"alike": len(same) / len(each), "gain": fmean(same) if same else None}
    return {"family": tried.family, "size": size, **figures, "evaluations": evaluations, **matched, "each": prompts}


def _run(world: World, loaded: Loaded, models: Mapping[str, Any], tried: Tried, seed: int) -> tuple[list[Answer], int]:
    prompts = [torch.tensor(ids_of(prompt, loaded.tokenizer)) for prompt in world.held_out]
    end: Any = loaded.tokenizer.eos_token_id
    on = Heard(models, prompts, Limits(LONGEST, frozenset([end])), seed=seed)
    return [answers[0] for answers in DECODERS[tried.decoder](on, **tried.settings)], on.evaluations


def _judged(world: World, loaded: Loaded, answer: Answer) -> dict[str, float]:
    prompt = world.held_out[answer.prompt]
    words: Any = loaded.tokenizer.convert_ids_to_tokens(list(answer.tokens[: len(answer.tokens) - answer.ended]))
    said = tuple(words)
    return {
        "reward": sum(world.reward(prompt, said)[: len(said) + answer.ended]),
        "right": world.correct(prompt, said),
        "length": len(answer.tokens),
        "cut": not answer.ended,
    }
