"""softq.data.formats, parsers and fields: each format by hand, and one clear line for each way in which a row can be wrong."""

import json

import pytest
from chats import assistant, user
from depth import tries
from hypothesis import given, settings
from hypothesis import strategies as st

from softq.data.example import Example
from softq.data.formats import FORMATS, Reading, detect, known, parse_rows
from softq.data.rows import DataError, Dropped, Row

Q, YES, NO = [user("Q")], [assistant("yes")], [assistant("no")]
SYSTEM = {"role": "system", "content": "S"}
SAID = [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}]
GPT_YES, GPT_NO = {"from": "gpt", "value": "yes"}, {"from": "assistant", "value": "no"}

PLAIN = {"prompt": "Q:", "chosen": " yes", "rejected": " no"}
CHAT = {"prompt": Q, "chosen": YES, "rejected": NO[0]}
IMPLICIT = {"chosen": [*Q, *YES], "rejected": [*Q, *NO]}
HH = {"chosen": "\n\nHuman: Q\n\nAssistant: yes", "rejected": "\n\nHuman: Q\n\nAssistant: no"}
SHAREGPT = {"conversations": SAID, "chosen": GPT_YES, "rejected": GPT_NO}
GROUPS = {"prompt": "Q:", "completions": ["a", "b", "c"], "scores": [1, 0.5, -2]}
STEPS = {"prompt": "Q:", "completions": ["a", "b"], "labels": [True, False]}
RATED = {
    "instruction": "Q",
    "completions": [{"response": "yes", "overall_score": 8.5}, {"response": "no", "overall_score": 1}],
}
ALPACA = {"instruction": "Q", "input": "more", "system": "S", "history": [["a", "b"], ["c", "d"]]}
ASKED = [SYSTEM, user("a"), assistant("b"), user("c"), assistant("d"), user("Q\nmore")]


def parsed(*rows: dict, format: str | None = None, **reading) -> list[Example | Dropped]:
    placed = [Row(f"a.jsonl:{i}", row) for i, row in enumerate(rows, 1)]
    return list(parse_rows(placed, Reading(format, **reading))[1])


def refusal(*rows: dict, **reading) -> str:
    with pytest.raises(DataError) as error:
        parsed(*rows, **reading)
    return str(error.value)


# Each format


@pytest.mark.parametrize(("row", "name", "prompt", "completions", "columns"), [
    (PLAIN, "preference", "Q:", (" yes", " no"), {}),
    (CHAT, "preference", Q, (YES, NO), {}),
    ({**IMPLICIT, "prompt": "Q", "score_chosen": 8.0}, "preference", Q, (YES, NO), {}),  # UltraFeedback, binarized
    ({"prompt": SAID, "chosen": [GPT_YES], "rejected": GPT_NO}, "preference", [SYSTEM, *Q], (YES, NO), {}),
    (SHAREGPT, "sharegpt", [SYSTEM, *Q], (YES, NO), {}),
    ({**SHAREGPT, "conversations": SAID[1:], "system": "S", "chosen": "yes"}, "sharegpt", [SYSTEM, *Q], (YES, NO), {}),
    ({**SHAREGPT, "conversations": Q, "chosen": YES[0]}, "sharegpt", Q, (YES, NO), {}),
    ({**ALPACA, "chosen": "yes", "rejected": "no"}, "alpaca", ASKED, (YES, NO), {}),
    ({"instruction": "Q", "input": "", "chosen": "yes", "rejected": "no"}, "alpaca", Q, (YES, NO), {}),
    ({"input": "Q:", "chosen": " yes", "rejected": " no"}, "openrlhf", "Q:", (" yes", " no"), {}),
    ({"input": Q, "chosen": YES, "rejected": NO}, "openrlhf", Q, (YES, NO), {}),
    (HH, "hh", "\n\nHuman: Q\n\nAssistant:", (" yes", " no"), {}),
    (IMPLICIT, "implicit", Q, (YES, NO), {}),
    ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "implicit",
     "The sky is", (" blue.", " green."), {}),
    (GROUPS, "groups", "Q:", ("a", "b", "c"), {"reward": (1.0, 0.5, -2.0)}),
    ({"prompt": Q, "completions": [YES[0], NO], "scores": [1, 0]}, "groups", Q, (YES, NO), {"reward": (1.0, 0.0)}),
    (RATED, "ultrafeedback", Q, (YES, NO), {"reward": (8.5, 1.0)}),
    ({**RATED, "completions": [{"response": "yes", "fine-grained_score": 4}, {"response": "no", "fine-grained_score": 2}]},
     "ultrafeedback", Q, (YES, NO), {"reward": (4.0, 2.0)}),
    (STEPS, "stepwise", "Q:", ("a", "b"), {"step_label": (1.0, 0.0)}),
    ({"prompt": Q, "completions": [YES, YES], "labels": ["true", 0]}, "stepwise", Q, (YES, YES),
     {"step_label": (1.0, 0.0)}),
    ({"prompt": "Q:", "completion": " yes", "label": False}, "unpaired", "Q:", (" yes",), {"label": (0.0,)}),
    ({"prompt": Q, "completion": YES, "label": 1.0}, "unpaired", Q, (YES,), {"label": (1.0,)}),
    ({"input": "Q:", "output": " yes", "label": "TRUE"}, "openrlhf-kto", "Q:", (" yes",), {"label": (1.0,)}),
    ({**ALPACA, "output": "yes", "kto_tag": "false"}, "alpaca-kto", ASKED, (YES,), {"label": (0.0,)}),
    ({"conversations": [*SAID, GPT_YES], "kto_tag": True}, "sharegpt-kto", [SYSTEM, *Q], (YES,), {"label": (1.0,)}),
    ({"messages": [*Q, *YES, *Q, *NO], "label": False}, "sharegpt-kto", [*Q, *YES, *Q], (NO,), {"label": (0.0,)}),
    ({**ALPACA, "output": "yes"}, "alpaca-sft", ASKED, (YES,), {}),
    ({"input": "Q:", "output": " yes"}, "openrlhf-sft", "Q:", (" yes",), {}),
    ({"prompt": "Q:", "completion": " yes"}, "prompt-completion", "Q:", (" yes",), {}),
    ({"prompt": Q, "completion": YES[0]}, "prompt-completion", Q, (YES,), {}),
    ({"text": "The sky is blue."}, "language-modeling", "", ("The sky is blue.",), {}),
    ({"messages": [SYSTEM, *Q, *YES, *Q, *NO]}, "language-modeling", [SYSTEM, *Q], ([*YES, *Q, *NO],), {}),
    ({"conversations": [*SAID, GPT_YES]}, "language-modeling", [SYSTEM, *Q], (YES,), {}),
    ({"messages": [*YES, *Q, *NO]}, "language-modeling", [], ([*YES, *Q, *NO],), {}),
    ({"prompt": "Q:"}, "prompt-only", "Q:", (), {}),
    ({"prompt": Q}, "prompt-only", Q, (), {}),
])  # fmt: skip
def test_formats(row, name, prompt, completions, columns):
    assert detect(row) == name
    assert parsed(row) == parsed(row, format=name.replace("-", "_")) == [
        Example("a.jsonl:1", prompt, completions, columns, {}, {"score_chosen": 8.0} if "score_chosen" in row else {})
    ]  # fmt: skip


def test_every_format_is_tested_and_says_what_it_holds():
    (marks,) = [mark for mark in test_formats.pytestmark if mark.name == "parametrize"]
    assert {case[1] for case in marks.args[1]} == set(FORMATS)
    kinds = {case[1]: set(case[4]) for case in marks.args[1]}
    columns = {"groups": {"reward"}, "steps": {"step_label"}, "labels": {"label"}}
    assert {name: columns.get(FORMATS[name].kind, set()) for name in FORMATS} == kinds


@pytest.mark.parametrize(("row", "name"), [
    ({**PLAIN, **SHAREGPT, **GROUPS, "label": True}, "preference"),
    ({**SHAREGPT, **ALPACA}, "sharegpt"),
    ({**HH, "instruction": "Q", "input": "i"}, "alpaca"),
    ({**GROUPS, "labels": [True, True, False]}, "groups"),
    ({**STEPS, "completion": "a", "label": True}, "stepwise"),
    ({"prompt": "Q", "completion": "a", "label": True, "messages": Q}, "unpaired"),
    ({"prompt": "Q", "completion": "a", "text": "Q a"}, "prompt-completion"),
    ({"prompt": "Q", "messages": [*Q, *YES]}, "language-modeling"),  # UltraChat
    ({"instruction": "Q", "input": "i", "output": "o", "label": True}, "alpaca-sft"),
    ({**IMPLICIT, "question": "Q"}, "implicit"),  # messages bring their prompt
    ({"chosen": "a b", "rejected": "a c", "question": "a"}, None),
    ({"chosen": "a"}, None),
])  # fmt: skip
def test_the_richest_format_comes_first(row, name):
    assert detect(row) == name


def test_the_first_good_row_shows_the_format():
    rows = [Dropped("a.jsonl:1", "malformed_json", "broken"), Row("a.jsonl:2", {}), Row("a.jsonl:3", PLAIN)]
    name, examples = parse_rows(iter(rows), Reading())
    first, second, third = examples
    assert (name, first, second.reason, third.prompt) == ("preference", rows[0], "missing_field", "Q:")


def test_an_example_is_parsed_when_it_is_asked_for():
    rows = iter([Row("a:1", PLAIN), Row("a:2", PLAIN), Row("a:3", PLAIN)])
    next(parse_rows(rows, Reading())[1])
    assert next(rows).where == "a:2"


# What belongs to the prompt


@pytest.mark.parametrize(("chosen", "rejected", "prompt"), [
    ("The sky is blue.", "The sky is green.", "The sky is"),
    ("The sky is blue.", "The sky is black.", "The sky is"),  # not "The sky is bl"
    ("The sky is blue", "The sky is blue and vast", "The sky is"),  # a completion keeps a word
    ("The sky is blue and vast", "The sky is blue", "The sky is"),
    ("The sky\nis blue", "The sky\nwas blue", "The sky"),
    ("The sky  is", "The sky  was", "The sky"),
    ("The sky.", "The skyline.", "The"),
    (" The sky", " The sea", " The"),
    ("天空是蓝色的", "天空是绿色的", "天空是"),
    ("天空是蓝色", "天空是蓝色的", "天空是蓝"),
    ("空は青い", "空は緑だ", "空は"),
    ("空はとても青い", "空はとても緑だ", "空はとても"),
    ("天空 is blue", "天空 is black", "天空 is"),
])  # fmt: skip
def test_an_implicit_prompt_ends_where_a_word_ends(chosen, rejected, prompt):
    (example,) = parsed({"chosen": chosen, "rejected": rejected})
    assert (example.prompt, example.completions) == (prompt, (chosen[len(prompt) :], rejected[len(prompt) :]))


NO_SHARED = ("no_shared_prompt", "chosen and rejected share no first word; give the prompt in a field of its own", "")


@pytest.mark.parametrize(("chosen", "rejected", "fault"), [
    ("The sky", "A sea", NO_SHARED),
    ("blue", "blue", NO_SHARED),
    ("same words", "same words", ("equal_completions", "the completions are the same text", "")),
    ("", "a b", ("empty_completion", "field 'chosen' is blank", "chosen")),
    ("a b", " \n", ("empty_completion", "field 'rejected' is blank", "rejected")),
    ("", "", ("empty_completion", "field 'chosen' is blank", "chosen")),
    ("天", "天空", NO_SHARED),
    ("か\u3099 a", "か b", NO_SHARED),  # a mark belongs to the character before it
    ("か b", "か\u3099 a", NO_SHARED),
])  # fmt: skip
def test_texts_without_an_implicit_prompt(chosen, rejected, fault):
    row = {"chosen": chosen, "rejected": rejected}
    assert parsed(row) == [Dropped("a.jsonl:1", *fault, json.dumps(row, ensure_ascii=False))]


LETTERS = st.text("ab \n.天空は", max_size=6)


@settings(max_examples=tries(300), deadline=None)
@given(LETTERS, LETTERS, LETTERS)
def test_an_implicit_cut_loses_nothing_and_never_stands_in_a_word(shared, one, other):
    texts = (shared + one, shared + other)
    (found,) = parsed(dict(zip(("chosen", "rejected"), texts, strict=True)), format="implicit")
    if isinstance(found, Dropped):
        assert found.reason in ("no_shared_prompt", "empty_completion", "equal_completions")
        return
    assert found.prompt.strip()
    for text, completion in zip(texts, found.completions, strict=True):
        assert found.prompt + completion == text
        assert completion.strip()
        assert completion[0].isspace() or found.prompt[-1] in "天空は"


def test_an_implicit_prompt_is_what_both_dialogues_begin_with():
    chosen = [user("Q"), assistant("a"), user("b"), assistant("c")]
    (example,) = parsed({"chosen": chosen, "rejected": [*chosen[:3], assistant("d")]})
    assert (example.prompt, example.completions) == (chosen[:3], ([assistant("c")], [assistant("d")]))
    (example,) = parsed({"chosen": chosen, "rejected": chosen[:2]})  # a completion keeps one message
    assert (example.prompt, example.completions) == (chosen[:1], (chosen[1:], chosen[1:2]))
    none = ("no_shared_prompt", "chosen and rejected begin with different messages; expected a shared prompt")
    for rejected in ([user("R"), assistant("a")], [assistant("b")], [user("Q")], user("Q")):
        assert parsed({"chosen": chosen, "rejected": rejected})[0][1:3] == none


H, A = "\n\nHuman:", "\n\nAssistant:"


@pytest.mark.parametrize(("chosen", "rejected", "prompt"), [
    (f"{H} a{A} b{H} c{A} d", f"{H} a{A} b{H} c{A} de", f"{H} a{A} b{H} c{A}"),
    (f"{H} a{A} b", f"{H} a{A} bc", f"{H} a{A}"),  # shared words are not the prompt's
    (f"{H} a{A} b{A} c", f"{H} a{A} b{A} d", f"{H} a{A} b{A}"),
])  # fmt: skip
def test_an_hh_prompt_ends_with_the_last_shared_turn_mark(chosen, rejected, prompt):
    for first, second in ((chosen, rejected), (rejected, chosen)):
        (example,) = parsed({"chosen": first, "rejected": second})
        assert example.prompt == prompt
        assert example.completions == (first.removeprefix(prompt), second.removeprefix(prompt))


LATER = ("later_user_turn", "a completion goes on with a turn of the human; its end can not be told")
UNSHARED = ("no_shared_prompt", "chosen and rejected share no text up to an assistant's turn")


@pytest.mark.parametrize(("chosen", "rejected", "fault"), [
    (f"{H} a{A} b{H} c{A} d", f"{H} a{A} b", LATER),
    (f"{H} a{A} b", f"{H} a{A} b{H} c", LATER),
    (f"{H} a{A} b{H} c{A} d", f"{H} a{A} b{H} x{A} d", LATER),
    (f"{H} a{A} b", f"{H} c{A} b", UNSHARED),
    (f"{H} a{A}", f"{H} a{A} b", ("empty_completion", "a completion says nothing")),
])  # fmt: skip
def test_hh_drops(chosen, rejected, fault):
    assert parsed({"chosen": chosen, "rejected": rejected})[0][1:3] == fault


# Messages


@pytest.mark.parametrize(("given", "message"), [
    ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, user("ab")),
    ({"role": "user", "content": "a", "name": None, "id": 3}, {**user("a"), "id": 3}),
    ({"from": "human", "value": "a"}, user("a")),
    ({"from": "observation", "value": "a"}, {"role": "tool", "content": "a"}),
    ({"from": "function_call", "value": "a"}, assistant("a")),
    ({"role": "developer", "content": ""}, {"role": "developer", "content": ""}),
])  # fmt: skip
def test_messages(given, message):
    assert parsed({**CHAT, "prompt": [given, *Q]})[0].prompt == [message, *Q]


def test_tool_calls_need_no_content():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "T"}]}
    bare = {"role": "assistant", "tool_calls": [{"name": "T"}]}
    both = parsed({**CHAT, "chosen": [call, *YES]}, {**CHAT, "chosen": [bare]})
    assert [example.completions for example in both] == [([call, *YES], NO), ([call], NO)]
    (found,) = parsed({**CHAT, "chosen": {**call, "content": 3}})
    assert found[1:4] == ("bad_type", "field 'chosen.content' is a number; expected a string", "chosen.content")
    (found,) = parsed({**CHAT, "chosen": {"role": "assistant", "content": None, "tool_calls": []}})
    assert found[1:3] == ("bad_type", "field 'chosen.content' is null; expected a string")


# Further fields

OPTIONS = {"chat_template_kwargs": {"enable_thinking": False}, "tools": [{"name": "T"}]}


@pytest.mark.parametrize("given", [OPTIONS, {name: json.dumps(value) for name, value in OPTIONS.items()}])
def test_further_fields_are_columns_or_options_or_others(given):
    (example,) = parsed({**CHAT, "id": 7, "weight": 2, **given})
    assert example.columns == {"weight": (2.0,)}
    assert example.template_kwargs == {"enable_thinking": False, "tools": [{"name": "T"}]}
    assert example.other == {"id": 7}
    (example,) = parsed({**PLAIN, "id": 7, **given})
    assert example.template_kwargs == {}
    assert example.other == {"id": 7, **given}  # no template will see them


@pytest.mark.parametrize("given", [{"chat_template_kwargs": None, "tools": []}, {"tools": "[]"}, {"tools": ""}, {}])
def test_no_options(given):
    assert parsed({**CHAT, **given})[0].template_kwargs == {}


THREE = {"prompt": "Q:", "completions": ["a", "b", "c"], "scores": [1, 2, 3]}


@pytest.mark.parametrize(("row", "columns"), [
    ({**PLAIN, "weight": 0, "margin": -1.5, "label_probability": 1},
     {"weight": (0.0,), "margin": (-1.5,), "label_probability": (1.0,)}),
    ({**PLAIN, "margin": [2]}, {"margin": (2.0,)}),
    ({**PLAIN, "ref_logps": [-3, -4.5]}, {"ref_logps": (-3.0, -4.5)}),
    ({**PLAIN, "reference_logps": [-3, -4.5]}, {"ref_logps": (-3.0, -4.5)}),
    ({**PLAIN, "ref_rejected_logps": -4.5, "ref_chosen_logps": -3}, {"ref_logps": (-3.0, -4.5)}),
    ({**THREE, "ref_logps": [-1, -2, -3]}, {"reward": (1.0, 2.0, 3.0), "ref_logps": (-1.0, -2.0, -3.0)}),
    ({"prompt": "Q", "completion": "a", "label": True, "ref_logps": -2}, {"label": (1.0,), "ref_logps": (-2.0,)}),
    ({**PLAIN, "weight": None, "reward": 3, "advantage": 2, "source": "s"}, {}),
])  # fmt: skip
def test_known_columns(row, columns):
    (example,) = parsed(row)
    assert list(example.columns.items()) == list(columns.items())
    kept = {"reward", "advantage", "source"} & set(row)
    assert set(example.other) == kept  # those that a method makes for itself are none of a file's


@pytest.mark.parametrize(("extra", "fault"), [
    ({"weight": "2"}, ("bad_type", "field 'weight' is a string; expected a number", "weight")),
    ({"weight": True}, ("bad_type", "field 'weight' is a boolean; expected a number", "weight")),
    ({"weight": -1}, ("bad_value", "field 'weight' is -1; expected a number ≥ 0", "weight")),
    ({"weight": [1, 2]}, ("bad_type", "field 'weight' holds 2 numbers; expected 1", "weight")),
    ({"weight": []}, ("bad_type", "field 'weight' holds 0 numbers; expected 1", "weight")),
    ({"margin": float("inf")}, ("bad_type", "field 'margin' is not finite; expected a finite number", "margin")),
    ({"label_probability": 1.5},
     ("bad_value", "field 'label_probability' is 1.5; expected a number from 0 to 1", "label_probability")),
    ({"weight": 1e300}, ("bad_value", "field 'weight' is 1e+300; expected a number of at most 3.4e+38", "weight")),
    ({"margin": -1e39}, ("bad_value", "field 'margin' is -1e+39; expected a number of at most 3.4e+38", "margin")),
    ({"ref_logps": [-3, 4.5]},
     ("bad_value", "field 'ref_logps' is 4.5; expected a log-probability, a number ≤ 0", "ref_logps")),
    ({"ref_logps": -3}, ("bad_type", "field 'ref_logps' holds 1 number; expected 2", "ref_logps")),
    ({"ref_rejected_logps": -3},
     ("bad_type", "field 'ref_rejected_logps' holds 1 number; expected 2", "ref_rejected_logps")),
    ({"ref_logps": [-1, -2], "ref_chosen_logps": -3},
     ("bad_type", "field 'ref_logps' holds 3 numbers; expected 2", "ref_logps")),
])  # fmt: skip
def test_bad_columns(extra, fault):
    bad, good = parsed({**PLAIN, **extra}, {**PLAIN, **dict.fromkeys(extra)})
    assert bad[1:4] == fault
    assert good.columns == {}


def test_a_column_is_in_every_row_or_in_none():
    weighted = {**PLAIN, "weight": 1}
    first, second = parsed(weighted, PLAIN)
    assert first.columns == {"weight": (1.0,)}
    lacks = "the row lacks field 'weight', which a.jsonl:1 has; give it in every row or in none"
    assert second[:4] == ("a.jsonl:2", "mixed_columns", lacks, "weight")
    first, second = parsed(PLAIN, weighted)
    has = "the row has field 'weight', which a.jsonl:1 has not; give it in every row or in none"
    assert second[:4] == ("a.jsonl:2", "mixed_columns", has, "weight")
    first, second, third = parsed({**PLAIN, "weight": "x"}, weighted, PLAIN)  # a bad row shows nothing
    assert (first.reason, second.columns, third.reason) == ("bad_type", {"weight": (1.0,)}, "mixed_columns")


def test_a_known_column_that_nobody_reads_is_refused():
    def said(column: str) -> str:
        advice = f"remove it, or name it otherwise with --rename other={column}"
        return f"a.jsonl:1: column '{column}' is known but dpo does not read it; {advice}"

    for column, value in (("margin", 1), ("ref_logps", [-1, -2]), ("ref_chosen_logps", -1)):
        assert refusal({**PLAIN, column: value}, reads=("weight",), reader="dpo") == said(column)
        rename = {"other": column}
        (example,) = parsed({**PLAIN, column: value}, reads=("weight",), rename=rename)
        assert (example.columns, example.other) == ({}, {"other": value})
    assert parsed({**PLAIN, "weight": 1}, reads=("weight",))[0].columns == {"weight": (1.0,)}
    assert parsed({**PLAIN, "margin": None}, reads=())[0].columns == {}


# Renames


@pytest.mark.parametrize(("row", "rename", "expected"), [
    ({"question": "Q:", "chosen": " yes", "rejected": " no"}, {"prompt": "question"}, {}),
    ({"q": "Q:", "c": " yes", "r": " no", "id": 1}, {"prompt": "q", "chosen": "c", "rejected": "r"}, {"id": 1}),
    ({**PLAIN, "chosen": " no", "rejected": " yes"}, {"chosen": "rejected", "rejected": "chosen"}, {}),
    ({**PLAIN, "prompt": "old", "question": "Q:"}, {"prompt": "question"}, {"displaced prompt": "old"}),
    (PLAIN, {"weight": "w"}, {}),  # neither is in this row
])  # fmt: skip
def test_renames(row, rename, expected):
    assert parsed(row, rename=rename) == [Example("a.jsonl:1", "Q:", (" yes", " no"), other=expected)]


def test_a_field_that_has_our_name_does_not_stand_in_for_the_one_that_was_named():
    message = "field 'question' is missing, which --rename takes as prompt"
    _, bad = parsed({**PLAIN, "question": "Q"}, PLAIN, rename={"prompt": "question"})
    assert bad[:4] == ("a.jsonl:2", "missing_field", message, "question")


def test_a_label_that_is_a_word_is_the_name_of_a_class():
    assert parsed({"messages": Q + YES, "label": "maths"})[0].other == {"label": "maths"}


def test_renamed_columns_are_read():
    (example,) = parsed({**PLAIN, "w": 2, "weight": 9}, rename={"weight": "w"}, reads=("weight",))
    assert (example.columns, example.other) == ({"weight": (2.0,)}, {"displaced weight": 9})


# What can not be used


@pytest.mark.parametrize(("row", "fault"), [
    ({**PLAIN, "rejected": 3},
     ("bad_type", "field 'rejected' is a number; expected a string or a list of messages", "rejected")),
    ({**PLAIN, "prompt": None},
     ("bad_type", "field 'prompt' is null; expected a string or a list of messages", "prompt")),
    ({**PLAIN, "rejected": NO},
     ("bad_type", "field 'rejected' is a list; expected a string, as the prompt is", "rejected")),
    ({"prompt": "Q", "chosen": "a"},
     ("missing_field", "field 'rejected' is missing; the row has prompt, chosen", "rejected")),
    ({"prompt": "Q", "chosen": "a", "regected": "b"},
     ("missing_field", "field 'rejected' is missing; the row has prompt, chosen, regected; did you mean regected? "
      "Then --rename rejected=regected", "rejected")),
    ({}, ("missing_field", "field 'prompt' is missing; the row has nothing", "prompt")),
    ({f"field {n}": n for n in range(13)},
     ("missing_field", "field 'prompt' is missing; "
      f"the row has {', '.join(f'field {n}' for n in range(12))}, ...", "prompt")),
    ({**CHAT, "chosen": "a"},
     ("bad_type", "field 'chosen' is a string; expected a list of messages, as the prompt is", "chosen")),
    ({**CHAT, "chosen": []}, ("empty_completion", "field 'chosen' is an empty list", "chosen")),
    ({**CHAT, "prompt": []}, ("empty_prompt", "the prompt holds no message", "prompt")),
    ({**CHAT, "chosen": [True]},
     ("bad_type", "field 'chosen[0]' is a boolean; expected a message with role and content", "chosen[0]")),
    ({**CHAT, "chosen": [assistant(" \n")]}, ("empty_completion", "a completion says nothing", "")),
    ({**CHAT, "chosen": NO}, ("equal_completions", "the completions are the same text", "")),
    ({**CHAT, "prompt": [*Q, {"role": "user"}]},
     ("missing_field", "field 'prompt[1].content' is missing; prompt[1] has role", "prompt[1].content")),
    ({**CHAT, "rejected": {"role": "assistant", "content": 3}},
     ("bad_type", "field 'rejected.content' is a number; expected a string", "rejected.content")),
    ({**CHAT, "rejected": {"role": None, "content": "a"}},
     ("bad_type", "field 'rejected.role' is null; expected a string", "rejected.role")),
    ({**CHAT, "rejected": {"role": "asistant", "content": "a"}},
     ("unknown_role", "field 'rejected.role' is 'asistant'; did you mean 'assistant'?", "rejected.role")),
    ({**CHAT, "rejected": {"role": "x", "content": "a"}},
     ("unknown_role", "field 'rejected.role' is 'x'; "
      "expected one of system, developer, user, assistant, tool, function, "
      "ipython, model", "rejected.role")),
    ({**CHAT, "prompt": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]},
     ("unsupported_content", "field 'prompt[0].content[1]' is of type 'image'; expected text", "prompt[0].content[1]")),
    ({**CHAT, "prompt": [{"role": "user", "content": [{"type": "text"}]}]},
     ("missing_field", "field 'prompt[0].content[0].text' is missing; "
      "prompt[0].content[0] has type", "prompt[0].content[0].text")),
    ({**CHAT, "chat_template_kwargs": [1]},
     ("bad_type", "field 'chat_template_kwargs' is a list; expected an object", "chat_template_kwargs")),
    ({**CHAT, "chat_template_kwargs": "{"},
     ("bad_type", "field 'chat_template_kwargs' is a string; "
      "expected JSON, or a string that holds JSON", "chat_template_kwargs")),
    ({**CHAT, "tools": {"name": "T"}}, ("bad_type", "field 'tools' is an object; expected a list of tools", "tools")),
    ({**IMPLICIT, "prompt": "yes"},
     ("bad_type", "field 'chosen' is a list; "
      "expected a string, as the prompt is, or a dialogue that begins with it", "chosen")),
    (HH, ("mixed_format", "the row is in format 'hh'; expected 'preference'; split the data", "")),
    (GROUPS, ("mixed_format", "the row is in format 'groups'; expected 'preference'; split the data", "")),
    ({"text": "Q"}, ("missing_field", "field 'prompt' is missing; the row has text", "prompt")),
])  # fmt: skip
def test_bad_rows_are_dropped_by_name_and_the_data_goes_on(row, fault):
    first = CHAT if isinstance(row.get("prompt"), list) else PLAIN
    good, bad, again = parsed(first, row, first)
    assert isinstance(good, Example)
    assert again == good._replace(where="a.jsonl:3")
    assert bad[:4] == ("a.jsonl:2", *fault)
    assert bad.excerpt[:15] == json.dumps(row, ensure_ascii=False)[:15]


@pytest.mark.parametrize(("row", "fault"), [
    ({**SHAREGPT, "conversations": "a"},
     ("bad_type", "field 'conversations' is a string; expected a list of messages", "conversations")),
    ({**SHAREGPT, "conversations": []}, ("empty_prompt", "the prompt holds no message", "prompt")),
    ({**SHAREGPT, "conversations": [{"from": "judge", "value": "a"}]},
     ("unknown_role", "field 'conversations[0].from' is 'judge'; expected one of human, user, gpt, assistant, system, "
      "observation, tool, function_call", "conversations[0].from")),
    ({**SHAREGPT, "chosen": {"from": "human", "value": "a"}},
     ("unknown_role", "field 'chosen' is said by 'user'; expected 'gpt' or 'assistant'", "chosen")),
    ({**SHAREGPT, "chosen": {"from": "gpt"}},
     ("missing_field", "field 'chosen.value' is missing; chosen has from", "chosen.value")),
    ({**SHAREGPT, "chosen": 3},
     ("bad_type", "field 'chosen' is a number; expected a message with 'from' and 'value'", "chosen")),
    ({"messages": YES + Q, "label": True}, ("empty_completion", "the last message is not the assistant's", "")),
    ({"messages": YES, "label": True}, ("empty_prompt", "the prompt holds no message", "prompt")),
    ({"messages": [], "label": True}, ("empty_completion", "the last message is not the assistant's", "")),
    ({"messages": Q + YES, "label": 2}, ("bad_type", "field 'label' is a number; expected true or false", "label")),
    ({"messages": Q + YES, "label": float("nan")},
     ("bad_type", "field 'label' is a number; expected true or false", "label")),
    ({"messages": Q + YES, "label": None}, ("bad_type", "field 'label' is null; expected true or false", "label")),
    ({"messages": Q}, ("empty_completion", "no message is the assistant's; expected one or more", "")),
    ({"text": 3}, ("bad_type", "field 'text' is a number; expected a string", "text")),
    ({"text": " "}, ("empty_completion", "a completion says nothing", "")),
    ({**ALPACA, "output": "a", "history": [["a"]]},
     ("bad_type", "field 'history' holds a turn that is no question with its answer", "history")),
    ({**ALPACA, "output": "a", "history": ["a"]},
     ("bad_type", "field 'history[0]' is a string; expected a question and its answer", "history[0]")),
    ({**ALPACA, "output": ["a"]}, ("bad_type", "field 'output' is a list; expected a string", "output")),
    ({**RATED, "completions": [{"response": "yes", "overall_score": 1}, {"response": "no"}]},
     ("missing_field", "field 'completions[1].overall_score' is missing; "
      "completions[1] has response", "completions[1].overall_score")),
    ({**RATED, "completions": RATED["completions"][:1]},
     ("bad_type", "1 completions and 1 scores; "
      "expected two completions or more and one score for each", "completions")),
    ({**RATED, "completions": []},
     ("bad_type", "0 completions and 0 scores; "
      "expected two completions or more and one score for each", "completions")),
    ({**RATED, "completions": ["a", "b"]},
     ("bad_type", "field 'completions[0]' is a string; expected an object", "completions[0]")),
    ({**GROUPS, "scores": [1, 2]},
     ("bad_type", "3 completions and 2 scores; "
      "expected two completions or more and one score for each", "completions")),
    ({**GROUPS, "scores": 1}, ("bad_type", "field 'scores' is a number; expected a list of numbers", "scores")),
    ({**GROUPS, "scores": [1, True, 2]},
     ("bad_type", "field 'scores[1]' is a boolean; expected a number", "scores[1]")),
    ({**GROUPS, "scores": [1, 2, float("nan")]},
     ("bad_type", "field 'scores[2]' is not finite; expected a finite number", "scores[2]")),
    ({**GROUPS, "scores": [1, 2, 10**400]},
     ("bad_type", "field 'scores[2]' is not finite; expected a finite number", "scores[2]")),
    ({**GROUPS, "completions": ["a"] * 3}, ("equal_completions", "the completions are the same text", "")),
    ({**STEPS, "labels": [True]},
     ("bad_type", "2 steps and 1 labels; expected one step or more and one label for each", "labels")),
    ({**STEPS, "completions": [], "labels": []},
     ("bad_type", "0 steps and 0 labels; expected one step or more and one label for each", "labels")),
    ({**STEPS, "labels": [True, "so"]},
     ("bad_type", "field 'labels[1]' is a string; expected true or false", "labels[1]")),
    ({"chosen": IMPLICIT["chosen"], "rejected": "no"},
     ("bad_type", "field 'rejected' is a string; expected a list of messages", "rejected")),
    ({"chosen": "a b", "rejected": 3}, ("bad_type", "field 'rejected' is a number; expected a string", "rejected")),
    ({"prompt": "Q", "completion": YES},
     ("bad_type", "field 'completion' is a list; expected a string, as the prompt is", "completion")),
])  # fmt: skip
def test_bad_rows_of_other_formats(row, fault):
    (bad,) = parsed(row)
    assert bad[:4] == ("a.jsonl:1", *fault)


def test_every_record_is_in_the_form_of_the_first():
    _, bad = parsed(PLAIN, CHAT)
    message = "the prompt is a list of messages; expected a string as in a.jsonl:1; split the data"
    assert bad[:4] == ("a.jsonl:2", "mixed_format", message, "prompt")
    _, bad = parsed(CHAT, PLAIN)
    message = "the prompt is a string; expected a list of messages as in a.jsonl:1; split the data"
    assert bad[:4] == ("a.jsonl:2", "mixed_format", message, "prompt")


# Whole files


def test_an_unknown_format_lists_the_fields_and_the_formats():
    message = refusal({"a": "b", "c": "d"})
    assert message == (
        "a.jsonl:1: unknown format; the fields are a, c; --rename OURS=THEIRS to fit prompt, chosen, rejected; "
        "prompt, completions, scores; prompt, completion, label; prompt, completion; or messages (docs/data.md has all formats)"
    )
    assert "the fields are none" in refusal({}, {})
    assert refusal(*[{}] * 200) == refusal({})


@pytest.mark.parametrize(("row", "rename"), [
    ({"question": "Q", "chosen": "a", "rejected": "b"}, "prompt=question"),  # Orca's
    ({"prompt": "Q", "chosn": "a", "rejected": "b"}, "chosen=chosn"),
    ({"prompt": "Q", "winner": "a", "loser": "b"}, "chosen=winner rejected=loser"),
    ({"prompt": "Q", "response": "a"}, "completion=response"),
    ({"prompt": "Q", "responses": ["a", "b"], "ratings": [1, 2]}, "completions=responses scores=ratings"),
    ({"prompt": "Q", "completion": "a", "labels": True}, "label=labels"),
    ({"instruction": "Q", "output": "a", "label": True}, "kto_tag=label"),
    ({"instruction": "Q", "input": "i", "output": "a", "label": True}, "kto_tag=label"),
])  # fmt: skip
def test_near_misses_are_refused_with_the_rename_that_helps(row, rename):
    message = refusal(row)
    assert f"did you mean --rename {rename}?" in message
    assert message.startswith("a.jsonl:1: ")
    pairs = dict(pair.split("=") for pair in rename.split())
    assert isinstance(parsed(row, rename=pairs)[0], Example)


def test_a_poorer_format_can_be_forced():
    row = {"prompt": "Q", "chosn": "a", "rejected": "b"}
    assert refusal(row) == "a.jsonl:1: did you mean --rename chosen=chosn? If not, force --format prompt-only"
    (example,) = parsed(row, format="prompt_only")
    assert example == Example("a.jsonl:1", "Q", (), other={"chosn": "a", "rejected": "b"})


@pytest.mark.parametrize(("name", "advice"), [
    ("jsonl", f"expected one of {', '.join(FORMATS)}"),
    ("pairs", "expected one of preference, sharegpt, alpaca, openrlhf, hh, implicit"),
    ("stepwize", "did you mean stepwise?"),
    ("language_modelling", "did you mean language-modeling?"),
])  # fmt: skip
def test_unknown_names_of_formats(name, advice):
    with pytest.raises(ValueError) as error:
        parsed(PLAIN, format=name)
    assert str(error.value) == f"format '{name}' is unknown; {advice}"
    assert not isinstance(error.value, DataError)  # no file is at fault


def test_names_of_formats():
    assert [known(name) for name in ("alpaca_kto", "hh")] == ["alpaca-kto", "hh"]


def test_a_file_of_bad_rows():
    bad = [Dropped(f"a.jsonl:{n}", "malformed_json", "malformed JSON at column 1") for n in range(1, 300)]
    with pytest.raises(DataError) as error:
        parse_rows(bad, Reading())
    assert str(error.value) == "a.jsonl:1: malformed JSON at column 1; none of the first 100 rows can be read"
    with pytest.raises(DataError, match=r"^a.jsonl:9: unknown format; the fields are question, answer"):
        parse_rows([bad[0], Row("a.jsonl:9", {"question": "a", "answer": "b"})], Reading())
