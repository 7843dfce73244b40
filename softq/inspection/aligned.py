"""Two scored directories of the same data, record by record."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from softq.data.ledger import place
from softq.inspection.columns import SIDES
from softq.inspection.packed import Item
from softq.inspection.shelf import Shelf

Key = tuple[object, ...]


def aligned(shelf: Shelf, other: Shelf, items: Sequence[Item]) -> list[Item | None]:
    """Where each item of `shelf` stands in `other`; None where it is not there.

    Where both hold the same tokens, by number; else, as of two tokenizers or two held-out parts, by file name, row and text.
    ValueError where they have nothing in common.
    """
    if shelf.facts["content"] == other.facts["content"] and shelf.kind == other.kind:
        return list(items)
    there = dict(_keys(other)) if shelf.kind == other.kind else {}
    wanted = {item: there.get(key) for key, item in _keys(shelf)}
    if not any(found is not None for found in wanted.values()):
        named = [", ".join(each.facts["data"]) for each in (shelf, other)]
        raise ValueError(
            f"{shelf.directory} and {other.directory} have no {shelf.kind} in common (they are of {named[0]} and {named[1]}): "
            "give two scores of the same data"
        )
    return [wanted[item] for item in items]


def _keys(shelf: Shelf) -> Iterator[tuple[Key, Item]]:
    """What is the same of a record whatever read it: its place, without directories, and its completions."""
    pairs = shelf.kind == "pairs"
    texts = [f"{side}_text" for side in SIDES] if pairs else ["text"]
    for part in shelf.parts(shelf.kind, ["record", "where", *texts, *([] if pairs else ["completion"])]):
        for row in part.to_pylist():
            file, number = place(row["where"])
            completions = (0, 1) if pairs else (row["completion"],)
            yield (
                (Path(file).name, number, completions[0], *(hash(row[text]) for text in texts)),
                Item(row["record"], completions),
            )
