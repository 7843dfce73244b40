"""softq search --policy P --prompts FILE | --prompt TEXT [--method NAME …] [--output FILE] [--tree FILE]"""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from softq.cli.printable import printable
from softq.cli.search_compare import compare
from softq.cli.search_flags import asked_of, parsed
from softq.data.gathered import Gathered
from softq.data.sources import sources
from softq.data.store import write_text
from softq.inspection.tree_page import Explored, tree_page
from softq.searching.opened import Asked, opened
from softq.searching.run import Found, Method, searched
from softq.searching.trees import explored
from softq.training import ranks
from softq.training.events import OutputError

TREES = 40  # that a page has
LETTERS = {"prompt": 70, "answer": 300}  # that are shown where there are several prompts; all of one


def run(words: list[str]) -> int:
    """Open, search, tell as groups finish, write."""
    options, method = parsed(words)
    given = {name: value for name, value in vars(options).items() if name in Asked._fields}
    asked = Asked(**(given | asked_of(options)))
    if ranks.launched() > 1:
        raise ValueError("softq search runs in one process: start it without a launcher")
    if method is None:
        return compare(options, asked)
    output = _checked(options, asked)
    of = opened(asked)
    stderr = Console(stderr=True, highlight=False, soft_wrap=True)
    for note in of.notes:
        stderr.print(Text(printable(note)))
    rows: list[tuple[dict[str, Any], ...]] = []
    trees: dict[int, Explored] = {}
    how: dict[str, Any] = {"max_new_tokens": asked.max_new_tokens, "stop": asked.stop, "seed": asked.seed}
    with _kept(output, len(of.prompts), stderr):
        for found in searched(of, method, **how):
            rows.append(found.rows)
            if output is not None:
                output.add(found.number, found.rows)
            _tell(found, alone=isinstance(asked.prompts, str))
            if options.tree is not None and found.number < TREES:
                trees[found.number] = explored(of, found)
    stderr.print(Text(_account(rows)))
    if output is not None:
        print(f"written to {options.output}")
    if options.tree is not None:
        if len(rows) > len(trees):
            stderr.print(f"the page has the trees of the first {len(trees)} prompts of {len(rows):,}")
        _draw(Path(options.tree), [trees[number] for number in sorted(trees)], asked.policy, of.beta, method)
    return 0


@contextmanager
def _kept(output: Gathered | None, prompts: int, stderr: Console) -> Iterator[None]:
    """Rows kept as they come; if something stops the search, where the finished ones lie."""
    if output is None:
        yield
        return
    try:
        with output:
            yield
    finally:
        if output.part.is_file():
            told = f"{output.numbers:,} of {prompts:,} prompts were finished: their rows are in {output.part}"
            stderr.print(Text(printable(told)))


def _draw(place: Path, trees: list[Explored], policy: str, beta: float | None, method: Method) -> None:
    """The page of the first trees."""
    write_text(place, tree_page(trees, policy=policy, method=method.name, settings=method.settings, beta=beta))
    print(f"written to {place}")


def _checked(options: argparse.Namespace, asked: Asked) -> Gathered | None:
    """What rows are to be kept with. ValueError or OutputError before the work, rather than after it."""
    if options.output is None and options.tree is None and not isinstance(asked.prompts, str):
        raise ValueError("nothing would be kept of these prompts' answers: give --output FILE")
    output = None if options.output is None else _output(options.output, options.overwrite)
    places = [place for place in (options.output, output and output.part, options.tree) if place is not None]
    read = [] if isinstance(asked.prompts, str) else [source.path for source in sources(list(asked.prompts))]
    taken = {Path(path).resolve() for path in read}
    for place in map(Path, places):
        if place.resolve() in taken:
            raise OutputError(f"{place}: is read, or written already; name another file to write")
        taken.add(place.resolve())
    if options.tree is not None:
        _check_file("--tree", Path(options.tree), options.overwrite)
    return output


def _output(place: str, overwrite: bool) -> Gathered:
    try:
        return Gathered(place, overwrite=overwrite)
    except ValueError as error:
        raise OutputError(f"--output {error}") from error


def _check_file(option: str, place: Path, overwrite: bool) -> None:
    """OutputError where a file can not be written, or is there."""
    if place.exists() and not place.is_file():
        raise OutputError(f"{option} {place} is no file; give a file")
    if place.exists() and not overwrite:
        raise OutputError(f"{option} {place}: the file exists; name another, or --overwrite")
    if not place.parent.is_dir():
        raise OutputError(f"{option} {place}: there is no directory {place.parent}; make it, or name another")
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{option} {place} can not be written: {place.parent} is closed to you; name another")


def _tell(found: Found, *, alone: bool) -> None:
    """A prompt's answers on the terminal: whole, if it is the only one."""
    console = Console(highlight=False, soft_wrap=True)
    if not alone:
        console.print(Text(_short(_plain(found.prompt.text), LETTERS["prompt"], end=True), "dim"))
    for row in found.rows:
        said = printable(_plain(row["completion"]).strip())
        console.print(Text(said if alone else _short(said, LETTERS["answer"])))
        console.print(Text(_figures(row), "cyan"))


def _plain(text: Any) -> str:
    """A text, or what the last of its messages says."""
    return text if isinstance(text, str) else str(text[-1].get("content") or "")


def _short(text: str, letters: int, *, end: bool = False) -> str:
    text = printable(" ".join(text.split()))
    if len(text) <= letters:
        return text
    return f"…{text[-letters:]}" if end else f"{text[:letters]}…"


def _figures(row: dict[str, Any]) -> str:
    """What is known of an answer, in a line."""
    reward = "" if row["reward"] is None else f"  reward {row['reward']:+.3f}"
    cut = "" if row["ended"] else ", cut"
    tokens = f"{row['tokens']} token{'s' if row['tokens'] != 1 else ''}{cut}"
    return f"  {row['rank'] + 1}. score {row['score']:.3f}  log π {row['logp']:.3f}{reward}  {tokens}"


def _account(found: list[tuple[dict[str, Any], ...]]) -> str:
    rows = [row for each in found for row in each]
    first = [each[0] for each in found if each]
    evaluations, seconds = (sum(row[name] for row in first) for name in ("evaluations", "seconds"))
    prompts = f"{len(found):,} prompt{'s' if len(found) != 1 else ''}"
    answers = f"{len(rows):,} answer{'s' if len(rows) != 1 else ''}"
    return f"{prompts}, {answers}, {evaluations:,.0f} token-evaluations, {seconds:.1f} s"
