"""softq score --policy P --data FILE --output DIR"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from softq.cli.parser import Parser
from softq.cli.printable import printable
from softq.lm.layouts import LAYOUTS
from softq.lm.load import DTYPES
from softq.reading.cross_fit import Fold
from softq.reading.run import scored
from softq.reading.tables import SAMPLE, Asked, Part
from softq.training import ranks
from softq.training.events import Note

USAGE = "softq score --policy P --data FILE … --output DIR [options]"
DESCRIPTION = """Score a data set once, token by token, into Parquet tables: log-probs of the policy and of a reference, implicit
rewards, entropies, ranks, KL, and what the policy would rather have said. Preferences, labels, groups or demonstrations, in any
format that softq reads; a policy of any library. Started again, it goes on where it stopped; under torchrun processes share
the work."""


def run(words: list[str]) -> int:
    """Parse, score, say how far it is."""
    options = vars(_parser().parse_args(words))
    asked = Asked(
        **{
            **options,
            "data": tuple(options["data"]),
            "output": Path(options["output"]),
            "rename": tuple(options["rename"]),
            "fit": tuple(options["fit"]),
        }
    )
    console = Console(stderr=True, highlight=False)
    for event in scored(asked):
        if isinstance(event, Note) and ranks.first():
            print(printable(event.text))
        if isinstance(event, Part) and ranks.first():
            console.print(f"{event.done:,} of {event.of:,} records scored")
        if isinstance(event, Fold) and ranks.first():
            console.print(f"fold {event.done} of {event.of}: {event.agreed:,} of {event.pairs:,} labels agreed with")
    if ranks.first():
        print(f"written to {asked.output}")
    ranks.leave()
    return 0


def _parser() -> Parser:
    parser = Parser(prog="softq score", usage=USAGE, description=DESCRIPTION)
    for word, (text, options) in OPTIONS.items():
        parser.add_argument(word, help=text, **options)
    return parser


OPTIONS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "--policy": ("the model to read: a directory, a hub name, an adapter", {"metavar": "P", "required": True}),
    "--reference": (
        "what to compare with: a model, uniform, or none; default: what the policy's manifest says it was trained with",
        {"metavar": "R"},
    ),
    "--data": (
        "files, or data sets of the hub, as for softq train",
        {"metavar": "FILE", "nargs": "+", "required": True},
    ),
    "--output": ("the directory to write", {"metavar": "DIR", "required": True}),
    "--beta": ("reward per nat; default: that of the policy's manifest", {"metavar": "NUMBER", "type": float}),
    "--max-length": (
        "tokens of a prompt and a completion; longer records are dropped [2048]",
        {"metavar": "INT", "type": int, "default": 2048},
    ),
    "--truncate": ("keep cuts them and scores the rest", {"choices": ("drop", "keep"), "default": "drop"}),
    "--format": ("of the data, where it is not to be detected", {"metavar": "TEXT"}),
    "--rename": ("fields by other names: prompt=question", {"metavar": "X", "nargs": "+", "default": ()}),
    "--chat-template": ("for messages, where the tokenizer has none", {"metavar": "FILE|chatml"}),
    "--dtype": ("of the weights [float32]", {"choices": [*DTYPES], "default": "float32"}),
    "--layout": ("how rows run [auto]", {"choices": ["auto", *LAYOUTS], "default": "auto"}),
    "--tokens-per-micro": ("states that are scored at once", {"metavar": "INT", "type": int}),
    "--cross-fit": (
        "judge each label by dpo trained without its prompt, in so many folds, and tell which labels are likely wrong",
        {"metavar": "K", "type": int, "default": 0},
    ),
    "--fit": (
        "settings of those trainings, as softq train dpo has them, such as learning_rate=5e-6; default: those of the run that "
        "made the policy, if it was dpo",
        {"metavar": "NAME=VALUE", "nargs": "+", "default": ()},
    ),
    "--fresh": (
        "completions to sample from the reference too, which show how far likelihood must fall [0]",
        {"metavar": "N", "type": int, "default": 0},
    ),
    "--checkpoints": (
        f"records that each checkpoint beside the policy scores too, for a trend; 0: none [{SAMPLE}]",
        {"metavar": "N", "type": int, "default": SAMPLE},
    ),
    "--overwrite": ("replace scores of something else that are there", {"action": "store_true"}),
    "--trust-remote-code": ("run code that a model repository brings", {"action": "store_true"}),
}
