"""Is a fast way of running this model also right? Asked of the model itself, before anything is trained on it."""

from collections.abc import Iterable

import torch
from torch import Tensor

from softq.lm.attention import NotATree
from softq.lm.forest import grow
from softq.lm.layouts import LAYOUTS
from softq.lm.model import CausalLM
from softq.lm.reward import RewardModel
from softq.lm.score import Models, score
from softq.mdp.readouts import VALUE
from softq.records import Tokens, like

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.05}
"""Mean |Δ log-prob| in nats that rounding may cause. RMSNorm rounds to float32 whatever the model's dtype."""

UNFIT = {
    "gemma2": "it caps attention scores",
    "gemma3_text": "its layers mix full and windowed attention",
    "gpt_oss": "its attention has sinks",
    "bloom": "its attention is biased by position in the batch",
    "falcon": "its attention may be biased by position in the batch",
    "stablelm": "it drops the keywords that carry the tree",
}
"""Model types whose attention is not attention over ancestors: a probe on small weights could miss it."""


def choose_layout(model: CausalLM, wanted: str) -> tuple[str, str | None]:
    """The layout to use and, where a faster one was wanted, why it is not used."""
    fast = "packed" if next(model.parameters()).device.type == "cpu" else "padded"
    layout = fast if wanted == "auto" else wanted
    if layout not in LAYOUTS:
        raise ValueError(f"there is no layout {layout!r}; known are auto, {', '.join(LAYOUTS)}")
    if layout == "plain":
        return layout, None
    reason = _unfit(model) or _probe_fails(model, layout)
    if reason and wanted != "auto":
        raise ValueError(f"layout {wanted!r} is not valid for this model: {reason}; use --layout auto or plain")
    return ("plain", reason) if reason else (layout, None)


def plain_is_right(model: CausalLM) -> bool:
    """Whether the plain layout and the head reproduce the model's own forward on each row by itself.

    They do not where the head does more than AFTER_HEAD knows. With `own_head` they only differ where the model is not
    causal, or draws at random.
    """
    if model.transformer.base_model is model.transformer and not model.own_head:
        return False
    tokens = _sample(model.vocabulary)
    tree, node = grow(tokens)
    with torch.no_grad():
        ours = model.logits(LAYOUTS["plain"](model.body, tree)).log_softmax(-1)
        rows = [ids[:-1][at >= 0][None].to(ours.device) for ids, at in zip(tokens.ids, node, strict=True)]
        own = torch.cat([model.transformer(input_ids=row, use_cache=False).logits[0] for row in rows])
    return _close(ours[node[node >= 0].to(ours.device)], own.to(ours.dtype).log_softmax(-1), own.dtype)


def reward_is_right(model: RewardModel) -> bool:
    """Whether the reward of a whole row, in the plain layout, is what the model's own forward says of the row by itself."""
    tokens = _sample(model.vocabulary)
    rows = [row[: int(length)] for row, length in zip(tokens.ids, _ids(tokens), strict=True)]
    config = model.config
    pad, config.pad_token_id = config.pad_token_id, None  # any token may be in the sample
    with torch.no_grad():
        found = score(Models({"policy": model}), tokens, (VALUE,))["value"]
        own = torch.cat(
            [model.transformer(input_ids=row[None].to(found.device), use_cache=False).logits for row in rows]
        )
    config.pad_token_id = pad
    ours = found[torch.arange(len(rows)), _ids(tokens) - 2]
    return _close(ours, own[:, 0].to(ours.dtype), own.dtype)


def _ids(tokens: Tokens) -> Tensor:
    """[B]: how many ids each row has, up to its last action's."""
    return (torch.arange(tokens.action.shape[1]) * tokens.action).amax(-1) + 2


def verify_layout(models: Models, tokens: Tokens) -> str:
    """Score tokens in the models' layout and plainly, with gradient, and say how far apart they are.

    Raises ValueError where log-probabilities or gradients differ by more than rounding.
    """
    policy = models["policy"]
    assert isinstance(policy, CausalLM)
    if policy.layout == "plain":
        return "layout plain is the reference; nothing to compare"
    results = {layout: _with_gradient(policy, layout, tokens) for layout in (policy.layout, "plain")}
    (logp, gradient), (plain_logp, plain_gradient) = results[policy.layout], results["plain"]
    what = "rewards within {:.1e}" if isinstance(policy, RewardModel) else "log-probs within {:.1e} nats"
    acted = tokens.action.to(logp.device)
    logp, plain_logp = logp[acted], plain_logp[acted]
    apart = (logp - plain_logp).abs().max().item()
    turned = ((gradient - plain_gradient).norm() / plain_gradient.norm()).item()
    said = f"layout {policy.layout}: {what.format(apart)} of plain, gradient within {turned:.1e} of its norm"
    dtype = next(policy.parameters()).dtype
    if not (_close(logp, plain_logp, dtype) and turned <= min(100 * TOLERANCE[dtype], 0.5)):
        raise ValueError(f"{said}: that is more than rounding; use --layout plain")
    return said


def _with_gradient(policy: CausalLM, layout: str, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Log-probs (or rewards), and the gradient of a sum that weighs every action differently; the model is left as it was."""
    before, policy.layout = policy.layout, layout
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    try:
        needs = (VALUE,) if isinstance(policy, RewardModel) else ()
        logp = like(score(Models({"policy": policy}), tokens, needs))
        weights = torch.linspace(-1, 1, logp.numel(), device=logp.device, dtype=logp.dtype).view_as(logp)
        gradients = torch.autograd.grad((logp * weights).sum(), trained, allow_unused=True)
    finally:
        policy.layout = before
    return logp.detach(), torch.cat([g.flatten() for g in gradients if g is not None])


def _unfit(model: CausalLM) -> str | None:
    if model.own_head:
        return "its own forward is used"
    config = model.config
    rope = config.to_dict().get("rope_parameters") or {}
    kinds = {str(part.get("rope_type")) for part in [rope, *rope.values()] if isinstance(part, dict)}
    if kinds & {"dynamic", "longrope"}:
        return "its rotary positions depend on the longest row, so packed rows would change each other"
    if not model.transformer._supports_attention_backend and config.model_type not in UNFIT:
        return "transformers runs its attention by code of its own"
    if others := set(config.to_dict().get("layer_types") or ()) - {"full_attention", "sliding_attention"}:
        return f"it has layers of {' and '.join(sorted(others))}"
    return UNFIT.get(config.model_type)


def _probe_fails(model: CausalLM, layout: str) -> str | None:
    """Why the layout is not valid, in which case the model's own attention is put back; None if it is."""
    config = model.transformer.config
    attention = config._attn_implementation
    tree = grow(_sample(model.vocabulary)).tree
    try:
        with torch.no_grad():
            plain = _numbers(model, LAYOUTS["plain"](model.body, tree))
            fast = _numbers(model, type(model)(model.model, layout).states(tree))
    except (NotATree, TypeError, ValueError, RuntimeError) as error:
        config._attn_implementation = attention
        return f"it can not run it ({str(error).splitlines()[0]})"
    if _close(fast, plain, next(model.parameters()).dtype):
        return None
    config._attn_implementation = attention
    what = "rewards would be {:.1e}" if isinstance(model, RewardModel) else "log-probs would be {:.1e} nats"
    return f"its {what.format((fast - plain).abs().mean().item())} off"


def _numbers(model: CausalLM, states: Tensor) -> Tensor:
    """What is read of states: log-probs, or a reward."""
    logits = model.logits(states)
    return logits if isinstance(model, RewardModel) else logits.log_softmax(-1)


def _close(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    return bool((a - b).abs().mean() <= TOLERANCE.get(dtype, 1e-4))


def _sample(vocabulary: int) -> Tokens:
    """Two prompts with three and two completions of uneven lengths, tokens at random but always the same."""
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[int]:
        return torch.randint(0, vocabulary, (length,), generator=generator).tolist()

    prompts = [draw(9), draw(1)]
    rows = [(p, prompts[p] + draw(n), n) for p, n in ((0, 5), (0, 1), (0, 12), (1, 7), (1, 2))]
    return rows_of((prompt, ids, len(ids) - n) for prompt, ids, n in rows)


def rows_of(rows: Iterable[tuple[int, list[int], int]]) -> Tokens:
    """(prompt number, ids, where the completion starts) -> Tokens of finished completions."""
    rows = list(rows)
    width = max(len(ids) for _, ids, _ in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for _, row, _ in rows])
    t = torch.arange(width - 1)[None]
    start, size = (torch.tensor(column)[:, None] for column in ([r[2] for r in rows], [len(r[1]) for r in rows]))
    action = (t >= start - 1) & (t < size - 1)
    return Tokens(ids, action, torch.ones(len(rows), dtype=torch.bool), torch.tensor([r[0] for r in rows]))
