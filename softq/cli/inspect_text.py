"""The report on a terminal: verdict, numbers, sections, and the most wrong pairs with their tokens in colours."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

from softq.cli.printable import printable
from softq.inspection.colour import ink, shade
from softq.inspection.packed import BLOCK, UNIT, unpacked
from softq.inspection.page import LEVELS, SIGNS
from softq.inspection.report import Report

COLOURS = {"expected": "green", "watch": "yellow", "act": "red"}
WIDE = 100  # columns of text
PAIRS = 3  # that are shown
FIGURES = 12  # of a section
PROMPT = 160  # characters of it
TOKENS = 300  # of a completion
ROWS = 5  # of the data that a finding names


def tell(report: Report, console: Console) -> None:
    """Print everything."""
    coloured = console.color_system is not None and not console.no_color
    for line in lines(report, coloured=coloured):
        console.print(line, width=min(console.width, WIDE), soft_wrap=False)


def lines(report: Report, *, coloured: bool) -> Iterator[Text | Table | Padding]:
    """The whole report, a part at a time; without colours the strong tokens carry their numbers."""
    where = dict(zip(*(report["pairs"]["columns"][name] for name in ("record", "where")), strict=True))
    several = [report, report["other"]] if report["other"] else [report]
    for each in several:
        yield Text(printable(each["title"]), "bold")
        yield from _verdict(each["verdict"])
    if report["agreement"]:
        yield from _section(report["agreement"], where)
    for section in report["sections"]:
        yield from _section(section, where)
    for check in report["ledger"]["checks"]:
        yield _finding(check, {})
    if report["pairs"]["columns"]["record"]:
        yield from _pairs(report, coloured)


def _verdict(of: Mapping[str, Any]) -> Iterator[Text | Table]:
    yield Text(f"{LEVELS[of['level']]}. ", f"bold {COLOURS[of['level']]}").append(printable(of["told"]), "not bold")
    if of["act"]:
        yield Text(f"What to do: {printable(of['act'])}")
    yield _table(of["numbers"])
    yield Text()


def _section(of: Mapping[str, Any], where: Mapping[int, str]) -> Iterator[Text | Table | Padding]:
    yield Text(of["title"], "bold cyan")
    yield Text(of["told"], "dim")
    yield from (_finding(finding, where) for finding in of["findings"])
    if of["figures"]:
        yield _table(of["figures"][:FIGURES])
    if len(of["figures"]) > FIGURES:
        yield Text(f"and {len(of['figures']) - FIGURES} more: --json has all", "dim")
    yield Text()


def _finding(of: Mapping[str, Any], where: Mapping[int, str]) -> Padding:
    text = Text(f"{SIGNS[of['level']]}: ", COLOURS[of["level"]]).append(printable(of["told"]), "default")
    if of["act"]:
        text.append(f"\n{printable(of['act'])}")
    named = [printable(where.get(record) or f"record {record}") for record in of["records"][:ROWS]]
    if named:
        more = ", …" if len(of["records"]) > ROWS else ""
        text.append(f"\n{', '.join(named)}{more}", "dim")
    return Padding(text, (0, 0, 0, 2))


def _table(figures: Sequence[Mapping[str, Any]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for figure in figures:
        table.add_row(Text(value(figure), "bold"), Text(interval(figure), "dim"), Text(printable(figure["meaning"])))
    return table


def value(figure: Mapping[str, Any]) -> str:
    """A figure's number with its unit."""
    return _number(figure["value"], figure["unit"], unit=True)


def interval(figure: Mapping[str, Any]) -> str:
    """Its interval, or nothing."""
    ends = figure["interval"]
    if not ends or None in ends:
        return ""
    return f"({' to '.join(_number(end, figure['unit']) for end in ends)})"


def _number(number: float | None, of: str, *, unit: bool = False) -> str:
    if number is None:
        return "–"
    if of == "share":
        return f"{number:.1%}"
    return f"{number:.3g}{f' {of}' if unit and of else ''}"


def _pairs(report: Report, coloured: bool) -> Iterator[Text]:
    """The first pairs of the first order, tokens coloured by reward, or by log π where there is none."""
    order, columns = report["pairs"]["orders"][0], report["pairs"]["columns"]
    by = columns[order["by"]]
    known = [n for n, number in enumerate(by) if number is not None]
    first = sorted(known, key=lambda n: by[n], reverse=order["descending"])[:PAIRS]
    held = {block: unpacked(report["blocks"][block]) for block in {n // BLOCK for n in first}}
    pairs = [held[n // BLOCK][n % BLOCK] or {} for n in first]
    strongest = max((abs(v or 0) for pair in pairs for side in pair.values() for v in colours(side)), default=0)
    yield Text(f"{order['name'].capitalize()}: {order['told']}", "bold cyan")
    yield Text(_legend(report, strongest / UNIT, coloured), "dim")
    for n, pair in zip(first, pairs, strict=True):
        numbers = f"{order['by'].replace('_', ' ')} {by[n]:.3g}"
        yield Text(f"\n{printable(columns['where'][n] or '')}  {numbers}", "bold")
        yield Text(_short(columns["prompt"][n] or ""), "dim")
        for name, side in pair.items():
            label = f"{name:>8} " if len(pair) > 1 else ""
            yield Text(label, "bold").append_text(_tokens(side, report["strings"], strongest or 1, coloured))


def _legend(report: Report, strongest: float, coloured: bool) -> str:
    compared = report["facts"]["reference"] is not None
    unit = f" in {report['facts']['unit']}" * (report["facts"]["unit"] != "reward")
    what = f"a token's reward{unit}" if compared else "a token's log π in nats"
    if coloured:
        return f"colour: {what}, red below 0, blue above, full at {strongest:.3g}"
    return f"[number]: {what}, where it is at least half of the largest, {strongest:.3g}"


def colours(side: Mapping[str, Any]) -> Sequence[int | None]:
    """What a completion's tokens are coloured by, in units of 1e-4."""
    return side["reward"] or side["logp"]


def _tokens(side: Mapping[str, Any], strings: Sequence[str], strongest: float, coloured: bool) -> Text:
    """Tokens on their colours, or with their numbers."""
    text = Text()
    for number, of in zip(side["text"][:TOKENS], colours(side)[:TOKENS], strict=True):
        said = printable(str(strings[number]).replace("\n", "⏎").replace("\t", "⇥"))
        colour = shade(of or 0, strongest)
        style = Style(color=ink(colour), bgcolor="#{:02x}{:02x}{:02x}".format(*colour)) if coloured else ""
        strong = not coloured and abs(of or 0) >= strongest / 2
        text.append(f"{said}[{(of or 0) / UNIT:+.2g}]" if strong else said, style)
    left = len(side["text"]) - TOKENS
    return text.append(f" … and {left:,} tokens more", "dim") if left > 0 else text


def _short(text: str) -> str:
    line = " ".join(text.split())
    return printable(line if len(line) <= PROMPT else f"…{line[-PROMPT:]}")
