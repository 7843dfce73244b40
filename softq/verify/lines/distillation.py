"""Completions on which the policy is drawn to a teacher."""

import math
from collections.abc import Mapping

from softq.objectives.distillation import aligndistil
from softq.verify.inputs import TEACHER_STEPS, Family
from softq.verify.line import Line

# of hard pairs, by TOLD in end_laws: p_d = σ(1), p_r = σ(-1); the teacher's margin 1 + 2α, less the reference's 0.3
TVD = 1 / (1 + math.exp(-1)) - 1 / (1 + math.e)
LINES: Mapping[str, Line] = {
    "aligndistil": Line(aligndistil(beta=0.5, ratio=2.0, epsilon=0.1), rests=1 + 2 * (2.0 * TVD + 0.1) - 0.3),
}

FAMILIES = (
    Family("aligndistil", "aligndistil", {"beta": 0.5, "ratio": 10.0, "epsilon": 0.001},
           "b_t*KL(pi||softmax(z_d + a_t*(z_d - z_r))), a_t=ratio*sum|p_d - p_r|/2 + epsilon, b_t=beta/a_t, z_d and z_r the "
           "logits of dpo and reverse", "one value per token", TEACHER_STEPS, {}, {"near": {"ratio": 0.0, "epsilon": 0.001}}),
)  # fmt: skip
