"""softq study NAME --output DIR [--seeds 0-2]; of the family also [--methods a,b]"""

import os
from pathlib import Path

from softq.cli.parser import Parser
from softq.cli.show import Show
from softq.objectives import METHODS
from softq.records import valued
from softq.studies.family import family
from softq.studies.frontier import frontier
from softq.studies.generalisation import generalisation
from softq.studies.r_to_q import r_to_q
from softq.studies.seeds import seeds_of
from softq.training.methods import nearest

STUDIES = {
    "family": "every method in one small world: reward, KL, length, likelihood, ranking, and what papers say of them",
    "generalisation": "an implicit reward (dpo) and an explicit one (rm) of the same pairs: which is right under shift",
    "r-to-q": "credit, search and falling likelihood, as the paper From r to Q* found them, with controls",
    "frontier": "two values of one model, composed at decode time: right names against brevity, by their weights",
}
MOST = 8  # processes
POLICIES = [name for name, make in METHODS.items() if not valued(make())]
"""The methods that train a policy, which can be asked for answers."""


def run(words: list[str]) -> int:
    """A study, its progress, and where its table and its picture are."""
    parser = Parser(prog="softq study", description=_described())
    parser.add_argument("study", choices=list(STUDIES), help="which one")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="where to write; a study that was stopped goes on"
    )
    parser.add_argument("--seeds", default="0-2", metavar="S", help="such as 0,1,2 or 0-4; a seed draws a world [0-2]")
    parser.add_argument("--methods", metavar="M", help="of family, such as dpo,ipo: the trainings of these alone [all]")
    options = parser.parse_args(words)
    if options.study != "family" and options.methods is not None:
        raise ValueError(f"--methods is read by family; {options.study} has methods of its own: leave it out")
    methods = [*POLICIES] if options.methods is None else _named(options.methods)
    directory = Path(options.output)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--output {directory} is a file; give a directory")
    show = Show()
    processes = min(os.cpu_count() or 1, MOST)
    seeds = seeds_of(options.seeds)
    of = {"generalisation": generalisation, "frontier": frontier, "r-to-q": r_to_q}
    for event in (
        family(directory, seeds, methods, processes=processes)
        if options.study == "family"
        else of[options.study](directory, seeds, processes=processes)
    ):
        show.one(event)
    return 0


def _described() -> str:
    told = "; ".join(f"{name}: {what}" for name, what in STUDIES.items())
    return f"Whole experiments, each with a table and a picture. {told}."


def _named(text: str) -> list[str]:
    """Methods by their names, each once."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name in METHODS and name not in POLICIES:
            raise ValueError(f"--methods: {name} trains a reward model, which answers nothing; leave it out")
        if name not in METHODS:
            raise ValueError(f"--methods: no method {name!r}{nearest(name, METHODS)}; `softq methods` lists them")
    return names
