"""softq methods: what there is to train with."""

import inspect
import re
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from softq.objectives import METHODS
from softq.records import Method

LEGEND = """
takes    pairs: prompt, chosen, rejected. groups: prompt, completions, scores.
         labels+mismatched: prompt, completion, label; or pairs, as good and bad.
         rows: prompt, completion, or messages; or of the others the best ones.
reads    beside log π. What reads ref_… loads a reference: --reference, or the
         model as it starts.
coupled  the gradient of a record depends on the others of its step.

In the logs rewards/* is β log π/π_ref (β log π where no reference is read), and
scores/* is what the loss trains. Sums such as dpo+sft and functions of your
own, package.module:function, are methods too."""


def run(words: list[str]) -> int:
    """One row a method, read off the method and the signature of what makes it."""
    if words and words[0] not in {"-h", "--help"}:
        raise ValueError(f"softq methods takes no {words[0]!r}")
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("method", "arXiv", "takes", "reads", "settings"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "method")
    for name, make in METHODS.items():
        table.add_row(*row(name, make))
    console = Console(highlight=False)
    console.print(table)
    console.print(LEGEND, markup=False)
    return 0


def row(name: str, make: Callable[..., Method]) -> tuple[str, ...]:
    """The cells of one method."""
    method = make()
    paper = re.search(r"arXiv (\d{4}\.\d{5})", inspect.getdoc(make) or "")
    parameters = inspect.signature(make).parameters.values()
    settings = [f"{p.name}={p.default:g}" if type(p.default) is float else f"{p.name}={p.default}" for p in parameters]
    reads = [readout.name for readout in method.needs] + [column for column in method.columns if column != "weight"]
    return (
        name,
        paper.group(1) if paper else "",
        method.takes + (", coupled" if method.coupled else ""),
        ", ".join(reads),
        " ".join(settings),
    )
