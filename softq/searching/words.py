"""Tokens that were found, as text, and the strings that end an answer."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

MARGIN = 8  # tokens that are looked at beside those that a string can be made of
BYTES = 4  # of a character, at most: as many tokens can make it


def decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[int]], str]:
    """ids -> text, special tokens with it."""
    return lambda ids: str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def stopped(decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> Callable[[Sequence[int]], bool] | None:
    """Whether one of these strings is in an answer, asked of its tokens after each; None without any.

    Only the last tokens are looked at, as many as the longest string can have: before them it would have been found before.
    """
    if not stops:
        return None
    if not all(stops):
        raise ValueError("--stop '': expected a text that ends an answer")
    reach = BYTES * max(map(len, stops)) + MARGIN
    return lambda tokens: any(stop in decode(tokens[-reach:]) for stop in stops)


def completion(
    decode: Callable[[Sequence[int]], str],
    before: int,
    tokens: Sequence[int],
    ends: frozenset[int],
    stops: Sequence[str],
) -> str:
    """What an answer says behind the token `before`: without the token that ends it, and up to the first stop string."""
    said = tokens[:-1] if tokens and tokens[-1] in ends else tokens
    head, whole = decode((before,)), decode((before, *said))
    text = whole[len(head) :] if whole.startswith(head) else decode(said)
    return text[: min([len(text), *(at for at in map(text.find, stops) if at >= 0)])]
