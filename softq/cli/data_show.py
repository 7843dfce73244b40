"""What `softq data` prints: the ledger, lengths as bars, findings, and rows in colours."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from softq.cli.printable import printable
from softq.data.check import Finding
from softq.data.coding import Coded
from softq.data.convert import Written
from softq.data.example import Example
from softq.data.example import Text as Said
from softq.data.ledger import place
from softq.data.review import Review
from softq.data.vocabulary import Vocabulary

BAR = 32  # characters of the longest bar
WIDE = 400  # characters of a row's part that are shown
NAMED = 5  # rows of a finding that are named
INDENT = " " * 12  # as wide as the first column
STYLES = {"context": "dim", "scored": "green", "cut": "strike red", "template_tail": "dim strike"}
BY = {"text": "bold yellow", "template": "bold magenta", "tokenizer": "bold cyan", "softq": "bold blue"}
WHO = {"text": "the data's own text", "template": "template", "tokenizer": "tokenizer", "softq": "softq"}
TEXTS = ("context", "scored")  # the fates of text that was not tokenised
UNDER = {"context": "", "scored": " underline", "cut": " strike", "template_tail": " strike"}


class Explained(NamedTuple):
    """A row to be shown, in tokens where there is a tokenizer."""

    example: Example
    coded: Sequence[Coded] = ()
    vocabulary: Vocabulary | None = None


@dataclass(frozen=True)
class Shown:
    """A review as a person sees it."""

    review: Review
    written: Written | None
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))

    def show(self, notes: Sequence[str], findings: Sequence[Finding] | None, rows: Sequence[Explained]) -> None:
        """Print everything, one fact a line, and then some rows."""
        for line in (*notes, *self._lines(), *_found(findings)):
            self._say(line)
        if rows:
            self.console.print(self._legend(rows[0].vocabulary is not None))
        for row in rows:
            self._picture(row)

    def _say(self, line: str) -> None:
        """A line as it is, with what it goes on with under its first word where a terminal is narrow."""
        line = printable(line).replace("\n", "\\n").replace("\t", "\\t")
        lines = [line]
        if self.console.is_terminal and len(line) > self.console.width > 4 * len(INDENT):
            lines = textwrap.wrap(line, self.console.width, subsequent_indent=INDENT, break_on_hyphens=False)
        for part in lines:
            self.console.print(Text(part))

    def _lines(self) -> Iterator[str]:
        review = self.review
        for source, format in zip(review.sources, review.stream.formats, strict=True):
            weight = f", {source.weight:g} times a pass" if source.weight != 1 else ""
            yield f"read        {source.name}: {format} ({review.stream.kind}{weight})"
        yield from review.ledger.lines()
        for n, (reason, row) in enumerate(review.troubles.items()):
            yield f"{INDENT if n else 'why         '}the first {reason}: {row.message or 'no more is known'}"
            if row.excerpt:
                yield f"{INDENT}{row.excerpt[:120]}"
        if review.other:
            yield f"unread      fields that nothing reads: {', '.join(review.other)}"
        yield from self._lengths()
        if self.written is not None:
            parts = ", ".join(f"{rows:,} {self.written.kind} to {file}" for file, rows in self.written.rows.items())
            lost = ", ".join(f"{n:,} {reason}" for reason, n in self.written.left_out.items())
            yield f"written     {parts}" + (f"; left out: {lost}" if lost else "")

    def _lengths(self) -> Iterator[str]:
        lengths = self.review.lengths
        for n, name in enumerate(lengths.counts):
            quantiles = lengths.quantiles(name)
            if n == 0:
                yield "lengths     " + "".join(f"{quantile:>8}" for quantile in quantiles) + f"  in {lengths.unit}"
            meaning = f"  prompt + longest completion{self._of()}" if name == "whole" else ""
            yield f"{name:<12}" + "".join(f"{length:>8,}" for length in quantiles.values()) + meaning
        if "whole" in lengths.counts:
            bins = lengths.bins("whole")
            most = max(count for _, _, count in bins)
            for low, high, count in bins:
                bar = "█" * round(BAR * count / most) or ("▏" if count else "")
                yield f"  {low:>7,} to {high - 1:>7,}  {bar:<{BAR}}{count:>8,}"
        if self.review.max_length is not None:
            yield f"too long    {lengths.too_long:,} rows, of more than {self.review.max_length:,} tokens (max_length)"

    def _of(self) -> str:
        """Which rows count as a whole, and when: in tokens those too that were then dropped."""
        tokens = self.review.ledger.tokens
        return ", after the cut" * bool(tokens["cut"]) + ", of dropped rows too" * bool(tokens["dropped"])

    def _legend(self, tokens: bool) -> Text:
        if self._plain:
            return Text("⟦scored⟧" + (", and below each completion who added its special tokens" if tokens else ""))
        parts = [Text(part.replace("_", " "), style) for part, style in STYLES.items() if tokens or part in TEXTS]
        legend = Text(" · ").join(parts)
        if tokens:
            legend += Text("; special tokens, underlined where scored, by ")
            legend += Text(" · ").join(Text(WHO[by], style) for by, style in BY.items())
        return legend

    def _picture(self, row: Explained) -> None:
        """What is scored, what is context, and who added each special token."""
        example, console = row.example, self.console
        console.print(Text(f"── {printable(example.where)}", "bold"))
        if row.vocabulary is None:
            console.print(self._styled(_short(_spoken(example.prompt)), "context"))
        for n, name in enumerate(self._names(row)):
            console.print(Text(name, "underline"))
            if row.vocabulary is None:
                console.print(self._styled(_short(_spoken(example.completions[n])), "scored"))
            else:
                console.print(self._painted(row.coded[n], row.vocabulary, whole=n == 0))
                console.print(Text(_added(row.coded[n], row.vocabulary), "italic"))

    def _names(self, row: Explained) -> list[str]:
        """What its completions are called; steps are one in tokens, and a bare prompt is there for itself."""
        kind, columns = self.review.stream.kind, row.example.columns
        if kind == "pairs":
            return ["chosen", "rejected"]
        if kind == "groups":
            return [f"completion {n}, score {score:g}" for n, score in enumerate(columns["reward"])]
        if kind == "labels":
            return [_verdict(columns["label"][0])]
        if kind == "steps" and not row.coded:
            return [f"step {n}, {_verdict(label)}" for n, label in enumerate(columns["step_label"])]
        if kind == "prompts":
            return ["prompt"][: len(row.coded)]
        return ["completion"]

    def _painted(self, coded: Coded, vocabulary: Vocabulary, *, whole: bool) -> Text:
        """A completion piece by piece; the prompt once, then as dots."""
        painted, prompt = Text(), coded.prompt
        for part, pieces in groupby(coded.pieces, lambda piece: piece.part):
            said = Text()
            for piece in pieces:
                if prompt > 0 and not whole:
                    said = Text("… ", STYLES["context"])
                else:
                    for special, ids in _runs(piece.ids, vocabulary):
                        style = BY[piece.by] + UNDER[part] if special else STYLES[part]
                        said += Text(_short(vocabulary.text(ids)), style)
                prompt -= len(piece.ids)
            painted += self._bracketed(said, part)
        return painted

    def _styled(self, text: str, part: str) -> Text:
        return self._bracketed(Text(text, STYLES[part]), part)

    def _bracketed(self, text: Text, part: str) -> Text:
        return Text("⟦") + text + Text("⟧") if self._plain and part == "scored" and len(text) else text

    @property
    def _plain(self) -> bool:
        """Whether there are no colours, so that what is scored stands in brackets."""
        return self.console.no_color or not self.console.is_terminal


def _found(findings: Sequence[Finding] | None) -> Iterator[str]:
    """Findings, warnings first, with the first rows of each."""
    for finding in sorted(findings or (), key=lambda finding: finding.level != "warning"):
        yield f"{finding.level:<11} {finding.check}: {finding.message}"
        if finding.rows:
            yield f"{INDENT}{_named(finding.rows[:NAMED])}{'; …' if len(finding.rows) > NAMED else ''}"
    if findings == []:
        yield "checked     nothing found"


def _named(groups: Sequence[Sequence[str]]) -> str:
    """Rows by name, a file's name once: pairs.json[13] = [157]; [28] = [248]."""
    said, before = [], ""
    for group in groups:
        names = []
        for where in group:
            file = place(where)[0]
            names.append(where[len(file) :] if file == before else where)
            before = file
        said.append(" = ".join(names))
    return "; ".join(said)


def _verdict(label: float) -> str:
    return "good" if label else "bad"


def _spoken(text: Said) -> str:
    """A text as it is, or messages with their roles."""
    if isinstance(text, str):
        return text
    return "\n".join(f"{message['role']}: {message['content'] or ''}" for message in text)


def _runs(ids: Sequence[int], vocabulary: Vocabulary) -> list[tuple[bool, list[int]]]:
    """Stretches of special tokens and of others."""
    runs: list[tuple[bool, list[int]]] = []
    for i in ids:
        special = i in vocabulary.added
        runs = runs if runs and runs[-1][0] == special else [*runs, (special, [])]
        runs[-1][1].append(i)
    return runs


def _added(coded: Coded, vocabulary: Vocabulary) -> str:
    """How many tokens have which fate, and who added each special token."""
    count = Counter(
        (printable(vocabulary.text([i])), piece.by)
        for piece in coded.pieces
        for i in piece.ids
        if i in vocabulary.added
    )
    parts = (f"{token}{f' ×{n}' if n > 1 else ''} {WHO[by]}" for (token, by), n in count.items())
    counts = {part: coded.count(part) for part in STYLES}
    said = ", ".join(f"{n} {part.replace('_', ' ')}" for part, n in counts.items() if n)
    return f"{said} · special tokens: {' · '.join(parts) or 'none'}"


def _short(text: str) -> str:
    half = WIDE // 2
    return printable(text if len(text) <= WIDE else f"{text[:half]} … {text[-half:]}")
