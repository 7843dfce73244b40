"""Two scored directories of the same data: correlations by their definition, flips by hand, and data that differ."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from softq.data.store import write_json
from softq.inspection.agreement import agreement, correlation, figures, findings, ranks
from softq.inspection.columns import schema
from softq.inspection.shelf import FACTS, Shelf, put


def spearman(one: np.ndarray, two: np.ndarray) -> float:
    """By definition: Pearson's of how many are smaller, equal ones half."""
    of = [[(x > values).sum() + ((x == values).sum() - 1) / 2 for x in values] for values in (one, two)]
    return float(np.corrcoef(of)[0, 1])


def test_rank_correlation_is_its_definition_with_ties_row_by_row() -> None:
    rng = np.random.default_rng(0)
    row = np.repeat(np.arange(4), [7, 2, 12, 5])
    one, two = rng.integers(-2, 3, (2, len(row))).astype(float)
    one[row == 1], two[row == 1] = [1.0, 2.0], [5.0, -5.0]
    found = correlation(ranks(one, row), ranks(two, row), row)
    assert found == pytest.approx([spearman(one[row == n], two[row == n]) for n in range(4)])
    assert found[1] == pytest.approx(-1)
    assert ranks(np.array([3.0, 1.0, 3.0, 3.0, 9.0]), np.array([0, 0, 0, 1, 1])) == pytest.approx([1.5, 0, 1.5, 0, 1])


def tokens(rewards: list[list[float]]) -> pa.Table:
    """Completions, two a record."""
    said = [(n // 2, n % 2, t, 7, r) for n, row in enumerate(rewards) for t, r in enumerate(row)]
    names = ("record", "completion", "position", "token", "reward")
    return pa.table(dict(zip(names, map(list, zip(*said, strict=True)), strict=True)))


ONE = [[1.0, 2.0, -1.0], [0.5], [0.1, 0.2], [-1.0, -1.0]]
TWO = [[0.2, 0.3, -9.0], [-2.0], [0.4, 0.1], [3.0, 4.0]]


def test_completions_by_hand() -> None:
    found = agreement(tokens(ONE), tokens(TWO))
    assert found.record.tolist() == [0, 0, 1, 1]
    assert found.rank == pytest.approx([1, math.nan, -1, math.nan], nan_ok=True)
    assert found.sign == pytest.approx([1, -1, 1, -1])


def shelf(directory: Path, rewards: list[list[float]], content: str = "same", reference: str | None = "r") -> Shelf:
    """Pairs with these rewards, and the margins that they come to."""
    said = tokens(rewards)
    empty = dict.fromkeys(schema("tokens", True).names, [None] * said.num_rows)
    put(directory, "tokens", 0, empty | {name: said[name].to_pylist() for name in said.column_names}, compared=True)
    margin = [sum(w) - sum(low) for w, low in zip(rewards[::2], rewards[1::2], strict=True)]
    empty = dict.fromkeys(schema("pairs", True).names, [None] * len(margin))
    put(directory, "pairs", 0, empty | {"record": list(range(len(margin))), "margin": margin}, compared=True)
    facts = {
        "format": "softq scores 1",
        "finished": True,
        "kind": "pairs",
        "reference": reference,
        "parts": 1,
        "unit": "nats",
        "content": content,
    }
    write_json(directory / FACTS, facts)
    return Shelf(directory)


def test_figures_by_hand(tmp_path: Path) -> None:
    one, two = (shelf(tmp_path / name, of) for name, of in (("one", ONE), ("two", TWO)))
    found = {figure.name.removeprefix("agreement/"): figure for figure in figures(one, two)}
    # Margins are 1.5 and 2.3, then -6.5 and -6.5: a tie has no rank correlation.
    assert math.isnan(found["margin"].value)
    assert {name: (found[name].value, found[name].of) for name in ("rank", "sign", "flipped", "gained")} == {
        "rank": (0, 2),
        "sign": (0, 4),
        "flipped": (1, 2),
        "gained": (-1, 2),
    }
    same = {figure.name.removeprefix("agreement/"): figure.value for figure in figures(one, one)}
    assert same == pytest.approx({"rank": 1, "sign": 1, "margin": 1, "flipped": 0, "gained": 0})
    turned = shelf(tmp_path / "turned", [[-3 * r for r in row] for row in ONE])
    opposite = {figure.name.removeprefix("agreement/"): figure.value for figure in figures(one, turned)}
    assert opposite == pytest.approx({"rank": -1, "sign": -1, "margin": -1, "flipped": 1, "gained": -1})


def test_who_flips_which_pairs(tmp_path: Path) -> None:
    margins = [[1.0, 1.0, -1.0, -1.0, 2.0], [-0.1, -3.0, -1.0, 0.5, 2.0]]
    one, two = (shelf(tmp_path / str(n), [[x] for m in of for x in (m, 0.0)]) for n, of in enumerate(margins))
    lost, won = findings(one, two)
    assert (lost.name, list(lost.records), lost.told[:12]) == ("agreement/lost", [1, 0], "2 of 5 pairs")
    assert (won.name, list(won.records)) == ("agreement/won", [3])
    assert findings(one, one) == []


def test_data_that_differ_are_refused_in_one_line(tmp_path: Path) -> None:
    one, two = shelf(tmp_path / "one", ONE), shelf(tmp_path / "two", TWO, content="other")
    bare = shelf(tmp_path / "bare", TWO, reference=None)
    for measure in (figures, findings):
        with pytest.raises(ValueError, match=r"^.*one and .*two do not hold the same tokens; score both .* tokenizer$"):
            measure(one, two)
        with pytest.raises(ValueError, match="bare has no reference, so no rewards to compare"):
            measure(one, bare)
