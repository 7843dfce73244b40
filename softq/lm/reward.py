"""A reward model of transformers: the body of a language model under a head of one number."""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from softq.lm.model import CausalLM
from softq.records import Tree

KIND = "ForSequenceClassification"
"""How transformers ends the name of the class."""

HEAD = "score"
HEAD_WEIGHT = f"{HEAD}.weight"


class RewardModel(CausalLM):
    """An AutoModelForSequenceClassification of one label that answers `states` and `values`. Build it with `lm.load`.

    fresh: its head was drawn anew, not read from the files.
    """

    def __init__(self, model: PreTrainedModel, layout: str = "plain", *, fresh: bool = False) -> None:
        super().__init__(model, layout)
        self.fresh = fresh

    @property
    def head(self) -> nn.Module:
        """The layer that makes a number of a state."""
        return self.transformer.get_submodule(HEAD)

    @property
    def vocabulary(self) -> int:
        """V: tokens that it reads."""
        return cast(Tensor, self.transformer.get_input_embeddings().weight).shape[0]

    def logits(self, states: Tensor) -> Tensor:
        """[n, H] -> [n, 1] in float32 or wider: the rewards, in reward."""
        values = self.head(states)
        return values.to(torch.promote_types(values.dtype, torch.float32))

    def values(self, tree: Tree) -> Tensor:
        """[N] nodes -> [N]: the reward of the text up to each."""
        return self.logits(self.states(tree))[:, 0]


def is_reward_model(config: PreTrainedConfig) -> bool:
    """Whether the files of a configuration are a sequence classifier's, with no head over tokens."""
    return any(name.endswith(KIND) for name in config.architectures or ())


def check_labels(name: str, config: PreTrainedConfig) -> None:
    """ValueError where the files are a classifier's of several labels."""
    if is_reward_model(config) and config.num_labels != 1:
        raise ValueError(f"model {name} tells {config.num_labels} labels apart; a reward model has one")


def padded_by(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Tell the model's config what pads: it reads the last token that is not padding. What to say, if nothing can.

    Where the tokenizer pads with its end token, the end of a completion would be taken for padding, and the state before it read.
    """
    pad = tokenizer.pad_token_id
    free = pad is not None and pad != tokenizer.eos_token_id
    model.config.get_text_config().pad_token_id = pad if free else None
    if free:
        return None
    return "the tokenizer has no padding token beside its end token: with transformers, score one text at a time"
