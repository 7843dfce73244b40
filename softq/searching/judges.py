"""Who says how good an answer is, apart from the models that searched for it: a world, a function, a reward model."""

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from softq.lm.load import load_reward_model
from softq.search.answer import Answer
from softq.search.scoring import rewards, tokens_of
from softq.searching.opened import Opened
from softq.searching.prompts import Prompt
from softq.worlds.guidebook import guidebook

WORLD = "world"
TOGETHER = 256  # answers that a judge is asked of at once
FORMS = "world, path.py:function, package.module:function, or a directory of a reward model"


class Said(NamedTuple):
    """An answer as a judge sees it."""

    prompt: Prompt
    text: str
    answer: Answer


Judge = Callable[[Sequence[Said]], Sequence[float]]
"""Answers -> a number each; higher is better."""


def judge(name: str, of: Opened, policy: str) -> Judge:
    """What --judge names. ValueError where there is no such thing.

    world: the true reward of the world of `softq demo`, whose seed demo.json says, beside the policy; or world:SEED.
    A function is called as TRL calls a reward function, function(prompts=[…], completions=[…]), and gives a number each.
    """
    if name == WORLD or name.startswith(f"{WORLD}:"):
        return _world(name, policy)
    if ":" in name and not Path(name).is_dir():
        return _function(name)
    return _reward_model(name, of)


def judged(by: Judge, said: Sequence[Said]) -> list[float]:
    """The judgement of each answer, asked once of equal ones. ValueError where it is no finite number."""
    keys = [(each.prompt.where, tuple(each.prompt.ids.tolist()), each.answer.tokens) for each in said]
    once = dict(zip(keys, said, strict=True))
    asked, found = list(once), dict[Any, float]()
    for start in range(0, len(asked), TOGETHER):
        some = asked[start : start + TOGETHER]
        given = [*by([once[key] for key in some])]
        if len(given) != len(some):
            raise ValueError(f"the judge gave {len(given)} numbers for {len(some)} answers: expected one each")
        for key, value in zip(some, given, strict=True):
            if not isinstance(value, int | float) or not isfinite(value):
                raise ValueError(f"the judge says {value!r} of {once[key].text[:60]!r}: expected a finite number")
            found[key] = float(value)
    return [found[key] for key in keys]


def _world(name: str, policy: str) -> Judge:
    world = guidebook(_seed(name, policy))
    asked = {*world.prompts, *world.held_out}

    def by(said: Sequence[Said]) -> list[float]:
        found = []
        for each in said:
            prompt = tuple(str(each.prompt.text).split())
            if prompt not in asked:
                raise ValueError(
                    f"{each.prompt.where}: no question of the {world.name} world, which --judge world knows"
                )
            answer = tuple(each.text.split())
            found.append(sum(world.reward(prompt, answer)[: len(answer) + each.answer.ended]))
        return found

    return by


def _seed(name: str, policy: str) -> int:
    """The seed that is named, or that of the demo that made the policy."""
    if given := name.partition(":")[2]:
        if not given.isdecimal():
            raise ValueError(f"judge {name}: expected a seed, such as world:0")
        return int(given)
    try:
        return int(json.loads((Path(policy).parent / "demo.json").read_text(encoding="utf-8"))["seed"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"judge world: no demo.json beside {policy} tells its seed; give world:SEED") from error


def _function(name: str) -> Judge:
    function = _imported(name)

    def by(said: Sequence[Said]) -> Sequence[float]:
        texts = [each.prompt.text for each in said]
        chat = [not isinstance(text, str) for text in texts]
        completions = [
            [{"role": "assistant", "content": each.text}] if messages else each.text
            for each, messages in zip(said, chat, strict=True)
        ]
        return function(prompts=texts, completions=completions)

    return by


def _imported(name: str) -> Callable[..., Sequence[float]]:
    """path.py:function or package.module:function."""
    place, _, function = name.rpartition(":")
    try:
        module: Mapping[str, Any] = vars(_file(place) if place.endswith(".py") else import_module(place))
    except (ImportError, SyntaxError, ValueError, OSError) as error:
        raise ValueError(f"judge {name}: {error}; expected {FORMS}") from error
    if not callable(module.get(function)):
        raise ValueError(f"judge {name}: {place} has no function {function!r}")
    return module[function]


def _file(place: str) -> Any:
    spec = spec_from_file_location(Path(place).stem, place)
    if spec is None or spec.loader is None:
        raise ImportError(f"{place} can not be imported")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _reward_model(name: str, of: Opened) -> Judge:
    """What it says of the very tokens, so it must read text as the policy does."""
    if not Path(name).is_dir():
        raise ValueError(f"judge {name}: no such directory; expected {FORMS}")
    loaded = load_reward_model(name, device=str(next(of.loaded.policy.parameters()).device))
    if loaded.tokenizer.get_vocab() != of.loaded.tokenizer.get_vocab():
        raise ValueError(f"judge {name} has another tokenizer than the policy: judge by a function that calls it")

    def by(said: Sequence[Said]) -> list[float]:
        answers = [each.answer._replace(prompt=n) for n, each in enumerate(said)]
        return rewards(loaded.policy, tokens_of([each.prompt.ids for each in said], answers)).tolist()

    return by
