"""TRL's own loss code on the conformance vectors: where it agrees, where it means something else, where it is wrong.

    pip install -e '.[bench]'
    python bench/conformance_trl.py

Trainers are made by their own constructors, from their own configurations, around a tiny model that is never run: for each
entry the trainer's loss function is called with a model that answers with the entry's log-probabilities, in float64. So
what is held to the vectors is the trainer's loss and its gradient with respect to these log-probabilities, not its
tokenisation, collator or LM head. One line for the entries of a method that share trainer, settings and verdict; the number is
the largest difference of loss and gradient, relative where the number is above 1. Ends with 1 where a difference has no reason.
"""

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from datasets import Dataset  # pyright: ignore[reportMissingImports]
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from transformers.utils import logging
from trl import (  # pyright: ignore[reportMissingImports]
    DPOConfig,  # pyright: ignore[reportPrivateImportUsage]
    DPOTrainer,  # pyright: ignore[reportPrivateImportUsage]
    GRPOConfig,  # pyright: ignore[reportPrivateImportUsage]
    GRPOTrainer,  # pyright: ignore[reportPrivateImportUsage]
    KTOConfig,  # pyright: ignore[reportPrivateImportUsage]
    KTOTrainer,  # pyright: ignore[reportPrivateImportUsage]
    SFTConfig,  # pyright: ignore[reportPrivateImportUsage]
    SFTTrainer,  # pyright: ignore[reportPrivateImportUsage]
)

from softq.mdp.readouts import LOG_COLLISION
from softq.verify.vectors import Entry, batch_from, entries, method_of, scored_from

AGREES = 1e-12
Call = Callable[[Any, Entry, "Scores"], Tensor]


class Scores(NamedTuple):
    """What the models answer: of each row, per action, padded with 0."""

    leaf: Tensor  # what the gradient is taken by
    action: Tensor  # [B, T] bool
    policy: Mapping[str, Tensor]  # name in TRL's output -> [B, T]
    reference: Mapping[str, Tensor]

    def model(self, of: Mapping[str, Tensor]) -> Callable[..., Any]:
        """A stand-in for a patched model. A row is known by its first id, its number."""

        def answer(input_ids: Tensor, labels: Tensor, **kwargs: Any) -> Any:
            rows, width = input_ids[:, 0], input_ids.shape[1] - 1
            zero = torch.zeros(len(rows), width)
            given = {name: values[rows][:, :width] for name, values in of.items()}
            return SimpleNamespace(
                **given, entropy=zero, mean_logits=zero, is_top1=zero.bool(), label_mask=labels[:, 1:] != -100
            )

        return answer

    def inputs(self, rows: Tensor, prefix: str = "") -> dict[str, Tensor]:
        """The batch that a collator would make: one id of prompt, then the completion, padded to the longest."""
        mask = torch.cat([torch.zeros(len(rows), 1, dtype=torch.bool), self.action[rows]], 1).long()
        ids = rows[:, None] * (mask.cumsum(1) == 0)
        attention = mask.clone()
        attention[:, 0] = 1
        return {f"{prefix}input_ids": ids, f"{prefix}attention_mask": attention, f"{prefix}completion_mask": mask}


class Way(NamedTuple):
    """How TRL is asked for a method."""

    trainer: str
    settings: Mapping[str, Any]  # beside β and what the entry's parameters give
    differs: str = ""  # why a difference is expected: "differs by design: …" or "wrong: …"


GRPO = {"loss_type": "grpo", "epsilon": 0.2}
DPO_SFT = {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.8, 0.2]}
WAYS: Mapping[str, Way | tuple[Way, ...] | str] = {
    "dpo": Way("DPOTrainer", {"loss_type": "sigmoid"}),
    "cdpo": Way(
        "DPOTrainer",
        {"loss_type": "sigmoid", "label_smoothing": 0.1},
        "wrong: sigmoid takes label_smoothing and ignores it without a word (until 0.28 it was cDPO); this is dpo",
    ),
    "ipo": Way("DPOTrainer", {"loss_type": "ipo"}),
    "ipo_sum": Way(
        "DPOTrainer",
        {"loss_type": "ipo"},
        "differs by design: log-ratios per token, as IPO's authors confirmed; the sums of the paper can not be had",
    ),
    "tdpo2": "not there",
    "wpo": Way(
        "DPOTrainer",
        {"loss_type": "sigmoid", "use_weighting": True},
        "differs by design: the weight of a pair is not clamped at 1; the official code clamps it",
    ),
    "aot": Way("DPOTrainer", {"loss_type": "aot", "label_smoothing": 0.1}),
    "aot_hard": Way("DPOTrainer", {"loss_type": "aot"}),
    "kto": Way("KTOTrainer", {"loss_type": "kto"}),
    "infonca": "not there; nca_pair is another loss, for pairs only",
    "sft": Way("SFTTrainer", {}),
    "dpo+sft": Way("DPOTrainer", DPO_SFT),
    "grpo": (
        Way("GRPOTrainer", {**GRPO, "use_bias_correction_kl": False}),
        Way(
            "GRPOTrainer",
            GRPO,
            "differs by design: by default the KL term is multiplied by ρ, so that its gradient is that of KL(π‖π_ref)",
        ),
    ),
}
COLUMNS = ("weight", "margin", "label_probability")


def dpo_loss(trainer: Any, entry: Entry, scores: Scores) -> Tensor:
    """Rows are all chosen, then all rejected."""
    rows = torch.tensor(entry["inputs"]["chosen"] + entry["inputs"]["rejected"])
    trainer.ref_model = scores.model(scores.reference)
    return trainer._compute_loss(scores.model(scores.policy), scores.inputs(rows), return_outputs=False)


def kto_loss(trainer: Any, entry: Entry, scores: Scores) -> Tensor:
    """Labelled rows, and the completions under other prompts beside them."""
    inputs = entry["inputs"]
    batch = {
        **scores.inputs(torch.tensor(inputs["row"])),
        **scores.inputs(torch.tensor(inputs["mismatched"]), "KL_"),
        "label": torch.tensor(inputs["good"]),
    }
    trainer.ref_model = scores.model(scores.reference)
    return trainer._compute_loss(scores.model(scores.policy), batch, return_outputs=False)


def sft_loss(trainer: Any, entry: Entry, scores: Scores) -> Tensor:
    """Labels are the ids of completions, -100 elsewhere."""
    batch = scores.inputs(torch.arange(len(scores.action)))
    labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
    return trainer.compute_loss(scores.model(scores.policy), {**batch, "labels": labels})


def grpo_loss(trainer: Any, entry: Entry, scores: Scores) -> Tensor:
    """Log-probabilities when sampled and of the reference, and advantages, are inputs of TRL's loss."""
    rows = torch.arange(len(scores.action))
    advantages = torch.tensor([row[0] for row in entry["expected"]["advantage"]], dtype=torch.float64)
    batch = {
        "prompt_ids": rows[:, None],
        "prompt_mask": torch.ones_like(rows)[:, None],
        "completion_ids": torch.zeros_like(scores.action, dtype=torch.int64),
        "completion_mask": scores.action.long(),
        "advantages": advantages,
        "old_per_token_logps": batch_from(entry).columns["old_logp"],
        "num_items_in_batch": scores.action.sum(),
        **({"ref_per_token_logps": scores.reference["log_probs"]} if scores.reference else {}),
    }
    return trainer._compute_loss(scores.model(scores.policy), batch)


class Trainers:
    """Trainers by their settings, each made once."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.base = f"{directory}/model"
        self.made: dict[str, Any] = {}
        words = {"<pad>": 0, "<eos>": 1, **{f"w{n}": n for n in range(2, 16)}}
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, "<pad>")), pad_token="<pad>", eos_token="<eos>"
        )
        sizes: dict[str, Any] = {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
        }
        config = LlamaConfig(vocab_size=16, bos_token_id=None, eos_token_id=1, **sizes)
        AutoModelForCausalLM.from_config(config).save_pretrained(self.base)  # GRPO loads its reference by name

    def __call__(self, kind: str, settings: Mapping[str, Any]) -> Any:
        """A trainer with these settings, as its constructor makes it."""
        key = f"{kind} {sorted(settings.items(), key=str)}"
        if key not in self.made:
            self.made[key] = self._make(kind, settings)
        return self.made[key]

    def _make(self, kind: str, settings: Mapping[str, Any]) -> Any:
        config = {"DPOTrainer": DPOConfig, "KTOTrainer": KTOConfig, "SFTTrainer": SFTConfig, "GRPOTrainer": GRPOConfig}[
            kind
        ]
        options = config(
            output_dir=self.directory,
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            per_device_train_batch_size=8 if kind == "GRPOTrainer" else 2,
            **settings,
        )
        common = {"args": options, "processing_class": self.tokenizer}
        rows = {
            "DPOTrainer": [{"prompt": "w2", "chosen": "w3", "rejected": "w4"}],
            "KTOTrainer": [{"prompt": f"w{n}", "completion": f"w{n + 1}", "label": n % 2 == 0} for n in (2, 3)],
            "SFTTrainer": [{"prompt": "w2", "completion": "w3"}],
            "GRPOTrainer": [{"prompt": "w2"}],
        }[kind]
        data = Dataset.from_list(rows * 2)
        if kind == "GRPOTrainer":
            never: Any = lambda completions, **_: [0.0] * len(completions)  # noqa: E731
            return GRPOTrainer(self.model(), never, train_dataset=data, **common)
        if kind == "SFTTrainer":
            return SFTTrainer(self.model(), train_dataset=data, **common)
        trainer = {"DPOTrainer": DPOTrainer, "KTOTrainer": KTOTrainer}[kind]
        return trainer(self.model(), self.model(), train_dataset=data, **common)

    def model(self) -> Any:
        """Tiny, and never run."""
        return AutoModelForCausalLM.from_pretrained(self.base)


CALLS: Mapping[str, Call] = {
    "DPOTrainer": dpo_loss,
    "KTOTrainer": kto_loss,
    "SFTTrainer": sft_loss,
    "GRPOTrainer": grpo_loss,
}


def settings_of(entry: Entry, way: Way) -> dict[str, Any]:
    """What the configuration is made from. TRL has no β in supervised fine-tuning."""
    parameters = entry["parameters"]
    named = {
        name: parameters[name] for name in ("beta", "desirable_weight", "undesirable_weight") if name in parameters
    }
    summed = {"beta": parameters["dpo"]["beta"]} if "dpo" in parameters else {}
    return {**way.settings, **named, **summed}


def scores_of(entry: Entry) -> Scores:
    """The entry's numbers as models would give them."""
    method = method_of(entry)
    needs = method.needs if "logits" not in entry["inputs"] else (*method.needs, LOG_COLLISION)
    leaf, scored = scored_from(entry, method._replace(needs=needs))
    policy = {"log_probs": scored["logp"]}
    if "log_collision" in scored:
        policy["log_sum_sq_probs"] = scored["log_collision"]
    reference = {"log_probs": scored["ref_logp"].detach()} if "ref_logp" in scored else {}
    return Scores(leaf, batch_from(entry).tokens.action, policy, reference)


def difference(entry: Entry, loss: Tensor, scores: Scores) -> float:
    """The largest of loss and gradient, relative above 1; nan if anything is."""
    (gradient,) = torch.autograd.grad(loss, scores.leaf)
    expected = [torch.tensor(entry["expected"]["loss"], dtype=torch.float64)]
    found = [loss.detach().double(), *gradient[scores.action]]
    expected += [torch.tensor(one, dtype=torch.float64) for row in entry["expected"]["gradient"] for one in row]
    off = [((a - b).abs() / b.abs().clamp(min=1)).max() for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(off).max())


def compared() -> Iterator[tuple[Entry, str, float | None, str]]:
    """Of each entry that is a step, in each way: what was asked of TRL, how far off it is, and the verdict."""
    with tempfile.TemporaryDirectory() as directory:
        trainers = Trainers(directory)
        for entry in entries():
            ways = WAYS[entry["name"].split("/")[0]]
            if "population" in entry["inputs"]:
                continue
            if isinstance(ways, str):
                yield entry, "–", None, f"cannot be reached: {ways}"
                continue
            for way in [ways] if isinstance(ways, Way) else ways:
                asked = " ".join([way.trainer, *(f"{name}={value}" for name, value in way.settings.items())])
                yield entry, asked, *verdict(entry, way, trainers)


def verdict(entry: Entry, way: Way, trainers: Trainers) -> tuple[float | None, str]:
    """The difference, where there is one, and what is to be said of it."""
    missing = [column for column in COLUMNS if column in entry["inputs"]]
    if missing:
        return None, f"cannot be reached: a pair has no {', no '.join(missing)}"
    scores = scores_of(entry)
    loss = CALLS[way.trainer](trainers(way.trainer, settings_of(entry, way)), entry, scores)
    off = difference(entry, loss, scores)
    return off, "agrees" if off <= AGREES else way.differs or "UNEXPLAINED"


def main() -> None:
    """The table, in Markdown."""
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    lines: dict[tuple[str, str, str], tuple[list[str], list[float]]] = {}
    for entry, asked, off, said in compared():
        method, step = entry["name"].split("/")
        steps, offs = lines.setdefault((method, asked, said), ([], []))
        steps.append(step)
        offs += [] if off is None else [off]
    print(f"TRL {version('trl')}\n\n| method | steps | trainer | largest difference | verdict |\n|---|---|---|---|---|")
    for (method, asked, said), (steps, offs) in lines.items():
        print(f"| {method} | {', '.join(steps)} | {asked} | {f'{max(offs):.1e}' if offs else '–'} | {said} |")
    sys.exit(any(said == "UNEXPLAINED" for _, _, said in lines))


if __name__ == "__main__":
    main()
