"""softq data FILE --to OUT: each change by its values, the account beside OUT, and nothing half after a failure."""

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from calls import called, jsonl, snapshot

from softq.data import convert as converting
from softq.data.example import Example
from softq.data.formats import Reading
from softq.data.rows import Dropped
from softq.data.sources import sources
from softq.data.stream import stream

PAIRS = [
    {"prompt": f"p{n % 7}", "chosen": f" c{'c' * (n % 5)}{n}", "rejected": f" r{'r' * (n % 3)}{n}", "id": n}
    for n in range(40)
]
GROUPS = [
    {"prompt": "a", "completions": [" x", " y", " z"], "scores": [1, 3, 2]},
    {"prompt": "b", "completions": [" x", " y"], "scores": [2, 2]},
    {"prompt": "c", "completions": [" x", " y"], "scores": [0.5, 1]},
]
LABELS = [{"prompt": f"p{n}", "completion": f" c{n}", "label": n % 3 == 0} for n in range(9)]
DEMONSTRATIONS = [{"prompt": f"p{n}", "completion": f" c{n}"} for n in range(5)]
STEPS = [{"prompt": "p", "completions": [" one", " two"], "labels": [True, False]}]
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
KINDS = {
    "pairs": PAIRS,
    "pairs with numbers": [{**row, "weight": 2.0, "ref_logps": [-1.5, -2.25]} for row in PAIRS],
    "pairs of messages": [
        {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": [{"role": "assistant", "content": "No"}]}
    ],
    "groups": [*GROUPS[:1], GROUPS[2]],
    "labels": LABELS,
    "demonstrations": DEMONSTRATIONS,
    "texts": [{"text": "Once upon a time."}, {"text": "Twice."}],
    "dialogues": [{"messages": TURNS}],
    "prompts": [{"prompt": "p"}, {"prompt": "q"}],
    "steps": STEPS,
}
EXTENSIONS = (
    ".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz", ".jsonl.zst", ".json.zst", ".csv.zst", ".parquet"
)  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a file of each of a few kinds."""
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "pairs.jsonl", PAIRS)
    jsonl(tmp_path / "groups.jsonl", GROUPS)
    jsonl(tmp_path / "labels.jsonl", LABELS)
    return tmp_path


def account(what: str) -> str:
    """The file of that name beside OUT."""
    (file,) = Path().glob(f"out.*.{what}")
    return str(file)


def rows(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def converted(line: str, capsys: pytest.CaptureFixture) -> list[dict]:
    """What `softq data …` wrote to out.jsonl."""
    code, _, err = called(["data", *shlex.split(line), "--to", "out.jsonl"], capsys)
    assert (code, err) == (0, "")
    return rows("out.jsonl")


def examples(path: str | Path) -> Iterator[Example | Dropped]:
    return (item.example for item in stream(sources(str(path)), Reading()).items)


def test_without_a_change_the_usable_rows_in_our_columns(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert converted("pairs.jsonl", capsys) == PAIRS
    jsonl(here / "other.jsonl", [{"q": "a", "good": " b", "bad": " c"}, {"q": "a", "good": " ", "bad": " c"}])
    assert converted("other.jsonl --rename prompt=q chosen=good rejected=bad --overwrite", capsys) == [
        {"prompt": "a", "chosen": " b", "rejected": " c"}
    ]


def test_pairs_of_the_best_and_the_worst(here: Path, capsys: pytest.CaptureFixture) -> None:
    first = {"prompt": "a", "chosen": " y", "rejected": " x", "score_chosen": 3.0, "score_rejected": 1.0}
    second = {"prompt": "c", "chosen": " y", "rejected": " x", "score_chosen": 1.0, "score_rejected": 0.5}
    assert converted("groups.jsonl --pairs best-worst", capsys) == [first, second]
    assert converted("groups.jsonl --pairs best-worst --margin 0.5 --overwrite", capsys) == [first]
    lost = Counter((row["row"], row["field"], row["reason"]) for row in rows(account("dropped.jsonl")))
    expected = {(1, "completions[2]", "not_paired"), (2, "", "equal_scores"), (3, "", "within_margin")}
    assert lost == dict.fromkeys(expected, 1)


def test_all_pairs_whose_scores_differ(here: Path, capsys: pytest.CaptureFixture) -> None:
    found = converted("groups.jsonl --pairs all", capsys)
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in found] == [
        ("a", " y", " x"),
        ("a", " z", " x"),
        ("a", " y", " z"),
        ("c", " y", " x"),
    ]


def test_the_best_of_each_group(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert converted("groups.jsonl --best", capsys) == [
        {"prompt": "a", "completion": " y", "score": 3.0},
        {"prompt": "b", "completion": " x", "score": 2.0},
        {"prompt": "c", "completion": " y", "score": 1.0},
    ]


def test_labels_of_pairs_and_of_groups(here: Path, capsys: pytest.CaptureFixture) -> None:
    found = converted("pairs.jsonl --unpair", capsys)
    assert len(found) == 2 * len(PAIRS)
    assert found[2:4] == [
        {"prompt": "p1", "completion": " cc1", "label": True, "id": 1},
        {"prompt": "p1", "completion": " rr1", "label": False, "id": 1},
    ]
    found = converted("groups.jsonl --unpair 1 --overwrite", capsys)
    assert [(row["label"], row["score"]) for row in found] == [
        (False, 1.0),
        (True, 3.0),
        (True, 2.0),
        (True, 2.0),
        (True, 2.0),
        (False, 0.5),
        (False, 1.0),
    ]
    code, _, err = called(["data", "groups.jsonl", "--unpair", "--to", "other.jsonl"], capsys)
    assert (code, "give the threshold" in err) == (2, True)
    assert not Path("other.jsonl").exists()


def test_demonstrations_of_pairs(here: Path, capsys: pytest.CaptureFixture) -> None:
    found = converted("pairs.jsonl --demonstrations", capsys)
    assert found == [{"prompt": row["prompt"], "completion": row["chosen"], "id": row["id"]} for row in PAIRS]


def test_swap_turns_pairs_and_labels_round(here: Path, capsys: pytest.CaptureFixture) -> None:
    found = converted("pairs.jsonl --swap", capsys)
    assert found == [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in PAIRS]
    found = converted("labels.jsonl --swap --overwrite", capsys)
    assert found == [{**row, "label": not row["label"]} for row in LABELS]


def test_flip_turns_a_share_round_and_says_which(here: Path, capsys: pytest.CaptureFixture) -> None:
    found = converted("pairs.jsonl --flip 0.3", capsys)
    for row, came in zip(PAIRS, found, strict=True):
        sides = ("rejected", "chosen") if came["flipped"] else ("chosen", "rejected")
        assert (came["chosen"], came["rejected"]) == (row[sides[0]], row[sides[1]])
    assert 4 <= sum(row["flipped"] for row in found) <= 20  # of 40; a binomial is outside once in 10,000 seeds
    other = converted("pairs.jsonl --flip 0.3 --seed 7 --overwrite", capsys)
    assert [row["flipped"] for row in other] != [row["flipped"] for row in found]


def test_pairs_of_groups_are_asked_for_their_scores(here: Path, capsys: pytest.CaptureFixture) -> None:
    pairs = converted("groups.jsonl --pairs best-worst", capsys)
    found = converted("groups.jsonl --pairs best-worst --relabel --overwrite", capsys)
    assert len(found) == 2 * len(pairs) > 0
    for one, other, pair in zip(found[::2], found[1::2], pairs, strict=True):
        assert (one["chosen"], other["chosen"]) == (pair["chosen"], pair["rejected"])
        assert (one["goal"], other["goal"]) == (pair["score_chosen"], pair["score_rejected"])
        assert one["prompt"].endswith(f" a better answer has a higher score.\n\n{pair['prompt']}")


def test_length_match_leaves_length_telling_nothing(here: Path, capsys: pytest.CaptureFixture) -> None:
    found = converted("pairs.jsonl --length-match", capsys)
    longer = Counter(
        (len(row["chosen"]) > len(row["rejected"])) - (len(row["chosen"]) < len(row["rejected"])) for row in found
    )
    assert longer[1] == longer[-1] > 0
    assert 0 < len(found) < len(PAIRS)


def test_sample_takes_a_share_or_a_number(here: Path, capsys: pytest.CaptureFixture) -> None:
    ten = converted("pairs.jsonl --sample 10", capsys)
    assert len(ten) == 10
    assert [row for row in PAIRS if row in ten] == ten
    half = converted("pairs.jsonl --sample 0.5 --overwrite", capsys)
    assert 7 <= len(half) <= 33
    code, _, err = called(["data", "pairs.jsonl", "--sample", "41", "--to", "more.jsonl"], capsys)
    assert (code, "41 records were asked for and 40 are there" in err) == (2, True)


def test_split_keeps_equal_prompts_on_one_side(here: Path, capsys: pytest.CaptureFixture) -> None:
    kept = converted("pairs.jsonl --split 0.4 held.json", capsys)
    held = json.loads(Path("held.json").read_text())
    sides = [{row["prompt"] for row in side} for side in (kept, held)]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]
    assert sorted((*kept, *held), key=lambda row: row["id"]) == PAIRS
    # In another file too, and whatever else is done.
    labels = converted("pairs.jsonl --unpair --flip 0.2 --split 0.4 held.jsonl --overwrite", capsys)
    assert {row["prompt"] for row in labels} == sides[0]


def test_changes_come_in_their_order(here: Path, capsys: pytest.CaptureFixture) -> None:
    found = converted("groups.jsonl --swap --pairs best-worst --unpair --sample 3", capsys)
    turned = [(row["completion"], row["label"]) for row in found]
    # a: y over x, turned; c: y over x, turned; unpaired before they are turned
    assert set(turned) <= {(" y", False), (" x", True)}
    assert len(turned) == 3


def test_the_account_adds_up(here: Path, capsys: pytest.CaptureFixture) -> None:
    bad = [{"prompt": "p", "chosen": " ", "rejected": " b"}, {"prompt": "p", "chosen": 3, "rejected": " b"}]
    jsonl(here / "more.jsonl", [*PAIRS, *bad])
    words = ["data", "more.jsonl", "--sample", "12", "--split", "0.4", "held.jsonl.gz", "--to", "out.csv", "--json"]
    code, out, _ = called(words, capsys)
    ledger = json.loads(Path(account("ledger.json")).read_text())
    said = json.loads(out)
    assert code == 0
    assert ledger == {"command": shlex.join(["softq", *words]), **said}
    assert (ledger["rows_in"], ledger["rows_used"]) == (42, 40)
    assert ledger["rows_dropped"] == {"empty_completion": 1, "bad_type": 1}
    written = ledger["written"]
    assert written["kind"] == "pairs"
    assert list(written["rows"]) == ["out.csv", "held.jsonl.gz"]
    assert sum(written["rows"].values()) == 12
    assert written["left_out"] == {"not_sampled": 28}
    lost = Counter(row["reason"] for row in rows(account("dropped.jsonl")))
    assert lost == {**ledger["rows_dropped"], **written["left_out"]}
    for name, count in written["rows"].items():
        assert len(list(examples(name))) == count
    first = next(row for row in rows(account("dropped.jsonl")) if row["reason"] == "bad_type")
    assert (first["file"], first["row"], first["field"]) == ("more.jsonl", 42, "chosen")
    ours = {"out.csv", "held.jsonl.gz", "out.csv.ledger.json", "out.csv.dropped.jsonl"}
    assert set(snapshot(here)) == ours | {"pairs.jsonl", "groups.jsonl", "labels.jsonl", "more.jsonl"}


def test_nothing_dropped_is_an_empty_list(here: Path, capsys: pytest.CaptureFixture) -> None:
    converted("pairs.jsonl", capsys)
    assert Path(account("dropped.jsonl")).read_bytes() == b""


@pytest.mark.parametrize(
    "line",
    [
        "pairs.jsonl --flip 0.3 --length-match --sample 0.7 --split 0.3 'held out.json.gz' --to out.parquet",
        "groups.jsonl --pairs all --unpair --seed 3 --to out.jsonl.zst",
        "pairs.jsonl,name=a pairs.jsonl,name=b --demonstrations --sample 7 --to out.csv.gz",
    ],
)
def test_the_recorded_command_gives_the_same_bytes(here: Path, line: str, capsys: pytest.CaptureFixture) -> None:
    assert called(["data", *shlex.split(line)], capsys)[0] == 0
    before = snapshot(here)
    program, *words = shlex.split(json.loads(Path(account("ledger.json")).read_text())["command"])
    assert program == "softq"
    assert called([*words, "--overwrite"], capsys)[0] == 0
    after = snapshot(here)
    del before[account("ledger.json")], after[account("ledger.json")]  # it tells the command
    assert after == before


def test_with_a_model_what_it_can_not_take_is_left_out(
    here: Path, model_directory: Path, capsys: pytest.CaptureFixture
) -> None:
    long = {"prompt": "p", "chosen": " long" * 50, "rejected": " x", "id": 40}
    jsonl(here / "long.jsonl", [*PAIRS, long])
    assert converted(f"long.jsonl --model {model_directory} --max-length 64", capsys) == PAIRS
    assert [(row["row"], row["reason"]) for row in rows(account("dropped.jsonl"))] == [(41, "too_long")]
    assert json.loads(Path(account("ledger.json")).read_text())["tokens"]["dropped"] > 64


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_again_as_it_was(
    kind: str, extension: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = jsonl(tmp_path / "data.jsonl", KINDS[kind])
    out = tmp_path / f"out{extension}"
    assert called(["data", str(data), "--to", str(out)], capsys)[0] == 0
    assert set(snapshot(tmp_path)) == {"data.jsonl", out.name, f"{out.name}.ledger.json", f"{out.name}.dropped.jsonl"}
    ours, theirs = (stream(sources(str(path)), Reading()) for path in (data, out))
    assert theirs.kind == ours.kind
    pairs = zip((item.example for item in ours.items), (item.example for item in theirs.items), strict=True)
    for one, again in pairs:
        assert isinstance(again, Example)
        given = json.dumps(again._replace(where=one.where)), json.dumps(one)
        assert extension.startswith(".csv") or given[0] == given[1]
        assert again._replace(where="", other={}) == one._replace(where="", other={})


FAILURES = {
    "out is there": ("pairs.jsonl --to labels.jsonl", 2, "labels.jsonl: the file exists"),
    "out2 is there": ("pairs.jsonl --to out.jsonl --split 0.4 labels.jsonl", 2, "labels.jsonl: the file exists"),
    "its ledger is there": ("pairs.jsonl --to mine.jsonl", 2, "mine.jsonl.ledger.json: the file exists"),
    "out2 is its account": (
        "pairs.jsonl --to out.jsonl --split 0.4 out.jsonl.dropped.jsonl",
        2,
        "is where the account",
    ),
    "no row is left": ("pairs.jsonl --to out.jsonl --sample 0.0001", 3, "no record is left to write"),
    "no row is left to hold out": ("pairs.jsonl --to out.jsonl --split 0.0001 held.jsonl", 3, "held.jsonl: no record"),
    "no directory": ("pairs.jsonl --to nowhere/out.jsonl", 2, "there is no directory nowhere"),
    "a directory": ("pairs.jsonl --to folder", 2, "folder: unknown file type"),
    "a directory's name": ("pairs.jsonl --to folder.jsonl", 2, "folder.jsonl: is a directory"),
    "no file's name": (f"pairs.jsonl --to {'n' * 240}.jsonl", 1, "File name too long"),
    "no such form": ("pairs.jsonl --to out.xlsx", 2, "unknown file type"),
    "not groups": ("pairs.jsonl --to out.jsonl --pairs all", 2, "to make pairs, give groups"),
    "not pairs": ("labels.jsonl --to out.jsonl --demonstrations", 2, "to take demonstrations, give pairs"),
    "not for Parquet": ("mixed.jsonl --to out.parquet --split 0.5 held.jsonl", 3, "field 'extra' does not fit"),
    "not for Parquet, the other": ("mixed.jsonl --to out.jsonl --split 0.5 held.parquet", 3, "'extra' does not fit"),
    "onto itself": ("pairs.jsonl --to pairs.jsonl --overwrite", 2, "pairs.jsonl: is read, or written already"),
    "one for two": ("pairs.jsonl --to out.jsonl --split 0.5 out.jsonl", 2, "is read, or written already"),
    "nothing to compare with": ("pairs.jsonl --to out.jsonl --check --against none.jsonl", 3, "none.jsonl"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_after_a_failure_nothing_has_changed(name: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    line, expected, message = FAILURES[name]
    (here / "mine.jsonl.ledger.json").write_text("{}")
    for folder in ("folder", "folder.jsonl"):
        (here / folder).mkdir()
    odd = [{"prompt": f"q{n}", "chosen": " a", "rejected": " b", "extra": [1, "one"][n % 2]} for n in range(40)]
    jsonl(here / "mixed.jsonl", odd)
    before = snapshot(here)
    code, out, err = called(["data", *shlex.split(line)], capsys)
    assert (code, out) == (expected, "")
    assert message in err
    assert err.startswith("softq: ")
    assert err.count("\n") == 1
    assert snapshot(here) == before


def test_a_row_that_fails_midway_leaves_the_old_file(
    here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted("labels.jsonl", capsys)
    before = snapshot(here)
    made = converting.row

    def failing(record: Example, *given, **more) -> dict:
        if record.where.endswith(":20"):
            raise OSError(28, "No space left on device")
        return made(record, *given, **more)

    monkeypatch.setattr(converting, "row", failing)
    code, _, err = called(["data", "pairs.jsonl", "--to", "out.jsonl", "--overwrite"], capsys)
    assert (code, "No space left" in err) == (1, True)
    assert snapshot(here) == before


def test_a_file_that_another_wrote_meanwhile_stays(
    here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = converting.row

    def slow(record: Example, *given, **more) -> dict:
        (here / "out.jsonl").write_text("theirs")
        return made(record, *given, **more)

    monkeypatch.setattr(converting, "row", slow)
    line = "data pairs.jsonl --to out.jsonl --split 0.4 held.jsonl"
    code, _, err = called(line.split(), capsys)
    assert (code, "out.jsonl: the file exists" in err) == (2, True)
    assert (here / "out.jsonl").read_text() == "theirs"
    assert set(snapshot(here)) == {"pairs.jsonl", "groups.jsonl", "labels.jsonl", "out.jsonl"}


def test_an_old_file_is_replaced_with_its_account(here: Path, capsys: pytest.CaptureFixture) -> None:
    converted("groups.jsonl --pairs all", capsys)
    assert converted("pairs.jsonl --overwrite", capsys) == PAIRS
    assert Path(account("dropped.jsonl")).read_bytes() == b""
    assert json.loads(Path(account("ledger.json")).read_text())["rows_in"] == len(PAIRS)
