"""A tokenizer as the encoder needs it: text to ids in the context of the text before it, and nothing by itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from transformers import PreTrainedTokenizerBase

from softq.data.rows import DataError, Unusable

Ids = tuple[int, ...]

ANCHORS = ("\n", "a", ":", "1")  # what a text is tokenised after, where its own context would merge with it


@dataclass(frozen=True)
class Vocabulary:
    """A fast tokenizer; none of its special tokens is ever added unasked."""

    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            name = type(self.tokenizer).__name__
            raise DataError(f"{name} is a slow tokenizer; expected a fast one; load it with AutoTokenizer")

    def after(self, before: str, text: str) -> tuple[Ids, bool]:
        """The ids of a text in the context of the text before it, and whether a token would straddle the boundary.

        Where one would, the text is tokenised after an anchor that it does not merge with: alone, it could get a space
        that it does not have. The ids count only if they decode, after those of `before`, to what the whole decodes to.
        """
        head, whole = self.ids(before), self.ids(before + text)
        if whole[: len(head)] == head:
            return whole[len(head) :], False
        for anchor in ANCHORS:
            ids = self.ids(anchor + text)[len(self.ids(anchor)) :]
            if self.text(head + ids) == self.text(whole):
                return ids, True
        raise Unusable("inseparable_boundary")

    def within(self, before: str, text: str, ids: Ids) -> int:
        """How many of the ids that follow `before` lie wholly within `text`, with which they begin.

        Their tokens need not be those of `text` alone: GPT-2 cuts two newlines in two when a word follows.
        """
        alone, _ = self.after(before, text)
        if ids[: len(alone)] == alone:
            return len(alone)
        head = self.ids(before)
        whole = self.text(head + alone)
        most = min(len(ids), len(text.encode()))  # a token holds one byte or more
        return max((n for n in range(most + 1) if whole.startswith(self.text(head + ids[:n]))), default=0)

    def text(self, ids: Sequence[int]) -> str:
        """Ids to text, special tokens and all."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    @cached_property
    def ids(self) -> Callable[[str], Ids]:
        """Text to ids. The last texts are remembered: a prompt comes again with each of its completions."""

        @lru_cache(maxsize=16)
        def ids(text: str) -> Ids:
            return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

        return ids

    @cached_property
    def bos(self) -> Ids:
        """What the tokenizer's own post-processing puts in front of a plain text."""
        text, full = self.ids("a"), tuple(self.tokenizer("a")["input_ids"])
        return full[: next(n for n in range(len(full)) if full[n : n + len(text)] == text)]

    @cached_property
    def eos(self) -> int | None:
        """The id of the EOS token, where there is one."""
        eos = self.tokenizer.eos_token_id
        return eos if isinstance(eos, int) else None

    @cached_property
    def added(self) -> frozenset[int]:
        """Special and other added tokens, among which a template's own end token is."""
        return frozenset(self.tokenizer.added_tokens_decoder)
