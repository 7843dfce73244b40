"""softq verify [--method M] [--law L] [--json] [--draw FILE] | --model M [--reference R] --data FILE …"""

import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from softq.cli.flags import flags, of_the_call, parser_of
from softq.cli.parser import Parser
from softq.cli.printable import printable
from softq.cli.show import Show
from softq.data.store import write_text
from softq.objectives import METHODS
from softq.training.events import Note
from softq.training.methods import nearest
from softq.training.settings import Call, Settings, build, flag
from softq.verify.contract import CONTRACT
from softq.verify.draw import tree_svg
from softq.verify.examples import EXAMPLE_LAWS
from softq.verify.law import Finding, Law, Result, checked
from softq.verify.line import Line
from softq.verify.model import READ, on_model
from softq.verify.model_laws import MODEL_LAWS
from softq.verify.suite import METHOD_LAWS, TABLE_LAWS, examples, methods, named, one_thread, spelled, theory

DESCRIPTION = (
    "Without --model: the laws of the theory on token trees small enough to enumerate, and the laws of every method on "
    "them, against exact answers. With --model: what must hold of your own model and the first rows of your data before "
    "anything is trained. With --model, every setting of softq train is one here too; with --method alone, the method's own."
)


def run(words: list[str]) -> int:
    """Check the laws, show what was found; 1 if any is red."""
    parser = Parser(prog="softq verify", description=DESCRIPTION)
    parser.add_argument(
        "--method", metavar="M", help="of the contract, or package.module:function [all; with --model dpo]"
    )
    parser.add_argument("--law", metavar="L", help="one law by its name, such as fixed-point")
    parser.add_argument("--json", action="store_true", help="every result as JSON")
    parser.add_argument("--draw", metavar="FILE", help="write the theory as a picture (SVG) of a token tree, and stop")
    parser.add_argument("--model", metavar="DIR", help="check this model: a directory, or a name on the hub")
    parser.add_argument(
        "--reference", metavar="DIR", help="with --model: the reference [the model itself, as it starts]"
    )
    parser.add_argument("--data", nargs="+", metavar="FILE", help="with --model: preference data, as of softq train")
    parser.add_argument("--rows", type=int, metavar="N", help="with --model: how many data records to check on [8]")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that a model repository brings")
    own, rest = parser.parse_known_args(words)
    if other := [word for word in rest if word.partition("=")[0].replace("_", "-") in of_the_call()]:
        raise ValueError(f"{other[0]}: an option of softq train, which softq verify does not read; leave it out")
    if own.draw is not None:
        if len(words) > 2:
            raise ValueError("--draw FILE stands alone: it writes the picture and checks nothing")
        _draw(Path(own.draw))
        return 0
    began, notes = time.monotonic(), list[str]()
    with Console(stderr=True).status("checking …"), redirect_stdout(sys.stderr):  # a loss of one's own may print
        if own.model is None:
            with one_thread():
                parts = [part for part in _tables(own, rest) if part]
        else:
            parts = [part for part in [_model(own, rest, notes)] if part]
    if not parts:
        raise ValueError(f"--law {own.law}: {_known(own)}")
    if not own.json:
        Show().all(map(Note, notes))
    report = _as_json if own.json else _as_text
    report(parts, time.monotonic() - began)
    return 0 if all(result.green for part in parts for result in part) else 1


def _draw(path: Path) -> None:
    if path.suffix != ".svg" or (path.exists() and not path.is_file()) or not path.parent.is_dir():
        raise ValueError(
            f"--draw {path}: expected an SVG file to write, in a directory that is there, such as tree.svg"
        )
    write_text(path.resolve(), tree_svg())
    print(f"written to {path}")


def _tables(own: Namespace, rest: list[str]) -> Iterator[list[Result]]:
    for option in ("reference", "data", "rows", "trust_remote_code"):
        if getattr(own, option):
            raise ValueError(f"{flag(option)} is read with --model only")
    if own.method is None:
        if rest:
            raise ValueError(f"{rest[0]}: no such option; softq verify --help lists them")
        yield list(theory(own.law))
        yield list(examples(own.law))
    yield list(methods(_lines(own.method, rest), own.law))


def _lines(name: str | None, rest: list[str]) -> dict[str, Line]:
    """The contract's lines of these names; or any method or sum, with settings of one's own."""
    names = list(CONTRACT) if name is None else name.split(",")
    if not rest and all(one in CONTRACT for one in names):
        return {one: CONTRACT[one] for one in names}
    if len(names) > 1:
        unknown = next((one for one in names if one not in CONTRACT), None)
        what = (
            f"{unknown} is no line of the contract{nearest(unknown, CONTRACT)}"
            if unknown
            else "settings are of one method"
        )
        raise ValueError(f"--method {name}: {what}; several at once are lines of it: {', '.join(CONTRACT)}")
    if names[0] in CONTRACT and names[0] not in METHODS and "+" not in names[0]:
        raise ValueError(
            f"--method {name}: this line has settings of its own; give a method and yours, such as dpo --beta 0.1"
        )
    given = flags(parser_of(names[0]), rest)
    if other := [field for field in given if field in Settings.model_fields]:
        raise ValueError(f"{flag(other[0])}: no setting of {name}; without --model only those are read")
    return {names[0]: Line(build(names[0], {**given, "model": "-", "data": ["-"], "output": "-"})[1])}


def _model(own: Namespace, rest: list[str], notes: list[str]) -> list[Result]:
    """The laws on the user's model; `notes` gets what was read and loaded, as a training run says it."""
    if own.data is None:
        raise ValueError("--model: give --data too, a file of preferences to check it on")
    rows = 8 if own.rows is None else own.rows
    if rows < 2:
        raise ValueError(f"--rows {rows}: expected 2 or more")
    name = own.method or "dpo"
    given = flags(parser_of(name), rest)
    for word in given:
        if word in Settings.model_fields and word not in READ:
            raise ValueError(f"{flag(word)}: softq verify does not read it; leave it out")
    values = {**given, "model": own.model, "data": own.data, "output": "-"}
    values |= {"reference": own.reference} if own.reference is not None else {}
    settings, method, _ = build(name, values)
    laws = named(MODEL_LAWS, own.law)
    if not laws:
        return []
    subject = on_model(name, settings, method, Call(trust_remote_code=own.trust_remote_code), rows=rows)
    which = f"the laws speak of the first {len(subject.records)}, in layout {subject.policy.layout}"
    notes += [*subject.data.notes, *subject.loaded.notes, which]
    return list(checked(laws, subject, own.model))


def _known(own: Namespace) -> str:
    laws: Sequence[Law] = (
        MODEL_LAWS if own.model else METHOD_LAWS if own.method else (*TABLE_LAWS, *EXAMPLE_LAWS, *METHOD_LAWS)
    )
    names = [spelled(law.name) for law in laws]
    return f"no such law here{nearest(own.law, names)}; there are {', '.join(names)}"


def _as_json(parts: Iterable[list[Result]], seconds: float) -> None:
    results = [result for part in parts for result in part]
    laws = {result.law.name: {"holds": result.law.holds, "red": result.law.red} for result in results}
    document = {
        "softq": version("softq"),
        "green": all(result.green for result in results),
        "seconds": round(seconds, 1),
        "laws": laws,
        "results": [_entry(result) for result in results],
    }
    print(json.dumps(document, indent=1, ensure_ascii=False))


def _entry(result: Result) -> dict[str, object]:
    entry: dict[str, object] = {"law": result.law.name, "subject": result.subject, "green": result.green}
    if isinstance(result.finding, str):
        return {**entry, "says_nothing": result.finding}
    error = result.finding.error  # JSON has no infinity, and no nan
    entry |= {"error": error if math.isfinite(error) else str(error), "bound": result.finding.bound}
    return {**entry, "note": result.finding.note}


def _as_text(parts: Sequence[list[Result]], seconds: float) -> None:
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else 120
    for part in parts:
        if len({result.subject for result in part}) > 1:
            _grid(console, part)
        else:
            _list(console, part)
    results = [result for part in parts for result in part]
    red = [result for result in results if not result.green]
    for result in red if len(parts) > 1 or len({result.subject for result in results}) > 1 else ():
        console.print(_red(result))
    found = [result for result in results if isinstance(result.finding, Finding)]
    subjects = len({result.subject for result in results})
    counts = (len(found), "check"), (len({r.law.name for r in found}), "law"), (subjects, "subject")
    checks, laws, on = (f"{count} {what}{'s' * (count != 1)}" for count, what in counts)
    said = f"{checks} of {laws} on {on} in {seconds:.0f} s: "
    verdict = Text(f"{len(red)} red", "bold red") if red else Text("all green", "bold green")
    if not red and (nearest_one := max((r for r in results if _share(r) >= 0), key=_share, default=None)):
        verdict.append(f"; nearest to its bound: {nearest_one.law.name} of {nearest_one.subject}, ", "")
        verdict.append(f"{nearest_one.finding.error:.1e} of {nearest_one.finding.bound:.0e}", "")  # pyright: ignore
    console.print(Text(said).append(verdict))


def _share(result: Result) -> float:
    """The error as a share of its bound; -1 where there is none."""
    finding = result.finding
    return -1.0 if isinstance(finding, str) or not finding.bound else finding.error / finding.bound


def _grid(console: Console, part: list[Result]) -> None:
    """Subjects down, laws across by number; a cell is the power of ten of the largest error."""
    laws = list({result.law.name: result.law for result in part}.values())
    subjects = list(dict.fromkeys(result.subject for result in part))
    found = {(result.subject, result.law.name): result for result in part}
    wide = max(map(len, subjects))
    console.print(Text(" " * wide + "".join(f"{n:>4}" for n in range(1, len(laws) + 1)), "bold"))
    for subject in subjects:
        line = Text(f"{subject:<{wide}}")
        for law in laws:
            line.append(*_cell(found[subject, law.name]))
        console.print(line)
    console.print(Text("largest error as a power of ten; 0: exact; ·: the law says nothing there\n", "dim"))
    legend = Table.grid(padding=(0, 2, 0, 0))
    for number, law in enumerate(laws, 1):
        legend.add_row(f"{number:>3}", Text(law.name, no_wrap=True), Text(law.holds, "dim"))
    console.print(legend)
    console.print()


def _cell(result: Result) -> tuple[str, str]:
    if isinstance(result.finding, str):
        return "   ·", "dim"
    error = result.finding.error
    power = "0" if error == 0 else f"{math.floor(math.log10(error)):d}" if 0 < error < math.inf else "✗"
    return (f"{power:>4}", "green") if result.green else (f"{'✗' + power.strip('✗'):>4}", "bold red")


def _list(console: Console, part: list[Result]) -> None:
    """One subject: a line a law, with what would make it red."""
    longest = max(len(result.law.name) for result in part)
    for result in part:
        if isinstance(result.finding, str):
            console.print(Text(f"  · {result.law.name:<{longest}}  {printable(result.finding)}", "dim"))
            continue
        line = Text("  ✓ " if result.green else "  ✗ ", "bold green" if result.green else "bold red")
        line.append(f"{result.law.name:<{longest}}  ", "" if result.green else "bold")
        line.append(
            f"{result.finding.error:.1e} ≤ {result.finding.bound:.0e}" if result.green else _size(result.finding)
        )
        console.print(line)
        parts = [(printable(result.finding.note), "")] if result.finding.note else []
        if not result.finding.raised:
            parts += [(result.law.holds, "dim"), (f"If red: {result.law.red}", "dim" if result.green else "red")]
        for said, style in parts:
            console.print(Padding(Text(said, style), (0, 0, 0, longest + 6), expand=False))


def _red(result: Result) -> Text:
    assert isinstance(result.finding, Finding)
    line = Text("✗ ", "bold red").append(f"{result.law.name} of {result.subject}: ", "bold")
    note = f"; {printable(result.finding.note)}" if result.finding.note else ""
    return line.append(f"{_size(result.finding)}{note}. ").append(
        "" if result.finding.raised else result.law.red, "red"
    )


def _size(finding: Finding) -> str:
    return "could not be checked" if finding.raised else f"{finding.error:.1e}, more than {finding.bound:.0e}"
