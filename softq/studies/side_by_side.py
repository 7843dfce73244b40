"""Jobs in processes of their own, side by side, each on one thread: a small model gains nothing from a second one."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any, TypeVar

import torch

from softq.training.events import RunError

Job = TypeVar("Job")
OFTEN = 2.0  # seconds between two looks at how far they are


def side_by_side(work: Callable[[Job], object], jobs: Sequence[Job], processes: int) -> Iterator[None]:
    """Do work(job) for every job, each process taking the next that is left; yields now and then.

    What a job makes it writes to a file. `work` and jobs must be importable, as a module's functions and records are. With
    one process it is this one. RunError where a process ends with jobs undone. If the caller stops, so do the processes.
    """
    if min(processes, len(jobs)) <= 1:
        yield from _here(work, jobs)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not outlive a fork
    taken = context.Value("q", 0)
    workers = [
        context.Process(target=_worker, args=(work, jobs, taken, os.getpid()), daemon=True)
        for _ in range(min(processes, len(jobs)))
    ]
    try:
        for worker in workers:
            worker.start()
        while running := [worker.sentinel for worker in workers if worker.exitcode is None]:
            wait(running, OFTEN)
            if failed := [worker.exitcode for worker in workers if worker.exitcode]:
                raise RunError(
                    f"a process of the study ended with code {failed[0]}, why stands above; the same command goes on from here"
                )
            yield
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()
                worker.join()


def _here(work: Callable[[Job], object], jobs: Sequence[Job]) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for job in jobs:
            work(job)
            yield
    finally:
        torch.set_num_threads(threads)


def _worker(work: Callable[[Any], object], jobs: Sequence[Any], taken: Any, parent: int) -> None:
    """Until no job is left, or whoever started this is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells both; the one that started this ends it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    while os.getppid() == parent:
        with taken.get_lock():
            number = taken.value
            taken.value += 1
        if number >= len(jobs):
            return
        work(jobs[number])
