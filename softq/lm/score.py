"""Tokens to per-token numbers: the one place where a vocabulary is seen.

Training, inspection and search all read what `score` returns, so what is trained, shown and searched is one number.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from softq.lm.forest import grow
from softq.mdp.readouts import LOGP
from softq.records import Readout, Scored, Tokens, Tree

CHUNK = 2**24
"""Logits that exist at once, in numbers: 64 MiB of float32. Beyond it they are made in chunks, and again for the gradient."""


class LanguageModel(Protocol):
    """What a language model is here. TabularLM is one, and so is any causal LM of transformers (`lm.model`)."""

    @property
    def vocabulary(self) -> int:
        """V."""
        ...

    def states(self, tree: Tree) -> Tensor:
        """[N] nodes -> [N, H]: what the head sees after each node."""
        ...

    def logits(self, states: Tensor) -> Tensor:
        """[n, H] -> [n, V] in float32 or wider."""
        ...


class Valued(Protocol):
    """What a reward model is here: a `lm.reward.RewardModel`, and TabularLM."""

    def values(self, tree: Tree) -> Tensor:
        """[N] nodes -> [N] in float32 or wider: what its head says of each."""
        ...


SEEN = ("log_probs", "hidden", "value")
"""What a readout may see, its `at`."""


class Models(nn.ModuleDict):
    """Models by name: "policy", which is trained, and frozen ones such as "ref". Calling it scores.

    One module with one forward, so that what wraps a module for several processes wraps all of scoring.
    """

    def forward(self, tokens: Tokens, needs: Sequence[Readout] = ()) -> Scored:
        """See `score`."""
        return _score(cast(Mapping[str, LanguageModel], self), tokens, needs)


def score(models: Models, tokens: Tokens, needs: Sequence[Readout] = ()) -> Scored:
    """Log-probabilities of the actions, and every readout of `needs`, per action.

    Returns {"logp": [B, T] nats, and name: [B, T, ...] of each readout}, 0 outside action, on the models' device; no "logp" where
    all that is needed are values. Gradient flows to "policy" alone, if gradient is enabled. `tokens` are on the CPU.
    """
    return models(tokens, needs)


def _score(models: Mapping[str, LanguageModel], tokens: Tokens, needs: Sequence[Readout]) -> Scored:
    values = [readout for readout in needs if readout.at == "value"]
    others = [readout for readout in needs if readout.at != "value"]
    said = list({readout.name: readout for readout in (LOGP, *others)}.values()) if others or not values else []
    missing = sorted({name for readout in (*said, *values) for name in readout.models} - set(models.keys()))
    if missing:
        raise ValueError(f"a readout sees the model(s) {missing}, but only {sorted(models.keys())} are loaded")
    for readout in (*said, *values):
        if readout.at not in SEEN:
            raise ValueError(f"readout {readout.name!r} is at {readout.at!r}; expected one of {', '.join(SEEN)}")
    found = _said(models, tokens, said) if said else {}
    return found | (_valued(cast(Mapping[str, Valued], models), tokens, values) if values else {})


def _valued(models: Mapping[str, Valued], tokens: Tokens, readouts: Sequence[Readout]) -> dict[str, Tensor]:
    """What value heads say of the state behind each action. That behind the last one is a state too, which nobody acts on."""
    pad = nn.functional.pad
    wider = Tokens(pad(tokens.ids, (0, 1)), pad(tokens.action, (1, 0)), tokens.ended, tokens.prompt)
    forest = grow(wider)
    behind = forest.node[:, 1:][tokens.action]
    seen: dict[str, Tensor] = {}
    for name in sorted({name for readout in readouts for name in readout.models}):
        with nullcontext() if name == "policy" else torch.no_grad():
            values = models[name].values(forest.tree)
            seen[name] = values.index_select(0, behind.to(values.device))
    action = tokens.ids[:, 1:][tokens.action].to(next(iter(seen.values())).device)
    return {readout.name: _scatter(readout.fn(seen, action), tokens.action) for readout in readouts}


def _said(models: Mapping[str, LanguageModel], tokens: Tokens, readouts: Sequence[Readout]) -> dict[str, Tensor]:
    """What is read of the states that are acted on, and of their logits."""
    seen = sorted({name for readout in readouts for name in readout.models})
    forest = grow(tokens)
    acted = forest.node[tokens.action]
    states = {name: _states(models[name], name, forest.tree, acted) for name in seen}
    action = tokens.ids[:, 1:][tokens.action].to(states["policy"].device)
    values = {}
    for together in _apart(readouts):
        read = _read(together, models, states, action)
        values |= {readout.name: column for readout, column in zip(together, read, strict=True)}
    return {readout.name: _scatter(values[readout.name], tokens.action) for readout in readouts}


def _apart(readouts: Sequence[Readout]) -> list[list[Readout]]:
    """Readouts that are read off one set of logits: all of them, or, where none sees the policy beside another model,
    the policy's and the rest, so that logits made again for the gradient are the policy's alone."""
    policy = [readout for readout in readouts if "policy" in readout.models]
    rest = [readout for readout in readouts if "policy" not in readout.models]
    mixed = any(len(readout.models) > 1 for readout in policy)
    return [[*policy, *rest]] if mixed or not rest else [policy, rest]


def _states(model: LanguageModel, name: str, tree: Tree, acted: Tensor) -> Tensor:
    with nullcontext() if name == "policy" else torch.no_grad():
        states = model.states(tree)
        return states.index_select(0, acted.to(states.device))


def _read(
    readouts: Sequence[Readout], models: Mapping[str, LanguageModel], states: Mapping[str, Tensor], action: Tensor
) -> tuple[Tensor, ...]:
    """Each readout for all n actions, [n, ...], in chunks whose logits are made again for the gradient, never kept."""
    at = sorted({(name, readout.at) for readout in readouts for name in readout.models})

    def reduce(part: slice) -> tuple[Tensor, ...]:
        inputs = {(name, kind): _input(kind, models[name], name, states[name][part]) for name, kind in at}
        return tuple(
            readout.fn({name: inputs[name, readout.at] for name in readout.models}, action[part])
            for readout in readouts
        )

    graph = torch.is_grad_enabled() and any("policy" in readout.models for readout in readouts)
    step = max(1, CHUNK // max(models[name].vocabulary for name, _ in at))
    parts = [slice(start, start + step) for start in range(0, len(action), step)]
    with nullcontext() if graph else torch.no_grad():
        if len(parts) == 1:
            return reduce(parts[0])
        read = [checkpoint(reduce, part, use_reentrant=False) if graph else reduce(part) for part in parts]
    return tuple(torch.cat(columns) for columns in zip(*read, strict=True))


def _input(at: str, model: LanguageModel, name: str, states: Tensor) -> Tensor:
    if at == "hidden":
        return states
    with nullcontext() if name == "policy" else torch.no_grad():
        return model.logits(states).log_softmax(-1)  # once, for all that is read of a state


def _scatter(values: Tensor, action: Tensor) -> Tensor:
    """[n, ...] in the order of the True entries -> [B, T, ...], 0 elsewhere."""
    b, t = (index.to(values.device) for index in action.nonzero(as_tuple=True))
    return values.new_zeros(*action.shape, *values.shape[1:]).index_put((b, t), values)
