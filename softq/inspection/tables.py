"""What models say of a batch, as the columns of tables: pure functions of `Scored`, tokens and texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softq.inspection.columns import SIDES, TOP
from softq.inspection.pieces import Pieces
from softq.mdp.reading import hidden_of, reading_of, unpacked
from softq.mdp.readouts import REF_LOGP
from softq.records import Readout, Scored, Tokens

Table = dict[str, Any]
"""Columns by name: arrays, or lists of texts and of lists. See `columns`."""


def readouts(compared: bool, hidden: bool) -> tuple[Readout, ...]:
    """What must be scored: `compared` with a reference, `hidden` for CHES as well."""
    reading, states = reading_of(TOP, compared), hidden_of("ref" if compared else "policy")
    return (*([REF_LOGP] if compared else []), reading, *([states] if hidden else []))


def token_table(scored: Scored, tokens: Tokens, pieces: Pieces, beta: float) -> Table:
    """A row an action, in the order of rows and positions."""
    compared, action = "ref_logp" in scored, tokens.action
    row, state = (index.numpy() for index in action.nonzero(as_tuple=True))
    ids = tokens.ids.numpy()
    before, token = ids[row, state], ids[row, state + 1]
    read = unpacked(scored["reading"], compared) | {
        name: scored[name] for name in ("logp", "ref_logp") if name in scored
    }
    of = {name: values.double().cpu().numpy()[row, state] for name, values in read.items()}
    top = of["top"].astype(np.int64).tolist()
    table: Table = {
        "record": tokens.prompt.numpy()[row],
        "completion": completion_of(tokens.prompt).numpy()[row],
        "position": (action.cumsum(-1) - 1).numpy()[row, state],
        "token": token,
        "text": texts(tokens, pieces),
        "shared": shared(tokens).numpy()[row, state],
        "logp": of["logp"],
        "entropy": of["entropy"],
        "rank": of["rank"],
        "gap": np.maximum(of["best"] - of["logp"], 0.0),
        "top": top,
        "top_text": [
            [pieces.alone(last, one) for one in each] for last, each in zip(before.tolist(), top, strict=True)
        ],
        "top_logp": of["top_logp"].tolist(),
    }
    if compared:
        reward = beta * (scored["logp"] - scored["ref_logp"]).double().cpu().numpy()
        table |= {"ref_logp": of["ref_logp"], "reward": reward[row, state], "running": reward.cumsum(-1)[row, state]}
        table |= {name: of[name] for name in ("ref_entropy", "kl", "kl_from_ref")}
        table["top_ref_logp"] = of["top_ref_logp"].tolist()
    return table


def completion_table(scored: Scored, tokens: Tokens, pieces: Pieces, beta: float) -> Table:
    """A row a row of the batch: the columns of a completion."""
    compared, action = "ref_logp" in scored, tokens.action
    read = unpacked(scored["reading"], compared)
    summed = {name: read[name] for name in (("entropy", "kl", "kl_from_ref") if compared else ("entropy",))}
    summed |= {name: scored[name] for name in ("logp", "ref_logp") if name in scored}
    said = zip(_by_row(tokens, pieces), tokens.ended.tolist(), strict=True)
    table: Table = {
        "text": ["".join(each[:-1] if ended else each) for each, ended in said],
        "tokens": action.sum(-1).numpy(),
        "ended": tokens.ended.numpy(),
        **{name: values.double().sum(-1).cpu().numpy() for name, values in summed.items()},
    }
    if compared:
        reward = beta * (scored["logp"] - scored["ref_logp"]).double().cpu()
        last = action & (action.cumsum(-1) == action.sum(-1, keepdim=True))
        table |= {"reward": reward.sum(-1).numpy(), "end_reward": (reward * last).sum(-1).numpy()}
    return table


def pair_table(completions: Mapping[str, Any], scored: Scored, tokens: Tokens) -> Table:
    """A row a pair, of a batch whose rows are chosen, rejected, chosen, …; `completions` is their `completion_table`."""
    table: Table = {
        f"{side}_{name}": values[k::2] for k, side in enumerate(SIDES) for name, values in completions.items()
    }
    table["shared"] = shared(tokens).sum(-1).numpy()[::2]
    if "reward" in completions:
        table["margin"] = table["chosen_reward"] - table["rejected_reward"]
    hidden = next((values for name, values in scored.items() if name.endswith("_hidden")), None)
    if hidden is None:
        nothing = np.full(len(table["shared"]), np.nan)
        return table | {"ches": nothing, "ln_ches": nothing}
    total = hidden.double().sum(1).cpu()
    return table | {"ches": ches(total[::2], total[1::2]).numpy()} | {"ln_ches": ches(*_means(total, tokens)).numpy()}


def ches(chosen: Tensor, rejected: Tensor) -> Tensor:
    """⟨s_w, s_l⟩ - ‖s_w‖²: [P, H], [P, H] -> [P], sums (CHES) or means (its length-normalised form) of the states that predict a
    completion's tokens (arXiv 2410.08847). High where training is expected to push the chosen one down too."""
    return (chosen * (rejected - chosen)).sum(-1)


def shared(tokens: Tokens) -> Tensor:
    """[B, T] bool: actions up to which another row of the same prompt has the same ids."""
    ids, prompt, action = tokens.ids.numpy(), tokens.prompt.numpy(), tokens.action.numpy()
    inside = np.logical_or.accumulate(action[:, ::-1], -1)[:, ::-1]  # up to the last action: padding is no token
    found = np.zeros(action.shape, dtype=bool)
    for rows in (np.flatnonzero(prompt == number) for number in dict.fromkeys(prompt.tolist())):
        for b in rows.tolist():
            others = rows[rows != b]
            same = (ids[others, 1:] == ids[b, 1:]) & inside[others] & (ids[others, :1] == ids[b, 0])
            found[b] = np.logical_and.accumulate(same, -1).any(0)
    return torch.from_numpy(found & action)


def completion_of(prompt: Tensor) -> Tensor:
    """[B] which row of its prompt each one is, from 0."""
    seen: dict[int, int] = {}
    found = []
    for number in prompt.tolist():
        found.append(seen.get(number, 0))
        seen[number] = found[-1] + 1
    return torch.tensor(found)


def texts(tokens: Tokens, pieces: Pieces) -> list[str]:
    """The text of each action, in the order of rows and positions."""
    return [text for row in _by_row(tokens, pieces) for text in row]


def _by_row(tokens: Tokens, pieces: Pieces) -> Sequence[list[str]]:
    found = []
    for ids, action in zip(tokens.ids.tolist(), tokens.action.tolist(), strict=True):
        said: list[str] = []
        states = [t for t, acted in enumerate(action) if acted]
        for first, stop in _stretches(states):
            said += pieces.of(ids[first], ids[first + 1 : stop + 1])
        found.append(said)
    return found


def _stretches(states: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers, as (first, past the last)."""
    runs: list[tuple[int, int]] = []
    for t in states:
        runs = [*runs[:-1], (runs[-1][0], t + 1)] if runs and runs[-1][1] == t else [*runs, (t, t + 1)]
    return runs


def _means(total: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
    mean = total / tokens.action.sum(-1, keepdim=True).clamp(min=1)
    return mean[::2], mean[1::2]
