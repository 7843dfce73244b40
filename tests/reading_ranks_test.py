"""Two processes share out the parts of softq score: the same tables as of one, and each part is scored once."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from together import together
from transformers import AutoModelForCausalLM, AutoTokenizer

from softq.inspection.shelf import Shelf, place
from softq.reading import score as scoring
from softq.reading.run import scored
from softq.reading.tables import Asked, Part


@pytest.fixture(scope="module")
def policy(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model moved a little."""
    directory = tmp_path_factory.mktemp("policy")
    model = AutoModelForCausalLM.from_pretrained(model_directory)
    with torch.no_grad():
        next(model.parameters()).mul_(1.1)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(model_directory).save_pretrained(directory)
    return directory


def test_the_tables_of_two_are_those_of_one(
    policy: Path, model_directory: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "PART", 3)
    monkeypatch.setattr("softq.reading.tables.PART", 3)
    alone, both = (
        Asked(str(policy), (str(pairs_file),), tmp_path / name, str(model_directory), 0.3) for name in ("alone", "both")
    )

    def counts(asked: Asked) -> list[int]:
        return [event.records for event in scored(asked) if isinstance(event, Part)]

    assert counts(alone) == [3] * 6 + [2]
    assert together(2, lambda: counts(both)) == [[3, 3, 3, 2], [3, 3, 3]]
    shelves = [Shelf(tmp_path / name) for name in ("alone", "both")]
    assert shelves[0].facts == shelves[1].facts
    for table in ("pairs", "tokens"):
        for n in range(7):
            one, two = (pq.read_table(place(shelf.directory, table, n)) for shelf in shelves)
            assert one.equals(two)
    assert (tmp_path / "both" / "ledger.parquet").exists()
    margins = shelves[1].table("pairs")["margin"].to_pylist()
    assert len(margins) == len(pairs_file.read_text().splitlines())
    assert max(map(abs, margins)) > 1e-3


def test_two_go_on_where_one_was_stopped(
    policy: Path, model_directory: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "PART", 6)
    monkeypatch.setattr("softq.reading.tables.PART", 6)
    asked = Asked(str(policy), (str(pairs_file),), tmp_path / "out", str(model_directory), 0.3)
    events = scored(asked)
    next(event for event in events if isinstance(event, Part))
    events.close()
    said = together(2, lambda: [event.records for event in scored(asked) if isinstance(event, Part)])
    assert said == [[6, 2], [6]]
    assert json.loads((tmp_path / "out" / "score.json").read_text())["finished"]
    assert Shelf(tmp_path / "out").table("pairs")["record"].to_pylist() == list(range(20))
