"""One schema: types, defaults, overrides, sums, a user's own method, and errors that name the nearest setting."""

import math
from inspect import signature
from pathlib import Path

import pytest

from softq.cli.flags import flags, parser_of
from softq.objectives import METHODS
from softq.objectives.links import finite
from softq.records import no_credit
from softq.training.settings import build, flattened
from softq.verify.tables import slope, some_models, some_step

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
        ({"reference": ""}, "--reference: '' is not valid"),
        ({"beta": "inf"}, "--beta: 'inf' is not valid: input should be a finite number"),
        ({"learning_rate": float("inf")}, "--learning-rate: inf is not valid: input should be a finite number"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("dpo", {**REQUIRED, **values})


@pytest.mark.parametrize(("name", "setting"), [("dpo_anchor", "delta"), ("alphapo", "alpha"), ("cringe", "bar")])
def test_a_setting_that_may_have_any_sign_is_a_finite_number(name: str, setting: str) -> None:
    for value in ("nan", "-inf"):
        with pytest.raises(ValueError, match=f"--{setting}: '{value}' is not valid: input should be a finite number"):
            build(name, {**REQUIRED, setting: value})


@pytest.mark.parametrize("name", [name for name, made in METHODS.items() if "beta" in signature(made).parameters])
def test_every_beta_is_above_0_and_is_the_methods(name: str) -> None:
    with pytest.raises(ValueError, match=r"beta is 0.0; expected beta > 0"):
        METHODS[name](beta=0.0)
    assert METHODS[name](beta=0.37).beta == 0.37


def test_edges_that_are_allowed() -> None:
    assert METHODS["alpha_dpo"](beta=0.3, alpha=1.0).beta == 0.3
    assert METHODS["discopop"](tau=1.0).beta == 0.05
    assert finite("alpha", -2.0) == -2.0


def test_defaults_are_those_of_the_papers_and_their_codes() -> None:
    seen = {name: {key: p.default for key, p in signature(made).parameters.items()} for name, made in METHODS.items()}
    assert {name: settings for name, settings in seen.items() if settings != {"beta": 0.1}} == DEFAULTS


DEFAULTS = {
    "dpo": {"beta": 0.1, "label_smoothing": 0.0},
    "robust": {"beta": 0.1, "label_smoothing": 0.1},
    "ipo": {"beta": 0.1, "length_average": True},
    "exo": {"beta": 0.1, "label_smoothing": 0.001},
    "discopop": {"beta": 0.05, "tau": 0.05},
    "alpha_dpo": {"beta": 0.1, "alpha": 0.5},
    "dpo_norm": {"beta": 5.0},
    "rdpo": {"beta": 0.1, "alpha": 0.05},
    "ld_dpo": {"beta": 0.1, "alpha": 0.5},
    "nca": {"beta": 0.01},
    "sppo_hard": {"beta": 0.001},
    "dpop": {"beta": 0.3, "penalty": 50.0},
    "rpo": {"beta": 0.1, "alpha": 1.0},
    "dpo_anchor": {"beta": 0.1, "delta": 0.0},
    "simpo": {"beta": 2.0, "gamma": 0.5},
    "alphapo": {"beta": 2.0, "gamma": 0.5, "alpha": 0.25},
    "cpo": {"beta": 0.1, "alpha": 1.0},
    "slic": {"delta": 1.0, "alpha": 0.1},
    "gamma_dpo": {"beta": 0.1, "gamma": 0.5},
    "tdpo2": {"beta": 0.1, "alpha": 0.5},
    "wpo": {"beta": 0.01},
    "bmc": {"beta": 0.01, "delta": 1.5},
    "cringe": {"k": 5, "alpha": 0.005, "bar": -10.0, "tau": 10.0},
    "aot": {"beta": 0.01, "label_smoothing": 0.0},
    "aot_unpaired": {"beta": 0.01, "label_smoothing": 0.0},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "baseline": "batch"},
    "bco": {"beta": 0.01, "shift": "running"},
    "infonca": {"beta": 0.01, "alpha": 0.001},
    "nca_k": {"beta": 0.01, "alpha": 0.001},
    "exo_k": {"beta": 0.5, "alpha": 0.5},
    "sppo": {"beta": 0.001},
    "reward_regression": {"beta": 0.1, "value": "log_z"},
    "aligndistil": {"beta": 0.1, "ratio": 20.0, "epsilon": 0.001},
    "sft": {},
    "rm": {"center": 0.0},
    "value": {"lam": 0.95},
    "soft_value": {"beta": 1.0},
}


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
    with pytest.raises(ValueError, match=r"ipo: beta is -1\.0; expected beta > 0"):
        build("dpo+ipo", {**REQUIRED, "ipo.beta": -1})


def test_yaml_of_one_method_and_of_a_sum() -> None:
    assert flattened({"method": "dpo", "beta": 0.2, "learning-rate": 1}) == ("dpo", {"beta": 0.2, "learning_rate": 1})
    document = {"method": [{"dpo": {"beta": 0.1}, "weight": 0.8}, {"sft": {}, "weight": 0.2}], "model": "m"}
    assert flattened(document) == ("dpo+sft", {"model": "m", "dpo.beta": 0.1, "weights": [0.8, 0.2]})
    assert flattened({"method": [{"ipo": {"beta": 0.1}}]}) == ("ipo", {"beta": 0.1})
    assert flattened({"method": "dpo", "data": "a.jsonl"}) == ("dpo", {"data": ["a.jsonl"]})
    with pytest.raises(ValueError, match="expected one and a weight"):
        flattened({"method": [{"dpo": {}, "sft": {}}]})
    with pytest.raises(ValueError, match="method: dpo: 3 is not valid: expected its settings"):
        flattened({"method": [{"dpo": 3}]})
    with pytest.raises(ValueError, match="nothing reads the weight of dpo alone"):
        flattened({"method": [{"dpo": {}, "weight": 2}]})


MINE = """
from softq import Method, Term
from softq.objectives import METHODS
from softq.objectives.links import finite


def other(x: "Unknown" = 1) -> Method:
    return METHODS["dpo"]()


def many(*x: float) -> Method:
    return METHODS["dpo"]()


def clash(batch_size: int = 3) -> Method:
    return METHODS["dpo"]()


def bananas() -> Method:
    return METHODS["dpo"]()._replace(takes="bananas")
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("other", "the type of a parameter can not be read: name 'Unknown' is not defined"),
        ("many", "parameter 'x' stands for many; each needs a name"),
        ("clash", "has a parameter 'batch_size', a setting of every run; name it otherwise"),
        ("bananas", "takes 'bananas'; expected one of pairs, groups, labels"),
    ],
)
def test_what_is_wrong_with_a_function_of_ones_own_is_one_clear_line(
    function: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wrongly.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"wrongly:{function}"
    with pytest.raises(ValueError, match=message):
        build(name, {**REQUIRED, **flags(parser_of(name), [])})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights", "0.8", "0.2"], "0.2: belongs to no setting"),
        (["--bf16", "true"], "--bf16 true: it takes no value; give it alone, or as --no-bf16"),
        (["--bf16=true"], "it takes no value; leave out 'true'"),
        (["--loss_type", "ipo"], "--loss.type: no such setting; TRL's loss_type is METHOD here"),
        (["--per-device-train-batch-size", "4"], "TRL's per_device_train_batch_size is --batch-size here"),
        (["--beta", "0.1"], "--beta: of which summand. There is --dpo.beta"),
    ],
)
def test_a_word_that_no_setting_takes_is_explained(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flags(parser_of("dpo+sft"), words)


def test_a_negative_number_may_have_an_exponent() -> None:
    assert flags(parser_of("cringe"), ["--bar", "-1e1"]) == {"bar": "-1e1"}


@pytest.mark.parametrize("name", [name for name, make in METHODS.items() if "beta" in signature(make).parameters])
def test_a_beta_that_would_invert_or_stop_a_method_is_refused(name: str) -> None:
    for beta in (0.0, -0.1):
        with pytest.raises(ValueError, match="expected beta > 0"):
            METHODS[name](beta=beta)


@pytest.mark.parametrize("name", METHODS)
def test_a_setting_that_is_infinite_or_no_number_is_refused(name: str) -> None:
    for setting, parameter in signature(METHODS[name], eval_str=True).parameters.items():
        for value in (math.nan, math.inf, -math.inf) if parameter.annotation is float else ():
            with pytest.raises(ValueError, match=f"{setting} is {value}; expected"):
                METHODS[name](**{setting: value})


@pytest.mark.parametrize("weights", ["1,nan", "nan,1", "inf,1", "-1,1", "0,0"])
def test_weights_of_a_sum_are_finite_and_do_not_turn_a_loss_round(weights: str) -> None:
    with pytest.raises(ValueError, match="expected finite numbers ≥ 0, one of them above 0"):
        build("dpo+sft", {**REQUIRED, "weights": weights})


def test_a_number_of_a_run_is_finite() -> None:
    with pytest.raises(ValueError, match="--learning-rate: 'inf' is not valid: input should be a finite number"):
        build("dpo", {**REQUIRED, "learning_rate": "inf"})


OTHER = {
    "alpha": 0.21,
    "bar": 0.3,
    "baseline": "running",
    "beta": 0.37,
    "center": 0.2,
    "delta": 0.7,
    "desirable_weight": 1.7,
    "epsilon": 0.4,
    "gamma": 0.3,
    "k": 2,
    "label_smoothing": 0.17,
    "lam": 0.3,
    "length_average": False,
    "penalty": 7.0,
    "ratio": 3.1,
    "shift": "batch",
    "tau": 0.3,
    "undesirable_weight": 0.4,
    "value": "fitted",
}
"""Of every setting that some method has, a value that is no method's default."""


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_changes_the_loss_or_the_gradient_or_is_refused(name: str) -> None:
    """An option that is read by nothing would leave both as they are; one that a method does not have can not be passed."""
    make = METHODS[name]
    batch = some_step(make())
    for setting, value in OTHER.items():
        if setting in signature(make).parameters:
            moved, other = [], make(**{setting: value})
            own = batch if other.credit is no_credit else some_step(other)  # what credit makes, the setting may change
            for seed in (0, 3):  # KTO's baseline is 0 at one of them
                of = some_models(seed)
                before, after = slope(make(), of, batch), slope(other, of, own)
                largest = before.gradient.abs().max()
                moved += [
                    (after.loss / before.loss - 1).abs(),
                    (after.gradient - before.gradient).abs().max() / largest,
                ]
            assert max(moved) > 1e-6, setting
        else:
            with pytest.raises(ValueError, match=f"--{setting.replace('_', '-')}: no such setting of a run of {name}"):
                build(name, {**REQUIRED, setting: value})


def test_every_setting_of_a_method_is_among_those_that_are_tried() -> None:
    assert {setting for make in METHODS.values() for setting in signature(make).parameters} == set(OTHER)
