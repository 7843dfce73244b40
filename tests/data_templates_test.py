"""softq.data.templates: what the policy said in a rendered chat, template by template, as tokens."""

import pytest
from chats import assistant, byte_level, encoder, pair, shown, user

from softq.data.rows import DataError
from softq.data.templates import CHATML


def chat(template, prompt, chosen, rejected="no", ends=("<|im_end|>",), **kwargs):
    as_list = [assistant(chosen)] if isinstance(chosen, str) else chosen
    example = pair(prompt, as_list, [assistant(rejected)], template_kwargs=kwargs)
    return encoder(byte_level(), template, ends).encode(example)


def test_chatml_newline_is_tail_and_not_scored():
    result, account = chat(CHATML, [user("abc")], "yes")
    assert shown(result, byte_level()) == (
        "<|im_start|> u s e r Ċ abc <|im_end|> Ċ <|im_start|> a s s i s t a n t Ċ [yes] [<|im_end|>]"
    )
    assert (account.template_tail, account.scored, account.template_end) == (2, 4, None)
    assert account.shared == 20


def test_an_end_token_that_only_the_template_knows_is_used_and_reported():
    result, account = chat(CHATML, [user("abc")], "yes", ends=())
    assert shown(result, byte_level()).endswith("Ċ [yes] [<|im_end|>]")
    assert account.template_end == byte_level().convert_tokens_to_ids("<|im_end|>")
    assert account.template_tail == 2

    assert chat(CHATML, [user("abc")], "yes<|im_end|>no", ends=())[0].reason == "end_inside_completion"


def test_a_template_ends_with_its_last_added_token():
    template = "{% for m in messages %}{{ m.content }}<|im_start|>!<|im_end|>\n{% endfor %}"
    result, account = chat(template, [user("Q")], "yes", ends=())
    assert shown(result, byte_level()).endswith("Ċ [yes] [<|im_start|>] [!] [<|im_end|>]")
    assert account.template_end == byte_level().convert_tokens_to_ids("<|im_end|>")


def test_a_template_that_closes_with_nothing_gets_eos():
    template = (
        "{% for m in messages %}{{ m.role[0] + ':' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    result, account = chat(template, [user("Q")], "yes")
    assert shown(result, byte_level()) == "u : Q Ċ a : [yes] [<eos>]"
    assert (account.template_tail, account.read) == (2, 2 * 9)


THINK = (
    "{% for m in messages %}<|im_start|>{{ m.role[0] }}\n"
    "{% if m.role == 'assistant' and '</think>' in m.content %}"
    "<think>\n{{ m.content.split('</think>')[0].split('<think>')[-1].strip() }}\n</think>\n\n"
    "{{ m.content.split('</think>')[-1].strip() }}"
    "{% elif m.role == 'assistant' and (loop.last or not enable_thinking) %}<think>\n\n</think>\n\n{{ m.content.strip() }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>a\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
BLOCK = "< t h i n k > Ċ Ċ < / t h i n k > Ċ Ċ"  # the newlines are cut in two where a word follows


@pytest.mark.parametrize(("thinking", "block"), [(True, BLOCK), (False, BLOCK.removesuffix("Ċ Ċ") + "ĊĊ")])
def test_an_empty_think_block_is_context_and_not_the_policys(thinking, block):
    """With thinking the block is beyond the generation prompt; without, it is its end, and tokenised as generation sees it."""
    result, account = chat(THINK, [user("Q")], " yes\n", enable_thinking=thinking)
    assert shown(result, byte_level()) == f"<|im_start|> u Ċ Q <|im_end|> Ċ <|im_start|> a Ċ {block} [yes] [<|im_end|>]"
    assert account.shared == (9 if thinking else 9 + 18)
    assert account.merged is not thinking
    result, _ = chat(THINK, [user("Q")], "think", enable_thinking=thinking)  # a word of the block itself
    assert shown(result, byte_level()).endswith(f"{block} [t] [h] [i] [n] [k] [<|im_end|>]")


def test_the_policys_own_thoughts_are_its_words():
    result, _ = chat(THINK, [user("Q")], "<think>\nab\n</think>\n\nyes", enable_thinking=True)
    assert shown(result, byte_level()).endswith(
        "a Ċ [<] [t] [h] [i] [n] [k] [>] [Ċ] [ab] [Ċ] [<] [/] [t] [h] [i] [n] [k] [>] [Ċ] [Ċ] [yes] [<|im_end|>]"
    )
    assert shown(result, byte_level(), 1).endswith(f"a Ċ {BLOCK} [no] [<|im_end|>]")


OPENED = THINK.replace("{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}", "<think>\n")


def test_thoughts_go_on_from_a_generation_prompt_that_opens_them():
    result, account = encoder(byte_level(), OPENED, ["<|im_end|>"]).encode(
        pair([user("Q")], [assistant("<think>\nab\n</think>\n\nyes")], [assistant("<think>\nabc\n</think>\n\nno")])
    )
    assert shown(result, byte_level()).endswith(
        "a Ċ < t h i n k > Ċ [ab] [Ċ] [<] [/] [t] [h] [i] [n] [k] [>] [Ċ] [Ċ] [yes] [<|im_end|>]"
    )
    assert account.shared == 9 + 8


def test_words_that_the_generation_prompt_speaks_are_not_spoken_again():
    template = (
        "{% for m in messages %}{{ m.role[0] + ':' + m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}a:<b>{% endif %}"
    )
    result, _ = encoder(byte_level(), template, ["<|im_end|>"]).encode(
        pair([user("Q")], [assistant("<b>yes")], [assistant("<b>no")])
    )
    assert shown(result, byte_level()) == "u : Q <|im_end|> a : < b > [yes] [<|im_end|>]"
    result, _ = encoder(byte_level(), template, ["<|im_end|>"]).encode(
        pair([user("Q")], [assistant("<b>yes")], [assistant("no")])
    )
    assert shown(result, byte_level()) == "u : Q <|im_end|> a : [<] [b] [>] [yes] [<|im_end|>]"


def test_a_header_is_context_where_the_render_does_not_go_on_from_the_generation_prompt():
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role[0] }}:{{ m.content.split('</think>')[-1] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>a:<think>{% endif %}"
    )
    result, account = chat(template, [user("Q")], "yes")
    assert shown(result, byte_level()) == "<|im_start|> u : Q <|im_end|> <|im_start|> a : [yes] [<|im_end|>]"
    assert account.shared == 5
    assert chat(template, [user("Q")], "<think>ab</think>yes")[0].reason == "template_mismatch"


def test_a_token_that_straddles_the_header_and_the_words_is_the_policys():
    template = "{% for m in messages %}{{ 'Q' if m.role == 'user' else ': ' }}{{ m.content.strip() }}{% endfor %}"
    result, account = chat(template, [user("b")], " yes ", "no")
    assert shown(result, byte_level()) == "Q b : [Ġyes] [<eos>]"
    assert not account.merged


@pytest.mark.parametrize("template", [
    "{% for m in messages %}{{ m.content | upper }}{% endfor %}",  # other words
    "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",  # another prompt
    "{% for m in messages %}{{ m.content }}#{{ m.content | length }}{% endfor %}",  # another end
])  # fmt: skip
def test_a_template_that_rewrites_is_a_mismatch(template):
    result, account = chat(template, [user("b")], "yes")
    assert (result.where, result.reason) == ("a.jsonl:1", "template_mismatch")
    assert result.message.startswith("the ")
    assert account.read == 0


def test_only_what_the_assistant_says_is_scored():
    turns = [assistant("yes"), user("no"), {"role": "tool", "content": "abc"}, assistant("no")]
    result, account = chat(THINK, [user("Q")], turns, enable_thinking=True)
    assert shown(result, byte_level()) == (
        "<|im_start|> u Ċ Q <|im_end|> Ċ <|im_start|> a Ċ [yes] [<|im_end|>] Ċ "
        "<|im_start|> u Ċ no <|im_end|> Ċ <|im_start|> t Ċ abc <|im_end|> Ċ "
        f"<|im_start|> a Ċ {BLOCK} [no] [<|im_end|>]"
    )
    assert (account.scored, account.template_tail) == (4 + 2, 2)


def test_a_middle_turn_that_the_template_leaves_open_has_no_end_token():
    template = (
        "{% for m in messages %}{{ m.role[0] + m.content }}"
        "{% if m.role == 'user' or loop.last %}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    result, _ = chat(template, [user("Q")], [assistant("yes"), user("no"), assistant("!")])
    assert shown(result, byte_level()) == "u Q <|im_end|> a [yes] u no <|im_end|> a [!] [<|im_end|>]"


def test_one_silent_turn_does_not_make_a_completion_empty():
    result, _ = chat(CHATML, [user("Q")], [assistant(""), user("no"), assistant("yes")])
    text = shown(result, byte_level())
    assert "a s s i s t a n t Ċ [<|im_end|>] Ċ <|im_start|> u s e r Ċ no" in text
    assert text.endswith("[yes] [<|im_end|>]")


def test_tool_calls_are_the_policys_words():
    template = (
        "{% for m in messages %}{{ m.role[0] + m.content }}"
        "{% for call in m.tool_calls %}{{ call }}{% endfor %}<|im_end|>{% endfor %}"
    )
    call = {**assistant("yes"), "tool_calls": ["ab", "c"]}
    result, _ = chat(template, [user("Q")], [call, {"role": "tool", "content": "!"}, assistant("no")])
    assert shown(result, byte_level()) == "u Q <|im_end|> a [yes] [abc] [<|im_end|>] t ! <|im_end|> a [no] [<|im_end|>]"


def test_a_completion_may_begin_with_another_users_turn():
    prompt = [user("Q"), assistant("b")]
    result, _ = encoder(byte_level(), CHATML, ["<|im_end|>"]).encode(
        pair(prompt, [user("yes"), assistant("no")], [user("no"), assistant("no")])
    )
    assert shown(result, byte_level()).endswith(
        "b <|im_end|> Ċ <|im_start|> u s e r Ċ yes <|im_end|> Ċ <|im_start|> a s s i s t a n t Ċ [no] [<|im_end|>]"
    )


def test_tools_and_options_reach_the_template():
    template = "{{ tools[0].name }}{{ mood }}{% for m in messages %}{{ m.content }}{% endfor %}"
    result, _ = chat(template, [user("b")], "yes", tools=[{"name": "T"}], mood="M")
    assert shown(result, byte_level()) == "T M b [yes] [<eos>]"


def test_messages_without_a_template():
    advice = r"^a.jsonl:1: messages need a chat template and the tokenizer has none; pass --chat-template FILE\|chatml$"
    with pytest.raises(DataError, match=advice):
        encoder(byte_level()).encode(pair([user("Q")], [assistant("yes")], [assistant("no")]))


def test_a_template_that_refuses_says_why():
    result, _ = chat("{{ raise_exception('no systems\nhere') }}", [user("Q")], "yes")
    assert result[:3] == ("a.jsonl:1", "template_refuses", "the chat template refuses the messages: no systems here")


def test_a_completion_without_the_assistant():
    result, _ = chat(CHATML, [user("Q")], [user("yes")])
    assert result[:3] == (
        "a.jsonl:1", "empty_completion", "a completion has no message of the assistant; expected one or more"
    )  # fmt: skip
