"""What each token adds to a text: the pieces of a completion, which together are the completion."""

from collections.abc import Callable, Sequence

LOST = "\ufffd"  # what decoders write for bytes that are no character yet
KEPT = 2**18  # texts that are remembered: what is known of them must not grow with the data
LONGEST = 8  # tokens that may make one character before what they are is taken for damaged bytes


class Pieces:
    """Splits ids into the text that each of them adds, by a tokenizer's `decode` (ids -> text).

    Each token is decoded behind the one before it, because many tokenizers write the first token of a text otherwise. A
    character of several tokens is given whole to the first of them, and "" to the others.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self.decode = decode
        self._known: dict[tuple[int, ...], str] = {}
        self._heads: dict[int, str] = {}  # of a token alone: a vocabulary at most

    def of(self, before: int, ids: Sequence[int]) -> list[str]:
        """The piece of each of `ids`, which follow the token `before`."""
        found: list[str] = []
        open_at, last = 0, before
        for n in range(len(ids)):
            text = self._behind(last, tuple(ids[open_at : n + 1]))
            if LOST in text and n + 1 < len(ids) and n + 1 - open_at < LONGEST:
                continue
            found += [text, *[""] * (n - open_at)]
            open_at, last = n + 1, ids[n]
        return found

    def alone(self, before: int, token: int) -> str:
        """What one token would add behind another."""
        return self._behind(before, (token,))

    def _behind(self, before: int, ids: tuple[int, ...]) -> str:
        found = self._known.get((before, *ids))
        if found is None:
            if before not in self._heads:
                self._heads[before] = self.decode((before,))
            if len(self._known) >= KEPT:
                self._known.clear()
            whole, head = self.decode((before, *ids)), self._heads[before]
            found = self._known[before, *ids] = whole[len(head) :] if whole.startswith(head) else self.decode(ids)
        return found
