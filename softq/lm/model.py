"""A causal language model of transformers as two functions: states of a forest, and logits of states."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from softq.lm.attention import NAME, register
from softq.lm.layouts import LAYOUTS, depths
from softq.records import Tree

AFTER_HEAD: Mapping[str, Callable[[PreTrainedConfig, Tensor], Tensor]] = {
    "cohere": lambda config, logits: logits * config.logit_scale,
    "cohere2": lambda config, logits: logits * config.logit_scale,
    "gemma2": lambda config, logits: _softcapped(logits, config.final_logit_softcapping),
    "gemma3_text": lambda config, logits: _softcapped(logits, config.final_logit_softcapping),
    "granite": lambda config, logits: logits / config.logits_scaling,
    "granitemoe": lambda config, logits: logits / config.logits_scaling,
}
"""What a model type does to its head's product. A probe at load compares with the model's own forward (`lm.probe`)."""


def _softcapped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)


class CausalLM(nn.Module):
    """A transformers model (or a LoRA model of peft around one) that answers `states` and `logits`.

    layout: a name of LAYOUTS. own_head: run the model's own forward and let "states" be its logits; slower, always right.
    Build it with `lm.load`, which turns dropout off and probes what is valid.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, layout: str = "plain", own_head: bool = False) -> None:
        super().__init__()
        self.model = model
        self.layout = layout
        self.own_head = own_head
        if layout != "plain":
            register()
            self.transformer.config._attn_implementation = NAME

    @property
    def transformer(self) -> PreTrainedModel:
        """The transformers model itself, with its adapter layers if there are any."""
        model = self.model
        return model.get_base_model() if isinstance(model, PeftModel) else model  # pyright: ignore[reportReturnType]

    @property
    def adapted(self) -> bool:
        """Whether there is an adapter."""
        return isinstance(self.model, PeftModel)

    @property
    def config(self) -> PreTrainedConfig:
        """The configuration of the language model, also where that is a part of a larger model."""
        return self.transformer.config.get_text_config()

    @property
    def body(self) -> nn.Module:
        """What makes states of tokens."""
        return _OwnForward(self.transformer) if self.own_head else self.transformer.base_model

    @property
    def head(self) -> nn.Module:
        """The layer that makes logits of states."""
        head = self.transformer.get_output_embeddings()
        if head is None:
            raise ValueError(f"a {self.transformer.config.model_type} model has no head over its vocabulary")
        return head

    @property
    def vocabulary(self) -> int:
        """V: rows of the head."""
        return cast(Tensor, self.head.weight).shape[0]

    @property
    def window(self) -> int | None:
        """The attention window, if the model has one: trees that reach beyond it run plain. Qwen2-MoE writes 0 for none."""
        return self.config.to_dict().get("sliding_window") or None

    def states(self, tree: Tree) -> Tensor:
        """[N] nodes -> [N, H], the inputs of the head."""
        plain = self.layout == "plain" or (self.window is not None and max(depths(tree)) >= self.window)
        return LAYOUTS["plain" if plain else self.layout](self.body, tree)

    def logits(self, states: Tensor) -> Tensor:
        """[n, H] -> [n, V]: the product in the model's dtype, float32 or wider after it."""
        if self.own_head:
            return _wide(states)
        logits = _wide(self.head(states))
        config = self.config
        return AFTER_HEAD[config.model_type](config, logits) if config.model_type in AFTER_HEAD else logits


class AdapterOff(nn.Module):
    """The model under an adapter, as a frozen reference that costs no memory.

    The switch is module-wide, so it is only thrown where no gradient is recorded: no backward pass may happen inside.
    """

    policy: CausalLM

    def __init__(self, policy: CausalLM) -> None:
        super().__init__()
        self.__dict__["policy"] = policy  # seen, not owned: its parameters are the policy's

    @property
    def vocabulary(self) -> int:
        """V: rows of the head."""
        return self.policy.vocabulary

    def states(self, tree: Tree) -> Tensor:
        """[N] nodes -> [N, H]."""
        with switched_off(self.policy):
            return self.policy.states(tree)

    def logits(self, states: Tensor) -> Tensor:
        """[n, H] -> [n, V]."""
        with switched_off(self.policy):
            return self.policy.logits(states)


class Uniform(nn.Module):
    """Every token as likely as any other: a frozen reference under which log π/π_ref is log π + log V a token."""

    zero: Tensor

    def __init__(self, vocabulary: int, like: Tensor) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.register_buffer("zero", like.new_zeros(1, dtype=torch.promote_types(like.dtype, torch.float32)), False)

    def states(self, tree: Tree) -> Tensor:
        """[N] nodes -> [N, 1]."""
        return self.zero.expand(len(tree.token), 1)

    def logits(self, states: Tensor) -> Tensor:
        """[n, 1] -> [n, V], all 0."""
        return states.expand(-1, self.vocabulary)


@contextmanager
def switched_off(policy: CausalLM) -> Iterator[None]:
    """The model without its adapter, for a moment; only where no gradient is recorded."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the adapter is switched off for the whole model; score this reference under torch.no_grad()"
        )
    with policy.model.disable_adapter():  # pyright: ignore[reportCallIssue]
        yield


class _OwnForward(nn.Module):
    """A body whose hidden states are the logits of the model's own forward."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs) -> "_OwnOutput":
        return _OwnOutput(self.model(**inputs).logits)


class _OwnOutput:
    def __init__(self, logits: Tensor) -> None:
        self.last_hidden_state = logits


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
