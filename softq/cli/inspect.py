"""softq inspect DIR [--compare DIR2] [--output FILE] [--text | --json]"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from softq.cli.inspect_text import tell
from softq.cli.parser import Parser
from softq.cli.printable import printable
from softq.data.store import write_text
from softq.inspection.page import html
from softq.inspection.report import Report, Subject, report
from softq.reading.inspected import opened
from softq.reading.tables import Part
from softq.training.events import Note, OutputError
from softq.training.methods import maker, method_names
from softq.verify.pages import page

USAGE = "softq inspect DIR [--compare DIR2] [--output FILE] [--text | --json]"
DESCRIPTION = """Show what a policy learned, token by token and pair by pair, as one page that needs nothing else: is it healthy,
what changed, what was learned, what is wrong with the data. DIR is the output of softq score, or of softq train, whose held-out
records (512 at most) are scored first, into DIR/inspect."""
PAGE = "report.html"
PACKED = ("strings", "blocks")


def run(words: list[str]) -> int:
    """Open, measure, write or print."""
    options = _parser().parse_args(words)
    if options.text and options.output:
        raise ValueError("--text prints to the terminal; leave out --output, or --text")
    place = None if options.text or (options.json and not options.output) else _place(options)
    subject = _opened(Path(options.directory))
    other = _opened(Path(options.compare)) if options.compare else None
    found = report(subject.shelf, subject.run, other)
    if options.text:
        tell(found, Console(highlight=False, soft_wrap=True))
    elif place is None:
        print(_json(found))
    else:
        _write(place, _json(found) + "\n" if options.json else html(found))
        print(f"written to {place}")
    return 0


def _place(options: Any) -> Path:
    """The file that is to be written. OutputError where it can not be: better before the work than after."""
    place = Path(options.output or Path(options.directory) / PAGE)
    if not options.output and not place.parent.is_dir():
        return place  # what is wrong with DIR is said in its place
    if place.is_dir():
        raise OutputError(f"--output {place} is a directory; give a file")
    if place.exists() and not place.is_file():
        raise OutputError(f"--output {place} is a device or a pipe, no file; give a file, or --json for stdout")
    if not place.parent.is_dir():
        raise OutputError(f"--output {place}: there is no directory {place.parent}; make it, or give another")
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{place} can not be written: {place.parent} is closed to you; give --output FILE")
    return place


def _write(place: Path, text: str) -> None:
    try:
        write_text(place, text)
    except OSError as error:
        raise OutputError(f"{place} can not be written: {error.strerror}; give --output FILE") from error


def _opened(directory: Path) -> Subject:
    """The scores, made if need be; what is done meanwhile is said on stderr."""
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    for event in opened(directory):
        if isinstance(event, Note):
            console.print(printable(event.text))
        elif isinstance(event, Part):
            console.print(f"{event.done:,} of {event.of:,} records scored")
        else:
            run = event.run
            return event if run is None else event._replace(run=run._replace(method=_method(run.settings)))
    raise AssertionError("opened ends with a Subject")


def _method(settings: Mapping[str, Any]) -> dict[str, str] | None:
    """What the page says of the method of a run: its name and formula, and where to read more. None of a method that is gone."""
    if "method" not in settings:
        return None
    name, formulas = settings["method"], []
    for part in method_names(name):
        try:
            make = maker(part)
            formulas.append(page(part, make, make()).formula)
        except (ValueError, TypeError):  # a user's own, not importable from here, or without defaults
            continue
    return {"name": name, "formula": "; ".join(formulas), "page": f"softq methods {method_names(name)[0]}"}


def _json(found: Report) -> str:
    """Everything but the tokens."""
    kept = {name: value for name, value in found.items() if name not in PACKED}
    if kept["other"]:
        kept["other"] = {name: value for name, value in kept["other"].items() if name not in PACKED}
    return json.dumps(kept, indent=1, ensure_ascii=sys.stdout.encoding.lower() != "utf-8", allow_nan=False)


def _parser() -> Parser:
    parser = Parser(prog="softq inspect", usage=USAGE, description=DESCRIPTION)
    parser.add_argument("directory", metavar="DIR", help="the output of softq score, or of softq train")
    parser.add_argument("--compare", metavar="DIR2", help="another policy's, to set beside it: of the same data")
    parser.add_argument("--output", metavar="FILE", help=f"the file to write [DIR/{PAGE}]")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--text", action="store_true", help="on the terminal, in place of a page")
    kind.add_argument("--json", action="store_true", help="figures, findings and pairs as JSON, to stdout or --output")
    return parser
