"""Chat messages to text: a template's render, cut into the prompt, what the policy said, and what stands between."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from softq.data.example import Message, agreement
from softq.data.rows import DataError, Unusable

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\n' }}
{%- endif -%}
"""

MARK = "\ue000words\ue000"  # stands for a content; private-use characters, so that no template trims or parses it


class Script(NamedTuple):
    """A prompt and its completion as text: prompt + between[0] + said[0] + between[1] + ... + said[-1] + between[-1].

    Only `said` are the policy's words; the template puts between[0] before them and between[-1] after them.
    """

    prompt: str
    said: tuple[str, ...]
    between: tuple[str, ...]  # one longer than said
    others: str = ""  # the end of between[-1]: what others say after the policy's last words


@dataclass(frozen=True)
class Template:
    """A chat template at work on one data record."""

    tokenizer: PreTrainedTokenizerBase
    source: str | None  # None: the tokenizer's own
    options: Mapping[str, Any]
    where: str
    _rendered: dict[str, str] = field(default_factory=dict, repr=False)  # a mark stands in each completion alike

    def scripts(self, prompt: Sequence[Message], completions: Sequence[Sequence[Message]]) -> list[Script]:
        """One script per completion, with one prompt text for all.

        The prompt ends with the generation prompt where every render goes on from it, else with its last message.
        """
        if self.source is None and self.tokenizer.chat_template is None:
            advice = "the tokenizer has none; pass --chat-template FILE|chatml"
            raise DataError(f"{self.where}: messages need a chat template and {advice}")
        if not completions:
            return [Script(self._render(prompt, generation=True), (), ("",))]
        renders = [self._render([*prompt, *completion]) for completion in completions]
        for start in (self._render(prompt, generation=True), self._render(prompt)):
            if all(full.startswith(start) for full in renders):
                pairs = zip(renders, completions, strict=True)
                return [self._script(full, start, prompt, completion) for full, completion in pairs]
        raise Unusable("template_mismatch", "the render of a whole dialogue does not begin with that of its prompt")

    def tokens(self, messages: Sequence[Message], generation: bool = False) -> tuple[int, ...]:
        """The ids of messages by the tokenizer's own method, in one go."""
        options = {**self.options, "tokenize": True, "return_dict": False, "add_generation_prompt": generation}
        ids: Any = self.tokenizer.apply_chat_template([dict(m) for m in messages], chat_template=self.source, **options)
        return tuple(ids)

    def _script(self, full: str, start: str, prompt: Sequence[Message], completion: Sequence[Message]) -> Script:
        messages = [*prompt, *completion]
        speaks = [i for i in range(len(prompt), len(messages)) if messages[i]["role"] == "assistant"]
        if not speaks:
            raise Unusable("empty_completion", "a completion has no message of the assistant; expected one or more")
        at, said, between = len(start), [], []
        for i in speaks:
            # what the generation prompt says is not said again
            begin, end = (max(at, place) for place in self._span(full, messages, i))
            said.append(full[begin:end])
            between.append(full[at:begin])
            at = end
        own = self._closing(messages[: speaks[-1] + 1]) if speaks[-1] + 1 < len(messages) else full[at:]
        others = full[at + agreement(full[at:], own) :]
        return Script(start, tuple(said), (*between, full[at:]), others)

    def _closing(self, messages: Sequence[Message]) -> str:
        """What the template puts behind the last of these messages."""
        full = self._render(messages)
        return full[self._span(full, messages, len(messages) - 1)[1] :]

    def _span(self, full: str, messages: Sequence[Message], i: int) -> tuple[int, int]:
        """Where in the render the i-th message's own words begin and end.

        What the template adds on either side is seen by rendering a mark instead of the content. An answer with thoughts
        of its own replaces the empty think block that the mark gets; then its words begin at the generation prompt.
        """
        marked = [*messages[:i], {"role": messages[i]["role"], "content": MARK}, *messages[i + 1 :]]
        before, _, after = self._render(marked).partition(MARK)
        end = len(full) - len(after)
        content = _squeezed(messages[i].get("content") or "")
        for again in (False, True):
            head = self._render(messages[:i], generation=True) if again else before
            whole = _squeezed(full[:end]).endswith(content) or content in _squeezed(full[len(head) : end])
            if whole and full.startswith(head) and full.endswith(after) and len(head) <= end:
                return len(head), end
        raise Unusable("template_mismatch", "the template shows an answer otherwise than it was given")

    def _render(self, messages: Sequence[Message], generation: bool = False) -> str:
        key = repr((messages, generation))
        if key not in self._rendered:
            self._rendered[key] = self._fresh(messages, generation)
        return self._rendered[key]

    def _fresh(self, messages: Sequence[Message], generation: bool) -> str:
        options = {**self.options, "tokenize": False, "add_generation_prompt": generation}
        chat = [dict(message) for message in messages]
        try:
            return str(self.tokenizer.apply_chat_template(chat, chat_template=self.source, **options))
        except (TemplateError, TypeError, ValueError) as error:
            message = " ".join(str(error).split())
            raise Unusable("template_refuses", f"the chat template refuses the messages: {message}") from error


def _squeezed(text: str) -> str:
    """The text without white space, which templates trim as they like."""
    return "".join(text.split())
