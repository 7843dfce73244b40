"""A run that is stopped and resumed is the run that was never stopped: bit for bit, line for line."""

import json
import linecache
import math
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from softq.lm.load import Lora, load
from softq.lm.probe import rows_of
from softq.lm.score import score
from softq.training import checkpoint
from softq.training.events import Evaluated, Kept, Note, OutputError, Progress, RunError, Saved, Stopped
from softq.training.run import run
from softq.training.settings import Call, build

FOUR_BITS = pytest.mark.skipif(not find_spec("bitsandbytes"), reason="bitsandbytes is not installed")


def values_of(model: Path, data: Path, output: Path, **more: Any) -> dict[str, Any]:
    base = {"model": str(model), "data": [str(data)], "output": str(output), "learning_rate": 3e-3, "batch_size": 4}
    return {**base, "eval_fraction": 0.2, "eval_steps": 3, "num_train_epochs": 3, "max_steps": 10, **more}


def after(polls: int) -> Any:
    """A `stop` that tells of SIGTERM when it is asked for the given time; the first is before the first step."""
    seen = iter(range(1000))
    return lambda: signal.SIGTERM if next(seen) >= polls else 0


def trained(name: str, values: dict[str, Any], **call: Any) -> list[Any]:
    settings, method, understood = build(name, values)
    return list(run(name, settings, method, understood, Call(**call)))


def notes(events: list[Any]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Note))


def lines(output: Path) -> str:
    return (output / "metrics.jsonl").read_text()


def same_weights(a: Path, b: Path) -> None:
    name = "adapter_model.safetensors" if (a / "adapter_model.safetensors").exists() else "model.safetensors"
    first, second = load_file(a / name), load_file(b / name)
    assert set(first) == set(second)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("dpo", {}),
        ("dpo", {"use_peft": True, "lora_r": 4, "lr_scheduler_type": "cosine", "warmup_steps": 4}),
        ("kto", {"tokens_per_micro": 40}),
        ("kto", {"tokens_per_micro": 40, "baseline": "dataset"}),
        ("aot", {"gradient_checkpointing": True}),
        ("sft", {"dtype": "bfloat16"}),
        ("rm", {"center": 0.1, "tokens_per_micro": 40}),
        ("dpo", {"reference_mixup": 0.6, "reference_every": 2}),
        ("dpo", {"reference_mixup": 0.3, "reference_every": 3, "use_peft": True, "lora_r": 4}),
        ("dpo", {"cache_reference": True}),
        pytest.param("dpo", {"dtype": "nf4", "use_peft": True, "lora_r": 4}, marks=FOUR_BITS),
        ("mine_resumed:running", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value) or "plain",
)
def test_stopped_and_resumed_is_never_stopped(
    name: str, more: dict, model_directory: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_resumed.py").write_text(RUNNING)
    whole = values_of(model_directory, pairs_file, tmp_path / "whole", **more)
    assert isinstance(trained(name, whole)[-1], Saved)
    parts = values_of(model_directory, pairs_file, tmp_path / "parts", **more)
    stopped = trained(name, parts, stop=after(3))
    assert stopped[-1] == Stopped(signal.SIGTERM, 3, tmp_path / "parts")
    assert not any(isinstance(event, Evaluated) for event in stopped)  # step 3's evaluation was due, and is made up for
    manifest = json.loads((tmp_path / "parts" / "manifest.json").read_text())
    assert (manifest["finished"], manifest["stopped"]) == (False, {"step": 3, "signal": 15})
    torch.manual_seed(0)  # what the process did meanwhile does not matter
    again = trained(name, parts, resume=True, stop=after(5))
    assert [event.step for event in again if isinstance(event, Progress)] == [4, 5, 6, 7, 8]
    assert isinstance(trained(name, parts, resume=True)[-1], Saved)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    same_weights(tmp_path / "parts", tmp_path / "whole")
    manifest = json.loads((tmp_path / "parts" / "manifest.json").read_text())
    assert manifest["finished"]
    assert [entry["step"] for entry in manifest["resumed"]] == [3, 8]
    assert "nothing to resume" in notes(trained(name, parts, resume=True))


RUNNING = """
import torch
from softq import Method, Term
from softq.mdp.readouts import REF_LOGP
from softq.objectives.margins import contrast
from softq.objectives.weights import per_pair
from softq.records import implicit


def running(scale: float = 1.0) -> Method:
    "A method with memory, and with chance in its loss: both must be as they were."

    def loss(scored, batch):
        gap = contrast(implicit(scored, batch), batch)
        return torch.nn.functional.softplus(scale - gap + batch.columns["shift"] + 0.1 * torch.rand(()))

    def remember(memory, scored, batch):
        return {"shift": 0.9 * memory["shift"] + 0.1 * scored["logp"].mean().cpu()}

    return Method((Term("running", "pair", loss, per_pair),), (REF_LOGP,), memory={"shift": torch.zeros(())},
                  remember=remember)
"""


def stopped_run(model: Path, data: Path, output: Path, name: str = "dpo", **more: Any) -> dict[str, Any]:
    values = values_of(model, data, output, **more)
    assert isinstance(trained(name, values, stop=after(3))[-1], Stopped)
    return values


OTHERS: list[tuple[str, dict[str, Any], str]] = [
    ("dpo", {"learning_rate": 1e-3}, "--learning-rate was 0.003, is 0.001"),
    ("dpo", {"beta": 0.2}, "--beta was 0.1, is 0.2"),
    ("dpo", {"seed": 1}, "--seed was 42, is 1"),
    ("dpo", {"max_steps": None}, "--max-steps was 10, is None"),
    ("dpo", {"tokens_per_micro": 64}, "--tokens-per-micro was None, is 64"),
    ("ipo", {}, "it is of dpo, not of ipo"),
]


def test_another_run_is_not_resumed(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    values = stopped_run(model_directory, pairs_file, tmp_path / "out")
    before = sorted(path for path in (tmp_path / "out").rglob("*"))
    for name, change, said in OTHERS:
        with pytest.raises(ValueError, match=r"^--resume: .*step-00000003 is of another run: ") as refused:
            trained(name, {**values, **change}, resume=True)
        assert f"another run: {said}; use the same" in str(refused.value)
        assert sorted(path for path in (tmp_path / "out").rglob("*")) == before
    assert isinstance(trained("dpo", {**values, "keep": 5, "save_every": 4}, resume=True)[-1], Saved)


def test_other_data_weights_reference_and_code_are_not_resumed(
    model_directory: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.jsonl"
    rows = [row for row in pairs_file.read_text().splitlines() if row]
    data.write_text("\n".join(rows))
    values = stopped_run(model_directory, data, tmp_path / "out")

    def refused(**change: Any) -> str:
        with pytest.raises(ValueError, match="is of another run") as error:
            trained("dpo", {**values, **change}, resume=True)
        return str(error.value)

    moved = tmp_path / "moved.jsonl"
    data.rename(moved)
    assert isinstance(trained("dpo", {**values, "data": [str(moved)]}, resume=True, stop=after(2))[-1], Stopped)
    data.write_text("\n".join([rows[1], rows[0], *rows[2:]]))
    assert "the data is not the same" in refused()
    data.write_text("\n".join(rows))
    assert "the data is not the same" in refused(data=[f"{data},weight=2"])
    data.write_text("\n".join(row.replace('"chosen": "', '"chosen": " oh') for row in rows))
    assert "the data is not the same" in refused()
    data.write_text("\n".join(rows))

    start = tmp_path / "start"
    shutil.copytree(model_directory, start)
    values = stopped_run(start, data, tmp_path / "other")
    weights = load_file(start / "model.safetensors")
    save_file({name: value + 1e-3 for name, value in weights.items()}, start / "model.safetensors", {"format": "pt"})
    assert "the reference is another: its fingerprint was " in refused()
    values = {**values, "output": str(tmp_path / "lora"), "use_peft": True}
    assert isinstance(trained("sft", values, stop=after(3))[-1], Stopped)
    save_file(weights, start / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="the model that training starts from is another: its fingerprint was "):
        trained("sft", values, resume=True)

    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_changed.py").write_text(RUNNING)
    values = stopped_run(model_directory, data, tmp_path / "mine", "mine_changed:running")
    (tmp_path / "mine_changed.py").write_text(RUNNING.replace("0.9 * memory", "0.8 * memory"))
    linecache.clearcache()
    with pytest.raises(ValueError, match="the method's own code has changed"):
        trained("mine_changed:running", values, resume=True)


def test_without_a_checkpoint_it_starts_from_the_start_and_says_so(
    model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    values = values_of(model_directory, pairs_file, tmp_path / "new")
    events = trained("dpo", values, resume=True)
    assert f"{tmp_path / 'new'} has no whole checkpoint: starting from the start" in notes(events)
    whole = values_of(model_directory, pairs_file, tmp_path / "whole")
    trained("dpo", whole)
    assert lines(tmp_path / "new") == lines(tmp_path / "whole")
    # What a run left that died before its first checkpoint is started anew; what is not a run's is not touched.
    values = stopped_run(model_directory, pairs_file, tmp_path / "died")
    checkpoint.remove(tmp_path / "died" / "checkpoints" / "step-00000003")
    events = trained("dpo", values, resume=True)
    assert "has no whole checkpoint" in notes(events)
    assert lines(tmp_path / "died") == lines(tmp_path / "whole")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="is not empty"):
        trained("dpo", values_of(model_directory, pairs_file, tmp_path / "foreign"), resume=True)
    assert (tmp_path / "foreign" / "letter.txt").read_text() == "dear"


def test_a_damaged_checkpoint_is_named_and_passed_over(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    trained("dpo", values_of(model_directory, pairs_file, tmp_path / "whole"))
    values = values_of(model_directory, pairs_file, tmp_path / "out", save_every=2, keep=3)
    stopped = trained("dpo", values, stop=after(7))
    assert [event.step for event in stopped if isinstance(event, Kept)] == [2, 4, 6, 7]
    assert checkpoint.steps(tmp_path / "out") == [4, 6, 7]
    for step, name in ((7, "training.safetensors"), (6, "model.safetensors")):
        file = checkpoint.at(tmp_path / "out", step) / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    events = trained("dpo", values, resume=True)
    assert "step-00000007 is damaged and passed over: training.safetensors is not what was written" in notes(events)
    assert "step-00000006 is damaged and passed over: model.safetensors is not what was written" in notes(events)
    assert [event.step for event in events if isinstance(event, Progress)] == [5, 6, 7, 8, 9, 10]
    assert lines(tmp_path / "out") == lines(tmp_path / "whole")
    same_weights(tmp_path / "out", tmp_path / "whole")


@pytest.mark.parametrize(("use_peft", "best_by"), [(False, "eval_rewards/chosen"), (True, "eval_loss")])
def test_the_best_evaluation_is_written(
    use_peft: bool, best_by: str, model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    """The learning rate is so high that held-out figures are best somewhere on the way."""
    more = {"eval_steps": 1, "best": best_by, "learning_rate": 3e-2, "keep": 1, "use_peft": use_peft}
    values = values_of(model_directory, pairs_file, tmp_path / "out", **more)
    events = trained("dpo", values)
    figures = {event.step: event.metrics[best_by] for event in events if isinstance(event, Evaluated)}
    best = (min if best_by == "eval_loss" else max)(figures, key=lambda step: figures[step])
    assert 1 <= best < 10, figures
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["weights_of_step"] == best
    assert manifest["metrics"][best_by] == figures[best]
    until = values_of(model_directory, pairs_file, tmp_path / "until", **{**more, "best": None})
    trained("dpo", until, stop=after(best))
    same_weights(tmp_path / "out", checkpoint.at(tmp_path / "until", best))
    # Stopped and resumed, it is the same: the best so far is kept whatever --keep says.
    parts = {**values, "output": str(tmp_path / "parts")}
    for _ in range(3):
        trained("dpo", parts, resume=True, stop=after(4))
    assert lines(tmp_path / "parts") == lines(tmp_path / "out")
    same_weights(tmp_path / "parts", tmp_path / "out")
    with pytest.raises(ValueError, match=r"--best eval_los: no such metric of this method; there are eval_loss"):
        trained("dpo", {**values, "best": "eval_los", "output": str(tmp_path / "no")})
    with pytest.raises(ValueError, match=f"--best {best_by}: nothing is held out"):
        trained("dpo", {**values, "eval_steps": None, "eval_fraction": 0.0, "output": str(tmp_path / "no")})
    assert not (tmp_path / "no").exists()


def test_a_hard_update_at_every_step_keeps_the_reference_at_the_policy(
    model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    """TR-DPO (arXiv 2404.09656) with α = 1 and τ = 1: the loss is log 2 at every step, though weights move."""
    for number, more in enumerate(({}, {"use_peft": True, "lora_r": 4})):
        more |= {"reference_mixup": 1.0, "reference_every": 1, "eval_fraction": 0.0, "eval_steps": None}
        events = trained("dpo", values_of(model_directory, pairs_file, tmp_path / str(number), **more))
        steps = [event.metrics for event in events if isinstance(event, Progress)]
        assert [step["loss"] for step in steps] == pytest.approx([math.log(2)] * 10, abs=1e-6)
        assert len({step["logps/chosen"] for step in steps}) == 10
    with pytest.raises(ValueError, match="--reference-mixup: sft reads no reference"):
        trained("sft", {**values_of(model_directory, pairs_file, tmp_path / "no"), "reference_mixup": 0.5})


def test_a_soft_update_mixes(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    """θ_ref ← α θ + (1 - α) θ_ref, by hand from the checkpoint of the step before."""
    values = values_of(model_directory, pairs_file, tmp_path / "out", reference_mixup=0.25, reference_every=2)
    trained("dpo", {**values, "save_every": 1, "keep": 9}, stop=after(4))
    at = {step: checkpoint.at(tmp_path / "out", step) for step in (1, 2, 3, 4)}
    policy, reference = (
        {step: load_file(path / part / "model.safetensors") for step, path in at.items()} for part in ("", "reference")
    )
    start = load_file(model_directory / "model.safetensors")
    for name, value in start.items():
        assert torch.equal(reference[1][name], value)
        assert torch.allclose(reference[2][name], 0.25 * policy[2][name] + 0.75 * value, atol=1e-7)
        assert torch.equal(reference[3][name], reference[2][name])
        assert torch.allclose(reference[4][name], 0.25 * policy[4][name] + 0.75 * reference[3][name], atol=1e-7)
    assert any((policy[2][name] != value).any() for name, value in start.items())


def test_a_reference_of_another_kind_can_not_move(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    more = {"reference": str(model_directory), "reference_mixup": 0.5, "use_peft": True}
    with pytest.raises(ValueError, match=r"^--reference-mixup: the reference .* has no .*lora_A.* like the policy's"):
        trained("dpo", values_of(model_directory, pairs_file, tmp_path / "out", **more))


def test_a_checkpoint_is_a_model(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    """It opens with transformers, and with peft, as what the run writes at its end does."""
    for name, more in (("full", {}), ("lora", {"use_peft": True, "lora_r": 4})):
        values = values_of(model_directory, pairs_file, tmp_path / name, eval_steps=5, **more)
        trained("dpo", {**values, "save_every": 9})
        there = checkpoint.at(tmp_path / name, 9)
        early, late = (AutoModelForCausalLM.from_pretrained(path) for path in (there, tmp_path / name))
        ids = AutoTokenizer.from_pretrained(there)("Say 1:", return_tensors="pt")["input_ids"]
        gap = (early(ids).logits - late(ids).logits).abs().max().item()
        assert 0 < gap < 0.1
        assert json.loads((there / "generation_config.json").read_text())["eos_token_id"] == [0]


@FOUR_BITS
def test_qlora_trains_an_adapter_over_four_bits(model_directory: Path) -> None:
    loaded = load(str(model_directory), dtype="nf4", lora=Lora(4, 8))
    stored = {parameter.dtype for parameter in loaded.policy.parameters() if not parameter.requires_grad}
    assert torch.uint8 in stored
    with_scales = [p for name, p in loaded.policy.named_parameters() if "q_proj.base_layer" in name]
    assert all(parameter.numel() == 32 * 32 // 2 for parameter in with_scales)
    plain = load(str(model_directory))
    tokens = rows_of([(0, [53, 67, 91, 223, 25, 28], 3)])
    four, full = (score(found.models, tokens)["logp"] for found in (loaded, plain))
    assert 0 < (four - full).abs().max() < 0.2


def test_four_bits_without_the_library_says_what_to_install(
    model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softq.lm.load.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"dtype nf4 needs bitsandbytes: pip install 'softq\[qlora\]'"):
        load(str(model_directory), dtype="nf4", lora=Lora())


def test_what_keeps_a_resumed_run_from_being_equal_bit_for_bit_is_said(
    model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    values = stopped_run(model_directory, pairs_file, tmp_path / "out")
    again = trained("dpo", values, resume=True, stop=after(2))
    there = checkpoint.at(tmp_path / "out", 3)
    assert f"resumed after step 3 from {there}, bit for bit" in notes(again)
    torch.set_num_threads(2)
    try:
        again = trained("dpo", values, resume=True, stop=after(1))
    finally:
        torch.set_num_threads(1)
    assert ", equal to rounding, not bit for bit: threads 1 -> 2" in notes(again)


def test_resume_replaces_nothing_that_this_run_did_not_leave(
    model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    (foreign / "checkpoints").mkdir(parents=True)
    (foreign / "manifest.json").write_text('{"name": "my extension"}')
    (foreign / "checkpoints" / "best.pt").write_text("weights")
    values = values_of(model_directory, pairs_file, foreign)
    with pytest.raises(OutputError, match=r"foreign holds a manifest\.json that no run of softq left; give another"):
        trained("dpo", values, resume=True)
    assert (foreign / "manifest.json").read_text() == '{"name": "my extension"}'
    # Killed before its first checkpoint: the same goes on from the start, another does not.
    values = stopped_run(model_directory, pairs_file, tmp_path / "died")
    checkpoint.remove(checkpoint.at(tmp_path / "died", 3))
    before = lines(tmp_path / "died")
    with pytest.raises(ValueError, match=r"--resume: .*died is of another run: --learning-rate was 0\.003, is 0\.1"):
        trained("dpo", {**values, "learning_rate": 0.1}, resume=True)
    with pytest.raises(ValueError, match=r"--resume: .*died is of another run: it is of dpo, not of sft"):
        trained("sft", values, resume=True)
    assert lines(tmp_path / "died") == before
    # Finished: another run is refused, and one that lost a file is not trained anew.
    assert isinstance(trained("dpo", values, resume=True)[-1], Saved)
    with pytest.raises(ValueError, match="is finished, and of another run: --learning-rate was"):
        trained("dpo", {**values, "learning_rate": 0.1}, resume=True)
    assert isinstance(trained("dpo", values, resume=True)[-1], Saved)
    (tmp_path / "died" / "dropped.jsonl").unlink()
    weights = (tmp_path / "died" / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match=r"died is of a finished run that lost dropped\.jsonl; put it back"):
        trained("dpo", values, resume=True)
    assert (tmp_path / "died" / "model.safetensors").read_bytes() == weights


def test_overwrite_leaves_what_softq_did_not_write(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    for folder in ("checkpoints", "tensorboard", "wandb"):
        (tmp_path / "out" / folder).mkdir(parents=True)
        (tmp_path / "out" / folder / "mine").write_text("mine")
    values = values_of(model_directory, pairs_file, tmp_path / "out", max_steps=2)
    for _ in range(2):
        trained("dpo", {**values, "save_every": 1}, overwrite=True)
        assert (tmp_path / "out" / "checkpoints" / "mine").read_text() == "mine"
        assert checkpoint.steps(tmp_path / "out") == [1]


def test_an_evaluation_that_is_not_finite_names_its_records(
    model_directory: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_dividing.py").write_text(
        COUNTING.replace('batch.columns["made"]', '1 / (1 - batch.columns["made"])')
    )
    values = values_of(model_directory, pairs_file, tmp_path / "out", eval_steps=1)
    with pytest.raises(
        RunError, match=r"^step 1: the evaluation's loss of .*pairs\.jsonl:\d+.* is not finite; lower --learning-rate"
    ):
        trained("mine_dividing:counting", values)


def test_an_evaluation_reads_the_memory_that_training_left(
    model_directory: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_counting.py").write_text(COUNTING)
    values = values_of(model_directory, pairs_file, tmp_path / "out", eval_steps=2, max_steps=4)
    events = trained("mine_counting:counting", values)
    held = [event.metrics["eval_loss"] for event in events if isinstance(event, Evaluated)]
    assert held == pytest.approx([2.0, 4.0])
    assert [event.metrics["loss"] for event in events if isinstance(event, Progress)] == pytest.approx([0, 1, 2, 3])


COUNTING = """
from softq import Method, Term
from softq.objectives.weights import per_pair


def counting() -> Method:
    "The loss is how many steps were made."

    def loss(scored, batch):
        return 0 * scored["logp"].sum(-1)[batch.pairs.chosen] + batch.columns["made"]

    def remember(memory, scored, batch):
        return {"made": memory["made"] + 1}

    import torch
    return Method((Term("counting", "pair", loss, per_pair),), memory={"made": torch.zeros(())}, remember=remember)
"""
