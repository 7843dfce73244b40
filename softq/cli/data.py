"""softq data FILE… [--model M] [--check] [--to OUT …]"""

import argparse
import json
import math
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from softq.cli.data_show import Explained, Shown
from softq.cli.parser import Parser
from softq.data.check import Finding, check
from softq.data.convert import Changes, Target, Written, convert, write_ledger
from softq.data.encode import Encoder
from softq.data.example import Example
from softq.data.formats import Reading, renames
from softq.data.read import check_any, template
from softq.data.review import Review
from softq.data.rows import DataError
from softq.data.sources import DataSource, sources
from softq.data.stream import Stream, stream
from softq.lm.tokenizer import load_tokenizer

USAGE = "softq data FILE… [--model M] [options]"
DESCRIPTION = """Read preference data as training would, and say what becomes of every row and token; write nothing,
unless --to. FILE is a file (.jsonl .json .csv .tsv .parquet, each also .gz or .zst), a data set of the hub
(owner/name), or either with options: FILE,name=N,weight=W,format=F,split=S,config=C,revision=R,entry=E. Exit 0 when usable rows
remain, 3 when none do, or when any was dropped under --strict."""


class _Dropped(DataError):
    """Rows were dropped, and --strict was asked for."""


def run(words: list[str]) -> int:
    """Read, account, and show, check or convert."""
    options = _parser().parse_args(words)
    _check(options)
    of, reading = sources(options.files), Reading(options.format, renames(options.rename))
    if options.to and any(source.weight != 1 for source in of):
        raise ValueError("a source's weight is read by softq train; with --to leave it out, or take --sample")
    against = stream(sources(options.against), reading) if options.against else None
    _check_apart(options, of)
    encoder, notes = _encoder(options)
    review = Review(stream(of, reading, encoder), of, encoder.max_length if encoder else None)
    shown: list[Example] = []
    items = _kept(review, shown, options)
    written: Written | None = None
    if options.to:
        with suppress(_Dropped):  # said at the end, behind the account
            written = _convert(options, review, (item.example for item in items), words)
    else:
        for _ in items:
            pass
    findings = _findings(review, stream(of, reading), against) if options.check else None
    if options.json:
        print(json.dumps(_document(review, findings, written), ensure_ascii=False))
    else:
        Shown(review, written).show(notes, findings, [_explained(example, encoder) for example in shown])
    check_any(review)
    if options.strict:
        _check_strict(review)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="softq data", usage=USAGE, description=DESCRIPTION)
    parser.add_argument("files", nargs="+", metavar="FILE")
    read = parser.add_argument_group("reading")
    read.add_argument("--model", help="count tokens as this model reads them; only its tokenizer is loaded")
    read.add_argument("--format", help="the rows' format, where it should not be detected")
    read.add_argument("--rename", nargs="+", default=[], metavar="OURS=THEIRS", help="fields by other names")
    read.add_argument("--chat-template", help="chatml, or a Jinja file; default: the tokenizer's own")
    read.add_argument("--max-length", type=int, help="longest prompt + completion in tokens [1024]")
    read.add_argument("--truncate", choices=("drop", "keep"), help="what becomes of longer records [drop]")
    read.add_argument("--trust-remote-code", action="store_true", help="run code that the model's repository brings")
    tell = parser.add_argument_group("telling")
    tell.add_argument("--json", action="store_true", help="one JSON document")
    tell.add_argument("--strict", action="store_true", help="exit 3 if any row was dropped")
    tell.add_argument("--show", type=int, default=0, metavar="N", help="N rows in colours")
    tell.add_argument(
        "--check", action="store_true", help="duplicates, contradictions, biases, leaks; holds rows in memory"
    )
    tell.add_argument("--against", metavar="FILE", help="with --check: evaluation data that must not be in FILE")
    change = parser.add_argument_group("writing a data set, changed in this order")
    change.add_argument("--to", metavar="OUT", help="write the usable rows, their ledger and what was dropped")
    change.add_argument("--pairs", choices=("best-worst", "all"), help="groups to pairs, by score")
    change.add_argument(
        "--margin", type=float, metavar="X", help="of these, pairs whose scores differ by more than X [0]"
    )
    change.add_argument("--best", action="store_true", help="groups to demonstrations: the best of each")
    change.add_argument(
        "--unpair", nargs="?", const=True, metavar="SCORE", help="to labels; of groups, good is above SCORE"
    )
    change.add_argument("--demonstrations", action="store_true", help="pairs to demonstrations: the chosen ones")
    change.add_argument("--swap", action="store_true", help="turn every label round")
    change.add_argument("--flip", type=float, metavar="SHARE", help="turn a share of the labels round")
    change.add_argument("--length-match", action="store_true", help="leave pairs out until length tells nothing")
    change.add_argument(
        "--relabel", nargs="?", const="system", choices=("system", "user"), help="pairs with scores to goals, two each"
    )
    change.add_argument("--sample", type=float, metavar="N", help="N records, or a share below 1")
    change.add_argument("--split", nargs=2, metavar=("SHARE", "OUT2"), help="hold a share of the prompts out, in OUT2")
    change.add_argument("--seed", type=int, help="of all chance [42]")
    change.add_argument("--overwrite", action="store_true", help="replace OUT")
    return parser


NEEDED = {
    **dict.fromkeys(("pairs", "best", "unpair", "demonstrations", "swap", "flip", "length_match"), "to"),
    **dict.fromkeys(("relabel", "sample"), "to"),
    **dict.fromkeys(("split", "seed", "overwrite"), "to"),
    **dict.fromkeys(("chat_template", "max_length", "truncate", "trust_remote_code"), "model"),
    "margin": "pairs",
    "against": "check",
}
"""Option -> the one without which nothing reads it."""


def _check(options: argparse.Namespace) -> None:
    """Refuse what would be read by nothing."""
    given = {name for name, value in vars(options).items() if not (value is None or value is False or value == [])}
    for name, needed in NEEDED.items():
        if name in given and needed not in given:
            raise ValueError(f"--{name.replace('_', '-')} is read with --{needed} only")
    if options.max_length is not None and options.max_length < 1:
        raise ValueError(f"--max-length {options.max_length}: expected a number of tokens above 0")
    if options.show < 0:
        raise ValueError(f"--show {options.show}: expected a number of rows")
    for name, share in (("flip", options.flip), ("split", _number(options.split))):
        if share is not None and not 0 < share < 1:
            raise ValueError(f"--{name} {share:g}: expected a share between 0 and 1")
    if options.sample is not None and not (options.sample > 0 and (options.sample < 1 or options.sample.is_integer())):
        raise ValueError(f"--sample {options.sample:g}: expected a number of records, or a share below 1")
    if options.relabel and options.split:
        raise ValueError("--relabel: the goals of one pair could be split apart; --split first, then relabel each file")
    if options.margin is not None and not 0 <= options.margin < math.inf:
        raise ValueError(f"--margin {options.margin:g}: expected a number, 0 or more")
    _threshold(options.unpair)


def _check_apart(options: argparse.Namespace, of: Sequence[DataSource]) -> None:
    """Each file is read, or written, and written once."""
    taken = {Path(source.path).resolve() for source in of}
    for file in [file for file in (options.to, *(options.split or ())[1:]) if file]:
        if Path(file).resolve() in taken:
            raise ValueError(f"{file}: is read, or written already; name another file to write")
        taken.add(Path(file).resolve())


def _threshold(unpair: str | bool | None) -> float | None:
    """The score above which a completion is good."""
    if unpair is None or isinstance(unpair, bool):
        return None
    try:
        score = float(unpair)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"--unpair {unpair}: expected a score, or nothing")
    return score


def _number(split: Sequence[str] | None) -> float | None:
    try:
        return None if split is None else float(split[0])
    except ValueError:
        raise ValueError(
            f"--split {split[0] if split else ''}: expected a share between 0 and 1, then a file"
        ) from None


def _encoder(options: argparse.Namespace) -> tuple[Encoder | None, tuple[str, ...]]:
    if options.model is None:
        return None, ()
    spoken = load_tokenizer(options.model, options.trust_remote_code)
    chosen = template(options.chat_template)
    keep = options.truncate == "keep"
    return Encoder(spoken.tokenizer, spoken.end_ids, options.max_length or 1024, chosen, keep), spoken.notes


def _kept(review: Review, shown: list[Example], options: argparse.Namespace) -> Iterator[Any]:
    """The rows as they pass; the first usable ones are kept to be shown. A strict conversion ends before it is written."""
    for item in review.items():
        if len(shown) < options.show and isinstance(item.example, Example):
            shown.append(item.example)
        yield item
    if options.to and options.strict:
        _check_strict(review)


def _check_strict(review: Review) -> None:
    lost = review.ledger.rows - review.ledger.used
    if lost:
        first = next(iter(review.troubles.values()))
        told = f"the first because {first.where}: {first.message or first.reason}"
        raise _Dropped(f"--strict: {lost:,} of {review.ledger.rows:,} rows were dropped, {told}")


def _convert(options: argparse.Namespace, review: Review, records: Iterator[Any], words: list[str]) -> Written:
    changes = Changes(
        pairs=options.pairs,
        margin=options.margin or 0.0,
        best=options.best,
        unpair=options.unpair is not None,
        threshold=_threshold(options.unpair),
        demonstrations=options.demonstrations,
        swap=options.swap,
        flip=options.flip,
        length_match=options.length_match,
        relabel=options.relabel,
        sample=options.sample,
        split=_number(options.split),
        seed=42 if options.seed is None else options.seed,
    )
    held_out = Path(options.split[1]) if options.split else None
    target = Target(Path(options.to), held_out, options.overwrite)
    text = "language-modeling" in review.stream.formats
    written = convert(records, review.stream.kind, changes, target, empty_prompt=not text)
    document = {"command": shlex.join(["softq", "data", *words]), **_document(review, None, written)}
    write_ledger(target.file, document)
    return written


def _findings(review: Review, again: Stream, against: Stream | None) -> list[Finding]:
    """What the checks find in a second reading."""

    def examples(of: Stream) -> Iterator[Example]:
        return (item.example for item in of.items if isinstance(item.example, Example))

    return check(examples(again), review.stream.kind, examples(against) if against else ())


def _document(review: Review, findings: list[Finding] | None, written: Written | None) -> dict[str, Any]:
    """Everything, ready for JSON."""
    document: dict[str, Any] = {
        **review.ledger.as_dict(),
        "kind": review.stream.kind,
        "formats": dict(zip((s.name for s in review.sources), review.stream.formats, strict=True)),
        "lengths": review.lengths.as_dict(),
        "other_fields": list(review.other),
    }
    if findings is not None:
        document["findings"] = [{**finding._asdict(), "numbers": dict(finding.numbers)} for finding in findings]
    if written is not None:
        document["written"] = {"kind": written.kind, "rows": written.rows, "left_out": written.left_out}
    return document


def _explained(example: Example, encoder: Encoder | None) -> Explained:
    return Explained(example, encoder.explain(example), encoder.vocabulary) if encoder else Explained(example)
