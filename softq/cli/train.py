"""softq train METHOD --model M --data FILE --output DIR …"""

import json
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from softq.cli.flags import USAGE, flags, options, parser_of
from softq.cli.printable import printable
from softq.cli.runs import tell_sweep
from softq.cli.show import Show
from softq.cli.signals import asked
from softq.studies.seeds import Summary, seeds_of, sweep
from softq.training import ranks
from softq.training.events import Event, Note, Saved, Stopped
from softq.training.json_schema import json_schema
from softq.training.migration.migrate import migrated
from softq.training.publish import check_publish, publish
from softq.training.run import run as train
from softq.training.settings import Call, build, flag, flattened
from softq.training.trackers import refuse_missing
from softq.verify.suite import stamp

OF_THE_CALL = ("report_to", "logging_steps")
"""Options of the command that another library's file may set; whatever writes, overwrites or publishes it may not."""


def run(words: list[str]) -> int:
    """Settings from YAML and flags (flags win), then the run, shown as it goes."""
    own, rest = options(words)
    if own.json_schema:
        print(json.dumps(json_schema(), indent=1, ensure_ascii=False))
        return 0
    name, values, notes = _given(own)
    if name is None and own.help:
        name = "dpo"
    if name is None:
        raise ValueError(f"which method? It comes first: {USAGE}; `softq methods` lists them")
    parser = parser_of(name)
    if own.help:
        parser.print_help()
        return 0
    given = flags(parser, rest)
    if "seed" in given and own.seeds is not None:
        raise ValueError("--seed: --seeds names them; leave one out")
    values |= given
    nowhere = "output" not in values and (own.dry_run or own.print_config)
    settings, method, understood = build(name, {**values, "output": "-"} if nowhere else values)
    if own.print_config:
        understood = {key: value for key, value in understood.items() if not (nowhere and key == "output")}
        print("".join(f"# {printable(note)}\n" for note in notes), end="")
        print(yaml.safe_dump(understood, sort_keys=False, allow_unicode=True), end="")
        return 0
    _refuse(own)
    verified = stamp(build(name, {**values, "output": "-"})[1])  # made anew: a function of one's own may hold a state
    with asked() as stop:
        call = Call(
            dry=own.dry_run,
            resume=own.resume,
            overwrite=own.overwrite,
            verify_layout=own.verify_layout,
            trust_remote_code=own.trust_remote_code,
            samples=own.samples,
            report_to=own.report_to or (),
            verified=verified,
            stop=stop,
        )
        if own.seeds is None:
            events = train(name, settings, method, understood, call)
        else:
            events = _swept(sweep(name, values, seeds_of(own.seeds), call))
        notes.append(_stamped(name, verified))
        last = Show(own.logging_steps).all([*map(Note, notes)], _published(events, own.push_to_hub))
    ranks.leave()
    return 128 + last.signal if isinstance(last, Stopped) else 0


def _stamped(name: str, verified: Mapping[str, Any]) -> str:
    """The method's laws, in a line."""
    if not verified["red"]:
        open_end = "; where its training ends is not stated" if "fixed point" in verified["not_stated"] else ""
        return f"verify: {name} keeps {verified['laws']} laws on tables with exact answers{open_end}"
    red = "; ".join(f"{law}: {why}" for law, why in verified["red"].items())
    return f"verify: RED, {name} breaks {len(verified['red'])} of {verified['laws']} laws: {red} (softq verify --method {name})"


def _given(own: Namespace) -> tuple[str | None, dict[str, Any], list[str]]:
    """The method, values and notes of the file that was given, of ours or of another library's."""
    if own.config and own.from_trl:
        raise ValueError("--config and --from-trl: give one of them")
    if own.config:
        name, values = flattened(_document(own.config, "--config"))
        return own.method or name, values, []
    if not own.from_trl:
        return own.method, {}, []
    found = migrated(_document(own.from_trl, "--from-trl"), method=own.method, processes=ranks.launched())
    notes = found.notes
    for key, value in found.options.items():
        if key in OF_THE_CALL:
            setattr(own, key, getattr(own, key) or value)
        else:
            notes.append(f"not taken from the file: give {flag(key)}{'' if value is True else f' {value}'}")
    return found.method, found.values, notes


def _refuse(own: Namespace) -> None:
    """What can not be asked for at once, or not be done, before anything is read."""
    if own.resume and (own.overwrite or own.dry_run):
        raise ValueError(f"--resume goes on with a run: leave out {'--overwrite' if own.overwrite else '--dry-run'}")
    if own.push_to_hub and own.seeds is not None:
        raise ValueError("--push-to-hub publishes one run: leave out --seeds")
    refuse_missing(own.report_to or ())
    if own.push_to_hub and not own.dry_run:
        check_publish(own.push_to_hub)


def _swept(events: Iterable[Event | Summary]) -> Iterator[Event]:
    """The events of a sweep; its table is printed at the end."""
    for event in events:
        if isinstance(event, Summary):
            tell_sweep(Console(highlight=False), event)
        else:
            yield event


def _published(events: Iterable[Event], name: str | None) -> Iterator[Event]:
    """The events; what is saved is published, if it has a name on the hub."""
    for event in events:
        yield event
        if name and isinstance(event, Saved) and ranks.first():
            yield Note(f"published at {publish(event.directory, name)}, private if it is new")


def _document(path: str, option: str) -> Mapping[str, Any]:
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{option} {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{option} {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{option} {path}: holds {type(document).__name__}; expected settings by name")
    return document
