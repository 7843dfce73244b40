"""A scored directory made by hand: pairs of tokens with a log-prob under policy and reference each, and all that follows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from softq.data.ledger import Ledger
from softq.data.store import write_json
from softq.inspection.columns import schema
from softq.inspection.shelf import FACTS, Shelf, put

Said = Sequence[tuple[str, float, float]]  # text, log π, log π_ref
BETA = 0.5


def scored(
    directory: Path, pairs: Sequence[tuple[Said, Said]], *, per: int = 2, compared: bool = True, **facts: Any
) -> Shelf:
    """These pairs on disk, `per` a part. What follows from nothing here is 0 or blank."""
    parts = -(-len(pairs) // per)
    for part in range(parts):
        numbers = range(part * per, min((part + 1) * per, len(pairs)))
        rows = [_token(n, k, t, said) for n in numbers for k in (0, 1) for t, said in enumerate(pairs[n][k])]
        _put(directory, "tokens", part, rows, compared)
        _put(directory, "pairs", part, [_pair(n, *pairs[n]) for n in numbers], compared)
    ledger = Ledger(rows=len(pairs), used=len(pairs)).as_dict()
    said = {
        "format": "softq scores 1",
        "kind": "pairs",
        "parts": parts,
        "records": len(pairs),
        "finished": True,
        "beta": BETA,
        "unit": "reward",
        "policy": {"model": "my/policy", "fingerprint": "p"},
        "dtype": "float32",
        "layout": "plain",
        "top": 2,
        "data": ["some/pairs.jsonl"],
        "content": "c",
        "ledger": ledger,
        "versions": {"softq": "1"},
        "reference": {"model": "my/sft", "fingerprint": "r"} if compared else None,
    }
    write_json(directory / FACTS, {**said, **facts})
    return Shelf(directory)


def _token(record: int, completion: int, position: int, said: tuple[str, float, float]) -> dict[str, Any]:
    text, logp, ref = said
    return {
        "record": record,
        "completion": completion,
        "position": position,
        "text": text,
        "logp": logp,
        "ref_logp": ref,
        "reward": BETA * (logp - ref),
        "entropy": 0.25,
        "kl": 0.125,
        "rank": 1,
        "top_text": [text, "other"],
        "top_logp": [logp, -9.0],
        "top_ref_logp": [ref, -8.0],
    }


def _pair(record: int, chosen: Said, rejected: Said) -> dict[str, Any]:
    found: dict[str, Any] = {"record": record, "where": f"some/pairs.jsonl:{record + 1}", "prompt": f"prompt {record}"}
    for side, said in (("chosen", chosen), ("rejected", rejected)):
        logp, ref = sum(one[1] for one in said), sum(one[2] for one in said)
        found |= {f"{side}_text": "".join(one[0] for one in said), f"{side}_tokens": len(said), f"{side}_ended": True}
        found |= {f"{side}_logp": logp, f"{side}_ref_logp": ref, f"{side}_reward": BETA * (logp - ref)}
        found |= {f"{side}_kl": 0.125 * len(said), f"{side}_entropy": 0.25 * len(said)}
    return found | {"margin": found["chosen_reward"] - found["rejected_reward"], "ches": None}


BLANK = {"string": "", "bool": False}


def _put(directory: Path, table: str, part: int, rows: Sequence[dict[str, Any]], compared: bool) -> None:
    blank = {f.name: [] if "list" in str(f.type) else BLANK.get(str(f.type), 0) for f in schema(table, True)}
    columns = {name: [row.get(name, value) for row in rows] for name, value in blank.items()}
    put(directory, table, part, columns, compared=compared)
