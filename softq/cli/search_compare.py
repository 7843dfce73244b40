"""softq search --compare NAME:NUMBER,… --judge J: a table of decoders, and their reward against what they cost."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from softq.cli.printable import printable
from softq.cli.search_flags import compared as named
from softq.data.store import write_json, write_text
from softq.inspection.compute_plot import Curve, Point, compute_plot
from softq.searching.compare import CONTROLS, Comparison, compared, figures
from softq.searching.judges import judge
from softq.searching.opened import Asked, opened
from softq.training.events import Note, OutputError

FILES = ("comparison.json", "comparison.svg", "answers.jsonl")


def compare(options: argparse.Namespace, asked: Asked) -> int:
    """Search with each, judge, tell, write."""
    methods = {
        part.strip(): method for part, method in zip(options.compare.split(","), named(options.compare), strict=True)
    }
    if options.judge is None:
        raise ValueError("--compare needs --judge: world, path.py:function, package.module:function, or a reward model")
    place = None if options.output is None else _place(Path(options.output), options.overwrite)
    of = opened(asked)
    stderr = Console(stderr=True, highlight=False, soft_wrap=True)
    for note in of.notes:
        stderr.print(Text(printable(note)))
    by = judge(options.judge, of, asked.policy)
    how: dict[str, Any] = {"max_new_tokens": asked.max_new_tokens, "stop": asked.stop, "seed": asked.seed}
    for event in compared(of, methods, by, **how):
        if isinstance(event, Note):
            stderr.print(Text(printable(event.text)))
        else:
            rows = figures(event)
            _tell(table(rows))
            print(printable(LEGEND))
            if place is not None:
                _write(place, event, rows, {"policy": asked.policy, "judge": options.judge, **how})
    return 0


LEGEND = """reward: by the judge, of each prompt's first answer, with its 95 % interval over prompts.
above random, above likeliest: by how much it is above one of as many plain samples as cost no more token-evaluations, any of
them or the likeliest; * where the interval of the difference does not hold 0.
log π/π_ref: of the answers, in nats; of plain samples it estimates KL(π‖π_ref). evaluations, ms: a prompt."""


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line a decoder."""
    found = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    heads = (
        "decoder",
        "reward",
        "",
        *(f"above {name}" for name in CONTROLS),
        "tokens",
        "log π/π_ref",
        "evaluations",
        "ms",
    )
    for n, head in enumerate(heads):
        found.add_column(head, justify="right" if n else "left", no_wrap=True)
    for row in rows:
        above = [row["controls"][name]["above_it"] for name in CONTROLS]
        ratio = "–" if row["log_ratio"] is None else f"{row['log_ratio']:.2f}"
        found.add_row(
            Text(row["name"], "bold"),
            f"{row['reward']['mean']:.3f}",
            Text(_interval(row["reward"]), "dim"),
            *(f"{each['mean']:+.3f} {_sign(each)}" for each in above),
            f"{row['tokens']:.1f}",
            ratio,
            f"{row['evaluations']:,.0f}",
            f"{1000 * row['seconds']:.1f}",
        )
    return found


def _tell(found: Table) -> None:
    """On lines as long as the table needs, however narrow the terminal."""
    console = Console(highlight=False)
    widest = Console(width=1000).measure(found).maximum
    Console(highlight=False, width=max(console.width, widest)).print(found)


def _interval(figure: Mapping[str, Any]) -> str:
    return "" if figure["interval"] is None else "{:.3f} to {:.3f}".format(*figure["interval"])


def _sign(figure: Mapping[str, Any]) -> str:
    """* where the interval does not hold 0."""
    low, high = figure["interval"] or (-1.0, 1.0)
    return "*" if low > 0 or high < 0 else " "


def picture(rows: Sequence[Mapping[str, Any]], judged_by: str) -> str:
    """Reward against token-evaluations."""
    points = [
        Point(
            row["name"], max(1.0, row["evaluations"]), row["reward"]["mean"], row["reward"]["interval"], row["method"]
        )
        for row in rows
    ]
    curves = [
        Curve(
            f"{name} of samples",
            [(max(1.0, row["controls"][name]["evaluations"]), row["controls"][name]["reward"]["mean"]) for row in rows],
        )
        for name in CONTROLS
    ]
    return compute_plot(
        points,
        curves,
        title="What search buys",
        reward=f"reward ({judged_by})",
        compute="token-evaluations a prompt",
    )


def _place(directory: Path, overwrite: bool) -> Path:
    """The directory to write to, made. OutputError where it is none, or holds something."""
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"--output {directory}: with --compare, a directory is written; give one")
    there = [name for name in FILES if (directory / name).exists()]
    if there and not overwrite:
        raise OutputError(f"--output {directory}: {there[0]} is there; name another, or --overwrite")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--output {directory} can not be made: {error.strerror}") from error
    return directory


def _write(place: Path, comparison: Comparison, rows: Sequence[Mapping[str, Any]], how: Mapping[str, Any]) -> None:
    write_json(place / FILES[0], {**how, "decoders": rows, "controls": CONTROLS})
    write_text(place / FILES[1], picture(rows, str(how["judge"])))
    answers = (row for arm in comparison.arms for row in arm.rows)
    write_text(place / FILES[2], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answers))
    print(f"written to {place}: {', '.join(FILES)}")
