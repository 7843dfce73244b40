"""The account of a data set: what became of every row and every token."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from softq.data.encode import Account, Encoded
from softq.data.formats import Dropped

TOKENS = ("scored", "context", "cut", "template_tail", "dropped")
NAMED = 5  # so many rows are named in a line; `as_dict` names all


@dataclass
class Ledger:
    """rows = used + dropped, and tokens read = scored + context + cut + template_tail + those of dropped rows.

    Tokens count per completion as if nothing were shared. A row that is dropped before it is tokenised has none.
    """

    rows: int = 0
    used: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)  # reason -> rows
    read: int = 0
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TOKENS, 0))
    shared: int = 0  # tokens of used rows that repeat a prompt, so need not be computed again
    merged: list[str] = field(default_factory=list)  # used rows in which a token would straddle a boundary
    duplicates: int = 0  # used rows with the ids of a row before; they are kept
    _seen: set[bytes] = field(default_factory=set, repr=False)  # 16 bytes a row

    def add(self, result: Encoded | Dropped, account: Account) -> None:
        """Enters one row."""
        self.rows += 1
        self.read += account.read
        if isinstance(result, Dropped):
            self.dropped.setdefault(result.reason, []).append(result.where)
            self.tokens["dropped"] += account.read
            return
        self.used += 1
        self.tokens["scored"] += account.scored
        self.tokens["context"] += account.context
        self.tokens["cut"] += account.cut
        self.tokens["template_tail"] += account.template_tail
        self.shared += account.shared
        self.merged += [result.where] if account.merged else []
        digest = _digest(result)
        self.duplicates += digest in self._seen
        self._seen.add(digest)

    def check(self) -> None:
        """Nothing is lost: every row and every token that came in is accounted for."""
        dropped = sum(len(rows) for rows in self.dropped.values())
        if self.rows != self.used + dropped:
            raise AssertionError(f"the ledger lost rows: {self.rows} in, {self.used} used, {dropped} dropped")
        if self.read != sum(self.tokens.values()):
            raise AssertionError(f"the ledger lost tokens: {self.read} in, {self.tokens}")

    def as_dict(self) -> Mapping[str, Any]:
        """The whole ledger, ready for JSON."""
        return {
            "rows": {"in": self.rows, "used": self.used, "dropped": {k: list(v) for k, v in self.dropped.items()}},
            "tokens": {"in": self.read, **self.tokens},
            "shared": self.shared,
            "merged": list(self.merged),
            "duplicates": self.duplicates,
        }

    def lines(self) -> list[str]:
        """The ledger for people, one fact a line."""
        parts = " + ".join(f"{count:,} {name}" for name, count in self.tokens.items())
        lines = [
            f"rows        {self.rows:,} = {self.used:,} used + {self.rows - self.used:,} dropped",
            *(f"dropped     {len(rows):,} {reason}: {_named(rows)}" for reason, rows in self.dropped.items()),
            f"tokens      {self.read:,} = {parts}",
            f"shared      {self.shared:,} of them repeat a prompt",
            f"duplicates  {self.duplicates:,} rows, kept",
        ]
        merged = f"boundary    {len(self.merged):,} rows with a token across it, split there: {_named(self.merged)}"
        return [*lines, merged] if self.merged else lines


def _named(rows: list[str]) -> str:
    """The first rows by name, a file's name once: pairs.jsonl:3, :17, :20, ..."""
    said, before = [], ""
    for row in rows[:NAMED]:
        at = max(row.rfind(":"), row.rfind("["))
        said.append(row if row[:at] != before else row[at:])
        before = row[:at]
    return ", ".join(said) + (", ..." if len(rows) > NAMED else "")


def _digest(record: Encoded) -> bytes:
    """What two rows with the same tokens have in common."""
    digest = hashlib.blake2b(digest_size=16)
    for completion in record.completions:
        digest.update(len(completion.ids).to_bytes(8, "little"))
        digest.update(completion.ids.tobytes())
    return digest.digest()
