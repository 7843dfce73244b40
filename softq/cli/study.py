"""softq study family --output DIR [--seeds 0-2] [--methods a,b]"""

import os
from pathlib import Path

from softq.cli.parser import Parser
from softq.cli.show import Show
from softq.objectives import METHODS
from softq.studies.family import family
from softq.studies.seeds import seeds_of
from softq.training.methods import nearest

STUDIES = {
    "family": "every method in one small world: reward, KL, length, likelihood, ranking, and what papers say of them"
}
MOST = 8  # processes


def run(words: list[str]) -> int:
    """A study, its progress, and where its table and its picture are."""
    parser = Parser(prog="softq study", description=_described())
    parser.add_argument("study", choices=list(STUDIES), help="which one")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="where to write; a study that was stopped goes on"
    )
    parser.add_argument("--seeds", default="0-2", metavar="S", help="such as 0,1,2 or 0-4; a seed draws a world [0-2]")
    parser.add_argument("--methods", metavar="M", help="such as dpo,ipo: the trainings of these alone [all]")
    options = parser.parse_args(words)
    methods = list(METHODS) if options.methods is None else _named(options.methods)
    directory = Path(options.output)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"--output {directory} is a file; give a directory")
    show = Show()
    processes = min(os.cpu_count() or 1, MOST)
    for event in family(directory, seeds_of(options.seeds), methods, processes=processes):
        show.one(event)
    return 0


def _described() -> str:
    told = "; ".join(f"{name}: {what}" for name, what in STUDIES.items())
    return f"Whole experiments, each with a table and a picture. {told}."


def _named(text: str) -> list[str]:
    """Methods by their names, each once."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in METHODS:
            raise ValueError(f"--methods: no method {name!r}{nearest(name, METHODS)}; `softq methods` lists them")
    return names
