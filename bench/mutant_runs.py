"""Runs tests on mutants: forked children, each of which imports one module from another text."""

import contextlib
import gc
import importlib
import importlib.abc
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import NamedTuple

import hypothesis
import pytest
from hypothesis import Phase
from mutations import Mutation

AT_ONCE = 2
SLOWEST = 20  # times a test's seconds on the unchanged code, and START, after which a mutant counts as killed
START = 10  # seconds
KILLERS = 3  # tests that a mutant meets first
MEMORY = 12 << 30  # bytes, beyond which it does too


class Job(NamedTuple):
    """A mutant, and the sets of tests that it has yet to survive."""

    path: str
    mutation: Mutation
    stages: tuple[frozenset[str], ...]  # of test files
    longest: float = 4.0  # seconds of the processor; tests that take longer are left out


class Clean(NamedTuple):
    """What the unchanged code does in the tests."""

    seconds: dict[str, float]  # of the processor, of each test
    callers: dict[str, list[str]]  # "FILE FUNCTION" of ours -> the tests that call it; "" if fixtures or imports do
    modules: list[str]  # what was imported of others

    def able(self, job: Job) -> dict[str, float]:
        """The tests of a job's first stage that could see its mutant, with their seconds, quickest first."""
        callers = self.callers.get(f"{job.path} {job.mutation.function}", [])
        tests = self.seconds if "" in callers or not job.mutation.function else callers
        able = [test for test in tests if file_of(test) in job.stages[0] and self.seconds[test] < job.longest]
        return {test: self.seconds[test] for test in sorted(able, key=self.seconds.__getitem__)}


def file_of(test: str) -> str:
    """The file in the name of a test."""
    return test.split("::")[0]


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from another text."""

    def __init__(self, path: str, source: str) -> None:
        self.path, self.source = path, source
        self.name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def find_spec(self, fullname: str, path: object = None, target: object = None):
        """The module in its own place, loaded by this."""
        if fullname != self.name:
            return None
        inside = [str(Path(self.path).parent.absolute())] if self.path.endswith("__init__.py") else None
        return importlib.util.spec_from_file_location(
            fullname, Path(self.path).absolute(), loader=self, submodule_search_locations=inside
        )

    def exec_module(self, module: ModuleType) -> None:
        """Runs the mutated text."""
        exec(compile(self.source, self.path, "exec"), module.__dict__)


class Watch:
    """A pytest plugin: how long each test takes, and which of our functions it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.callers: dict[str, dict[str, None]] = {}
        self.test, self.root = "", f"{os.getcwd()}/"
        sys.settrace(self.called)

    def called(self, frame: FrameType, event: str, value: object) -> None:
        """For each call in Python."""
        code = frame.f_code
        if code.co_filename.startswith(self.root + "softq/"):
            parts = [part for part in code.co_qualname.split(".") if not part.startswith("<")]
            name = f"{code.co_filename.removeprefix(self.root)} {'.'.join(parts)}"
            self.callers.setdefault(name, {})[self.test] = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item):
        """The test alone, without its fixtures."""
        self.test, begin = item.nodeid, time.process_time()
        try:
            return (yield)
        finally:
            self.seconds[self.test] = time.process_time() - begin
            self.test = ""


class Choice:
    """A pytest plugin: these tests alone, in this order, each with SLOWEST times its seconds, and some, until it is over.

    `killer` gets the name of the test that fails.
    """

    def __init__(self, seconds: Mapping[str, float], killer: Path) -> None:
        self.seconds, self.killer = seconds, killer
        self.rank = {test: n for n, test in enumerate(seconds)}
        signal.alarm(START)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Drops the others."""
        items[:] = sorted((i for i in items if i.nodeid in self.rank), key=lambda i: self.rank[i.nodeid])

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Winds the clock."""
        signal.alarm(START + int(SLOWEST * self.seconds[item.nodeid]))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Writes it down."""
        if report.failed:
            self.killer.write_text(report.nodeid)


def run_tests(files: Iterable[str], directory: Path, plugin: Watch | Choice) -> int:
    """pytest's exit code, in this process."""
    phases = (Phase.explicit, Phase.generate)
    hypothesis.settings.register_profile("mutants", derandomize=True, database=None, deadline=None, phases=phases)
    hypothesis.settings.load_profile("mutants")
    options = ["-x", "-q", "--tb=line", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*options, f"--basetemp={directory}", *files], plugins=[plugin]))


def print_to(path: Path | str) -> None:
    """Sends what is printed to a file."""
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)


def watched(files: Iterable[str], scratch: Path) -> int:
    """The process id of a child that runs tests on the unchanged code and writes down what they do."""
    scratch.mkdir()
    if pid := os.fork():
        return pid
    code = 1
    try:
        print_to(scratch / "said.txt")
        watch = Watch()
        code = run_tests(files, scratch / "tests", watch)
        sys.settrace(None)
        others = [n for n, m in sys.modules.items() if "site-packages" in str(getattr(m, "__file__", ""))]
        callers = {name: list(tests) for name, tests in watch.callers.items()}
        (scratch / "clean.json").write_text(json.dumps([watch.seconds, callers, others]))
    finally:
        os._exit(code)


def clean(files: Sequence[str], scratch: Path) -> Clean:
    """Runs tests on the unchanged code; ends everything if one fails."""
    parts = {scratch / f"clean{n}": files[n::AT_ONCE] for n in range(min(AT_ONCE, len(files)))}
    children = [watched(part, directory) for directory, part in parts.items()]
    failed = [os.waitpid(pid, 0)[1] for pid in children]
    for directory, status in zip(parts, failed, strict=True):
        if status:
            said = (directory / "said.txt").read_text()
            lines = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
            raise SystemExit(f"the unchanged code fails: {' '.join(lines) or said}")
    whole = Clean({}, {}, [])
    for directory in parts:
        part = Clean(*json.loads((directory / "clean.json").read_text()))
        whole.seconds.update(part.seconds)
        whole.modules.extend(part.modules)
        for function, tests in part.callers.items():
            whole.callers.setdefault(function, []).extend(tests)
    return whole


def started(job: Job, seconds: Mapping[str, float], scratch: Path, killer: Path) -> int:
    """The process id of a child that runs tests on a mutant."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        print_to(os.devnull)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        sys.meta_path.insert(0, Mutated(job.path, job.mutation.source))
        code = run_tests(dict.fromkeys(map(file_of, seconds)), scratch, Choice(seconds, killer))
    finally:
        os._exit(code)


def fates(jobs: Sequence[Job], scratch: Path, seen: Clean) -> Iterator[tuple[Mutation, str]]:
    """Each mutation as it ends, with "killed", "timed out" or "survived".

    First it meets the tests that killed others in its function: most die there, and few files need collecting.
    """
    waiting, running, slots = deque((job, True) for job in jobs), {}, set(range(AT_ONCE))
    killers: dict[str, dict[str, float]] = {}
    while waiting or running:
        if waiting and slots:
            job, fresh = waiting.popleft()
            seconds = killers.get(job.mutation.function, {}) if fresh else seen.able(job) if job.stages else {}
            after = job if fresh else job._replace(stages=job.stages[1:])
            if seconds:
                slot = slots.pop()
                running[started(job, seconds, scratch / str(slot), scratch / f"killer{slot}")] = after, slot
            elif fresh or after.stages:
                waiting.appendleft((after, False))
            else:
                yield job.mutation, "survived"
        else:
            pid, status = os.wait()
            after, slot = running.pop(pid)
            slots.add(slot)
            shutil.rmtree(scratch / str(slot), ignore_errors=True)
            if not status:
                waiting.appendleft((after, False))
                continue
            if (killer := scratch / f"killer{slot}").exists():
                test = killer.read_text()
                others = list(killers.get(after.mutation.function, {}).items())
                killers[after.mutation.function] = {test: seen.seconds[test], **dict(others[: KILLERS - 1])}
                killer.unlink()
            late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
            yield after.mutation, "timed out" if late else "killed"


def warmed(files: Sequence[str], scratch: Path) -> Clean:
    """The clean run, which also compiles everything; then imports once, here, what every child would import of others."""
    sys.dont_write_bytecode = False  # or every child would compile it all again
    seen = clean(files, scratch)
    for name in seen.modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a child's collections need not walk all that
    return seen
