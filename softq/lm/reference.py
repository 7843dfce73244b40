"""Proof of which model a reference is."""

import hashlib

import torch

from softq.lm.model import CausalLM


def fingerprint(model: CausalLM, *, adapter: bool = True) -> str:
    """A hash of the weights, names and dtypes that decide a log-probability; adapter=False leaves LoRA's out."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.transformer.state_dict().items()):
        if not adapter and "lora_" in name:
            continue
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name.replace('base_layer.', '')} {values.dtype} {list(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
