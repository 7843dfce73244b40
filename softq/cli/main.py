"""softq VERB …: a table of verbs, each loaded only when it is called, and the exit codes.

0 done · 1 failed · 2 wrong command line or settings · 3 bad data · 130 stopped by Ctrl-C · 143 by SIGTERM
"""

import os
import signal
import sys
import warnings
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper

from softq.cli.printable import printable

VERBS = {
    "train": "train a policy from preferences or demonstrations",
    "data": "read preference data: what becomes of every row and token; check it, convert it",
    "verify": "the laws that every method, and your own model, must keep",
    "score": "a policy over a data set, token by token, into tables",
    "search": "answers of the highest value: beams, samples, trees; with what each is worth and costs",
    "inspect": "what a policy learned, as a page: healthy or not, token by token, pair by pair",
    "runs": "list runs: how far each came, its last figures",
    "push": "a finished output to the hub",
    "merge": "an adapter into the model under it, as one model",
    "methods": "the training methods: paper, what they need, their settings",
    "study": "whole experiments: every method in one small world",
    "demo": "see it work on a small generated world, without downloads",
}
FAILURES = {"DataError": 3, "OutputError": 2, "ValueError": 2, "RunError": 1, "OSError": 1}


def main(arguments: list[str] | None = None) -> None:
    """Run a verb and exit."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in {"-h", "--help", "help"}:
        print(_help())
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        print(version("softq"))
        sys.exit(0)
    if words[0] not in VERBS:
        close = get_close_matches(words[0], VERBS, n=1)
        _fail(f"no verb {words[0]!r}; {f'did you mean {close[0]}?' if close else 'softq --help lists them'}", 2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # π where the terminal has no π
    sys.path.insert(0, os.getcwd())  # so that a user's own method is importable
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half written is cleaned away
    sys.exit(_guarded(words[0], words[1:]))


def _guarded(verb: str, words: list[str]) -> int:
    """The verb's exit code; a user's mistake is one line, and only a bug of ours shows a traceback."""
    try:
        return import_module(f"softq.cli.{verb}").run(words)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, RuntimeError, OSError) as error:
        for kind in type(error).__mro__:
            if kind.__name__ in FAILURES:
                _fail(str(error), FAILURES[kind.__name__])
        raise


def _fail(message: str, code: int) -> None:
    who = f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
    print(f"softq: {who}{printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)


def _help() -> str:
    lines = ["softq: your language model is a Q-function.", "", "usage: softq VERB [options]", ""]
    lines += [f"  {verb:<9} {what}" for verb, what in VERBS.items()]
    return "\n".join([*lines, "", "softq VERB --help tells more of each."])
