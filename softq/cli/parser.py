"""argparse whose errors are one line, as of any other wrong setting."""

import re
from argparse import ArgumentParser
from typing import Any, NoReturn

NEGATIVE = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)  # argparse's own knows no -1e-3


class Parser(ArgumentParser):
    """A parser without abbreviations; what is wrong with a command line is a ValueError."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._negative_number_matcher = NEGATIVE

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found; a verb with a name says where its options are listed."""
        verb = self.prog if self.prog.startswith("softq ") and self.add_help else ""
        message = message.replace("ignored explicit argument", "it takes no value; leave out")
        raise ValueError(f"{message}; {verb} --help lists the options" if verb else message)
