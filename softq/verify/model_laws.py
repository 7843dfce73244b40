"""The laws of a user's own model: what must hold before anything is trained on it, and what it means where it does not.

Error and bound of a law are in nats unless it says otherwise; where it compares several things, they are those of the one
that is nearest to its bound. What rounding explains depends on the dtype: see `OnModel`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig

from softq.lm.layouts import LAYOUTS
from softq.lm.model import AdapterOff, CausalLM
from softq.lm.probe import TOLERANCE, choose_layout, rows_of
from softq.lm.score import Models, score
from softq.records import COLUMNS, Batch, Tokens, last_action, take
from softq.training.plan import shares
from softq.training.samples import at_rest, positions, prompt_of
from softq.verify.law import Finding, Law, apart
from softq.verify.model import (
    OnModel,
    Slope,
    cut_slope,
    gaps,
    log_prob_gap,
    log_probs,
    own_log_probs,
    whole_slope,
    worst,
)
from softq.verify.model_reference import identity, kept
from softq.verify.model_rewards import bfloat16, margin, normalisation
from softq.verify.model_text import boundary

SAMPLED = 16  # tokens that are generated
PADDING = 7  # columns


def own_forward(on: OnModel) -> Finding:
    """|Δ log-prob| of `score` and of each row by itself through the model's own forward, of every model that is loaded."""
    scored, tokens, found, note = log_probs(on), on.batch.tokens, [], ""
    for name, model in on.loaded.models.items():
        ours = scored["logp" if name == "policy" else f"{name}_logp"].cpu()
        theirs = torch.zeros_like(ours)
        for row, (ids, action) in enumerate(zip(tokens.ids, tokens.action, strict=True)):
            end = last_action(action[None]) + 1  # states; the row has one id more
            every = own_log_probs(model, ids[:end])
            theirs[row, :end] = every.gather(-1, ids[1 : end + 1, None].to(every.device))[:, 0].cpu() * action[:end]
        found.append(log_prob_gap(on, ours, theirs)._replace(what=name))
        if not found[-1].size <= found[-1].allowed:
            row = int((ours - theirs).abs().amax(-1).argmax())
            note = f"most in {on.records[int(tokens.prompt[row])].where}: "
    return worst(found, note)


def layouts(on: OnModel) -> Finding | str:
    """Log-probs, loss and gradient of every layout that is valid for the model, against plain."""
    found, refused = [], []
    with _attention_kept(on.loaded.models):
        plain = _laid(on, "plain")
        for layout in (layout for layout in LAYOUTS if layout != "plain"):
            if why := _unfit(on.policy, layout):
                refused.append(why)
                continue
            laid = _laid(on, layout)
            compared = [log_prob_gap(on, laid.logp, plain.logp), *gaps(on, laid, plain)]
            found += [gap._replace(what=f"{layout} {gap.what}") for gap in compared]
    return worst(found, "".join(f"{why}; " for why in refused)) if found else "; ".join(refused)


def _laid(on: OnModel, layout: str) -> Slope:
    """Of the step, with all models in a layout (a frozen one that can not: in its own)."""
    models: dict[str, nn.Module] = {"policy": CausalLM(on.policy.model, layout, on.policy.own_head)}
    for name, frozen in ((name, model) for name, model in on.loaded.models.items() if name != "policy"):
        models[name] = frozen
        if isinstance(frozen, AdapterOff):
            models[name] = AdapterOff(models["policy"])  # pyright: ignore[reportArgumentType]
        elif isinstance(frozen, CausalLM):
            fits = layout == "plain" or not _unfit(frozen, layout)
            models[name] = CausalLM(frozen.model, layout if fits else frozen.layout, frozen.own_head)
    laid = on._replace(loaded=on.loaded._replace(models=Models(models)))
    return cut_slope(laid, on.tokens_per_micro)


def _unfit(model: CausalLM, layout: str) -> str | None:
    """Why a layout is not valid for a model, in the words of the choice that training makes."""
    try:
        choose_layout(CausalLM(model.model, "plain", model.own_head), layout)
    except ValueError as error:
        return str(error).partition("; use")[0]
    return None


@contextmanager
def _attention_kept(models: Models) -> Iterator[None]:
    """Each model's attention as it was, afterwards."""
    configs = [model.transformer.config for model in models.values() if isinstance(model, CausalLM)]
    before = [config._attn_implementation for config in configs]
    try:
        yield
    finally:
        for config, attention in zip(configs, before, strict=True):
            config._attn_implementation = attention


def batch_split(on: OnModel) -> Finding | str:
    """Loss and gradient of the step, in parts of several records against parts of one."""
    if len(on.records) == 1:
        return "there is one record: nothing to cut"
    tokens = on.batch.tokens
    several = max(on.tokens_per_micro, 2 * int(tokens.prompt.bincount().max()) * tokens.ids.shape[1])
    cuts = [len(shares(tokens, states)[0]) for states in (1, several)]
    found = gaps(on, cut_slope(on, 1), cut_slope(on, several))
    return worst(found, f"{cuts[0]} micro-batches against {cuts[1]}: ")


def padding(on: OnModel) -> Finding:
    """Loss and gradient of the first two records: with more padding, of other tokens, against as they are."""
    part, _ = take(on.batch, (on.batch.tokens.prompt < 2).nonzero()[:, 0])
    return worst(gaps(on, whole_slope(on, _padded(part)), whole_slope(on, part)))


def _padded(batch: Batch) -> Batch:
    """The batch with PADDING more columns, and tokens of its own at random wherever no row reads."""
    tokens = batch.tokens
    known, (B, L) = tokens.ids.unique(), tokens.ids.shape
    ids = known[torch.randint(len(known), (B, L + PADDING), generator=torch.Generator().manual_seed(0))]
    for row, action in enumerate(tokens.action):
        length = last_action(action[None]) + 2
        ids[row, :length] = tokens.ids[row, :length]
    wide = Tokens(ids, functional.pad(tokens.action, (0, PADDING)), tokens.ended, tokens.prompt)
    by_token = {name for name, column in COLUMNS.items() if column.unit == "token"}
    columns = {
        name: functional.pad(values, (0, PADDING)) if name in by_token else values
        for name, values in batch.columns.items()
    }
    return Batch(wide, batch.feedback, columns)


def causality(on: OnModel) -> Finding:
    """|Δ log-prob| of each row's actions up to its middle one, when what follows is other tokens, and when nothing does."""
    tokens = on.batch.tokens
    counted = tokens.action.cumsum(-1)
    half = tokens.action & (counted <= (counted[:, -1:] + 1) // 2)
    known = tokens.ids.unique()
    steps = torch.randint(1, max(2, len(known)), tokens.ids.shape, generator=torch.Generator().manual_seed(0))
    others = known[(torch.searchsorted(known, tokens.ids) + steps) % len(known)]
    stays = torch.arange(tokens.ids.shape[1]) <= torch.tensor([[last_action(row[None]) + 1] for row in half])
    changed = {
        "other tokens": Tokens(torch.where(stays, tokens.ids, others), tokens.action, tokens.ended, tokens.prompt),
        "nothing": Tokens(tokens.ids, half, tokens.ended, tokens.prompt),
    }
    bare = on._replace(loaded=on.loaded._replace(models=Models({"policy": on.policy})))
    as_is = log_probs(bare)["logp"].cpu() * half
    found = []
    for after, those in changed.items():
        logp = log_probs(bare, Batch(those))["logp"].cpu() * half
        found.append(log_prob_gap(on, logp, as_is)._replace(what=f"followed by {after}"))
    return worst(found)


def generation(on: OnModel) -> Finding | str:
    """|Δ log-prob| of tokens that transformers' `generate` sampled: by its own steps, with their cache, and by `score`."""
    prompt = torch.tensor(prompt_of(on.records[0]).tolist())
    room = min(SAMPLED, positions(on.policy) - len(prompt))
    if room < 1:
        return f"{on.records[0].where} leaves no position to answer in"
    said, steps = _generated(on.policy, prompt, room)
    row = torch.cat([prompt, said])
    by_steps = steps.log_softmax(-1).gather(-1, said[:, None])[:, 0]
    tokens = rows_of([(0, row.tolist(), len(prompt))])
    with torch.no_grad():
        by_score = score(Models({"policy": on.policy}), tokens)["logp"][0, len(prompt) - 1 :].cpu()
    whole = own_log_probs(on.policy, row[:-1])[len(prompt) - 1 :].cpu()
    if apart(by_score, whole.gather(-1, said[:, None])[:, 0].to(by_score)) > on.rounding:
        return "`score` does not give the model's own log-probs here, which the law of its own forward is about"
    gap = log_prob_gap(on, by_steps.to(by_score), by_score)
    single = 10 * TOLERANCE[torch.float32]  # `generate` hands out its logits in float32
    return worst([gap._replace(allowed=max(gap.allowed, single))], f"{len(said)} sampled tokens: ")


def _generated(policy: CausalLM, prompt: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """[n] tokens sampled with a fixed seed, on the CPU, and the raw logits [n, V] that each was drawn from."""
    ids = prompt[None].to(next(policy.parameters()).device)
    choice = GenerationConfig(
        do_sample=True,
        max_new_tokens=room,
        use_cache=True,
        pad_token_id=0,  # nothing is padded; without one transformers warns
        output_logits=True,
        return_dict_in_generate=True,
    )
    with torch.random.fork_rng([] if ids.device.type == "cpu" else [ids.device]), torch.no_grad():
        torch.manual_seed(0)
        with at_rest(policy.transformer) as model:
            out: Any = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=choice)  # pyright: ignore
    return out.sequences[0, len(prompt) :].cpu(), torch.cat(out.logits).cpu()


MODEL_LAWS: tuple[Law[OnModel], ...] = (
    Law(
        "boundary",
        "The actions of each row, decoded, are its completion with its end token and nothing of the prompt.",
        "What would be trained is not the completions of your data: the mask is shifted, or the chat template or tokenizer "
        "moves the boundary, so the loss would teach prompt tokens or miss ends; look at `softq data FILE --model M --show 3` "
        "and mend the template or the rows before you train.",
        boundary,
    ),
    Law(
        "own forward",
        "Scored log-probs are those of the transformers model's own forward on each row by itself.",
        "Scoring does not give the model's own log-probs (an action read one step off, a head transform left out, wrong "
        "positions), so every loss, reward and metric would be of another model; try --layout plain, and if it stays red do "
        "not train this model with softq, and report its type.",
        own_forward,
    ),
    Law(
        "layouts",
        "Every layout that is valid for the model gives the log-probs, loss and gradient of plain rows.",
        "Rows that share a forward pass change each other's numbers; train with --layout plain, which stays right, and report "
        "the model's type.",
        layouts,
    ),
    Law(
        "batch split",
        "Micro-batches of one record give the loss and gradient of the whole step.",
        "The cut of a step into micro-batches changes its gradient, so memory and number of processes would decide what is "
        "learned: the model mixes the rows of a forward pass (router or batch statistics), or a method of your own averages "
        "in its loss where `weigh` should, or couples records without coupled=True; mend that first.",
        batch_split,
    ),
    Law(
        "padding",
        "More padding, of other tokens, changes neither loss nor gradient.",
        "What stands behind the end of a row changes the loss: a method of your own reads values where "
        "`batch.tokens.action` is False, or the model attends to padding; mask the loss, or mend the model's attention mask.",
        padding,
    ),
    Law(
        "causality",
        "The log-prob of an action does not depend on what comes after it.",
        "The model looks ahead: its log-probs are not those of a next token, so training would reward what it can not know "
        "when it generates; it is no causal language model as it is loaded (a bidirectional mask, code of its own), and must "
        "become one before it is trained.",
        causality,
    ),
    Law(
        "reference at step 0",
        "Log π/π_ref is exactly 0, or the model is known to come from this reference.",
        "Training would start at a distance from its reference: implicit rewards, margins and the first gradients would "
        "measure how two models differ, not what was learned; leave --reference out to start from M, or name the model that "
        "M was trained from.",
        identity,
    ),
    Law(
        "normalisation",
        "At three states the likeliest tokens, as branches of one tree, carry rewards r with Σ π_ref exp(r/β) = their mass.",
        "The rewards of a state's tokens do not belong to any policy (log-probs that are not normalised, or of another state), "
        "so nothing that is read as a Q-function from them is one; if the law of its own forward is red too, mend that "
        "first, else report the model's type.",
        normalisation,
    ),
    Law(
        "margin",
        "Rewards/*, scores/* and margins in the log are sums of token rewards, and dpo's loss is that of its margins.",
        "What the log shows is not the sum of what the tokens earn (a wrong mask, β, side or mean), so curves and accuracies "
        "can not be trusted to say what the loss trains; if the method is your own, mend its `reward` and `beta`, else report "
        "it.",
        margin,
    ),
    Law(
        "cached reference",
        "The reference's stored log-probs, read back, are those that it gives now.",
        "--cache-reference would train against log-probs that the reference does not give; leave it out, and delete "
        "`reference/` in the cache directory (SOFTQ_CACHE) before you use it again.",
        kept,
    ),
    Law(
        "generation",
        "The log-probs of tokens that `generate` samples, step by step with its cache, are those that scoring gives them.",
        "The model samples from another distribution than the one that is scored (its cache, positions or masks in "
        "generation are wrong), so samples, evaluations and on-policy methods would not be of the policy that is trained; "
        "update transformers, or try another model class, and until then trust no sample.",
        generation,
    ),
    Law(
        "bf16",
        "Bfloat16 moves the margins of the pairs by less than their mean size.",
        "In bfloat16 rounding is as large as what the loss compares, so the first steps would learn noise; keep the weights "
        "in float32 (--dtype float32, the default).",
        bfloat16,
    ),
)
"""In the order in which a red one explains the next."""
