"""softq methods [NAME [settings]] [--pages DIR]: what there is to train with, and the page of each."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from softq.cli.flags import flags, parser_of
from softq.cli.parser import Parser
from softq.cli.printable import printable
from softq.data.store import write_text
from softq.objectives import METHODS
from softq.records import Method
from softq.training.methods import maker
from softq.training.settings import Settings, build, flag
from softq.verify.pages import TAKES, Page, drawn, facts, file_name, index, markdown, page, reads, settings, shape
from softq.verify.suite import one_thread

DESCRIPTION = (
    "Without a name: all methods. With one, its page: formula, paper, what it assumes, where it rests, what TRL's does, when to "
    "choose it, and its settings, which may be given as of softq train."
)
LEGEND = (
    ("takes", "\n".join(f"{name}: {what}." for name, what in TAKES.items() if "+" not in name)),
    ("coupled", "The gradient of a record depends on the others of its step."),
    ("reads", "Beside log π. What reads ref_… loads a reference: --reference, or the model as it starts. "
     "A method that reads further models says so on its page: --models."),
    ("logs", "rewards/* is β log π/π_ref (β log π where no reference is read); scores/* is what the loss trains."),
    ("more", "`softq methods NAME` is the page of a method. Sums such as dpo+sft, and functions of your own, "
     "package.module:function, are methods too."),
)  # fmt: skip


def run(words: list[str]) -> int:
    """The table of all methods, the page of one, or pages as files."""
    parser = Parser(
        prog="softq methods", usage="softq methods [NAME [settings]] [--pages DIR]", description=DESCRIPTION
    )
    parser.add_argument(
        "--pages", metavar="DIR", help="write the page as a file, with its picture; without a name, all pages"
    )
    named = bool(words) and not words[0].startswith("-")
    own, rest = parser.parse_known_args(words[1:] if named else words)
    if named:
        one = _page(words[0], rest)
        _write(own.pages, [one], {}) if own.pages else tell(one)
        return 0
    if rest:
        raise ValueError(f"softq methods takes no {rest[0]!r}; a method's name comes first")
    if own.pages:
        shapes = {
            heading: [page(name, make, make()) for name, make in of.items()] for heading, of in by_shape().items()
        }
        _write(own.pages, [one for of in shapes.values() for one in of], shapes)
        return 0
    Console().print(*tables(Console().width), sep="\n")
    return 0


def by_shape() -> dict[str, dict[str, Callable[..., Method]]]:
    """The methods under the first sentence of the file that each is in."""
    shapes: dict[str, dict[str, Callable[..., Method]]] = {}
    for name, make in METHODS.items():
        shapes.setdefault(shape(make), {})[name] = make
    return shapes


def tables(width: int) -> list[Text | Table]:
    """A table a shape, with the same columns in each, so wide that no word of 21 letters is cut in 80 columns."""
    longest = max(map(len, METHODS))
    wide = [longest, 10, 7 if width < 100 else len("labels, coupled"), 0, 0]
    spare = max(width, 80) - sum(wide) - 2 * (len(wide) - 1)
    wide[3:] = 17 + max(0, spare - 38) // 2, 21 + max(0, spare - 37) // 2
    parts: list[Text | Table] = [_columns(wide)]
    for heading, of in by_shape().items():
        table = _columns(wide)
        table.show_header = False
        for name, make in of.items():
            table.add_row(Text(name, "bold"), *map(Text, row(make)))
        parts += [Text(f"\n{heading}", "bold cyan"), table]
    legend = Table.grid(padding=(0, 2, 0, 0))
    for label, text in LEGEND:
        legend.add_row(Text(label, "bold"), text)
    return [*parts, Text(), legend]


def _columns(wide: Sequence[int]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for heading, width in zip(("method", "arXiv", "takes", "reads", "settings"), wide, strict=True):
        table.add_column(heading, width=width, overflow="fold")
    return table


def row(make: Callable[..., Method]) -> tuple[str, str, str, str]:
    """Paper, what it takes and reads, and settings of one method."""
    method = make()
    takes = method.takes.partition("+")[0] + (", coupled" if method.coupled else "")
    given = " ".join(f"{name}={value}" for name, value in settings(make).items())
    return page("", make, method).paper, takes, " ".join(reads(method)), given


def tell(one: Page) -> None:
    """The page on the terminal."""
    console = Console(highlight=False)
    width = min(console.width, 110)
    console.print(Text(one.name, "bold cyan"))
    for text in (one.head, *one.prose):
        console.print(Padding(Text(printable(text)), (0, 0, 1, 0)), width=width)
    table = Table.grid(padding=(0, 2, 0, 0))
    for label, text in (*one.labelled.items(), *([("", "")] if one.labelled else []), *facts(one)):
        table.add_row(Text(label, "bold"), Text(printable(text)))
    console.print(table, width=width)


def _page(name: str, words: list[str]) -> Page:
    """The page of a method, at settings of one's own."""
    if "+" in name:
        raise ValueError(f"{name} is a sum; its summands have pages: softq methods {name.split('+')[0]}")
    make = maker(name)
    given = flags(parser_of(name), words)
    if other := [field for field in given if field in Settings.model_fields]:
        raise ValueError(f"{flag(other[0])}: no setting of {name}; a page reads only those")
    values: Mapping[str, Any] = {**given, "model": "-", "data": ["-"], "output": "-"}
    _, method, understood = build(name, values)
    return page(name, make, method, {field: understood[field] for field in settings(make)})


def _write(directory: str, pages: Sequence[Page], shapes: Mapping[str, Sequence[Page]]) -> None:
    """A file and a picture a page, and the index of all."""
    place = Path(directory)
    if place.exists() and not place.is_dir():
        raise ValueError(f"--pages {place} is a file; expected a directory, or the name of a new one")
    place.mkdir(parents=True, exist_ok=True)
    with one_thread():
        for one in pages:
            picture, caption = drawn(one)
            write_text(place / f"{file_name(one.name)}.svg", picture)
            write_text(place / f"{file_name(one.name)}.md", markdown(one, caption))
    if shapes:
        write_text(place / "README.md", index(shapes))
    count = f"{len(pages)} pages" if len(pages) > 1 else f"{file_name(pages[0].name)}.md"
    print(f"written to {place}: {count}", file=sys.stdout)
