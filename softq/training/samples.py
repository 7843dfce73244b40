"""What the policy says to held-out prompts while it trains, and the reward of each answer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from softq.data.encode import Completion, Encoded
from softq.lm.load import Loaded
from softq.lm.model import CausalLM
from softq.lm.score import score
from softq.mdp.readouts import REF_LOGP
from softq.records import Method
from softq.training.output import end_tokens
from softq.training.source import tokens_of


def sampled(
    loaded: Loaded,
    method: Method,
    records: Sequence[Encoded],
    count: int,
    *,
    seed: int,
    max_new_tokens: int,
    ends: frozenset[int] = frozenset(),
) -> list[dict[str, Any]]:
    """One completion at temperature 1 for each of the first `count` records, as rows of JSON.

    prompt and completion are text, the end token left out; `tokens` counts what was sampled, the end token included;
    ended: False where `max_new_tokens`, or the model's last position, cut it. logp: Σ log π in nats. reward: that of
    rewards/*, β · Σ log π/π_ref, or β · logp where the method reads no reference; None where it reads one that is not
    loaded, because its log-probs are stored. A prompt that leaves no position to answer in has no row.
    ends: tokens that end a completion beside the generation config's and the tokenizer's.

    One prompt at a time: no padding can reach an answer, whatever the architecture. Each has its own seed, so an answer
    does not depend on the others. Models, their modes and the state of torch's generators are left as they were.
    """
    rows = []
    stops = end_tokens(loaded.policy, loaded.tokenizer, ends)
    for number, record in enumerate(records[:count]):
        prompt = prompt_of(record)
        room = min(max_new_tokens, positions(loaded.policy) - len(prompt))
        if room > 0:
            said = generated(loaded.policy, prompt, stops, seed=seed + number, room=room)
            rows.append(_row(loaded, method, prompt, said, said[-1] in stops))
    return rows


def prompt_of(record: Encoded) -> np.ndarray:
    """The ids before the record's first action: all of them, where it has none."""
    ids, action, _ = record.completions[0]
    return ids[: int(action.argmax()) + 1] if action.any() else ids


def positions(policy: CausalLM) -> int:
    """How many positions the model has; no limit is written in the configuration of some."""
    config = policy.config.to_dict()
    return config.get("max_position_embeddings") or config.get("n_positions") or 2**31


def generated(policy: CausalLM, prompt: np.ndarray, stops: list[int], *, seed: int, room: int) -> list[int]:
    """Ids of one completion of a prompt [n], drawn at temperature 1: at most `room`, up to the first of `stops`, it included."""
    device = next(policy.parameters()).device
    ids = torch.tensor(prompt, dtype=torch.int64, device=device)[None]
    on = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(on), torch.no_grad(), at_rest(policy.transformer) as model:
        torch.manual_seed(seed)
        choice = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=room,
            use_cache=True,
            eos_token_id=stops or None,
            pad_token_id=stops[0] if stops else 0,  # nothing is padded; without one transformers warns
        )
        out: Any = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=choice)  # pyright: ignore[reportCallIssue]
    return out[0, len(prompt) :].tolist()


def _row(loaded: Loaded, method: Method, prompt: np.ndarray, said: list[int], ended: bool) -> dict[str, Any]:
    ids = np.concatenate([prompt, np.array(said, np.int64)])
    tokens = tokens_of([Completion(ids, np.arange(1, len(ids)) >= len(prompt), ended)], [0])
    compared, reads = "ref" in loaded.models, any("ref" in readout.models for readout in method.needs)
    with torch.no_grad():
        scored = score(loaded.models, tokens, (REF_LOGP,) if compared and reads else ())
    logp = scored["logp"].double().sum().item()
    ratio = logp - scored["ref_logp"].double().sum().item() if compared and reads else logp
    return {
        "prompt": loaded.tokenizer.decode(prompt.tolist()),
        "completion": loaded.tokenizer.decode(said[:-1] if ended else said),
        "ended": ended,
        "tokens": len(said),
        "logp": logp,
        "reward": None if reads and not compared else method.beta * ratio,
    }


@contextmanager
def at_rest(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """A model ready to generate from its own distribution, for a moment.

    In eval mode, because in train mode gradient checkpointing takes the cache away; without its generation config, whose
    temperature, top-p and penalties would make another distribution of it.
    """
    modes: list[tuple[nn.Module, bool]] = [(module, module.training) for module in model.modules()]
    own = model.generation_config
    try:
        model.eval()
        model.generation_config = GenerationConfig()
        yield model
    finally:
        model.generation_config = own
        for module, training in modes:
            module.training = training
