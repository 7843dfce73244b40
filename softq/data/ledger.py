"""The account of a data set: what became of every row and every token, in all and by source."""

import hashlib
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from softq.data.encode import Account
from softq.data.example import Example
from softq.data.rows import Dropped

TOKENS = ("scored", "context", "cut", "template_tail", "dropped")
COUNTS = ("shared", "merged", "spelled", "completions", "bos", "one_bos", "finished", "compared")  # only of tokens
NAMED = 5  # so many rows are named in a line; dropped.jsonl and merged.jsonl name all
_PLACE = re.compile(r"(.*)(?::(\d+)|\[(\d+)\])", re.DOTALL)


@dataclass
class Tally:
    """rows in = used + dropped, and tokens in = scored + context + cut + template_tail + those of dropped rows.

    Tokens count per completion as if nothing were shared. A row that is dropped before it is tokenised has none.
    """

    rows: int = 0
    used: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> rows
    read: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TOKENS, 0))

    def add(self, dropped: Dropped | None, account: Account) -> None:
        """Enters one row."""
        self.rows += 1
        self.read += account.read
        if dropped is not None:
            self.dropped[dropped.reason] = self.dropped.get(dropped.reason, 0) + 1
            self.tokens["dropped"] += account.read
            return
        self.used += 1
        for name in TOKENS[:-1]:
            self.tokens[name] += getattr(account, name)

    def check(self) -> None:
        """Nothing is lost: every row and every token that came in is accounted for."""
        if self.rows != self.used + sum(self.dropped.values()):
            raise AssertionError(f"the ledger lost rows: {self.rows} in, {self.used} used, dropped {self.dropped}")
        if self.read != sum(self.tokens.values()):
            raise AssertionError(f"the ledger lost tokens: {self.read} in, {self.tokens}")

    def counted(self, tokenised: bool) -> dict[str, Any]:
        """Rows and tokens, ready for JSON."""
        tokens = {"in": self.read, **self.tokens} if tokenised else None
        return {"rows_in": self.rows, "rows_used": self.used, "rows_dropped": dict(self.dropped), "tokens": tokens}


@dataclass
class Ledger(Tally):
    """The account of all sources, and of each."""

    tokenised: bool = True  # False: no tokenizer was at hand, so only rows are counted
    shared: int = 0  # tokens of used rows that repeat a prompt, so need not be computed again
    merged: int = 0  # used rows in which a token would straddle a boundary
    spelled: int = 0  # used rows whose own text spells a special token
    completions: int = 0  # of used rows
    bos: bool = False  # the tokenizer puts a BOS in front of a text
    one_bos: int = 0  # of these completions, with exactly one
    finished: int = 0  # of these, with exactly one end token, behind their last words
    compared: int = 0  # used rows whose ids were compared with the tokenizer's own of the whole text, and are equal
    duplicates: int = 0  # used rows with the texts of a row before; they are kept
    sources: dict[str, Tally] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)  # reason, or "merged" or "spelled" -> first rows
    _seen: array = field(default_factory=lambda: array("Q"), repr=False)  # 8 bytes a row

    def enter(self, source: str, row: Example | Dropped, account: Account) -> None:
        """Enters one row of a source: the example that is used, or the row that is not."""
        dropped = row if isinstance(row, Dropped) else None
        self.add(dropped, account)
        self.sources.setdefault(source, Tally()).add(dropped, account)
        if isinstance(row, Dropped):
            self._name(row.reason, row.where)
            return
        self._seen.append(_digest(row))
        self.shared += account.shared
        self.completions += account.completions
        self.bos |= account.bos
        self.one_bos += account.one_bos
        self.finished += account.finished
        self.compared += account.compared
        for name in ("merged", "spelled"):
            if getattr(account, name):
                setattr(self, name, getattr(self, name) + 1)
                self._name(name, row.where)

    def close(self) -> None:
        """All rows are entered: counts duplicates, checks that nothing was lost."""
        seen = np.sort(np.frombuffer(self._seen, np.uint64)) if self._seen else np.empty(0, np.uint64)
        self.duplicates = int((seen[1:] == seen[:-1]).sum())
        self._seen = array("Q")
        for tally in (self, *self.sources.values()):
            tally.check()

    def as_dict(self) -> dict[str, Any]:
        """The whole ledger, ready for JSON."""
        return {
            **self.counted(self.tokenised),
            **{name: getattr(self, name) if self.tokenised else None for name in COUNTS},
            "duplicates": self.duplicates,
            "examples": self.examples,
            "sources": {name: tally.counted(self.tokenised) for name, tally in self.sources.items()},
        }

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> "Ledger":
        """The ledger that `as_dict` wrote."""
        tallies = {name: Tally(**_tallied(tally)) for name, tally in written["sources"].items()}
        kept = {name: written[name] for name in (*COUNTS, "duplicates", "examples") if written[name] is not None}
        return cls(**_tallied(written), tokenised=written["tokens"] is not None, sources=tallies, **kept)

    def lines(self) -> list[str]:
        """The ledger for people, one fact a line."""
        lines = [f"rows        {self.rows:,} = {self.used:,} used + {self.rows - self.used:,} dropped"]
        lines += [f"dropped     {n:,} {reason}: {self._named(reason, n)}" for reason, n in self.dropped.items()]
        if len(self.sources) > 1:
            parts = (f"{name} {tally.used:,} of {tally.rows:,}" for name, tally in self.sources.items())
            lines.append(f"by source   {', '.join(parts)}")
        if self.tokenised:
            parts = " + ".join(f"{count:,} {name}" for name, count in self.tokens.items())
            kept = self.read - self.tokens["dropped"]
            share = f" ({self.shared / kept:.0%} of those of used rows)" if kept else ""
            bos = f", {self.one_bos:,} with exactly one BOS" if self.bos else ""
            bos += " (the chat template puts none, nor will generation)" if self.bos and not self.one_bos else ""
            lines += [
                f"tokens      {self.read:,} = {parts}",
                f"shared      {self.shared:,} of them{share} repeat a prompt and are computed once",
                f"checked     {self.completions:,} completions, {self.finished:,} with exactly one end token{bos}; "
                f"{self.compared:,} rows against the tokenizer's own ids of the whole text",
            ]
        lines.append(f"duplicates  {self.duplicates:,} used rows, kept")
        if self.merged:
            named = self._named("merged", self.merged)
            lines.append(f"boundary    {self.merged:,} rows with a token across it, split there: {named}")
        if self.spelled:
            named = self._named("spelled", self.spelled)
            lines.append(f"special     {self.spelled:,} rows spell a special token in their own text: {named}")
        return lines

    def _name(self, name: str, where: str) -> None:
        named = self.examples.setdefault(name, [])
        if len(named) < NAMED:
            named.append(where)

    def _named(self, name: str, count: int) -> str:
        """The first rows by name, a file's name once: pairs.jsonl:3, :17, :20, ..."""
        said, before = [], ""
        for row in self.examples[name]:
            at = max(row.rfind(":"), row.rfind("["))
            said.append(row if row[:at] != before else row[at:])
            before = row[:at]
        return ", ".join(said) + (", ..." if count > NAMED else "")


def place(where: str) -> tuple[str, int | None]:
    """ "pairs.jsonl:17" -> ("pairs.jsonl", 17); "pairs.json[16]" -> ("pairs.json", 16)."""
    found = _PLACE.fullmatch(where)
    return (found[1], int(found[2] or found[3])) if found else (where, None)


def _tallied(written: Mapping[str, Any]) -> dict[str, Any]:
    tokens = dict(written["tokens"] or {"in": 0, **dict.fromkeys(TOKENS, 0)})
    rows = {"rows": written["rows_in"], "used": written["rows_used"], "dropped": dict(written["rows_dropped"])}
    return {**rows, "read": tokens.pop("in"), "tokens": tokens}


def _digest(example: Example) -> int:
    """What two records with the same texts have in common."""
    digest = hashlib.blake2b(digest_size=8)
    for text in (example.prompt, *example.completions):
        digest.update(text.encode() if isinstance(text, str) else _spoken(text))
        digest.update(b"\0")
    return int.from_bytes(digest.digest(), "little")


def _spoken(messages: Sequence[Mapping[str, Any]]) -> bytes:
    return repr([sorted(message.items()) for message in messages]).encode("utf-8", "backslashreplace")
