"""What the README says runs."""

import contextlib
import io
import re
import shutil
import sys
from pathlib import Path

import pytest

from softq.inspection.sections import MEASURES

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_library_example(
    model_directory: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = [block for block in BLOCKS if block.startswith("import softq")]
    assert len([line for line in code.splitlines() if line and not line.startswith("import")]) <= 10
    shutil.copytree(model_directory, tmp_path / "my-model")
    shutil.copy(pairs_file, tmp_path / "pairs.jsonl")
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "README.md", "exec"), {})
    losses = [float(line.split()[0]) for line in said.getvalue().splitlines() if line[0].isdigit()]
    assert losses[0] == pytest.approx(0.6931472)
    assert losses[-1] < losses[0]


def test_the_users_own_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from softq.training.settings import build

    (code,) = [block for block in BLOCKS if "def hinge" in block]
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mine", None)
    _, method, understood = build("mine:hinge", {"model": "m", "data": ["d"], "output": "o", "margin": "2"})
    assert understood["margin"] == 2.0
    assert method.terms[0].name == "hinge"


def test_every_folder_and_method_it_names_exists() -> None:
    root = Path(__file__).parent.parent
    for path in re.findall(r"`(softq/[\w./]*|bench/|conformance/|docs/|tests/)`", README):
        assert (root / path).exists(), path
    for link in re.findall(r"\]\(((?!http)[\w./-]+\.\w+)\)", README):
        assert (root / link).exists(), link


def test_the_fixed_point_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/lab.md: the method that it shows keeps every law that can be checked of it, at the margin it shows."""
    from softq.training.settings import build
    from softq.verify.suite import stamp

    page = (Path(__file__).parent.parent / "docs/lab.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "shown.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    _, method, _ = build("shown:squared", {"model": "m", "data": ["d"], "output": "o", "margin": "2"})
    found = stamp(method)
    assert found["red"] == {}
    assert "fixed point" not in found["not_stated"]


def test_the_lab_page_has_a_row_for_every_law_of_a_model() -> None:
    from softq.verify.model_laws import MODEL_LAWS

    page = (Path(__file__).parent.parent / "docs/lab.md").read_text(encoding="utf-8")
    first = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| "))
    for law in MODEL_LAWS:
        assert law.name in first, law.name


def test_every_measure_has_its_line() -> None:
    page = (Path(__file__).parent.parent / "docs/reading.md").read_text(encoding="utf-8")
    for measure in MEASURES.values():
        assert f"| {measure.title} |" in page
