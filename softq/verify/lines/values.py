"""Values of states: of a reference's samples, by the rewards behind them."""

from collections.abc import Mapping
from typing import Any

from softq.objectives.values import soft_value, value
from softq.verify.inputs import REWARDS, SIZES, Family
from softq.verify.line import Line
from softq.verify.lines.reward_model import VALUES

ENDS = "its end is a value of every state, not a distribution: the law `values` of the small examples proves it"

LINES: Mapping[str, Line] = {
    "value": Line(value(), why=ENDS),
    "value_mc": Line(value(lam=1.0), why=ENDS),
    "soft_value": Line(soft_value(beta=0.5), why=ENDS),
}

STEP: Mapping[str, Any] = {"prompt": SIZES["prompt"], "value": VALUES, "reward": REWARDS}
STEPS: Mapping[str, Mapping[str, Any]] = {
    "groups of different size": STEP,
    "extreme values": {**STEP, "value": [[1e3 * abs(number) for number in row] for row in VALUES]},
    "one token": {"prompt": [0, 0], "value": [[0.25], [0.75]], "reward": [1.0, 0.0]},
}
TOKEN = "one value per token"
SQUARE = (
    "(V - G)^2/2; G = reward at a row's last action and the one before it, before that (1-lam)*V' + lam*G' of the next"
)

FAMILIES = (
    Family("value", "value", {"lam": 0.95}, SQUARE, TOKEN, STEPS),
    Family("value_mc", "value", {"lam": 1.0}, SQUARE, TOKEN, STEPS),
    Family(
        "soft_value",
        "soft_value",
        {"beta": 0.5},
        "beta^2*(e^z - 1 - z), z = (reward - V)/beta; beyond z = 20 its tangent there",
        TOKEN,
        STEPS,
    ),
)
