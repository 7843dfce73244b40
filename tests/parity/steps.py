"""What both sides are given: random logits of policy and reference, prompts and completions of uneven lengths, feedback."""

import torch
from torch import Tensor
from trainers import Step

from softq.mdp.readouts import LOG_COLLISION, LOGP, REF_LOGP
from softq.records import Batch, Labels, Method, Pairs, Scored, Tokens
from softq.training.loop import with_columns
from softq.training.plan import losses

V, PROMPT, COMPLETION = 5, 4, 7  # how many tokens there are, and of the longest prompt and completion
READ = (LOGP, REF_LOGP, LOG_COLLISION)


def pairs(seed: int, *, prompt: int = PROMPT, dtype: torch.dtype = torch.float64) -> Step:
    """Six pairs; a completion is 1 to 7 tokens, a prompt 1 to `prompt`."""
    return drawn(seed, 12, Pairs(torch.arange(6), torch.arange(6, 12)), torch.arange(12) % 6, prompt, dtype)


def won(seed: int) -> Step:
    """The pairs, and a score of 1 for the chosen and 0 for the rejected."""
    step = pairs(seed)
    reward = (torch.arange(12) < 6).to(step.leaf.dtype)
    return step._replace(batch=with_columns(step.batch, {"reward": reward}))


def labelled(seed: int) -> Step:
    """Eight judged completions, the first good and the last bad, and four under other prompts."""
    good = torch.tensor([True, *(torch.rand(6, generator=seeded(seed)) < 0.5).tolist(), False])
    rows, others = torch.arange(8), torch.arange(8, 12)
    return drawn(seed, 12, Labels(rows, good, others), torch.arange(12), PROMPT, torch.float64)


def groups(seed: int) -> Step:
    """Three prompts of one token, four completions each, with rewards of 0 and 1."""
    step = drawn(seed, 12, None, torch.arange(12) % 3, 1, torch.float64)
    reward = (torch.rand(12, generator=seeded(seed)) < 0.5).double()
    return step._replace(batch=with_columns(step.batch, {"reward": reward}))


def drawn(
    seed: int, rows: int, feedback: Pairs | Labels | None, prompt: Tensor, longest: int, dtype: torch.dtype
) -> Step:
    """Rows that differ in length, of tokens that neither model finds odd: log-ratios of both signs, WPO's weights around 1."""
    draw = seeded(seed)
    heads = torch.randint(1, longest + 1, (rows, 1), generator=draw)
    tails = torch.randint(1, COMPLETION + 1, (rows, 1), generator=draw)
    tails[0] = COMPLETION
    place = torch.arange(longest + COMPLETION)
    shared, own, other, chance = torch.randn(4, rows, len(place), V, generator=draw).to(dtype)
    ids = torch.zeros(rows, len(place), dtype=torch.int64)
    ids[:, 1:] = (2 * shared + own + other + chance).argmax(-1)[:, :-1]  # the logits at a place are of the next
    ids *= place < heads + tails
    action = ((place >= heads) & (place < heads + tails))[:, 1:]
    tokens = Tokens(ids, action, torch.ones(rows, dtype=torch.bool), prompt)
    leaf, reference = (shared + 1.5 * own).requires_grad_(), shared + 1.5 * other
    return Step(leaf, Batch(tokens, feedback), answers(leaf, tokens), answers(reference, tokens))


def seeded(seed: int) -> torch.Generator:
    """Every draw begins here."""
    return torch.Generator().manual_seed(seed)


def answers(logits: Tensor, tokens: Tokens) -> dict[str, Tensor]:
    """What a model with these logits says, as transformers' and TRL's models say it."""
    logp = logits[:, :-1].log_softmax(-1)
    taken = logp.gather(-1, tokens.ids[:, 1:, None])[..., 0]
    collision = (2 * logp).logsumexp(-1)
    acted = {"log_probs": taken, "log_sum_sq_probs": collision}
    return {"logits": logits} | {name: torch.where(tokens.action, value, 0.0) for name, value in acted.items()}


def scored(step: Step) -> Scored:
    """What softq's readouts say of the same logits."""
    action = step.batch.tokens.action
    models = {"policy": step.policy, "ref": step.reference}
    seen = {name: said["logits"][:, :-1][action].log_softmax(-1) for name, said in models.items()}
    where, taken = action.nonzero(as_tuple=True), step.batch.tokens.ids[:, 1:][action]
    empty = torch.zeros(action.shape, dtype=step.leaf.dtype)
    return {readout.name: empty.index_put(where, readout.fn(seen, taken)) for readout in READ}


def loss(method: Method, step: Step) -> Tensor:
    """softq's loss of a step, a scalar, by the road of a training run."""
    needed = {"logp", *(readout.name for readout in method.needs)}
    seen = {name: value for name, value in scored(step).items() if name in needed}
    batch = with_columns(
        step.batch, {**method.memory, **method.credit({k: v.detach() for k, v in seen.items()}, step.batch)}
    )
    return losses(method, seen, batch, [term.weigh(batch) for term in method.terms])


def halves(step: Step) -> list[Step]:
    """The same rows, half of the feedback each: what two devices, or two micro-batches, see of a step."""
    feedback = step.batch.feedback
    if isinstance(feedback, Pairs):
        parts = [Pairs(feedback.chosen[half], feedback.rejected[half]) for half in (slice(3), slice(3, None))]
    else:
        labels = step.batch.labels
        parts = [
            Labels(labels.row[half], labels.good[half], labels.mismatched[others])
            for half, others in ((slice(4), slice(2)), (slice(4, None), slice(2, None)))
        ]
    return [step._replace(batch=Batch(step.batch.tokens, part, step.batch.columns)) for part in parts]


def sums(step: Step) -> tuple[Tensor, Tensor]:
    """L = Σ log π/π_ref of each pair's chosen and of its rejected completion, [P] each."""
    ratio = (step.policy["log_probs"] - step.reference["log_probs"]).sum(-1)
    return ratio[step.batch.pairs.chosen], ratio[step.batch.pairs.rejected]


def token_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over all tokens of a mask, rows together."""
    return values[mask].mean()


def typical(step: Step) -> Tensor:
    """[P] WPO's w(y_w) w(y_l), w = exp mean_t [log π - log Σ π²], not clamped, without gradient."""
    each = ((step.policy["log_probs"] - step.policy["log_sum_sq_probs"]) * per_row_then_token_sum(step)).sum(-1)
    return (each[step.batch.pairs.chosen] + each[step.batch.pairs.rejected]).exp().detach()


def per_row_then_token_sum(step: Step) -> Tensor:
    """[B, T]: 1/|y| on a row's actions."""
    action = step.batch.tokens.action.to(step.leaf.dtype)
    return action / action.sum(-1, keepdim=True)
