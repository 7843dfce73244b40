"""The split of a margin, concentration and types of token: by hand, and against the lab's tables."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from softq.data.store import write_json
from softq.inspection.columns import COMPLETION, SIDES, schema
from softq.inspection.credit import KINDS, PARTS, actions, concentration, figures, findings, kind, part, split
from softq.inspection.pieces import Pieces
from softq.inspection.shelf import FACTS, Shelf, put
from softq.inspection.tables import completion_table, pair_table, readouts, token_table
from softq.lm.score import score
from softq.verify.tables import rows, some_models

CHOSEN = [
    ("a", 0.5),
    (" b", 1.0),
    (",", 0.2),
    (" c", 3.0),
    (" 7", 0.1),
    (" d", 0.6),
    ("é", -0.7),
    ("", 0.8),
    (" e", 0.9),
]
REJECTED = [("a", 0.5), (" x", -2.0), ("<|end|>", 0.3)]


def tables(
    chosen: list[tuple[str, float]], rejected: list[tuple[str, float]], record: int = 0
) -> tuple[pa.Table, pa.Table]:
    """One pair, whose first token is shared; the rejected one has an end token, the chosen one was cut."""
    tokens = pa.table(
        {
            "record": [record] * (len(chosen) + len(rejected)),
            "completion": [0] * len(chosen) + [1] * len(rejected),
            "position": [*range(len(chosen)), *range(len(rejected))],
            "text": [text for text, _ in [*chosen, *rejected]],
            "shared": [True, *[False] * (len(chosen) - 1), True, *[False] * (len(rejected) - 1)],
            "reward": [reward for _, reward in [*chosen, *rejected]],
        }
    )
    sums = {
        f"{side}_{name}": [value]
        for side, said in (("chosen", chosen), ("rejected", rejected))
        for name, value in (("reward", sum(reward for _, reward in said)), ("tokens", len(said)))
    }
    return tokens, pa.table({"record": [record], "chosen_ended": [False], "rejected_ended": [True], **sums})


def test_every_token_is_in_one_part() -> None:
    of = actions(*tables(CHOSEN, REJECTED))
    top = ["top"] * 5
    expected = ["shared", "first", "punctuation", "top", "rest", *top[:4], "shared", "first", "end"]
    assert np.array(list(PARTS))[part(of)].tolist() == expected
    record, parts = split(of)
    assert record.tolist() == [0]
    by_hand = {
        "shared": 0.0,
        "first": 1 + 2,
        "end": -0.3,
        "top": 3 + 0.6 - 0.7 + 0.8 + 0.9,
        "punctuation": 0.2,
        "rest": 0.1,
    }
    assert dict(zip(PARTS, parts[0], strict=True)) == pytest.approx(by_hand, abs=1e-12)


def test_concentration_by_hand() -> None:
    even, one = [("a", -0.5)] * 4, [("a", 0.0)] * 9 + [("b", -2.0)]
    gini, top = concentration(actions(*tables(even, one)))
    assert gini == pytest.approx([0.0, 1 - 1 / 10])
    assert top == pytest.approx([1.0, 1.0])
    gini, top = concentration(actions(*tables([("a", x) for x in (1, -2, 3, 4, 5, 6)], [("a", 0.0)] * 2)))
    pairs = sum(abs(x - y) for x in range(1, 7) for y in range(1, 7))
    assert gini[0] == pytest.approx(pairs / (2 * 36 * 3.5))  # half the relative mean difference
    assert top[0] == pytest.approx(20 / 21)
    assert math.isnan(gini[1])
    assert math.isnan(top[1])


def test_kinds_of_tokens() -> None:
    said = {
        " word": "word",
        "é": "word",
        "言": "word",
        "x1": "word",
        " 12": "number",
        "½": "number",
        ").": "punctuation",
    }
    said |= {
        "🙂": "punctuation",
        "\n\n": "space",
        " ": "space",
        "": "inside",
        "<|im_start|>": "special",
        "</s>": "special",
    }
    assert {text: kind(text) for text in said} == said


def test_the_lab_s_margins_are_the_sums_of_their_parts() -> None:
    tokens = rows([0, 5, 45, 50], [0, 0, 1, 1])
    with torch.no_grad():
        scored = score(some_models(), tokens, readouts(True, False))
    pieces = Pieces(lambda ids: "".join("ab,."[token] for token in ids))
    pairs = pair_table(completion_table(scored, tokens, pieces, 0.3), scored, tokens)
    each = token_table(scored, tokens, pieces, 0.3)
    named = pa.table({"record": [0, 1], **{f"{side}_ended": pairs[f"{side}_ended"] for side in SIDES}})
    of = actions(
        pa.table({name: each[name] for name in ("record", "completion", "position", "text", "shared", "reward")}), named
    )
    parts = split(of)[1]
    assert parts.sum(1) == pytest.approx(np.asarray(pairs["margin"]), abs=1e-12)
    ends = [
        float(pairs["chosen_end_reward"][p]) * bool(pairs["chosen_ended"][p])
        - float(pairs["rejected_end_reward"][p]) * bool(pairs["rejected_ended"][p])
        for p in range(2)
    ]
    firsts = of.end & np.isin(part(of), [list(PARTS).index(name) for name in ("shared", "first")])
    lost = np.bincount(of.record[firsts], np.where(of.completion == 0, 1, -1)[firsts] * of.reward[firsts], 2)
    assert parts[:, list(PARTS).index("end")] + lost == pytest.approx(ends, abs=1e-12)
    assert np.abs(parts).max() > 0.05


def shelf(directory: Path, *pairs: tuple[list[tuple[str, float]], list[tuple[str, float]]]) -> Shelf:
    """Pairs on disk, a part each; what credit does not read is empty."""
    for n, (chosen, rejected) in enumerate(pairs):
        tokens, named = tables(chosen, rejected, n)
        for name, table in (("tokens", tokens), ("pairs", named)):
            empty = dict.fromkeys(schema(name, True).names, [None] * table.num_rows)
            put(directory, name, n, empty | {c: table[c].to_pylist() for c in table.column_names}, compared=True)
    facts = {
        "format": "softq scores 1",
        "finished": True,
        "kind": "pairs",
        "reference": "r",
        "parts": len(pairs),
        "unit": "reward",
    }
    write_json(directory / FACTS, facts)
    return Shelf(directory)


def test_figures_of_two_parts(tmp_path: Path) -> None:
    found = {figure.name: figure for figure in figures(shelf(tmp_path, (CHOSEN, REJECTED), (REJECTED, CHOSEN)))}
    margin = sum(found[f"credit/margin/{name}"].value for name in PARTS)
    ends = {name: found[f"credit/margin/{name}"].value for name in ("first", "end", "top")}
    # In the second pair the last token of what was rejected, " e", ends it, and the chosen one's <|end|> does not.
    assert ends == pytest.approx({"first": 0.0, "end": (-0.3 - 0.9) / 2, "top": (4.6 + 0.3 - 3.8 - 0.1) / 2})
    assert margin == pytest.approx(0.0)  # the second pair is the first turned round
    assert found["credit/kind/number/reward"][1:4] == (pytest.approx(0.1), "reward", 2)
    sizes = 2 * (7.8 + 2.8)
    assert found["credit/kind/punctuation/share"].value == pytest.approx(0.4 / sizes)
    assert sum(found[f"credit/kind/{name}/share"].value for name in KINDS if name != "space") == pytest.approx(1)
    assert all(figure.interval is not None and figure.meaning for figure in found.values())


def test_what_unequal_lengths_make_of_a_margin(tmp_path: Path) -> None:
    def part_of(name: str, chosen: list[float], rejected: list[float]) -> float:
        said = ([("a", reward) for reward in each] for each in (chosen, rejected))
        found = figures(shelf(tmp_path / name, (*said,)))
        return next(figure.value for figure in found if figure.name == "credit/margin/length")

    assert part_of("same", [1.0, 2.0, 3.0], [0.5, -4.0, 1.0]) == 0
    assert part_of("every token alike", [0.5] * 4, [0.5]) == pytest.approx(2.0 - 0.5)  # all of it
    assert part_of("shorter", [-0.5], [-0.5] * 4) == pytest.approx(-0.5 + 2.0)
    assert part_of("both", [1.0, 0.0, 2.0], [-0.5, 0.0]) == pytest.approx((3 - 2) * (1 - 0.25) / 2)


def test_a_margin_that_the_end_tokens_make_is_told(tmp_path: Path) -> None:
    plain, ending = (
        ([("a", 0.1), ("b", 0.2)], [("a", 0.1), ("<|end|>", 0.2)]),
        ([("a", 0.1), ("b", 0.2)], [("a", 0.1), ("c", 0.1), (".", -0.9)]),
    )
    assert findings(shelf(tmp_path / "plain", plain)) == []
    (found,) = findings(shelf(tmp_path / "ending", ending, ending))
    assert (found.name, found.level, list(found.records)) == ("credit/end", "watch", [0, 1])
    assert "90% of the mean margin (1)" in found.told


def test_without_a_reference_there_is_nothing(tmp_path: Path) -> None:
    write_json(
        tmp_path / FACTS,
        {"format": "softq scores 1", "finished": True, "kind": "pairs", "reference": None, "parts": 0, "unit": "nats"},
    )
    assert figures(Shelf(tmp_path)) == []
    assert findings(Shelf(tmp_path)) == []
    assert COMPLETION["reward"].compared
