"""The laws of what rewards are made of: sums of tokens, a policy's own mass, and margins that outlive a smaller dtype."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from softq.lm.model import CausalLM
from softq.lm.probe import TOLERANCE
from softq.lm.score import Models, score
from softq.mdp.readouts import REF_LOGP
from softq.mdp.soft import implicit_reward
from softq.records import Batch, Labels, Method, Pairs, Scored, Tokens, implicit, moved
from softq.training.loop import evaluate, with_columns
from softq.training.plan import scored_whole
from softq.verify.law import Finding
from softq.verify.model import Gap, OnModel, own_log_probs, worst

LIKELIEST = 256  # tokens of a state that are scored
SUMMED = 1e-5  # what rounding explains of a mean of sums, relative to the largest sum


def normalisation(on: OnModel) -> Finding:
    """|Σ_a π_ref(a|s) exp(r/β) - Σ_a π(a|s)| over the likeliest tokens of three states; π_ref and π by own forwards.

    r = β log π/π_ref is scored, of rows that are branches of one tree. So is π: of a policy that is its reference r is 0
    however it is scored. Without a reference there is only the second.
    """
    by_reward, by_policy, shown = [0.0], [0.0], []
    for ids in _states(on):
        own = own_log_probs(on.policy, ids)[-1].double()
        likeliest = own.topk(min(LIKELIEST, len(own))).indices
        mass = own[likeliest].exp().sum()
        shown.append(f"{float(mass):.4f} on {len(likeliest)}")
        with torch.no_grad():
            needs = () if on.no_reference else (REF_LOGP,)
            scored = score(on.loaded.models, _branches(ids, likeliest.cpu()), needs)
        logp = {name: values.sum(-1).double() for name, values in scored.items()}
        by_policy.append(float(abs(logp["logp"].exp().sum() - mass)))
        if not on.no_reference:
            r = implicit_reward(logp["logp"], logp["ref_logp"], beta=on.method.beta)
            ref_logp = own_log_probs(on.loaded.models["ref"], ids)[-1].double()[likeliest]
            by_reward.append(float(abs((ref_logp + r / on.method.beta).exp().sum() - mass)))
    allowed = TOLERANCE.get(on.dtype, 1e-4)
    found = [Gap("Σ π_ref exp(r/β)", max(by_reward), allowed)] * (not on.no_reference)
    return worst([*found, Gap("Σ π", max(by_policy), allowed)], f"mass {', '.join(shown)} tokens: off by ")


def _states(on: OnModel) -> list[Tensor]:
    """The ids before a first, a middle and a last action, each of another row where there are three."""
    tokens, found = on.batch.tokens, []
    rows = tokens.action.any(-1).nonzero()[:, 0]
    for part in (0.0, 0.5, 1.0):
        row = rows[int(part * (len(rows) - 1))]
        actions = tokens.action[row].nonzero()[:, 0]
        found.append(tokens.ids[row, : int(actions[int(part * (len(actions) - 1))]) + 1])
    return found


def _branches(ids: Tensor, ends: Tensor) -> Tokens:
    """One tree: rows of one prompt whose only action is their last token, each of `ends` [K] in turn."""
    K, L = len(ends), len(ids)
    action = torch.zeros(K, L, dtype=torch.bool)
    action[:, -1] = True
    rows = torch.cat([ids.expand(K, L), ends[:, None]], 1)
    return Tokens(rows, action, torch.ones(K, dtype=torch.bool), torch.zeros(K, dtype=torch.int64))


def margin(on: OnModel) -> Finding:
    """What `evaluate` logs against sums of token rewards by hand, relative to the largest reward of a row.

    Where policy and reference are equal every reward is 0, which would prove little: then the reference's log-probs are
    moved by noise.
    """
    batch = with_columns(on.batch, on.method.memory)
    scored = scored_whole(on.method, on.loaded.models, batch, on.tokens_per_micro)
    equal = "ref_logp" in scored and torch.equal(scored["logp"], scored["ref_logp"].to(scored["logp"]))
    if equal:
        noise = torch.rand(scored["logp"].shape, generator=torch.Generator().manual_seed(0)) * batch.tokens.action
        scored = {**scored, "ref_logp": scored["ref_logp"] - noise.to(scored["logp"])}
        batch = with_columns(batch, {"ref_logp": scored["ref_logp"].cpu()})
    seen = evaluate(on.loaded.models, on.method, batch, tokens_per_micro=on.tokens_per_micro)
    wanted, largest = _by_hand(on, scored, moved(batch, scored["logp"].device))
    found = [Gap(name, abs(seen[name] - wanted[name]) / largest, SUMMED) for name in wanted if name in seen]
    same = "scores/* is rewards/*; " if on.method.reward is implicit else "scores/* is the method's own score; "
    what = "log π/π_ref" if "ref_logp" in scored else "log π"
    said = "" if on.method.takes == "rows" else f"rewards/* is Σ β {what}; {same}"
    return worst(found, said + "under a reference moved by noise; " * equal)


def _by_hand(on: OnModel, scored: Scored, batch: Batch) -> tuple[dict[str, float], float]:
    """What a log should say, by name, from sums over tokens in float64; and the largest sum of a row."""
    logp = scored["logp"].double()
    ref_logp = scored["ref_logp"].double() if "ref_logp" in scored else torch.zeros_like(logp)
    reward = implicit_reward(logp, ref_logp, beta=on.method.beta).sum(-1)
    largest = max(1.0, float(reward.abs().max()))
    if on.method.takes == "rows":
        total = float(logp.sum())
        return {"logps/chosen": total / len(logp), "logps/token": total / int(batch.tokens.action.sum())}, largest
    trained = on.method.beta * on.method.reward(scored, batch).double()
    chosen, rejected = _sides(batch)
    wanted = {}
    for name, values in (("rewards", reward), ("scores", trained)):
        wanted[f"{name}/chosen"], wanted[f"{name}/rejected"] = (
            float(values[chosen].mean()),
            float(values[rejected].mean()),
        )
    if len(chosen) == len(rejected):
        wanted["rewards/margins"] = float((reward[chosen] - reward[rejected]).mean())
    if on.name == "dpo" and "label_probability" in on.method.columns:  # dpo has the column where it smooths no labels
        wanted["loss"] = _dpo_loss(reward[chosen] - reward[rejected], batch.columns)
    return wanted, largest


def _sides(batch: Batch) -> tuple[list[int], list[int]]:
    """The rows that should be liked and those that should not: of groups, the best (the last of equals) and the worst."""
    if isinstance(batch.feedback, Pairs):
        return batch.feedback.chosen.tolist(), batch.feedback.rejected.tolist()
    if isinstance(batch.feedback, Labels):
        row, good = batch.feedback.row, batch.feedback.good
        return row[good].tolist(), row[~good].tolist()
    reward, prompt = batch.columns["reward"].tolist(), batch.tokens.prompt.tolist()
    groups = [[row for row, number in enumerate(prompt) if number == one] for one in sorted(set(prompt))]
    best = [max(reversed(group), key=lambda row: reward[row]) for group in groups]
    return best, [min(group, key=lambda row: reward[row]) for group in groups]


def _dpo_loss(margins: Tensor, columns: Mapping[str, Tensor]) -> float:
    """Σ_p w_p (p h(z) + (1 - p) h(-z)) / Σ w_p with z = β m - Δ and h(z) = log(1 + e^-z): eq 7 of arXiv 2305.18290."""
    z = margins - columns.get("margin", torch.zeros_like(margins)).double()
    p = columns.get("label_probability", torch.ones_like(z)).double()
    w = columns.get("weight", torch.ones_like(z)).double()
    zero = torch.zeros_like(z)
    each = p * torch.logaddexp(zero, -z) + (1 - p) * torch.logaddexp(zero, z)
    return float((w * each).sum() / w.sum())


def bfloat16(on: OnModel) -> Finding | str:
    """The largest change of a margin log π(chosen) - log π(rejected), in units of their mean size, between dtypes.

    Of rows that are no pairs: of log π(completion).
    """
    if on.settings.dtype == "nf4":
        return "4-bit weights have no other dtype"
    low = on.dtype in (torch.bfloat16, torch.float16)
    other = Models({"policy": _cast(on.policy, torch.float32 if low else torch.bfloat16)})
    rows = [
        scored_whole(Method(()), models, on.batch, on.tokens_per_micro)["logp"].double().sum(-1)
        for models in (on.loaded.models, other)
    ]
    feedback = on.batch.feedback
    if isinstance(feedback, Pairs):
        rows = [row[feedback.chosen.to(row.device)] - row[feedback.rejected.to(row.device)] for row in rows]
    size, largest = float(rows[low].abs().mean()), float((rows[0] - rows[1]).abs().max())
    what = "margins log π(chosen) - log π(rejected)" if isinstance(feedback, Pairs) else "log π(completion)"
    said = f"{what} of {size:.3g} nats in the mean change by up to {largest:.2g} nats in bfloat16"
    return Finding(largest / size, 1.0, said)


def _cast(policy: CausalLM, dtype: torch.dtype) -> CausalLM:
    """A copy whose weights are of another dtype, but for those that transformers keeps in float32 whatever is asked."""
    other = copy.deepcopy(policy)
    keep = tuple(other.transformer._keep_in_fp32_modules_strict or ())
    for name, parameter in other.named_parameters():
        if not any(part in name for part in keep):
            parameter.data = parameter.data.to(dtype)
    return other
