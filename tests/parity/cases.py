"""Which of TRL's losses is which of ours, at which settings, and where TRL's differs: how, and as a formula that it equals.

Data only, for the tests and for the table in docs/parity.md.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import steps
from trainers import Step

Ours = Callable[[Step], Tensor]


class Case(NamedTuple):
    """One loss of TRL at some settings, and ours."""

    trainer: str
    settings: Mapping[str, Any]
    ours: str  # a name of METHODS, or several with +
    parameters: Mapping[str, Any]  # of a sum: by name, and "weights"
    differs: str = ""  # in words; then `theirs` is what TRL computes, of the step and of our loss
    theirs: Callable[[Step, Ours], Tensor] | None = None
    draw: Callable[[int], Step] = steps.pairs
    halved: bool = False  # TRL sees the step as two micro-batches, whose losses are averaged

    @property
    def asked(self) -> str:
        """TRL's side, in a line."""
        return " ".join([self.trainer, *(f"{key}={value}" for key, value in self.settings.items() if key != "beta")])

    @property
    def named(self) -> str:
        """Our side, in a line."""
        return self.ours + "".join(f" {key}={value}" for key, value in self.parameters.items() if key != "beta")


class Refused(NamedTuple):
    """Settings of TRL at which it raises, or gives no finite number, where ours is defined or says so first."""

    settings: Mapping[str, Any]
    raises: str  # the kind of error, or nan
    says: str  # a part of its message
    about: str


def _dpo(loss: str, ours: str, parameters: Mapping[str, Any] | None = None, /, **more: Any) -> Case:
    """A loss of DPOTrainer; the settings that both have by one name are given once."""
    shared = {"beta": 0.3, **(parameters or {})}
    return Case("DPOTrainer", {"loss_type": loss, **shared, **more}, ours, shared)


def _halves(step: Step, ours: Ours) -> Tensor:
    """The mean of ours on each half of the step."""
    return torch.stack([ours(half) for half in steps.halves(step)]).mean()


def _unclamped(beta: float, step: Step, ours: Ours) -> Tensor:
    """WPO without the minimum with 1."""
    chosen, rejected = steps.sums(step)
    return (steps.typical(step) * F.softplus(-beta * (chosen - rejected))).mean()


def _prompt_too(step: Step, ours: Ours) -> Tensor:
    """ORPO whose NLL is the mean over the chosen rows' prompts and completions, without their first token."""
    rows = step.batch.pairs.chosen
    taken = step.batch.tokens.ids[rows, 1:, None]
    logp = step.policy["logits"][rows, :-1].log_softmax(-1).gather(-1, taken)[..., 0]
    completion = step.batch.tokens.action[rows]
    place = torch.arange(completion.shape[1])
    seen = place <= (completion * place).amax(1, keepdim=True)
    return ours(step) + steps.token_mean(logp, completion) - steps.token_mean(logp, seen)


def _sum_of_tokens(alpha: float, step: Step, ours: Ours) -> Tensor:
    """RPO's anchor as a mean over the step's tokens, not over its completions' means."""
    rows = step.batch.pairs.chosen
    logp, mask = step.policy["log_probs"][rows], step.batch.tokens.action[rows]
    by_row = (logp.sum(-1) / mask.sum(-1)).mean()
    return ours(step) + alpha * (by_row - steps.token_mean(logp, mask))


ONE = functools.partial(steps.pairs, prompt=1)
SINGLE = functools.partial(steps.pairs, dtype=torch.float32)
SMOOTH = {"label_smoothing": 0.1}
PIECES = "of each micro-batch, ours of the step: TRL's is the mean of ours over its micro-batches"
FREE = {"beta": 0.3}

DPO: tuple[Case, ...] = (
    _dpo("sigmoid", "dpo"),
    _dpo("hinge", "hinge"),
    _dpo("ipo", "ipo"),
    _dpo("exo_pair", "exo", {"label_smoothing": 0.001}),
    _dpo("nca_pair", "nca"),
    _dpo("robust", "robust", SMOOTH),
    _dpo("bco_pair", "bco_pair"),
    _dpo("sppo_hard", "sppo_hard"),
    _dpo("aot", "aot", SMOOTH),
    _dpo("aot_unpaired", "aot_unpaired", SMOOTH),
    _dpo("apo_zero", "apo_zero"),
    _dpo("apo_down", "apo_down"),
    Case("DPOTrainer", {"loss_type": "discopop", "beta": 0.1, "discopop_tau": 0.2}, "discopop", {"beta": 0.1, "tau": 0.2}),
    Case("DPOTrainer", {"loss_type": "sft"}, "sft", {}),
    _dpo("sigmoid_norm", "dpo_norm"),
    Case(
        "DPOTrainer", {"loss_type": "sigmoid", "beta": 0.3, **SMOOTH}, "dpo", {"beta": 0.3, **SMOOTH},
        "label_smoothing is ignored without a word (until 0.28 it was cDPO): this is dpo without it",
        lambda step, ours: F.softplus(-0.3 * torch.sub(*steps.sums(step))).mean(),
    ),
    Case(
        "DPOTrainer", {"loss_type": "ipo", "beta": 0.3}, "ipo", {"beta": 0.3, "length_average": False},
        "log-ratios per token, as IPO's authors confirmed; the paper's sums can not be had",
        lambda step, ours: (_per_token(step) - 1 / 0.6).square().mean(),
    ),
    Case(
        "DPOTrainer", {"loss_type": "aot", "beta": 0.3}, "aot", {"beta": 0.3}, f"sorted are the pairs {PIECES}",
        _halves, halved=True,
    ),
    Case(
        "DPOTrainer", {"loss_type": "sft"}, "sft", {}, f"the mean is over the tokens {PIECES}", _halves, halved=True
    ),
    _dpo("sigmoid", "forward_kl_dpo", f_divergence_type="forward_kl"),
    _dpo("sigmoid", "js_dpo", f_divergence_type="js_divergence"),
    Case(
        "DPOTrainer",
        {"loss_type": "sigmoid", "beta": 0.3, "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
        "alpha_dpo", {"beta": 0.3, "alpha": 0.5}, draw=SINGLE,
    ),
    Case("DPOTrainer", {"loss_type": "sigmoid", "beta": 0.3, "ld_alpha": 0.4}, "ld_dpo", {"beta": 0.3, "alpha": 0.4}),
    Case(
        "DPOTrainer", {"loss_type": "sigmoid", "beta": 0.3, "use_weighting": True}, "wpo", {"beta": 0.3},
        "a pair's weight is not clamped at 1: sg[w(y_w) w(y_l)] h(βm); the official code clamps the product",
        functools.partial(_unclamped, 0.3),
    ),
    Case(
        "DPOTrainer", {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0], "beta": 0.3},
        "dpo+bco_pair+sft", {"weights": [0.8, 0.2, 1.0], "dpo": FREE, "bco_pair": FREE, "sft": {}},
    ),
    Case(
        "DPOTrainer", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7], "beta": 0.3},
        "rpo", {"beta": 0.3, "alpha": 0.7}, "the anchor is a mean over tokens, RPO's over completions' own means",
        functools.partial(_sum_of_tokens, 0.7),
    ),
)  # fmt: skip

OTHERS: tuple[Case, ...] = (
    Case(
        "KTOTrainer", {"loss_type": "kto", "beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.9}, "kto",
        {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.9}, draw=steps.labelled,
    ),
    Case("KTOTrainer", {"loss_type": "apo_zero_unpaired", "beta": 0.3}, "apo_unpaired", FREE, draw=steps.labelled),
    Case(
        "KTOTrainer", {"loss_type": "kto", "beta": 0.3}, "kto", FREE, f"the KL baseline is {PIECES}", _halves,
        steps.labelled, halved=True,
    ),
    Case("CPOTrainer", {"loss_type": "sigmoid", "beta": 0.3, "cpo_alpha": 0.6}, "cpo", {"beta": 0.3, "alpha": 0.6}),
    Case("CPOTrainer", {"loss_type": "sigmoid", "beta": 0.3, "cpo_alpha": 0.0}, "gamma_dpo", {"beta": 0.3, "gamma": 0.0}),
    Case(
        "CPOTrainer", {"loss_type": "hinge", "beta": 0.25, "cpo_alpha": 0.6}, "slic+sft",
        {"weights": [0.25, 0.6], "slic": {"delta": 4.0, "alpha": 0.0}, "sft": {}},
    ),
    Case("CPOTrainer", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.8, "cpo_alpha": 0.0}, "simpo",
         {"beta": 2.0, "gamma": 0.8}),
    Case(
        "CPOTrainer", {"loss_type": "simpo", "beta": 2.0}, "simpo", {"beta": 2.0, "gamma": 0.5},
        "cpo_alpha is 1 where it is not given, which adds an NLL: this is simpo+sft",
        lambda step, ours: ours(step) + _nll(step),
    ),
    Case("ORPOTrainer", {"beta": 0.3}, "orpo", FREE, draw=ONE),
    Case(
        "ORPOTrainer", {"beta": 0.3}, "orpo", FREE,
        "the NLL is over prompt and completion, here over the completion; equal at prompts of one token", _prompt_too,
    ),
    Case("TPOTrainer", {"loss_type": "sigmoid", "beta": 0.3, "tpo_alpha": 0.6}, "cpo", {"beta": 0.3, "alpha": 0.6}),
    Case("TPOTrainer", {"loss_type": "hinge", "beta": 0.25, "tpo_alpha": 0.6}, "slic+sft",
         {"weights": [0.25, 0.6], "slic": {"delta": 4.0, "alpha": 0.0}, "sft": {}}),
    Case("TPOTrainer", {"loss_type": "tpo-l", "beta": 2.0, "tpo_l_gamma": 0.8, "tpo_alpha": 0.0}, "simpo",
         {"beta": 2.0, "gamma": 0.8}),
    Case("A2POTrainer", {"beta1": 0.5, "beta2": 0.5}, "reward_regression", {"beta": 0.5}, draw=steps.groups),
)  # fmt: skip

CASES = DPO + OTHERS

REFUSED: tuple[Refused, ...] = (
    Refused({"loss_type": "exo_pair"}, "ValueError", "greater than 0.0", "exo_pair wants label_smoothing; ours has 1e-3"),
    Refused(
        {"loss_type": "nca_pair", "f_divergence_type": "js_divergence"}, "ValueError", "f_divergence_type",
        "other divergences only with losses of the margin",
    ),
    Refused(
        {"loss_type": "sigmoid", "f_divergence_type": "alpha_divergence"}, "KeyError", "float64",
        "alpha_divergence knows no float64",
    ),
    Refused({"loss_type": "aot", "use_weighting": True}, "NotImplementedError", "aot", "weighting of sorted pairs"),
    Refused({"loss_type": "hinge", "use_weighting": True}, "RuntimeError", "inplace", "weighting in place fails in backward"),
    Refused({"loss_type": ["sigmoid", "sft"], "use_weighting": True}, "RuntimeError", "single memory", "and before it"),
    Refused({"loss_type": "robust", "label_smoothing": 0.5}, "nan", "", "ours refuses label_smoothing from 0.5 on"),
)  # fmt: skip

NOT_HERE: Mapping[str, str] = {
    "DPOTrainer f_divergence_type with hinge, ipo, exo_pair, robust, discopop, sigmoid_norm": "f-DPO's loss is sigmoid's",
    "DPOTrainer ld_alpha with another loss than sigmoid": "LD-DPO's loss is sigmoid's",
    "DPOTrainer use_weighting with another loss than sigmoid": "WPO's loss is sigmoid's",
    "CPOTrainer, TPOTrainer loss_type=ipo": "no paper: IPO without a reference, on means of log-probabilities",
    "CPOTrainer, TPOTrainer label_smoothing": "CPO and SimPO have none",
    "CPOTrainer loss_type=alphapo, or alpha": "AlphaPO's reward (1 - p^-α)/α",
    "OnlineDPOTrainer": "online; its losses are sigmoid, and ipo with the paper's sums (`ipo length_average=False`)",
}


def _per_token(step: Step) -> Tensor:
    """[P] L_w/|y_w| - L_l/|y_l|."""
    length = step.batch.tokens.action.sum(-1)
    chosen, rejected = steps.sums(step)
    return chosen / length[step.batch.pairs.chosen] - rejected / length[step.batch.pairs.rejected]


def _nll(step: Step) -> Tensor:
    rows = step.batch.pairs.chosen
    return -steps.token_mean(step.policy["log_probs"][rows], step.batch.tokens.action[rows])
