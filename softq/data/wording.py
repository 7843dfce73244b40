"""What stands in a text: its script, chat markers, unbalanced think blocks, and a prompt that leaks into an answer."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from softq.data.example import Text

LETTERS = 10  # a text with fewer is in no script
LEAK = 20  # a shorter prompt may well stand in an answer
TURNS: Mapping[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama2": ("[INST]", "[/INST]", "<<SYS>>"),
    "llama3": ("<|start_header_id|>", "<|eot_id|>", "<|begin_of_text|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "zephyr": ("<|user|>", "<|assistant|>", "<|system|>"),
    "deepseek": ("<｜User｜>", "<｜Assistant｜>"),
    "hh": ("\n\nHuman:", "\n\nAssistant:"),
    "alpaca": ("### Instruction:", "### Response:"),
}
"""What begins and ends a turn in the templates of each family."""

ENDS = ("<s>", "</s>", "<|endoftext|>", "<|end_of_text|>")
"""What begins and ends a text in several families."""

SCRIPTS = {
    **dict.fromkeys(("CJK", "IDEOGRAPHIC"), "Han"),
    **dict.fromkeys(("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"), "Kana"),
    **{
        name: name.title()
        for name in "LATIN CYRILLIC GREEK ARMENIAN GEORGIAN ARABIC HEBREW HANGUL THAI LAO KHMER MYANMAR ETHIOPIC "
        "DEVANAGARI BENGALI GUJARATI GURMUKHI TAMIL TELUGU KANNADA MALAYALAM SINHALA".split()
    },
}
"""The first word of a letter's Unicode name -> script."""

_HEADER = re.compile(r"\s*(?:human|user|assistant|system)\s?:", re.IGNORECASE)
_UNFILLED = re.compile(r"\{\{-?\s*[A-Za-z_][\w.]*\s*-?\}\}|\{%-?\s*[a-z]+ [^%]*%\}")
_THINK = re.compile(r"</?think>")
_ASCII_REST = bytes(set(range(256)) - {*range(65, 91), *range(97, 123)})


def said(text: Text) -> str:
    """The words of a text: a string as it is; of messages the contents and the tool calls, a line each."""
    if isinstance(text, str):
        return text
    parts = (part for message in text for part in (message.get("content"), message.get("tool_calls")) if part)
    return "\n".join(part if isinstance(part, str) else json.dumps(part, default=str) for part in parts)


def identity(text: Text) -> bytes:
    """What two equal texts have in common: the string, or everything that is in the messages."""
    if isinstance(text, str):
        return text.encode("utf-8", "surrogatepass")
    return json.dumps([dict(message) for message in text], sort_keys=True, default=str).encode()


def question(prompt: Text) -> str:
    """What was asked last: the last user message, or the last human turn of a string, or all of it."""
    if not isinstance(prompt, str):
        return next((said([message]) for message in reversed(prompt) if message.get("role") == "user"), "").strip()
    return prompt.rpartition("\n\nHuman:")[2].partition("\n\nAssistant:")[0].strip()


def leak(asked: str, answer: str) -> str:
    """How an answer repeats its prompt: "begins" with it, "contains" it, has a role "header", or ""."""
    if _HEADER.match(answer):
        return "header"
    if len(asked) < LEAK or asked not in answer:
        return ""
    return "begins" if answer.lstrip().startswith(asked) else "contains"


def markers(text: str) -> list[str]:
    """The families of templates whose markers stand in a text; "ends" for tokens that several of them share."""
    found = [family for family, signs in TURNS.items() if any(sign in text for sign in signs)]
    return found + (["ends"] if any(sign in text for sign in ENDS) else [])


def unfilled(text: str) -> bool:
    """Whether {{name}} or {% if … %} stands in a text, a template that nobody filled in."""
    return "{" in text and _UNFILLED.search(text) is not None


def balanced(text: str) -> bool:
    """Whether each <think> is closed before the next, and nothing is closed that was not open."""
    signs = _THINK.findall(text)
    return signs == ["<think>", "</think>"] * (len(signs) // 2)


def letters(text: str) -> Counter[str]:
    """How many letters of each script a text has; Han among kana is Japanese, and counts as Kana."""
    if text.isascii():
        n = len(text.encode().translate(None, _ASCII_REST))
        return Counter({"Latin": n} if n else {})
    counts: Counter[str] = Counter()
    for character, n in Counter(text).items():
        if character.isalpha():
            counts[_script(character)] += n
    if counts["Kana"] * 10 >= counts["Han"] and counts["Kana"]:
        counts["Kana"] += counts.pop("Han", 0)
    return +counts


def script(counts: Mapping[str, int]) -> str:
    """The script of most letters, or "" where there are too few to tell."""
    if sum(counts.values()) < LETTERS:
        return ""
    return max(sorted(counts), key=lambda name: counts[name])


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str:
    first, _, rest = unicodedata.name(character, "").partition(" ")
    return SCRIPTS.get(rest.split(" ")[0] if first in {"FULLWIDTH", "HALFWIDTH"} else first, "other")
