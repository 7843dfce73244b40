"""What to say before training of data that is judged good or bad."""

from collections.abc import Mapping
from typing import Any

from softq.records import Method
from softq.training.prepare import Data
from softq.training.settings import Settings, flag

BALANCE = (1.0, 1.5)
"""(λ_D n_D)/(λ_U n_U) of KTO's classes: weight times number of the good ones, over that of the bad ones. The first version of
its paper says up to 4/3, the last one up to 3/2."""
WITHIN = 1.25  # of both


def judged(settings: Settings, understood: Mapping[str, Any], method: Method, data: Data) -> list[str]:
    """Of a method that reads labels: how many are good and bad, how it weighs them, how it mismatches completions."""
    if not method.takes.startswith("labels"):
        return []
    paired, records = data.train.kind == "pairs", data.records
    good = len(records) if paired else sum(1 for record in records if record.columns["label"][0])
    bad = len(records) if paired else len(records) - good
    notes = [f"labels: {good:,} good, {bad:,} bad"]
    for weight in (key for key in understood if key.rpartition(".")[2] == "desirable_weight"):
        other = weight.replace("desirable_weight", "undesirable_weight")
        if other in understood:
            notes.append(_balance((weight, understood[weight], good), (other, understood[other], bad)))
    if method.takes == "labels+mismatched":
        notes.append(
            "mismatched completions: under each prompt those of the next record of its step, in an order drawn from "
            f"--seed {settings.seed}"
        )
    return notes


def _balance(good: tuple[str, float, int], bad: tuple[str, float, int]) -> str:
    """How the classes (setting, weight, labels) weigh; where they are out of balance, the weight that mends it."""
    said = f"class weights: {good[1]:g} of good, {bad[1]:g} of bad"
    if not (good[2] and bad[2]):
        return f"{said}; every label is {'good' if good[2] else 'bad'}: there is nothing to tell apart"
    ratio = good[1] * good[2] / (bad[1] * bad[2])
    said += f"; good weigh {ratio:.3g} times as much as bad"
    if BALANCE[0] <= ratio <= BALANCE[1]:
        return said
    wanted = WITHIN * bad[1] * bad[2] / good[2] if ratio < BALANCE[0] else good[1] * good[2] / (WITHIN * bad[2])
    name = good[0] if ratio < BALANCE[0] else bad[0]
    return f"{said}, outside {BALANCE[0]:g} to {BALANCE[1]:g}: {flag(name)} {wanted:.3g} makes it {WITHIN:g}"
