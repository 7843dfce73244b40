"""FSDP2: the weights of all models, their gradients and the optimiser's moments shared among the processes."""

from collections.abc import Iterator

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from softq.lm.model import CausalLM, Uniform
from softq.lm.score import Models
from softq.training import ranks


def shard(models: Models, device: str) -> None:
    """Shard every model, block by block, in place; a frozen reference as well.

    The blocks are what transformers says may not be split. What is outside of them (embedding, final norm, head) is whole
    on each process from the forward pass to the end of the backward pass, for the head is called on its own.
    """
    mesh = DeviceMesh(device.split(":")[0], list(range(ranks.count())))
    for model in models.values():
        for block in _blocks(model):
            fully_shard(block, mesh=mesh)
    fully_shard(models, mesh=mesh, reshard_after_forward=False)


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    if isinstance(model, Uniform):
        return  # it has no weights
    assert isinstance(model, CausalLM)
    kinds = set(model.transformer._no_split_modules or ())
    found = [module for module in model.modules() if type(module).__name__ in kinds]
    if not found:
        raise ValueError(f"--shard: transformers names no blocks of a {model.config.model_type} model; leave it out")
    yield from reversed(found)  # one inside another comes first
