"""Configs of TRL and LLaMA-Factory: values by hand, every key accounted for, their defaults as the libraries have them."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments

from softq.training.migration import tables
from softq.training.migration.migrate import Migrated, migrated
from softq.training.settings import Settings, build

DOCS = (Path(__file__).parent.parent / "docs" / "migrate.md").read_text(encoding="utf-8")

TRL = """
model_name_or_path: owner/model
dataset_name: owner/pairs
dataset_config: big
output_dir: out
loss_type: [sigmoid, sft]
loss_weights: [0.8, 0.2]
beta: 0.05
learning_rate: 5e-7
per_device_train_batch_size: 2
gradient_accumulation_steps: 16
warmup_ratio: 0.1
lr_scheduler_type: cosine
max_length: 512
eval_strategy: steps
save_total_limit: 3
load_best_model_at_end: true
metric_for_best_model: rewards/accuracies
sync_ref_model: true
use_peft: true
lora_target_modules: [q_proj, v_proj]
report_to: [wandb, mlflow]
push_to_hub: true
dataloader_num_workers: 4
"""

FACTORY = """
stage: dpo
model_name_or_path: owner/model
finetuning_type: lora
quantization_bit: 4
lora_rank: 4
lora_target: q_proj, v_proj
pref_beta: 0.2
pref_ftx: 0.5
dataset: one, two
dataset_dir: somewhere
template: qwen3
cutoff_len: 2048
val_size: 0.1
output_dir: saves
learning_rate: 5.0e-6
warmup_ratio: 0.1
bf16: true
overwrite_output_dir: true
plot_loss: true
"""


def read(text: str, **more: Any) -> Migrated:
    return migrated(yaml.safe_load(text), **more)


def test_a_config_of_trl_by_hand() -> None:
    found = read(TRL, processes=2)
    assert found.method == "dpo+sft"
    assert found.values == {
        "model": "owner/model",
        "data": [{"path": "owner/pairs", "split": "train", "config": "big"}],
        "eval_data": [{"path": "owner/pairs", "split": "test", "config": "big"}],
        "output": "out",
        "weights": [0.8, 0.2],
        "dpo.beta": 0.05,
        "learning_rate": 5e-7,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "weight_decay": 0.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "max_grad_norm": 1.0,
        "batch_size": 64,
        "num_train_epochs": 3.0,
        "seed": 42,
        "max_length": 512,
        "truncate": "keep",
        "eval_steps": 10,  # its logging_steps
        "save_every": 500,
        "keep": 3,
        "best": "eval_rewards/accuracies",
        "reference_mixup": 0.6,
        "reference_every": 512,
        "cache_reference": False,
        "gradient_checkpointing": True,
        "bf16": True,
        "dtype": "float32",
        "use_peft": True,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_target_modules": ["q_proj", "v_proj"],
    }
    assert found.options == {"logging_steps": 10, "report_to": ["wandb"], "push_to_hub": "out"}
    assert found.lost == []
    filled = "gradient_checkpointing true (ours: false), bf16 true (ours: false), truncate keep (ours: drop), "
    assert found.notes == [
        "said in another way:",
        "  batch_size 64 = per_device_train_batch_size 2 × gradient_accumulation_steps 16 × 2 process(es)",
        f"  not in the config, so the default of TRL 1.16.0: {filled}num_train_epochs 3 (ours: 1)",
        "left out:",
        "  report_to mlflow: there are tensorboard, wandb, trackio, and metrics.jsonl always",
        "  dataloader_num_workers: no counterpart, no effect on the result",
    ]
    run, method, _ = build(found.method, found.values)
    assert [(term.name, term.total) for term in method.terms] == [("dpo", 0.8), ("sft", 0.2)]
    assert (run.batch_size, method.beta) == (64, 0.05)


def test_a_config_of_llama_factory_by_hand() -> None:
    found = read(FACTORY)
    assert (found.method, found.values["weights"]) == ("dpo+sft", [1.0, 0.5])
    listed = "somewhere/dataset_info.json"
    assert found.values["data"] == [{"path": listed, "entry": "one"}, {"path": listed, "entry": "two"}]
    ours = {name: found.values[name] for name in ("dpo.beta", "dpo.label_smoothing", "lora_r", "lora_alpha", "dtype")}
    assert ours == {"dpo.beta": 0.2, "dpo.label_smoothing": 0.0, "lora_r": 4, "lora_alpha": 8, "dtype": "nf4"}
    assert found.values["lora_target_modules"] == ["q_proj", "v_proj"]
    assert (found.values["bf16"], found.values["eval_fraction"], found.values["max_length"]) == (False, 0.1, 2048)
    assert (found.values["gradient_checkpointing"], found.values["num_train_epochs"]) == (True, 3.0)
    assert found.options == {"logging_steps": 500, "overwrite": True}
    assert [line.split(":")[0].split(" ")[0] for line in found.lost] == ["cutoff_len", "template", "pref_ftx"]
    build(found.method, found.values)


@pytest.mark.parametrize(
    ("text", "method", "own"),
    [
        ("loss_type: ipo", "ipo", {"beta": 0.1}),
        ("loss_type: [aot]\nlabel_smoothing: 0.1\nbeta: 1e-2", "aot", {"beta": 0.01, "label_smoothing": 0.1}),
        ("loss_type: sigmoid\nlabel_smoothing: 0.1", "dpo", {"beta": 0.1}),  # which TRL does not read there
        ("loss_type: hinge", "hinge", {"beta": 0.1}),
        ("loss_type: exo_pair\nlabel_smoothing: 1e-3", "exo", {"beta": 0.1, "label_smoothing": 0.001}),
        ("loss_type: nca_pair", "nca", {"beta": 0.1}),
        ("loss_type: robust\nlabel_smoothing: 0.2", "robust", {"beta": 0.1, "label_smoothing": 0.2}),
        ("loss_type: bco_pair", "bco_pair", {"beta": 0.1}),
        ("loss_type: sppo_hard\nbeta: 1e-3", "sppo_hard", {"beta": 0.001}),
        ("loss_type: aot_unpaired", "aot_unpaired", {"beta": 0.1, "label_smoothing": 0.0}),
        ("loss_type: apo_zero", "apo_zero", {"beta": 0.1}),
        ("loss_type: apo_down", "apo_down", {"beta": 0.1}),
        ("loss_type: discopop\ndiscopop_tau: 0.2", "discopop", {"beta": 0.1, "tau": 0.2}),
        ("loss_type: discopop", "discopop", {"beta": 0.1, "tau": 0.05}),
        ("loss_type: sigmoid_norm\nbeta: 5.0", "dpo_norm", {"beta": 5.0}),
        ("loss_type: [sft]\nbeta: 0.1", "sft", {}),
        ("use_weighting: true", "wpo", {"beta": 0.1}),
        ("f_divergence_type: forward_kl", "forward_kl_dpo", {"beta": 0.1}),
        ("f_divergence_type: js_divergence", "js_dpo", {"beta": 0.1}),
        ("f_divergence_type: alpha_divergence", "alpha_dpo", {"beta": 0.1, "alpha": 0.5}),
        (
            "f_divergence_type: alpha_divergence\nf_alpha_divergence_coef: '3e-1'",
            "alpha_dpo",
            {"beta": 0.1, "alpha": 0.3},
        ),
        ("ld_alpha: 0.4", "ld_dpo", {"beta": 0.1, "alpha": 0.4}),
        (
            "ld_alpha: 0.4\nloss_type: [sft, sigmoid]\nloss_weights: [1, 0.5]",
            "sft+ld_dpo",
            {"ld_dpo.beta": 0.1, "ld_dpo.alpha": 0.4, "weights": [1.0, 0.5]},
        ),
        (
            "loss_type: [sigmoid, bco_pair, sft]\nloss_weights: [0.8, 0.2, 1.0]",
            "dpo+bco_pair+sft",
            {"dpo.beta": 0.1, "bco_pair.beta": 0.1, "weights": [0.8, 0.2, 1.0]},
        ),
        ("loss_type: apo_zero_unpaired\nbeta: 0.3", "apo_unpaired", {"beta": 0.3}),
        ("cpo_alpha: 0.5", "cpo", {"beta": 0.1, "alpha": 0.5}),
        ("loss_type: sigmoid\nsimpo_gamma: 0.5", "cpo", {"beta": 0.1, "alpha": 1.0}),
        ("loss_type: simpo\ncpo_alpha: 0\nbeta: 2.0\nsimpo_gamma: 0.8", "simpo", {"beta": 2.0, "gamma": 0.8}),
        ("loss_type: alphapo\nbeta: 2.0", "simpo", {"beta": 2.0, "gamma": 0.5}),
        ("loss_type: alphapo\nalpha: 0.2\ncpo_alpha: 0.7", "alphapo", {"beta": 0.1, "gamma": 0.5, "alpha": 0.2}),
        (
            "loss_type: simpo\nalpha: 0.2\ncpo_alpha: 0.7",
            "alphapo+sft",
            {"alphapo.beta": 0.1, "alphapo.gamma": 0.5, "alphapo.alpha": 0.2, "weights": [1.0, 0.7]},
        ),
        (
            "loss_type: simpo\nbeta: 2.0",
            "simpo+sft",
            {"simpo.beta": 2.0, "simpo.gamma": 0.5, "weights": [1.0, 1.0]},
        ),
        (
            "loss_type: hinge\ncpo_alpha: 0.6\nbeta: 0.25",
            "slic+sft",
            {"slic.delta": 4.0, "slic.alpha": 0.0, "weights": [0.25, 0.6]},
        ),
        ("loss_type: kto", "kto", {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}),
        ("desirable_weight: 1.5", "kto", {"beta": 0.1, "desirable_weight": 1.5, "undesirable_weight": 1.0}),
        ("packing: false", "sft", {}),
        ("loss_type: [ipo, sigmoid]", "ipo+dpo", {"ipo.beta": 0.1, "dpo.beta": 0.1, "weights": [1.0, 1.0]}),
        ("stage: kto\nkto_chosen_weight: 2", "kto", {"beta": 0.1, "desirable_weight": 2.0, "undesirable_weight": 1.0}),
        ("stage: dpo\ndpo_label_smoothing: 0.2", "dpo", {"beta": 0.1, "label_smoothing": 0.2}),
        ("stage: dpo\npref_loss: hinge\npref_beta: 0.2", "hinge", {"beta": 0.2}),
        ("stage: dpo\npref_loss: simpo\npref_beta: 2.0\nref_model: r", "simpo", {"beta": 2.0, "gamma": 0.5}),
        ("stage: dpo\npref_loss: orpo", "orpo", {"beta": 0.1}),
        ("finetuning_type: full", "sft", {}),  # its default stage
    ],
)
def test_methods_and_what_of_theirs_they_read(text: str, method: str, own: dict[str, Any]) -> None:
    found = read(f"{text}\nmodel_name_or_path: m\noutput_dir: o")
    assert found.method == method
    assert {key: value for key, value in found.values.items() if key not in Settings.model_fields} == own
    assert "reference" not in found.values
    build(method, {**found.values, "data": ["d"]})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("max_steps: 100", {"max_steps": 100, "num_train_epochs": 100.0}),
        ("max_length: null", {"max_length": 2**20}),
        ("max_grad_norm: 0", {"max_grad_norm": 1e9}),
        ("eval_strategy: no\nsave_strategy: no", {"eval_fraction": 0.0, "save_every": 0}),
        ("eval_strategy: epoch\ndataset_name: a/b", {"eval_data": [{"path": "a/b", "split": "test"}]}),
        ("lr_scheduler_type: constant\nwarmup_steps: 9", {"lr_scheduler_type": "constant", "warmup_steps": 0.0}),
        ("lr_scheduler_type: constant_with_warmup\nwarmup_steps: 9", {"warmup_steps": 9.0}),
        ("load_in_4bit: true\nuse_peft: true", {"dtype": "nf4", "bf16": False}),
        ("torch_dtype: bfloat16", {"dtype": "bfloat16", "bf16": False}),
        ("fp16: true", {"dtype": "float32", "bf16": False}),
        ("bf16: false\nactivation_checkpointing: false", {"bf16": False, "gradient_checkpointing": False}),
        ("precompute_ref_log_probs: true", {"cache_reference": True}),
        (
            "datasets: [{path: json, data_files: [a.jsonl, b.jsonl]}]",
            {"data": [{"path": "a.jsonl"}, {"path": "b.jsonl"}]},
        ),
        ("datasets: [{path: a/b, name: c}]\ntest_split_size: 0.1", {"eval_fraction": 0.1}),
        ("fsdp: full_shard", {"shard": True}),
        ("load_best_model_at_end: true", {"best": "eval_loss"}),
    ],
)
def test_values_that_are_said_in_another_way(text: str, values: dict[str, Any]) -> None:
    found = read(f"model_name_or_path: m\n{text}", method="dpo")
    assert {key: found.values[key] for key in values} == values
    build("dpo", {"output": "o", "data": ["d"], **found.values})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("stage: dpo\npref_loss: orpo", "pref_loss orpo: its NLL is the mean over the step's tokens"),
        ("neftune_noise_alpha: 5", "neftune_noise_alpha: 5 has no counterpart"),
        ("optim: adafactor", "optim: adafactor has no counterpart (AdamW is the one optimiser)"),
        ("learing_rate: 1", "learing_rate: 1 is not known to TRL 1.16.0; did you mean learning_rate?"),
        ("my_token: hf_abc", "my_token: … is not known to TRL 1.16.0"),
        ("use_peft: true", "lora_target_modules is not given: TRL takes peft's for the architecture"),
        ("truncation_mode: keep_end", "truncation_mode: keep_end: longer records are cut at their end here"),
        ("use_weighting: true", "use_weighting: wpo clamps a pair's weight at 1"),
        ("loss_weights: [0.5]", "loss_weights [0.5] of one loss"),
        ("dtype: auto", "dtype: auto is float32 here"),
        ("fp16: true", "fp16 has no counterpart"),
        ("lr_scheduler_type: polynomial", "lr_scheduler_type: polynomial is not there; expected linear, cosine"),
        ("eval_strategy: steps\neval_steps: 0.1\ndataset_name: a/b", "eval_steps: 0.1 is a share of all steps there"),
        ("cpo_alpha: 0\nloss_type: hinge", "loss_type hinge: slic here is 10 times that loss"),
        ("cpo_alpha: 1\nlabel_smoothing: 0.1", "label_smoothing 0.1: cpo has none here"),
        (
            "loss_type: apo_zero_unpaired\ndesirable_weight: 1.3",
            "desirable_weight, undesirable_weight: apo_unpaired has",
        ),
        ("datasets: [{path: a/b, fraction: 0.5}]", "datasets: fraction 0.5 of a/b has no counterpart"),
        ("env: {SECRET: abc}", "env: … has no counterpart"),
        ("load_best_model_at_end: true\ngreater_is_better: true", "greater_is_better: True: which way is better"),
    ],
)
def test_what_may_change_the_result_is_said_first(text: str, line: str) -> None:
    told = any(key in text for key in ("cpo_alpha", "apo_zero_unpaired", "stage"))
    found = read(f"model_name_or_path: m\n{text}", method=None if told else "dpo")
    assert [said for said in found.lost if said.startswith(line)], found.lost
    assert found.notes[0] == "may change the result:"
    assert "abc" not in "".join(found.notes)


@pytest.mark.parametrize(
    "text",
    [
        "adam_epsilon: 1e-8",
        "optim: adamw_torch",
        "disable_dropout: true",
        "neftune_noise_alpha: null",
        "hub_token: abc",
    ],
)
def test_what_changes_nothing_is_not_called_a_loss(text: str) -> None:
    found = read(f"model_name_or_path: m\n{text}", method="dpo")
    assert found.lost == []
    assert "abc" not in "".join(found.notes)


def test_settings_of_what_is_off_are_no_loss_and_turning_it_on_is() -> None:
    base = "stage: dpo\nmodel_name_or_path: m\nbf16: true\ngalore_rank: 16\nimage_max_pixels: 262144\n"
    assert [line.split()[0] for line in read(base).lost] == ["cutoff_len"]
    assert read(base).idle == ["galore_rank, image_max_pixels: no counterpart, no effect on the result"]
    assert "use_galore: True has no counterpart" in read(base + "use_galore: true").lost


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "the config holds list; expected settings by name"),
        ("base_model: m", "makes it axolotl's config"),
        ("pretrain: m", "makes it OpenRLHF's config"),
        ("method: dpo", r"softq's own \(read it with --config\)"),
        ("colour: red", r"none of its keys \(colour\) is TRL's"),
        (
            "model_name_or_path: m",
            "which of TRL's commands was it for\\? its keys do not tell; name dpo, kto, sft, cpo or orpo",
        ),
        ("loss_type: kto\nuse_weighting: true", "its keys are of dpo and of kto"),
        ("loss_type: kto_pair", "loss_type 'kto_pair' is no method here yet; did you mean"),
        ("loss_type: ipo\nf_divergence_type: js_divergence", "with another loss than sigmoid is no method here"),
        ("loss_type: [sigmoid, ipo]\nld_alpha: 0.5", "ld_alpha with another loss than sigmoid is no method here"),
        ("loss_type: sft\nld_alpha: 0.5", "ld_alpha with another loss than sigmoid is no method here"),
        ("f_divergence_type: chi", "f_divergence_type 'chi' is no method here yet"),
        ("ld_alpha: 0.5\nuse_weighting: true", "ld_alpha and use_weighting together are no method here"),
        ("loss_type: [sigmoid, sft]\nuse_weighting: true", "use_weighting with another loss than sigmoid"),
        ("loss_type: hinge\ncpo_alpha: 1\nalpha: 0.2", "alpha with loss_type 'hinge' is no method here"),
        ("loss_type: ipo\ncpo_alpha: 1", "loss_type 'ipo' of CPOTrainer is no method here"),
        ("loss_type: kto\ncpo_alpha: 1", "its keys are of cpo and of kto"),
        ("loss_type: [sigmoid, sigmoid]", "expected a weight for each, and each once"),
        ("loss_type: ipo\nuse_weighting: true", "use_weighting with another loss than sigmoid"),
        ("loss_type: sigmoid\nlearning_rate: fast", "learning_rate: 'fast' is not valid; expected a number"),
        ("loss_type: sigmoid\nuse_peft: maybe", "use_peft: 'maybe' is not valid; expected true or false"),
        ("stage: ppo", "stage 'ppo' has no counterpart"),
        ("stage: dpo\npref_loss: kto_pair", "pref_loss 'kto_pair' is no method here yet"),
        ("stage: dpo\nfinetuning_type: freeze", "finetuning_type 'freeze' has no counterpart"),
        ("stage: dpo\ndataset: d\ndataset_dir: REMOTE:x/y", "expected a directory that holds dataset_info.json"),
    ],
)
def test_what_can_not_be_read_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)


def test_the_command_says_which_trainer_and_not_which_loss() -> None:
    assert read("model_name_or_path: m\nbeta: 0.3", method="kto").method == "kto"
    assert read("model_name_or_path: m\nbeta: 0.3", method="cpo").method == "cpo"
    found = read("model_name_or_path: m\nbeta: 0.3\nmax_prompt_length: 128", method="orpo")
    assert (found.method, found.values["beta"], "cache_reference" in found.values) == ("orpo", 0.3, False)
    assert found.lost[0] == "ORPO's likelihood term is of the completion here, there of prompt and completion"
    build(found.method, {**found.values, "output": "o", "data": ["d"]})
    with pytest.raises(ValueError, match="for dpo, kto, sft, cpo or orpo, not for ipo"):
        read("model_name_or_path: m", method="ipo")
    with pytest.raises(ValueError, match="of stage kto, not of dpo"):
        read("stage: kto", method="dpo")


@pytest.mark.parametrize("kind", [tables.TRL, tables.FACTORY], ids=lambda kind: kind.name)
def test_every_training_argument_of_transformers_is_accounted_for(kind: tables.Kind) -> None:
    known = [*kind.read, *kind.harmless, *kind.idle]
    assert len(known) == len(set(known))
    assert {field.name for field in dataclasses.fields(TrainingArguments)} <= {*known, *tables.OTHER_NAMES}


def test_the_defaults_that_llama_factory_leaves_to_transformers_are_its() -> None:
    theirs = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    ours = tables.FACTORY.defaults
    assert ours["learning_rate"] == theirs["learning_rate"] == 5e-5
    assert {key: ours[key] for key in theirs if key in ours} == {key: theirs[key] for key in theirs if key in ours}


def test_the_defaults_are_those_of_trl() -> None:
    trl = pytest.importorskip("trl")
    if trl.__version__ != tables.TRL.name.split()[1]:
        pytest.skip(f"trl {trl.__version__}")
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.orpo import ORPOConfig
    from trl.scripts.utils import DatasetMixtureConfig

    shared = (trl.ModelConfig, trl.ScriptArguments, DatasetMixtureConfig)
    trainers = {"dpo": trl.DPOConfig, "kto": trl.KTOConfig, "sft": trl.SFTConfig, "cpo": CPOConfig, "orpo": ORPOConfig}
    known = {*tables.TRL.read, *tables.TRL.harmless, *tables.TRL.idle}
    for name, config in trainers.items():
        fields = {field.name: field for kind in (config, *shared) for field in dataclasses.fields(kind)}
        assert set(fields) <= known | set(tables.OTHER_NAMES)
        theirs = {
            key: field.default_factory() if callable(field.default_factory) else field.default
            for key, field in fields.items()
        }
        for key, default in (tables.TRL.defaults | tables.TRL_OWN[name]).items():
            if key in theirs:
                assert theirs[key] in (default, [default]), f"{name}: {key}"
        for key, (harmless, _) in tables.TRL.harmless.items():
            unset = key == "completion_only_loss"  # None there: for prompts and completions it is True
            assert key not in theirs or theirs[key] in (None, "auto", *harmless) or unset, f"{name}: {key}"


def documented(section: str) -> tuple[dict[str, str], set[str]]:
    """The rows (theirs -> ours) and the keys that are not kept, of one section of docs/migrate.md."""
    text = DOCS.split(f"## {section}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| (`.*?) \|", text, re.MULTILINE)
    read = {
        key: ", ".join(re.findall("`(.*?)`", ours)) for theirs, ours in rows for key in re.findall("`(.*?)`", theirs)
    }
    lost = text.split("Not kept: ")[1]
    return read, set(re.findall("`(.*?)`", re.split(r"[.;]", lost)[0]))


def test_the_docs_say_what_the_tables_say() -> None:
    shared, shared_lost = documented("Both")
    for section, kind in {"TRL": tables.TRL, "LLaMA-Factory": tables.FACTORY}.items():
        own, lost = documented(section)
        assert shared | own == kind.read
        assert shared_lost | lost == set(kind.harmless)
    for name in {
        name for kind in (tables.TRL, tables.FACTORY) for ours in kind.read.values() for name in ours.split(", ")
    }:
        own = {
            "method",
            "weights",
            "beta",
            "gamma",
            "label_smoothing",
            "desirable_weight",
            "undesirable_weight",
            "alpha",
            "tau",
        }
        assert name in own or name.startswith("--") or name in Settings.model_fields, name


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("dataset_name: [a]", r"dataset_name: \['a'\] is not valid; expected a text"),
        ("loss_weights: 3", "loss_weights: 3 is not valid; expected a list"),
        ("lora_target_modules: 7", "lora_target_modules: 7 is not valid; expected a text or a list"),
        ("report_to: 5", "report_to: 5 is not valid; expected a text or a list"),
    ],
)
def test_a_value_of_another_type_is_one_line(line: str, said: str) -> None:
    given = {"model_name_or_path": "m", "dataset_name": "d", "loss_type": "sigmoid", "use_peft": True}
    with pytest.raises(ValueError, match=said):
        migrated({**given, **yaml.safe_load(line)}, method="dpo")
