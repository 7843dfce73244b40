"""All laws of tables at once: the theory, and methods; what `softq verify` runs and what a training run is stamped with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, TypeVar

import torch

from softq.records import Method
from softq.verify.block_laws import BLOCK_LAWS
from softq.verify.end_laws import END_LAWS
from softq.verify.examples import EXAMPLE_LAWS
from softq.verify.law import Finding, Law, Result, checked
from softq.verify.line import Line
from softq.verify.pool_laws import POOL_LAWS
from softq.verify.reading_laws import READING_LAWS
from softq.verify.search_laws import SEARCH_LAWS
from softq.verify.step_laws import STEP_LAWS
from softq.verify.theory import TABLES, THEORY_LAWS, Table
from softq.verify.value_laws import VALUE_LAWS

METHOD_LAWS: tuple[Law[Line], ...] = (*STEP_LAWS, *END_LAWS)
"""Every law of a method on tables."""

TABLE_LAWS: tuple[Law[Table], ...] = (*THEORY_LAWS, *READING_LAWS, *SEARCH_LAWS, *POOL_LAWS, *BLOCK_LAWS, *VALUE_LAWS)
"""Every law of the theory, of what is read of a policy, and of search with and without values, on tables."""

Some = TypeVar("Some", bound=Law[Any])


def theory(law: str | None = None) -> Iterator[Result]:
    """The laws of the theory on every table; or one of them."""
    for name, table in TABLES.items():
        yield from checked(named(TABLE_LAWS, law), table, name)


def examples(law: str | None = None) -> Iterator[Result]:
    """The laws of small examples; or one of them."""
    yield from checked(named(EXAMPLE_LAWS, law), None, "small examples")


def methods(lines: dict[str, Line], law: str | None = None) -> Iterator[Result]:
    """The laws of a method on every line; or one of them."""
    for name, line in lines.items():
        yield from checked(named(METHOD_LAWS, law), line, name)


def named(laws: Sequence[Some], name: str | None) -> Sequence[Some]:
    """The laws of this name, which may be none; all of them without one."""
    return laws if name is None else [law for law in laws if spelled(law.name) == spelled(name)]


def spelled(name: str) -> str:
    """A law's name as one word, as it is given on the command line."""
    return name.lower().replace(" ", "-").replace("*", "")


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for a moment: tables are so small that more of them only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def stamp(method: Method) -> dict[str, Any]:
    """What a training run's manifest says of its method: which laws were checked, with its own settings, and what was red."""
    with torch.random.fork_rng(devices=[]), one_thread():
        results = list(checked(METHOD_LAWS, Line(method), "method"))
    found = [(result, result.finding) for result in results if isinstance(result.finding, Finding)]
    return {
        "softq": version("softq"),
        "laws": len(found),
        "red": {result.law.name: _why(result.law, finding) for result, finding in found if not finding.green},
        "not_stated": [result.law.name for result in results if isinstance(result.finding, str)],
    }


def _why(law: Law[Line], finding: Finding) -> str:
    """What stands in a record of a law that is red: what it means, or what kept it from being checked."""
    return f"could not be checked: {finding.note}" if finding.raised else law.red
