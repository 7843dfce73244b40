"""softq.data.encode over many kinds of tokenizers and chat templates, and texts of any kind.

What an encoded record must be is told here from the text alone: the pieces of a render, the tokenizer's own ids of the
whole text, and its offsets.
"""

import copy
from itertools import groupby

import pytest
from chats import assistant, pair, user
from depth import tries
from families import CHATS, KINDS, SPECIAL, THOUGHTS, Family, Piece, family
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softq.data.encode import Account, Encoded, Encoder
from softq.data.formats import Reading, parse_rows
from softq.data.rows import Row

ALL = [(kind, template) for kind in KINDS for template in CHATS]
REASONS = {
    *("empty_prompt", "empty_completion", "end_inside_completion", "equal_completions"),
    *(
        "too_long",
        "prompt_too_long",
        "inseparable_boundary",
        "template_mismatch",
        "template_refuses",
        "equal_after_cut",
    ),
}

# Texts

FRAGMENTS = [
    *(" ", "  ", "    ", "\n", "\n\n", "\n\n\n", "\t", "\r\n", " \n", "\n ", "\x00", "\x1c", "\x85", "\xa0"),
    *("\u200b", "\u2028", "\u3000", "\ufeff", "\u200f", "\ue000", "\ufffd", "\u0301", "\u20dd", "\u200d", "\ufe0f"),
    *("The sky is", " blue", " black", "user", "assistant", "model", "system", "think", "Question:", "'t", "ing"),
    *("Yes.", "no", ":", "?", "...", "$", "$5", "12", "345", "6789", "٣", "½", "１２", "x_i", "    return 3.14"),
    *(
        "e\u0301",
        "é",
        "ﬁ",
        "ﷺ",
        "İ",
        "ß",
        "Å",
        "ﬃ",
        "한",
        "\u1112\u1161\u11ab",
        "天空",
        "空は",
        "ก้",
        "हिं",
        "\U00020000",
    ),
    *("שלום", "السماء", "👩‍👩‍👧‍👦", "👍🏽", "🏳️‍🌈", "🇫🇷", "❤️", "👩", "🏽"),
    *("<|im_end", "|>", "<|", "<s", "</s", "[INST", "[/INST", "<eo", "<think", "</think", "<0x0A>", "<|eot_id>"),
    *("▁", "Ġ", "Ċ", "##ing", "{{ x }}", "{%", "<br>", "&amp;", '{"a": 1}', "```", "\\n"),
]
CHARACTERS = st.characters(exclude_categories=["Cs"])
LOOSE = st.one_of(st.sampled_from(FRAGMENTS), st.sampled_from(FRAGMENTS), st.text(CHARACTERS, max_size=4))


def marked(text: str) -> bool:
    """Whether a text spells an added token."""
    return any(token in text for token in SPECIAL + THOUGHTS)


PLAIN = st.lists(LOOSE, max_size=5).map("".join).filter(lambda text: not marked(text))


def spelling(of: Family):
    """Texts with added tokens in them, mostly those that end an answer, and mostly behind its words."""
    tokens = st.one_of(st.just(end(of)), st.sampled_from([of.eos, of.bos, *SPECIAL, *THOUGHTS]))
    behind = st.lists(tokens, max_size=2).map("".join)
    return st.builds(
        "{}{}{}{}".format, st.one_of(st.just(""), tokens), LOOSE, behind, st.sampled_from(["", "", " ", "x"])
    )


def brought(example) -> list[str]:
    """All that the record itself says."""
    parts = [example.prompt, *example.completions]
    return [text for part in parts for text in ([part] if isinstance(part, str) else [m["content"] for m in part])]


@st.composite
def dialogues(draw, chat, texts):
    """A prompt of one turn or more, and two completions of one turn or more, as the template allows."""
    asks, answers = texts.map(user), texts.map(assistant)
    prompt = [draw(asks)]
    last = answers
    if chat.thinks:
        last = st.one_of(answers, st.builds(lambda a, b: assistant(f"<think>\n{a}\n</think>\n\n{b}"), texts, texts))
    if draw(st.booleans()):
        prompt += [draw(last), draw(asks)]
    if "system" in chat.heads and draw(st.booleans()):
        prompt = [{"role": "system", "content": draw(texts)}, *prompt]
    options = draw(st.sampled_from([{}, {"tools": None}]))
    if chat.thinks:
        options = {**options, **draw(st.sampled_from([{}, {"enable_thinking": True}, {"enable_thinking": False}]))}
    completions = st.one_of(last.map(lambda said: [said]), st.tuples(answers, asks, last).map(list))
    return pair(prompt, draw(completions), draw(completions), template_kwargs=options)


def plain(template: str):
    """Pairs in which nothing spells an added token, nor does a prompt together with its completion."""
    if CHATS[template] is not None:
        return dialogues(CHATS[template], PLAIN)
    pairs = st.builds(pair, PLAIN.filter(len), PLAIN, PLAIN)
    return pairs.filter(lambda record: not any(marked(record.prompt + said) for said in record.completions))


def common(most: int):
    checks = [HealthCheck.filter_too_much, HealthCheck.too_slow]
    return settings(max_examples=tries(most), deadline=None, derandomize=True, suppress_health_check=checks)


def encoder(of: Family, ends: bool = True, limit: int = 100_000) -> Encoder:
    """The end ids hold the template's end token, or only the tokenizer's EOS."""
    return Encoder(of.tokenizer, frozenset([of.id(end(of))] if ends else []), limit)


def parsed(row):
    """A row as the formats read it."""
    _, examples = parse_rows([Row("a.jsonl:1", row)], Reading())
    return next(examples)


def end(of: Family) -> str:
    """The text of the token that ends an answer."""
    return of.chat.end if of.chat else of.eos


# What must come out


def pieces(of: Family, example, completion) -> list[Piece]:
    if of.chat is None:
        return [Piece(example.prompt, False), Piece(completion, True), Piece(of.eos, False)]
    return of.chat.pieces([*example.prompt, *completion], len(example.prompt))


def front(of: Family, prompt: str) -> list[int]:
    """The BOS that a string gets, unless it brings it along."""
    bos = [of.id(of.bos)] if of.bos else []
    return [] if of.ids(prompt)[:1] == bos else bos


def whole(of: Family, example, completion) -> list[int]:
    """The ids of prompt and completion as the tokenizer and its template give them, with the template's tail."""
    if of.chat is None:
        text = "".join(piece.text for piece in pieces(of, example, completion))
        return front(of, example.prompt) + of.ids(text)
    messages = [*example.prompt, *completion]
    return of.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **example.template_kwargs)


def authors(of: Family, parts: list[Piece]) -> list[set[bool]]:
    """Per token of the whole text, by its offsets: whether characters of the policy's are in it, and of others.

    Where a normaliser takes characters away, offsets are off by one, and those of white space tell nothing.
    """
    ours = []
    for n, (text, said) in enumerate(parts):
        ours += [said or (n > 0 and parts[n - 1].ours)] * len(text)
    text = "".join(piece.text for piece in parts)
    spans = of.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if of.tokenizer.backend_tokenizer.normalizer is None:
        return [set(ours[first:last]) for first, last in spans]
    return [set() if text[a:b].isspace() else set(ours[max(0, a - 1) : b + 1]) for a, b in spans]


def ended(of: Family, ids: list[int]) -> list[int]:
    """The ids up to the last end token: beyond it is the template's tail."""
    return ids[: len(ids) - ids[::-1].index(of.id(end(of)))]


def runs(completion) -> list[tuple[list[int], list[int]]]:
    """The completion's ids as stretches of context and chosen ids in turn."""
    action = [False, *completion.action.tolist()]
    marked_ids = zip(action, completion.ids.tolist(), strict=True)
    found = [[i for _, i in run] for _, run in groupby(marked_ids, lambda at: at[0])]
    assert len(found) % 2 == 0, "the last id is the policy's"
    return list(zip(found[::2], found[1::2], strict=True))


def same(outcome) -> object:
    """An outcome so that two can be compared."""
    result, account = outcome
    if isinstance(result, Encoded):
        result = [(c.ids.tolist(), c.action.tolist(), c.ended) for c in result.completions]
    return result, account


# Properties


def check_account(result, account) -> None:
    """No token is lost or counted twice."""
    assert account.read == account.scored + account.context + account.cut + account.template_tail
    assert account.cut == 0
    if isinstance(result, Encoded):
        assert account.finished == account.completions == len(result.completions)
        assert account.longest == max(len(c.ids) for c in result.completions)
        assert account.scored == sum(int(c.action.sum()) for c in result.completions)
        assert account.scored + account.context == sum(len(c.ids) for c in result.completions)
    else:
        assert result.reason in REASONS


def check_form(result, ends: frozenset[int]) -> None:
    """One prompt for all; each completion is closed by its only end token, and so is each turn before it."""
    firsts = [runs(completion)[0][0] for completion in result.completions]
    shortest = min(firsts, key=len)
    assert all(first[: len(shortest)] == shortest for first in firsts)
    for completion in result.completions:
        assert (completion.ids.dtype, completion.action.dtype) == ("int64", "bool")
        assert len(completion.action) == len(completion.ids) - 1
        assert completion.ended
        for _, said in runs(completion):
            assert [i in ends for i in said] == [False] * (len(said) - 1) + [True]


def check_prompt(of: Family, example, result, account) -> None:
    """All completions begin with the generation prompt, where every render does."""
    if of.chat is None:
        start = front(of, example.prompt) + of.ids(example.prompt)
    else:
        renders = ["".join(piece.text for piece in pieces(of, example, said)) for said in example.completions]
        text, start = (
            of.tokenizer.apply_chat_template(
                example.prompt, add_generation_prompt=True, tokenize=ids, return_dict=False, **example.template_kwargs
            )
            for ids in (False, True)
        )
        if not all(render.startswith(text) for render in renders):
            return
    assert account.shared == len(start) * (len(result.completions) - 1)
    for completion in result.completions:
        assert completion.ids[: len(start)].tolist() == start
        assert not completion.action[: max(0, len(start) - 1)].any()


def check_ids(of: Family, example, result, account) -> None:
    """The ids are those of the whole text, or they are listed and say the same."""
    wholes = [whole(of, example, completion) for completion in example.completions]
    differ = []
    for completion, full in zip(result.completions, wholes, strict=True):
        ids, expected = completion.ids.tolist(), ended(of, full)
        tail = full[len(expected) :]
        assert of.tokenizer.decode(ids + tail) == of.tokenizer.decode(full)
        differ.append(ids != expected)
    assert account.merged == any(differ)
    assert account.template_tail == sum(len(full) - len(ended(of, full)) for full in wholes)
    if not account.merged:
        assert account.read == sum(len(full) for full in wholes)


def check_mask(of: Family, example, result) -> None:
    """What the policy chose is its words and their end, by the text; and by the offsets, where no token is cut anew."""
    for completion, said in zip(result.completions, example.completions, strict=True):
        parts, full = pieces(of, example, said), whole(of, example, said)
        words = [text + parts[n + 1].text for n, (text, ours) in enumerate(parts) if ours]
        assert len(runs(completion)) == len(words)
        for (_, run), text in zip(runs(completion), words, strict=True):
            if of.exact:  # one token may begin before the words
                assert of.tokenizer.decode(run).endswith(text)
                assert "\ufffd" in text or not of.tokenizer.decode(run[1:]).endswith(text)
        if completion.ids.tolist() == ended(of, full):
            known = authors(of, parts)
            known = [{False}] * (len(full) - len(known)) + known
            for one, possible in zip([False, *completion.action.tolist()], known, strict=False):
                assert one in possible or not possible


def check_bos(of: Family, result) -> None:
    """One BOS in front, where the tokenizer gives a string one or the template writes it."""
    bos = of.chat.bos if of.chat else of.bos
    for completion in result.completions:
        if bos:
            assert completion.ids[0] == of.id(bos)
        for name in {of.bos, bos} - {"", None}:
            assert completion.ids.tolist().count(of.id(name)) == (name == bos)


def check_drop(of: Family, example, reason: str) -> None:
    """A text with no special token in it is dropped only for what can be seen in it."""
    wholes = [whole(of, example, completion) for completion in example.completions]
    parts = [pieces(of, example, completion) for completion in example.completions]
    thoughts = any("</think>" in part.text for completion in parts for part in completion if part.ours)
    blank = any(not "".join(part.text for part in completion if part.ours).strip() for completion in parts)
    expected = {
        "empty_prompt": not of.ids(example.prompt) and not of.bos if of.chat is None else False,
        "empty_completion": blank or not of.exact,
        "equal_completions": wholes[0] == wholes[1] or not of.exact,
        "inseparable_boundary": not of.exact,
        "template_mismatch": thoughts,
    }
    assert expected[reason], reason


@pytest.mark.parametrize(("kind", "template"), ALL)
def test_plain_text(kind, template):
    of = family(kind, template)

    @common(30)
    @given(plain(template), st.booleans())
    def check(example, ends):
        result, account = encoder(of, ends).encode(example)
        closes = of.id(end(of))
        check_account(result, account)
        if account.completions:
            assert account.spelled == any(marked(text) for text in brought(example))
            assert account.template_end == (None if ends or end(of) == of.eos else closes)
        if not isinstance(result, Encoded):
            check_drop(of, example, result.reason)
            return
        check_form(result, frozenset([closes]))
        check_prompt(of, example, result, account)
        check_ids(of, example, result, account)
        check_mask(of, example, result)
        check_bos(of, result)

    check()


@pytest.mark.parametrize(("kind", "template"), ALL)
def test_special_tokens_in_the_text(kind, template):
    """Wherever they stand, nothing of the prompt is the policy's, and an answer goes no further than its first end."""
    of = family(kind, template)
    texts = spelling(of)
    records = dialogues(of.chat, texts) if of.chat else st.builds(pair, texts.filter(len), texts, texts)

    @common(20)
    @given(records, st.booleans())
    def check(example, ends):
        result, account = encoder(of, ends).encode(example)
        check_account(result, account)
        if account.completions:
            assert account.spelled == any(marked(text) for text in brought(example))
        if not isinstance(result, Encoded):
            return
        closing = [of.eos, end(of)] if ends or account.template_end is not None else [of.eos]
        check_form(result, frozenset(map(of.id, closing)))
        check_prompt(of, example, result, account)
        if not account.merged:
            wholes = [whole(of, example, said) for said in example.completions]
            given = 0 if of.chat else sum(of.id(of.eos) in of.ids(said) for said in example.completions)
            assert account.read == sum(len(full) for full in wholes) - given
        for completion, said in zip(result.completions, example.completions, strict=True):
            first = runs(completion)[0][0]
            known, parts = whole(of, example, said), pieces(of, example, said)
            prompt = "".join(part.text for part in parts[: [part.ours for part in parts].index(True)])
            assert first[: len(known)] == known[: len(first)] or account.merged
            if of.exact:
                text = of.tokenizer.decode(first)
                assert prompt.startswith(text) or (of.bos + prompt).startswith(text)
                assert len(prompt) - len(text) < 8  # a token that begins before the words is one

    check()


@pytest.mark.parametrize(("kind", "template"), ALL)
def test_an_encoding_depends_on_nothing_but_the_example(kind, template):
    """Not on what was encoded before, nor on the tokenizer's padding and truncation."""
    of = family(kind, template)
    other = copy.deepcopy(of.tokenizer)
    other.padding_side = other.truncation_side = "left"
    other.model_max_length = 4
    ends = frozenset([of.id(end(of))])

    @common(6)
    @given(st.lists(plain(template), min_size=1, max_size=4), st.randoms(use_true_random=False))
    def check(examples, random):
        alone = [same(encoder(of).encode(example)) for example in examples]
        order = random.choices(range(len(examples)), k=6)
        one, unlike = encoder(of), Encoder(other, ends, 100_000)
        for n in order:
            assert same(one.encode(examples[n])) == alone[n]
            other.backend_tokenizer.enable_padding(length=7)
            other.backend_tokenizer.enable_truncation(5)
            assert same(unlike.encode(examples[n])) == alone[n]

    check()


@pytest.mark.parametrize(("kind", "template"), ALL)
def test_a_record_is_too_long_as_a_whole_or_not_at_all(kind, template):
    of = family(kind, template)

    @common(6)
    @given(plain(template), st.integers(-3, 3))
    def check(example, more):
        result, account = encoder(of).encode(example)
        if not isinstance(result, Encoded):
            return
        limit = max(len(completion.ids) for completion in result.completions) + more
        limited, counts = encoder(of, limit=limit).encode(example)
        if more >= 0:
            assert same((limited, counts)) == same((result, account))
        else:
            starts = max(len(runs(completion)[0][0]) for completion in result.completions)
            assert limited.reason in ("too_long", "prompt_too_long" if starts >= limit else "too_long")
            assert counts in (account, Account())  # not even tokenised where the characters are too many

    check()


@pytest.mark.parametrize(("kind", "template"), ALL)
def test_a_group_is_its_completions_side_by_side(kind, template):
    of = family(kind, template)

    @common(6)
    @given(plain(template), st.permutations([0, 1, 1]))
    def check(example, order):
        result, account = encoder(of).encode(example)
        completions = tuple(example.completions[n] for n in order)
        group, counts = encoder(of).encode(example._replace(completions=completions))
        if isinstance(result, Encoded):
            alone, together = same((result, account))[0], same((group, counts))[0]
            assert together == [alone[n] for n in order]
            assert (counts.shared, counts.merged) == (2 * account.shared, account.merged)
        else:
            assert group.reason == result.reason

    check()


# Known to hurt

BPE = [kind for kind in KINDS if kind not in ("unigram", "wordpiece")]  # what they are given is what they encode


@pytest.mark.parametrize("kind", BPE)
@pytest.mark.parametrize(("prompt", "completion"), [
    ("The sky is", " blue."),
    ("The sky is ", "blue."),
    ("The sky is  ", "  blue."),
    ("The sky is bl", "ue."),
    ("The price is ", "$5"),  # "▁$" is a token of Llama 2, "$" after "▁" is not what it would write
    ("Question: why?\n", "\n\nThe sky"),
    ("Question: why?\n\n", " The sky"),
    ("It is 12", "345 lamps"),
    ("don", "'t"),
    ("e", "\u0301"),
    ("\u1112", "\u1161\u11ab"),
    ("👩", "\u200d👩\u200d👧"),
    ("👍", "🏽 yes"),
    ("🇫", "🇷"),
    ("שלום ", "עולם"),
    ("天空", "是"),
    ("\x00", "\x00a"),
    ("a", "\u200b"),
    ("<|im_end", "|>"),  # neither is a special token, and so the two together are none
    ("</", "s>"),
    ("\\", "n"),
])  # fmt: skip
def test_boundaries_in_bad_places(kind, prompt, completion):
    of = family(kind, "strings")
    example = pair(prompt, completion, " no")
    result, account = encoder(of).encode(example)
    assert isinstance(result, Encoded), result
    check_account(result, account)
    check_form(result, frozenset([of.id(of.eos)]))
    ((before, said),) = runs(result.completions[0])
    before = before[bool(of.bos) :]
    assert before == of.ids(prompt)
    assert of.tokenizer.decode(before + said) == prompt + completion + of.eos
    if completion != "|>" and prompt != "</":
        check_ids(of, example, result, account)
        check_mask(of, example, result)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("chosen", "rejected", "reason"), [
    ("", "no", "empty_completion"),
    ("no", "", "empty_completion"),
    (" \n\t \u3000", "no", "empty_completion"),
    ("no", "no", "equal_completions"),
    (" the sky\n", " the sky\n", "equal_completions"),
    ("no<eos>", "no", "equal_completions"),
    ("<eos>", "no", "empty_completion"),
    ("yes<eos>no", "no", "end_inside_completion"),
])  # fmt: skip
def test_completions_that_are_none(kind, chosen, rejected, reason):
    of = family(kind, "strings")
    tokenizer = copy.deepcopy(of.tokenizer)
    tokenizer.eos_token = "<eos>"
    result, account = Encoder(tokenizer, frozenset(), 1000).encode(pair("Q:", chosen, rejected))
    assert result.reason == reason
    check_account(result, account)
    if "<eos>" not in chosen:
        for template, chat in CHATS.items():
            if chat is not None:
                example = pair([user("Q")], [assistant(chosen)], [assistant(rejected)])
                assert encoder(family(kind, template)).encode(example)[0].reason == reason


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].bos])
def test_one_bos_before_a_string(kind):
    """Also where the text brings it along, and where there is nothing else."""
    of = family(kind, "strings")
    bos = of.id(of.bos)
    for prompt in ("Q:", " Q:", of.bos + "Q:", of.bos + " Q:", of.bos, ""):
        result, account = encoder(of).encode(pair(prompt, " yes", " no"))
        for completion in result.completions:
            assert completion.ids.tolist().count(bos) == 1
            assert completion.ids[0] == bos
        assert account.read == account.scored + account.context


@pytest.mark.parametrize("kind", BPE)
def test_an_implicit_prompt_is_not_cut_in_a_word(kind):
    of = family(kind, "strings")
    example = parsed({"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert (example.prompt, example.completions) == ("The sky is", (" blue.", " black."))
    result, _ = encoder(of).encode(example)
    texts = [of.tokenizer.decode(of.ids(example.prompt) + runs(c)[0][1]) for c in result.completions]
    assert texts == [f"The sky is {colour}.{of.eos}" for colour in ("blue", "black")]


@pytest.mark.parametrize("template", [name for name, chat in CHATS.items() if chat])
def test_an_implicit_prompt_of_messages_ends_with_a_message(template):
    of = family("qwen", template)
    asked = user("What colour is the sky?")
    chosen, rejected = ([asked, assistant(f"The sky is {colour}.")] for colour in ("blue", "black"))
    result, _ = encoder(of).encode(parsed({"chosen": chosen, "rejected": rejected}))
    said = [of.tokenizer.decode(runs(completion)[0][1]).strip() for completion in result.completions]
    assert said == [f"The sky is {colour}.{end(of)}" for colour in ("blue", "black")]


CALLS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.content %}{{ m.content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ '\n<tool_call>' + call.function.name + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("kind", BPE)
def test_tool_calls_without_content(kind):
    """A call is the policy's, a tool's answer is not."""
    of = family(kind, "chatml")
    calls = [{"type": "function", "function": {"name": "look_up", "arguments": {"city": "Paris"}}}]
    chosen = [
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "12 °C"},
        assistant("It is cold."),
    ]
    ends = frozenset([of.id("<|im_end|>")])
    result, account = Encoder(of.tokenizer, ends, 1000, CALLS).encode(pair([user("Q")], chosen, [assistant("no")]))
    check_form(result, ends)
    call, answer = (of.tokenizer.decode(run) for _, run in runs(result.completions[0]))
    assert (call.strip(), answer.strip()) == ("<tool_call>look_up</tool_call><|im_end|>", "It is cold.<|im_end|>")
    assert account.read == account.scored + account.context + account.template_tail


@pytest.mark.parametrize(("template", "prompt"), [
    ("gemma", [{"role": "system", "content": "Be brief."}, user("Q")]),
    ("mistral", [{"role": "system", "content": "Be brief."}, user("Q")]),
    ("mistral", [user("Q"), user("R")]),
    ("gemma", [user("Q"), assistant("R")]),
])  # fmt: skip
def test_a_template_may_refuse_a_chat(template, prompt):
    of = family("llama3", template)
    result, account = encoder(of).encode(pair(prompt, [assistant("yes")], [assistant("no")]))
    assert result.reason == "template_refuses"
    assert account.read == 0


def test_context_of_letters_that_become_many_is_not_the_policys():
    of = family("unigram", "mistral")
    turns = [assistant("no"), user("ﷺﷺ"), assistant("½")]
    result, _ = encoder(of).encode(pair([user("Q")], turns, [assistant("no")]))
    chosen = [i for _, run in runs(result.completions[0]) for i in run]
    assert of.id("[/INST]") not in chosen


@pytest.mark.parametrize(("template", "prompt", "chosen"), [
    ("llama3", [user("Q" + "\n" * 2000)], "yes"),
    ("llama3", [user("Q")], "yes" + " " * 2000),
    ("think", [user("Q"), assistant("<think>\n" + "hm " * 2000 + "\n</think>\n\nno"), user("R")], "yes"),
])  # fmt: skip
def test_what_a_template_leaves_out_is_not_too_long(template, prompt, chosen):
    example = pair(prompt, [assistant(chosen)], [assistant("no")])
    assert isinstance(encoder(family("qwen", template), limit=80).encode(example)[0], Encoded)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not KINDS[kind].bos])
def test_a_pair_without_a_prompt_has_no_first_choice(kind):
    result, _ = encoder(family(kind, "strings")).encode(pair("", "yes", "no"))
    assert result.reason == "empty_prompt"


@pytest.mark.parametrize("kind", KINDS)
def test_completions_that_differ_only_behind_their_end_are_equal(kind):
    of = family(kind, "chatml")
    example = pair([user("Q")], [assistant("yes<|im_end|>")], [assistant("yes")])
    assert encoder(of).encode(example)[0].reason == "equal_completions"
