"""softq.data.encode and vocabulary: boundaries, ends, drops and counts, as tokens."""

import numpy as np
import pytest
from chats import alone, assistant, byte_level, encoder, metaspace, pair, shown, user, wrapped
from depth import tries
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from softq.data.encode import Account, Encoded, Encoder
from softq.data.example import Example
from softq.data.rows import DataError, Dropped, Unusable
from softq.data.templates import CHATML
from softq.data.vocabulary import Vocabulary


def plain(tokenizer, prompt: str, chosen: str, rejected: str = "zz"):
    result, account = encoder(tokenizer).encode(pair(prompt, chosen, rejected))
    return shown(result, tokenizer), account


# Boundaries


def test_plain_text_is_cut_between_tokens_and_ended_by_eos():
    result, account = encoder(byte_level()).encode(pair("Q:", " yes", " no!"))
    assert shown(result, byte_level(), 0) == "Q : [Ġyes] [<eos>]"
    assert shown(result, byte_level(), 1) == "Q : [Ġno] [!] [<eos>]"
    assert [c.ended for c in result.completions] == [True, True]
    assert [(c.ids.dtype, c.action.dtype) for c in result.completions] == [(np.int64, np.bool_)] * 2
    assert account == Account(9, scored=5, context=4, shared=2, completions=2, finished=2, longest=5)


def test_a_trailing_space_stays_with_the_prompt_and_the_row_is_marked():
    text, account = plain(byte_level(), "Q: ", "yes", "!")
    assert text == "Q : Ġ [yes] [<eos>]"
    assert account.merged


@pytest.mark.parametrize(("prompt", "completion", "expected"), [
    ("a", "bc", "a [b] [c] [<eos>]"),  # the whole is one token, abc
    ("ab", "c", "ab [c] [<eos>]"),
    ("a\n", "\n\n", "a Ċ [ĊĊ] [<eos>]"),  # an anchor that ends in a newline would merge: another is taken
    ("a\n\n", "yes", "a ĊĊ [yes] [<eos>]"),  # the whole has two single newlines before a word
])  # fmt: skip
def test_words_are_cut_where_the_prompt_ends(prompt, completion, expected):
    result, account = encoder(byte_level()).encode(pair(prompt, completion, "z"))
    if completion.strip():
        assert shown(result, byte_level()) == expected
        assert account.merged
    else:
        assert result.reason == "empty_completion"


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_metaspace_does_not_get_a_second_space(scheme):
    tokenizer = metaspace(scheme)
    text, account = plain(tokenizer, "Q: ", "yes")
    assert text == "▁ Q : ▁ [yes] [<eos>]"
    assert account.merged
    text, account = plain(tokenizer, "Q:", " yes")
    assert text == "▁ Q : [▁yes] [<eos>]"
    assert not account.merged
    text, account = plain(tokenizer, "ab", "c")
    assert text == "▁ ab [c] [<eos>]"
    assert account.merged


def test_the_prompt_ids_are_the_same_where_only_one_completion_merges():
    result, _ = encoder(byte_level()).encode(pair("Q: ", "yes", "!"))
    assert shown(result, byte_level(), 0).startswith("Q : Ġ [")
    assert shown(result, byte_level(), 1).startswith("Q : Ġ [")


def test_a_boundary_that_no_cut_reproduces_is_dropped():
    tokenizer = Tokenizer(models.WordLevel({"é": 0, "e": 1, "\u0301": 2, "[UNK]": 3}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    result, _ = encoder(wrapped(tokenizer)).encode(pair("e", "\u0301", "e"))
    assert (result.where, result.reason) == ("a.jsonl:1", "inseparable_boundary")


# Beginning and end


def test_exactly_one_bos_before_plain_text():
    tokenizer = byte_level(bos=True)
    assert plain(tokenizer, "Q:", " yes")[0] == "<bos> Q : [Ġyes] [<eos>]"
    assert plain(tokenizer, "<bos>Q:", " yes")[0] == "<bos> Q : [Ġyes] [<eos>]"
    assert plain(tokenizer, "", "yes")[0] == "<bos> [yes] [<eos>]"
    assert plain(tokenizer, "Q:", " yes")[1][:6] == (5 + 6, 2 + 3, 6, 0, 0, 3)  # read, scored, context, ..., shared


def test_no_bos_is_added_to_a_template():
    tokenizer = byte_level(bos=True)
    result, _ = encoder(tokenizer, "{% for m in messages %}{{ m.content }}{% endfor %}").encode(
        pair([user("Q:")], [assistant(" yes")], [assistant(" no")])
    )
    assert shown(result, tokenizer) == "Q : [Ġyes] [<eos>]"


def test_an_end_token_in_the_text_is_the_end():
    text, account = plain(byte_level(), "Q:", " yes<eos>")
    assert text == "Q : [Ġyes] [<eos>]"
    assert account.template_tail == 0
    text, account = plain(byte_level(), "Q:", " yes<eos>\n", "z")
    assert text == "Q : [Ġyes] [<eos>]"
    assert (account.template_tail, account.read) == (1, 5 + 4)


def test_the_first_of_several_end_tokens_is_the_end():
    tokenizer = byte_level()
    result, account = encoder(tokenizer, ends=["<|im_end|>"]).encode(pair("Q:", " yes<|im_end|><eos>\n", "z"))
    assert shown(result, tokenizer) == "Q : [Ġyes] [<|im_end|>]"
    assert account.template_tail == 2


def test_no_eos_and_nothing_to_end_with():
    tokenizer = byte_level(eos=None)
    with pytest.raises(DataError, match=r"^a.jsonl:1: nothing ends the completion .* no EOS token; set its eos_token"):
        encoder(tokenizer).encode(pair("Q:", " yes", " no"))
    result, _ = encoder(tokenizer, ends=["<|im_end|>"]).encode(pair("Q:", " yes<|im_end|>", " no<|im_end|>"))
    assert shown(result, tokenizer) == "Q : [Ġyes] [<|im_end|>]"


# Drops and errors


EMPTY = ("empty_completion", "a completion says nothing")
EQUAL = ("equal_completions", "the completions are the same tokens")
INSIDE = ("end_inside_completion", "a completion goes on behind an end token")


@pytest.mark.parametrize(("example", "fault"), [
    (("Q:", " ", " no"), EMPTY),
    (("Q:", " no", ""), EMPTY),
    (("Q:", "<eos>", " no"), EMPTY),
    (("Q:", " no", " no"), EQUAL),
    (("Q:", " no", " no<eos>"), EQUAL),
    (("Q:", " yes<eos> no", " no"), INSIDE),
    (("Q:", " yes", " no<|im_end|>z"), INSIDE),
    (([user("Q")], [assistant("")], [assistant("no")]), EMPTY),
    (([user("Q")], [assistant("yes<|im_end|>no")], [assistant("no")]), INSIDE),
    (([user("Q")], [assistant("no")], [assistant("no")]), EQUAL),
])  # fmt: skip
def test_drops_have_names(example, fault):
    result, account = encoder(byte_level(), CHATML, ["<|im_end|>"]).encode(pair(*example))
    assert result[:3] == ("a.jsonl:1", *fault)
    assert account.read > 0
    with_chat = not isinstance(example[0], str)
    assert result.excerpt.startswith(
        '{"prompt": [{"role": "user"' if with_chat else '{"prompt": "Q:", "completions": ["'
    )


def test_an_excerpt_shows_the_texts():
    result, _ = encoder(byte_level()).encode(pair("Q:", " no", "\n"))
    assert result.excerpt == '{"prompt": "Q:", "completions": [" no", "\\n"]}'


def test_the_limit_is_the_longest_that_is_kept():
    example = pair("Q:", " yes", " no!")  # 4 and 5 ids
    assert isinstance(encoder(byte_level(), limit=5).encode(example)[0], Encoded)
    result, account = encoder(byte_level(), limit=4).encode(example)
    assert result[:3] == (
        "a.jsonl:1", "too_long", "5 tokens, and max_length is 4; raise it, or cut with truncate keep"
    )  # fmt: skip
    assert (account.read, account.longest) == (9, 5)


def test_a_text_that_is_too_long_whatever_its_tokens_are_is_not_tokenised(monkeypatch):
    monkeypatch.setattr(Vocabulary, "ids", lambda *_: pytest.fail("tokenised"))
    monkeypatch.setattr(Vocabulary, "learn", lambda self, texts: list(texts) and pytest.fail("tokenised"))
    longest = max(map(len, byte_level().get_vocab()))
    result, account = encoder(byte_level(), limit=4).encode(pair("Q:", "a" * (4 * longest + 1), "b"))
    assert result.message.startswith(
        f"a text of {4 * longest + 3} characters, which are more than max_length, 4 tokens"
    )
    assert (result.reason, account) == ("too_long", Account())
    result, account = encoder(byte_level(), limit=4).encode(pair("Q" * (4 * longest + 1), "a", "b"))
    assert (result.reason, account) == ("prompt_too_long", Account())


def test_groups_keep_their_scores_and_columns():
    columns = {"reward": (1.0, 0.5, 0.5), "weight": (2.0,)}
    result, account = encoder(byte_level()).encode(Example("g[0]", "Q:", (" yes", " no", " no"), columns))
    assert [shown(result, byte_level(), n) for n in range(3)] == ["Q : [Ġyes] [<eos>]"] + ["Q : [Ġno] [<eos>]"] * 2
    assert (result.where, result.columns, result.source, account.shared) == ("g[0]", columns, None, 4)
    same = Example("g[0]", "Q:", (" no", " no"), {"reward": (1.0, 0.0)})
    assert encoder(byte_level()).encode(same)[0].reason == "equal_completions"


# One completion, none, and steps


@pytest.mark.parametrize(("bos", "text", "expected"), [
    (False, "yes no", "yes [Ġno] [<eos>]"),  # nothing stands before the first token: nobody chose it
    (True, "yes no", "<bos> [yes] [Ġno] [<eos>]"),
    (True, "<bos>yes", "<bos> [yes] [<eos>]"),
    (False, "<bos>yes", "<bos> [yes] [<eos>]"),
    (False, "yes", "yes [<eos>]"),
    (False, "yes<eos>", "yes [<eos>]"),
])  # fmt: skip
def test_a_text_alone(bos, text, expected):
    tokenizer = byte_level(bos=bos)
    result, account = encoder(tokenizer).encode(alone("", text))
    assert shown(result, tokenizer) == expected
    assert account.context == 1
    assert account.scored == expected.count("[")
    assert account.shared == 0


@pytest.mark.parametrize("bos", [False, True])
def test_a_bare_prompt_is_one_completion_without_an_action(bos):
    tokenizer = byte_level(bos=bos)
    result, account = encoder(tokenizer).encode(alone("Q:"))
    assert shown(result, tokenizer) == "<bos> Q :" if bos else "Q :"
    assert not result.completions[0].action.any()
    assert (account.read, account.context, account.scored, account.finished) == (2 + bos, 2 + bos, 0, 0)
    result, _ = encoder(tokenizer, CHATML).encode(alone([user("Q")]))
    assert shown(result, tokenizer) == "<|im_start|> u s e r Ċ Q <|im_end|> Ċ <|im_start|> a s s i s t a n t Ċ"


def test_completions_of_no_prompt_have_nothing_in_common():
    result, _ = encoder(byte_level()).encode(pair("", "yes", "no"))
    assert result[1:3] == ("empty_prompt", "the prompt has no tokens; nothing could be chosen after it")


def test_no_prompt_and_no_completion_is_nothing():
    result, _ = encoder(byte_level()).encode(alone(""))
    assert result[1:3] == ("empty_prompt", "the prompt has no tokens; nothing could be chosen after it")


def test_steps_of_one_answer_stand_below_each_other():
    steps = {"step_label": (1.0, 0.0)}
    result, account = encoder(byte_level()).encode(alone("Q:", " yes", " yes", columns=steps))
    assert len(result.completions) == 1
    assert shown(result, byte_level()) == "Q : [Ġyes] [Ċ] [Ġyes] [<eos>]"
    assert (result.columns, account.completions, account.finished) == (steps, 1, 1)
    chat = alone([user("Q")], [assistant("yes")], [assistant("no")], columns=steps)
    result, account = encoder(byte_level(), CHATML, ["<|im_end|>"]).encode(chat)
    head = "<|im_start|> a s s i s t a n t Ċ"
    assert shown(result, byte_level()).endswith(f"Ċ {head} [yes] [<|im_end|>] Ċ {head} [no] [<|im_end|>]")
    assert (account.scored, account.template_tail, account.finished) == (4, 1, 1)


# Cut at the limit


def test_keep_cuts_the_end_and_counts_it():
    result, account = encoder(byte_level(), limit=4, keep=True).encode(pair("Q:", " yes no!", " no"))
    assert shown(result, byte_level(), 0) == "Q : [Ġyes] [Ġno]"  # without `!` and EOS
    assert shown(result, byte_level(), 1) == "Q : [Ġno] [<eos>]"
    assert [c.ended for c in result.completions] == [False, True]
    assert account[:4] == (6 + 4, 2 + 2, 2 + 2, 2)  # read, scored, context, cut
    assert (account.finished, account.longest) == (1, 4)


def test_a_cut_goes_back_to_the_last_word_of_the_policy():
    chat = pair([user("Q")], [assistant("yes"), user("no"), assistant("!")], [assistant("no")])
    whole, _ = encoder(byte_level(), CHATML, ["<|im_end|>"]).encode(chat)
    ids, action, _ = whole.completions[0]
    first = int(action.argmax()) + 1
    for limit in range(first + 3, first + 12):  # within the user's turn: it is nothing without an answer
        result, account = encoder(byte_level(), CHATML, ["<|im_end|>"], limit, keep=True).encode(chat)
        assert result.completions[0].ids.tolist() == ids[: first + 2].tolist()
        assert result.completions[0].ended is False
        assert account.read == account.scored + account.context + account.cut + account.template_tail
        assert account.cut == len(ids) - (first + 2)
        assert account.template_tail == 2


@pytest.mark.parametrize(("limit", "fault"), [
    (2, ("prompt_too_long", "nothing of a completion begins within max_length, 2 tokens; raise it")),
    (1, ("prompt_too_long", "nothing of a completion begins within max_length, 1 tokens; raise it")),
    (3, ("equal_after_cut", "the completions differ only behind the cut; raise max_length")),
])  # fmt: skip
def test_what_a_cut_leaves_nothing_of(limit, fault):
    result, account = encoder(byte_level(), limit=limit, keep=True).encode(pair("Q:", " yes no", " yes!"))
    assert result[1:3] == fault
    assert account.read == 10 == account.scored + account.context + account.cut


def test_a_prompt_that_is_too_long_is_so_without_a_cut_too():
    result, _ = encoder(byte_level(), limit=2).encode(pair("Q:", " yes", " no"))
    assert result.reason == "prompt_too_long"
    assert encoder(byte_level(), limit=1).encode(alone("Q:"))[0].reason == "prompt_too_long"


# Counts and explanations


@pytest.mark.parametrize(("bos", "prompt", "expected"), [
    (False, "Q:", (0, 2, False)),  # completions with one BOS, completions with one end, a special token in the text
    (True, "Q:", (2, 2, False)),
    (True, "<bos>Q:", (2, 2, True)),
    (True, "<bos><bos>Q:", (0, 2, True)),
    (True, "Q<|im_start|>:", (2, 2, True)),
])  # fmt: skip
def test_beginnings_and_ends_are_counted(bos, prompt, expected):
    _, account = encoder(byte_level(bos=bos)).encode(pair(prompt, " yes", " no"))
    assert (account.one_bos, account.finished, account.spelled) == expected


def test_a_turn_without_its_end_is_not_finished():
    template = (
        "{% for m in messages %}{{ m.role[0] + m.content }}"
        "{% if m.role == 'user' or loop.last %}<|im_end|>{% endif %}{% endfor %}"
    )
    chat = pair([user("Q")], [assistant("yes"), user("no"), assistant("!")], [assistant("no")])
    _, account = encoder(byte_level(), template, ["<|im_end|>"]).encode(chat)
    assert (account.completions, account.finished) == (2, 1)


def told(coded) -> list[tuple[str, str, str]]:
    """Pieces as (tokens, part, by)."""
    convert = byte_level().convert_ids_to_tokens
    return [(" ".join(convert(list(piece.ids))), piece.part, piece.by) for piece in coded.pieces]


def test_who_put_each_token_there_in_chatml():
    chat = pair([user("Q")], [assistant("yes")], [assistant("no")])
    chosen, rejected = encoder(byte_level(), CHATML, ["<|im_end|>"]).explain(chat)
    head = "<|im_start|> u s e r Ċ Q <|im_end|> Ċ <|im_start|> a s s i s t a n t Ċ"
    assert told(chosen) == [
        (head, "context", "template"),
        ("yes", "scored", "text"),
        ("<|im_end|>", "scored", "template"),
        ("Ċ", "template_tail", "template"),
    ]
    assert told(rejected)[1] == ("no", "scored", "text")


def test_who_put_each_token_there_in_plain_text():
    encode = encoder(byte_level(bos=True), limit=5, keep=True)
    chosen, rejected = encode.explain(pair("Q:", " yes", " no!<eos>"))
    head = [("<bos>", "context", "tokenizer"), ("Q :", "context", "text")]
    assert told(chosen) == [*head, ("Ġyes", "scored", "text"), ("<eos>", "scored", "softq")]
    assert told(rejected) == [*head, ("Ġno !", "scored", "text"), ("<eos>", "cut", "text")]
    (coded,) = encode.explain(alone("", "yes no"))
    assert told(coded) == [
        ("<bos>", "context", "tokenizer"),
        ("yes Ġno", "scored", "text"),
        ("<eos>", "scored", "softq"),
    ]
    (coded,) = encoder(byte_level()).explain(alone("", "yes no"))
    assert told(coded) == [("yes", "context", "text"), ("Ġno", "scored", "text"), ("<eos>", "scored", "softq")]
    with pytest.raises(Unusable, match="answer otherwise than it was given"):
        encoder(byte_level(), "{% for m in messages %}{{ m.content | upper }}{% endfor %}").explain(
            pair([user("b")], [assistant("yes")], [assistant("no")])
        )


# The tokenizer's own ids


class Listed(PreTrainedTokenizerFast):
    """A tokenizer to which texts in a list are not what each of them is."""

    def __call__(self, text, **options):
        found = super().__call__(text, **options)
        return {"input_ids": [[0, *ids] for ids in found["input_ids"]]} if isinstance(text, list) else found


class Chatty(PreTrainedTokenizerFast):
    """A tokenizer to which a chat is not what its text is."""

    def apply_chat_template(self, chat, tokenize=True, **options):
        found = super().apply_chat_template(chat, tokenize=tokenize, **options)
        return [*found[:-1], 0] if tokenize else found


CHAT = pair([user("abc")], [assistant("yes")], [assistant("no"), user("a"), assistant("b")])


@pytest.mark.parametrize("tokenizer", [byte_level(), byte_level(bos=True), metaspace("always"), metaspace("first")])
@pytest.mark.parametrize("example", [
    pair("Q:", " yes", " no"), pair("Q: ", "yes", "no"), alone("", "yes no"), alone("Q:"), CHAT, alone([user("Q")]),
    alone("Q:", " yes", " no", columns={"step_label": (1.0, 0.0)}),
])  # fmt: skip
def test_good_tokenizers_agree_with_themselves(tokenizer, example):
    encoder(tokenizer, CHATML).check_whole(example)


@pytest.mark.parametrize(("kind", "example", "place"), [
    (Listed, alone("Q:"), "completion 0 differs from the tokenizer's own ids of the whole text at token 0"),
    (Chatty, alone([user("Q")]), "completion 0 differs from the tokenizer's own ids of the whole text at token 19"),
    (Chatty, CHAT, "completion 0 differs from the tokenizer's own ids of the whole text at token 22"),
])  # fmt: skip
def test_a_tokenizer_that_does_not_agree_with_itself_is_refused(kind, example, place):
    encode = encoder(kind(tokenizer_object=byte_level().backend_tokenizer, eos_token="<eos>"), CHATML, ["<|im_end|>"])
    assert isinstance(encode.encode(example)[0], Encoded)
    with pytest.raises(DataError) as error:
        encode.check_whole(example)
    advice = "this tokenizer gives a text other ids in parts; please report it"
    assert str(error.value) == f"a.jsonl:1: {place}; {advice}"


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(
        DataError, match=r"^ByT5Tokenizer is a slow tokenizer; expected a fast one; load it with AutoTo"
    ):
        Encoder(ByT5Tokenizer(), frozenset(), 10).encode(pair("Q:", "yes", "no"))


# Laws

WORDS = st.text("ab cyesno:!\nQ", max_size=12)


def check_laws(tokenizer, encode: Encoder, example: Example, whole: list[str]) -> None:
    result, account = encode.encode(example)
    assert account.read == account.scored + account.context + account.cut + account.template_tail
    assert account.cut == 0
    if isinstance(result, Dropped):
        return
    starts = [int(c.action.argmax()) + 1 for c in result.completions]
    assert starts[0] == starts[1]
    assert (result.completions[0].ids[: starts[0]] == result.completions[1].ids[: starts[0]]).all()
    for completion, text in zip(result.completions, whole, strict=True):
        assert completion.action[starts[0] - 1 :].all()
        assert completion.ids[-1] in tokenizer.convert_tokens_to_ids(["<eos>", "<|im_end|>"])
        assert len(completion.action) == len(completion.ids) - 1
        again = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(completion.ids[:-1]) == tokenizer.decode(again)
        if not account.merged:
            assert completion.ids[:-1].tolist() == again
    assert account.scored + account.context == sum(len(c.ids) for c in result.completions)


@settings(max_examples=tries(150), deadline=None)
@given(WORDS.filter(bool), WORDS, WORDS)
def test_text_survives_byte_level(prompt, chosen, rejected):
    tokenizer = byte_level()
    check_laws(tokenizer, encoder(tokenizer), pair(prompt, chosen, rejected), [prompt + chosen, prompt + rejected])


@settings(max_examples=tries(150), deadline=None)
@given(WORDS.filter(bool), WORDS, WORDS, st.sampled_from(["always", "first"]))
def test_text_survives_metaspace(prompt, chosen, rejected, scheme):
    tokenizer = metaspace(scheme)
    check_laws(tokenizer, encoder(tokenizer), pair(prompt, chosen, rejected), [prompt + chosen, prompt + rejected])


@settings(max_examples=tries(100), deadline=None)
@given(WORDS, WORDS, WORDS)
def test_text_survives_chatml(prompt, chosen, rejected):
    tokenizer = byte_level()
    example = pair([user(prompt)], [assistant(chosen)], [assistant(rejected)])
    head = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    check_laws(tokenizer, encoder(tokenizer, CHATML), example, [head + chosen, head + rejected])


@settings(max_examples=tries(150), deadline=None)
@given(WORDS.filter(bool), WORDS, WORDS, st.integers(1, 12), st.booleans())
def test_a_cut_record_is_the_beginning_of_the_whole_one(prompt, chosen, rejected, limit, chat):
    tokenizer = byte_level()
    example = (
        pair([user(prompt)], [assistant(chosen)], [assistant(rejected)]) if chat else pair(prompt, chosen, rejected)
    )
    limit += 30 if chat else 0
    whole, before = encoder(tokenizer, CHATML, ["<|im_end|>"]).encode(example)
    result, account = encoder(tokenizer, CHATML, ["<|im_end|>"], limit, keep=True).encode(example)
    assert account.read == account.scored + account.context + account.cut + account.template_tail == before.read
    if isinstance(whole, Dropped):
        assert result.reason in (whole.reason, *(("equal_after_cut",) if whole.reason == "equal_completions" else ()))
        return
    if isinstance(result, Dropped):
        assert result.reason in ("prompt_too_long", "equal_after_cut")
        return
    for ours, theirs in zip(result.completions, whole.completions, strict=True):
        n = len(ours.ids)
        assert ours.ids.tolist() == theirs.ids[:n].tolist()
        assert ours.action.tolist() == theirs.action[: n - 1].tolist()
        assert n == min(limit, len(theirs.ids))
        assert ours.ended == (n == len(theirs.ids))
        assert ours.action[-1]
    assert account.cut == sum(len(c.ids) for c in whole.completions) - sum(len(c.ids) for c in result.completions)


@settings(max_examples=tries(60), deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS, WORDS, st.booleans()), max_size=8), st.integers(1, 8))
def test_records_do_not_depend_on_what_is_encoded_with_them(texts, size):
    examples = [
        pair([user(p)], [assistant(c)], [assistant(r)]) if chat else pair(p, c, r, columns={"weight": (float(n),)})
        for n, (p, c, r, chat) in enumerate(texts)
    ]
    alike = encoder(byte_level(bos=True), CHATML, ["<|im_end|>"], 40)
    together = [found for n in range(0, len(examples), size) for found in alike.encode_all(examples[n : n + size])]
    apart = [encoder(byte_level(bos=True), CHATML, ["<|im_end|>"], 40).encode(example) for example in examples]
    assert [account for _, account in together] == [account for _, account in apart]
    assert list(map(plainly, together)) == list(map(plainly, apart))


def plainly(found):
    result, _ = found
    if isinstance(result, Dropped):
        return result
    return result.where, result.columns, [(c.ids.tolist(), c.action.tolist(), c.ended) for c in result.completions]
