"""The command line of `softq train`: options of the call, and every setting of a run of a method as a flag."""

import argparse
from functools import partial
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from softq.cli.parser import Parser
from softq.training.methods import nearest, schema
from softq.training.migration.tables import TRL
from softq.training.settings import Settings, flag

USAGE = "softq train METHOD --model M --data FILE --output DIR [options]"


def options(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What the verb itself reads, which no file can ask for; the rest are settings."""
    parser = _options()
    named = bool(words) and not words[0].startswith("-")
    own, rest = parser.parse_known_args([_dashed(word) for word in (words[1:] if named else words)])
    own.method = words[0] if named else None
    return own, rest


def of_the_call() -> set[str]:
    """The options of `softq train` that are no settings, as they are spelled."""
    return {spelled for action in _options()._actions for spelled in action.option_strings}


def _options() -> Parser:
    parser = Parser(add_help=False)
    group = parser.add_argument_group("this call")
    for word, text in SWITCHES.items():
        group.add_argument(word, *(["-h"] if word == "--help" else []), action="store_true", help=text)
    for word, (metavar, text) in TAKING.items():
        group.add_argument(word, metavar=metavar, help=text)
    group.add_argument("--report-to", nargs="+", metavar="X", help="tensorboard, wandb, trackio")
    group.add_argument(
        "--samples", type=_count, default=0, metavar="N", help="answers to N held-out prompts at each evaluation"
    )
    group.add_argument("--logging-steps", type=_many, metavar="N", help="steps between printed lines [10]")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a count")
    return int(text)


def _many(text: str) -> int:
    if not _count(text):
        raise argparse.ArgumentTypeError("0 is no number of steps; expected 1 or more")
    return int(text)


THEIRS = {
    key: ", ".join(
        "METHOD" if one == "method" else one if one.startswith("--") else flag(one) for one in ours.split(", ")
    )
    for key, ours in TRL.read.items()
    if "_" in key  # `alpha` is a setting of ours as well, of other methods
}
"""Names in TRL's configs -> ours, for whoever types them here."""

SWITCHES = {
    "--help": "show this",
    "--dry-run": "read the data, load the models, check step 0; train and write nothing",
    "--print-config": "every setting as YAML, for --config",
    "--resume": "go on from the newest checkpoint in the output, or from the start",
    "--overwrite": "replace what an earlier run wrote to the output",
    "--verify-layout": "compare the layout with plain on the first step, with gradient",
    "--trust-remote-code": "run code that a model repository brings",
    "--json-schema": "print the schema of softq's YAML files, for editors",
}
TAKING = {
    "--config": ("FILE", "settings from YAML; flags win"),
    "--from-trl": ("FILE", "settings from a config of TRL or LLaMA-Factory; what is not kept is listed"),
    "--seeds": ("S", "one run a seed, such as 0,1,2 or 0-4, and a table of what they came to"),
    "--push-to-hub": ("NAME", "publish the result on the hub, in a private repository if it is new"),
}


def parser_of(name: str) -> argparse.ArgumentParser:
    """Every setting of a run of this method as a flag."""
    wide = partial(argparse.HelpFormatter, max_help_position=36)
    parser = Parser(
        prog="softq train",
        usage=USAGE,
        parents=[_options()],
        add_help=False,
        description=DESCRIPTION,
        formatter_class=wide,
    )
    taken = {*Settings.model_fields, *(action.dest for action in _options()._actions)}
    for prefix, part in schema(name).items():
        if again := sorted(taken & {prefix + field for field in part.model_fields}):
            raise ValueError(f"method {name!r} has a parameter {again[0]!r}, a setting of every run; name it otherwise")
        group = parser.add_argument_group(f"settings of {prefix[:-1] or name}")
        for field, info in part.model_fields.items():
            _add(group, prefix + field, info)
    if "+" in name:
        parser.add_argument("--weights", default=argparse.SUPPRESS, help="of the summands, such as 0.8,0.2")
    group = parser.add_argument_group("settings of the run")
    for field, info in Settings.model_fields.items():
        _add(group, field, info)
    return parser


DESCRIPTION = (
    "METHOD is a name of `softq methods`, a sum such as dpo+sft, or package.module:function. "
    "Settings say what a run is, and may stand in a file; what this call does with it stands on the command line."
)


def _add(group: Any, name: str, info: FieldInfo) -> None:
    """One setting as a flag. Values stay strings: the schema gives them their types."""
    default = (
        ""
        if info.is_required() or info.default is False or info.default in (None, [], {})
        else f" [{_shown(info.default)}]"
    )
    text = f"{info.description or ''}{default}".strip().replace("%", "%%")
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
    if info.annotation is bool:
        group.add_argument(flag(name), action=argparse.BooleanOptionalAction, **options)
    elif get_origin(info.annotation) is list:
        group.add_argument(flag(name), nargs="+", metavar="X", **options)
    else:
        group.add_argument(flag(name), metavar=_metavar(info.annotation), **options)


def _metavar(kind: Any) -> str:
    """What stands for a value in the help: its type, or its choices."""
    if get_origin(kind) is dict:
        return "NAME=DIR,…"
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    if get_args(kind):  # int | None, Annotated[int, ...]
        return _metavar(get_args(kind)[0])
    return {int: "INT", float: "NUMBER", str: "TEXT"}.get(kind, "X")


def _shown(default: Any) -> str:
    return (
        " ".join(map(str, default))
        if isinstance(default, list)
        else f"{default:g}"
        if type(default) is float
        else str(default)
    )


def flags(parser: argparse.ArgumentParser, words: list[str]) -> dict[str, Any]:
    """The settings that stand on the command line, as they were written."""
    given, unknown = parser.parse_known_args(words)
    if unknown:
        known = [spelled for action in parser._actions for spelled in action.option_strings]
        word = unknown[0].split("=")[0]
        if not word.startswith("-"):
            raise ValueError(_stray(unknown[0], words))
        if (key := word[2:].replace("-", "_")) in THEIRS:
            raise ValueError(f"{word}: no such setting; TRL's {key} is {THEIRS[key]} here (--from-trl reads its files)")
        if of_sum := [spelled for spelled in known if spelled.endswith(f".{word[2:]}")]:
            raise ValueError(f"{word}: of which summand? There is {', '.join(of_sum)}")
        raise ValueError(f"{word}: no such setting{nearest(word, known) or '; softq train METHOD --help lists them'}")
    own = {action.dest for action in _options()._actions}
    return {name: value for name, value in vars(given).items() if name not in own}


def _stray(word: str, words: list[str]) -> str:
    """What to say of a word that is no option and no option's value."""
    before = words[words.index(word) - 1] if word in words[1:] else ""
    if before.startswith("--"):
        opposite = f"--{before[5:]}" if before.startswith("--no-") else f"--no-{before[2:]}"
        return f"{before} {word}: it takes no value; give it alone, or as {opposite}"
    return f"{word}: belongs to no setting; a switch takes no value, most settings one word, such as --weights 0.8,0.2"


def _dashed(word: str) -> str:
    """--learning_rate=1 and --learning-rate=1 are one."""
    name, equals, value = word.partition("=")
    return (name.replace("_", "-") if word.startswith("--") else name) + equals + value
