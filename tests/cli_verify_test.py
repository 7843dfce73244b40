"""softq verify, as a person calls it, and the stamp that a training run carries."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from calls import called

from softq.cli import verify as cli
from softq.records import Method
from softq.training.settings import build
from softq.verify import suite
from softq.verify.contract import CONTRACT
from softq.verify.suite import METHOD_LAWS, TABLE_LAWS
from softq.verify.theory import TABLES

MINE = '''
from softq import Method, Term
from softq.mdp.readouts import REF_LOGP
from softq.objectives.fixed_points import softmax_of_reward
from softq.objectives.margins import contrast
from softq.objectives.weights import per_pair
from softq.records import FixedPoint, implicit
import torch.nn.functional as F


def mine(beta: float = 0.5, flipped: bool = False, divided: bool = False) -> Method:
    """A loss of one's own."""

    def loss(scored, batch):
        z = beta * contrast(implicit(scored, batch), batch)
        return F.softplus(z if flipped else -z) / (len(batch.pairs.chosen) if divided else 1)

    rest = FixedPoint("soft pairs", softmax_of_reward(beta))
    return Method((Term("mine", "pair", loss, per_pair),), (REF_LOGP,), beta=beta, columns=("weight",), fixed_point=rest)


def loud() -> Method:
    """Prints."""

    def loss(scored, batch):
        print("shape", scored["logp"].shape)
        return mine().terms[0].loss(scored, batch)

    return mine()._replace(terms=(Term("loud", "pair", loss, per_pair),))


def lost() -> Method:
    """Reads what is nowhere."""
    return mine()._replace(terms=(Term("lost", "pair", lambda scored, batch: scored["nowhere"], per_pair),))
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"own{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MINE)
    (tmp_path / "name").write_text(name)
    return tmp_path


@pytest.fixture
def own(here: Path) -> str:
    return (here / "name").read_text()


def test_the_table_of_everything_is_green(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the whole theory and a method of each kind of data; that every line keeps every law, contract_test says."""
    first = {line.method.takes: name for name, line in reversed(CONTRACT.items())}
    some = {name: line for name, line in CONTRACT.items() if name in first.values()}
    monkeypatch.setattr(cli, "CONTRACT", some)
    code, said, _ = called(["verify"], capsys)
    assert code == 0
    words = " ".join(said.split())
    for law in (*TABLE_LAWS, *METHOD_LAWS):
        assert f" {law.name} {law.holds}" in words
    for subject in (*TABLES, *some):
        assert f"\n{subject} " in said
    assert "all green; nearest to its bound: " in said


def test_json_has_every_error_and_sentence(capsys: pytest.CaptureFixture) -> None:
    code, said, _ = called(["verify", "--json", "--method", "dpo,kto"], capsys)
    found = json.loads(said)
    assert code == 0
    assert found["green"] is True
    assert len(found["results"]) == 2 * len(METHOD_LAWS)
    errors = {(one["law"], one["subject"]): one for one in found["results"]}
    assert 0 < errors["gradient", "dpo"]["error"] < errors["gradient", "dpo"]["bound"]
    assert "judged bad" in errors["fixed point", "kto"]["says_nothing"]
    assert found["laws"]["fixed point"]["red"].startswith("Training does not end where")


def test_one_law_of_one_method(capsys: pytest.CaptureFixture) -> None:
    code, said, _ = called(["verify", "--method", "ipo", "--law", "fixed-point"], capsys)
    assert code == 0
    assert "✓ fixed point" in said
    assert "If red: Training does not end where" in said
    assert "weights" not in said


def test_a_method_of_ones_own_with_settings_of_ones_own(own: str, capsys: pytest.CaptureFixture) -> None:
    code, said, _ = called(["verify", "--method", f"{own}:mine", "--beta", "0.05"], capsys)
    assert (code, "✗" in said) == (0, False)
    assert "✓ descent" in said
    code, said, _ = called(["verify", "--method", f"{own}:mine", "--flipped"], capsys)
    assert code == 1
    assert "✗ fixed point" in said
    assert "✗ descent" in said
    assert "✓ micro-batches" in said
    code, said, _ = called(["verify", "--json", "--method", f"{own}:mine", "--divided"], capsys)
    red = {one["law"] for one in json.loads(said)["results"] if not one["green"]}
    assert (code, red) == (1, {"micro-batches"})
    code, said, _ = called(["verify", "--method", f"dpo+{own}:mine", "--weights", "1,0.5", "--law", "padding"], capsys)
    assert (code, "✓ padding" in said) == (0, True)
    code, said, _ = called(["verify", "--method", f"{own}:lost", "--law", "padding"], capsys)
    assert code == 1
    assert "could not be checked" in said
    assert "KeyError: 'nowhere'" in said
    assert "If red" not in said
    code, said, error = called(["verify", "--json", "--method", f"{own}:loud"], capsys)
    assert (code, json.loads(said)["green"]) == (0, True)
    assert "shape torch.Size" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "dpoo"], "no method 'dpoo'; did you mean dpo?"),
        (["--law", "fixed-pint"], "no such law here; did you mean fixed-point?"),
        (["--method", "dpo", "--law", "shaping"], "no such law"),
        (["--beta", "0.1"], "--beta: no such option"),
        (["--method", "dpo", "--batch-size", "4"], "--batch-size: no setting of dpo; without --model"),
        (["--method", "dpo", "--beta", "much"], "--beta: 'much' is not valid"),
        (["--method", "dpo", "--beta", "-1"], "beta is -1.0; expected beta > 0"),
        (["--data", "x.jsonl"], "--data is read with --model only"),
        (["--model", "m"], "--model: give --data too"),
        (["--model", "m", "--data", "d", "--rows", "1"], "--rows 1: expected 2 or more"),
        (["--draw", "nowhere/tree.svg"], "expected an SVG file to write"),
        (["--draw", "/dev/null"], "expected an SVG file to write"),
        (["--draw", "tree.png"], "expected an SVG file to write"),
        (["--draw", "tree.svg", "--json"], "--draw FILE stands alone"),
        (["--rows", "3"], "--rows is read with --model only"),
        (["--model", "m", "--data", "d", "--config", "x.yaml"], "--config: an option of softq train"),
        (["--model", "m", "--data", "d", "--learning-rate", "1"], "--learning-rate: softq verify does not read it"),
        (["--model", "m", "--data", "d", "--dry_run"], "--dry_run: an option of softq train"),
        (["--method", "cdpo", "--beta", "0.1"], "this line has settings of its own"),
        (["--method", "dpo,foo"], "foo is no line of the contract"),
        (["--method", "dpo,ipo", "--beta", "0.1"], "settings are of one method"),
    ],
)
def test_what_can_not_be_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    code, _, error = called(["verify", *words], capsys)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_the_picture_is_written_whole(here: Path, capsys: pytest.CaptureFixture) -> None:
    code, said, _ = called(["verify", "--draw", "tree.svg"], capsys)
    assert (code, said.strip()) == (0, "written to tree.svg")
    assert ElementTree.parse(here / "tree.svg").getroot().tag.endswith("svg")
    assert not list(here.glob(".*"))


def test_a_run_is_stamped_with_what_was_proved_of_its_method(
    model_directory: Path, pairs_file: Path, here: Path, own: str, capsys: pytest.CaptureFixture
) -> None:
    rest = ["--model", str(model_directory), "--data", str(pairs_file), "--max-steps", "1", "--batch-size", "4"]
    code, said, _ = called(["train", "dpo", *rest, "--beta", "0.2", "--output", "good"], capsys)
    assert code == 0
    assert "verify: dpo keeps 11 laws on tables with exact answers" in said
    stamp = json.loads((here / "good/manifest.json").read_text())["verified"]
    assert (stamp["laws"], stamp["red"]) == (11, {})
    assert "held to 11 laws on tables with exact answers" in (here / "good/README.md").read_text()
    code, said, _ = called(["train", f"{own}:mine", *rest, "--flipped", "--output", "bad"], capsys)
    assert code == 0
    assert f"verify: RED, {own}:mine breaks 3 of 11 laws: fixed point: Training does not end" in " ".join(said.split())
    assert set(json.loads((here / "bad/manifest.json").read_text())["verified"]["red"]) == {
        "fixed point",
        "descent",
        "hard labels",
    }
    assert "**not kept:** fixed point" in (here / "bad/README.md").read_text()


def test_a_stamp_says_what_could_not_be_checked(own: str) -> None:
    stamp = suite.stamp(build(f"{own}:lost", {"model": "m", "data": ["d"], "output": "o"})[1])
    assert stamp["red"]["padding"].startswith("could not be checked: KeyError: 'nowhere' (own")


def test_the_laws_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stamp of a method that was made once is the same when it is made again, and the method is as it was."""
    method = CONTRACT["dpo+sft"].method
    before = method._asdict()
    assert suite.stamp(method) == suite.stamp(method)
    assert method == Method(**before)
