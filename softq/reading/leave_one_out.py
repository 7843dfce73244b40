"""What becomes of a completion without one of its tokens, by scoring it again.

    L(y) = Σ_t log π/π_ref(y_t|s_t),   worth of token t = L(y) - L(y without y_t)

The reward of a token says how much better it is than the state it is taken in; its worth adds what it does to all that
follows, which is then said after another prefix. The last token's worth is its reward. Whole texts with a token missing are
seldom natural, so a worth is a question to both models, not a part of L: worths do not sum to it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from softq.lm.score import Models, score
from softq.mdp.readouts import REF_LOGP
from softq.records import Tokens


def worths(models: Models, tokens: Tokens, *, rows_at_once: int = 64) -> Tensor:
    """[B, T] nats, L(y) - L(y without the token); 0 outside action. models: "policy" and "ref".

    A completion of n tokens is scored n more times, its prompt and what stands before the token computed once for
    `rows_at_once` of them.
    """
    row, at = tokens.action.nonzero(as_tuple=True)
    whole = log_ratios(models, tokens)[row]
    left = [
        log_ratios(models, without(tokens, *part))
        for part in zip(row.split(rows_at_once), at.split(rows_at_once), strict=True)
    ]
    return torch.zeros(tokens.action.shape, dtype=whole.dtype).index_put((row, at), whole - torch.cat(left))


def without(tokens: Tokens, row: Tensor, at: Tensor) -> Tokens:
    """[N] rows, each without the id that action `at` [N] of it chose. ValueError where that is no action.

    What followed it moves one place up. A completion whose last token goes, is cut there.
    """
    if not bool(tokens.action[row, at].all()):
        raise ValueError("a token to leave out is no action; give positions where `action` is True")
    place = torch.arange(tokens.action.shape[1])
    kept = place + (place > at[:, None])  # the number of each id that stays: all but at + 1
    chosen = F.pad(tokens.action, (1, 0))  # of each id, whether an action chose it
    last = tokens.action[row].cumsum(-1).gather(1, at[:, None])[:, 0] == tokens.action[row].sum(-1)
    return Tokens(
        F.pad(tokens.ids[row].gather(1, kept), (0, 1)),
        F.pad(chosen[row].gather(1, kept)[:, 1:], (0, 1)),
        tokens.ended[row] & ~last,
        tokens.prompt[row],
    )


def log_ratios(models: Models, tokens: Tokens) -> Tensor:
    """[B] float64 nats, L = Σ log π/π_ref; 0 of a row without an action."""
    if not tokens.action.any():
        return torch.zeros(len(tokens.prompt), dtype=torch.float64)
    with torch.no_grad():
        scored = score(models, tokens, (REF_LOGP,))
    return (scored["logp"].double() - scored["ref_logp"].double()).sum(-1).cpu()
