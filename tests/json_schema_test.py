"""The schema for editors takes what --print-config writes, of every method, and no typo; and YAML goes round."""

import json
from typing import Any, get_args, get_origin

import pytest
import yaml
from depth import tries
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from softq.objectives import METHODS
from softq.training.json_schema import json_schema
from softq.training.methods import method_settings, schema
from softq.training.settings import Settings, build, flattened

REQUIRED = {"model": "m", "data": ["d.jsonl"], "output": "o"}
SUMS = ["dpo+sft", "sft+kto", "wpo+sft+ipo"]


def printed(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """What --print-config writes, read back."""
    _, _, understood = build(name, {**REQUIRED, **values})
    return yaml.safe_load(yaml.safe_dump(understood, sort_keys=False, allow_unicode=True))


def test_it_knows_every_setting_of_a_run_and_of_each_method() -> None:
    whole = json.loads(json.dumps(json_schema()))
    assert set(whole["properties"]) == {"method", *Settings.model_fields}
    assert whole["properties"]["dtype"]["enum"][:2] == ["float32", "bfloat16"]
    assert whole["properties"]["learning_rate"]["default"] == Settings.model_fields["learning_rate"].default
    own = {part["if"]["properties"]["method"]["const"]: part["then"] for part in whole["allOf"][: len(METHODS)]}
    assert {name: set(then["properties"]) for name, then in own.items()} == {
        name: set(method_settings(name).model_fields) for name in METHODS
    }
    beta = own["dpo"]["properties"]["beta"]
    assert (beta["type"], beta["default"]) == ("number", 0.1)
    assert "2305.18290" in beta["description"]


@pytest.fixture(scope="module")
def wrong() -> Any:
    """document -> whether the schema refuses it."""
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(json_schema())
    validator = jsonschema.Draft202012Validator(json_schema())
    return lambda document: not validator.is_valid(document)


@pytest.mark.parametrize("name", [*METHODS, *SUMS])
def test_what_print_config_writes_is_valid(name: str, wrong: Any) -> None:
    document = printed(name, {})
    assert not wrong(document)
    assert wrong({**document, "learnig_rate": 1e-6})
    assert wrong({**document, "learning_rate": "fast"})
    assert wrong({**document, "dpo.alpha": 1.0})


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"model": "m", "data": "d.jsonl", "beta": 0.2},  # the method is the command line's
        {"method": "dpo", "beta": 1, "reference": None, "max_steps": None},
        {"method": "mine:hinge", "margin": 2.0, "anything": [1]},
        {"method": "mine:hinge+sft", "mine:hinge.margin": 2.0, "weights": [1, 0.5]},
        {"method": [{"dpo": {"beta": 0.1}, "weight": 0.8}, {"sft": None, "weight": 0.2}]},
        {"method": [{"mine.loss:hinge": {"margin": 1}}]},
        {"data": ["a.jsonl", {"path": "b.jsonl", "weight": 2, "name": "b"}]},
        {"data": {"path": "owner/name", "split": "test"}, "rename": {"prompt": "question"}},
        {"method": "aligndistil", "models": {"dpo": "a", "reverse": "b"}},
        {"method": "aligndistil", "models": "dpo=a,reverse=b"},
    ],
)
def test_what_train_reads_is_valid(document: dict[str, Any], wrong: Any) -> None:
    assert not wrong(document)


@pytest.mark.parametrize(
    "document",
    [
        {"method": "dpoo"},
        {"method": "dpo", "alpha": 0.5},  # tdpo2's
        {"method": "sft", "beta": 0.1},
        {"method": "dpo", "weights": [1.0, 1.0]},
        {"method": "dpo+sft", "beta": 0.1},
        {"method": "dpo+sft", "kto.beta": 0.1},
        {"method": "dpo", "dpo.beta": 0.1},
        {"method": "dpo", "overwrite": True},  # of the command, not of a file
        {"method": [{"dpo": {"beta": 0.1}, "sft": {}}]},
        {"method": [{"dpo": {"alpha": 0.1}}]},
        {"method": [{"weight": 1.0}]},
        {"method": []},
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"bf16": "yes"},
        {"truncate": "cut"},
        {"eval_fraction": 1.0},
        {"data": []},
        {"data": [{"name": "b"}]},
        {"data": [{"path": "b", "wieght": 2}]},
        {"model": None},
        {"models": ["dpo=a"]},
        ["method"],
    ],
)
def test_what_train_would_refuse_is_not_valid(document: Any, wrong: Any) -> None:
    assert wrong(document)


# PyYAML does not escape a next-line character where unicode is allowed; nobody has one in a path.
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1)


def other(kind: Any, default: Any) -> st.SearchStrategy:
    """Values of a type; that of a setting differs from its default where the type has room."""
    low, high = 1e-9, 0.49  # within the bounds of every number that has any, and no power of ten
    if get_origin(kind) is not None and type(None) in get_args(kind):
        return st.none() | other(get_args(kind)[0], default)
    if get_origin(kind) is dict:
        return st.dictionaries(TEXT, TEXT, min_size=1)
    if get_args(kind) and get_origin(kind) is not list and not isinstance(get_args(kind)[0], str):
        return other(get_args(kind)[0], default)  # Annotated
    if kind is bool:
        return st.just(not default)
    if kind is int:
        return st.integers(1, 10**9).filter(lambda value: value != default)
    if kind is float:
        return (st.floats(low, high) | st.just(5e-7)).filter(lambda value: value != default)
    if kind is str:
        return TEXT | st.sampled_from(["no", "null", "1e-6", "5", "~", "a: b", " x", "été"])
    if get_origin(kind) is list:
        given_as = st.fixed_dictionaries({"path": TEXT, "weight": st.floats(0.1, 9)})
        items = TEXT if get_args(kind)[0] is str else TEXT | given_as
        return st.lists(items, min_size=1)
    return st.sampled_from([value for value in get_args(kind) if value != default])


def drawn(model: type[BaseModel], prefix: str = "") -> dict[str, st.SearchStrategy]:
    return {
        prefix + name: other(info.annotation, info.get_default(call_default_factory=True))
        for name, info in model.model_fields.items()
    }


# Settings that shut each other out take turns; each is at a value that is not its default in one of them.
TURNS = [
    {"bf16": False, "dtype": "nf4", "use_peft": True, "eval_fraction": 0.05, "cache_reference": False, "shard": False},
    {"dtype": "float32", "eval_data": [], "reference_mixup": 0.0, "reference_every": 512, "use_peft": True},
    {"dtype": "float64", "bf16": False, "eval_data": [], "cache_reference": False, "use_peft": True},
]


# Settings of a run are the same for every method: one method takes every turn, the others take one.
TAKEN = [(name, n % len(TURNS)) for n, name in enumerate([*METHODS, *SUMS])]
TAKEN += [("dpo", n) for n in range(len(TURNS)) if ("dpo", n) not in TAKEN]


@pytest.mark.parametrize(("name", "number"), TAKEN)
@settings(max_examples=tries(20), deadline=None)
@given(data=st.data())
def test_every_value_goes_round_through_yaml(name: str, number: int, data: st.DataObject) -> None:
    turn = TURNS[number]
    fields = drawn(Settings) | {
        key: value for prefix, part in schema(name).items() for key, value in drawn(part, prefix).items()
    }
    if "+" in name:
        fields["weights"] = st.lists(st.floats(0.01, 2), min_size=name.count("+") + 1, max_size=name.count("+") + 1)
    fields["best"] = st.none() | TEXT.map("eval_{}".format)
    values = data.draw(st.fixed_dictionaries({k: v for k, v in fields.items() if k not in turn})) | turn
    run, method, understood = build(name, values)
    text = yaml.safe_dump(understood, sort_keys=False, allow_unicode=True)
    again, flat = flattened(yaml.safe_load(text))
    assert again == name
    run_again, method_again, understood_again = build(name, flat)
    assert (run_again, understood_again) == (run, understood)
    assert [term.total for term in method_again.terms] == [term.total for term in method.terms]
    assert (method_again.beta, method_again.takes, method_again.columns) == (method.beta, method.takes, method.columns)


def test_the_turns_leave_no_setting_at_its_default() -> None:
    for name, info in Settings.model_fields.items():
        pinned = [turn.get(name, "drawn") for turn in TURNS]
        assert any(value == "drawn" or value != info.default for value in pinned), name


def test_numbers_that_yaml_reads_as_strings_are_numbers() -> None:
    document = yaml.safe_load(
        "{method: dpo, model: m, data: d, output: o, learning_rate: 5e-7, max_steps: null, beta: 1e-2}"
    )
    assert document["learning_rate"] == "5e-7"
    run, method, understood = build(*flattened(document))
    assert (run.learning_rate, run.max_steps, method.beta) == (5e-7, None, 0.01)
    assert yaml.safe_load(yaml.safe_dump(understood))["learning_rate"] == 5e-7
    listed = "method: [{dpo: {beta: 1e-1}, weight: 8e-1}, {sft: , weight: 2e-1}]\nmodel: m\ndata: {path: d, weight: 2}\noutput: o"
    name, values = flattened(yaml.safe_load(listed))
    run, _, understood = build(name or "", values)
    assert (understood["weights"], understood["dpo.beta"], run.data) == ([0.8, 0.2], 0.1, [{"path": "d", "weight": 2}])
