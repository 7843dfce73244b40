"""What a decoder is given: prompts, the models that speak behind them, where answers end, and a seed."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from softq.lm.growing import Growing
from softq.lm.score import LanguageModel
from softq.records import Tokens
from softq.search.answer import Answer, Limits
from softq.search.best_of import Score
from softq.search.chunks import PathScore
from softq.search.scoring import logps, prompts_of, rewards, tokens_of
from softq.search.voice import Speaker, Voice

ASKED_FOR = {"ref": "a reference: give --reference MODEL", "value": "a value: give --value MODEL"}
PAIR = ("tuned", "untuned")
"""A small pair, whose log-ratio scores what another model says."""


class Heard:
    """Prompts, and the models that speak behind them: what a decoder is given. A model that no decoder asks for is not run.

    models: "policy", and "ref" and others where there are any. pair: what scores paths by "tuned" and "untuned", where these read
    text in tokens of their own; then they are not among the models. numbers [P]: of the prompts among all that are searched for,
    so that what is drawn for one does not depend on which others stand beside it. judge: who judges answers, by a name.
    """

    def __init__(
        self,
        models: Mapping[str, LanguageModel],
        prompts: Sequence[Tensor],
        limits: Limits,
        *,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        pair: PathScore | None = None,
        judge: Callable[[str], Score] | None = None,
    ) -> None:
        self.models, self.limits, self.seed, self.pair = models, limits, seed, pair
        self._judge = judge
        self.forest = Growing(prompts)
        self.numbers = torch.arange(len(prompts)) if numbers is None else torch.tensor(numbers)
        self.longest = max(map(len, prompts)) + limits.tokens
        self._voices: dict[str, Speaker] = {}
        self._scored = 0

    @cached_property
    def policy(self) -> Voice:
        """The voice that is searched."""
        return self.voice("policy")

    def voice(self, name: str) -> Voice:
        """A model by its name. ValueError where there is none."""
        if name not in self._voices:
            self._voices[name] = Speaker(self.model(name), self.forest, self.longest)
        return self._voices[name]

    @property
    def evaluations(self) -> int:
        """Token-evaluations of all models so far, prompts left out."""
        return self._scored + sum(voice.evaluations for voice in self._voices.values())

    def counted(self, asked: Sequence[Voice | PathScore]) -> None:
        """Count what voices and scores of a decoder's own cost."""
        self._scored += sum(each.evaluations for each in asked)

    def judge(self, name: str) -> Score:
        """Who judges answers, by a name. ValueError where there is none."""
        if self._judge is None:
            raise ValueError(f"nobody is here to judge answers by {name!r}: give Heard a judge")
        return self._judge(name)

    def logps(self, answers: Sequence[Answer]) -> tuple[Tensor, Tensor]:
        """Σ log π and Σ log π_ref of answers [n], nats, scored whole."""
        self.model("ref")
        logp, ref_logp = logps(self.models, self._rows(answers, 2))
        assert ref_logp is not None
        return logp, ref_logp

    def rewards(self, answers: Sequence[Answer]) -> Tensor:
        """What the model "reward" says of answers, [n]."""
        return rewards(self.model("reward"), self._rows(answers, 1))

    def model(self, name: str) -> LanguageModel:
        """A model by its name. ValueError where there is none."""
        if name not in self.models and name in PAIR and self.pair is not None:
            raise ValueError(
                f"the model {name!r} does not have the policy's tokens, which this decoder adds up: give one that does"
            )
        if name not in self.models:
            given = ASKED_FOR.get(name, f"a model {name!r}: give --models {name}=MODEL")
            raise ValueError(f"this decoder needs {given}")
        return self.models[name]

    def _rows(self, answers: Sequence[Answer], models: int) -> Tokens:
        behind = self.forest.above(torch.tensor([each.node for each in answers]))
        self._scored += models * len(behind)
        return tokens_of(prompts_of(self.forest), answers)
