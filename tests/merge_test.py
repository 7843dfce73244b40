"""A merged model is the adapter: the same logits, by value, from a directory that needs no peft."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from softq.lm.load import load
from softq.lm.merge import merge
from softq.lm.reference import fingerprint
from softq.training.publish import published
from softq.training.run import run
from softq.training.settings import build
from tests.calls import called, snapshot
from tests.hub import hub

IDS = torch.randint(0, 300, (3, 11), generator=torch.Generator().manual_seed(3))
ENDS = [0, 7]


def logits(model) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


def opened(directory: Path, dtype: torch.dtype = torch.float32):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)


def base_of(adapter: Path) -> Path:
    return Path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])


def under(adapter: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    """What the adapter says, on its base."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return logits(PeftModel.from_pretrained(opened(base_of(adapter), dtype), adapter))


def adapter_of(base: Path, directory: Path, scale: float = 0.2, **settings) -> Path:
    """An adapter at random: every weight that it trains is moved."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(opened(base), LoraConfig(r=2, task_type="CAUSAL_LM", **settings))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += scale * torch.randn_like(parameter)
        model.save_pretrained(str(directory))
    return directory


@pytest.fixture(scope="module")
def trained(model_directory: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of a run of ours, with end tokens and a chat template of its own."""
    out = tmp_path_factory.mktemp("run") / "adapter"
    values = {"model": str(model_directory), "data": [str(pairs_file)], "output": str(out), "use_peft": True}
    settings, method, understood = build("dpo", {**values, "learning_rate": 1e-2, "max_steps": 4, "batch_size": 6})
    for _ in run("dpo", settings, method, understood):
        pass
    generation = json.loads((out / "generation_config.json").read_text())
    (out / "generation_config.json").write_text(json.dumps({**generation, "eos_token_id": ENDS, "top_k": 5}))
    (out / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return out


def test_an_adapter_of_a_run_becomes_a_model_that_is_the_same(
    trained: Path, model_directory: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "merged"
    code, said, error = called(["merge", str(trained), "--output", str(out)], capsys)
    assert (code, error) == (0, "")
    assert f"written to {out}" in said
    model = opened(out)
    torch.testing.assert_close(logits(model), under(trained), atol=1e-5, rtol=0)
    assert (logits(model) - logits(opened(model_directory))).abs().max() > 0.01
    assert model.generation_config.eos_token_id == ENDS
    assert model.generation_config.top_k == 5
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    assert tokenizer("the cat")["input_ids"] == AutoTokenizer.from_pretrained(model_directory)("the cat")["input_ids"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["finished"]
    assert sorted(manifest["files"]) == sorted(set(snapshot(out)))
    assert not any(name.startswith("adapter") for name in manifest["files"])
    facts = manifest["merge"]
    assert (facts["adapter"], facts["base"]) == (str(trained), str(model_directory))
    assert facts["fingerprints"]["base"] == manifest["reference"]["fingerprint"]
    assert facts["fingerprints"]["base"] == fingerprint(load(str(model_directory), None, layout="plain").policy)
    assert facts["fingerprints"]["merged"] == fingerprint(load(str(out), None, layout="plain").policy)
    assert facts["difference"]["max"] < 1e-4 < facts["moved"]["mean"]
    assert f"{facts['difference']['max']:.1e} nats" in said
    card = (out / "README.md").read_text()
    assert 'library_name: "transformers"' in card
    assert f"is merged into `{model_directory}` in float32" in card


def test_in_bfloat16_the_model_is_the_adapter_in_bfloat16(trained: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "merged"
    assert called(["merge", str(trained), "--output", str(out), "--dtype", "bfloat16"], capsys)[0] == 0
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    model = opened(out, torch.bfloat16)
    apart = (logits(model).log_softmax(-1) - under(trained, torch.bfloat16).log_softmax(-1)).abs()
    moved = (logits(model).log_softmax(-1) - logits(opened(base_of(trained), torch.bfloat16)).log_softmax(-1)).abs()
    assert apart.mean() < 0.01
    assert apart.mean() < 0.2 * moved.mean()


KINDS = {
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "rslora": {"target_modules": "all-linear", "use_rslora": True, "lora_alpha": 3},
    "uneven ranks": {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"q_proj": 4}},
    "a whole head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "whole embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "an adapted embedding": {"target_modules": ["embed_tokens"]},
    "an adapted head": {"target_modules": ["lm_head", "v_proj"]},
    "embeddings that stay tied": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_from_disk_to_disk(kind: str, model_directory: Path, tmp_path: Path) -> None:
    """The base ties its embeddings; merged in place, an adapter of one would change the other."""
    adapter = adapter_of(model_directory, tmp_path / "adapter", **KINDS[kind])
    merged = merge(str(adapter))
    merged.policy.model.save_pretrained(str(tmp_path / "merged"))
    again = opened(tmp_path / "merged")
    torch.testing.assert_close(logits(again), under(adapter), atol=2e-5, rtol=1e-5)
    assert (logits(again) - logits(opened(model_directory))).abs().max() > 0.01
    untied = any("embeddings and the adapter changes them" in note for note in merged.notes)
    assert untied == (kind in {"a whole head", "whole embeddings", "an adapted embedding", "an adapted head"})
    assert again.config.tie_word_embeddings is not untied


def test_the_dtype_is_the_bases_unless_asked_for(model_directory: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    opened(model_directory, torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(model_directory).save_pretrained(half)
    adapter = adapter_of(half, tmp_path / "adapter", target_modules="all-linear")
    merged = merge(str(adapter))
    assert (merged.facts["dtype"], merged.facts["tolerance"]) == ("bfloat16", 0.1)
    assert {parameter.dtype for parameter in merged.policy.parameters()} == {torch.bfloat16}
    assert merge(str(adapter), dtype="float32").facts["dtype"] == "float32"


def test_an_adapter_that_bfloat16_rounds_away_is_said_to_be(model_directory: Path, tmp_path: Path) -> None:
    for scale, lost in ((1e-4, True), (1e-2, False)):
        adapter = str(adapter_of(model_directory, tmp_path / str(scale), scale, target_modules="all-linear"))
        notes = merge(adapter, dtype="bfloat16").notes
        assert any("rounding drowns it; --dtype float32 keeps it" in note for note in notes) is lost
        assert not any("drowns" in note for note in merge(adapter).notes)


def test_a_base_without_a_chat_template_gets_none_and_one_with_it_lends_it(
    model_directory: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    opened(model_directory).save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    tokenizer.save_pretrained(base)
    adapter = adapter_of(base, tmp_path / "adapter", target_modules=["q_proj"])
    tokenizer.save_pretrained(adapter)
    assert merge(str(adapter)).tokenizer.chat_template is None
    (base / "chat_template.jinja").write_text("of the base")
    assert merge(str(adapter)).tokenizer.chat_template == "of the base"
    (adapter / "chat_template.jinja").write_text("its own")
    assert merge(str(adapter)).tokenizer.chat_template == "its own"


def test_a_merge_that_is_not_the_adapter_is_not_written(
    trained: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgets(model: PeftModel, **_):
        return model.unload()

    monkeypatch.setattr(PeftModel, "merge_and_unload", forgets, raising=False)
    code, _, error = called(["merge", str(trained), "--output", str(tmp_path / "out")], capsys)
    assert code == 2
    assert (
        "nats a token from the adapter on average, where rounding in torch.float32 explains 1e-04: nothing was" in error
    )
    assert not (tmp_path / "out").exists()


def test_nan_in_an_adapter_is_no_model(model_directory: Path, tmp_path: Path) -> None:
    adapter = adapter_of(model_directory, tmp_path / "adapter", scale=float("nan"), target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"can not be merged: NaNs detected"):
        merge(str(adapter))


def changed(adapter: Path, **values) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **values}))


def test_what_is_no_adapter_is_called_what_it_is(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    for what, said in (
        (model_directory, "is a whole model, with nothing to merge"),
        (tmp_path, "is no adapter: it has no adapter_config.json"),
        (pairs_file, "a file; give an adapter's directory"),
        (tmp_path / "nothing", "no such directory; give an adapter's directory"),
    ):
        with pytest.raises(ValueError, match=said):
            merge(str(what))
    model = get_peft_model(opened(model_directory), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    model.save_pretrained(str(tmp_path / "prompt"))
    with pytest.raises(ValueError, match="which adds tokens: it can not be merged"):
        merge(str(tmp_path / "prompt"))


def test_what_does_not_fit_is_said_in_one_line(model_directory: Path, tmp_path: Path) -> None:
    adapter = adapter_of(model_directory, tmp_path / "adapter", target_modules=["q_proj"])
    changed(adapter, base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"gone of .*no such directory, nor such a model .*; put it there") as failed:
        merge(str(adapter))
    assert "\n" not in str(failed.value)
    changed(adapter, base_model_name_or_path=str(adapter))
    with pytest.raises(ValueError, match="is an adapter itself; merge that one first"):
        merge(str(adapter))
    changed(adapter, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="write there which model the adapter changes"):
        merge(str(adapter))
    changed(adapter, base_model_name_or_path=str(model_directory), r=3)
    with pytest.raises(ValueError, match=r"does not fit its base .*size mismatch"):
        merge(str(adapter))
    changed(adapter, r=2, target_modules=["q_proj", "v_proj"])  # whose weights the file does not hold
    with pytest.raises(ValueError, match=r"does not fit its base .*missing adapter keys"):
        merge(str(adapter))
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"has no adapter_model.safetensors; other formats can run code"):
        merge(str(adapter))
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config.json can not be read"):
        merge(str(adapter))


def test_an_output_is_refused_or_replaced_but_never_what_it_is_made_of(
    trained: Path, model_directory: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    code, _, error = called(["merge", str(trained), "--output", str(out)], capsys)
    assert (code, "is not empty (it holds notes.txt)" in error) == (2, True)
    assert called(["merge", str(trained), "--output", str(out), "--overwrite"], capsys)[0] == 0
    assert called(["merge", str(trained), "--output", str(out), "--overwrite", "--dtype", "bfloat16"], capsys)[0] == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert not [name for name in snapshot(out) if "partial" in name]
    for place, what in ((trained, "adapter"), (model_directory, "base")):
        before = snapshot(place)
        code, _, error = called(["merge", str(trained), "--output", str(place), "--overwrite"], capsys)
        assert (code, f"is the {what} itself" in error) == (2, True)
        assert snapshot(place) == before


def test_an_adapter_of_another_tool_is_pushed_with_a_card_of_its_own(
    model_directory: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_of(model_directory, tmp_path / "adapter", target_modules="all-linear")
    out = tmp_path / "merged"
    words = ["merge", str(adapter), "--output", str(out), "--push-to-hub", "me/merged"]
    with hub(monkeypatch, token=None) as there:
        code, _, error = called(words, capsys)
        assert (code, "hf auth login" in error, out.exists()) == (2, True, False)
    with hub(monkeypatch) as there:
        code, said, _ = called(words, capsys)
        assert code == 0
        assert f"published at {there.url}/me/merged" in said
        files = there.files["me/merged"]
    assert sorted(files) == sorted(path.name for path in out.iterdir())
    assert files["model.safetensors"] == (out / "model.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert f"The adapter `adapter` is merged into `{model_directory.name}` in float32." in card
    for name in ("README.md", "manifest.json", "config.json", "tokenizer_config.json"):
        assert str(tmp_path.parent).encode() not in files[name]


def test_an_adapter_of_a_run_is_published_without_the_places_it_names(
    trained: Path, model_directory: Path, pairs_file: Path
) -> None:
    contents = published(trained)
    read = {name: text if isinstance(text, bytes) else text.read_bytes() for name, text in contents.items()}
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "metrics.jsonl",
        "ledger.json",
    } <= set(read)
    assert (trained / "dropped.jsonl").exists()
    assert "dropped.jsonl" not in read
    for name, content in read.items():
        for place in (trained, model_directory, pairs_file):
            assert str(place.parent).encode() not in content, name
    assert json.loads(read["adapter_config.json"])["base_model_name_or_path"] == model_directory.name
    assert json.loads(read["manifest.json"])["settings"]["data"] == ["pairs.jsonl"]
    assert b"\n  --data pairs.jsonl \\\n" in read["README.md"]
