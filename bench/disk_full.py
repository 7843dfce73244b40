"""Fill the disk under runs at every point, and break their output in other ways; mend it, resume, compare with a whole run.

    python bench/disk_full.py [--step 1]

Tiny runs write to a tmpfs in a mount namespace of their own, which needs no root where user namespaces are allowed. It grows
page by page (4 KiB), then file by file, from nothing to all that a run takes; so the disk is full once at every write, and
once at every file and directory that is made. Each run must end with one line and exit code 1, or 2 where the output can not
even be made; it must leave nothing half written, and every checkpoint must verify. Then the disk is enlarged, and --resume
must give, byte for byte and times excepted, the run that always had room.
"""

import argparse
import ctypes
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kill_resume import called, ended, half, prepare, saves, started, unlike, words_of

import softq.cli.train
from softq.training import checkpoint
from softq.training.history import CHECKPOINTS

PAGE = 4096
NEW_MOUNTS, NEW_USER = 0x20000, 0x10000000  # linux/sched.h
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2  # linux/capability.h: what lets root write where nobody may
CAPABILITIES = 0x20080522  # the version of capset's arguments
BEST, MOVING, CACHED, RESULT = "dpo, best", "dpo, moving reference", "dpo, cached reference", "dpo, no checkpoints"


def nothing() -> None:
    """Break nothing."""


def own_mounts() -> str | None:
    """Give this process, which must have one thread, mounts of its own. Why that can not be; None where it is done."""
    user, group = os.geteuid(), os.getegid()
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(NEW_USER | NEW_MOUNTS):
            return f"no mount namespace: {os.strerror(ctypes.get_errno())}"
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        _shell("mount --make-rprivate /")
        with tempfile.TemporaryDirectory() as place:
            _shell(f"mount -t tmpfs none {place}")
            _shell(f"umount {place}")
    except (OSError, AttributeError, subprocess.CalledProcessError) as error:
        return f"no mount namespace: {error}"
    return None


def within_own_mounts(work: Callable[[], int]) -> int:
    """The exit code of `work` in a fork with mounts of its own; 77 where there can be none, and stderr says why."""
    process = os.fork()
    if process:
        return ended(process)
    code = 70
    try:
        if why := own_mounts():
            print(why, file=sys.stderr)
        code = 77 if why else work()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def without_override() -> None:
    """Let this process heed permissions, root or not."""
    keep = ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH) & 0xFFFFFFFF
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(CAPABILITIES, 0)
        own = (ctypes.c_uint32 * 6)()
        libc = ctypes.CDLL(None, use_errno=True)
        libc.capget(header, own)
        own[0], own[1] = own[0] & keep, own[1] & keep  # effective, permitted
        if libc.capset(header, own):
            raise OSError(ctypes.get_errno(), "capset")


def after_step(number: int, act: Callable[[], Any]) -> None:
    """Let the runs of this process do something behind that step; 0 is before the first."""

    @contextmanager
    def asked() -> Iterator[Callable[[], int]]:
        polls = itertools.count()

        def stop() -> int:
            if next(polls) == number:
                act()
            return 0

        yield stop

    softq.cli.train.asked = asked


@dataclass
class Bench:
    """Where runs are broken, and what was seen."""

    work: Path
    wholes: dict[str, Path] = field(default_factory=dict)
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def log(self) -> Path:
        """What the latest run said."""
        return self.work / "log"

    def whole(self, variant: str) -> Path:
        """The run that nothing befalls; made once."""
        if variant not in self.wholes:
            output = self.wholes[variant] = self.work / f"whole {len(self.wholes)}"
            code, said = called(words_of(self.work, output, variant), self.log)
            if code:
                raise RuntimeError(said)
        return self.wholes[variant]

    def broken(
        self,
        fault: str,
        variant: str,
        output: Path,
        *,
        at: str = "",
        before: Callable[[], Any] = nothing,
        mend: Callable[[], Any] = nothing,
        codes: tuple[int, ...] = (1,),
    ) -> int:
        """The exit code of a run that something befalls; it is mended and resumed, and all that should hold is checked."""
        whole, words = self.whole(variant), words_of(self.work, output, variant)
        code, said = called(words, self.log, before)
        kept = checkpoint.steps(output)
        self.seen[fault, f"exit {code}, " + ("a whole checkpoint" if kept else "no checkpoint yet")] += 1
        if code:
            self.lines[_without_numbers(said.replace(str(output), "OUTPUT"))] += 1
        wrong = [] if code in codes else [f"exit code {code}"]
        wrong += [] if not code or _one_line(said) else [f"not one line: {said}"]
        wrong += [*half(output), *(f"left behind: {name}" for name in saves(output))]
        mend()
        again, told = called([*words, "--resume"], self.log)
        wrong += (
            [f"--resume: exit code {again}: {told}"] if again else [f"{name} differs" for name in unlike(output, whole)]
        )
        self.wrong += [f"{fault}{at}: {line}" for line in wrong]
        return code

    def fill(self, fault: str, variant: str, limits: Callable[[int], str], sizes: Iterable[int]) -> None:
        """Runs on ever larger disks, until one has room. limits: a size -> mount options."""
        disk = self.work / "disk"
        disk.mkdir(exist_ok=True)
        for size in sizes:
            _shell(f"mount -t tmpfs -o {limits(size)} none '{disk}'")
            filler = disk / "filler"
            if size == 0:
                filler.write_bytes(bytes(PAGE))  # 0 means without limit
            mend = partial(_enlarged, disk, filler)
            code = self.broken(fault, variant, disk / "run", at=f" at {size}", mend=mend, codes=(0, 1, 2))
            _shell(f"umount '{disk}'")
            if not code:
                return

    def full(self, pages: Iterable[int], files: Iterable[int]) -> None:
        """No room for more than so many pages; then for more than so many files and directories."""
        self.fill("no room, 4 KiB more each time", BEST, lambda size: f"size={max(size, 1) * PAGE}", pages)
        self.fill("no room, one more file each time", MOVING, lambda size: f"nr_inodes={size}", files)

    def full_otherwise(self, pages: Iterable[int]) -> None:
        """No room for the result, where there are no checkpoints; nor for what is kept between runs beside the output."""
        pages, again = itertools.tee(pages)
        limits = lambda size: f"size={max(size, 1) * PAGE}"  # noqa: E731
        self.fill("no room for the result, 4 KiB more each time", RESULT, limits, pages)
        self.whole(CACHED)
        before = os.environ["SOFTQ_CACHE"]
        os.environ["SOFTQ_CACHE"] = str(self.work / "disk" / "cache")
        self.fill("no room for caches and output, 4 KiB more each time", CACHED, limits, again)
        os.environ["SOFTQ_CACHE"] = before

    def read_only(self) -> None:
        """The file system becomes read-only."""
        disk = self.work / "disk"
        disk.mkdir(exist_ok=True)
        for number, place in ((0, disk), (3, disk / "run" / CHECKPOINTS)):
            _shell(f"mount -t tmpfs none '{disk}'")
            close = f"mount --bind '{place}' '{place}' && mount -o remount,bind,ro '{place}'"
            before = partial(after_step, number, partial(_shell, close))
            fault = f"read-only after step {number}"
            # what a child mounts is mounted here too: they share the namespace
            self.broken(fault, BEST, disk / "run", before=before, mend=partial(_shell, f"umount '{place}'"))
            _shell(f"umount '{disk}'")
        _shell(f"mount -t tmpfs -o ro none '{disk}'")
        mend = partial(_shell, f"mount -o remount,rw '{disk}'")
        self.broken("read-only from the start", BEST, disk / "run", mend=mend, codes=(2,))
        _shell(f"umount '{disk}'")

    def closed(self) -> None:
        """The user may not write: to the directory above, or to the checkpoints."""
        above = self.work / "above"
        above.mkdir(mode=0o500)
        mend = partial(above.chmod, 0o700)
        self.broken("no permission", BEST, above / "run", before=without_override, mend=mend, codes=(2,))
        output = self.work / "closed"
        folder = output / CHECKPOINTS

        def before() -> None:
            without_override()
            after_step(3, partial(folder.chmod, 0o500))

        self.broken(
            "no permission after step 3", BEST, output, before=before, mend=lambda: folder.chmod(0o700), codes=(1,)
        )

    def removed(self) -> None:
        """The output is removed under the run."""
        output = self.work / "removed"
        before = partial(after_step, 3, partial(shutil.rmtree, output))
        self.broken("output removed after step 3", BEST, output, before=before)

    def in_use(self) -> None:
        """Another run has the output: it is named, and the lock ends with it even where it is killed."""
        output = self.work / "in use"
        words = words_of(self.work, output, BEST)
        stop = partial(after_step, 3, lambda: os.kill(os.getpid(), signal.SIGSTOP))
        holder = started(words, self.log, stop)
        os.waitpid(holder, os.WUNTRACED)
        for more in ([], ["--resume"], ["--overwrite"]):
            code, said = called([*words, *more], self.work / "second")
            self.seen["in use", f"exit {code}"] += 1
            self.lines[_without_numbers(said.replace(str(output), "OUTPUT"))] += 1
            if code != 2 or not _one_line(said) or (more and f"process {holder} " not in said):
                self.wrong.append(f"in use, {more}: exit code {code}: {said}")
        os.kill(holder, signal.SIGKILL)
        ended(holder)
        code, said = called([*words, "--resume"], self.log)
        differ = [said] if code else unlike(output, self.whole(BEST))
        self.wrong += [f"in use, then killed: {name}" for name in differ]


def _enlarged(disk: Path, filler: Path) -> None:
    _shell(f"mount -o remount,size=64m,nr_inodes=100000 '{disk}'")
    filler.unlink(missing_ok=True)


def _shell(command: str) -> None:
    subprocess.run(command, shell=True, check=True, capture_output=True)


def _one_line(said: str) -> bool:
    return said.startswith("softq: ") and said.count("\n") == 1


def _without_numbers(said: str) -> str:
    return re.sub(r"\d+", "N", re.sub(r"\.partial-\w+", ".partial-…", said)).strip().split("\n")[-1]


def table(bench: Bench, seconds: float) -> Iterator[str]:
    """The figures, as Markdown, and every line that was said."""
    yield "| fault | ended with | runs |"
    yield "|---|---|---|"
    yield from (f"| {fault} | {how} | {count} |" for (fault, how), count in bench.seen.items())
    yield ""
    yield f"{bench.seen.total()} runs broken, mended and resumed in {seconds:.0f} s; wrong: {len(bench.wrong)}"
    yield ""
    yield from (f"{count} × {line}" for line, count in bench.lines.most_common())
    yield from bench.wrong


def main() -> None:
    """Break, mend, resume, compare, tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--step", type=int, default=1, help="how much larger each disk is, in pages and files [1]")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        os.environ["SOFTQ_CACHE"] = str(work / "cache")
        prepare(work)

        def all_of_it() -> int:
            began, bench = time.monotonic(), Bench(work)
            for part in (bench.read_only, bench.closed, bench.removed, bench.in_use):
                part()
            bench.full(itertools.count(0, given.step), itertools.count(1, given.step))
            bench.full_otherwise(itertools.count(0, given.step))
            print("\n".join(table(bench, time.monotonic() - began)))
            return int(bool(bench.wrong))

        sys.exit(within_own_mounts(all_of_it))


if __name__ == "__main__":
    main()
