"""The page of a method, made from its docstring, its signature, its line of the contract and its curves.

A docstring is a first paragraph (name, paper, formula), free ones, and four that begin with a label: Assumes, Rests, TRL and
Choose it. A reward function says in its docstring what scores/* is, and its unit; of `implicit` that is known.
"""

import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from softq.inspection.plot import Kind, Panel, Series, plot
from softq.records import COLUMNS, Method, implicit, valued
from softq.verify.contract import CONTRACT
from softq.verify.curves import Curve, Curves, curves
from softq.verify.line import Line

LABELS = ("Assumes", "Rests", "TRL", "Choose it")
PARAGRAPH = re.compile(rf"\n\s*\n|\n(?=(?:{'|'.join(LABELS)}):\s)")
"""Where a paragraph begins: after an empty line, or at a label."""
TAKES: Mapping[str, str] = {
    "pairs": "prompt, chosen, rejected",
    "groups": "prompt, completions, scores; or pairs, with scores 1 and 0",
    "labels": "prompt, completion, label; or pairs, as good and bad",
    "labels+mismatched": "prompt, completion, label; or pairs, as good and bad; and completions under other prompts of the step",
    "rows": "prompt, completion, or messages; of pairs, labels and groups the best ones",
}
SYMBOLS = (
    "L(y) = Σ_t log π/π_ref of a completion, m = L(chosen) - L(rejected), h(z) = -log σ(z), LP(y) = Σ_t log π, |y| the number "
    "of its tokens."
)
ARXIV = "https://arxiv.org/abs/"
PAPER = re.compile(r"arXiv (\d{4}\.\d{4,5})")


class Page(NamedTuple):
    """What is known of a method."""

    name: str
    method: Method
    line: Line  # of the contract; one without a name where it is not in the list with these settings
    settings: Mapping[str, str]
    head: str  # the first line of the docstring
    prose: tuple[str, ...]  # its free paragraphs
    labelled: Mapping[str, str]  # label -> paragraph, without the label; those of LABELS that are there

    @property
    def paper(self) -> str:
        """The arXiv number of the first line, or else the first one in the prose, or nothing."""
        found = PAPER.search(" ".join([self.head, *self.prose]))
        return found[1] if found else ""

    @property
    def formula(self) -> str:
        """The first line after its name and paper."""
        return (self.head.partition(": ")[2] or self.head).rstrip(".")


def page(name: str, make: Callable[..., Method], method: Method, given: Mapping[str, object] | None = None) -> Page:
    """The page of what `make` made: with these settings, or else its defaults."""
    whole = inspect.getdoc(make) or "It has no docstring."
    head, *rest = (" ".join(paragraph.split()) for paragraph in PARAGRAPH.split(whole))
    labelled = {label: text[len(label) + 2 :] for text in rest for label in LABELS if text.startswith(f"{label}: ")}
    prose = tuple(text for text in rest if not any(text.startswith(f"{label}:") for label in LABELS))
    line = Line(method) if given and settings(make, given) != settings(make) else _line(name, method)
    return Page(name, method, line, settings(make, given), head, prose, labelled)


def _line(name: str, method: Method) -> Line:
    """The line of the contract that speaks of a method with its defaults: one with a fixed point if and only if it has one."""
    kin = [line for line in CONTRACT.values() if line.method.terms[0].name == method.terms[0].name]
    of = [line for line in (*(CONTRACT[n] for n in [name] if n in CONTRACT), *kin) if name in CONTRACT]
    return next(
        (line for line in of if (line.method.fixed_point is None) == (method.fixed_point is None)), Line(method)
    )


def settings(make: Callable[..., Method], given: Mapping[str, object] | None = None) -> dict[str, str]:
    """The settings of a method and their values, the defaults where none are given."""
    values = {name: parameter.default for name, parameter in inspect.signature(make).parameters.items()}
    values = {**values, **(given or {})}
    return {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in values.items()}


def shape(make: Callable[..., Method]) -> str:
    """The file a method is in, in its own words: the first sentence."""
    whole = inspect.getdoc(sys.modules[make.__module__]) or ""
    return re.split(r"(?<=[.:])\s", " ".join(whole.split("\n\n")[0].split()), maxsplit=1)[0].rstrip(".:")


def reads(method: Method) -> list[str]:
    """What a loss reads beside log π: readouts and columns, the longest last. `weight` is how much a pair counts."""
    return sorted([*(readout.name for readout in method.needs), *(c for c in method.columns if c != "weight")], key=len)


def facts(page: Page) -> Iterator[tuple[str, str]]:
    """Label and sentence, of what is read off the method and the contract."""
    method = page.method
    yield "Settings", ", ".join(f"{name}={value}" for name, value in page.settings.items()) or "none"
    yield "Takes", f"{method.takes.partition('+')[0]}: {TAKES.get(method.takes, 'unknown')}"
    yield "Reads", "; ".join(_read(method)) or "nothing beside log π: no reference is loaded"
    coupled = "yes: the gradient of a record depends on the others of its step; how a step is cut changes no number"
    yield "Coupled", coupled if method.coupled else "no: a record's gradient is its own"
    yield "Logs", scored(method)
    own = "" if page.line.name else "".join(f" --{n.replace('_', '-')} {value}" for n, value in page.settings.items())
    yield "Verify", f"`softq verify --method {page.name}{own}`: {'; '.join(stated(page.line))}"


def _read(method: Method) -> Iterator[str]:
    for readout in method.needs:
        policy = "the model" if valued(method) else "the policy"
        of = " and ".join({"ref": "the reference", "policy": policy}.get(m, f"model {m!r}") for m in readout.models)
        yield f"{readout.name}, of {of}"
    for name in method.columns:
        if name in COLUMNS:
            yield f"column {name} ({COLUMNS[name].measure}): {COLUMNS[name].meaning}"


def scored(method: Method) -> str:
    """What rewards/* and scores/* are in the logs, with their unit."""
    if method.takes == "rows":
        return "logps/chosen, nats a completion; logps/token, nats a token"
    if valued(method):
        return "rewards/* is r of a completion, in reward; scores/*, what the loss trains, is the same; there is no logps/*"
    ratio = "log π/π_ref" if any(readout.name == "ref_logp" for readout in method.needs) else "log π"
    rewards = f"rewards/* is β {ratio} of a completion, in reward"
    if method.reward is implicit:
        return f"{rewards}; scores/*, what the loss trains, is the same"
    what = " ".join((inspect.getdoc(method.reward) or "the method's own").split("\n\n")[0].split())
    what = what.partition(". ")[0].rstrip(".")
    what = re.sub(r"^\[B\]:? ?|(?<= )\[B\] ", "", what)
    return f"{rewards}; scores/*, what the loss trains, is β times this: {what}"


def stated(line: Line) -> Iterator[str]:
    """What is stated of where a method ends, in parts of a sentence; a line of the contract at the settings it has there."""
    rest = line.method.fixed_point
    if not line.name:
        yield f"a fixed point, of {rest.population}, to be proved" if rest else "nothing is stated of these settings"
        return
    yield f"line {line.name} of the contract (docs/lab.md), β = {line.method.beta:g}"
    if rest is not None:
        yield f"the gradient over a whole population ({rest.population}) is 0 where it states, and descent ends there"
    elif line.why:
        yield f"it has no fixed point: {line.why}"
    if line.at_reference is not None:
        yield f"the loss is {line.at_reference:.4g} where the policy is the reference"
    if line.rests is not None:
        ends = f"rests at {line.rests:.4g} nats" if math.isfinite(line.rests) else "grows for ever"
        yield f"the margin of a pair that is always labelled the same way {ends}"
    if line.free is not None:
        yield f"where no chain of pairs connects completions, the loss {'leaves' if line.free else 'holds'} the mass between them"


def drawn(page: Page) -> tuple[str, str]:
    """The picture of a method, an SVG, and what its dots are."""
    found = curves(page.method)
    unit, units = ("reward", "in reward") if valued(page.method) else ("nat", "nats")
    within = "" if found.axis.endswith("log π of the completion") else f"; ±{found.reach:g}/β, β = {found.beta:g}"
    panels = [
        Panel(title, list(_series(page.name, found, pick)))
        for title, pick in (("loss", lambda curve: curve.loss), (f"gradient, per {unit}", lambda curve: curve.gradient))
    ]
    label, title = f"Loss and gradient of {page.name} against {found.axis}", page.name if len(found.own) > 1 else ""
    picture = plot(panels, axis=f"{found.axis}, {units}{within}", label=label, title=title)
    rests = [f"{curve.name} {x:.4g}".strip() for curve in found.own for x in curve.rests]
    return picture, f"Dots: where descent comes to rest, at {', '.join(rests)} {units}." if rests else ""


def _series(name: str, found: Curves, pick: Callable[[Curve], Sequence[float]]) -> Iterator[Series]:
    kinds: Sequence[Kind] = ("first", "second")
    for curve, kind in zip(found.own, kinds, strict=False):
        dots = [(x, _at(curve.x, pick(curve), x)) for x in curve.rests]
        yield Series(curve.name or name, curve.x, pick(curve), kind, dots)
    of_like_size = 1 / 15 < _height(found.dpo) / (_height(found.own) or 1) < 2.5
    for curve in found.dpo if name != "dpo" and of_like_size else []:
        yield Series("dpo", curve.x, pick(curve), "other")


def _height(drawn: Sequence[Curve]) -> float:
    """From the least loss to the largest."""
    losses = [loss for curve in drawn for loss in curve.loss] or [0.0]
    return max(losses) - min(losses)


def _at(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """The height of the drawn line at x."""
    after = next(n for n in range(1, len(xs)) if xs[n] >= x)
    share = (x - xs[after - 1]) / (xs[after] - xs[after - 1])
    return ys[after - 1] + share * (ys[after] - ys[after - 1])


def markdown(page: Page, caption: str) -> str:
    """The page as a file beside its picture."""
    file = file_name(page.name)
    lines = [f"# {page.name}", linked(page.head), f"![Loss and gradient of {page.name}]({file}.svg)"]
    lines += [caption] if caption else []
    lines += map(linked, page.prose)
    lines += [f"**{label}** {linked(text)}" for label, text in page.labelled.items()]
    rows = [f"| {label} | {linked(text).replace('|', chr(92) + '|')} |" for label, text in facts(page)]
    lines += ["\n".join(["| | |", "|---|---|", *rows]), linked(SYMBOLS)]
    return "\n\n".join(lines) + "\n"


def index(shapes: Mapping[str, Sequence[Page]]) -> str:
    """All pages by shape, each with its picture."""
    lines = [
        "# Training methods",
        "Made by `softq methods --pages docs/methods` from docstrings, signatures, contract lines and the losses themselves; a "
        "test holds these files to the code. `softq methods NAME` shows a page in the terminal, also of a method of your own.",
        "A picture shows loss and gradient with default settings, by the code that trains, on a table of one token: against the "
        "margin or, where the loss reads more than the margin, against each side by itself; over ±6/β nats, or as much less as "
        "all that happens. Grey and broad is dpo with the same β; a dot is where descent comes to rest. Losses without a "
        "reference, or of a whole vocabulary, are drawn on two tokens, where one gains what the other loses.",
        linked(SYMBOLS),
    ]
    for heading, pages in shapes.items():
        rows = [
            f"| [{p.name}]({file_name(p.name)}.md) | {f'[{p.paper}]({ARXIV}{p.paper})' if p.paper else ''} "
            f"| {_cell(p.formula)} | {p.method.takes}{', coupled' if p.method.coupled else ''} |"
            for p in pages
        ]
        lines += [f"## {linked(heading)}", "\n".join(["| method | arXiv | loss | takes |", "|---|---|---|---|", *rows])]
        lines.append("\n".join(f"[![{p.name}]({file_name(p.name)}.svg)]({file_name(p.name)}.md)" for p in pages))
    return "\n\n".join(lines) + "\n"


def file_name(name: str) -> str:
    """A method's name as a file's: that of a function of one's own has no colon."""
    return re.sub(r"[^\w.-]", ".", name)


def linked(text: str) -> str:
    """Plain text as Markdown: what would be mark-up is escaped outside `code`, and papers are links."""
    parts = text.split("`")
    parts[::2] = (re.sub(r"[*<~\[\]\\]|(?<!\w)_|_(?!\w)", r"\\\g<0>", part) for part in parts[::2])
    return PAPER.sub(rf"[arXiv \1]({ARXIV}\1)", "`".join(parts))


def _cell(text: str) -> str:
    return linked(text).replace("|", "\\|")
