"""The conformance vectors, odd steps by hand: TRL gives what they say, or there is a reason. And the tables in the docs."""

import re
from pathlib import Path

from table import of_cases, of_vectors
from trainers import Trainers
from vectors import verdicts

ROOT = Path(__file__).parents[2]


def test_every_difference_has_a_reason(trainers: Trainers) -> None:
    found = list(verdicts(trainers))
    assert len(found) > 50
    assert [(each.entry["name"], each.asked, each.off) for each in found if each.says == "UNEXPLAINED"] == []


def test_the_docs_show_the_tables(trainers: Trainers) -> None:
    """Line by line, but for the numbers."""
    for file, made in (("docs/parity.md", of_cases), ("conformance/README.md", of_vectors)):
        shown = {unnumbered(line) for line in (ROOT / file).read_text(encoding="utf-8").splitlines()}
        wanted = [unnumbered(line) for line in "\n".join(made(trainers)).splitlines()]
        assert [line for line in wanted if line not in shown] == [], file


def unnumbered(line: str) -> str:
    return re.sub(r"\d(\.\d)?e[+-]\d+", "…", line)
