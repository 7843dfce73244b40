"""Proof of which model a reference is, and how one moves."""

import hashlib
import json

import torch
from peft import PeftModel

from softq.lm.model import CausalLM, Uniform
from softq.lm.reward import HEAD_WEIGHT
from softq.lm.score import Models

IDLE = {"_name_or_path", "transformers_version", "architectures", "use_cache"}
IDLE |= {"base_model_name_or_path", "peft_version", "inference_mode", "revision"}  # of an adapter
"""Entries of a configuration that change no log-probability."""


def fingerprint(model: CausalLM | Uniform, *, adapter: bool = True) -> str:
    """A hash of what decides a log-probability, or a reward: weights, dtypes, configuration.

    adapter=False leaves out what a run may draw anew: LoRA's part, and the head of a reward model.
    """
    if isinstance(model, Uniform):
        return f"uniform over {model.vocabulary}"
    settings = [{key: value for key, value in model.config.to_dict().items() if key not in IDLE}]
    if adapter and isinstance(model.model, PeftModel):
        adapters = [config.to_dict() for config in model.model.peft_config.values()]
        settings += [{key: value for key, value in config.items() if key not in IDLE} for config in adapters]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=_plain).encode())
    for name, tensor in sorted(model.transformer.state_dict().items()):
        if not adapter and ("lora_" in name or name == HEAD_WEIGHT):
            continue
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name.replace('base_layer.', '')} {values.dtype} {list(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def move_reference(models: Models, mixup: float) -> None:
    """θ_ref ← α θ + (1 - α) θ_ref for every parameter that is trained: a soft update of TR-DPO (arXiv 2404.09656).

    mixup: α in (0, 1]; 1 is a hard update, the next round of an iterative method. The reference is a copy of the policy.
    """
    reference = dict(models["ref"].named_parameters())
    with torch.no_grad():
        for name, parameter in models["policy"].named_parameters():
            if parameter.requires_grad:
                reference[name].lerp_(parameter.detach(), mixup)


def _plain(value: object) -> object:
    """A set in an order of its own: that of Python changes from process to process."""
    return sorted(value) if isinstance(value, set) else str(value)
