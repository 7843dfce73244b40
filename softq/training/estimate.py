"""How long a run will take and how much memory: measured on a few of its own steps, which are then forgotten."""

import resource
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from softq.data.store import Records
from softq.lm.score import Models
from softq.records import Batch
from softq.training import ranks
from softq.training.course import Course
from softq.training.loop import evaluate, train
from softq.training.source import batch_of

MOST, FEWEST, SECONDS = 16, 3, 20.0
"""At most so many steps are made, and no more after so many seconds, if there are enough."""


class Estimate(NamedTuple):
    """What a run will take."""

    seconds: float  # of its steps and evaluations
    steps: int
    memory: int  # bytes at its peak: of the process, or of the device where there is one

    def __str__(self) -> str:
        """One line."""
        hours, minutes = divmod(round(self.seconds / 60), 60)
        span = f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes > 1 else f"{self.seconds:.0f} s"
        return f"estimate: {span} for {self.steps:,} steps, {self.memory / 2**20:,.0f} MiB at the peak"


def estimate(run: Course) -> Estimate:
    """Make a few steps and a part of an evaluation, and scale their time by tokens. The models are trained by it: forget them."""
    lengths = lengths_of(run.data.records)
    numbers = rehearsal(run, lengths)
    times = _timed_steps(run, numbers)
    tokens = [int(lengths[np.array(run.order.step(n)) % len(lengths)].sum()) for n in numbers[: len(times)]]
    # The first one warms caches up and allocates.
    rate = sum(times[1:]) / sum(tokens[1:]) if len(times) > 1 else times[0] / tokens[0]
    mean = lengths.mean() * run.order.records / run.order.steps_a_pass  # tokens a step
    seconds = rate * mean * run.steps
    if run.data.held is not None:
        times_evaluated = run.steps // run.every + bool(run.steps % run.every)
        seconds += _evaluation(run, run.data.held) * times_evaluated
    return Estimate(seconds, run.steps, _peak(next(run.loaded.policy.parameters()).device))


def lengths_of(records: Records) -> np.ndarray:
    """[records] ids of all completions of each."""
    return np.array([sum(len(completion.ids) for completion in record.completions) for record in records])


def rehearsal(run: Course, lengths: np.ndarray) -> list[int]:
    """The steps to make: that of the longest record, which decides the memory, and some drawn evenly from the run."""
    longest = int(lengths.argmax())
    first = next((n for n in range(run.steps) if longest in np.array(run.order.step(n)) % len(lengths)), 0)
    others = np.linspace(0, run.steps - 1, min(MOST, run.steps)).astype(int).tolist()
    return [first, *others]


def _timed_steps(run: Course, numbers: list[int]) -> list[float]:
    records, length = run.data.records, run.settings.max_length

    def source(models: Models) -> Iterator[Batch]:
        for number in numbers:
            chosen = run.order.step(number)
            yield batch_of([records[n % len(records)] for n in chosen], chosen, run.method, max_length=length)

    times: list[float] = []
    began = time.perf_counter()
    for _ in train(run.models, run.method, source, run.update, tokens_per_micro=run.tokens_per_micro):
        times.append(time.perf_counter() - began - sum(times))
        if len(times) > FEWEST and max(ranks.gathered([sum(times)])) > SECONDS:
            break
    return times


def _evaluation(run: Course, held: Records) -> float:
    """Seconds of one evaluation, by some of its records."""
    lengths = lengths_of(held)
    some = list(range(min(len(held), max(4, run.settings.batch_size))))
    batch = batch_of([held[n] for n in some], some, run.method, max_length=run.settings.max_length)
    began = time.perf_counter()
    evaluate(run.models, run.method, batch, tokens_per_micro=run.tokens_per_micro)
    return (time.perf_counter() - began) / lengths[some].sum() * lengths.sum()


def _peak(device: torch.device) -> int:
    """The most memory so far, of the process that has most."""
    if device.type == "cuda":
        mine = torch.cuda.max_memory_reserved(device)
    else:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        mine = most if sys.platform == "darwin" else most * 1024
    return max(ranks.gathered([mine]))
