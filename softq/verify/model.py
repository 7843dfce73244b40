"""A user's own model as the subject of laws: what is loaded, the first rows of their data, and how both are measured."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from softq.data.encode import Encoded
from softq.lm.load import Loaded
from softq.lm.model import AdapterOff, CausalLM
from softq.lm.probe import TOLERANCE
from softq.lm.score import Models
from softq.lm.tokenizer import load_tokenizer
from softq.mdp.readouts import REF_LOGP, logp_of
from softq.records import Batch, Method, Scored, moved
from softq.training import ranks
from softq.training.loop import credited, default_budget, with_columns
from softq.training.plan import assembled, losses, plan, scored_by, scored_whole
from softq.training.prepare import Data, load_models, read_data, reads_reference
from softq.training.settings import Call, Settings
from softq.training.source import batch_of, usable
from softq.verify.law import Finding, apart

READ = frozenset(
    "model reference models data format rename chat_template max_length truncate eval_fraction seed tokens_per_micro layout "
    "gradient_checkpointing dtype bf16 use_peft lora_r lora_alpha lora_target_modules".split()
)
"""Settings of a run that the laws of a model read."""

REFERENCE_FREE = "the method reads no reference"
STORED = "the data stores the reference's log-probs (ref_logps), so no reference is loaded"


class OnModel(NamedTuple):
    """What the laws of a model speak of: everything that a run of a method would start from, and one step of it."""

    name: str  # of the method
    method: Method
    settings: Settings
    loaded: Loaded
    ends: frozenset[int]  # every id that ends a completion
    data: Data
    records: Sequence[Encoded]  # the first rows of the data that the method can use
    batch: Batch  # of them; a row's `prompt` is the number of its record
    tokens_per_micro: int

    @property
    def policy(self) -> CausalLM:
        """The model that would be trained."""
        return self.loaded.policy

    @property
    def dtype(self) -> torch.dtype:
        """Of the policy's weights."""
        return next(self.policy.parameters()).dtype

    @property
    def rounding(self) -> float:
        """Nats by which rounding may move the log-prob of any one token: ten times what it may move their mean."""
        return 10 * TOLERANCE.get(self.dtype, 1e-4)

    @property
    def turning(self) -> float:
        """The share of a gradient's norm by which rounding may turn it."""
        return min(100 * TOLERANCE.get(self.dtype, 1e-4), 0.5)

    @property
    def no_reference(self) -> str | None:
        """Why no reference is loaded; None where one is."""
        if "ref" in self.loaded.models:
            return None
        return STORED if reads_reference(self.method) else REFERENCE_FREE


class Slope(NamedTuple):
    """A step's loss, its gradient with respect to each trained parameter of the policy, and the log-probs behind them."""

    loss: float
    gradient: list[Tensor]
    logp: Tensor  # [B, T]


class Gap(NamedTuple):
    """How far apart two computations of one thing are, and how far rounding explains."""

    what: str
    size: float
    allowed: float
    unit: str = ""


def on_model(name: str, settings: Settings, method: Method, call: Call, rows: int = 8) -> OnModel:
    """Read the data and load the models exactly as `training.run` does; the first `rows` records become one step.

    Raises ValueError for settings or a model that can not be used, DataError for data that can not.
    """
    if settings.bf16:
        raise ValueError("--bf16: the laws run the weights as they are, and one says what bfloat16 costs; leave it out")
    if ranks.launched() > 1:
        raise ValueError("the laws of a model are checked in one process; launch it without torchrun or accelerate")
    spoken = load_tokenizer(settings.model, call.trust_remote_code)
    data = read_data(name, settings, method, spoken)
    records = usable(data.train.records, data.train.kind, method)[:rows]
    if method.coupled and len(records) == 1:
        raise ValueError(f"{name} compares records with each other, and the data holds one; give at least two")
    device = str(ranks.join(bf16=False).device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)  # of a fresh adapter
        loaded = load_models(name, settings, method, call, data=data, tokenizer=spoken.tokenizer, device=device)
    batch = batch_of(list(records), range(len(records)), method, max_length=settings.max_length)
    budget = settings.tokens_per_micro or default_budget(loaded.models)
    ends = spoken.end_ids | data.train.template_ends
    return OnModel(name, method, settings, loaded, ends, data, list(records), batch, budget)


def log_probs(on: OnModel, batch: Batch | None = None) -> Scored:
    """ "logp" [B, T] of the step's actions, as training scores them, and of each frozen model that is loaded "NAME_logp"."""
    needs = tuple(REF_LOGP if name == "ref" else logp_of(name) for name in on.loaded.models if name != "policy")
    return scored_whole(Method((), needs), on.loaded.models, batch or on.batch, on.tokens_per_micro)


def own_log_probs(model: nn.Module, ids: Tensor) -> Tensor:
    """[L] ids -> [L, V] nats: log π(· | ids[: t + 1]) by the transformers model's own forward, alone and unpadded."""
    with torch.no_grad(), _as_transformers(model) as forward:
        ids = ids.to(next(forward.parameters()).device)
        logits = forward(input_ids=ids[None], use_cache=False).logits[0]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


@contextmanager
def _as_transformers(model: nn.Module) -> Iterator[Any]:
    """The model as transformers or peft made it; of a reference that is the policy without its adapter, that."""
    if isinstance(model, AdapterOff):
        with model.policy.model.disable_adapter():  # pyright: ignore[reportCallIssue]
            yield model.policy.model
    else:
        yield model.model


def cut_slope(on: OnModel, tokens_per_micro: int) -> Slope:
    """Of the step, cut as training cuts it into parts of at most so many states."""
    models = on.loaded.models
    trained = _trained(models)
    batch = credited(on.method, models, with_columns(on.batch, on.method.memory), tokens_per_micro)
    micros, whole = plan(on.method, models, batch, tokens_per_micro=tokens_per_micro)
    total, gradient, seen = 0.0, [torch.zeros_like(parameter) for parameter in trained], []
    for micro in micros:
        scored = scored_by(models, micro.batch, on.method)
        share = micro.share(scored)
        for so_far, summand in zip(gradient, _gradient(share, trained), strict=True):
            so_far += summand
        total += float(share.detach())
        seen.append((micro.rows, {"logp": scored["logp"]}))
    if whole is not None:  # the parts of a coupled step add up to its gradient alone
        return Slope(float(whole[1]), gradient, whole[0]["logp"])
    return Slope(total, gradient, assembled(batch, seen, trained[0].device)["logp"])


def whole_slope(on: OnModel, batch: Batch) -> Slope:
    """Of a batch, scored at once and as it stands: nothing is cut, not even padding."""
    models = on.loaded.models
    batch = credited(on.method, models, with_columns(batch, on.method.memory), on.tokens_per_micro)
    scored = scored_by(models, batch, on.method)
    there = moved(batch, scored["logp"].device)
    loss = losses(on.method, scored, there, [term.weigh(batch) for term in on.method.terms])
    return Slope(float(loss.detach()), _gradient(loss, _trained(models)), scored["logp"].detach())


def _trained(models: Models) -> list[nn.Parameter]:
    return [parameter for parameter in models["policy"].parameters() if parameter.requires_grad]


def _gradient(loss: Tensor, trained: list[nn.Parameter]) -> list[Tensor]:
    if not loss.requires_grad:
        raise ValueError("the loss has no gradient: it must be a function of scored['logp'] that is not detached")
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, trained, strict=True)]


def gaps(on: OnModel, found: Slope, expected: Slope) -> list[Gap]:
    """How far losses are apart, relative where they are above 1, and gradients, in units of their norm."""
    norm = _norm(expected.gradient)
    turned = _norm([one - other for one, other in zip(found.gradient, expected.gradient, strict=True)])
    loss = abs(found.loss - expected.loss) / max(1.0, abs(expected.loss))
    return [
        Gap("loss", loss, on.rounding),
        Gap("gradient", turned / norm if turned else 0.0, on.turning, " of its norm"),
    ]


def log_prob_gap(on: OnModel, found: Tensor, expected: Tensor) -> Gap:
    """The largest |Δ log-prob| of a token."""
    return Gap("log-probs", apart(found, expected), on.rounding, " nats")


def worst(found: Iterable[Gap], note: str = "") -> Finding:
    """The gap that is nearest to its bound, or beyond it; all are noted."""
    several = list(found)
    most = max(several, key=lambda gap: gap.size / gap.allowed if gap.size == gap.size else float("inf"))
    said = ", ".join(f"{gap.what} {_shown(gap.size)}{gap.unit}" for gap in several)
    return Finding(most.size, most.allowed, f"{note}{said}")


def _shown(size: float) -> str:
    return f"{size:.1e}" if size else "0"


def _norm(tensors: Iterable[Tensor]) -> float:
    """Of all entries of all tensors."""
    return float(torch.stack([tensor.double().norm() for tensor in tensors]).norm())
