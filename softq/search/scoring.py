"""Answers scored whole, as training and inspection score them: the number that a search ranks by is the number that they show."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from softq.lm.growing import Growing
from softq.lm.score import LanguageModel, Models, score
from softq.mdp.readouts import REF_LOGP, VALUE
from softq.records import Tokens, last_action
from softq.search.answer import Answer


def tokens_of(prompts: Sequence[Tensor], answers: Sequence[Answer]) -> Tokens:
    """Prompts and answers as rows, in the answers' order."""
    rows = [torch.cat([prompts[each.prompt], torch.tensor(each.tokens, dtype=torch.int64)]) for each in answers]
    starts = torch.tensor([len(prompts[each.prompt]) for each in answers])
    sizes = torch.tensor([len(row) for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    t = torch.arange(ids.shape[1] - 1)
    action = (t >= starts[:, None] - 1) & (t < sizes[:, None] - 1)
    ended = torch.tensor([each.ended for each in answers])
    return Tokens(ids, action, ended, torch.tensor([each.prompt for each in answers]))


def logps(models: Mapping[str, LanguageModel], tokens: Tokens) -> tuple[Tensor, Tensor | None]:
    """Σ log π and Σ log π_ref of each row, [B] float64 nats; None without a model "ref"."""
    known = Models({name: models[name] for name in ("policy", "ref") if name in models})  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        scored = score(known, tokens, (REF_LOGP,) if "ref" in known else ())
    sums = {name: values.double().sum(-1).cpu() for name, values in scored.items()}
    return sums["logp"], sums.get("ref_logp")


def rewards(model: LanguageModel, tokens: Tokens) -> Tensor:
    """What a reward model says of each row, [B] float64."""
    with torch.no_grad():
        values = score(Models({"policy": model}), tokens, (VALUE,))["value"].double().cpu()  # pyright: ignore[reportArgumentType]
    last = torch.tensor([last_action(row[None]) for row in tokens.action])
    return values.gather(-1, last[:, None])[:, 0]


def prompts_of(forest: Growing) -> list[Tensor]:
    """The prompts that a forest was planted with."""
    ends = (forest.last + 1).tolist()
    return [forest.token[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
