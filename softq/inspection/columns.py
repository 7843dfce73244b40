"""The columns of a scored data set: what `softq score` writes, and everything in this folder reads.

`pairs` has a row a pair, or `rows` a row a completion where the data is not pairs; `tokens` has a row a token that the policy
chose, in the order of record, completion and position. If they were asked for, `fresh` has a row a completion that the reference
itself gave to a prompt of the data, and `noise` a row a pair whose label was cross-fitted. Columns that need a reference are
absent without one.
"""

from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa

TOP = 4
"""How many of the policy's likeliest tokens are kept of each state."""


class Column(NamedTuple):
    """One column: its type, unit and meaning, and what it needs beside the policy."""

    kind: pa.DataType
    unit: str
    meaning: str
    compared: bool = False  # absent without a reference


REAL, SUM, COUNT, TEXT = pa.float32(), pa.float64(), pa.int32(), pa.string()

TOKENS: Mapping[str, Column] = {
    "record": Column(pa.int64(), "number", "which record of the data, from 0"),
    "completion": Column(pa.int16(), "number", "which completion of it; of a pair 0 is the chosen one"),
    "position": Column(COUNT, "number", "which action of the completion, from 0"),
    "token": Column(COUNT, "id", "the token"),
    "text": Column(TEXT, "", "what it adds to the text; of a character that several tokens make, the first has all"),
    "shared": Column(pa.bool_(), "", "whether another completion of the record begins with the same tokens up to here"),
    "logp": Column(REAL, "nats", "log π of the token"),
    "entropy": Column(REAL, "nats", "of the policy, before the token"),
    "rank": Column(COUNT, "tokens", "how many tokens the policy holds likelier"),
    "gap": Column(REAL, "nats", "log π of the likeliest token less that of this one"),
    "top": Column(pa.list_(COUNT), "id", f"the policy's {TOP} likeliest tokens, the likeliest first"),
    "top_text": Column(pa.list_(TEXT), "", "their text"),
    "top_logp": Column(pa.list_(REAL), "nats", "their log π"),
    "ref_logp": Column(REAL, "nats", "log π_ref of the token", True),
    "reward": Column(REAL, "reward", "β log π/π_ref of the token; in nats where β is not known", True),
    "running": Column(REAL, "reward", "the sum of reward up to this token, it included", True),
    "ref_entropy": Column(REAL, "nats", "of the reference, before the token", True),
    "kl": Column(REAL, "nats", "KL(π‖π_ref) before the token", True),
    "kl_from_ref": Column(REAL, "nats", "KL(π_ref‖π) before the token", True),
    "top_ref_logp": Column(pa.list_(REAL), "nats", "log π_ref of the policy's likeliest tokens", True),
}

RECORD: Mapping[str, Column] = {
    "record": Column(pa.int64(), "number", "which record of the data, from 0"),
    "where": Column(TEXT, "", "file and row"),
    "source": Column(TEXT, "", "the name of the source it is from"),
    "prompt": Column(TEXT, "", "what the completions answer"),
}

COMPLETION: Mapping[str, Column] = {
    "text": Column(TEXT, "", "the completion, without its end token"),
    "tokens": Column(COUNT, "tokens", "actions of it, the end token included"),
    "ended": Column(pa.bool_(), "", "false: cut at a length limit"),
    "logp": Column(SUM, "nats", "Σ log π"),
    "entropy": Column(SUM, "nats", "Σ of the policy's entropies along it"),
    "ref_logp": Column(SUM, "nats", "Σ log π_ref", True),
    "reward": Column(SUM, "reward", "β Σ log π/π_ref; in nats where β is not known", True),
    "end_reward": Column(SUM, "reward", "the part of reward that its last token has", True),
    "kl": Column(SUM, "nats", "Σ KL(π‖π_ref) along it", True),
    "kl_from_ref": Column(SUM, "nats", "Σ KL(π_ref‖π) along it", True),
}

SIDES = ("chosen", "rejected")

ROWS: Mapping[str, Column] = {
    **RECORD,
    "completion": Column(pa.int16(), "number", "which completion of the record"),
    **COMPLETION,
    "score": Column(SUM, "", "the data's score or label (1 good, 0 bad) of it; null where there is none"),
}

PAIRS: Mapping[str, Column] = {
    **RECORD,
    **{f"{side}_{name}": column for side in SIDES for name, column in COMPLETION.items()},
    "shared": Column(COUNT, "tokens", "actions with which both completions begin"),
    "margin": Column(SUM, "reward", "reward of the chosen one less the rejected one's", True),
    "ches": Column(
        SUM,
        "",
        "⟨Σh_w, Σh_l⟩ - ‖Σh_w‖² (CHES) of the reference's states; the policy's without one; null where a "
        "model hides its states",
    ),
    "ln_ches": Column(SUM, "", "the same of means: ⟨h̄_w, h̄_l⟩ - ‖h̄_w‖²"),
}

FRESH: Mapping[str, Column] = {"record": RECORD["record"], **COMPLETION}

NOISE: Mapping[str, Column] = {
    "record": RECORD["record"],
    "fold": Column(
        pa.int16(), "number", "the pairs that were left out together: all pairs of a prompt are in one fold"
    ),
    "margin": Column(SUM, "reward", "reward of the chosen one less the rejected one's, by dpo on the other folds"),
    "wrong": Column(SUM, "share", "the probability that the label is wrong"),
}

TABLES: Mapping[str, Mapping[str, Column]] = {
    "pairs": PAIRS,
    "rows": ROWS,
    "tokens": TOKENS,
    "fresh": FRESH,
    "noise": NOISE,
}


def schema(table: str, compared: bool) -> pa.Schema:
    """The columns of a table; `compared`: with those that need a reference."""
    columns = {name: column for name, column in TABLES[table].items() if compared or not column.compared}
    return pa.schema([(name, column.kind) for name, column in columns.items()])
