"""softq.data.formats and fields: each format by hand, and one clear line for each way in which a row can be wrong."""

import pytest

from softq.data.formats import FORMATS, Dropped, Example, detect, parse_rows
from softq.data.rows import DataError, Row


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


PLAIN = {"prompt": "Q:", "chosen": " yes", "rejected": " no"}
CHAT = {"prompt": [user("Q")], "chosen": [assistant("yes")], "rejected": assistant("no")}
IMPLICIT = {"chosen": [user("Q"), assistant("yes")], "rejected": [user("Q"), assistant("no")]}
HH = {"chosen": "\n\nHuman: Q\n\nAssistant: yes", "rejected": "\n\nHuman: Q\n\nAssistant: no"}
SHAREGPT = {
    "conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}],
    "chosen": {"from": "gpt", "value": "yes"},
    "rejected": {"from": "assistant", "value": "no"},
}
GROUPS = {"prompt": "Q:", "completions": ["a", "b", "c"], "scores": [1, 0.5, -2]}


def parsed(*rows: dict, format: str | None = None, **reads):
    placed = [Row(f"a.jsonl:{i}", row) for i, row in enumerate(rows, 1)]
    name = format or detect(rows[0], "a.jsonl:1")
    return list(parse_rows(placed, name, **reads))


def refusal(*rows: dict, **reads) -> str:
    with pytest.raises(DataError) as error:
        parsed(*rows, **reads)
    return str(error.value)


@pytest.mark.parametrize(("row", "name", "prompt", "completions", "scores"), [
    (PLAIN, "preference", "Q:", (" yes", " no"), None),
    (CHAT, "preference", [user("Q")], ([assistant("yes")], [assistant("no")]), None),
    (IMPLICIT, "implicit", [user("Q")], ([assistant("yes")], [assistant("no")]), None),
    (HH, "hh", "\n\nHuman: Q\n\nAssistant:", (" yes", " no"), None),
    (SHAREGPT, "sharegpt", [{"role": "system", "content": "S"}, user("Q")], ([assistant("yes")], [assistant("no")]), None),
    (GROUPS, "groups", "Q:", ("a", "b", "c"), (1.0, 0.5, -2.0)),
    ({**CHAT, **GROUPS, "prompt": [user("Q")], "completions": [assistant("a"), [assistant("b")]], "scores": [1, 0]},
     "groups", [user("Q")], ([assistant("a")], [assistant("b")]), (1.0, 0.0)),
])  # fmt: skip
def test_formats(row, name, prompt, completions, scores):
    if name != "groups" or "chosen" not in row:
        assert detect(row, "a.jsonl:1") == name
    (example,) = parsed(row, format=name)
    assert example[:4] == ("a.jsonl:1", prompt, completions, scores)
    assert FORMATS[name].kind == ("groups" if scores else "pairs")


def test_ultrafeedback_repeats_its_prompt_as_a_string():
    (example,) = parsed({**IMPLICIT, "prompt": "Q", "score_chosen": 8.0})
    assert (example.prompt, example.completions) == ([user("Q")], ([assistant("yes")], [assistant("no")]))
    assert refusal({**IMPLICIT, "prompt": "yes"}) == (
        "a.jsonl:1: field 'chosen' is a list; expected a string, as the prompt is, or a dialogue that begins with it"
    )


# What belongs to the prompt


def test_an_implicit_prompt_is_what_both_dialogues_begin_with():
    chosen = [user("Q"), assistant("a"), user("b"), assistant("c")]
    (example,) = parsed({"chosen": chosen, "rejected": [*chosen[:3], assistant("d")]})
    assert (example.prompt, example.completions) == (chosen[:3], ([assistant("c")], [assistant("d")]))
    (example,) = parsed({"chosen": chosen, "rejected": chosen[:2]})  # a completion keeps one message
    assert (example.prompt, example.completions) == (chosen[:1], (chosen[1:], chosen[1:2]))
    assert parsed({"chosen": chosen, "rejected": [user("R"), assistant("a")]}) == [
        Dropped("a.jsonl:1", "no_shared_prompt")
    ]
    assert parsed({"chosen": chosen[1:2], "rejected": [assistant("b")]}) == [Dropped("a.jsonl:1", "no_shared_prompt")]


H, A = "\n\nHuman:", "\n\nAssistant:"


@pytest.mark.parametrize(("chosen", "rejected", "prompt"), [
    (f"{H} a{A} b{H} c{A} d", f"{H} a{A} b{H} c{A} de", f"{H} a{A} b{H} c{A}"),
    (f"{H} a{A} b", f"{H} a{A} bc", f"{H} a{A}"),  # shared words are not the prompt's
    (f"{H} a{A}", f"{H} a{A} b", f"{H} a{A}"),
    (f"{H} a{A} b{A} c", f"{H} a{A} b{A} d", f"{H} a{A} b{A}"),
])  # fmt: skip
def test_an_hh_prompt_ends_with_the_last_shared_turn_mark(chosen, rejected, prompt):
    for first, second in ((chosen, rejected), (rejected, chosen)):
        (example,) = parsed({"chosen": first, "rejected": second}, format="hh")
        assert example.prompt == prompt
        assert example.completions == (first.removeprefix(prompt), second.removeprefix(prompt))


@pytest.mark.parametrize(("chosen", "rejected", "reason"), [
    (f"{H} a{A} b{H} c{A} d", f"{H} a{A} b", "later_user_turn"),
    (f"{H} a{A} b", f"{H} a{A} b{H} c", "later_user_turn"),
    (f"{H} a{A} b{H} c{A} d", f"{H} a{A} b{H} x{A} d", "later_user_turn"),
    (f"{H} a{A} b", f"{H} c{A} b", "no_shared_prompt"),
    (f"{H} a", f"{H} a{A} b", "no_shared_prompt"),
    ("a", "b", "no_shared_prompt"),
])  # fmt: skip
def test_hh_drops(chosen, rejected, reason):
    assert parsed({"chosen": chosen, "rejected": rejected}, format="hh") == [Dropped("a.jsonl:1", reason)]


@pytest.mark.parametrize("row", [{**CHAT, "prompt": []}, {**SHAREGPT, "conversations": []}])
def test_no_message_is_no_prompt(row):
    assert parsed(row) == [Dropped("a.jsonl:1", "empty_prompt")]


# Further fields


def test_further_fields_are_sorted_into_read_options_and_others():
    extra = {"id": 7, "weight": 2, "chat_template_kwargs": {"enable_thinking": False}, "tools": [{"name": "T"}]}
    (example,) = parsed({**CHAT, **extra}, reads=("weight",))
    assert example.columns == {"weight": 2.0}
    assert example.template_kwargs == {"enable_thinking": False, "tools": [{"name": "T"}]}
    assert example.other == ("id",)
    (example,) = parsed({**PLAIN, **extra}, reads=("weight",))
    assert example.template_kwargs == {}
    assert example.other == ("id", "chat_template_kwargs", "tools")  # no template will see them
    (example,) = parsed({**PLAIN, "weight": 0, "reward": -1}, reads=("weight", "reward"))
    assert example.columns == {"weight": 0.0, "reward": -1.0}
    (example,) = parsed({**CHAT, "chat_template_kwargs": None, "tools": []})
    assert example.template_kwargs == {}


@pytest.mark.parametrize(("rows", "message"), [
    ([{**PLAIN, "advantage": 1}],
     "a.jsonl:1: column 'advantage' is known but dpo does not read it; remove it or rename it"),
    ([{**PLAIN, "weight": "2"}], "a.jsonl:1: field 'weight' is a string; expected a number"),
    ([{**PLAIN, "weight": -1}], "a.jsonl:1: field 'weight' is -1; expected a number ≥ 0"),
    ([{**PLAIN, "weight": 1}, PLAIN],
     "a.jsonl:2: field 'weight' is missing, but a.jsonl:1 has it; give it in every row or in none"),
    ([PLAIN, {**PLAIN, "weight": 1}],
     "a.jsonl:1: field 'weight' is missing, but a.jsonl:2 has it; give it in every row or in none"),
    ([{**CHAT, "chat_template_kwargs": [1]}], "a.jsonl:1: field 'chat_template_kwargs' is a list; expected an object"),
    ([{**CHAT, "tools": "T"}], "a.jsonl:1: field 'tools' is a string; expected a list of tools"),
])  # fmt: skip
def test_refused_columns(rows, message):
    assert refusal(*rows, reads=("weight",), method="dpo") == message


# Refusals


@pytest.mark.parametrize(("rows", "message"), [
    ([{**PLAIN, "rejected": 3}], "a.jsonl:1: field 'rejected' is a number; expected a string or a list of messages"),
    ([{**PLAIN, "prompt": None}], "a.jsonl:1: field 'prompt' is null; expected a string or a list of messages"),
    ([PLAIN, {"prompt": "Q", "chosen": "a"}],
     "a.jsonl:2: field 'rejected' is missing; the row has prompt, chosen"),
    ([{**PLAIN, "rejected": [assistant("a")]}],
     "a.jsonl:1: field 'rejected' is a list; expected a string, as the prompt is"),
    ([{**CHAT, "chosen": "a"}], "a.jsonl:1: field 'chosen' is a string; expected a list of messages, as the prompt is"),
    ([{**CHAT, "chosen": []}], "a.jsonl:1: field 'chosen' is an empty list; expected one message or more"),
    ([{**CHAT, "chosen": [True]}], "a.jsonl:1: field 'chosen[0]' is a boolean; expected an object"),
    ([{**CHAT, "prompt": [user("a"), {"role": "user"}]}],
     "a.jsonl:1: field 'prompt[1].content' is missing; prompt[1] has role"),
    ([{**CHAT, "rejected": {"role": "assistant", "content": 3}}],
     "a.jsonl:1: field 'rejected.content' is a number; expected a string"),
    ([{**CHAT, "rejected": {"role": None, "content": "a"}}],
     "a.jsonl:1: field 'rejected.role' is null; expected a string"),
    ([{**HH, "chosen": HH["chosen"]}, {**HH, "rejected": 3}],
     "a.jsonl:2: field 'rejected' is a number; expected a string"),
    ([{**SHAREGPT, "conversations": "a"}],
     "a.jsonl:1: field 'conversations' is a string; expected a list of messages"),
    ([{**SHAREGPT, "conversations": [{"from": "observation", "value": "a"}]}],
     "a.jsonl:1: field 'conversations[0].from' is 'observation'; expected one of human, user, gpt, assistant, system"),
    ([{**SHAREGPT, "chosen": {"from": "human", "value": "a"}}],
     "a.jsonl:1: field 'chosen.from' is 'human'; expected 'gpt' or 'assistant'"),
    ([{**SHAREGPT, "chosen": {"from": "gpt"}}], "a.jsonl:1: field 'chosen.value' is missing; chosen has from"),
    ([{**GROUPS, "scores": [1, 2]}],
     "a.jsonl:1: 3 completions and 2 scores; expected two completions or more and one score for each"),
    ([{**GROUPS, "completions": ["a"], "scores": [1]}],
     "a.jsonl:1: 1 completions and 1 scores; expected two completions or more and one score for each"),
    ([{**GROUPS, "scores": 1}], "a.jsonl:1: field 'scores' is a number; expected a list of numbers"),
    ([{**GROUPS, "scores": [1, True, 2]}], "a.jsonl:1: field 'scores[1]' is a boolean; expected a number"),
    ([{**GROUPS, "scores": [1, 2, float("nan")]}],
     "a.jsonl:1: field 'scores[2]' is not finite; expected a finite number"),
    ([{**GROUPS, "scores": [1, 2, 10**400]}],
     "a.jsonl:1: field 'scores[2]' is not finite; expected a finite number"),
    ([PLAIN, CHAT],
     "a.jsonl:2: the prompt is a list of messages; expected a string as in a.jsonl:1; split the data"),
])  # fmt: skip
def test_refusals(rows, message):
    assert refusal(*rows) == message


def test_a_row_in_another_format_is_refused_by_name():
    assert refusal(PLAIN, HH) == (
        "a.jsonl:2: the row is in format 'hh'; expected 'preference' (prompt, chosen and rejected, as strings or as "
        "messages) as in the rows before; split the data"
    )
    assert "a.jsonl:2: the row is in format 'preference'; expected 'hh'" in refusal(HH, PLAIN)


def test_an_unknown_format_lists_the_fields_and_the_formats():
    message = refusal({"question": "a", "answer": "b"})
    assert message.startswith("a.jsonl:1: unknown format; the fields are question, answer; rename them to fit one of: ")
    assert all(f"{name}: {format.shape}" in message for name, format in FORMATS.items())
    assert "unknown format" in refusal({"chosen": "The sky is blue.", "rejected": "The sky is green."})
    assert refusal(PLAIN, format="pairs") == (
        "format 'pairs' is unknown; expected one of preference, implicit, hh, sharegpt, groups"
    )


def test_tool_calls_need_no_content():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "T"}]}
    (example,) = parsed({**CHAT, "chosen": [call, assistant("a")]})
    assert example == Example("a.jsonl:1", [user("Q")], ([call, assistant("a")], [assistant("no")]))
    message = "a.jsonl:1: field 'chosen.content' is a number; expected a string"
    assert refusal({**CHAT, "chosen": {**call, "content": 3}}) == message
