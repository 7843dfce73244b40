"""One schema: types, defaults, overrides, sums, a user's own method, and errors that name the nearest setting."""

from inspect import signature

import pytest

from softq.objectives import METHODS
from softq.training.settings import build, flattened

REQUIRED = {"model": "m", "data": ["d.jsonl"], "output": "o"}


def test_strings_become_numbers_and_defaults_are_filled_in() -> None:
    settings, method, understood = build("dpo", {**REQUIRED, "beta": "0.3", "learning_rate": "5e-7", "bf16": "true"})
    assert (settings.learning_rate, settings.bf16, settings.batch_size) == (5e-7, True, 32)
    assert method.beta == 0.3
    assert (understood["method"], understood["beta"], understood["label_smoothing"]) == ("dpo", 0.3, 0.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learnig_rate": 1}, r"--learnig-rate: no such setting of a run of dpo; did you mean --learning-rate\?"),
        ({"alpha": 1}, "--alpha: no such setting of a run of dpo"),
        ({"learning_rate": "fast"}, "--learning-rate: 'fast' is not valid: input should be a valid number"),
        ({"beta": "x"}, "--beta: 'x' is not valid"),
        ({"batch_size": 0}, "--batch-size: 0 is not valid: input should be greater than or equal to 1"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5; expected 0 ≤ label_smoothing < 0.5"),
        ({"model": None}, "--model: None is not valid"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("dpo", {**REQUIRED, **values})


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(ValueError, match="--output is missing"):
        build("dpo", {"model": "m", "data": ["d"]})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dpoo", r"no method 'dpoo'; did you mean dpo\?"),
        ("nowhere.mine:loss", "method 'nowhere.mine:loss': No module named 'nowhere'"),
        ("json:nothing", "module json has no function 'nothing'"),
        ("dpo+dpo", "names a summand twice"),
        ("dpo+kto", "one batch can not be pairs and labels"),
        ("json:dumps", "needs a type annotation"),
    ],
)
def test_a_wrong_method_is_one_clear_line(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, REQUIRED)


def test_a_sum_has_weights_and_settings_under_each_name() -> None:
    _, method, understood = build("dpo+sft", {**REQUIRED, "dpo.beta": "0.7", "weights": "0.8,0.2"})
    assert [(term.name, term.total) for term in method.terms] == [("dpo", 0.8), ("sft", 0.2)]
    assert (method.beta, method.takes) == (0.7, "pairs")
    assert (understood["weights"], understood["dpo.beta"]) == ([0.8, 0.2], 0.7)
    with pytest.raises(ValueError, match="3 numbers for 2 methods"):
        build("dpo+sft", {**REQUIRED, "weights": "1,2,3"})


def test_yaml_of_one_method_and_of_a_sum() -> None:
    assert flattened({"method": "dpo", "beta": 0.2, "learning-rate": 1}) == ("dpo", {"beta": 0.2, "learning_rate": 1})
    document = {"method": [{"dpo": {"beta": 0.1}, "weight": 0.8}, {"sft": {}, "weight": 0.2}], "model": "m"}
    assert flattened(document) == ("dpo+sft", {"model": "m", "dpo.beta": 0.1, "weights": [0.8, 0.2]})
    assert flattened({"method": [{"ipo": {"beta": 0.1}}]}) == ("ipo", {"beta": 0.1})
    assert flattened({"method": "dpo", "data": "a.jsonl"}) == ("dpo", {"data": ["a.jsonl"]})
    with pytest.raises(ValueError, match="expected one and a weight"):
        flattened({"method": [{"dpo": {}, "sft": {}}]})


@pytest.mark.parametrize("name", [name for name, make in METHODS.items() if "beta" in signature(make).parameters])
def test_a_beta_that_would_invert_or_stop_a_method_is_refused(name: str) -> None:
    for beta in (0.0, -0.1):
        with pytest.raises(ValueError, match="expected beta > 0"):
            METHODS[name](beta=beta)


def test_every_setting_of_every_method_changes_its_loss_or_gradient() -> None:
    """An option that is read by nothing would leave both as they are."""
    from softq.verify.tables import slope, some_models, some_step

    other = {"beta": 0.37, "alpha": 0.21, "label_smoothing": 0.17, "length_average": False, "tau": 0.3}
    other |= {"desirable_weight": 1.7, "undesirable_weight": 0.4}
    other |= {"baseline": "running", "shift": "batch", "value": "fitted"}
    other |= {"delta": 0.7, "k": 2, "bar": 0.3, "tau": 1.9, "ratio": 3.1, "epsilon": 0.4}
    for name, make in METHODS.items():
        batch = some_step(make())
        base = slope(make(), some_models(), batch)
        for parameter in signature(make).parameters:
            loss, grad = slope(make(**{parameter: other[parameter]}), some_models(), batch)
            assert abs(loss - base[0]) > 1e-9 or (grad - base[1]).abs().max() > 1e-9, f"{name}.{parameter}"
