"""Mutation testing of what a sign error would hide in: theory, objectives, search, and what models are read by (TESTS).

    make mutants                     # files that differ from HEAD; with none, those of the last commit
    make mutants ARGS=--all          # everything
    python bench/mutants.py FILE ...

Each mutant (bench/mutations.py) is a module with one wrong change, put in place of it when a forked child imports it. The
child runs the tests of FIRST, quickest first; a mutant that survives them meets REST. It all happens on a copy, so that
the checkout can be edited meanwhile. bench/equivalent.txt lists mutants that no test can tell from the original, and why,
in the form in which survivors are printed. Exit 1 if fewer than 95 % of the others are killed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mutant_runs import Clean, Job, fates, warmed
from mutations import mutations

ROOT = Path(__file__).resolve().parents[1]
ENOUGH = 0.95
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

WALKED = ("walk search_sharp search", "search_model search_laws guided mcts")
TESTS = {
    "softq/mdp/": (
        "soft tabular divergence chance errata golden unified fixed_points sharp contract token_level distillation",
        "inspection_tables loop measure examples",
    ),
    "softq/objectives/": (
        "golden sharp fixed_points margins divergences lengths value_models conformance unified errata contract sums",
        "loop plan settings source measure examples",
    ),
    "softq/masked.py": ("tabular soft contract golden sharp score", "loop plan measure examples"),
    "softq/lm/score.py": ("score sharp contract golden", "forest loop plan layouts examples"),
    "softq/search/": ("search_sharp search search_laws guided mcts", "search_model walk"),
    "softq/lm/walk.py": WALKED,
    "softq/lm/kept.py": WALKED,
    "softq/lm/growing.py": WALKED,
}
"""Source files -> FIRST, its laws and values, and REST, what else sees it in process and takes seconds: NAMEs of NAME_test.py,
where there is one. The test of the file's own name is among the first."""

Equivalents = dict[tuple[str, str, str, str], str]  # (file, function, old, new) -> reason


def git(*arguments: str) -> list[str]:
    """The paths that a git command prints."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def targets(arguments: Sequence[str], everything: bool) -> list[str]:
    """The source files to change, relative to the root."""
    if arguments:
        return [str(Path(argument).resolve().relative_to(ROOT)) for argument in arguments]
    every = [path for path in git("ls-files", "-co", "--exclude-standard", "softq") if sets_of(path)]
    every = sorted(path for path in every if not path.endswith("__init__.py"))
    if everything:
        return every
    uncommitted = {*git("diff", "--name-only", "HEAD"), *git("ls-files", "-o", "--exclude-standard")} & set(every)
    return sorted(uncommitted or set(git("diff", "--name-only", "HEAD~1", "HEAD")) & set(every))


def sets_of(path: str) -> tuple[frozenset[str], ...]:
    """The sets of test files for a source file, of those that exist here; none if it is not ours to change."""
    for prefix, sets in TESTS.items():
        if path.startswith(prefix) and path.endswith(".py"):
            first, rest = sets
            named = (
                [f"tests/{name}_test.py" for name in names.split()] for names in (f"{Path(path).stem} {first}", rest)
            )
            return tuple(frozenset(test for test in tests if Path(test).exists()) for tests in named)
    return ()


def equivalents() -> Equivalents:
    """The mutants that are known to be no change."""
    found, where, old = {}, ("", "", ""), ""
    for line in (ROOT / "bench/equivalent.txt").read_text().splitlines():
        if line.startswith("- "):
            old = line[2:]
        elif line.startswith("+ "):
            path, function, reason = where
            found[path, function, old, line[2:]] = reason
        elif line and not line.startswith("#"):
            place, _, reason = line.partition(": ")
            path, _, function = place.partition(" ")
            where = path, function, reason
    return found


def copied(scratch: Path) -> None:
    """Works from now on in a copy of the checkout, of what git knows or would."""
    for path in git("ls-files", "-co", "--exclude-standard"):
        if (ROOT / path).exists():
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, scratch / path)
    os.chdir(scratch)
    sys.path.insert(0, str(scratch))


def key(job: Job) -> tuple[str, str, str, str]:
    """What bench/equivalent.txt knows a mutant by: its content, not its line."""
    return job.path, job.mutation.function, job.mutation.old, job.mutation.new


def shown(job: Job) -> str:
    """A mutant in three lines."""
    return f"{job.path}:{job.mutation.line} {job.mutation.function}\n- {job.mutation.old}\n+ {job.mutation.new}"


def ended(path: str, known: Equivalents, scratch: Path, seen: Clean) -> list[tuple[Job, str]]:
    """All mutants of a file with what became of them, in the order of the text. Equivalents meet the quick of FIRST alone."""
    jobs = [Job(path, mutation, sets_of(path)) for mutation in mutations(Path(path).read_text())]
    jobs = [job._replace(stages=job.stages[:1], longest=0.1) if key(job) in known else job for job in jobs]
    fate = dict(fates(jobs, scratch, seen))
    same = {job for job in jobs if key(job) in known and fate[job.mutation] == "survived"}
    return [(job, "equivalent" if job in same else fate[job.mutation]) for job in jobs]


def report(paths: Sequence[str], scratch: Path) -> int:
    """Prints what becomes of every mutant of these files; the exit code."""
    begin, known = time.monotonic(), equivalents()
    copied(scratch / "copy")
    seen = warmed(sorted({test for path in paths for tests in sets_of(path) for test in tests}), scratch)
    print(f"the unchanged code passes: {time.monotonic() - begin:.0f} s")
    every: list[tuple[Job, str]] = []
    for path in paths:
        of = ended(path, known, scratch, seen)
        counts = Counter(fate for _, fate in of)
        print(", ".join([f"{path}: {len(of)} mutants", *(f"{n} {fate}" for fate, n in sorted(counts.items()))]))
        left = [f"{fate}: {shown(job)}" for job, fate in of if fate in {"survived", "timed out"}]
        print("".join(f"\n{text}\n" for text in left), flush=True, end="\n" if left else "")
        every += of
    same = {key(job) for job, fate in every if fate == "equivalent"}
    for entry in (entry for entry in known if entry[0] in paths and entry not in same):
        print("bench/equivalent.txt lists what is killed or gone: {} {}\n- {}\n+ {}\n".format(*entry))
    counts = Counter(fate for _, fate in every)
    judged = len(every) - counts["equivalent"]
    rate = 1 - counts["survived"] / max(judged, 1)
    minutes = (time.monotonic() - begin) / 60
    print(
        f"{len(every)} mutants, {counts['equivalent']} equivalent; of the other {judged}, {rate:.1%} killed, "
        f"{counts['timed out']} of them by the clock, {counts['survived']} survived; {minutes:.1f} min"
    )
    return int(rate < ENOUGH)


def main() -> None:
    parser = argparse.ArgumentParser(description="Mutation testing: does a test fail for each small wrong change?")
    parser.add_argument("files", nargs="*", help="source files; default: those that changed")
    parser.add_argument("--all", action="store_true", help="every file")
    arguments = parser.parse_args()
    paths = targets(arguments.files, arguments.all)
    if not paths:
        print("no file that is mutated has changed; --all takes every one")
        return
    if foreign := [path for path in paths if not sets_of(path)]:
        parser.error(f"{', '.join(foreign)}: expected files of {', '.join(TESTS)}, whose tests are known")
    os.environ |= ENVIRONMENT
    with tempfile.TemporaryDirectory() as directory:
        raise SystemExit(report(paths, Path(directory)))


if __name__ == "__main__":
    main()
