"""The account of the data as findings."""

import json
from pathlib import Path

from shelves import Shelved, shelf_of

from softq.data.ledger import Ledger, Tally
from softq.inspection.ledger import findings
from softq.inspection.shelf import Shelf
from softq.reading.run import scored
from softq.reading.tables import Asked


def test_rows_that_were_dropped_repeated_or_split(model_directory: Path, tmp_path: Path) -> None:
    row = {"prompt": "Say:", "chosen": " yes", "rejected": " no"}
    rows = [row, row, {**row, "chosen": ""}, {**row, "prompt": "ab<eos>"}]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    for _ in scored(Asked(str(model_directory), (str(file),), tmp_path / "out")):
        pass
    found = {finding.name: finding for finding in findings(Shelf(tmp_path / "out"))}
    assert found["ledger/rows"].told == "3 of 4 rows are used"
    dropped = found["ledger/dropped/empty_completion"]
    assert (dropped.told, dropped.level) == (f"1 of 4 (25.0%) rows are dropped as empty_completion: {file}:3", "act")
    assert found["ledger/duplicates"].told == "1 of 3 (33.3%) rows repeat the texts of an earlier one"
    spelled = found["ledger/spelled"]
    assert (list(spelled.records), f"{file}:4" in spelled.told) == ([2], True)
    assert "ledger/unended" not in found


def test_few_faults_are_to_be_watched(tmp_path: Path) -> None:
    ledger = Ledger(
        rows=1000, used=992, dropped={"too_long": 8}, completions=1984, finished=1900, sources={"a": Tally()}
    )
    ledger.examples = {"too_long": [f"a.jsonl:{n}" for n in range(1, 6)]}
    shelf = shelf_of(tmp_path, [Shelved([-1.0], [-1.0])])
    (tmp_path / "score.json").write_text(json.dumps({**shelf.facts, "ledger": ledger.as_dict()}))
    _, dropped, unended = findings(Shelf(tmp_path))
    told = "8 of 1,000 (0.8%) rows are dropped as too_long: a.jsonl:1, a.jsonl:2, a.jsonl:3, a.jsonl:4, a.jsonl:5, …"
    assert (dropped.told, dropped.level) == (told, "watch")
    assert (unended.level, unended.told[:24]) == ("act", "84 of 1,984 (4.2%) compl")
