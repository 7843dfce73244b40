"""What a decoder listens to: log-probabilities of every next token, of one model or of several together.

A voice speaks in a forest that grows. Its logits are log-probabilities up to a constant a state, so they are only ever read
through a softmax: sums along a path are of normalised numbers, whatever they were made of.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from softq.lm.growing import Growing
from softq.lm.score import LanguageModel
from softq.lm.walk import Walk, walk


class Voice(Protocol):
    """What says how likely each next token is."""

    @property
    def forest(self) -> Growing:
        """Where it speaks."""
        ...

    @property
    def evaluations(self) -> int:
        """Token-evaluations so far: nodes behind prompts, once for each model that computed them."""
        ...

    def logits(self, nodes: Tensor) -> Tensor:
        """[n] nodes -> [n, V] in float32 or wider; once for each node."""
        ...

    def keep(self, nodes: Tensor) -> None:
        """Only these nodes will be gone on from."""
        ...


class Speaker:
    """One model."""

    def __init__(self, model: LanguageModel, forest: Growing, longest: int) -> None:
        """longest: tokens that a path may have, its prompt included."""
        self.model, self.forest = model, forest
        self._walk: Walk = walk(model, forest, longest)

    @property
    def evaluations(self) -> int:
        """See `Voice`."""
        return self._walk.evaluations

    def logits(self, nodes: Tensor) -> Tensor:
        """See `Voice`."""
        with torch.no_grad():
            return self.model.logits(self._walk.states(nodes))

    def keep(self, nodes: Tensor) -> None:
        """See `Voice`."""
        self._walk.keep(nodes)


class Mixed(NamedTuple):
    """Several voices that share a vocabulary, added up: Σ_i w_i log π_i(a|s), and the softmax of it."""

    parts: Sequence[tuple[float, Voice]]

    @property
    def forest(self) -> Growing:
        """See `Voice`."""
        return self.parts[0][1].forest

    @property
    def evaluations(self) -> int:
        """See `Voice`."""
        return sum(voice.evaluations for _, voice in self.parts)

    def logits(self, nodes: Tensor) -> Tensor:
        """See `Voice`. What a voice of positive weight forbids stays forbidden; a part of weight 0 is not asked."""
        said = [(weight, voice.logits(nodes).log_softmax(-1)) for weight, voice in self.parts if weight]
        total = sum(weight * logp for weight, logp in said)
        assert isinstance(total, Tensor)
        return total.nan_to_num(nan=-torch.inf, neginf=-torch.inf, posinf=-torch.inf)

    def keep(self, nodes: Tensor) -> None:
        """See `Voice`."""
        for _, voice in self.parts:
            voice.keep(nodes)


def realigned(policy: Voice, reference: Voice, strength: float) -> Mixed:
    """π_ref^(1-λ) π^λ a token: as if the policy had been trained at β/λ (DeRa, arXiv 2402.02992); λ above 1 goes beyond it.

    Exact for whole answers at λ = 0 and 1 alone: elsewhere the states' values are missing, and the lab says how much (`softq
    verify`).
    """
    return Mixed([(strength, policy), (1 - strength, reference)])


def tuned(base: Voice, expert: Voice, novice: Voice, strength: float) -> Mixed:
    """log π_base + α (log π_expert - log π_novice) a token: a small pair's fine-tuning on a large base.

    Emulated fine-tuning (arXiv 2310.12962), proxy tuning (arXiv 2401.08565). The three share a vocabulary.
    """
    return Mixed([(1.0, base), (strength, expert), (-strength, novice)])


class Rated(NamedTuple):
    """What every next token of n states adds to a score: `raw - minus`, and other numbers likewise, which are only kept."""

    raw: Tensor  # [n, V]
    minus: Tensor  # [n]
    columns: Mapping[str, tuple[Tensor, Tensor]]

    def of(self, row: Tensor, token: Tensor) -> dict[str, Tensor]:
        """Each column [m] of some tokens [m] of rows [m]."""
        return {name: raw[row, token] - minus[row] for name, (raw, minus) in self.columns.items()}


class Likelihood(NamedTuple):
    """Σ log π: of a policy that was trained, its reward less what the reference makes of it (arXiv 2404.12358, eq 13)."""

    voice: Voice
    falling = True
    """Whether a score can only fall along a path."""

    @property
    def voices(self) -> tuple[Voice, ...]:
        """All that speak."""
        return (self.voice,)

    def rated(self, nodes: Tensor) -> Rated:
        """[n] nodes -> what each next token adds."""
        logits = self.voice.logits(nodes)
        minus = logits.logsumexp(-1)
        return Rated(logits, minus, {"logp": (logits, minus)})


def plausible(logp: Tensor, share: float) -> Tensor:
    """[n, V] log-probabilities -> [n, V] bool: what is at least `share` as likely as its row's likeliest token; 0: all that is
    possible. ValueError for a share that is none."""
    if not 0 <= share <= 1:
        raise ValueError(f"plausible = {share}: expected from 0, any token, to 1, the likeliest alone")
    least = logp.amax(-1, keepdim=True) + torch.tensor(share).log()
    return (logp >= least) & (logp > -torch.inf)


class LogRatio(NamedTuple):
    """Σ log π/π_ref: of a policy that was trained, its reward alone.

    Where both forbid a token their ratio is noise, and its maximum is there: only tokens count whose probability under the policy
    is at least `plausible` of its likeliest token's.
    """

    voice: Voice
    reference: Voice
    plausible: float = 0.1
    falling = False

    @property
    def voices(self) -> tuple[Voice, ...]:
        """All that speak."""
        return self.voice, self.reference

    def rated(self, nodes: Tensor) -> Rated:
        """[n] nodes -> what each next token adds; -inf for what is not plausible."""
        logp, ref_logp = (voice.logits(nodes).log_softmax(-1) for voice in self.voices)
        ratio = torch.where(plausible(logp, self.plausible), logp - ref_logp, -torch.inf)
        nothing = torch.zeros_like(logp[:, 0])
        return Rated(ratio, nothing, {"logp": (logp, nothing), "ref_logp": (ref_logp, nothing)})
