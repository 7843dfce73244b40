"""The decoders by name. A decoder's settings are its keywords: the command line reads them from the signature."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from softq.lm.growing import Growing
from softq.lm.score import LanguageModel
from softq.search.answer import Answer, Limits
from softq.search.beam import beam
from softq.search.sampling import sample
from softq.search.voice import Likelihood, LogRatio, Speaker, Voice


class Heard:
    """Prompts, and the models that speak behind them: what a decoder is given. A model that no decoder asks for is not run.

    models: "policy", and "ref" and others where there are any. numbers [P]: of the prompts among all that are searched for, so
    that what is drawn for one does not depend on which others stand beside it.
    """

    def __init__(
        self,
        models: Mapping[str, LanguageModel],
        prompts: Sequence[Tensor],
        limits: Limits,
        *,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self.models, self.limits, self.seed = models, limits, seed
        self.forest = Growing(prompts)
        self.numbers = torch.arange(len(prompts)) if numbers is None else torch.tensor(numbers)
        self.longest = max(map(len, prompts)) + limits.tokens
        self._voices: dict[str, Speaker] = {}

    @cached_property
    def policy(self) -> Voice:
        """The voice that is searched."""
        return self.voice("policy")

    def voice(self, name: str) -> Voice:
        """A model by its name. ValueError where there is none."""
        if name not in self._voices:
            if name not in self.models:
                what = "reference: give --reference MODEL" if name == "ref" else f"model {name!r}"
                raise ValueError(f"this decoder needs a {what}")
            self._voices[name] = Speaker(self.models[name], self.forest, self.longest)
        return self._voices[name]

    @property
    def evaluations(self) -> int:
        """Token-evaluations of all models so far, prompts left out."""
        return sum(voice.evaluations for voice in self._voices.values())


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


DECODERS: Mapping[str, Decoder] = {
    "greedy": greedy,
    "sample": sampled,
    "beam": likelihood_beam,
    "beam_logratio": log_ratio_beam,
}
