"""The conformance vectors in TRL's hands: which of them its own losses give, and why not the others."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from measure import AGREES, relative
from steps import answers
from torch import Tensor
from trainers import Answers, Step, Trainers
from ways import asked

from softq.mdp.readouts import LOG_COLLISION
from softq.training.loop import with_columns
from softq.verify.vectors import Entry, batch_from, entries, method_of, scored_from

SFT = ("SFTTrainer", {})
GRPO = {"loss_type": "grpo", "epsilon": 0.2}
OWN: Mapping[str, tuple[tuple[str, Mapping[str, Any]], ...]] = {
    "sft": (SFT,),
    "dpo_free": (("CPOTrainer", {"loss_type": "sigmoid", "cpo_alpha": 0.0}),),
    "grpo": (("GRPOTrainer", {**GRPO, "use_bias_correction_kl": False}), ("GRPOTrainer", GRPO)),
}
"""Families that are asked for in another way: rows without pairs, dpo without a reference, and rollouts."""

BASELINE = "differs by design: the KL baseline is of past steps, there of this one"
REASONS: Mapping[str, str] = {
    "cdpo": "wrong: sigmoid takes label_smoothing and ignores it without a word (until 0.28 it was cDPO); this is dpo",
    "ipo_sum": "differs by design: log-ratios per token, as IPO's authors confirmed; the paper's sums can not be had",
    "wpo": "differs by design: the weight of a pair is not clamped at 1; the official code clamps it",
    "kto_running": BASELINE,
    "kto_dataset": BASELINE,
    "grpo": "differs by design: by default the KL term is multiplied by ρ, so that its gradient is that of KL(π‖π_ref)",
    "alphapo/extreme margins": "wrong: infinite, since p is taken out of its logarithm: 0^-α where p underflows",
    "discopop/extreme margins": "wrong: nan, since e^-u and σ(u/τ) are multiplied: ∞ · 0 far on the wrong side",
    "forward_kl_dpo/extreme margins": "wrong: nan, since e^-L is not clamped: ∞ - ∞ where both are far below the reference",
}
"""Why a family's steps, or one step of it, are not what the vectors say."""

COLUMNS = ("weight", "margin", "label_probability")


class Verdict(NamedTuple):
    """One entry in one of TRL's ways."""

    entry: Entry
    asked: str
    off: float | None  # the largest difference of loss and gradient; None: it can not be reached
    says: str


def verdicts(trainers: Trainers) -> Iterator[Verdict]:
    """Of each entry that is a step, in each way."""
    for entry in entries():
        if "population" in entry["inputs"]:
            continue
        found = asked(entry["method"], entry["parameters"])
        ways = OWN.get(entry["name"].split("/")[0]) or ([found] if found else [])
        if not ways:
            yield Verdict(entry, "–", None, "cannot be reached: not there")
        for trainer, settings in ways:
            shown = " ".join([trainer, *(f"{key}={value}" for key, value in settings.items() if key != "beta")])
            yield Verdict(entry, shown, *_judged(entry, trainer, {**_beta(entry), **settings}, trainers))


def _beta(entry: Entry) -> dict[str, float]:
    return {"beta": entry["parameters"]["beta"]} if "beta" in entry["parameters"] else {}


def _judged(entry: Entry, trainer: str, settings: Mapping[str, Any], trainers: Trainers) -> tuple[float | None, str]:
    told = ("margin",) if trainer == "RewardTrainer" else ()
    missing = [column for column in COLUMNS if column in entry["inputs"] and column not in told]
    if missing:
        return None, f"cannot be reached: a pair has no {', no '.join(missing)}"
    step = step_of(entry)
    if settings.get("f_divergence_type") == "alpha_divergence":
        step = step._replace(policy=_single(step.policy), reference=_single(step.reference))
    off = apart(entry, trainers.loss(trainer, settings, step), step)
    family = entry["name"].split("/")[0]
    reason = REASONS.get(entry["name"]) or REASONS.get(family, "UNEXPLAINED")
    return off, "agrees" if off <= AGREES else reason


def _single(answers: Answers) -> Answers:
    """In float32: TRL's alpha_divergence knows no float64."""
    return {name: value.float() for name, value in answers.items()}


def step_of(entry: Entry) -> Step:
    """The entry's numbers as models would give them."""
    method, batch = method_of(entry), batch_from(entry)
    if "value" in entry["inputs"]:
        leaf, scored = scored_from(entry, method)
        return Step(leaf, batch, {"rewards": method.reward(scored, batch)}, {})
    if "logits" in entry["inputs"]:
        leaf, scored = scored_from(entry, method._replace(needs=(*method.needs, LOG_COLLISION)))
        last = torch.zeros_like(leaf[:, :1])
        logits = torch.cat([leaf, last], 1)
        policy = {**answers(logits, batch.tokens), "log_sum_sq_probs": scored["log_collision"]}
    else:
        leaf, scored = scored_from(entry, method)
        policy = {"log_probs": scored["logp"], "logits": binary(scored["logp"])}
    if "advantage" in entry["expected"]:
        first = torch.tensor([row[0] for row in entry["expected"]["advantage"]], dtype=torch.float64)
        batch = with_columns(batch, {"advantage": first[:, None].expand(batch.tokens.action.shape)})
    reference = {"log_probs": scored["ref_logp"].detach()} if "ref_logp" in scored else {}
    return Step(leaf, batch, policy, reference)


def binary(logp: Tensor) -> Tensor:
    """[B, L, 2] logits under which token 0, the one that every row of these vectors took, has these log-probabilities."""
    uncertain = logp.detach().clamp(max=-1e-9) + (logp - logp.detach())  # the other token keeps its gradient
    logits = torch.stack([uncertain, torch.log(-torch.expm1(uncertain))], -1)
    return torch.cat([logits, torch.zeros_like(logits[:, :1])], 1)


def apart(entry: Entry, loss: Tensor, step: Step) -> float:
    """The largest of loss and gradient; nan if anything is."""
    action = step.batch.tokens.action
    (gradient,) = torch.autograd.grad(loss, step.leaf)
    expected = [torch.tensor(entry["expected"]["loss"], dtype=torch.float64)]
    expected += [torch.tensor(one, dtype=torch.float64) for row in entry["expected"]["gradient"] for one in row]
    found = [loss.detach().double(), *gradient[action]]
    return max(relative(one, other) for one, other in zip(found, expected, strict=True))
