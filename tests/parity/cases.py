"""Which of TRL's losses is which of ours, at which settings, and where TRL's differs: how, and as a formula that it equals.

Data only, for the tests and for the table in docs/parity.md.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import steps
import torch
import torch.nn.functional as F
from torch import Tensor
from trainers import Step
from ways import asked

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
        flat = {}
        for key, value in self.parameters.items():
            flat |= (
                {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, Mapping) else {key: value}
            )
        return self.ours + "".join(f" {key}={value}" for key, value in flat.items() if key.split(".")[-1] != "beta")


class Refused(NamedTuple):
    """Settings of TRL at which it raises, or gives no finite number, where ours is defined or says so first."""

    settings: Mapping[str, Any]
    raises: str  # the kind of error, or nan
    says: str  # a part of its message
    about: str
    ours: tuple[str, Mapping[str, Any]] | None = None  # a method that is finite there


def _equal(ours: str, draw: Callable[[int], Step] = steps.pairs, /, **parameters: Any) -> Case:
    """A method that TRL has: its way there is the one of `ways.py`."""
    found = asked(ours, parameters)
    assert found, ours
    return Case(*found, ours, parameters, draw=draw)


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


def _over_tokens(alpha: float, step: Step, ours: Ours) -> Tensor:
    """RPO's anchor as a mean over the step's tokens, not over its completions' means."""
    rows = step.batch.pairs.chosen
    logp, mask = step.policy["log_probs"][rows], step.batch.tokens.action[rows]
    by_row = (logp.sum(-1) / mask.sum(-1)).mean()
    return ours(step) + alpha * (by_row - steps.token_mean(logp, mask))


ONE = functools.partial(steps.pairs, prompt=1)
SINGLE = functools.partial(steps.pairs, dtype=torch.float32)
PIECES = "of each micro-batch, here of the step; there the loss is the mean of ours over the micro-batches"
SLIC = {"weights": [0.25, 0.6], "slic": {"delta": 4.0, "alpha": 0.0}, "sft": {}}
"""Of a hinge at β = 1/4: max(0, 1 - βm) = β max(0, 1/β - m)."""

EQUAL: tuple[Case, ...] = (
    _equal("dpo", beta=0.3),
    _equal("hinge", beta=0.3),
    _equal("ipo", beta=0.3),
    _equal("exo", beta=0.3, label_smoothing=0.001),
    _equal("nca", beta=0.3),
    _equal("robust", beta=0.3, label_smoothing=0.1),
    _equal("bco_pair", beta=0.3),
    _equal("sppo_hard", beta=0.3),
    _equal("aot", beta=0.3, label_smoothing=0.1),
    _equal("aot_unpaired", beta=0.3, label_smoothing=0.1),
    _equal("apo_zero", beta=0.3),
    _equal("apo_down", beta=0.3),
    _equal("discopop", beta=0.1, tau=0.2),
    _equal("sft"),
    _equal("dpo_norm", beta=0.3),
    _equal("forward_kl_dpo", beta=0.3),
    _equal("js_dpo", beta=0.3),
    _equal("alpha_dpo", SINGLE, beta=0.3, alpha=0.4),
    _equal("ld_dpo", beta=0.3, alpha=0.4),
    _equal("dpo+bco_pair+sft", weights=[0.8, 0.2, 1.0], dpo={"beta": 0.3}, bco_pair={"beta": 0.3}, sft={}),
    _equal("kto", steps.labelled, beta=0.3, desirable_weight=1.2, undesirable_weight=0.9),
    _equal("apo_unpaired", steps.labelled, beta=0.3),
    _equal("cpo", beta=0.3, alpha=0.6),
    _equal("simpo", beta=2.0, gamma=0.8),
    _equal("alphapo", beta=2.0, gamma=0.8, alpha=0.3),
    _equal("orpo", ONE, beta=0.3),
)
"""What is the same, once for each method that TRL has."""

ALSO: tuple[Case, ...] = (
    Case("CPOTrainer", {"loss_type": "sigmoid", "beta": 0.3, "cpo_alpha": 0.0}, "gamma_dpo", {"beta": 0.3, "gamma": 0.0}),
    Case("CPOTrainer", {"loss_type": "hinge", "beta": 0.25, "cpo_alpha": 0.6}, "slic+sft", SLIC),
    Case("CPOTrainer", {"loss_type": "simpo", "beta": 2.0}, "simpo+sft",
         {"weights": [1.0, 1.0], "simpo": {"beta": 2.0, "gamma": 0.5}, "sft": {}}),
    Case("TPOTrainer", {"loss_type": "sigmoid", "beta": 0.3, "tpo_alpha": 0.6}, "cpo", {"beta": 0.3, "alpha": 0.6}),
    Case("TPOTrainer", {"loss_type": "hinge", "beta": 0.25, "tpo_alpha": 0.6}, "slic+sft", SLIC),
    Case("TPOTrainer", {"loss_type": "tpo-l", "beta": 2.0, "tpo_l_gamma": 0.8, "tpo_alpha": 0.0}, "simpo",
         {"beta": 2.0, "gamma": 0.8}),
    Case("A2POTrainer", {"beta1": 0.5, "beta2": 0.5}, "reward_regression", {"beta": 0.5}, draw=steps.groups),
)  # fmt: skip
"""What is the same by another way, or only with these settings."""

DIFFERS: tuple[Case, ...] = (
    Case(
        "DPOTrainer", {"loss_type": "sigmoid", "beta": 0.3, "label_smoothing": 0.1}, "dpo",
        {"beta": 0.3, "label_smoothing": 0.1},
        "label_smoothing is ignored without a word (until 0.28 it was cDPO): this is dpo without it",
        lambda step, ours: F.softplus(-0.3 * torch.sub(*steps.sums(step))).mean(),
    ),
    Case(
        "DPOTrainer", {"loss_type": "ipo", "beta": 0.3}, "ipo", {"beta": 0.3, "length_average": False},
        "log-ratios per token, as IPO's authors confirmed: (L_w/n_w - L_l/n_l - 1/(2β))², n tokens; the paper's sums can "
        "not be had",
        lambda step, ours: (_per_token(step) - 1 / 0.6).square().mean(),
    ),
    Case(
        "DPOTrainer", {"loss_type": "sigmoid", "beta": 0.3, "use_weighting": True}, "wpo", {"beta": 0.3},
        "a pair's weight is not clamped at 1: sg[w(y_w) w(y_l)] h(βm); the official code clamps the product",
        functools.partial(_unclamped, 0.3),
    ),
    Case(
        "DPOTrainer", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7], "beta": 0.3}, "rpo",
        {"beta": 0.3, "alpha": 0.7}, "the anchor is a mean over the step's tokens, RPO's over completions' own means",
        functools.partial(_over_tokens, 0.7),
    ),
    Case("DPOTrainer", {"loss_type": "sppo_hard", "beta": 0.3}, "sppo", {"beta": 0.3},
         "twice SPPO's mean over both sides, with its win probabilities at 1 and 0", lambda step, ours: 2 * ours(step),
         steps.won),
    Case("DPOTrainer", {"loss_type": "aot", "beta": 0.3}, "aot", {"beta": 0.3}, f"sorted are the pairs {PIECES}", _halves,
         halved=True),
    Case("DPOTrainer", {"loss_type": "sft"}, "sft", {}, f"the mean is over the tokens {PIECES}", _halves, halved=True),
    Case("KTOTrainer", {"loss_type": "kto", "beta": 0.3}, "kto", {"beta": 0.3}, f"the KL baseline is {PIECES}", _halves,
         steps.labelled, halved=True),
    Case(
        "CPOTrainer", {"loss_type": "simpo", "beta": 2.0}, "simpo", {"beta": 2.0, "gamma": 0.5},
        "cpo_alpha is 1 where it is not given, which adds the chosen completions' NLL: this is simpo+sft",
        lambda step, ours: ours(step) + _nll(step),
    ),
    Case(
        "ORPOTrainer", {"beta": 0.3}, "orpo", {"beta": 0.3},
        "the NLL is over prompt and completion, here over the completion; equal at prompts of one token", _prompt_too,
    ),
)  # fmt: skip
"""What is not the same, how, and the formula that TRL's loss equals."""

CASES = EQUAL + ALSO + DIFFERS

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
    Refused(
        {"loss_type": ["sigmoid", "sft"], "use_weighting": True}, "RuntimeError", "single memory", "weighting in place fails"
    ),
    Refused({"loss_type": "robust", "label_smoothing": 0.5}, "nan", "", "ours refuses label_smoothing from 0.5 on"),
    Refused(
        {"loss_type": "discopop", "beta": 1000.0}, "nan", "",
        "e^-u and σ(u/τ) are multiplied, ∞ · 0 below u = -709 (in float32 -88); ours is exp(log σ(u/τ) - u)",
        ("discopop", {"beta": 1000.0}),
    ),
)  # fmt: skip

NOT_HERE: Mapping[str, str] = {
    "DPOTrainer f_divergence_type with hinge, ipo, exo_pair, robust, discopop, sigmoid_norm": "f-DPO's loss is sigmoid's",
    "DPOTrainer ld_alpha with another loss than sigmoid": "LD-DPO's loss is sigmoid's",
    "DPOTrainer use_weighting with another loss than sigmoid": "WPO's loss is sigmoid's",
    "CPOTrainer, TPOTrainer loss_type=ipo": "no paper: IPO without a reference, on means of log-probabilities",
    "CPOTrainer, TPOTrainer label_smoothing": "CPO and SimPO have none",
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
