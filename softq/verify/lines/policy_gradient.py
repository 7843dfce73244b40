"""Rewards of sampled completions."""

from collections.abc import Mapping

from softq.objectives.policy_gradient import grpo
from softq.verify.inputs import ROLLOUT_STEPS, Family
from softq.verify.line import Line

LINES: Mapping[str, Line] = {
    "grpo": Line(
        grpo(),
        why="its advantages are those of sampled groups, divided by their spread: a direction, not a loss of the policy alone",
    ),
}

FAMILIES = (
    Family("grpo", "grpo", {"beta": 0.04, "epsilon": 0.2},
           "-min(rho*A, clip(rho, 1-epsilon, 1+epsilon)*A) + beta*(exp(-l) - 1 + l), rho=pi/old, l=log pi/ref, "
           "A=(reward-mean)/(std+1e-4) of its group", "one value per token", ROLLOUT_STEPS, {},
           {"by hand": {"beta": 0.1}, "no reference": {"beta": 0.0}}),
)  # fmt: skip
