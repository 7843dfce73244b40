"""Single completions judged good or bad."""

import math
from collections.abc import Mapping

from softq.objectives.sides import bco_pair
from softq.objectives.sums import weighted_sum
from softq.objectives.unpaired import apo_unpaired, bco, kto
from softq.verify.inputs import LABEL_STEPS, Family, Inputs
from softq.verify.line import JUDGED, LOG_2, PLAIN, Equal, Line, equal
from softq.verify.tables import some_models, some_step

SATURATES = "it saturates: inside, what is judged bad always loses mass to what is judged good"
ONE_SHIFT = (
    "one shift serves all prompts, and with it the probabilities of none need sum to one at the log-odds of its labels"
)

LINES: Mapping[str, Line] = {
    "kto": Line(kto(beta=0.5), why=SATURATES, at_reference=0.5, rests=math.inf),
    "kto_running": Line(kto(beta=0.5, baseline="running"), why=SATURATES, at_reference=0.5, rests=math.inf),
    "kto_dataset": Line(
        kto(beta=0.5, baseline="dataset", undesirable_weight=3.0), why=SATURATES, at_reference=1.0, rests=math.inf
    ),
    "bco": Line(
        bco(beta=0.5),
        why=ONE_SHIFT,
        at_reference=LOG_2,
        rests=math.inf,
        equals=(
            Equal(
                "in its first step half of bco_pair, on the sides of pairs one by one",
                (bco(beta=0.5), JUDGED),
                (weighted_sum([(bco_pair(beta=0.5), 0.5)]), PLAIN),
                some_models(),
            ),
        ),
    ),
    "bco_batch": Line(bco(beta=0.5, shift="batch"), why=ONE_SHIFT, at_reference=LOG_2, rests=math.inf),
    "apo_unpaired": Line(
        apo_unpaired(beta=0.5),
        why=SATURATES,
        at_reference=0.5,
        rests=math.inf,
        equals=equal(
            "kto with a running baseline is apo_unpaired in its first step",
            kto(beta=0.5, baseline="running"),
            apo_unpaired(beta=0.5),
            some_step(kto()),
        ),
    ),
}


def _labels_alone(name: str, **memory: float) -> Inputs:
    """A step of labels without completions under other prompts, and what a method remembers of past steps."""
    step = LABEL_STEPS[name]
    kept = {key: step[key][: len(step["row"])] for key in ("prompt", "logp", "ref_logp")}
    return {**kept, "row": step["row"], "good": step["good"], "mismatched": [], **memory}


APART = {name: _labels_alone(name) for name in ("golden", "uneven lengths", "only good", "extreme ratios")}
KTO = "good: l_g*s(-beta*(L-z0)), bad: l_b*s(beta*(L-z0)), l_g=desirable_weight, l_b=undesirable_weight, "
BCO = "good: h(beta*L-delta), bad: h(-(beta*L-delta)), "
PER_LABEL = "one value per label"

FAMILIES = (
    Family("kto", "kto", {"beta": 0.5}, KTO + "z0=stopgrad(max(0, mean L of mismatched))", PER_LABEL, LABEL_STEPS,
           {"golden": (1, "kto")}, {"class weights": {"desirable_weight": 1.5, "undesirable_weight": 0.8}}),
    Family("kto_running", "kto", {"beta": 0.5, "baseline": "running"},
           KTO + "z0=max(0, kl_running), kl_running <- 0.9*kl_running + 0.1*(mean L of mismatched) after a step, 0 at first",
           PER_LABEL, {"golden": {**LABEL_STEPS["golden"], "kl_running": 0.2}, "first step": LABEL_STEPS["uneven lengths"],
           "below 0": {**LABEL_STEPS["uneven lengths"], "kl_running": -0.7}}, {"golden": (1, "kto")}),
    Family("kto_dataset", "kto", {"beta": 0.5, "baseline": "dataset", "undesirable_weight": 3.0},
           KTO + "z0=max(0, kl_dataset), the mean L of all mismatched completions of past steps; it starts at 0",
           PER_LABEL, {"golden": {**LABEL_STEPS["golden"], "kl_dataset": 0.2},
           "later": {**LABEL_STEPS["class weights"], "kl_dataset": 1.3}}, {"golden": (1, "kto")},
           {"golden": {"undesirable_weight": 1.0}}),
    Family("bco", "bco", {"beta": 0.5}, BCO + "delta: mean of the rewards beta*L of past steps; it starts at 0", PER_LABEL,
           {**APART, "golden": _labels_alone("golden", delta=-0.125),
           "later": _labels_alone("uneven lengths", delta=0.8)}, {"golden": (1, "bco")}),
    Family("bco_batch", "bco", {"beta": 0.5, "shift": "batch"}, BCO + "delta=stopgrad(mean of beta*L over the step)",
           PER_LABEL, APART, {"golden": (1, "bco")}),
    Family("apo_unpaired", "apo_unpaired", {"beta": 0.5}, "good: s(-beta*L), bad: s(beta*L)", PER_LABEL, APART,
           {"golden": (1, "apo_zero_unpaired")}),
)  # fmt: skip
