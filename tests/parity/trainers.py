"""TRL's trainers as their constructors make them, around models that are never run: they answer with given numbers.

So what is held to softq is a trainer's own loss code and its gradient with respect to these numbers, not its tokenisation,
collator or LM head. A row of a batch is known to a stand-in model by its first id, which is no action.
"""

import os
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from trl.experimental.a2po import A2POConfig, A2POTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.experimental.tpo import TPOConfig, TPOTrainer

from softq.records import Batch

Answers = Mapping[str, Tensor]
"""What a model says of all rows: log_probs, log_sum_sq_probs [B, T], 0 outside actions, and logits [B, L, V]; or rewards [B]."""


class Step(NamedTuple):
    """One optimiser step as both sides see it."""

    leaf: Tensor  # what the gradient is taken by
    batch: Batch
    policy: Answers
    reference: Answers


def stand_in(answers: Answers) -> Callable[..., Any]:
    """A model, patched as TRL patches it (log-probs where there are labels) or not (logits)."""

    def answer(input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
        rows, width = input_ids[:, 0], input_ids.shape[1]
        if labels is None:
            return SimpleNamespace(logits=answers["logits"][rows][:, :width])
        acted = labels[:, 1:] != -100
        zero = torch.zeros(acted.shape)
        given = {
            name: torch.where(acted, answers[name][rows][:, : width - 1], 0.0) for name in answers.keys() - {"logits"}
        }
        return SimpleNamespace(**given, entropy=zero, mean_logits=zero, is_top1=zero.bool(), label_mask=acted)

    return answer


def inputs(batch: Batch, rows: Tensor, prefix: str = "") -> dict[str, Tensor]:
    """These rows as a collator gives them: ids, which are no padding, which are the completion's; padded to the longest."""
    action = batch.tokens.action[rows]
    position = torch.arange(1, action.shape[1] + 1)
    length = (action * position).amax(1, keepdim=True) + 1
    width = int(length.max())
    ids = torch.cat([rows[:, None], batch.tokens.ids[rows, 1:]], 1)[:, :width]
    completion = torch.cat([torch.zeros_like(action[:, :1]), action], 1)[:, :width]
    attention = torch.arange(width) < length
    return {
        f"{prefix}input_ids": ids * attention,
        f"{prefix}attention_mask": attention.long(),
        f"{prefix}completion_mask": completion.long(),
    }


def _dpo(trainer: Any, step: Step) -> Tensor:
    """Rows are all chosen, then all rejected."""
    trainer.ref_model = stand_in(step.reference)
    rows = torch.cat([step.batch.pairs.chosen, step.batch.pairs.rejected])
    return trainer._compute_loss(stand_in(step.policy), inputs(step.batch, rows), return_outputs=False)


def _kto(trainer: Any, step: Step) -> Tensor:
    """Labelled rows, and the completions under other prompts beside them."""
    trainer.ref_model = stand_in(step.reference)
    labels = step.batch.labels
    given = inputs(step.batch, labels.row) | {"label": labels.good}
    if trainer.calculate_KL:
        given |= inputs(step.batch, labels.mismatched, "KL_")
    return trainer._compute_loss(stand_in(step.policy), given, return_outputs=False)


def _sft(trainer: Any, step: Step) -> Tensor:
    """Labels are the ids of completions, -100 elsewhere."""
    given = inputs(step.batch, torch.arange(len(step.batch.tokens.ids)))
    labels = given["input_ids"].masked_fill(given.pop("completion_mask") == 0, -100)
    return trainer.compute_loss(stand_in(step.policy), {**given, "labels": labels})


def _reference_free(trainer: Any, step: Step) -> Tensor:
    """CPO and ORPO: each side with ids, mask and labels of its own."""
    given = {}
    for side in ("chosen", "rejected"):
        one = inputs(step.batch, getattr(step.batch.pairs, side), f"{side}_")
        mask = one.pop(f"{side}_completion_mask")
        given |= one | {f"{side}_labels": one[f"{side}_input_ids"].masked_fill(mask == 0, -100)}
    return trainer.get_batch_loss_metrics(stand_in(step.policy), given)[0]


def _tpo(trainer: Any, step: Step) -> Tensor:
    """Chosen, rejected, and, where its NLL counts, the gold response: here the chosen one."""
    sides = [step.batch.pairs.chosen, step.batch.pairs.rejected]
    sides += [step.batch.pairs.chosen] if trainer.tpo_alpha else []
    return trainer._compute_loss(stand_in(step.policy), inputs(step.batch, torch.cat(sides)), return_outputs=False)


def _a2po(trainer: Any, step: Step) -> Tensor:
    """Every row with its reward, and V* of its prompt by TRL's formula: β1 log of the mean of e^{r/β1} over the prompt's rows."""
    given = inputs(step.batch, torch.arange(len(step.batch.tokens.ids)))
    reward, prompt, beta = step.batch.columns["reward"], step.batch.tokens.prompt, trainer.args.beta1
    value = torch.stack([((reward[prompt == number] / beta).exp().mean().log() * beta) for number in prompt])
    keep = {"logits_to_keep": given["input_ids"].shape[1] - 1}
    more = {"ref_logps": step.reference["log_probs"].sum(-1), "rewards": reward, "v_star": value}
    return trainer.compute_loss(stand_in(step.policy), {**given, **keep, **more})


def _grpo(trainer: Any, step: Step) -> Tensor:
    """Log-probabilities when sampled and of the reference, and advantages, are inputs of TRL's loss."""
    action, columns = step.batch.tokens.action, step.batch.columns
    rows = torch.arange(len(action))
    given = {
        "prompt_ids": rows[:, None],
        "prompt_mask": torch.ones_like(rows)[:, None],
        "completion_ids": torch.zeros_like(action, dtype=torch.int64),
        "completion_mask": action.long(),
        "advantages": columns["advantage"][:, 0],
        "old_per_token_logps": columns["old_logp"],
        "num_items_in_batch": action.sum(),
        **({"ref_per_token_logps": step.reference["log_probs"]} if step.reference else {}),
    }
    return trainer._compute_loss(stand_in(step.policy), given)


def _reward(trainer: Any, step: Step) -> Tensor:
    """Rows are all chosen, then all rejected; the model's one logit of each is its reward."""
    rows = torch.cat([step.batch.pairs.chosen, step.batch.pairs.rejected])
    margin = {"margin": step.batch.columns["margin"]} if "margin" in step.batch.columns else {}

    def model(**given: Any) -> Any:
        return SimpleNamespace(logits=step.policy["rewards"][rows][:, None])

    return trainer.compute_loss(model, {**inputs(step.batch, rows), **margin})


class Kind(NamedTuple):
    """A trainer, its configuration, the rows that its constructor wants, and how its loss is called."""

    trainer: Any
    config: Any
    row: Mapping[str, Any]
    loss: Callable[[Any, Step], Tensor]
    reference: bool = False
    model: Any = AutoModelForCausalLM


PAIR = {"prompt": "w2", "chosen": "w3", "rejected": "w4"}
KINDS: Mapping[str, Kind] = {
    "DPOTrainer": Kind(trl.DPOTrainer, trl.DPOConfig, PAIR, _dpo, reference=True),
    "KTOTrainer": Kind(
        trl.KTOTrainer, trl.KTOConfig, {"prompt": "w2", "completion": "w3", "label": True}, _kto, reference=True
    ),
    "SFTTrainer": Kind(trl.SFTTrainer, trl.SFTConfig, {"prompt": "w2", "completion": "w3"}, _sft),
    "GRPOTrainer": Kind(trl.GRPOTrainer, trl.GRPOConfig, {"prompt": "w2"}, _grpo),
    "RewardTrainer": Kind(trl.RewardTrainer, trl.RewardConfig, PAIR, _reward, model=AutoModelForSequenceClassification),
    "CPOTrainer": Kind(CPOTrainer, CPOConfig, PAIR, _reference_free),
    "ORPOTrainer": Kind(ORPOTrainer, ORPOConfig, PAIR, _reference_free),
    "TPOTrainer": Kind(TPOTrainer, TPOConfig, {**PAIR, "reference": "w3"}, _tpo),
    "A2POTrainer": Kind(A2POTrainer, A2POConfig, {"prompt": "w2"}, _a2po),
}


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

    def loss(self, kind: str, settings: Mapping[str, Any], step: Step) -> Tensor:
        """The loss of a step, a scalar, by the trainer with these settings."""
        key = f"{kind} {sorted(settings.items(), key=str)}"
        if key not in self.made:
            self.made[key] = self._made(KINDS[kind], settings)
        return KINDS[kind].loss(self.made[key], step)

    def _made(self, kind: Kind, settings: Mapping[str, Any]) -> Any:
        options = kind.config(
            output_dir=self.directory,
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
            per_device_train_batch_size=8 if "prompt" in kind.row and len(kind.row) == 1 else 2,
            **settings,
        )
        rows = [{**kind.row, "label": n % 2 == 0} if "label" in kind.row else kind.row for n in range(4)]
        given: dict[str, Any] = {"args": options, "processing_class": self.tokenizer}
        given["train_dataset"] = Dataset.from_list(rows)
        models = [self._model(kind) for _ in range(1 + kind.reference)]
        judge = [lambda completions, **_: [0.0] * len(completions)] if len(kind.row) == 1 else []
        return kind.trainer(*models, *judge, **given)

    def _model(self, kind: Kind) -> Any:
        labels = {} if kind.model is AutoModelForCausalLM else {"num_labels": 1, "pad_token_id": 0}
        return kind.model.from_pretrained(self.base, **labels)
