"""The three-minute tour: a crowd's text, preferences over whole answers, and credit for single words.

A small model is trained from scratch on what an imperfect crowd writes in a generated world. Pairs of its answers are
labelled with noise, by how many names are right in the whole answer. DPO on these labels, through the same `train` as any
run. Nothing ever says which word was wrong; the implicit reward log π/π_ref of each token is asked whether it knows.
"""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch

from softq.data.store import write_json
from softq.inspection.colour import Line, picture
from softq.lm.load import Loaded, load
from softq.studies.credit import Answer, credit, localised
from softq.studies.small_model import END, Compared, crowd_pairs, fine_tune, sampled
from softq.training.events import Event, Note, OutputError
from softq.training.run import run
from softq.training.settings import Call, build
from softq.worlds.guidebook import guidebook
from softq.worlds.world import World

DEMONSTRATIONS, PAIRS = 24_000, 10_000
STEPS = 600  # of fine-tuning, 64 answers each
SAMPLES = 10  # a held-out prompt
INJECTED = 300
FIGURES = "demo.json"


class Result(NamedTuple):
    """Everything the demo found."""

    figures: dict[str, Any]  # what demo.json holds
    answers: list[Answer]
    directory: Path


def demo(directory: Path, seed: int) -> Iterator[Event | Result]:
    """Run it all into `directory`; events on the way, a Result at the end.

    On one thread: a model this small gains nothing from a second one, and waits for it on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _tour(directory, seed)
    finally:
        torch.set_num_threads(threads)


def _tour(directory: Path, seed: int) -> Iterator[Event | Result]:
    began = time.monotonic()
    world = guidebook(seed)
    claim(directory, seed)
    yield Note(f"a world: {len(world.vocabulary)} words; the crowd answers, for example:")
    rng = Random(f"demo {seed}")
    prompt = rng.choice(world.prompts)
    yield Note(f"  {' '.join(prompt)}\n  {' '.join(world.demonstration(prompt, rng))}")
    yield Note(f"1. from scratch: {DEMONSTRATIONS:,} answers of the crowd, maximum likelihood")
    fine_tune(world, directory / "sft", seed, answers=DEMONSTRATIONS, steps=STEPS)
    yield Note(f"2. preferences: {PAIRS:,} pairs of answers, each with one noisy label for the whole answer")
    write_pairs(world, directory / "pairs.jsonl", seed)
    yield Note("3. DPO: softq train dpo on these pairs, the fine-tuned model as reference")
    yield from _dpo(directory, seed)
    yield Note("4. held-out questions: did answers get better, and does the reward know which word is wrong?")
    before, after = load(str(directory / "sft"), None), load(str(directory / "dpo"), str(directory / "sft"))
    figures = {**_answered(world, before, seed, "before"), **_answered(world, after, seed, "after")}
    answers = credit(world, after, INJECTED, seed)
    write_injected(answers, directory / "injected.jsonl")
    figures |= localised(answers)
    figures |= {"seed": seed, "pairs": PAIRS, "answers": len(answers), "seconds": round(time.monotonic() - began, 1)}
    write_json(directory / FIGURES, {"finished": True, **figures})
    (directory / "answers.svg").write_text(drawn(answers, figures), encoding="utf-8")
    yield Result(figures, answers, directory)


def claim(directory: Path, seed: int) -> None:
    """Make the directory, or take over an earlier demo's; refuse one that holds anything else."""
    if directory.exists() and not (directory / FIGURES).is_file() and any(directory.iterdir()):
        raise OutputError(f"--output {directory} is not empty and no earlier demo's; give another directory")
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / FIGURES, {"finished": False, "seed": seed})


def write_pairs(world: World, path: Path, seed: int) -> None:
    """Pairs of the crowd's answers as a data file: prompt, chosen, rejected."""
    _write(crowd_pairs(world, PAIRS, seed), path)


def write_injected(answers: Sequence[Answer], path: Path) -> None:
    """Pairs as a data file: the right answer as chosen, and the same with one wrong name as rejected."""
    _write([Compared(each.prompt, each.injected.corrected, each.injected.answer) for each in answers], path)


def _write(pairs: Iterable[Compared], path: Path) -> None:
    lines = []
    for prompt, chosen, rejected in pairs:
        row = {"prompt": " ".join(prompt), "chosen": " " + " ".join(chosen), "rejected": " " + " ".join(rejected)}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _dpo(directory: Path, seed: int) -> Iterator[Event]:
    values = {
        "model": str(directory / "sft"),
        "data": [str(directory / "pairs.jsonl")],
        "output": str(directory / "dpo"),
        "beta": 1.0,
        "learning_rate": 5e-4,
        "warmup_steps": 10,
        "weight_decay": 0.01,
        "adam_beta2": 0.98,
        "batch_size": 64,
        "num_train_epochs": 3,
        "eval_fraction": 0.02,
        "seed": seed,
    }
    settings, method, understood = build("dpo", values)
    yield from run("dpo", settings, method, understood, Call(overwrite=True))


def _answered(world: World, loaded: Loaded, seed: int, when: str) -> dict[str, float]:
    """Share of asked names right and true reward of answers to held-out prompts, sampled at T = 1 and greedy."""
    figures = {}
    for kind, samples in (("sampled", SAMPLES), ("greedy", 1)):
        answers = sampled(world, loaded, samples, seed)
        correct = [world.correct(prompt, answer) for prompt, answer, _ in answers]
        rewards = [sum(world.reward(prompt, answer)[: len(answer) + ended]) for prompt, answer, ended in answers]
        name = f"accuracy_{when}" if kind == "sampled" else f"greedy_accuracy_{when}"
        figures |= {name: sum(correct) / len(correct), f"{kind}_reward_{when}": sum(rewards) / len(rewards)}
    return figures


def drawn(answers: Sequence[Answer], figures: dict[str, Any]) -> str:
    """The picture: some answers, coloured by the implicit reward and by the fine-tuned model's log-prob."""
    lines = []
    for answer in examples(answers):
        words = [*answer.injected.answer, END]
        lines += [
            Line("question", answer.prompt, [None] * len(answer.prompt)),
            *(
                Line(label, words, values, int(np.argmin(values)), answer.injected.span)
                for label, values in (("implicit reward", answer.reward), ("log-prob before", answer.before))
            ),
        ]
    caption = (
        "One name in each answer is wrong (underlined). Training only saw which of two whole answers was preferred.",
        f"The lowest implicit reward (framed) falls on the wrong name in {figures['localisation_top1']:.0%} of "
        f"{len(answers)} answers, the lowest log-prob before in {figures['control_top1']:.0%}.",
    )
    return picture("A language model is secretly a Q-function: credit for single words", lines, caption)


def examples(answers: Sequence[Answer], count: int = 3) -> list[Answer]:
    """The first answers to different questions, as they come: not chosen by how well they turned out."""
    first = {answer.prompt: answer for answer in reversed(answers)}
    return sorted(first.values(), key=answers.index)[:count]
