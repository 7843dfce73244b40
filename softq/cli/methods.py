"""softq methods: what there is to train with."""

import inspect
import re

from rich.console import Console
from rich.table import Table

from softq.objectives import METHODS
from softq.records import Method


def run(words: list[str]) -> int:
    """One row a method, from what makes it."""
    if words and words[0] not in {"-h", "--help"}:
        raise ValueError(f"softq methods takes no {words[0]!r}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("method", "paper", "takes", "needs", "settings", "couples rows", "rewards/*"):
        table.add_column(heading, overflow="fold")
    for name, make in METHODS.items():
        table.add_row(*row(name, make(), inspect.getdoc(make) or "", str(inspect.signature(make))))
    Console(highlight=False).print(table)
    return 0


def row(name: str, method: Method, document: str, signature: str) -> tuple[str, ...]:
    """The cells of one method."""
    paper = re.search(r"arXiv (\d{4}\.\d{5})", document)
    settings = re.sub(r"^\(\*?,? ?|\) -> .*$", "", signature)
    needs = ", ".join(readout.name for readout in method.needs) or "no reference"
    referenced = any("ref" in readout.models for readout in method.needs)
    reward = "β · log π/π_ref" if referenced else "β · log π"
    return (
        name,
        paper.group(1) if paper else "–",
        method.takes,
        needs,
        re.sub(r": (float|int|bool|str) = ", "=", settings),
        "yes" if method.coupled else "no",
        reward,
    )
