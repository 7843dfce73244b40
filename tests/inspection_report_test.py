"""The report: every number in it is a number of the tables, and what is said of them follows."""

import json
import math
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from scored import BETA, Said, scored

from softq.data.ledger import Ledger
from softq.data.store import write_json
from softq.inspection.figures import Finding, bootstrapped
from softq.inspection.listed import chosen, listed
from softq.inspection.packed import BLOCK, Item, Strings, blocks, unpacked, whole
from softq.inspection.report import Ran, Subject, of_the_run, report
from softq.inspection.sections import MEASURES, Section
from softq.inspection.shelf import put


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are tested elsewhere."""
    monkeypatch.setattr(bootstrapped, "__kwdefaults__", {"seed": 0, "draws": 20})


def said(*numbers: float, text: str = "a") -> Said:
    """Tokens that the policy has at these log-probs and the reference at -1."""
    return [(f"{text}{t}", logp, -1.0) for t, logp in enumerate(numbers)]


# Margins 1/2 Σ(log π + 1): 0.75 - 0, -0.5 - 0.25, 0.5 - -1.
PAIRS = [(said(-0.5, 0.0), said(-1.0)), (said(-2.0), said(-0.5, text="b")), (said(-0.5, -0.5), said(-3.0))]


def test_columns_are_the_tables(tmp_path: Path) -> None:
    columns = report(scored(tmp_path, PAIRS))["pairs"]["columns"]
    assert columns["margin"] == [0.75, -0.75, 1.5]
    assert columns["chosen_moved"] == [1.5, -1.0, 1.0]
    assert columns["rejected_moved"] == [0.0, 0.5, -2.0]
    assert columns["chosen_surprise"] == [0.25, 2.0, 0.5]
    assert columns["where"] == [f"some/pairs.jsonl:{n}" for n in (1, 2, 3)]
    assert columns["prompt"] == ["prompt 0", "prompt 1", "prompt 2"]
    assert columns["ches"] is None
    assert columns["noise"] is None


def test_blocks_hold_every_token(tmp_path: Path) -> None:
    of = report(scored(tmp_path, PAIRS))
    (block,) = of["blocks"]
    pairs = unpacked(block)
    assert len(pairs) == 3
    for pair, sides in zip(pairs, PAIRS, strict=True):
        assert pair is not None
        for side, expected in zip(("chosen", "rejected"), sides, strict=True):
            got = pair[side]
            assert [of["strings"][n] for n in got["text"]] == [text for text, _, _ in expected]
            assert got["logp"] == [round(logp * 1e4) for _, logp, _ in expected]
            assert got["ref_logp"] == [-10_000] * len(expected)
            assert got["reward"] == [round(BETA * (logp + 1) * 1e4) for _, logp, _ in expected]
            assert got["kl"] == [1250] * len(expected)
            assert got["rank"] == [1] * len(expected)
            assert [of["strings"][n] for n in got["top"][0]] == [expected[0][0], "other"]
            assert got["top_logp"][0] == [round(expected[0][1] * 1e4), -90_000]
            assert got["top_ref_logp"][0] == [-10_000, -80_000]
    assert len(set(of["strings"])) == len(of["strings"])


def test_what_is_no_number_is_null() -> None:
    assert whole(np.array([-1.5, -np.inf, np.nan, 0.00004])).tolist() == [-15_000, None, None, 0]
    assert whole(np.array([0.00006])).tolist() == [1]


def test_a_block_is_full_before_the_next_begins_whatever_the_parts(tmp_path: Path) -> None:
    pairs = [(said(-n / 100), said(-1.0)) for n in range(BLOCK + 3)]
    of = report(scored(tmp_path, pairs, per=5))
    held = [unpacked(block) for block in of["blocks"]]
    assert [len(each) for each in held] == [BLOCK, 3]
    assert [pair["chosen"]["logp"][0] for each in held for pair in each if pair] == [-100 * n for n in range(BLOCK + 3)]


def test_blocks_in_any_order_and_with_gaps(tmp_path: Path) -> None:
    shelf = scored(tmp_path, PAIRS, per=1)
    (block,) = blocks(shelf, [Item(2, (0, 1)), None, Item(0, (0, 1))], Strings())
    last, none, first = unpacked(block)
    assert none is None
    assert last is not None
    assert first is not None
    assert (last["rejected"]["logp"], first["chosen"]["logp"]) == ([-30_000], [-5000, 0])


def test_the_report_is_json(tmp_path: Path) -> None:
    of = report(scored(tmp_path, PAIRS))
    assert json.loads(json.dumps(of, allow_nan=False)) == of
    assert of["title"] == "policy against sft on pairs.jsonl"
    assert of["facts"]["records"] == 3
    names = [section["name"] for section in of["sections"]]
    assert names == [name for name in MEASURES if name in names]
    assert {"accuracy", "ranking", "calibration", "credit", "segments", "values"} <= {*names}
    (bins,) = of["reliability"]
    assert sum(each[2] for each in bins["bins"]) == 3


def test_orders_name_columns_that_are_there(tmp_path: Path) -> None:
    for compared in (True, False):
        of = report(scored(tmp_path / str(compared), PAIRS, compared=compared))["pairs"]
        names = [order["name"] for order in of["orders"]]
        assert len(set(names)) == len(names)
        assert names[0] == "most wrong"
        assert "suspected noise" not in names
        assert all(of["columns"][order["by"]] is not None for order in of["orders"])
    assert of["columns"]["margin"] is None
    assert of["columns"]["preference"] == pytest.approx([-0.25 + 1.0, -2.0 + 0.5, -0.5 + 3.0])


def test_the_verdict_is_that_of_the_worst_finding(tmp_path: Path) -> None:
    calm = Ran(findings=(Finding("run/calm", "expected", "as it should be"),))
    shelf = scored(tmp_path, [(said(-0.5), said(-1.5))] * 4, beta=0.1)
    of = report(shelf, calm)["verdict"]
    assert of["level"] == "expected"
    assert "Of 4 pairs the reward ranks 100% as people did" in of["told"]
    assert "chosen answers became more likely than under the reference, by 0.5 nats" in of["told"]
    right, moved, kl = of["numbers"]
    assert (right["value"], moved["value"], kl["value"]) == (1.0, 0.5, 0.125)
    run = Ran(
        findings=(
            Finding("run/a", "watch", "a"),
            Finding("run/b", "act", "it burns", "stop"),
            Finding("run/c", "act", "c"),
        )
    )
    of = report(shelf, run)["verdict"]
    assert (of["level"], of["act"]) == ("act", "stop")
    assert of["told"] == "It burns (1 more below)."


def test_pairs_that_none_could_learn_are_no_illness_of_a_run() -> None:
    hard, ill = Finding("ranking/not_learnable", "watch", "hard"), Finding("accuracy/contrary", "act", "turned")
    found = [Section(name, "", "", [], [of]) for name, of in (("ranking", hard), ("accuracy", ill))]
    assert of_the_run(found) == [ill]


def test_what_is_wrong_with_the_data_names_records(tmp_path: Path) -> None:
    shelf = scored(tmp_path, [(said(-3.0), said(-0.5))] * 6)
    findings = report(shelf)["data"]
    assert findings[0]["name"] == "accuracy/contrary"
    assert sorted(findings[0]["records"]) == [0, 1, 2, 3, 4, 5]


def test_the_ledger_is_what_the_scoring_wrote(tmp_path: Path) -> None:
    ledger = Ledger(rows=9, used=3, dropped={"too_long": 6}, completions=6, finished=5, duplicates=1)
    ledger.examples["too_long"] = ["f:1", "f:2"]
    of = report(scored(tmp_path, PAIRS, ledger=ledger.as_dict()))["ledger"]
    assert (of["rows"], of["used"], of["dropped"]) == (9, 3, [["too_long", 6, ["f:1", "f:2"]]])
    assert [check["name"] for check in of["checks"]] == [
        f"ledger/{name}" for name in ("rows", "dropped/too_long", "duplicates", "unended")
    ]


def test_noise_is_a_column_and_an_order(tmp_path: Path) -> None:
    shelf = scored(tmp_path, PAIRS)
    columns = {
        "record": [[0, 1], [2]],
        "fold": [[0, 1], [0]],
        "margin": [[1.0, -1.0], [2.0]],
        "wrong": [[0.1, 0.9], [0.2]],
    }
    for part in (0, 1):
        put(tmp_path, "noise", part, {name: values[part] for name, values in columns.items()}, compared=True)
    said = {"finished": True, "rate": 0.3, "scale": 1.0, "folds": 2}
    write_json(tmp_path / "noise.json", said)
    of = listed(shelf).as_json()
    assert of["columns"]["noise"] == [0.1, 0.9, 0.2]
    assert "suspected noise" in [order["name"] for order in of["orders"]]


def test_of_many_records_the_first_of_each_order_are_shown(tmp_path: Path) -> None:
    margins = [0.0, -4.0, 1.0, 2.0, -1.0, 0.5, 3.0, 0.25]
    pairs = [(said(-1.0 + 2 * margin), said(-1.0)) for margin in margins]
    shelf = scored(tmp_path, pairs)
    every = listed(shelf)
    assert (every.of, len(every.items)) == (8, 8)
    rows = chosen(every, shown=3, tokens=100).tolist()
    assert rows == [0, 1, 6]  # the first of the data; most wrong, surprising and displaced; most right
    assert chosen(every, shown=3, tokens=3).tolist() == [1]  # a pair has two tokens
    assert len(chosen(every, shown=8, tokens=16)) == 8


def test_two_policies_on_the_same_records(tmp_path: Path) -> None:
    here, there = scored(tmp_path / "a", PAIRS), scored(tmp_path / "b", [(r, c) for c, r in PAIRS])
    of = report(here, other=Subject(there))
    assert of["other"]["pairs"]["columns"]["margin"] == [-0.75, 0.75, -1.5]
    mine, theirs = (unpacked(each["blocks"][0]) for each in (of, of["other"]))
    for a, b in zip(mine, theirs, strict=True):
        assert a is not None
        assert b is not None
        assert (a["chosen"], a["rejected"]) == (b["rejected"], b["chosen"])
    assert of["other"]["title"] == of["title"]
    assert of["agreement"] is not None
    gained = {figure["name"]: figure["value"] for figure in of["agreement"]["figures"]}["agreement/gained"]
    assert gained == pytest.approx(1 / 3 - 2 / 3)
    without = scored(tmp_path / "c", PAIRS, compared=False)
    assert report(here, other=Subject(without))["agreement"] is None


def test_another_tokenizer_s_records_are_found_by_place_and_text(tmp_path: Path) -> None:
    here = scored(tmp_path / "a", PAIRS)
    changed = [(said(-9.0), said(-1.0)), *PAIRS[1:]]
    there = scored(tmp_path / "b", changed, content="d")
    of = report(here, other=Subject(there))["other"]
    assert of["pairs"]["columns"]["margin"] == [None, -0.75, 1.5]
    assert [pair is None for pair in unpacked(of["blocks"][0])] == [True, False, False]
    nothing = scored(tmp_path / "c", [(said(-1.0, text="x"), said(-1.0))], content="e", data=["else.jsonl"])
    with pytest.raises(ValueError, match=r"no pairs in common \(they are of some/pairs.jsonl and else.jsonl\)"):
        report(here, other=Subject(nothing))


def test_running_sums_of_what_is_packed_are_the_reward(tmp_path: Path) -> None:
    """What a page adds up from integers is the completion's reward, to the rounding of its tokens."""
    rng = np.random.default_rng(0)
    pairs = [(said(*rng.normal(-1, 1, 30)), said(*rng.normal(-1, 1, 20))) for _ in range(3)]
    of = report(scored(tmp_path, pairs))
    for pair, reward in zip(unpacked(of["blocks"][0]), of["pairs"]["columns"]["chosen_reward"], strict=True):
        assert pair is not None
        assert math.isclose(list(accumulate(pair["chosen"]["reward"]))[-1] / 1e4, reward, abs_tol=30 * 0.5e-4 + 1e-4)
