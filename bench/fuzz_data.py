"""Hostile preference data, read as `softq data` reads it: no row is lost, and nothing but DataError is ever raised.

    python bench/fuzz_data.py [--rows 10000] [--seed 0] [--only FILE] [--large]

Files of every kind and format. Each begins with a good row; of the rest some are good, some are wrong in one way or in
several, and some are damaged bytes. A file is read without a tokenizer and with one, and then
- every row is used or dropped for a reason of REASONS, in one printable line, and the ledger's own check passes;
- as many rows come out as went in, and without a tokenizer each good row is used, with all that it says;
- the ids of a row that is used decode to its text, and are no more than max_length.
Then come files that are wrong as a whole, made by hand and by chance: only these may be refused, by a DataError. The same
seed gives the same files; the exit code is 1 if anything of this is violated, and the row that did it is shown.
"""

import argparse
import json
import re
import sys
import tempfile
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from hostile_files import (
    cases,
    chances,
    faults,
    written,
)
from hostile_rows import (
    END,
    EOS,
    START,
    WORDS,
    Case,
    Line,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from softq.data.encode import Encoder
from softq.data.example import Example, Text
from softq.data.files import EXTENSIONS
from softq.data.formats import Reading
from softq.data.ledger import Ledger
from softq.data.review import Review
from softq.data.rows import DataError, Dropped
from softq.data.sources import sources
from softq.data.stream import Item, stream
from softq.data.templates import CHATML

REASONS = {
    *("malformed_json", "malformed_csv", "ragged_row", "bad_encoding", "repeated_field", "too_deep"),  # of a file's row
    *("bad_type", "bad_value", "missing_field", "unknown_role", "unsupported_content", "mixed_format", "mixed_columns"),
    *("no_shared_prompt", "later_user_turn", "empty_prompt", "empty_completion", "equal_completions"),
    *("template_refuses", "template_mismatch", "inseparable_boundary", "end_inside_completion"),  # these of tokens
    *("too_long", "prompt_too_long", "equal_after_cut"),
}
"""Why a row may be dropped."""

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
LIMIT = 64  # max_length
STRICT = """\
{%- if tools %}{{ '<|im_start|>tools\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif -%}
{%- for message in messages -%}
{%- if message['role'] not in ('system', 'user', 'assistant') -%}
{{ raise_exception('no such role: ' + message['role']) }}
{%- endif -%}
{%- if message['role'] == 'system' and not loop.first %}{{ raise_exception('the system speaks first') }}{% endif -%}
{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}
{%- for call in message['tool_calls'] or [] %}{{ '\n' + (call | tojson) }}{% endfor -%}
{{ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""
"""A template that refuses roles, and that shows whatever it is given."""


class Trip(NamedTuple):
    """What came of reading a file."""

    items: list[Item]
    ledger: Ledger | None = None  # None: the reading did not end
    refused: str = ""  # the DataError
    escaped: str = ""  # what else was raised


def travel(file: Path, encoder: Encoder | None) -> Trip:
    """Read a file as `softq data` does."""
    items: list[Item] = []
    try:
        of = sources(str(file))
        review = Review(stream(of, Reading(), encoder), of, encoder.max_length if encoder else None)
        items.extend(review.items())
        json.dumps([review.ledger.as_dict(), review.lengths.as_dict(), [*review.other]], ensure_ascii=False).encode()
    except DataError as error:
        return Trip(items, refused=str(error).replace(f"{file.parent}/", ""))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a tokenizer is no Exception
        frame = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        return Trip(items, escaped=f"{type(error).__name__} at {at}: {str(error)[:200]!r}")
    return Trip(items, review.ledger)


def faults_of(case: Case, trip: Trip, encoder: Encoder | None) -> Iterator[tuple[int | None, str]]:
    """What is wrong with a trip: the number of the row, and what."""
    if trip.escaped or (trip.refused and not case.wrong):
        yield None, trip.escaped or f"refused: {trip.refused}"
        return
    if trip.ledger is None:
        return
    if len(trip.items) != trip.ledger.rows or (case.exact and len(trip.items) != len(case.lines)):
        yield None, f"{len(case.lines)} rows went in, {len(trip.items)} came out, the ledger has {trip.ledger.rows}"
        return
    for n, item in enumerate(trip.items):
        line = case.lines[n] if case.exact else Line(None)
        if isinstance(item.example, Dropped):
            yield from ((n, what) for what in of_dropped(item.example, line, encoder))
        else:
            yield from ((n, what) for what in of_used(item.example, item, line, encoder))


def of_dropped(row: Dropped, line: Line, encoder: Encoder | None) -> Iterator[str]:
    """What is wrong with a row that was dropped."""
    if row.reason not in REASONS:
        yield f"dropped for an unknown reason, {row.reason!r}"
    if CONTROLS.search(row.message + row.excerpt):
        yield f"control characters in a message: {row.message!r}, of {row.excerpt!r}"
    if line.texts is not None and encoder is None:
        yield f"a good row was dropped: {row.reason}: {row.message}"


def of_used(example: Example, item: Item, line: Line, encoder: Encoder | None) -> Iterator[str]:
    """What is wrong with a row that was used."""
    if encoder is None:
        said = [_flat(example.prompt), *(_flat(example.prompt) + _flat(text) for text in example.completions)]
        lost = [text for text in line.texts or () if not any(text in whole for whole in said)]
        if lost:
            yield f"it lost {lost[0]!r}"
        return
    if item.encoded is None:
        yield "it has no ids"
        return
    account = item.account
    if account.read != account.scored + account.context + account.cut + account.template_tail:
        yield f"its account is uneven: {account}"
    for n, (ids, action, ended) in enumerate(item.encoded.completions):
        if len(ids) > LIMIT or len(action) != len(ids) - 1 or (example.completions and not action.any()):
            yield f"completion {n} has {len(ids)} ids, {len(action)} actions, {action.sum()} of them chosen"
        text = encoder.tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = rendered(example, n, encoder)
        if not same(str(text), whole, ended or not example.completions):
            yield f"completion {n} decodes to {str(text)!r}; expected {whole!r}"
        text = encoder.tokenizer.decode(ids[1:][action].tolist(), clean_up_tokenization_spaces=False)
        own, chosen = words(example, n), bare(str(text) if ended else str(text).rstrip("\ufffd"))
        if own is not None and chosen != (own if ended else own[: len(chosen)]):
            yield f"of completion {n} the policy chose {str(text)!r}; expected {own!r}"


def rendered(example: Example, n: int, encoder: Encoder) -> str:
    """All that a completion is, by the account of strings and of transformers alone."""
    steps = "step_label" in example.columns
    said = example.completions if steps else example.completions[n : n + 1]
    if isinstance(example.prompt, str):
        return example.prompt + "\n".join(map(str, said))
    messages = [dict(message) for part in (example.prompt, *said) for message in part if not isinstance(message, str)]
    while said and messages[-1]["role"] != "assistant":  # what others say after the policy's last words
        messages.pop()
    options = {**example.template_kwargs, "tokenize": False, "add_generation_prompt": not said}
    return str(encoder.tokenizer.apply_chat_template(messages, chat_template=encoder.chat_template, **options))


def same(text: str, whole: str, ended: bool) -> bool:
    """Whether decoded ids are the text: all of it with an end, or, where they were cut, its beginning."""
    if not ended:
        return whole.startswith(text.rstrip("\ufffd"))
    closed = text.endswith((EOS, END)) and whole.startswith(text) and not bare(whole[len(text) :])
    return text == whole or closed or text == whole + EOS


def words(example: Example, n: int) -> str | None:
    """What the policy said in a completion, without white space and ends.

    None where a template puts more to it, or where the first token, which may be half a character, is given.
    """
    said = example.completions if "step_label" in example.columns else example.completions[n : n + 1]
    if isinstance(example.prompt, str):
        return bare("".join(map(str, said))) if example.prompt and said else None
    spoken = [message for part in said for message in part if not isinstance(message, str)]
    own = [message for message in spoken if message["role"] == "assistant"]
    return None if any(message.get("tool_calls") for message in own) else bare("".join(m["content"] or "" for m in own))


def bare(text: str) -> str:
    """A text without white space and ends."""
    return "".join(text.replace(EOS, "").replace(END, "").split())


def _flat(text: Text) -> str:
    return text if isinstance(text, str) else "".join(message["content"] or "" for message in text)


def culprit(case: Case, file: Path, encoder: Encoder | None) -> int | None:
    """The first row that does alone, behind the good one, what all did together."""
    for n in range(1, len(case.lines)):
        file.write_bytes(case.content([case.lines[0], case.lines[n]]))
        trip = travel(file, encoder)
        if trip.escaped or trip.refused:
            return n
    return None


@cache
def encoders() -> list[Encoder]:
    """A byte-level BPE of a few words, with two templates, dropping and cutting what is too long."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    bpe.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[EOS, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([" ".join(WORDS), "system user assistant tools"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS)
    return [
        Encoder(tokenizer, frozenset(), LIMIT, template, keep)
        for template in (STRICT, CHATML)
        for keep in (True, False)
    ]


@dataclass
class Totals:
    """What became of the files of one kind."""

    files: int = 0
    rows: int = 0
    used: Counter = field(default_factory=Counter)  # with tokens or without -> rows
    dropped: dict[bool, Counter] = field(default_factory=lambda: {False: Counter(), True: Counter()})


@dataclass
class Found:
    """Everything that is reported."""

    seed: int
    kinds: dict[str, Totals] = field(default_factory=lambda: defaultdict(Totals))
    refused: dict[str, str] = field(default_factory=dict)  # what is wrong -> the message
    damaged: Counter = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def enter(self, case: Case, folder: Path) -> None:
        """Read one file without a tokenizer and with one."""
        totals, file = self.kinds[case.ending], folder / f"rows{case.ending}"
        totals.files += 1
        for encoder in (None, encoders()[case.number % len(encoders())]):
            file.write_bytes(case.content(case.lines))
            trip, tokens = travel(file, encoder), encoder is not None
            totals.rows += 0 if tokens else len(trip.items)
            for item in trip.items:
                if isinstance(item.example, Dropped):
                    totals.dropped[tokens][item.example.reason] += 1
                else:
                    totals.used[tokens] += 1
            if trip.refused and case.wrong:
                self.damaged["loose tables refused"] += not tokens
            for n, what in faults_of(case, trip, encoder):
                row = culprit(case, file, encoder) if n is None and not case.wrong else n
                self._violation(case, row, what, tokens)

    def enter_faults(self, folder: Path, count: int) -> None:
        """Read files that are wrong as a whole."""
        for what, (name, data) in faults().items():
            trip = self._read(what, folder / name, data, None)
            empty = trip.ledger is not None and trip.ledger.used == 0  # `softq data` says so itself
            self.refused[what] = "all rows dropped" if empty else trip.refused
            if not trip.refused and not empty:
                self.violations.append(f"seed {self.seed}: a file with the fault {what!r} was not refused")
        for n, (name, data) in enumerate(chances(count, self.seed)):
            for encoder in (None, encoders()[n % len(encoders())]):
                trip = self._read(name, folder / name, data, encoder)
                self.damaged["refused" if trip.refused else "read"] += encoder is None

    def _read(self, what: str, file: Path, data: bytes, encoder: Encoder | None) -> Trip:
        file.write_bytes(data)
        trip = travel(file, encoder)
        unknown = {i.example.reason for i in trip.items if isinstance(i.example, Dropped)} - REASONS
        if trip.escaped or unknown or CONTROLS.search(trip.refused):
            self.violations.append(f"seed {self.seed}, {what}: {trip.escaped or unknown or repr(trip.refused)}")
        return trip

    def _violation(self, case: Case, row: int | None, what: str, tokens: bool) -> None:
        line = case.lines[row] if row is not None and case.exact else None
        shown = "" if line is None else repr(line.raw) if line.raw is not None else written(line.value)
        shown = shown if len(shown) <= 500 else f"{shown[:350]} … {shown[-150:]}"
        place = f"seed {self.seed}, --only {case.number} ({case.format}{case.ending}), row {row}"
        self.violations.append(f"{place}{', in tokens' if tokens else ''}: {what}\n    {shown}")

    def lines(self) -> Iterator[str]:
        """The report."""
        yield "| file | files | rows | used | dropped | used in tokens | dropped in tokens |"
        yield "|---|---|---|---|---|---|---|"
        for ending in sorted(self.kinds, key=EXTENSIONS.index):
            total = self.kinds[ending]
            parts = " | ".join(f"{total.used[tokens]} | {_told(total.dropped[tokens])}" for tokens in (False, True))
            yield f"| {ending} | {total.files} | {total.rows} | {parts} |"
        yield ""
        yield "| wrong as a whole | said |"
        yield "|---|---|"
        yield from (f"| {what} | {said.replace('|', '¦')} |" for what, said in self.refused.items())
        yield ""
        yield f"damaged by chance: {_told(self.damaged) or 'none'}"
        yield f"violations: {len(self.violations)}"
        yield from self.violations


def _told(counts: Counter) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def fuzz(rows: int, seed: int, numbers: Iterable[int] = (), large: bool = False) -> Found:
    """Read about so many hostile rows; of some files only, if they are named by their numbers."""
    found, only = Found(seed), set(numbers)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        for one in cases(rows, seed, large):
            if not only or one.number in only:
                found.enter(one, Path(name))
        if not only:
            found.enter_faults(Path(name), rows // 50)
    return found


def main() -> None:
    """Print the report; exit 1 on a violation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", default=(), metavar="FILE", help="numbers of files")
    parser.add_argument("--large", action="store_true", help="with a row of 50 MB")
    options = parser.parse_args()
    found = fuzz(options.rows, options.seed, options.only, options.large)
    print("\n".join(line.encode("utf-8", "backslashreplace").decode() for line in found.lines()))
    sys.exit(bool(found.violations))


if __name__ == "__main__":
    main()
