"""Sampling, and greedy decoding as its limit: answers drawn token by token, with their exact log-probabilities."""

from collections.abc import Callable
from functools import partial
from hashlib import blake2b

import torch
from torch import Tensor

from softq.search.answer import Answer, Limits, answer
from softq.search.voice import Voice


def filtered(
    logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """The log-probabilities that are sampled from: [n, V] -> [n, V], -inf for what is left out.

    Temperature first; 0 is greedy, the first of the likeliest. Then only the `top_k` likeliest (0: all), of these the fewest that
    have `top_p` of their mass, and of these those that are at least `min_p` times as likely as the likeliest.
    """
    logits = logits.double()
    if temperature == 0:
        first = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1])
        return torch.where(first.bool(), 0.0, -torch.inf).double()
    logp = (logits / temperature).log_softmax(-1)
    if not top_k and top_p >= 1 and min_p <= 0:
        return logp
    ranked, order = torch.sort(logp, dim=-1, descending=True, stable=True)
    out = torch.zeros_like(ranked, dtype=torch.bool)
    if top_k:
        out[..., top_k:] = True
    if top_p < 1:
        mass = ranked.masked_fill(out, -torch.inf).softmax(-1)
        out |= mass.cumsum(-1) - mass >= top_p
    out |= ranked < ranked[..., :1] + torch.tensor(min_p).log()
    kept = ranked.masked_fill(out, -torch.inf)
    return logp.scatter(-1, order, kept).log_softmax(-1)


def sample(
    voice: Voice,
    limits: Limits,
    *,
    n: int = 1,
    seed: int = 0,
    numbers: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> list[list[Answer]]:
    """n answers to each prompt, as they were drawn. `numbers` [P] name the prompts (default: 0, 1, …): what is drawn depends on
    the seed, a prompt's number and which of the n it is, and on nothing else.

    Nodes know `logp`, the voice's own log-probability of their token, and `drawn_logp`, that with which it was drawn; an answer's
    score is its logp. Samples that begin alike share their beginning, computed once: n samples cost one prompt.
    """
    forest = voice.forest
    numbers = torch.arange(len(forest.last)) if numbers is None else numbers
    chance = torch.stack([uniform(seed, number, (n, limits.tokens)) for number in numbers.tolist()]).flatten(0, 1)
    draw = partial(filtered, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    at, ended = gone_on(voice, limits, draw, forest.last.repeat_interleave(n), chance)
    found = [answer(forest, *end) for end in zip(at.tolist(), ended.tolist(), strict=True)]
    return [found[first : first + n] for first in range(0, len(found), n)]


def gone_on(
    voice: Voice, limits: Limits, draw: Callable[[Tensor], Tensor], at: Tensor, chance: Tensor
) -> tuple[Tensor, Tensor]:
    """Samples [m] that stand at nodes, gone on by a token a column of `chance` [m, steps]: their nodes then, and which ended.

    draw: logits [n, V] to the log-probabilities that are drawn from, such as `filtered`.
    """
    forest, at, ended = voice.forest, at.clone(), torch.zeros(len(at), dtype=torch.bool)
    for step in range(chance.shape[1]):
        live = (~ended).nonzero()[:, 0]
        if not len(live):
            break
        states, row = at[live].unique(return_inverse=True)
        logits = voice.logits(states)
        drawn = draw(logits).cpu()
        token = pick(drawn[row], chance[live, step])
        (row, token), same = torch.stack([row, token]).unique(dim=1, return_inverse=True)
        over = limits.ended(forest, states[row], token)
        nodes = forest.add(token, states[row])
        forest.put("logp", nodes, logits.log_softmax(-1).cpu()[row, token])
        forest.put("drawn_logp", nodes, drawn[row, token])
        at[live], ended[live] = nodes[same], over[same]
        voice.keep(nodes[~over])
    return at, ended


def uniform(seed: int, number: int, shape: tuple[int, ...]) -> Tensor:
    """Numbers in [0, 1), float64, always the same for a seed and a prompt's number."""
    digest = blake2b(f"{seed} {number}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def pick(logp: Tensor, chance: Tensor) -> Tensor:
    """[n, V] log-probabilities, [n] numbers in [0, 1), float64 -> [n] tokens: where the cumulated mass passes the number."""
    mass = logp.exp().cumsum(-1)
    return torch.searchsorted(mass, (chance * mass[:, -1])[:, None], right=True)[:, 0]
