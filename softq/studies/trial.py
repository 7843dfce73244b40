"""One short training in the embedded world, and what became of the policy: what `family` is made of."""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from softq.data.encode import Encoded
from softq.lm.score import Models, score
from softq.mdp.readouts import KL, REF_LOGP
from softq.objectives import METHODS
from softq.records import Batch, Method
from softq.studies.credit import credit, localised
from softq.studies.ground import Ground, labelled, swapped, with_scores
from softq.studies.small_model import completion, sampled
from softq.training.loop import train
from softq.training.plan import NonFiniteLoss
from softq.training.source import Source, batches, tokens_of
from softq.training.update import AdamW

TEACHERS = ("dpo", "reverse")
"""Further models that a method may read: dpo on the data, and on the data with each label swapped, at the method's own β."""
LOOKS = (0.025, 0.05, 0.1, 0.2, 0.4, 0.7)
"""The shares of a long trial after which its policy is measured on the way."""
WARMUP = 5  # steps


class Trial(NamedTuple):
    """One training, but for its seed."""

    method: str
    settings: tuple[tuple[str, float], ...] = ()  # those that are not the method's defaults
    flips: float | None = 0.2  # the share of labels that are swapped; None: the truth's own labels
    long: bool = False  # the demo's steps, measured on the way

    @property
    def label(self) -> str:
        """Its method and settings as a table names them: "dpo, β 1"."""
        told = [f"{'β' if name == 'beta' else name} {value:g}" for name, value in self.settings]
        return ", ".join([self.method, *told])

    @property
    def name(self) -> str:
        """What tells it from other trials: "dpo beta=1 flips=0.2"."""
        told = [f"{name}={value:g}" for name, value in self.settings]
        noise = "truth" if self.flips is None else f"flips={self.flips:g}"
        return " ".join([self.method, *told, noise, *["long"] * self.long])


class Result(NamedTuple):
    """What became of one training."""

    figures: Mapping[str, float]  # of `measured`; none where it failed
    path: Sequence[Mapping[str, float]] = ()  # of a long one, "step" and most of the figures on the way
    seconds: float = 0.0  # of the processor, evaluation and teachers included
    failed: str = ""  # what was said of a loss or a gradient that was not finite


def untrained(on: Ground) -> Result:
    """The fine-tuned model itself."""
    on.loaded.policy.load_state_dict(on.start)
    return Result(measured(on))


def tried(on: Ground, trial: Trial) -> Result:
    """Train from the fine-tuned weights, and measure."""
    began = time.process_time()
    method = METHODS[trial.method](**dict(trial.settings))
    pairs = labelled(on, trial.flips)
    try:
        taught = {name: _teacher(on, name, pairs, trial) for name in TEACHERS if reads(method, name)}
        models = Models({**on.loaded.models, **taught})
        on.loaded.policy.load_state_dict(on.start)
        path = list(_trained(on, models, method, with_scores(pairs, trial.method, trial.flips), trial))
    except (NonFiniteLoss, FloatingPointError) as error:
        return Result({}, seconds=time.process_time() - began, failed=str(error))
    return Result(measured(on), path, time.process_time() - began)


def measured(on: Ground) -> dict[str, float]:
    """Every figure of the policy as it is now."""
    return {**answered(on), **compared(on), **located(on)}


def answered(on: Ground) -> dict[str, float]:
    """Of sampled answers to held-out prompts, T = 1: `reward` (the true one), `right` names (a share), `kl`, `length` and `cut`.

    kl: Σ_t KL(π‖π_ref)(s_t), the mean over answers in nats: an unbiased estimate of the KL of whole answers, each state's
    part exact (Rao-Blackwell). length: tokens, the end token included. cut: the share that did not end in time; theirs is the
    KL of the part that was sampled.
    """
    answers = sampled(on.world, on.loaded, on.recipe.samples, on.seed)
    rows = [completion(prompt, answer, on.loaded.tokenizer, ended=ended) for prompt, answer, ended in answers]
    with torch.no_grad():
        tokens = tokens_of(rows, [n // on.recipe.samples for n in range(len(rows))])
        scored = score(on.loaded.models, tokens, (KL,))
    rewards = [sum(on.world.reward(prompt, answer)[: len(answer) + ended]) for prompt, answer, ended in answers]
    return {
        "reward": _mean(rewards),
        "right": _mean([on.world.correct(prompt, answer) for prompt, answer, _ in answers]),
        "kl": scored["kl"].double().sum(-1).mean().item(),
        "length": tokens.action.double().sum(-1).mean().item(),
        "cut": _mean([not ended for *_, ended in answers]),
    }


def compared(on: Ground) -> dict[str, float]:
    """Of held-out pairs that the truth labels: `chosen` and `rejected`, the change of log π(y|x) in nats; `margin`, chosen less
    rejected, and `margin_a_token`, each per token first; `ranking`, the share whose chosen one gained more; `likelier`, the
    share whose chosen one is likelier."""
    rows = [completion for pair in on.held for completion in pair.completions]
    tokens = tokens_of(rows, [n // 2 for n in range(len(rows))])
    with torch.no_grad():
        scored = score(on.loaded.models, tokens, (REF_LOGP,))
    logp, before = (scored[name].double().sum(-1) for name in ("logp", "ref_logp"))
    chosen, rejected = (logp - before).view(-1, 2).unbind(-1)
    length = tokens.action.sum(-1)
    return {
        "chosen": chosen.mean().item(),
        "rejected": rejected.mean().item(),
        "margin": (chosen - rejected).mean().item(),
        "margin_a_token": (chosen / length[::2] - rejected / length[1::2]).mean().item(),
        "ranking": _share(chosen - rejected),
        "likelier": _share(logp[::2] - logp[1::2]),
    }


def located(on: Ground) -> dict[str, float]:
    """Of answers with one wrong name: `auc` and `top1` of finding it by log π/π_ref; see `credit.localised`."""
    found = localised(credit(on.world, on.loaded, on.recipe.injected, on.seed))
    return {"auc": found["localisation_auc"], "top1": found["localisation_top1"]}


def reads(method: Method, model: str) -> bool:
    """Whether a readout of the method sees a model."""
    return any(model in readout.models for readout in method.needs)


def _teacher(on: Ground, name: str, pairs: Sequence[Encoded], trial: Trial) -> nn.Module:
    """A frozen copy of what dpo makes of the pairs, or of the pairs swapped, in a short training."""
    on.loaded.policy.load_state_dict(on.start)
    own = pairs if name == "dpo" else [swapped(pair) for pair in pairs]
    beta = {setting: value for setting, value in trial.settings if setting == "beta"}
    for _ in _trained(on, on.loaded.models, METHODS["dpo"](**beta), own, trial._replace(long=False)):
        pass
    return copy.deepcopy(on.loaded.policy).requires_grad_(False)


def _trained(
    on: Ground, models: Models, method: Method, pairs: Sequence[Encoded], trial: Trial
) -> Iterator[dict[str, float]]:
    """Train the policy; of a long trial, what it is like on the way and at the end."""
    recipe = on.recipe
    steps = recipe.long_steps if trial.long else recipe.steps
    update = AdamW(
        models,
        steps=steps,
        learning_rate=recipe.learning_rate,
        schedule="linear",
        warmup_steps=WARMUP,
        weight_decay=0.01,
        betas=(0.9, 0.98),
    )
    epochs = steps * recipe.batch / len(pairs)
    source = batches(pairs, method, batch_size=recipe.batch, epochs=epochs, seed=on.seed)
    if trial.flips is not None and _kept(method):
        source = _filled(on, source)
    looks = {round(share * steps) for share in (*LOOKS, 1)} if trial.long else set()
    for step, _ in enumerate(train(models, method, source, update), 1):
        if step in looks:
            yield {"step": step, **answered(on), **compared(on)}


def _kept(method: Method) -> bool:
    """Whether the reference's log-probs of the pairs are all that the method asks of the reference."""
    asked = [readout.name for readout in method.needs if "ref" in readout.models]
    return asked == [REF_LOGP.name] and method.takes != "labels+mismatched"


def _filled(on: Ground, source: Source) -> Source:
    """The batches with the reference's log-probs: it need not run again."""

    def filled(models: Models) -> Iterator[Batch]:
        return map(on.reference.filled, source(models))

    return filled


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _share(difference: Tensor) -> float:
    """The share above 0, a tie counting half."""
    return ((difference > 0).double() + (difference == 0).double() / 2).mean().item()
