"""The decoders by name. A decoder's settings are its keywords: the command line reads them from the signature."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from softq.search.answer import Answer
from softq.search.beam import beam
from softq.search.best_of import best_of
from softq.search.chunks import PathRatio, PathValue, chunk_beam, uniforms
from softq.search.guided import Guided, composed, same_tokens
from softq.search.heard import PAIR, Heard
from softq.search.mcts import Rules, tree_search
from softq.search.rejection import rejected
from softq.search.sampling import filtered, sample, uniform
from softq.search.voice import Likelihood, LogRatio, Speaker, realigned, tuned

Decoder = Callable[..., list[list[Answer]]]
"""(Heard, *, its settings) -> the answers to each prompt, best first."""


def greedy(on: Heard) -> list[list[Answer]]:
    """The likeliest token at every state."""
    return beam(Likelihood(on.policy), on.limits, width=1)


def sampled(
    on: Heard, *, n: int = 1, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> list[list[Answer]]:
    """n answers drawn from the policy."""
    filters = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    return sample(on.policy, on.limits, n=n, seed=on.seed, numbers=on.numbers, **filters)


def likelihood_beam(on: Heard, *, beams: int = 5, n: int = 1, length_penalty: float = 0.0) -> list[list[Answer]]:
    """The likeliest answers: of a trained policy, those of the highest reward less what the reference makes of them."""
    return beam(Likelihood(on.policy), on.limits, width=beams, n=n, length_penalty=length_penalty)


def log_ratio_beam(on: Heard, *, beams: int = 5, n: int = 1, plausible: float = 0.1) -> list[list[Answer]]:
    """The answers of the highest log π/π_ref among the policy's plausible tokens: those of the highest implicit reward."""
    return beam(LogRatio(on.policy, on.voice("ref"), plausible), on.limits, width=beams, n=n)


def best_of_n(on: Heard, *, samples: int = 16, n: int = 1, temperature: float = 1.0) -> list[list[Answer]]:
    """Of the policy's samples those of the highest implicit reward, Σ log π/π_ref: a sum, which favours long answers."""
    return best_of(_samples(on, samples, temperature), lambda answers: _ratio(on, answers), n=n)


def best_of_n_norm(on: Heard, *, samples: int = 16, n: int = 1, temperature: float = 1.0) -> list[list[Answer]]:
    """Of the policy's samples those of the highest implicit reward a token."""
    return best_of(_samples(on, samples, temperature), lambda answers: _ratio(on, answers) / _lengths(answers), n=n)


def best_of_n_likelihood(on: Heard, *, samples: int = 16, n: int = 1, temperature: float = 1.0) -> list[list[Answer]]:
    """Of the policy's samples the likeliest."""
    return best_of(_samples(on, samples, temperature), _logp, n=n)


def best_of_n_reward(on: Heard, *, samples: int = 16, n: int = 1, temperature: float = 1.0) -> list[list[Answer]]:
    """Of the policy's samples those that the model "reward" judges best."""
    return best_of(_samples(on, samples, temperature), on.rewards, n=n)


def best_of_n_judged(
    on: Heard, *, by: str, samples: int = 16, n: int = 1, temperature: float = 1.0
) -> list[list[Answer]]:
    """Of the policy's samples those that a function of yours judges best, by = path.py:function or package.module:function; what
    else --judge takes is taken, too."""
    judge = on.judge(by)
    return best_of(_samples(on, samples, temperature), judge, n=n)


def best_of_n_random(on: Heard, *, samples: int = 16, n: int = 1, temperature: float = 1.0) -> list[list[Answer]]:
    """Of the policy's samples any: a control, which costs what the others cost and knows nothing."""
    return [answers[:n] for answers in _samples(on, samples, temperature)]


def rejection(on: Heard, *, samples: int = 16, n: int = 1, temperature: float = 1.0) -> list[list[Answer]]:
    """Samples of the reference, kept as if drawn from π_ref (π/π_ref)^(1/τ), τ = temperature: the policy itself at 1.

    The largest ratio is taken from the samples, so few of them bend the law towards the reference (RSO, arXiv 2309.06657).
    """
    drawn = sample(on.voice("ref"), on.limits, n=samples, seed=on.seed, numbers=on.numbers)
    chance = torch.stack([uniform(on.seed + 1, number, (samples, samples)) for number in on.numbers.tolist()])
    return rejected(drawn, lambda answers: _ratio(on, answers), chance, n=n, temperature=temperature)


def chunked(
    on: Heard, *, beams: int = 4, branches: int = 4, length: int = 10, n: int = 1, top_k: int = 50
) -> list[list[Answer]]:
    """Chunks of the policy's, of which the log-ratio of a small pair, the models "tuned" and "untuned", keeps the best; of the
    policy and its reference, where there is no such pair (weak-to-strong search, arXiv 2405.19262). The pair may have another
    tokenizer than the policy: then it reads text."""
    score = on.pair
    if score is None:
        names = PAIR if {*PAIR} & on.models.keys() else ("policy", "ref")
        score = PathRatio(*(Speaker(on.model(name), on.forest, on.longest) for name in names))
    draw = partial(filtered, top_k=top_k)
    chances = uniforms(on.seed, on.numbers, beams * branches, on.limits.tokens)
    sizes = {"width": beams, "branches": branches, "length": length}
    found = chunk_beam(on.policy, score, on.limits, draw, chances, **sizes)
    on.counted([score])
    return [answers[:n] for answers in found]


def blockwise(
    on: Heard, *, values: str = "value", branches: int = 6, length: int = 32, temperature: float = 1.0
) -> list[list[Answer]]:
    """Blocks of the policy's: of `branches` samples of `length` tokens the one that is worth most is gone on from.

    values: the names of value models and their weights, "value+brief=0.5" (blockwise controlled decoding, arXiv 2310.17022). A
    block that ends an answer is worth what its end is. As long as answers are, it is best-of-K by the value.
    """
    policy, named = on.model("policy"), composed(values)
    parts = [(weight, same_tokens(policy, on.model(name), name)) for name, weight in named.items()]
    value = PathValue(parts, on.forest, on.longest)
    chances = uniforms(on.seed, on.numbers, branches, on.limits.tokens)
    sizes = {"width": 1, "branches": branches, "length": length}
    found = chunk_beam(on.policy, value, on.limits, partial(filtered, temperature=temperature), chances, **sizes)
    on.counted([value])
    return found


def tree_searched(
    on: Heard,
    *,
    simulations: int = 32,
    top_k: int = 10,
    plausible: float = 0.1,
    exploration: float = 3.0,
    selection: Literal["puct", "ucb"] = "puct",
    backup: Literal["max", "mean", "soft"] = "max",
    prior: Literal["policy", "ref"] = "policy",
    leaf: Literal["implicit", "rollout"] = "implicit",
    chunk: int = 1,
) -> list[list[Answer]]:
    """The answer that Monte-Carlo tree search over log π/π_ref plays, among the policy's plausible tokens, with so many
    simulations before every action."""
    how = (selection, backup, prior, leaf)
    rules = Rules(simulations, top_k, exploration, *how, chunk, plausible, seed=on.seed)  # β = 1: it changes no choice
    return tree_search(on.policy, on.voice("ref"), on.limits, rules, numbers=on.numbers)


def realigned_sample(on: Heard, *, strength: float = 0.5, n: int = 1, temperature: float = 1.0) -> list[list[Answer]]:
    """Samples between the reference (0) and the policy (1), or beyond it, as if it had been trained at β/λ (DeRa)."""
    voice = realigned(on.policy, on.voice("ref"), strength)
    return sample(voice, on.limits, n=n, seed=on.seed, numbers=on.numbers, temperature=temperature)


def tuned_sample(on: Heard, *, strength: float = 1.0, n: int = 1, temperature: float = 1.0) -> list[list[Answer]]:
    """Samples of the policy, a large base, with the fine-tuning of a small pair, the models "tuned" and "untuned" (EFT)."""
    voice = tuned(on.policy, on.voice("tuned"), on.voice("untuned"), strength)
    return sample(voice, on.limits, n=n, seed=on.seed, numbers=on.numbers, temperature=temperature)


def guided(
    on: Heard, *, values: str = "value", strength: float = 1.0, top_k: int = 20, n: int = 1, temperature: float = 1.0
) -> list[list[Answer]]:
    """Samples of the policy, tilted by what each of its top_k tokens is worth, strength nats a reward: 1/β, for values at β.

    values: the names of value models and their weights, "value+brief=0.5" (value-augmented sampling, arXiv 2405.06639).
    """
    policy, named = on.model("policy"), composed(values)
    parts = [(weight, same_tokens(policy, on.model(name), name)) for name, weight in named.items()]
    voice = Guided(Speaker(policy, on.forest, on.longest), parts, on.longest, strength=strength, top_k=top_k)
    found = sample(voice, on.limits, n=n, seed=on.seed, numbers=on.numbers, temperature=temperature)
    on.counted([voice])
    return found


def _samples(on: Heard, samples: int, temperature: float) -> list[list[Answer]]:
    return sample(on.policy, on.limits, n=samples, seed=on.seed, numbers=on.numbers, temperature=temperature)


def _logp(answers: Sequence[Answer]) -> Tensor:
    return torch.tensor([each.logp for each in answers], dtype=torch.float64)


def _ratio(on: Heard, answers: Sequence[Answer]) -> Tensor:
    logp, ref_logp = on.logps(answers)
    return logp - ref_logp


def _lengths(answers: Sequence[Answer]) -> Tensor:
    return torch.tensor([len(each.tokens) for each in answers])


DECODERS: Mapping[str, Decoder] = {
    "greedy": greedy,
    "sample": sampled,
    "beam": likelihood_beam,
    "beam_logratio": log_ratio_beam,
    "best_of_n": best_of_n,
    "best_of_n_norm": best_of_n_norm,
    "best_of_n_likelihood": best_of_n_likelihood,
    "best_of_n_reward": best_of_n_reward,
    "best_of_n_judged": best_of_n_judged,
    "best_of_n_random": best_of_n_random,
    "rejection": rejection,
    "chunk_beam": chunked,
    "blockwise": blockwise,
    "mcts": tree_searched,
    "realigned": realigned_sample,
    "tuned": tuned_sample,
    "guided": guided,
}
