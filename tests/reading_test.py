"""softq score: tables that hold what training logs, made once, whole or not at all, by one process or several."""

import json
import math
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from calls import called
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import softq
from softq.data.rows import DataError
from softq.inspection.shelf import Shelf, place
from softq.reading import score as scoring
from softq.reading.choice import MODELS, choice
from softq.reading.run import scored
from softq.reading.tables import Asked, Part
from softq.training.events import Note, OutputError, RunError
from softq.training.output import alone
from softq.training.run import run
from softq.training.settings import Call, build


@pytest.fixture(scope="module")
def trained(model_directory: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of ours after a few steps of dpo."""
    out = tmp_path_factory.mktemp("trained") / "out"
    values = {"model": str(model_directory), "data": [str(pairs_file)], "output": str(out), "beta": 0.2}
    settings, method, understood = build("dpo", {**values, "max_steps": 3, "learning_rate": 1e-2, "batch_size": 4})
    for _ in run("dpo", settings, method, understood, Call()):
        pass
    return out


def told(asked: Asked) -> str:
    return "\n".join(event.text for event in scored(asked) if isinstance(event, Note))


def test_the_tables_hold_what_training_logs(
    trained: Path, model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    said = told(Asked(str(trained), (str(pairs_file),), tmp_path / "out"))
    assert f"reference {model_directory}, as {trained} was trained with" in said
    assert "β = 0.2" in said
    shelf = Shelf(tmp_path / "out")
    pairs, tokens = shelf.table("pairs"), shelf.table("tokens")
    loaded = softq.load(str(trained), str(model_directory))
    data = softq.read(pairs_file, loaded.tokenizer, max_length=2048)
    dpo = softq.METHODS["dpo"](beta=0.2)
    batch = softq.training.source.batch_of(list(data.records), range(len(data.records)), dpo)
    with torch.no_grad():
        whole = softq.score(loaded.models, batch.tokens, dpo.needs)
    ratio = 0.2 * (whole["logp"] - whole["ref_logp"])
    rewards = ratio.sum(-1).tolist()
    assert pairs["chosen_reward"].to_pylist() == pytest.approx(rewards[::2], abs=1e-5)
    assert pairs["rejected_reward"].to_pylist() == pytest.approx(rewards[1::2], abs=1e-5)
    assert tokens["reward"].to_pylist() == pytest.approx(ratio[batch.tokens.action].tolist(), abs=1e-5)
    assert pairs["where"].to_pylist() == [record.where for record in data.records]
    assert max(map(abs, rewards)) > 1e-3


def test_texts_are_the_files(trained: Path, pairs_file: Path, tmp_path: Path) -> None:
    told(Asked(str(trained), (str(pairs_file),), tmp_path / "out"))
    rows = [json.loads(line) for line in Path(pairs_file).read_text().splitlines()]
    for row, pair in zip(rows, Shelf(tmp_path / "out").table("pairs").to_pylist(), strict=True):
        assert (pair["prompt"], pair["chosen_text"]) == (row["prompt"], row["chosen"])
        assert pair["rejected_text"] == row["rejected"]


def test_a_scoring_that_was_stopped_goes_on_to_the_same_tables(
    trained: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "PART", 3)
    monkeypatch.setattr("softq.reading.tables.PART", 3)
    whole, other = (Asked(str(trained), (str(pairs_file),), tmp_path / name) for name in ("whole", "other"))
    parts = sum(isinstance(event, Part) for event in scored(whole))
    assert parts > 2
    events = scored(other)
    for event in events:
        if isinstance(event, Part):
            break
    events.close()
    with pytest.raises(ValueError, match="not finished; run the same softq score again"):
        Shelf(tmp_path / "other")
    assert "1 of" in told(other)
    for table in ("pairs", "tokens"):
        for n in range(parts):
            files = [place(tmp_path / name, table, n) for name in ("whole", "other")]
            assert pq.read_table(files[0]).equals(pq.read_table(files[1]))


def test_scores_of_something_else_are_not_mixed(trained: Path, pairs_file: Path, tmp_path: Path) -> None:
    told(Asked(str(trained), (str(pairs_file),), tmp_path / "out"))
    with pytest.raises(OutputError, match=r"holds scores of another beta \(0.2, now 0.5\)"):
        told(Asked(str(trained), (str(pairs_file),), tmp_path / "out", beta=0.5))
    told(Asked(str(trained), (str(pairs_file),), tmp_path / "out", beta=0.5, overwrite=True))
    assert Shelf(tmp_path / "out").facts["beta"] == 0.5
    with pytest.raises(OutputError, match=r"another dtype \(float32, now float64\)"):
        told(Asked(str(trained), (str(pairs_file),), tmp_path / "out", beta=0.5, dtype="float64"))
    with pytest.raises(OutputError, match=r"another reference \(\S+ \w{8}, now none\)"):
        told(Asked(str(trained), (str(pairs_file),), tmp_path / "out", beta=0.5, reference="none"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty, and softq score did not write what is there"):
        told(Asked(str(trained), (str(pairs_file),), tmp_path / "mine"))


@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"format": "another", "parts": 1}', '{"format": "softq scores 1"}'])
def test_a_foreign_score_json_is_left_alone(text: str, trained: Path, pairs_file: Path, tmp_path: Path) -> None:
    (tmp_path / "score.json").write_text(text)
    with pytest.raises(OutputError, match="softq score did not write what is there"):
        told(Asked(str(trained), (str(pairs_file),), tmp_path, overwrite=True))
    assert (tmp_path / "score.json").read_text() == text


def test_overwriting_that_is_stopped_says_that_it_is_not_finished(
    trained: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    told(Asked(str(trained), (str(pairs_file),), out))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("softq.reading.outputs.place", killed)
        with pytest.raises(KeyboardInterrupt):
            told(Asked(str(trained), (str(pairs_file),), out, beta=0.5, overwrite=True))
    with pytest.raises(ValueError, match="not finished"):
        Shelf(out)
    told(Asked(str(trained), (str(pairs_file),), out))
    assert Shelf(out).facts["beta"] == 0.2


def test_a_directory_that_is_taken_closed_or_full_is_said_in_a_line(
    trained: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "out", Asked(str(trained), (str(pairs_file),), tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr("os.access", lambda *_: False)
        with pytest.raises(OutputError, match=f"can not be written: {tmp_path} is closed to you"):
            told(asked)
    assert not out.exists()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(scoring, "put", full)
        with pytest.raises(RunError, match=r"No space left on device; mend it, then the same again goes on"):
            told(asked)
    with alone(out), pytest.raises(OutputError, match="is in use by another run"):
        told(asked)
    told(asked)
    assert Shelf(out).facts["finished"]


def test_a_reference_that_changed_since_is_refused(
    trained: Path, model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    moved, policy = tmp_path / "moved", tmp_path / "policy"
    shutil.copytree(model_directory, moved)
    shutil.copytree(trained, policy)
    manifest = json.loads((policy / "manifest.json").read_text())
    manifest["settings"]["model"] = str(moved)
    (policy / "manifest.json").write_text(json.dumps(manifest))
    told(Asked(str(policy), (str(pairs_file),), tmp_path / "same"))
    said = told(Asked(str(policy), (str(pairs_file),), tmp_path / "wider", dtype="float64"))
    assert "is read in float64, and was in float32 when" in said
    model = AutoModelForCausalLM.from_pretrained(moved)
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    model.save_pretrained(moved)
    with pytest.raises(ValueError, match="has changed since the policy was trained with it"):
        told(Asked(str(policy), (str(pairs_file),), tmp_path / "out"))
    told(Asked(str(policy), (str(pairs_file),), tmp_path / "given", reference=str(moved)))


def test_a_foreign_policy_is_compared_with_nothing_unless_told(
    model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(model_directory, foreign)
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps({**config, "_name_or_path": "their/sft"}))
    said = told(Asked(str(foreign), (str(pairs_file),), tmp_path / "out"))
    assert "no reference: what compares with one is left out" in said
    assert "give --reference their/sft if that is what it was trained from" in said
    assert "β" not in said, "without a reference there are no rewards to be in nats"
    shelf = Shelf(tmp_path / "out")
    assert not shelf.compared
    assert "margin" not in shelf.table("pairs").column_names
    assert AutoTokenizer.from_pretrained(foreign).eos_token == "<eos>"


def as_trl_leaves_it(model_directory: Path, out: Path, base: str) -> Path:
    """The files of a TRL run, by their names; transformers 5 writes no _name_or_path, the card has the base."""
    for directory in (out, out / "checkpoint-6", out / "checkpoint-12"):
        shutil.copytree(model_directory, directory, dirs_exist_ok=True)
        (directory / "trainer_state.json").write_text(json.dumps({"global_step": 12, "log_history": []}))
        (directory / "training_args.bin").write_bytes(b"a pickle, which nobody opens")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (out / "checkpoint-6" / name).write_bytes(b"another")
    (out / "README.md").write_text(f"---\nbase_model: {base}\ntags:\n- trl\n- dpo\n---\n\n# Model Card for out\n")
    return out


def test_what_trl_left_is_a_policy_and_its_card_a_clue(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    out = as_trl_leaves_it(model_directory, tmp_path / "trl", "org/their sft")
    for policy in (out, out / "checkpoint-6"):
        assert (
            f"{policy} names org/their sft: give --reference 'org/their sft' if"
            in choice(str(policy), None, None).notes[0]
        )
    for file in (*MODELS, "model.safetensors"):
        (out / file).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"holds no model itself, only checkpoints; give one, such as .*checkpoint-12"):
        choice(str(out), None, None)
    said = told(
        Asked(str(out / "checkpoint-6"), (str(pairs_file),), tmp_path / "scores", reference=str(model_directory))
    )
    assert "the reference is the policy itself, so every reward is 0" in said
    assert set(Shelf(tmp_path / "scores").table("pairs")["margin"].to_pylist()) == {0.0}


def test_an_adapter_names_its_base(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_directory), LoraConfig(task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.05 if "lora_B" in name else 0.0)
    model.save_pretrained(adapter)
    AutoTokenizer.from_pretrained(model_directory).save_pretrained(adapter)
    said = told(Asked(str(adapter), (str(pairs_file),), tmp_path / "out"))
    assert f"give --reference {model_directory} if that is what it was trained from" in said
    told(Asked(str(adapter), (str(pairs_file),), tmp_path / "both", reference=str(model_directory), beta=0.1))
    pairs = Shelf(tmp_path / "both").table("pairs")
    ratio = [a - b for a, b in zip(pairs["chosen_logp"].to_pylist(), pairs["chosen_ref_logp"].to_pylist(), strict=True)]
    assert pairs["chosen_reward"].to_pylist() == pytest.approx([0.1 * value for value in ratio], abs=1e-6)
    assert max(map(abs, ratio)) > 1e-2
    config = json.loads((adapter / "adapter_config.json").read_text())
    for base, wrong in (
        (str(tmp_path / "gone"), "nor such a model on the hub: .*gone, its base; write in .* where it is now"),
        (None, "has base_model_name_or_path None; write there which model"),
    ):
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        with pytest.raises(ValueError, match=wrong):
            told(Asked(str(adapter), (str(pairs_file),), tmp_path / "never"))
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"its adapter_model.safetensors is missing"):
        told(Asked(str(adapter), (str(pairs_file),), tmp_path / "never"))
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("head", "clue"),
    [
        ("base_model: a/b\ntags:\n- trl\n", "a/b"),
        ("license: mit\nbase_model:\n- a/b\n", "a/b"),
        ("base_model: 'a/b'\n", "a/b"),
        ("base_model:\n- a/b\n- c/d\n", None),
        ("base_model: [a/b]\n", None),
        ("base_model:\ntags:\n- trl\n", None),
    ],
)
def test_the_head_of_a_card_names_one_base(head: str, clue: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{head}---\n\nbase_model: not/this\n")
    said = choice(str(tmp_path), None, None).notes[0]
    assert (f"names {clue}: give" in said) if clue else "left out; give --reference if you have" in said


@pytest.mark.parametrize("text", ["[]", "{", '{"_name_or_path": 5}', "\udcff"])
def test_a_clue_that_can_not_be_read_is_none(text: str, tmp_path: Path) -> None:
    for name in ("config.json", "README.md"):
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "left out; give --reference if you have" in choice(str(tmp_path), None, None).notes[0]


def test_a_manifest_that_tells_no_reference_is_said_so(trained: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    shutil.copytree(trained, policy)
    manifest = json.loads((policy / "manifest.json").read_text())
    for reference in (5, {}):
        (policy / "manifest.json").write_text(json.dumps({**manifest, "reference": reference}))
        with pytest.raises(ValueError, match=r"its manifest.json tells no reference; give --reference DIR, or none"):
            choice(str(policy), None, None)
    (policy / "manifest.json").write_text(json.dumps({**manifest, "finished": False}))
    for file in MODELS:
        (policy / file).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="its training is not finished; go on with softq train … --resume"):
        choice(str(policy), None, None)


def test_a_reference_of_another_tokenizer_is_refused(trained: Path, pairs_file: Path, tmp_path: Path) -> None:
    """As many tokens, but other ones; the same under other names of added tokens is the same."""
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    file = other / "tokenizer.json"
    spoken = json.loads(file.read_text())
    for added in spoken["added_tokens"]:
        if added["content"] == "<|im_start|>":
            added["content"] = "<|reserved|>"
    spoken["model"]["vocab"]["<|reserved|>"] = spoken["model"]["vocab"].pop("<|im_start|>")
    file.write_text(json.dumps(spoken))
    told(Asked(str(trained), (str(pairs_file),), tmp_path / "renamed", reference=str(other)))
    vocabulary = spoken["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    file.write_text(json.dumps(spoken))
    with pytest.raises(ValueError, match=r"has another tokenizer: \d+ is '[ae]' there, and '[ae]' in the policy's"):
        told(Asked(str(trained), (str(pairs_file),), tmp_path / "out", reference=str(other)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).unlink()
    told(Asked(str(trained), (str(pairs_file),), tmp_path / "out", reference=str(other)))


def test_a_uniform_reference_has_no_states_to_compare(trained: Path, pairs_file: Path, tmp_path: Path) -> None:
    told(Asked(str(trained), (str(pairs_file),), tmp_path / "out", reference="uniform"))
    pairs = Shelf(tmp_path / "out").table("pairs")
    assert pairs["ches"].null_count == pairs.num_rows
    tokens, vocabulary = pairs["chosen_tokens"].to_pylist(), AutoTokenizer.from_pretrained(trained)
    expected = [-count * math.log(len(vocabulary)) for count in tokens]
    assert pairs["chosen_ref_logp"].to_pylist() == pytest.approx(expected, rel=1e-6)


def test_labels_are_rows_with_their_score(trained: Path, tmp_path: Path) -> None:
    lines = [{"prompt": "Say", "completion": f" {word}", "label": word == "aa"} for word in ("aa", "bb")]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told(Asked(str(trained), (str(tmp_path / "labels.jsonl"),), tmp_path / "out"))
    shelf = Shelf(tmp_path / "out")
    assert shelf.kind == "rows"
    assert shelf.table("rows")["score"].to_pylist() == [1.0, 0.0]
    assert shelf.table("rows")["text"].to_pylist() == [" aa", " bb"]


def test_dropped_rows_are_in_the_ledger(trained: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "", "rejected": "c"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told(Asked(str(trained), (str(tmp_path / "pairs.jsonl"),), tmp_path / "out"))
    ledger = pq.read_table(tmp_path / "out" / "ledger.parquet").to_pylist()
    assert [(line["row"], line["record"], line["reason"]) for line in ledger] == [
        (1, 0, None),
        (2, None, "empty_completion"),
    ]


def test_by_the_command_line(trained: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    words = ["score", "--policy", str(trained), "--data", str(pairs_file), "--output", str(out)]
    code, said, _ = called(words, capsys)
    assert (code, f"written to {out}" in said) == (0, True)
    code, _, wrong = called([*words[:-1], str(pairs_file)], capsys)
    assert (code, wrong.count("\n")) == (2, 1)
    assert "is a file; give a directory" in wrong


@pytest.mark.parametrize(
    ("given", "told_so"),
    [
        ({"beta": float("nan")}, "--beta nan: expected a number above 0"),
        ({"max_length": 0}, "--max-length 0: expected at least 2"),
        ({"policy": " "}, "--policy ' ': expected a directory or a name on the hub"),
        ({"reference": ""}, "--reference '': expected a directory or a name on the hub"),
        ({"data": ("\udcff.jsonl",)}, "its name is not UTF-8"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(
    given: dict, told_so: str, trained: Path, pairs_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=told_so):
        told(Asked(str(trained), (str(pairs_file),), tmp_path / "out")._replace(**given))
    assert not (tmp_path / "out").exists()


def test_prompts_alone_are_no_data_to_score(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Say"}\n')
    with pytest.raises(
        DataError, match=r"prompts.jsonl:1: no completion to score; give rows that answer their prompts"
    ):
        told(Asked(str(trained), (str(tmp_path / "prompts.jsonl"),), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_completions_that_are_cut_or_short_and_text_of_any_script(trained: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "chosen": " b c d e f g h i", "rejected": " z"},
        {"prompt": "שלום، 不", "chosen": " نعم 👨‍👩‍👧", "rejected": "\u202e<b>"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = Asked(str(trained), (str(tmp_path / "pairs.jsonl"),), tmp_path / "whole")
    told(asked)
    pairs = Shelf(tmp_path / "whole").table("pairs").to_pylist()
    for pair, row in zip(pairs, rows, strict=True):
        assert [pair[name] for name in ("prompt", "chosen_text", "rejected_text")] == list(row.values())
    told(asked._replace(output=tmp_path / "cut", max_length=6, truncate="keep"))
    (cut,) = Shelf(tmp_path / "cut").table("pairs").to_pylist()
    assert (cut["chosen_tokens"], cut["chosen_ended"], cut["rejected_ended"]) == (5, False, True)
    assert rows[0]["chosen"].startswith(cut["chosen_text"])
    tokens = Shelf(tmp_path / "whole").table("tokens").to_pylist()
    first = [token["logp"] for token in tokens if (token["record"], token["completion"]) == (0, 0)][:5]
    assert cut["chosen_logp"] == pytest.approx(sum(first), abs=1e-4)


def test_a_reference_that_is_not_where_it_was_is_asked_for(trained: Path, pairs_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    settings = {**manifest["settings"], "model": "gone/sft"}
    (copy / "manifest.json").write_text(json.dumps({**manifest, "settings": settings}))
    with pytest.raises(
        ValueError, match=r"model gone/sft: no such directory.*was trained with it: give --reference DIR"
    ):
        told(Asked(str(copy), (str(pairs_file),), tmp_path / "out"))
    assert not (tmp_path / "out").exists()
