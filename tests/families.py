"""Tokenizers of each common kind, trained on the spot, and chat templates of each common kind, with what they say.

A `Chat` holds a Jinja template and, in Python, what it writes around a message: an account of a render that owes nothing
to the code under test.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXT = """\
The sky is blue. The sky is black, and the night is long; is it not? Yes, it is: 12 stars, 345 lamps, 6789 miles.
"I can't say," she said, "that we've met -- but you're welcome!" Don't go... they'll come at 10:45 (or 22:45).
People write a prompt and two answers, a better and a worse one. The better answer says what is asked and then it stops.
Preferences are pairs; a pair is a prompt, a chosen answer and a rejected answer. The price is $5, or $1,234.56 in all.
user assistant system model think Question: Answer: Human: Assistant:
def area(radius: float) -> float:
    \"\"\"The area of a circle.\"\"\"
    if radius < 0:
        raise ValueError(f"radius is {radius!r}")
    return 3.14159 * radius ** 2

for i in range(10):
\tprint(i, end="\\n")    # four spaces before
\t\tif (i % 2 == 0) { x[i] += 1; } else { y->z = "a\\tb"; }

{"name": "lookup", "arguments": {"city": "Paris", "days": [1, 2, 3]}}
{"role": "user", "content": null}
# A heading

- one item
- another item

1. First
2. Second


Der Fluss fließt über die Brücke, und die Vögel singen; das Mädchen hört zu. Straße, Größe, Äpfel, Öl, Übung.
L'été dernier, nous étions à la plage; où êtes-vous allés? Ça va très bien, merci. Le cœur naïf, Noël.
El niño comió una manzana; ¿dónde está mañana? ¡Qué sorpresa! Según él, sí.
İstanbul'da güneşli bir gün; ılık çay içtik. Žluťoučký kůň úpěl ďábelské ódy. Zażółć gęślą jaźń.
Небо синее, а ночь длинная. Река течёт к морю, и птицы поют на рассвете. Да, это так. Нет, не так.
Ο ουρανός είναι γαλάζιος και η νύχτα είναι μεγάλη.
天空是蓝色的。夜晚很长。河流流向大海,鸟儿在黎明歌唱。你好,世界!
空は青い。夜は長い。川は海へ流れ、鳥は夜明けに歌う。カタカナとひらがな。
하늘은 파랗다. 밤은 길다. 강은 바다로 흐르고 새는 새벽에 노래한다.
السماء زرقاء والليل طويل. النهر يجري إلى البحر.
השמיים כחולים והלילה ארוך. הנהר זורם אל הים.
आसमान नीला है और रात लंबी है। नदी समुद्र की ओर बहती है।
ท้องฟ้าเป็นสีฟ้าและกลางคืนยาวนาน
🙂 🙂🙂 👍 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷 ❤️ ✨ → ∑ ≤ ½ ² € ﬁ … – — “ ” ‘ ’
"""

PLAIN = ["<bos>", "<eos>", "<unk>", "<pad>", "[CLS]", "[SEP]", "[UNK]", "</s>", "<s>"]
MARKS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
]
SPECIAL = PLAIN + MARKS
THOUGHTS = ["<think>", "</think>"]  # added tokens that are not special, as Qwen3 has them

# Chat templates


class Piece(NamedTuple):
    """A stretch of a rendered chat; `ours` is what the policy chose, without its end token."""

    text: str
    ours: bool


@dataclass(frozen=True)
class Chat:
    """A chat template and what it writes: begin, turn after turn, and each turn head + words + end + tail."""

    source: str
    begin: str
    heads: Mapping[str, str]  # by role; a role that is not here is refused
    ends: Mapping[str, str]  # by role; of the assistant: its end token alone
    tail: str
    words: Callable[[str], str] = str  # a content as the template writes it
    thinks: bool = False
    bos: str | None = None

    @property
    def end(self) -> str:
        """The text of the token with which the template ends an answer."""
        return self.ends["assistant"]

    def pieces(self, messages: Sequence[Mapping[str, str]], known: int) -> list[Piece]:
        """The render of a chat whose first `known` messages are the prompt."""
        pieces = [Piece(self.begin, False)]
        asked = max(n for n, message in enumerate(messages) if message["role"] == "user")
        for n, message in enumerate(messages):
            role, words = message["role"], self.words(message["content"])
            head = self.heads[role]
            if self.thinks and role == "assistant":
                thought, words = _thought(message["content"])
                if asked < n == len(messages) - 1:
                    words, head = words.lstrip("\n"), head if thought else head + EMPTY
                    words = f"<think>\n{thought}\n</think>\n\n{words}" if thought else words
            ours = role == "assistant" and n >= known
            pieces += [Piece(head, False), Piece(words, ours), Piece(self.ends[role], False), Piece(self.tail, False)]
        return pieces


EMPTY = "<think>\n\n</think>\n\n"


def _thought(content: str) -> tuple[str, str]:
    """An answer's thought and the rest of it; none, or one that is empty, is as what the template adds."""
    if "</think>" not in content:
        return "", content
    before, after = content.split("</think>")[0], content.split("</think>")[-1]
    return before.split("<think>")[-1].strip("\n"), after.lstrip("\n")


CHATML = Chat(
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "",
    {role: f"<|im_start|>{role}\n" for role in ("system", "user", "assistant")},
    dict.fromkeys(("system", "user", "assistant"), "<|im_end|>"),
    "\n",
)

LLAMA3 = Chat(
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "<|begin_of_text|>",
    {role: f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("system", "user", "assistant")},
    dict.fromkeys(("system", "user", "assistant"), "<|eot_id|>"),
    "",
    str.strip,
    bos="<|begin_of_text|>",
)

ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate: user, assistant, user, ...') }}{% endif %}{% endfor %}"
)

GEMMA = Chat(
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + ALTERNATE
    + "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "<bos>",
    {"user": "<start_of_turn>user\n", "assistant": "<start_of_turn>model\n"},
    dict.fromkeys(("user", "assistant"), "<end_of_turn>"),
    "\n",
    str.strip,
    bos="<bos>",
)

MISTRAL = Chat(
    "{{ bos_token }}"
    + ALTERNATE
    + "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}",
    "<s>",
    {"user": "[INST] ", "assistant": " "},
    {"user": " [/INST]", "assistant": "</s>"},
    "",
    bos="<s>",
)

THINK = Chat(
    "{% set ns = namespace(asked=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set ns.said = m.content %}{% set ns.thought = '' %}"
    "{% if m.role == 'assistant' and '</think>' in m.content %}"
    "{% set ns.said = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set ns.thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last and loop.index0 > ns.asked %}"
    "{{ '<think>\n' + ns.thought + '\n</think>\n\n' + ns.said.lstrip('\n') }}"
    "{% else %}{{ ns.said }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
    "",
    CHATML.heads,
    CHATML.ends,
    "\n",
    thinks=True,
)

CHATS: Mapping[str, Chat | None] = {
    "strings": None,
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "think": THINK,
}

# Tokenizers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LINES = TEXT.splitlines(keepends=True)
CHUNKS = [TEXT[n : n + 400] for n in range(0, len(TEXT), 400)]


def _byte_level(pattern: str, ignore_merges: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CHUNKS, trainer)
    return tokenizer


def _byte_fallback(scheme: str, split: bool) -> Tokenizer:
    """A BPE over characters, with a token for each byte for those it does not know."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    known = [character for character, count in Counter(TEXT).items() if count > 2]
    lines = ["".join(character for character in line if character in known) for line in LINES]
    learner.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=500, show_progress=False))
    learnt = json.loads(learner.to_str())["model"]
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(learnt["vocab"], key=learnt["vocab"].get)]
    vocab = {name: n for n, name in enumerate(dict.fromkeys(names))}
    merges = [tuple(merge) for merge in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _words(tokenizer: Tokenizer) -> list[str]:
    """The text as the tokenizer's model gets it."""
    lines = [tokenizer.normalizer.normalize_str(line) for line in LINES]
    return [word for line in lines for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(line)]


def _common(pieces: Iterable[str], most: int) -> dict[str, int]:
    """The most common pieces with their counts. The library's own trainers of these two kinds depend on hash order."""
    counts = Counter(pieces)
    return {piece: counts[piece] for piece in sorted(counts, key=lambda piece: (-counts[piece], piece))[:most]}


def _unigram() -> Tokenizer:
    """Viterbi over pieces; compatibility characters and runs of spaces are normalised away."""
    tokenizer = Tokenizer(models.Unigram())
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    spans = (word[i:j] for word in _words(tokenizer) for i in range(len(word)) for j in range(i + 1, len(word) + 1))
    counts = _common((span for span in spans if len(span) < 12), 600)
    pieces = [("<unk>", 0.0), *((piece, math.log(n / sum(counts.values()))) for piece, n in counts.items())]
    tokenizer.model = models.Unigram(pieces, unk_id=0)
    return tokenizer


def _word_pieces() -> Tokenizer:
    """The longest known piece first; letters lose their case and accents, white space is gone."""
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    words = _words(tokenizer)
    letters = sorted({letter for word in words for letter in word})
    heads = _common((word[:n] for word in words for n in range(2, len(word) + 1)), 200)
    tails = _common((word[n:] for word in words for n in range(1, len(word) - 1)), 100)
    pieces = ["[UNK]", *letters, *heads, *(f"##{piece}" for piece in dict.fromkeys([*letters, *tails]))]
    vocab = {piece: n for n, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer.model = models.WordPiece(vocab, unk_token="[UNK]")
    return tokenizer


class Kind(NamedTuple):
    """A kind of tokenizer."""

    train: Callable[[], Tokenizer]
    exact: bool  # decodes to the very text it was given
    bos: str | None  # what it puts before a text by itself, where the template has no BOS of its own
    eos: str | None  # the EOS token; None: the token with which the template ends an answer
    after: str = ""  # what it puts after a text by itself


KINDS = {
    "gpt2": Kind(lambda: _byte_level(GPT2, ignore_merges=False), True, None, "<|endoftext|>"),
    "qwen": Kind(lambda: _byte_level(QWEN, ignore_merges=False), True, None, None),
    "llama3": Kind(lambda: _byte_level(QWEN, ignore_merges=True), True, "<|begin_of_text|>", "<|endoftext|>"),
    "llama2-first": Kind(lambda: _byte_fallback("first", split=True), False, "<s>", None),
    "llama2-always": Kind(lambda: _byte_fallback("always", split=False), False, "<s>", "<eos>"),
    "unigram": Kind(_unigram, False, None, None, "</s>"),
    "wordpiece": Kind(_word_pieces, False, "[CLS]", None, "[SEP]"),
}


class Family(NamedTuple):
    """A kind of tokenizer with a chat template's special tokens."""

    tokenizer: PreTrainedTokenizerFast
    chat: Chat | None  # None: prompts and completions are strings
    exact: bool
    bos: str  # what the tokenizer puts before a text by itself; "" for nothing
    eos: str

    def ids(self, text: str) -> list[int]:
        """The ids of a text; nothing is put around it."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def id(self, token: str) -> int:
        """The id of a special token."""
        return self.tokenizer.convert_tokens_to_ids(token)


@cache
def trained(kind: str) -> str:
    """A tokenizer of a kind as JSON, trained once per process."""
    tokenizer = KINDS[kind].train()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in THOUGHTS])
    return tokenizer.to_str()


@cache
def family(kind: str, template: str) -> Family:
    """A kind of tokenizer with a chat template; "strings" is without one."""
    _, exact, bos, eos, after = KINDS[kind]
    chat, tokenizer = CHATS[template], Tokenizer.from_str(trained(kind))
    before = (chat and chat.bos) or bos if bos else None
    eos = eos or (chat.end if chat else "</s>")
    around = [token for token in (before, after) if token]
    if around:
        single = " ".join(part for part in (before, "$A", after) if part)
        ids = [(token, tokenizer.token_to_id(token)) for token in around]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=(chat and chat.bos) or bos,
        eos_token=eos,
        pad_token="<pad>",
        chat_template=chat and chat.source,
    )
    return Family(wrapped, chat, exact, before or "", eos)
