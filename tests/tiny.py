"""Tiny models of many architectures with large weights, a batch of odd rows, and an oracle that knows no layouts."""

from collections.abc import Callable
from types import MethodType

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from softq.records import Tokens

VOCABULARY = 61
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8}
MANY_EXPERTS = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}

SHARING: dict[str, dict] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "mistral": {},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": MANY_EXPERTS,
    "gpt2": {},
    "gpt_neox": {},
    "phi": {},
    "phi3": {},
    "olmo2": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "starcoder2": {},
    "smollm3": {},
    "granite": {"logits_scaling": 3.0, "attention_multiplier": 0.4, "residual_multiplier": 0.7},
    "cohere": {"logit_scale": 0.5},
}
"""Architectures whose rows share the states of a prompt, and what their configuration needs beside SMALL."""

ALONE: dict[str, dict] = {
    "gemma2": {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {**GEMMA, "sliding_window": 4},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    "bloom": {},
    "falcon": {"alibi": True, "num_kv_heads": 2},
    "stablelm": {},
    "nemotron": {},
    "mamba": {},
    "recurrent_gemma": {"head_dim": 8, "attention_window_size": 4},
}
"""Architectures that must run plainly: caps, windows, sinks, biases by position, dropped keywords, recurrence."""


def tiny(name: str, dtype: torch.dtype = torch.float64, **more) -> PreTrainedModel:
    """A model of two layers with matrices ten times their initial size, so that no part of it is nearly linear.

    In float64 its norms and experts compute in float64 too; transformers' own would round to float32.
    """
    torch.manual_seed(0)
    if dtype == torch.float64:
        more["experts_implementation"] = "eager"
    config = AutoConfig.for_model(name, **{**SMALL, **SHARING.get(name, {}), **ALONE.get(name, {}), **more})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if dtype == torch.float64:
        _exact_norms(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def _exact_norms(model: nn.Module) -> None:
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = MethodType(_gemma_norm if "Gemma" in kind else _rms_norm, module)
        elif kind == "CohereLayerNorm":
            module.forward = MethodType(_layer_norm, module)


def _rms_norm(norm: nn.Module, x: Tensor) -> Tensor:
    return norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)


def _gemma_norm(norm: nn.Module, x: Tensor) -> Tensor:
    return (1 + norm.weight) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps)


def _layer_norm(norm: nn.Module, x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return norm.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)


def tokenizer() -> PreTrainedTokenizerFast:
    """One word a number, so that text is beside the point."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, "<pad>")), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


Row = tuple[int, list[int], list[int]]  # prompt number, prompt, completion


def tokens_of(rows: list[Row], pad: int = 7) -> Tokens:
    """Rows of ids -> Tokens; the padding is an ordinary token, so a leak from it is seen."""
    width = max(len(prompt) + len(completion) for _, prompt, completion in rows)
    ids = torch.full((len(rows), width), pad)
    action = torch.zeros(len(rows), width - 1, dtype=torch.bool)
    for b, (_, prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        ids[b, :end] = torch.tensor(prompt + completion)
        action[b, len(prompt) - 1 : end - 1] = True
    return Tokens(ids, action, torch.ones(len(rows), dtype=torch.bool), torch.tensor([n for n, _, _ in rows]))


def odd_rows() -> Tokens:
    """Uneven rows of five records, not in order: equal prompts with two numbers, shared starts, a prefix, one-token sides."""
    long, short = [11, 4, 9, 30, 5, 5, 17], [23]
    return tokens_of(
        [
            (4, long, [8, 12, 6, 2]),
            (0, short, [14]),
            (4, long, [8, 12, 40, 41, 42, 2]),
            (7, long, [8, 12, 6, 2]),
            (9, [33, 4], [19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 2]),
            (4, long, [2]),
            (7, long, [50, 2]),
            (5, short, [14, 3]),
            (5, short, [14, 3, 3, 60, 2]),
        ]
    )


def alone(model: PreTrainedModel, tokens: Tokens) -> Tensor:
    """log π(action | state) [B, T]: each row by itself through the model's own forward, nothing padded or shared."""
    logp = []
    for ids, action in zip(tokens.ids, tokens.action, strict=True):
        end = int(action.nonzero().max()) + 2
        every = model(input_ids=ids[None, :end], use_cache=False).logits[0, :-1].log_softmax(-1)
        taken = every.gather(-1, ids[1:end, None])[:, 0] * action[: end - 1]
        logp.append(nn.functional.pad(taken, (0, len(action) - len(taken))))
    return torch.stack(logp)


def weighed(logp: Tensor) -> Tensor:
    """A loss in which no two actions weigh the same."""
    return (logp * torch.linspace(-1, 2, logp.numel(), dtype=logp.dtype).view_as(logp)).sum()


def gradients(model: nn.Module, logp: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities, and the gradient of their weighed sum by parameter."""
    model.zero_grad()
    found = logp()
    weighed(found).backward()
    return found.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
