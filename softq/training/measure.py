"""What is logged of a step, as sums and counts: the same numbers for any batch split."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from softq.records import Batch, Labels, Method, Pairs, Scored, group_of, implicit, valued

Sums = Mapping[str, tuple[Tensor, int]]  # name -> (sum, count)
ADDED = ("loss", "num_tokens")  # the parts of a step add up to its loss; everything else is a mean


def measured(method: Method, scored: Scored, batch: Batch) -> Sums:
    """TRL's names where it has one.

    rewards/* is β · log π/π_ref (β · log π without a reference), whatever the loss; scores/* is what the loss trains. Of a reward
    model both are its reward, and there is no logps/*.
    Chosen and rejected are the sides of pairs, the good and the bad of labels, the best and the worst of a group.
    accuracies count a reward strictly above the other's; ties are counted on their own. kl is the mean log-ratio, in nats, of
    completions under another's prompt, as it is: below 0 too, where TRL's is at least 0.
    """
    score = method.beta * method.reward(scored, batch).detach()
    reward = score if valued(method) else method.beta * implicit(scored, batch).detach()
    tokens = batch.tokens.action
    sums: dict[str, tuple[Tensor, int]] = {"num_tokens": (tokens.sum().to(score.dtype), 1)}
    if method.takes == "rows":
        logp = scored["logp"].detach().sum(-1)
        sums |= {"logps/chosen": (logp.sum(), len(logp)), "logps/token": (logp.sum(), int(tokens.sum()))}
        return {**sums, **_by_source(batch, lambda rows: _demonstrated(logp[rows], tokens[rows]))}
    chosen, rejected = _sides(batch)
    shown = {"rewards": reward, "scores": score}
    if not valued(method):
        shown["logps"] = scored["logp"].detach().sum(-1)
    for name, values in shown.items():
        sums[f"{name}/chosen"] = (values[chosen].sum(), len(chosen))
        sums[f"{name}/rejected"] = (values[rejected].sum(), len(rejected))
    if isinstance(batch.feedback, Labels):
        if len(others := batch.feedback.mismatched):
            sums["kl"] = (implicit(scored, batch).detach()[others].sum(), len(others))
        return {
            **sums,
            **_by_source(batch, lambda rows: _rewards(reward, chosen[rows[chosen]], rejected[rows[rejected]])),
        }
    sums |= _compared(reward[chosen] - reward[rejected])
    return {**sums, **_by_source(batch, lambda rows: _compared((reward[chosen] - reward[rejected])[rows[chosen]]))}


def _compared(margin: Tensor) -> Sums:
    """Of the margins of pairs."""
    kind = margin.dtype
    return {
        "rewards/margins": (margin.sum(), len(margin)),
        "rewards/accuracies": ((margin > 0).sum().to(kind), len(margin)),
        "rewards/ties": ((margin == 0).sum().to(kind), len(margin)),
    }


def _demonstrated(logp: Tensor, tokens: Tensor) -> Sums:
    return {"logps/token": (logp.sum(), int(tokens.sum()))}


def _rewards(reward: Tensor, chosen: Tensor, rejected: Tensor) -> Sums:
    sides = {"chosen": reward[chosen], "rejected": reward[rejected]}
    return {f"rewards/{side}": (values.sum(), len(values)) for side, values in sides.items()}


def _by_source(batch: Batch, measure: Callable[[Tensor], Sums]) -> dict[str, tuple[Tensor, int]]:
    """A measure of the rows ([B] bool) of each source by itself, named `source 0/…`; nothing where there is one source."""
    if "source" not in batch.columns:
        return {}
    source = batch.columns["source"]
    parts = {int(number): measure(source == number) for number in source.unique()}
    return {f"source {number}/{name}": pair for number, part in parts.items() for name, pair in part.items()}


def carried(sums: Sums) -> Sums:
    """To be sent to other processes."""
    return {name: (total.cpu(), count) for name, (total, count) in sums.items()}


def merged(parts: Iterable[Sums]) -> dict[str, float]:
    """Means over everything that was seen; sums for what ADDED names."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for part in parts:
        for name, (total, count) in part.items():
            sums[name] = sums[name] + total.double() if name in sums else total.double()
            counts[name] = counts.get(name, 0) + count
    counts |= dict.fromkeys(ADDED, 1)
    values = torch.stack(list(sums.values())).tolist()
    return {name: value / counts[name] for name, value in zip(sums, values, strict=True) if counts[name]}


def _sides(batch: Batch) -> tuple[Tensor, Tensor]:
    """Row numbers of what should be liked and what should not."""
    if isinstance(batch.feedback, Pairs):
        return batch.feedback.chosen, batch.feedback.rejected
    if batch.feedback is not None:
        return batch.feedback.row[batch.feedback.good], batch.feedback.row[~batch.feedback.good]
    group, reward = group_of(batch.tokens.prompt), batch.columns["reward"]
    by_reward = reward.argsort(stable=True)
    by_group = by_reward[group[by_reward].argsort(stable=True)]
    ends = group[by_group].bincount().cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return by_group[ends - 1], by_group[starts]
