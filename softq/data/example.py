"""The records of text data: a prompt and its completions, and what is known about them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Message = Mapping[str, Any]  # {"role": ..., "content": ...} and whatever else the chat template reads
Text = str | Sequence[Message]


class Example(NamedTuple):
    """One data record as text: a prompt and its completions, all strings or all lists of messages.

    pairs: completions (chosen, rejected). groups: K of them. labels and rows: one. prompts: none. steps: one a step.
    """

    where: str
    prompt: Text
    completions: tuple[Text, ...]
    columns: Mapping[str, tuple[float, ...]] = {}  # numbers by name, as records.COLUMNS: one, or one per completion
    template_kwargs: Mapping[str, Any] = {}  # the row's chat_template_kwargs, and its tools under "tools"
    other: Mapping[str, Any] = {}  # further fields, which nobody reads


def agreement(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def characters(text: Text) -> int:
    """How long a text is; of messages, their contents."""
    return len(text) if isinstance(text, str) else sum(len(message.get("content") or "") for message in text)
