"""Single completions judged good or bad, each on its own side of a point that moves with the policy."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from softq.mdp.readouts import REF_LOGP
from softq.objectives import weights
from softq.objectives.links import logistic, one_of, positive
from softq.records import Batch, Method, Scored, Term, implicit

Memory = Mapping[str, Tensor]
KEPT = 0.9  # of a running baseline, a step


def kto(
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    baseline: Literal["batch", "running", "dataset"] = "batch",
) -> Method:
    """KTO, arXiv 2402.01306, eq 8: good λ_D (1 - σ(β(L - z0))), bad λ_U (1 - σ(β(z0 - L))), the mean over labels.

    z0, in nats, estimates KL(π‖π_ref): the mean log-ratio of mismatched completions, each the completion of another record under
    this prompt, cut at --max-length; below 0 it counts as 0, and it has no gradient. `baseline` says of which: batch, those of
    the step, which couples its records; running, an exponential mean over past steps (0.9 of the old, 0.1 of the step just
    made); dataset, all since training began, so the whole data set once a pass is done. The last two leave out the step itself,
    so a record's gradient does not depend on the others, and begin with z0 = 0, what it is where policy and reference are the
    same. λ_D is desirable_weight, λ_U undesirable_weight. `kl` in the logs is the step's mean before it is clamped.

    Assumes: good and bad labels that are about one kind of prompt each, and (λ_D n_D)/(λ_U n_U) between 1 and 1.5 for n_D good
    and n_U bad ones; a run says what it is. Labels that depend on the prompt more than on the answer break it.
    Rests: nowhere inside: it saturates on both sides, and what is judged bad always loses mass to what is judged good, until a
    prompt's mass has left what is mostly judged bad.
    TRL: `loss_type: kto` of its KTO trainer. Mismatched completions are paired there once, within blocks of the batch of a
    device, and z0 is the mean of the devices' means; here they are paired anew each step and z0 is the mean over the whole step.
    Choose it: when judgements come one at a time, as thumbs up and down do, and one kind is rarer than the other.
    """
    positive("beta", beta)
    good, bad = positive("desirable_weight", desirable_weight), positive("undesirable_weight", undesirable_weight)
    z0, memory, remember = BASELINES[one_of("baseline", baseline, BASELINES)]

    def loss(scored: Scored, batch: Batch) -> Tensor:
        z = beta * (implicit(scored, batch)[batch.labels.row] - z0(scored, batch))
        return torch.where(batch.labels.good, good * torch.sigmoid(-z), bad * torch.sigmoid(z))

    method = _by_label("kto", loss, beta, of_the_step=baseline == "batch")
    return method._replace(takes="labels+mismatched", memory=memory, remember=remember)


def apo_unpaired(*, beta: float = 0.1) -> Method:
    """APO-zero of single completions, arXiv 2408.06266: good 1 - σ(βL), bad σ(βL); KTO with z0 = 0 and no class weights.

    Assumes: what is good is better than what the model says, and what is bad is worse.
    Rests: nowhere inside: it saturates on both sides, as KTO does.
    TRL: `loss_type: apo_zero_unpaired` of its KTO trainer, which also weighs the classes.
    Choose it: instead of kto where the other forward pass of mismatched completions is too dear, or the good answers are known to
    be better than the model's own.
    """
    positive("beta", beta)

    def loss(scored: Scored, batch: Batch) -> Tensor:
        z = beta * implicit(scored, batch)[batch.labels.row]
        return torch.where(batch.labels.good, torch.sigmoid(-z), torch.sigmoid(z))

    return _by_label("apo_unpaired", loss, beta)


def bco(*, beta: float = 0.01, shift: Literal["running", "batch"] = "running") -> Method:
    """BCO, arXiv 2404.04656: good h(βL - δ), bad h(-(βL - δ)), h(z) = -log σ(z): a classifier whose logit is the implicit reward.

    δ, in reward, is the mean of all rewards βL, without gradient. `shift` says of which: running, those of all past steps (0 in
    the first one; the step itself is left out, so that its records are not coupled); batch, those of the step. The paper's code
    has both in one: a running mean that takes in the step before it is used. For any δ the loss of a good and a bad completion
    is at least dpo's of the pair. Not here: the paper's weights for bad completions whose prompts differ in kind from those of
    the good ones (UDM).

    Assumes: good and bad labels on the same kind of prompts.
    Rests: nowhere that is known: where δ stands still a completion wants βL = δ + the log-odds of its being good, and with one δ
    for all prompts the probabilities of none of them need sum to one there.
    TRL: had a BCO trainer until 1.14, with the paper's running mean; `bco_pair` of its DPO trainer has δ = 0.
    Choose it: for single judgements, when a loss that does not saturate on what is ranked wrongly is wanted.
    """
    positive("beta", beta)
    of_the_step = one_of("shift", shift, ("running", "batch")) == "batch"

    def rewards(scored: Scored, batch: Batch) -> Tensor:
        return beta * implicit(scored, batch)[batch.labels.row]

    def loss(scored: Scored, batch: Batch) -> Tensor:
        reward = rewards(scored, batch)
        z = reward - (reward.detach().mean() if of_the_step else batch.columns["delta"])
        return torch.where(batch.labels.good, logistic(z), logistic(-z))

    def remember(memory: Memory, scored: Scored, batch: Batch) -> Memory:
        return _taken_in(memory, "delta", rewards(scored, batch))

    method = _by_label("bco", loss, beta, of_the_step=of_the_step)
    return method if of_the_step else method._replace(memory=_nothing("delta", "delta_count"), remember=remember)


def _by_label(name: str, loss: Callable[[Scored, Batch], Tensor], beta: float, *, of_the_step: bool = False) -> Method:
    """The mean over labels; `of_the_step`: a number of the whole step is held constant in it."""
    terms = (Term(name, "label", loss, weights.per_label),)
    return Method(terms, (REF_LOGP,), takes="labels", beta=beta, coupled=of_the_step, stops=of_the_step)


def kl_estimate(scored: Scored, batch: Batch) -> Tensor:
    """The mean log-ratio of completions under another's prompt, a scalar in nats without gradient; it may be below 0."""
    return _mismatched(scored, batch).mean()


def _mismatched(scored: Scored, batch: Batch) -> Tensor:
    rows = batch.labels.mismatched
    if len(rows) == 0:
        raise ValueError("KTO's KL baseline needs completions under other prompts: at least two records a step")
    return implicit(scored, batch)[rows].detach()


def _nothing(*names: str) -> Memory:
    return {name: torch.zeros((), dtype=torch.float64) for name in names}


def _taken_in(memory: Memory, name: str, values: Tensor) -> Memory:
    """A mean, and the count that it is of, after more values."""
    count = memory[f"{name}_count"] + len(values)
    mean = memory[name] + (values.double().mean() - memory[name]) * len(values) / count
    return {name: mean, f"{name}_count": count}


def _running(memory: Memory, scored: Scored, batch: Batch) -> Memory:
    return {"kl_running": KEPT * memory["kl_running"] + (1 - KEPT) * kl_estimate(scored, batch).double()}


def _dataset(memory: Memory, scored: Scored, batch: Batch) -> Memory:
    return _taken_in(memory, "kl_dataset", _mismatched(scored, batch))


class Baseline(NamedTuple):
    """z0 of a step, a scalar in nats without gradient, and what it is made of from step to step."""

    z0: Callable[[Scored, Batch], Tensor]
    memory: Mapping[str, Tensor] = {}
    remember: Callable[[Memory, Scored, Batch], Memory] | None = None


BASELINES: Mapping[str, Baseline] = {
    "batch": Baseline(lambda scored, batch: kl_estimate(scored, batch).clamp(min=0)),
    "running": Baseline(
        lambda scored, batch: batch.columns["kl_running"].clamp(min=0), _nothing("kl_running"), _running
    ),
    "dataset": Baseline(
        lambda scored, batch: batch.columns["kl_dataset"].clamp(min=0),
        _nothing("kl_dataset", "kl_dataset_count"),
        _dataset,
    ),
}
"""KTO's z0, by what it is estimated from."""
