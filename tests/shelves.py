"""A scored directory of pairs with the numbers that a test gives."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from softq.inspection.columns import schema
from softq.inspection.shelf import Shelf, put

BLANK = {"string": "", "bool": True}


class Shelved(NamedTuple):
    """One pair: log π of the chosen and the rejected one's tokens, the margin, log π_ref of the two, the source."""

    chosen: list[float]
    rejected: list[float]
    margin: float = 0.0
    ref: tuple[float, float] = (0.0, 0.0)
    source: str = "a"


def shelf_of(directory: Path, pairs: list[Shelved], *, compared: bool = True, beta: float | None = 0.1) -> Shelf:
    """The pairs written and opened; a column that no test here reads is 0 or blank."""
    put(directory, "pairs", 0, _filled("pairs", [_pair(n, pair) for n, pair in enumerate(pairs)]), compared=compared)
    tokens = [
        {"record": n, "completion": k, "position": t, "logp": logp}
        for n, pair in enumerate(pairs)
        for k in (0, 1)
        for t, logp in enumerate(pair[k])
    ]
    put(directory, "tokens", 0, _filled("tokens", tokens), compared=compared)
    facts = {
        "format": "softq scores 1",
        "finished": True,
        "kind": "pairs",
        "parts": 1,
        "beta": beta,
        "unit": "nats" if beta is None else "reward",
    }
    (directory / "score.json").write_text(json.dumps({**facts, "reference": "ref" if compared else None}))
    return Shelf(directory)


def _pair(n: int, pair: Shelved) -> dict[str, Any]:
    sides = {}
    for side, logp, ref in zip(("chosen", "rejected"), (pair.chosen, pair.rejected), pair.ref, strict=True):
        sides |= {f"{side}_logp": sum(logp), f"{side}_tokens": len(logp), f"{side}_ref_logp": ref}
    return {"record": n, "source": pair.source, "margin": pair.margin, **sides}


def _filled(table: str, rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    of = schema(table, True)
    blank = {field.name: [] if "list" in str(field.type) else BLANK.get(str(field.type), 0) for field in of}
    return {name: [row.get(name, blank[name]) for row in rows] for name in of.names}
