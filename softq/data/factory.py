"""LLaMA-Factory's dataset_info.json: what an entry says of a file, and its rows in the shape that our parsers know."""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from softq.data.rows import DataError, Dropped, Row, came

COLUMNS = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output", "history": "history"},
    "sharegpt": {"messages": "conversations"},
}
"""An entry's name for a column -> ours, which also is its default in the file."""

SHARED = ("system", "tools", "chosen", "rejected", "kto_tag")
SPEAKERS = {
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
READ = {"file_name", "hf_hub_url", "split", "subset", "formatting", "ranking", "columns", "tags"}
MIRRORS = {"ms_hub_url", "om_hub_url"}  # where else the same data is
OURS = {*COLUMNS["alpaca"].values(), "conversations", "messages", "text", *SHARED}
"""What our parsers read: a field of the file that has one of these names, and is not named by the entry, is not it."""


class Entry(NamedTuple):
    """One data set of a dataset_info.json."""

    path: str  # a file beside it, or a name on the hub
    format: str
    columns: Mapping[str, str]  # ours -> the file's
    tags: Mapping[str, str]
    split: str = "train"
    config: str | None = None

    def tidied(self, row: Row | Dropped) -> Row | Dropped:
        """The row under our names, its messages with `from` and `value`."""
        if isinstance(row, Dropped):
            return row
        taken = {ours: row.value[theirs] for ours, theirs in self.columns.items() if theirs in row.value}
        rest = {name: cell for name, cell in row.value.items() if name not in {*OURS, *self.columns.values()}}
        value = {**rest, **taken}
        if "sharegpt" in self.format or self.format == "language-modeling":
            for name in ("conversations", "chosen", "rejected"):
                value |= {name: self._said(value[name])} if name in value else {}
        return Row(row.where, value)

    def _said(self, cell: Any) -> Any:
        if isinstance(cell, list):
            return [self._said(one) for one in cell]
        role, content = self.tags.get("role_tag", "from"), self.tags.get("content_tag", "value")
        if not isinstance(cell, dict) or role not in cell:
            return cell
        speakers = {self.tags.get(tag, ours): ours for tag, ours in SPEAKERS.items()}
        spoken = cell[role]
        said = {"from": speakers.get(spoken, spoken) if isinstance(spoken, str) else spoken}
        return {**said, **({"value": cell[content]} if content in cell else {})}


def entry_of(file: Path, name: str | None) -> Entry:
    """The entry of that name."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: can not be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: malformed JSON ({error}); repair the file") from error
    if not isinstance(known, dict):
        raise DataError(f"{file}: holds no object; expected data sets by name")
    if name is None or name not in known:
        near = get_close_matches(name or "", known, n=1)
        names = ", ".join(list(known)[:20])
        advice = f"did you mean {file},entry={near[0]}?" if near else f"expected {file},entry=NAME with one of {names}"
        said = f"no entry {name!r}" if name else "no entry is named"
        raise DataError(f"{file}: {said}; {advice}")
    if not isinstance(known[name], dict):
        raise DataError(f"{file}: entry {name!r} is {came(known[name])}; expected an object")
    return _entry(file, name, known[name])


def _entry(file: Path, name: str, said: Mapping[str, Any]) -> Entry:
    where = f"{file}, entry {name}"
    odd = sorted(set(said) - READ - MIRRORS)
    if odd:
        raise DataError(f"{where}: '{odd[0]}' is not read; expected only {', '.join(sorted(READ))}")
    formatting, columns, tags = said.get("formatting", "alpaca"), said.get("columns", {}), said.get("tags", {})
    if not isinstance(columns, dict) or not isinstance(tags, dict):
        raise DataError(f"{where}: columns and tags are objects; expected names by name")
    if formatting not in COLUMNS:
        raise DataError(f"{where}: formatting is {formatting!r}; expected alpaca or sharegpt")
    ours = {**COLUMNS[formatting], **{column: column for column in SHARED}}
    odd = sorted(set(columns) - set(ours))
    if odd:
        raise DataError(f"{where}: column '{odd[0]}' is not read; expected only {', '.join(ours)}")
    if "file_name" not in said and "hf_hub_url" not in said:
        raise DataError(f"{where}: names no file; expected file_name or hf_hub_url")
    taken = {ours[column]: theirs for column, theirs in columns.items()} or {name: name for name in ours.values()}
    path = str(file.parent / said["file_name"]) if "file_name" in said else said["hf_hub_url"]
    kind = "" if said.get("ranking") else "-kto" if "kto_tag" in columns else "-sft"
    format = "language-modeling" if formatting + kind == "sharegpt-sft" else formatting + kind
    return Entry(path, format, taken, tags, said.get("split", "train"), said.get("subset"))
