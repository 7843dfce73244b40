"""One value of a row with its name, so that reading it either gives the type that was asked for or says what came."""

import sys
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from softq.data.example import Message, Text
from softq.data.json_rows import decode
from softq.data.rows import Unusable, came

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "function_call": "assistant",
}
"""What ShareGPT and its relatives call a speaker -> the role that chat templates know."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "model")
TRUTH = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}  # 1 and 0 equal True and False


class Field(NamedTuple):
    """A value and its name.

    `Field("", row).member("scores").items()[1].number()` is row["scores"][1] as a float, or the `Unusable` row
    "field 'scores[1]' is a string; expected a number".
    """

    name: str  # "" for the row itself, else "chosen", "chosen[1].content", ...
    value: Any

    def member(self, name: str) -> "Field":
        """The field of that name of an object."""
        fields, path = self.object(), f"{self.name}.{name}" if self.name else name
        if name not in fields:
            raise Unusable(
                "missing_field", f"field '{path}' is missing; {self.name or 'the row'} has {_has(fields, name)}", path
            )
        return Field(path, fields[name])

    def items(self, of: str = "a list") -> list["Field"]:
        """The elements of a list."""
        if not isinstance(self.value, list):
            raise self.wrong(of)
        return [Field(f"{self.name}[{i}]", value) for i, value in enumerate(self.value)]

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
            raise Unusable("bad_type", f"field '{self.name}' is not finite; expected a finite number", self.name)
        return float(self.value)

    def numbers(self) -> tuple[float, ...]:
        """One number, or a list of them."""
        return tuple(item.number() for item in self.items()) if isinstance(self.value, list) else (self.number(),)

    def truth(self) -> bool:
        """The value, true or false; 0, 1 and the words are as good."""
        value = self.value.lower() if isinstance(self.value, str) else self.value
        if not isinstance(value, bool | int | float | str) or value not in TRUTH:
            raise self.wrong("true or false")
        return TRUTH[value]

    def object(self) -> Mapping[str, Any]:
        """The value, an object with named fields."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return self.value

    def parsed(self) -> "Field":
        """The value, where it is JSON in a string."""
        if not isinstance(self.value, str):
            return self
        try:
            return Field(self.name, decode(self.value))
        except Unusable as fault:
            if fault.reason == "malformed_json":
                raise self.wrong("JSON, or a string that holds JSON") from None
            raise Unusable(fault.reason, fault.message, self.name) from fault

    def prompt(self) -> Text:
        """A prompt: a string, or a list of messages."""
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
            raise Unusable("empty_completion", f"field '{self.name}' is an empty list", self.name)
        return messages

    def message(self) -> Message:
        """One message with a role and content; content may be absent where there are tool calls. Nulls are left out."""
        if not isinstance(self.value, dict):
            raise self.wrong("a message with role and content")
        if "role" not in self.value and "from" in self.value:
            return self.said()
        role = self.member("role").string()
        if role not in ROLES:
            raise self._unknown(f"{self.name}.role", role, ROLES)
        content = None
        if not self.value.get("tool_calls") or self.value.get("content") is not None:
            content = self.member("content")._content()
        present = {key: value for key, value in self.value.items() if value is not None}
        return {**present, "role": role, "content": content}

    def said(self) -> Message:
        """A ShareGPT message {from, value} as {role, content}."""
        if not isinstance(self.value, dict):
            raise self.wrong("a message with 'from' and 'value'")
        if "from" not in self.value and "role" in self.value:
            return self.message()
        speaker = self.member("from").string()
        if speaker not in SPEAKERS:
            raise self._unknown(f"{self.name}.from", speaker, tuple(SPEAKERS))
        return {"role": SPEAKERS[speaker], "content": self.member("value").string()}

    def wrong(self, expected: str) -> Unusable:
        """The value has the wrong type."""
        return Unusable("bad_type", f"field '{self.name}' is {came(self.value)}; expected {expected}", self.name)

    def _content(self) -> str:
        """A string, or parts {type: text, text: ...}, joined."""
        if not isinstance(self.value, list):
            return self.string()
        parts = []
        for part in self.items():
            kind = part.member("type").string()
            if kind != "text":
                message = f"field '{part.name}' is of type {kind[:40]!r}; expected text"
                raise Unusable("unsupported_content", message, part.name)
            parts.append(part.member("text").string())
        return "".join(parts)

    @staticmethod
    def _unknown(name: str, role: str, known: tuple[str, ...]) -> Unusable:
        near = get_close_matches(role.lower(), known, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
        return Unusable("unknown_role", f"field '{name}' is {role[:40]!r}; {advice}", name)


def form(text: Text) -> str:
    """Which of the two forms a text has, for messages."""
    return "a string" if isinstance(text, str) else "a list of messages"


def _has(fields: Mapping[str, Any], missing: str) -> str:
    """What an object has in place of a missing field, shortly, and what may be meant."""
    names = ", ".join(name[:40] for name in list(fields)[:12]) + (", ..." if len(fields) > 12 else "") or "nothing"
    near = get_close_matches(missing, fields, n=1)
    return f"{names}; did you mean {near[0]}? Then --rename {missing}={near[0]}" if near else names
