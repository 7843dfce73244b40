"""The command line of `softq search`: what is searched and told, and every setting of a decoder as a flag."""

import argparse
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from softq.cli.parser import Parser
from softq.lm.layouts import LAYOUTS
from softq.lm.load import DTYPES
from softq.search.decoders import DECODERS, Decoder
from softq.searching.run import Method
from softq.training.methods import nearest
from softq.training.settings import flag

USAGE = "softq search --policy P --prompts FILE … | --prompt TEXT [--method NAME] [options]"
DESCRIPTION = """Search for answers with a policy: if logits are Q-values, its likeliest answers are those of the highest value.
Writes what it finds as rows of prompt and completion, which train, with the log-probability under the policy and the reference,
the implicit reward, and what it cost in token-evaluations. --method NAME --help lists a decoder's own settings; --tree draws
what was thought of; --compare sets decoders side by side."""
DEFAULT = "beam"
SHARED = {"beta"}
"""Options of the call that a decoder may read too."""


def parsed(words: list[str]) -> tuple[argparse.Namespace, Method | None]:
    """The options of the call, and the decoder at its settings; None with --compare."""
    first, _ = _options().parse_known_args([word for word in words if word not in ("-h", "--help")])
    if first.compare is not None and first.method is not None:
        raise ValueError("--compare names decoders of its own: leave out --method")
    if first.compare is not None and first.tree is not None:
        raise ValueError("--tree draws one decoder's search: leave it out, or --compare")
    if first.compare is None and first.judge is not None:
        raise ValueError("--judge is read with --compare only")
    name = None if first.compare is not None else first.method or DEFAULT
    parser = _parser(name)
    options, unknown = parser.parse_known_args(words)
    if unknown:
        raise ValueError(_stray(unknown[0], name, parser))
    if options.policy is None:
        raise ValueError("give --policy MODEL; softq search --help lists the options")
    if name is None:
        return options, None
    given = {key: value for key in schema(name).model_fields if (value := getattr(options, key, None)) is not None}
    return options, method(name, given)


def method(name: str, given: Mapping[str, Any]) -> Method:
    """A decoder at these settings, which may be strings. ValueError says what is wrong with them."""
    try:
        settings = schema(name)(**given).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        if first["type"] == "missing":
            raise ValueError(f"{name} needs {flag(key)}") from error
        raise ValueError(f"{flag(key)} {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from error
    return Method(name, decoder(name), settings)


def compared(text: str) -> list[Method]:
    """Decoders as --compare names them: beam:5,sample:8,greedy; a number is the first setting that is one."""
    found = []
    for part in text.split(","):
        name, _, number = part.strip().partition(":")
        fields = [key for key, info in schema(name).model_fields.items() if info.annotation in (int, float)]
        if number and not fields:
            raise ValueError(f"--compare {part}: {name} has no setting that is a number; give {name}")
        found.append(method(name, {fields[0]: number} if number else {}))
    if again := [one for n, one in enumerate(found) if one in found[:n]]:
        raise ValueError(f"--compare names {again[0].name} twice at the same settings")
    return found


def decoder(name: str) -> Decoder:
    """A decoder by its name."""
    if name not in DECODERS:
        raise ValueError(f"no decoder {name!r}{nearest(name, DECODERS)}; there are {', '.join(DECODERS)}")
    return DECODERS[name]


def schema(name: str) -> type[BaseModel]:
    """The keywords of a decoder, typed, so that strings become numbers."""
    of = inspect.signature(decoder(name), eval_str=True).parameters.values()
    fields: dict[str, Any] = {
        each.name: (each.annotation, ... if each.default is each.empty else each.default)
        for each in of
        if each.kind is each.KEYWORD_ONLY
    }
    taken = {action.dest for action in _options()._actions} - SHARED
    if again := sorted(taken & set(fields)):
        raise ValueError(f"decoder {name!r} has a setting {again[0]!r}, an option of every search; name it otherwise")
    return create_model(f"{name} settings", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields)


def _parser(name: str | None) -> Parser:
    wide = partial(argparse.HelpFormatter, max_help_position=32)
    parser = Parser(
        prog="softq search", usage=USAGE, description=DESCRIPTION, parents=[_options()], formatter_class=wide
    )
    if name is None:
        return parser
    about = inspect.cleandoc(decoder(name).__doc__ or "").split("\n\n")[0]
    group = parser.add_argument_group(f"settings of {name}", about)
    for key, info in schema(name).model_fields.items():
        if key in SHARED:
            continue
        default = "" if info.is_required() or info.default is None else f"[{info.default}]"
        group.add_argument(flag(key), dest=key, metavar=_kind(info.annotation), help=default)
    return parser


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    return {int: "INT", float: "NUMBER", bool: "true|false"}.get(annotation, "TEXT")


def _stray(word: str, name: str | None, parser: Parser) -> str:
    """What to say of a word that nobody reads."""
    key = word.split("=")[0].removeprefix("--").replace("-", "_")
    readers = [other for other in DECODERS if key in schema(other).model_fields]
    if word.startswith("--") and readers and name is None:
        return f"{word}: --compare takes one number a decoder, such as {readers[0]}:5; leave it out"
    if word.startswith("--") and readers and name is not None:
        reads = ", ".join(map(flag, schema(name).model_fields)) or "no setting"
        return f"{word}: {name} does not read it; it reads {reads} ({', '.join(readers)} would read {word})"
    known = [spelled for action in parser._actions for spelled in action.option_strings]
    return f"{word}: no such option{nearest(word, known) or '; softq search --help lists them'}"


def _options() -> Parser:
    parser = Parser(add_help=False)
    for title, of in OPTIONS.items():
        group = parser.add_argument_group(title)
        for word, (text, options) in of.items():
            group.add_argument(word, help=text.replace("%", "%%"), **options)
    return parser


def named(text: str) -> dict[str, str]:
    """NAME=DIR,… as a mapping."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and there for name, _, there in pairs) or len({name for name, _, _ in pairs}) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: expected names and models, each name once, such as small=DIR")
    return {name.strip(): there.strip() for name, _, there in pairs}


def _whole(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, {least} or more")
    return int(text)


def _metavar(name: str, **more: Any) -> dict[str, Any]:
    return {"metavar": name, **more}


OPTIONS: Mapping[str, Mapping[str, tuple[str, dict[str, Any]]]] = {
    "models": {
        "--policy": ("the model to search with: a directory, a hub name, an adapter", _metavar("P")),
        "--reference": (
            "what to compare with: a model, uniform, or none; default: what the policy's manifest says",
            _metavar("R"),
        ),
        "--value": ("a value model: short for --models value=V", _metavar("V")),
        "--models": ("further models that a decoder reads", _metavar("NAME=DIR,…", type=named, default={})),
        "--beta": ("reward per nat; default: that of the policy's manifest", _metavar("NUMBER", type=float)),
        "--dtype": ("of the weights [float32]", {"choices": [*DTYPES], "default": "float32"}),
        "--layout": ("how rows run [auto]", {"choices": ["auto", *LAYOUTS], "default": "auto"}),
        "--trust-remote-code": ("run code that a model repository brings", {"action": "store_true"}),
    },
    "prompts": {
        "--prompts": ("files, or data sets of the hub: any data with prompts", _metavar("FILE", nargs="+")),
        "--prompt": ("a text; a user's message, where the tokenizer has a chat template", _metavar("TEXT")),
        "--format": ("of the data, where it is not to be detected", _metavar("TEXT")),
        "--rename": ("fields by other names: prompt=question", _metavar("X", nargs="+", default=())),
        "--chat-template": ("for messages, where the tokenizer has none", _metavar("FILE|chatml")),
    },
    "search": {
        "--method": (f"a decoder: {', '.join(DECODERS)} [{DEFAULT}]", _metavar("NAME")),
        "--max-new-tokens": ("of an answer [256]", _metavar("INT", type=partial(_whole, 1), default=256)),
        "--stop": ("texts that end an answer", _metavar("TEXT", nargs="+", default=())),
        "--seed": ("of what is drawn [0]", _metavar("INT", type=partial(_whole, 0), default=0)),
    },
    "what is told": {
        "--output": (
            "rows of prompt and completion, with their figures: .jsonl, or another file of data; with --compare a directory",
            _metavar("FILE"),
        ),
        "--tree": ("a page that draws what was thought of", _metavar("FILE")),
        "--overwrite": ("replace files that are there", {"action": "store_true"}),
    },
    "comparing": {
        "--compare": ("decoders side by side, such as beam:5,sample:8,greedy", _metavar("NAME:NUMBER,…")),
        "--judge": (
            "with --compare: world (of softq demo), path.py:function, package.module:function, or a reward model",
            _metavar("J"),
        ),
    },
}


def asked_of(options: argparse.Namespace) -> dict[str, Any]:
    """The options that say what is to be opened, checked: one source of prompts, one value model."""
    if (options.prompts is None) == (options.prompt is None):
        raise ValueError("give --prompts FILE or --prompt TEXT, and not both")
    if options.prompt is not None and not options.prompt.strip():
        raise ValueError("--prompt '': expected a text to answer")
    if options.value is not None and "value" in options.models:
        raise ValueError("--value is --models value=…: give one of them")
    models = options.models | ({} if options.value is None else {"value": options.value})
    prompts: Sequence[str] | str = options.prompt if options.prompt is not None else tuple(options.prompts)
    return {"models": models, "prompts": prompts, "stop": tuple(options.stop), "rename": tuple(options.rename)}
