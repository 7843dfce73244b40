"""softq score: checkpoints beside a policy, of any library, become one trend; what can not is passed over aloud."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from calls import called
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from softq.inspection.curves import means
from softq.inspection.shelf import Shelf
from softq.lm.load import load, reweigh
from softq.reading.checkpoints import checkpoints, course
from softq.reading.run import scored
from softq.reading.tables import Asked
from softq.training.events import Note
from softq.training.run import run
from softq.training.settings import Call, build

STEPS = (2, 10)


def leave(model: torch.nn.Module, out: Path, model_directory: Path) -> None:
    """Save a model as a Trainer does: checkpoints on the way, each with other weights, and the result."""
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    for place in (*(out / f"checkpoint-{step}" for step in STEPS), out):
        generator = torch.Generator().manual_seed(len(str(place)))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(place)  # pyright: ignore[reportCallIssue]
        tokenizer.save_pretrained(place)


@pytest.fixture(scope="module")
def whole(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where another library trained a whole model."""
    out = tmp_path_factory.mktemp("theirs") / "whole"
    leave(AutoModelForCausalLM.from_pretrained(model_directory), out, model_directory)
    return out


@pytest.fixture(scope="module")
def adapter(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """… and an adapter."""
    out = tmp_path_factory.mktemp("theirs") / "adapter"
    leave(get_peft_model(*_low_rank(model_directory)), out, model_directory)
    return out


def _low_rank(model_directory: Path) -> tuple:
    return AutoModelForCausalLM.from_pretrained(model_directory), LoraConfig(task_type="CAUSAL_LM")


def told(policy: Path, reference: Path, pairs_file: Path, output: Path, **more: object) -> str:
    asked = Asked(str(policy), (str(pairs_file),), output, reference=str(reference), **more)  # pyright: ignore[reportArgumentType]
    return "\n".join(event.text for event in scored(asked) if isinstance(event, Note))


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_the_trend_is_what_each_checkpoint_scores_as_a_policy(
    kind: str, request: pytest.FixtureRequest, model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    policy = request.getfixturevalue(kind)
    said = told(policy, model_directory, pairs_file, tmp_path / "scores")
    assert [f"by the checkpoint of step {step}" in said for step in STEPS] == [True, True]
    scores = course(Shelf(tmp_path / "scores"), policy)
    assert [each.step for each in scores] == [*STEPS]
    margins = []
    for each in scores:
        told(policy / f"checkpoint-{each.step}", model_directory, pairs_file, tmp_path / f"alone-{each.step}")
        alone = Shelf(tmp_path / f"alone-{each.step}")
        assert each.shelf.facts["policy"]["fingerprint"] == alone.facts["policy"]["fingerprint"]
        assert means(each.shelf) == pytest.approx(means(alone), abs=1e-5)
        margins.append(means(alone)["margin"])
    assert len({round(margin, 4) for margin in (*margins, means(Shelf(tmp_path / "scores"))["margin"])}) == 3


def test_the_page_has_it_and_so_few_records_as_asked_for(
    whole: Path, model_directory: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["--policy", str(whole), "--reference", str(model_directory), "--data", str(pairs_file), "--output"]
    assert called(["score", *words, str(tmp_path / "few"), "--checkpoints", "3"], capsys)[0] == 0
    assert called(["score", *words, str(tmp_path / "none"), "--checkpoints", "0"], capsys)[0] == 0
    code, _, why = called(["score", *words, str(tmp_path / "never"), "--checkpoints", "-1"], capsys)
    assert (code, "--checkpoints -1: expected how many records" in why) == (2, True)
    curves = json.loads(called(["inspect", str(tmp_path / "few"), "--json"], capsys)[1])["curves"]
    (margin,) = (curve["lines"][0] for curve in curves if curve["title"] == "Margin, by checkpoint")
    assert [step for step, _ in margin["points"]] == [*STEPS]
    assert Shelf(tmp_path / "few" / "checkpoints" / "checkpoint-2").facts["records"] == 3
    assert not (tmp_path / "none" / "checkpoints").exists()


def test_a_run_of_ours_ends_its_trend_with_its_result(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    values = {"model": str(model_directory), "data": [str(pairs_file)], "output": str(out), "save_every": 1, "keep": 3}
    settings, method, understood = build("dpo", {**values, "max_steps": 3, "learning_rate": 1e-2, "batch_size": 4})
    for _ in run("dpo", settings, method, understood, Call()):
        pass
    told(out, model_directory, pairs_file, tmp_path / "scores", checkpoints=5)
    scores = course(Shelf(tmp_path / "scores"), out)
    assert [each.step for each in scores] == [1, 2, 3]
    kept = [scores[0].shelf.table("pairs")["where"].to_pylist(), scores[-1].records]
    where = scores[-1].shelf.table("pairs")["where"].to_pylist()
    assert kept[0] == [where[n] for n in kept[1] or ()]


def test_what_is_no_checkpoint_of_this_model_is_passed_over_aloud(
    whole: Path, adapter: Path, model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    policy = tmp_path / "policy"
    shutil.copytree(whole, policy)
    shutil.copytree(adapter / "checkpoint-2", policy / "checkpoint-3")
    (policy / "checkpoint-4").mkdir()  # another format's, without weights
    shutil.copytree(whole / "checkpoint-2", policy / "checkpoint-5")
    (policy / "checkpoint-5" / "model.safetensors").write_bytes(b"junk")
    (policy / "checkpoint-best").mkdir()
    assert [each.step for each in checkpoints(policy)] == [2, 3, 4, 5, 10]
    said = told(policy, model_directory, pairs_file, tmp_path / "scores")
    assert [f"checkpoint-{step} is passed over: " in said for step in (2, 3, 4, 5, 10)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert [each.step for each in course(Shelf(tmp_path / "scores"), policy)] == [2, 10]


def test_scores_that_are_replaced_lose_their_trend(
    whole: Path, model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    told(whole, model_directory, pairs_file, tmp_path / "scores")
    told(whole / "checkpoint-2", model_directory, pairs_file, tmp_path / "scores", overwrite=True)
    assert course(Shelf(tmp_path / "scores"), whole / "checkpoint-2") == []


def test_an_adapter_that_lacks_weights_is_not_put_half(adapter: Path, model_directory: Path, tmp_path: Path) -> None:
    loaded = load(str(adapter), None)
    assert isinstance(loaded.policy.model, PeftModel)
    model, config = _low_rank(model_directory)
    config.target_modules = {sorted(loaded.policy.model.peft_config["default"].target_modules or ())[0]}
    get_peft_model(model, config).save_pretrained(tmp_path / "fewer")
    with pytest.raises(ValueError, match=r"is not an adapter of this model: it lacks .*lora"):
        reweigh(loaded.policy, tmp_path / "fewer")
