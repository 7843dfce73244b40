"""Log-probs that are not finite, as of a policy that diverged or a token that a model rules out: told first, and in no figure."""

import json
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
from scored import scored

from softq.inspection.curves import means
from softq.inspection.packed import unpacked
from softq.inspection.ranking import figures as ranking
from softq.inspection.report import report
from softq.inspection.sections import MEASURES
from softq.inspection.values import lost
from softq.inspection.verdict import broken, three

pytestmark = pytest.mark.filterwarnings("error")

GOOD = ([("a", -1.0, -2.0), ("<end>", -0.5, -1.0)], [("b", -3.0, -2.0), ("<end>", -0.5, -0.25)])


def bad(logp: float, ref_logp: float) -> tuple:
    """The pair with these numbers of one of its tokens."""
    return [("a", logp, ref_logp), ("<end>", -0.5, -1.0)], GOOD[1]


@pytest.mark.parametrize(("logp", "ref_logp"), [(nan, -1), (-inf, -1), (-1, -inf), (-inf, -inf), (nan, nan)])
def test_one_pair_changes_no_figure_of_the_others(tmp_path: Path, logp: float, ref_logp: float) -> None:
    shelf, without = scored(tmp_path / "a", [GOOD] * 12 + [bad(logp, ref_logp)]), scored(tmp_path / "b", [GOOD] * 12)
    for name in ("displacement", "ranking", "calibration", "credit"):
        found, expected = ({f.name: f.value for f in MEASURES[name].figures(of)} for of in (shelf, without))
        assert found == pytest.approx(expected, nan_ok=True), name
    assert means(shelf)["moved/chosen"] == means(without)["moved/chosen"]
    assert [figure.value for figure in three(shelf)] == pytest.approx([figure.value for figure in three(without)])
    by_name = {figure.name: figure for figure in MEASURES["values"].figures(shelf)}
    assert by_name["values/chosen/lost"].of == 12
    of = report(shelf)
    assert json.loads(json.dumps(of, allow_nan=False)) == of
    assert of["verdict"]["level"] == "act"
    assert of["verdict"]["told"].startswith("Log-probs that are not finite, in 1 of 13 pairs")
    last = [pair for block in of["blocks"] for pair in unpacked(block)][-1]
    assert last is not None
    assert last["chosen"]["reward"][0] is None
    assert list(broken(shelf)[0].records) == [12]
    assert broken(without) == []


def test_a_policy_of_nothing_else_is_not_healthy(tmp_path: Path) -> None:
    for compared in (True, False):
        shelf = scored(tmp_path / str(compared), [([("a", nan, -1.0)], [("b", nan, -1.0)])] * 3, compared=compared)
        of = report(shelf)["verdict"]
        assert (of["level"], of["numbers"][0]["value"]) == ("act", None)
        assert {figure.of for figure in ranking(shelf)} == {0}
        assert not {"moved/chosen", "logp/chosen", "margin"} & means(shelf).keys()


def test_a_notebook_shows_it_without_a_colour(tmp_path: Path) -> None:
    pair = scored(tmp_path, [([("a", nan, -1.0), ("b", -1.0, -2.0)], GOOD[1])]).pair(0)
    said = pair._repr_html_()
    assert "chosen · 2 tokens · reward +0.5" in said  # of what is known
    assert "full at 0.5 reward" in said


def test_what_neither_would_take_is_no_alternative() -> None:
    advantage = np.array([[1.0, nan, 0.5], [nan, nan, nan]])
    assert lost(advantage, np.array([0.25, 0.0])) == pytest.approx([0.75, nan], nan_ok=True)
