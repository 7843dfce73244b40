"""What a world of text must offer: prompts, a crowd that answers them, and the truth about every token."""

from dataclasses import dataclass
from random import Random
from typing import Protocol

Words = tuple[str, ...]  # whole words and punctuation marks; joined by spaces they read as English; no special tokens


@dataclass(frozen=True)
class Injected:
    """An answer that is right but for one wrong name, so the place of the error is known.

    Right "The river is Silver Brook ." and wrong "The river is Silver Fork ." share a prefix:
    `span` is (3, 4), both words of the wrong name, and `first_wrong` is 4, where the answer leaves the truth.
    In "Cold Fork" `first_wrong` is 3, and takes the whole loss: behind a wrong prefix no stem is worse than another.
    """

    answer: Words
    span: tuple[int, ...]  # positions in `answer` of all words of the wrong name
    first_wrong: int  # the first of them that differs from the right name's word
    right: Words  # the right name, as many words as `span`

    def __post_init__(self) -> None:
        if not all(0 <= at < len(self.answer) for at in self.span):
            raise ValueError(f"span {self.span} leaves the answer of {len(self.answer)} words; give positions in it")
        if self.first_wrong not in self.span:
            raise ValueError(f"first_wrong is {self.first_wrong}, expected a position in span {self.span}")
        if len(self.right) != len(self.span):
            raise ValueError(f"right has {len(self.right)} words, span {len(self.span)}; give one for each")

    @property
    def corrected(self) -> Words:
        """The answer with the right name."""
        right = dict(zip(self.span, self.right, strict=True))
        return tuple(right.get(at, word) for at, word in enumerate(self.answer))


class World(Protocol):
    """A world is fixed when built; all later chance comes from the `rng` that the caller passes."""

    @property
    def name(self) -> str: ...

    @property
    def vocabulary(self) -> Words:
        """Every word of every prompt and answer, sorted, without special tokens."""
        ...

    @property
    def prompts(self) -> tuple[Words, ...]:
        """The prompts to train on; each fact is asked for in some of them."""
        ...

    @property
    def held_out(self) -> tuple[Words, ...]:
        """Prompts that share facts with `prompts`, but none of which is among them."""
        ...

    def demonstration(self, prompt: Words, rng: Random) -> Words:
        """An answer as the crowd writes it, errors included, without the end token."""
        ...

    def reward(self, prompt: Words, answer: Words) -> list[float]:
        """[len(answer) + 1]: the true reward of each word, then that of the end token after the last one.

        `answer` may be anything. A word's reward depends on nothing after it, so a cut answer, which
        has no end token, is served by dropping the last number.
        """
        ...

    def correct(self, prompt: Words, answer: Words) -> float:
        """The share, 0 to 1, of what was asked that the answer gets right."""
        ...

    def prefer(self, prompt: Words, first: Words, second: Words, rng: Random) -> bool:
        """Whether a noisy judge of whole answers takes `first`: a Bradley-Terry draw."""
        ...

    def injected(self, prompt: Words, rng: Random) -> Injected:
        """A right answer in the crowd's style with one of the crowd's own errors put in."""
        ...
