"""softq.data.encode and vocabulary: boundaries, ends, drops and counts, as tokens."""

import numpy as np
import pytest
from chats import assistant, byte_level, encoder, metaspace, pair, shown, user, wrapped
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer

from softq.data.encode import Encoded, Encoder
from softq.data.formats import Dropped, Example
from softq.data.rows import DataError
from softq.data.templates import CHATML


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
    assert account == (9, 5, 4, 0, 0, 2, False, None)  # read, scored, context, cut, tail, shared, merged, template end


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
    assert result == Dropped("a.jsonl:1", "inseparable_boundary")


# Beginning and end


def test_exactly_one_bos_before_plain_text():
    tokenizer = byte_level(bos=True)
    assert plain(tokenizer, "Q:", " yes")[0] == "<bos> Q : [Ġyes] [<eos>]"
    assert plain(tokenizer, "<bos>Q:", " yes")[0] == "<bos> Q : [Ġyes] [<eos>]"
    assert plain(tokenizer, "", "yes")[0] == "<bos> [yes] [<eos>]"
    assert plain(tokenizer, "Q:", " yes")[1].read == 5 + 6


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


@pytest.mark.parametrize(("example", "reason"), [
    (("Q:", " ", " no"), "empty_completion"),
    (("Q:", " no", ""), "empty_completion"),
    (("Q:", "<eos>", " no"), "empty_completion"),
    (("Q:", " no", " no"), "equal_completions"),
    (("Q:", " no", " no<eos>"), "equal_completions"),
    (("", "yes", "no"), "empty_prompt"),
    (("Q:", " yes<eos> no", " no"), "end_inside_completion"),
    (("Q:", " yes", " no<|im_end|>z"), "end_inside_completion"),
    (([user("Q")], [assistant("")], [assistant("no")]), "empty_completion"),
    (([user("Q")], [assistant("yes<|im_end|>no")], [assistant("no")]), "end_inside_completion"),
    (([user("Q")], [assistant("no")], [assistant("no")]), "equal_completions"),
])  # fmt: skip
def test_drops_have_names(example, reason):
    result, account = encoder(byte_level(), CHATML, ["<|im_end|>"]).encode(pair(*example))
    assert result == Dropped("a.jsonl:1", reason)
    assert account.read > 0


def test_the_limit_is_the_longest_that_is_kept():
    example = pair("Q:", " yes", " no!")  # 4 and 5 ids
    assert isinstance(encoder(byte_level(), limit=5).encode(example)[0], Encoded)
    assert encoder(byte_level(), limit=4).encode(example)[0] == Dropped("a.jsonl:1", "too_long")


def test_groups_keep_their_scores_and_columns():
    example = Example("g[0]", "Q:", (" yes", " no", " no"), (1.0, 0.5, 0.5), columns={"weight": 2.0})
    result, account = encoder(byte_level()).encode(example)
    assert [shown(result, byte_level(), n) for n in range(3)] == ["Q : [Ġyes] [<eos>]"] + ["Q : [Ġno] [<eos>]"] * 2
    assert (result.scores, result.columns, account.shared) == ((1.0, 0.5, 0.5), {"weight": 2.0}, 4)


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(DataError, match=r"^ByT5Tokenizer is a slow tokenizer; expected a fast one"):
        Encoder(ByT5Tokenizer(), frozenset(), 10).encode(pair("Q:", "yes", "no"))


# Laws

WORDS = st.text("ab cyesno:!\nQ", max_size=12)


def check_laws(tokenizer, encode: Encoder, example: Example, whole: list[str]) -> None:
    result, account = encode.encode(example)
    assert account.read == account.scored + account.context + account.template_tail
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


@settings(max_examples=150, deadline=None)
@given(WORDS, WORDS, WORDS)
def test_text_survives_byte_level(prompt, chosen, rejected):
    tokenizer = byte_level()
    check_laws(tokenizer, encoder(tokenizer), pair(prompt, chosen, rejected), [prompt + chosen, prompt + rejected])


@settings(max_examples=150, deadline=None)
@given(WORDS, WORDS, WORDS, st.sampled_from(["always", "first"]))
def test_text_survives_metaspace(prompt, chosen, rejected, scheme):
    tokenizer = metaspace(scheme)
    check_laws(tokenizer, encoder(tokenizer), pair(prompt, chosen, rejected), [prompt + chosen, prompt + rejected])


@settings(max_examples=100, deadline=None)
@given(WORDS, WORDS, WORDS)
def test_text_survives_chatml(prompt, chosen, rejected):
    tokenizer = byte_level()
    example = pair([user(prompt)], [assistant(chosen)], [assistant(rejected)])
    head = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    check_laws(tokenizer, encoder(tokenizer, CHATML), example, [head + chosen, head + rejected])
