"""The conformance vectors: made by the lab, read back through the public API, held to numbers and code that are not ours."""

import copy
import importlib.util
import json
import math
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plain.arithmetic import logsumexp, softmax
from plain_losses import plain
from torch import Tensor

import softq
from softq.records import Method
from softq.verify.contract import CONTRACT
from softq.verify.vectors import entries, method_of, scored_from, vectors, worst, written

ROOT = Path(__file__).parent.parent
ENTRIES = {entry["name"]: entry for entry in entries()}
STEPS = {name: entry for name, entry in ENTRIES.items() if "population" not in entry["inputs"]}
POPULATIONS = {name: entry for name, entry in ENTRIES.items() if name not in STEPS}
GOLDEN = {(e["fixture"], e["name"]): e for e in json.loads((ROOT / "conformance/golden.json").read_text())["entries"]}


def load_check() -> Any:
    spec = importlib.util.spec_from_file_location("conformance_check", ROOT / "conformance/check.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECK = load_check()


def public(entry: dict) -> Method:
    """The method by softq's face, where it is one call."""
    maker = softq.METHODS.get(entry["method"])
    return maker(**entry["parameters"]) if maker else method_of(entry)


def alike(found: Any, expected: Any) -> bool:
    if isinstance(expected, float):
        return abs(found - expected) <= 1e-12 * max(1.0, abs(expected))
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(alike(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(alike, found, expected))
    return found == expected


def test_the_file_is_what_the_lab_makes() -> None:
    shipped = (ROOT / "conformance/vectors.json").read_text(encoding="utf-8")
    made = vectors()
    assert alike(made, json.loads(shipped)), "run: python conformance/make.py"
    assert json.loads(written(made)) == made
    assert len(shipped) < 700_000
    assert max(map(len, shipped.splitlines())) < 2000


def test_every_line_of_the_contract_has_entries() -> None:
    of = {name.split("/")[0] for name in STEPS}
    assert set(CONTRACT) <= of
    stated = {name for name, line in CONTRACT.items() if line.method.fixed_point}
    assert stated == {name.split("/")[0] for name in POPULATIONS}


@pytest.mark.parametrize("name", STEPS)
def test_our_methods_reproduce_every_step(name: str) -> None:
    entry = ENTRIES[name]
    assert worst(entry, public(entry)) <= 1e-12
    assert worst(entry, public(entry), torch.float32) <= 1e-5


@pytest.mark.parametrize("name", POPULATIONS)
def test_our_methods_rest_where_the_vectors_say(name: str) -> None:
    """The gradient of the whole population counts: it is 0 at the stated numbers, not at others."""
    entry = ENTRIES[name]
    assert worst(entry, public(entry)) <= 1e-12
    moved = copy.deepcopy(entry)
    moved["expected"]["fixed_points"][0]["logp"][0][0] -= 0.1
    assert worst(moved, public(entry)) > 1e-3


@pytest.mark.parametrize("name", ["dpo", "cdpo", "ipo", "tdpo2", "wpo", "aot", "kto", "infonca", "grpo"])
def test_another_beta_is_seen(name: str) -> None:
    entry = next(entry for key, entry in STEPS.items() if key.startswith(f"{name}/") and "golden" not in key)
    parameters = {**entry["parameters"], "beta": 1.01 * entry["parameters"]["beta"]}
    assert worst(entry, method_of({**entry, "parameters": parameters})) > 1e-4


# --- numbers of other code ---


def with_golden() -> list[str]:
    return [name for name, entry in STEPS.items() if "golden" in entry]


@pytest.mark.parametrize("name", with_golden())
def test_entries_with_golden_inputs_expect_the_golden_numbers(name: str) -> None:
    entry = ENTRIES[name]
    found, golden = entry["expected"], GOLDEN[tuple(entry["golden"])]["expected"]
    losses = golden["loss"] if "loss" in golden else golden["loss_w"] + golden["loss_l"]
    assert found["loss"] == pytest.approx(golden["mean"], rel=1e-12)
    if entry["method"] != "sft":  # there the golden loss is one mean
        assert next(iter(found["losses"].values())) == pytest.approx(losses, rel=1e-12)
    rows = entry["golden"][0] == 1
    if rows:  # every token of a row has the gradient of its sum
        expected = golden["grad_mean_wrt_LP_w"] + golden["grad_mean_wrt_LP_l"]
        for row, number in zip(found["gradient"], expected, strict=False):
            assert row == pytest.approx([number] * len(row), rel=1e-12)
    elif "grad_wrt_L" in golden:
        assert [row[0] for row in found["gradient"]] == pytest.approx(golden["grad_wrt_L"], rel=1e-12)
    else:
        for row, side in zip(by_logits(entry), "wl", strict=False):
            for state, numbers in zip(row, golden[f"grad_mean_wrt_logits_pi_{side}"], strict=True):
                assert state == pytest.approx(numbers, abs=1e-12)


def by_logits(entry: dict) -> list:
    """The gradient with respect to logits; where the entry has it by log-probs, g (1[a] - π)."""
    gradient = entry["expected"]["gradient"]
    if "logits" in entry["inputs"]:
        return gradient
    logits, tokens = (ENTRIES["tdpo2/golden"]["inputs"][name] for name in ("logits", "tokens"))
    return [
        [
            [g * ((a == token) - p) for a, p in enumerate(softmax(state))]
            for g, token, state in zip(row, taken, states, strict=True)
        ]
        for row, taken, states in zip(gradient, tokens, logits, strict=False)
    ]


def test_the_hand_computed_rollout() -> None:
    """Ratios 1.5 (clipped at 1.2) and 0.9 under A = 0.5/(√0.5 + 1e-4), 0.5 (clipped at 0.8) under -A, with d = 0.3."""
    a = 0.5 / (0.5**0.5 + 1e-4)
    k3 = 0.1 * (math.exp(-0.3) - 1 + 0.3)
    expected = ENTRIES["grpo/by hand"]["expected"]
    assert expected["loss"] == pytest.approx(0.25 * (-1.2 * a - 0.9 * a) + 0.5 * (0.8 * a + k3), rel=1e-12)
    assert expected["advantage"][0] == pytest.approx([a, a], rel=1e-12)
    assert expected["gradient"][0] == pytest.approx([0.0, -0.25 * 0.9 * a], abs=1e-12)


@pytest.mark.parametrize("name", ["dpo/uneven lengths", "dpo/one token", "dpo/shared rows", "dpo/at the reference"])
def test_the_one_file_dpo_agrees(name: str) -> None:
    """examples/dpo.py on stand-in models: row k says token k all along, with its log-probs; the rest is on one more token."""
    entry = ENTRIES[name]
    leaf, scored = scored_from(entry, method_of(entry))
    lengths = [len(row) for row in entry["inputs"]["logp"]]

    def model(logp: Tensor) -> Any:
        def run(ids: Tensor) -> Any:
            row, length = int(ids[0, -1]), ids.shape[1] - 1
            logits = torch.full((1, length + 1, len(lengths) + 1), -torch.inf, dtype=logp.dtype)
            logits[0, :length, row] = logp[row, :length]
            logits[0, :length, -1] = torch.log1p(-logp[row, :length].exp())
            return SimpleNamespace(logits=logits)

        return run

    sides = zip(entry["inputs"]["chosen"], entry["inputs"]["rejected"], strict=True)
    pairs = [([0], [c] * lengths[c], [r] * lengths[r]) for c, r in sides]
    dpo_loss = runpy.run_path(str(ROOT / "examples" / "dpo.py"))["dpo_loss"]
    loss = dpo_loss(model(scored["logp"]), model(scored["ref_logp"]), pairs, beta=entry["parameters"]["beta"])
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss.item() == pytest.approx(entry["expected"]["loss"], rel=1e-5)
    for found, row in zip(gradient, entry["expected"]["gradient"], strict=True):
        assert found[: len(row)].tolist() == pytest.approx(row, rel=1e-4, abs=1e-6)


# --- plain Python, formula by formula ---


@pytest.mark.parametrize("name", STEPS)
def test_losses_are_those_of_the_plain_formulas(name: str) -> None:
    assert plain(ENTRIES[name]) == pytest.approx(ENTRIES[name]["expected"]["loss"], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", [name for name, entry in STEPS.items() if not method_of(entry).stops])
def test_gradients_are_differences_of_the_plain_formulas(name: str) -> None:
    entry = copy.deepcopy(ENTRIES[name])
    size = 1e-5 * max(1.0, abs(entry["expected"]["loss"]) ** 0.5)
    held = [name for name in ("value_target",) if name in entry["expected"]]  # made of values, and held constant
    entry["inputs"] |= {name: entry["expected"][name] for name in held}
    inputs = next(entry["inputs"][name] for name in ("logits", "value", "logp") if name in entry["inputs"])
    for numbers, gradient in leaves(inputs, entry["expected"]["gradient"]):
        for n, expected in enumerate(gradient):
            at, sides = numbers[n], []
            for move in (size, -size):
                numbers[n] = at + move
                sides.append(plain(entry))
            numbers[n] = at
            assert (sides[0] - sides[1]) / (2 * size) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def leaves(one: list, other: list) -> Iterator[tuple[list, list]]:
    """The innermost lists of two structures that are built alike."""
    if isinstance(one[0], list):
        for parts in zip(one, other, strict=True):
            yield from leaves(*parts)
    else:
        yield one, other


def by_logp() -> list[str]:
    """Populations of losses that read no more of a state than log-probabilities."""
    whole = {name.split("/")[0] for name, entry in STEPS.items() if "logits" in entry["inputs"]}
    return [name for name in POPULATIONS if name.split("/")[0] not in whole]


@pytest.mark.parametrize("name", by_logp())
def test_populations_are_stationary_by_the_plain_formulas(name: str) -> None:
    """Moving mass from any completion to the others of its prompt changes nothing at a fixed point, and a lot elsewhere."""
    entry = ENTRIES[name]
    inputs = entry["inputs"]
    keys = [(prompt, *tokens) for prompt, tokens in zip(inputs["prompt"], inputs["tokens"], strict=True)]

    def loss(logp: list[list[float]], key: tuple, by: float) -> float:
        """With a completion e^by times as likely, relative to the others of its prompt."""
        total = {k: sum(row) + (by if k == key else 0.0) for k, row in zip(keys, logp, strict=True)}
        norm = {p: logsumexp([v for k, v in total.items() if k[0] == p]) for p in set(inputs["prompt"])}
        rows = [[total[k] - norm[k[0]] - sum(row[1:]), *row[1:]] for k, row in zip(keys, logp, strict=True)]
        return plain({**entry, "inputs": {**inputs, "logp": rows}})

    def steepest(logp: list[list[float]]) -> float:
        return max(abs(loss(logp, key, 1e-4) - loss(logp, key, -1e-4)) / 2e-4 for key in set(keys))

    for point in entry["expected"]["fixed_points"]:
        assert loss(point["logp"], (), 0.0) == pytest.approx(point["loss"], rel=1e-12)
        assert [sum(row) for row in point["logp"]] == pytest.approx(point["log_policy"], rel=1e-12)
        assert steepest(point["logp"]) < 1e-8
    assert steepest([[1.5 * row[0], *row[1:]] for row in point["logp"]]) > 1e-3


# --- the checker ---


def found_by(change: Any) -> list[str]:
    """Names of entries that the checker finds wrong in what `change` makes of the right answers."""

    def answer(entry: dict) -> dict:
        fields = copy.deepcopy(entry["expected"])
        return change(fields, entry) or fields

    off = CHECK.differences(answer)
    assert off.keys() == ENTRIES.keys()
    return [name for name, fields in off.items() if max(fields.values()) > 1e-12]


def test_the_checker_passes_right_answers() -> None:
    nearest = lambda fields, entry: fields["fixed_points"][-1] if "fixed_points" in fields else None  # noqa: E731
    assert found_by(nearest) == []


def test_the_checker_finds_a_sign_a_swap_and_a_sum() -> None:
    def flipped(fields: dict, entry: dict) -> None:
        fields["gradient"] = [scaled(row, -1.0) for row in fields.get("gradient", [])]  # of a population: no such field

    def summed(fields: dict, entry: dict) -> dict | None:
        return (
            {"loss": sum(fields["losses"]["dpo"])}
            if entry["name"].startswith("dpo/") and entry["name"] in STEPS
            else None
        )

    def swapped(fields: dict, entry: dict) -> dict | None:
        x = entry["inputs"]
        if entry["method"] != "dpo" or entry["name"] not in STEPS:
            return None
        return {"loss": plain({**entry, "inputs": {**x, "chosen": x["rejected"], "rejected": x["chosen"]}})}

    assert set(found_by(flipped)) == set(ENTRIES)
    several = {"golden", "uneven lengths", "weights", "at the reference", "extreme margins", "margins"}
    assert {name.split("/")[1] for name in found_by(summed) if name in STEPS} >= several
    same = {"dpo/at the reference", "cdpo/at the reference"}  # a margin of 0 has no side
    dpo = {name for name, entry in STEPS.items() if entry["method"] == "dpo"}
    assert set(found_by(swapped)) & dpo == dpo - same


def scaled(values: Any, by: float) -> Any:
    return [scaled(value, by) for value in values] if isinstance(values, list) else by * values


@pytest.mark.parametrize("loss", [math.nan, math.inf, "0.7", None, [0.7]])
def test_what_is_no_number_is_wrong(loss: Any) -> None:
    assert CHECK.differences(lambda entry: {"loss": loss})["dpo/golden"] == {"loss": math.inf}


def test_the_checker_from_a_file(tmp_path: Path) -> None:
    """As a program: the plain formulas as answers are right, one wrong number is found, and an unknown name is."""
    answers = {name: {"loss": plain(entry)} for name, entry in STEPS.items()}

    def run(change: dict) -> subprocess.CompletedProcess:
        path = tmp_path / "answers.json"
        path.write_text(json.dumps({**answers, **change}))
        return subprocess.run([sys.executable, ROOT / "conformance/check.py", path], capture_output=True, text=True)

    right = run({})
    assert (right.returncode, right.stderr) == (0, "")
    assert f"{len(STEPS)} entries answered, 0 wrong, {len(POPULATIONS)} not answered" in right.stdout
    wrong = run({"dpo/golden": {"loss": 0.7}})
    assert wrong.returncode == 1
    assert re.search(r"WRONG dpo/golden \{'loss': '2.6e-02'\}", wrong.stdout)
    assert run({"dop/golden": {"loss": 0.7}}).returncode == 1
    assert (ROOT / "conformance/check.py").read_text().count("\n") <= 50


def test_the_worked_example_of_the_page() -> None:
    """The README's Python passes its own check."""
    (text,) = re.findall(r"```python\n(.*?)```", (ROOT / "conformance/README.md").read_text(encoding="utf-8"), re.S)
    said: dict[str, Any] = {}
    exec(compile(text, "README.md", "exec"), {"differences": CHECK.differences, "print": lambda off: said.update(off)})
    assert set(said) == {name for name, entry in STEPS.items() if entry["method"] == "dpo"}
    assert max(max(fields.values()) for fields in said.values()) < 1e-12


def test_each_entry_stands_in_the_table_of_trl() -> None:
    """The table itself is made with TRL (tests/parity); what it lacks shows here, without."""
    rows = re.findall(r"^\| ([\w+]+) \| ([^|]+) \|", (ROOT / "conformance/README.md").read_text(encoding="utf-8"), re.M)
    shown = {f"{named}/{step.strip()}" for named, steps in rows for step in steps.split(", ")}
    assert set(STEPS) <= shown
