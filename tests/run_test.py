"""A whole run on a tiny transformers model: what it writes loads anywhere, and is what the loop made."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import softq
from softq.lm.load import load
from softq.lm.score import score
from softq.mdp.readouts import REF_LOGP
from softq.training.events import Evaluated, Note, OutputError, Progress, RunError, Saved
from softq.training.run import run
from softq.training.settings import Call, build
from softq.training.source import batch_of


def settings_for(model: Path, data: Path, output: Path, **more) -> dict:
    base = {"model": str(model), "data": [str(data)], "output": str(output), "learning_rate": 3e-3, "batch_size": 6}
    return {**base, "eval_fraction": 0.2, "num_train_epochs": 2, **more}


def trained(name: str, values: dict, **call) -> list:
    settings, method, understood = build(name, values)
    return list(run(name, settings, method, understood, Call(**call)))


def test_dpo_learns_and_its_output_loads_and_generates(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    events = trained("dpo", settings_for(model_directory, pairs_file, out, num_train_epochs=8), verify_layout=True)
    steps = [event for event in events if isinstance(event, Progress)]
    held = [event for event in events if isinstance(event, Evaluated)]
    assert len(steps) == 24
    assert len(held) == 8
    assert steps[0].metrics["loss"] == pytest.approx(0.6931472)
    assert steps[-1].metrics["loss"] < 0.6
    assert held[-1].metrics["eval_rewards/accuracies"] == 1
    assert isinstance(events[-1], Saved)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("exactly 0" in note for note in notes)
    assert any("layout packed" in note for note in notes)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 25))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["finished"]
    assert sorted(path.name for path in out.iterdir()) == sorted(manifest["files"])
    ledger = json.loads((out / "ledger.json").read_text())
    assert (ledger["rows_in"], ledger["rows_used"], ledger["rows_dropped"]) == (20, 20, {})
    assert manifest["data"]["ledger"] == ledger
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    said = model.generate(**tokenizer("Say 1:", return_tensors="pt"), max_new_tokens=5, do_sample=False)
    assert said.shape[1] > tokenizer("Say 1:", return_tensors="pt")["input_ids"].shape[1]
    assert "softq" not in (out / "config.json").read_text()
    # The reference's fingerprint is that of the model as it started, not of what it became.
    again = trained("dpo", settings_for(model_directory, pairs_file, tmp_path / "again", max_steps=1))
    assert isinstance(again[-1], Saved)
    other = json.loads((tmp_path / "again" / "manifest.json").read_text())
    assert other["reference"]["fingerprint"] == manifest["reference"]["fingerprint"]
    # What was logged is what scoring the saved model against the start gives.
    loaded = load(str(out), str(model_directory))
    loaded_margin = margin_of(loaded, pairs_file, out)
    assert held[-1].metrics["eval_rewards/margins"] == pytest.approx(loaded_margin, rel=1e-4)


def margin_of(loaded, pairs_file: Path, out: Path) -> float:
    """rewards/margins of the run's own held-out records, by the saved models."""
    from softq.lm.tokenizer import load_tokenizer
    from softq.training.prepare import read_data

    settings, method, _ = build("dpo", settings_for(out, pairs_file, out))
    data = read_data("dpo", settings, method, load_tokenizer(str(out)))
    batch = batch_of(data.held, range(len(data.held)), method)
    with torch.no_grad():
        scored = score(loaded.models, batch.tokens, (REF_LOGP,))
    reward = 0.1 * (scored["logp"] - scored["ref_logp"]).sum(-1)
    return (reward[batch.pairs.chosen] - reward[batch.pairs.rejected]).mean().item()


@pytest.mark.parametrize("name", ["ipo", "kto", "tdpo2", "wpo", "aot", "sft", "dpo+sft"])
def test_every_method_trains_from_pairs_in_micro_batches(
    name: str, model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    values = settings_for(model_directory, pairs_file, tmp_path / "out", max_steps=2, tokens_per_micro=40)
    losses = [event.metrics["loss"] for event in trained(name, values) if isinstance(event, Progress)]
    whole = settings_for(model_directory, pairs_file, tmp_path / "whole", max_steps=2)
    at_once = [event.metrics["loss"] for event in trained(name, whole) if isinstance(event, Progress)]
    assert losses == pytest.approx(at_once, rel=1e-4)
    assert losses[1] != losses[0]


def test_groups_train_infonca(model_directory: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Say {n}:", "completions": [" the cat", " a dog", " no"], "scores": [n, 1, 2.5]} for n in range(8)
    ]
    data = tmp_path / "groups.json"
    data.write_text(json.dumps(rows))
    events = trained("infonca", settings_for(model_directory, data, tmp_path / "out", beta=1.0, alpha=1.0))
    losses = [event.metrics["loss"] for event in events if isinstance(event, Progress)]
    assert losses[-1] < losses[0]


def test_lora_writes_an_adapter_that_peft_loads(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    values = settings_for(
        model_directory, pairs_file, out, use_peft=True, lora_r=4, bf16=True, gradient_checkpointing=True
    )
    events = trained("dpo", values)
    assert (out / "adapter_model.safetensors").is_file()
    assert not (out / "model.safetensors").exists()
    steps = [event.metrics for event in events if isinstance(event, Progress)]
    assert steps[-1]["loss"] < steps[0]["loss"]
    continued = load(str(out))
    assert AutoModelForCausalLM.from_pretrained(out) is not None
    assert continued.policy.model.peft_config["default"].r == 4


def test_a_chat_template_is_written_out_with_its_end_token(model_directory: Path, tmp_path: Path) -> None:
    rows = [
        {
            "conversations": [{"from": "human", "value": f"Say {n}"}],
            "chosen": {"from": "gpt", "value": "the cat"},
            "rejected": {"from": "gpt", "value": "a dog ran"},
        }
        for n in range(6)
    ]
    data = tmp_path / "share.json"
    data.write_text(json.dumps(rows))
    out = tmp_path / "out"
    events = trained("dpo", settings_for(model_directory, data, out, chat_template="chatml", max_steps=1))
    assert any("<|im_end|>" in event.text for event in events if isinstance(event, Note))
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert "<|im_start|>" in tokenizer.chat_template
    ends = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [0, tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_the_same_seed_gives_the_same_run(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    logs = []
    for name in ("a", "b"):
        trained("dpo", settings_for(model_directory, pairs_file, tmp_path / name, max_steps=3))
        logs.append((tmp_path / name / "metrics.jsonl").read_text())
    assert logs[0] == logs[1]


def test_another_reference_is_scored_and_named(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    trained("dpo", settings_for(model_directory, pairs_file, tmp_path / "first", max_steps=2))
    values = settings_for(model_directory, pairs_file, tmp_path / "out", max_steps=1, reference=str(tmp_path / "first"))
    events = trained("dpo", values)
    assert any("up to" in event.text for event in events if isinstance(event, Note))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["reference"]["model"] == str(tmp_path / "first")


def test_a_stronger_reference_of_another_size_gives_what_it_gives_alone(
    model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    config = AutoConfig.from_pretrained(model_directory)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 48, 64, 3
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "large")
    loaded = softq.load(str(model_directory), str(tmp_path / "large"))
    alone = softq.load(str(tmp_path / "large"), None, tokenizer=loaded.tokenizer)
    data = softq.read(pairs_file, loaded.tokenizer)
    batch = next(softq.batches(data.records, softq.METHODS["dpo"](), batch_size=4)(loaded.models))
    by_reference = softq.score(loaded.models, batch.tokens, softq.METHODS["dpo"]().needs)["ref_logp"]
    torch.testing.assert_close(by_reference, softq.score(alone.models, batch.tokens)["logp"].detach())


def test_a_run_that_diverges_stops_and_names_rows(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    values = settings_for(model_directory, pairs_file, tmp_path / "out", learning_rate=1e30, num_train_epochs=4)
    with pytest.raises(RunError, match=r"step \d+: .*pairs.jsonl:\d+"):
        trained("dpo", values)
    assert not json.loads((tmp_path / "out" / "manifest.json").read_text())["finished"]
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_output_is_refused_or_taken_over_but_foreign_files_stay(
    model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    values = settings_for(model_directory, pairs_file, out, max_steps=1)
    with pytest.raises(OutputError, match=r"is not empty \(it holds notes.txt\)"):
        trained("dpo", values)
    trained("dpo", values, overwrite=True)
    trained("dpo", {**values, "use_peft": True}, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "adapter_config.json").is_file()
    assert not (out / "model.safetensors").exists()


def test_a_users_own_method_trains(
    model_directory: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mine", None)
    events = trained(
        "mine:hinge", settings_for(model_directory, pairs_file, tmp_path / "out", max_steps=2, margin="2.5")
    )
    losses = [event.metrics["loss"] for event in events if isinstance(event, Progress)]
    assert losses[0] == pytest.approx(2.5)
    assert losses[1] < 2.5


OWN = """
from softq import Method, Term
from softq.mdp.readouts import REF_LOGP
from softq.objectives.margins import contrast
from softq.objectives.weights import per_pair
from softq.records import implicit

def hinge(margin: float = 1.0) -> Method:
    def loss(scored, batch):
        return (margin - contrast(implicit(scored, batch), batch)).relu()
    return Method((Term("hinge", "pair", loss, per_pair),), (REF_LOGP,), columns=("weight",))
"""
