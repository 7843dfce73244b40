"""Proof of which model a reference is."""

import hashlib
import json

import torch
from peft import PeftModel

from softq.lm.model import CausalLM

IDLE = {"_name_or_path", "transformers_version", "architectures", "use_cache"}
"""Entries of a configuration that change no log-probability."""


def fingerprint(model: CausalLM, *, adapter: bool = True) -> str:
    """A hash of what decides a log-probability: weights, dtypes, configuration; adapter=False leaves LoRA's part out."""
    settings = [{key: value for key, value in model.config.to_dict().items() if key not in IDLE}]
    if adapter and isinstance(model.model, PeftModel):
        settings += [config.to_dict() for config in model.model.peft_config.values()]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.transformer.state_dict().items()):
        if not adapter and "lora_" in name:
            continue
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name.replace('base_layer.', '')} {values.dtype} {list(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
