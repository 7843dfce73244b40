"""What TRL agrees with, as Markdown: the table of docs/parity.md, or with `vectors` the one of conformance/README.md.

    pip install -e '.[bench]'
    python tests/parity/table.py [vectors]

Ends with 1 where a difference has no reason.
"""

import sys
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version

from cases import CASES, NOT_HERE, REFUSED, Case
from measure import AGREES, REALLY, measured
from trainers import Trainers
from transformers.utils import logging
from vectors import verdicts

SEEDS = (1, 2, 3)


def main() -> None:
    """Prints the table that is asked for."""
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as directory:
        trainers = Trainers(directory)
        lines = list(of_vectors(trainers) if "vectors" in sys.argv[1:] else of_cases(trainers))
    print("\n".join(lines))
    sys.exit(any("UNEXPLAINED" in line for line in lines))


def of_cases(trainers: Trainers) -> Iterator[str]:
    """A line a case, then what TRL refuses, then what has no counterpart here."""
    yield f"TRL {version('trl')}\n\n| TRL | softq | |\n|---|---|---|"
    for case in CASES:
        yield f"| {_code(case.asked)} | {_code(case.named)} | {_said(case, trainers)} |"
    for refused in REFUSED:
        asked = " ".join(f"{key}={value}" for key, value in refused.settings.items())
        yield f"| {_code(f'DPOTrainer {asked}')} | – | {refused.raises} in TRL: {refused.about} |"
    for asked, why in NOT_HERE.items():
        yield f"| {asked} | – | not here: {why} |"


def _said(case: Case, trainers: Trainers) -> str:
    found = [measured(case, trainers, seed) for seed in SEEDS]
    ours, formula = max(each.ours for each in found), max(each.formula for each in found)
    if case.theirs is None:
        return f"agrees to {ours:.0e}" if ours <= AGREES else f"UNEXPLAINED: {ours:.0e}"
    explained = formula <= AGREES and ours >= REALLY
    return (
        f"differs ({ours:.0e}): {case.differs} (TRL's is that to {formula:.0e})"
        if explained
        else f"UNEXPLAINED: {ours:.0e}"
    )


def of_vectors(trainers: Trainers) -> Iterator[str]:
    """A line for the entries of a method that share trainer, settings and verdict."""
    lines: dict[tuple[str, str, str], tuple[list[str], list[float]]] = {}
    for entry, asked, off, says in verdicts(trainers):
        method, step = entry["name"].split("/")
        names, offs = lines.setdefault((method, asked, says), ([], []))
        names.append(step)
        offs += [] if off is None else [off]
    yield f"TRL {version('trl')}\n\n| method | steps | trainer | largest difference | verdict |\n|---|---|---|---|---|"
    for (method, asked, says), (names, offs) in lines.items():
        yield f"| {method} | {', '.join(names)} | {asked} | {f'{max(offs):.1e}' if offs else '–'} | {says} |"


def _code(text: str) -> str:
    return f"`{text}`"


if __name__ == "__main__":
    main()
