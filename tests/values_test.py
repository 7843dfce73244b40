"""A state's tokens and the values of prefixes: against the lab's exact Q* and V*, and figures by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from softq.data.store import write_json
from softq.inspection.columns import schema
from softq.inspection.pieces import Pieces
from softq.inspection.shelf import FACTS, Shelf, put
from softq.inspection.tables import readouts, token_table
from softq.inspection.values import figures, findings, lost, prefixes, state
from softq.lm.score import score
from softq.mdp.soft import soft_backup
from softq.mdp.tabular import along, at_the_end, random_table
from softq.verify.tables import EVERY, TREE, models

BETA = 0.4
REWARD = random_table(TREE, 5)
REFERENCE = random_table(TREE, 6).log_softmax(-1)


def read(reward: torch.Tensor) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """The lab's optimum for a reward as `softq score` reads it; V* before [B, T] each action, and what comes from it on."""
    best = soft_backup(TREE, reward, REFERENCE, beta=BETA)
    with torch.no_grad():
        scored = score(models(best.logp, REFERENCE), EVERY, readouts(True, False))
    paid = along(TREE, reward, EVERY)
    value = along(TREE, best.v[:, None].expand_as(reward), EVERY)
    return token_table(scored, EVERY, Pieces(lambda ids: "?" * len(ids)), BETA), value, paid


def test_a_state_s_advantages_are_those_of_the_lab() -> None:
    table, value, paid = read(REWARD)
    best = soft_backup(TREE, REWARD, REFERENCE, beta=BETA)
    rows = {prefix: s for s, prefix in enumerate(TREE.prefixes)}
    prefix = [tuple(EVERY.ids[b, : t + 1].tolist()) for b, t in EVERY.action.nonzero().tolist()]
    for n in (0, 7, 50):
        s = rows[prefix[n]]
        token = {name: values[n] for name, values in table.items()}
        found = state(token, BETA)
        expected = (best.q_kl[s] - best.v[s])[token["top"]]
        assert found.advantage == pytest.approx(expected.numpy(), abs=1e-12)
        assert found.policy == pytest.approx(best.logp[s].exp()[token["top"]].numpy())
        assert found.reference == pytest.approx(REFERENCE[s].exp()[token["top"]].numpy())
        # All four tokens are the whole vocabulary: the means over it by hand.
        means = (found.policy @ found.advantage, found.reference @ found.advantage)
        assert found.mean == pytest.approx(means)
        assert means[0] > 0 > means[1]
        assert state(token, None).advantage == pytest.approx(found.advantage / BETA)
    assert len(paid) == len(value)


@pytest.mark.parametrize("paid_at_the_end", [True, False])
def test_values_of_prefixes_are_the_lab_s_in_their_gauge(paid_at_the_end: bool) -> None:
    whole = along(TREE, REWARD, EVERY).sum(-1)
    table, value, paid = read(at_the_end(TREE, EVERY, whole) if paid_at_the_end else REWARD)
    row = np.repeat(np.arange(len(EVERY.ended)), EVERY.action.sum(-1).numpy())
    found = prefixes(np.asarray(table["reward"]), row, np.ones(len(EVERY.ended), dtype=bool))
    inside, position = EVERY.action, np.asarray(table["position"])
    start = value.gather(1, inside.int().argmax(-1, keepdim=True)).expand_as(value)[inside].numpy()
    after = torch.nn.functional.pad(value[:, 1:], (0, 1))[inside].numpy()  # V*(s'), 0 behind the end
    so_far = paid.cumsum(-1)
    to_come = (paid.sum(-1, keepdim=True) - so_far)[inside].numpy()
    # However it is paid: the rest less its value, and the values with what was paid on the way.
    assert found.rest == pytest.approx(to_come - after, abs=1e-11)
    assert found.prefix == pytest.approx(after - start + so_far[inside].numpy(), abs=1e-11)
    last = position == np.asarray(EVERY.action.sum(-1))[row] - 1
    assert found.prefix[last] == pytest.approx(whole.numpy() - start[last], abs=1e-11)
    off = np.abs(found.prefix - (after - start))[~last].max()
    assert (off < 1e-11) == paid_at_the_end  # the gauge: V* itself only where all is paid at the end
    assert np.abs(found.prefix).max() > 0.5


def test_of_a_response_that_was_cut_nothing_is_known() -> None:
    found = prefixes(np.array([1.0, 2.0, -3.0, 5.0]), np.array([0, 0, 1, 2]), np.array([True, False, True]))
    assert found.prefix == pytest.approx([1, 3, np.nan, 5], nan_ok=True)
    assert found.rest == pytest.approx([2, 0, np.nan, 0], nan_ok=True)


def test_what_is_lost_is_never_negative() -> None:
    advantage = np.array([[0.1, 0.5], [0.1, -0.5]])
    assert lost(advantage, np.array([0.1, 0.4])) == pytest.approx([0.4, 0])


def shelf(directory: Path, kind: str, ended: list[bool]) -> Shelf:
    """Two records of two completions, of two and one tokens; what values do not read is empty."""
    tokens = {
        "record": [0, 0, 0, 1, 1, 1],
        "completion": [0, 0, 1, 0, 0, 1],
        "reward": [0.0, -0.2, -1.0, 0.1, 0.3, -0.6],
        "top_logp": [[-1.0, -2.0]] * 6,
        "top_ref_logp": [[-1.0, -3.0], [-2.0, -3.0], [-4.0, -2.0], [-1.0, -2.0], [-1.0, -1.5], [-1.0, -2.0]],
    }
    put(directory, "tokens", 0, dict.fromkeys(schema("tokens", True).names, [None] * 6) | tokens, compared=True)
    if kind == "pairs":
        table = {"record": [0, 1], "chosen_ended": ended[::2], "rejected_ended": ended[1::2]}
    else:
        table = {"record": [0, 0, 1, 1], "ended": ended}
    rows = len(table["record"])
    put(directory, kind, 0, dict.fromkeys(schema(kind, True).names, [None] * rows) | table, compared=True)
    facts = {
        "format": "softq scores 1",
        "finished": True,
        "kind": kind,
        "reference": "r",
        "parts": 1,
        "unit": "reward",
        "beta": 0.5,
    }
    write_json(directory / FACTS, facts)
    return Shelf(directory)


def test_figures_by_hand(tmp_path: Path) -> None:
    found = {figure.name: figure for figure in figures(shelf(tmp_path, "pairs", [True, True, True, False]))}
    assert found["values/identified"][1:4] == (0.75, "share", 4)
    # A of the top tokens is β (0, 1), (1, 1), (3, 0); (0, 0), (0, -.5), (0, 0).
    lost_of = {"chosen": ((0.5 + 0.7) / 2 + 0) / 2, "rejected": (2.5 + 0.6) / 2}
    for side, value in lost_of.items():
        assert found[f"values/{side}/lost"][1:4] == (pytest.approx(value), "reward", 2)
    assert found["values/chosen/same"].value == 1
    assert found["values/rejected/same"].value == pytest.approx(1 / 2)


def test_rows_have_one_side(tmp_path: Path) -> None:
    found = {figure.name: figure for figure in figures(shelf(tmp_path, "rows", [True] * 4))}
    assert found["values/all/lost"].value == pytest.approx((0.6 + 0 + 2.5 + 0.6) / 4)
    assert len(found) == 3


def test_completions_that_were_cut_are_told(tmp_path: Path) -> None:
    assert findings(shelf(tmp_path / "whole", "pairs", [True] * 4)) == []
    (found,) = findings(shelf(tmp_path / "cut", "pairs", [True, False, True, True]))
    assert (found.level, found.told[:4]) == ("watch", "25% ")


def test_without_a_reference_there_is_nothing(tmp_path: Path) -> None:
    write_json(
        tmp_path / FACTS,
        {"format": "softq scores 1", "finished": True, "kind": "pairs", "reference": None, "parts": 0, "unit": "nats"},
    )
    assert figures(Shelf(tmp_path)) == findings(Shelf(tmp_path)) == []
