"""One value of a row with its name, so that reading it either gives the type that was asked for or says what came."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from softq.data.rows import DataError, came

Message = Mapping[str, Any]  # {"role": ..., "content": ...} and whatever else the chat template reads
Text = str | Sequence[Message]

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Field(NamedTuple):
    """A value and its name.

    `Field("a.jsonl:3", "", row).member("scores").items()[1].number()` is row["scores"][1] as a float, or the error
    `a.jsonl:3: field 'scores[1]' is a string; expected a number`.
    """

    where: str
    name: str  # "" for the row itself, else "chosen", "chosen[1].content", ...
    value: Any

    def member(self, name: str) -> "Field":
        """The field of that name of an object."""
        fields, path = self.object(), f"{self.name}.{name}" if self.name else name
        if name not in fields:
            present = ", ".join(fields) or "nothing"
            raise DataError(f"{self.where}: field '{path}' is missing; {self.name or 'the row'} has {present}")
        return Field(self.where, path, fields[name])

    def items(self, of: str = "a list") -> list["Field"]:
        """The elements of a list."""
        if not isinstance(self.value, list):
            raise self.wrong(of)
        return [Field(self.where, f"{self.name}[{i}]", value) for i, value in enumerate(self.value)]

    def string(self) -> str:
        """The value, a string."""
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        return self.value

    def number(self) -> float:
        """The value, a finite number."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.wrong("a number")
        if not abs(self.value) <= sys.float_info.max:  # neither nan, nor inf, nor an integer beyond every float
            raise DataError(f"{self.where}: field '{self.name}' is not finite; expected a finite number")
        return float(self.value)

    def object(self) -> Mapping[str, Any]:
        """The value, an object with named fields."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return self.value

    def prompt(self) -> Text:
        """A prompt: a string, or a list of messages, which may be empty."""
        if not isinstance(self.value, str | list):
            raise self.wrong("a string or a list of messages")
        return self.value if isinstance(self.value, str) else [item.message() for item in self.items()]

    def completion(self, prompt: Text) -> Text:
        """A completion in the form of its prompt: a string after a string, messages (or one alone) after messages."""
        if not isinstance(self.value, str | list | dict):
            raise self.wrong("a string or a list of messages")
        if isinstance(prompt, str) != isinstance(self.value, str):
            raise self.wrong(f"{form(prompt)}, as the prompt is")
        return self.value if isinstance(self.value, str) else self.messages()

    def messages(self) -> list[Message]:
        """Messages, one or more; one alone may stand without its list."""
        if isinstance(self.value, dict):
            return [self.message()]
        messages = [item.message() for item in self.items("a list of messages")]
        if not messages:
            raise DataError(f"{self.where}: field '{self.name}' is an empty list; expected one message or more")
        return messages

    def message(self) -> Message:
        """A message as it is, with a role and a content; beside tool calls the content may be missing."""
        self.member("role").string()
        calls = bool(self.value.get("tool_calls"))
        if not calls or self.value.get("content") is not None:
            self.member("content").string()
        return self.value

    def said(self) -> Message:
        """A ShareGPT message {from, value} as {role, content}."""
        speaker = self.member("from").string()
        if speaker not in SPEAKERS:
            came = f"field '{self.name}.from' is {speaker!r}"
            raise DataError(f"{self.where}: {came}; expected one of {', '.join(SPEAKERS)}")
        return {"role": SPEAKERS[speaker], "content": self.member("value").string()}

    def wrong(self, expected: str) -> DataError:
        """The value has the wrong type."""
        return DataError(f"{self.where}: field '{self.name}' is {came(self.value)}; expected {expected}")


def form(text: Text) -> str:
    """Which of the two forms a text has, for messages."""
    return "a string" if isinstance(text, str) else "a list of messages"
