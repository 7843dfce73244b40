"""Rejection sampling: of a pool of draws, those that a tilted law would have drawn (RSO, arXiv 2309.06657)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from softq.search.answer import Answer
from softq.search.best_of import Score


def accepted(scores: Tensor, n: int, chance: Tensor, *, temperature: float = 1.0) -> list[int]:
    """Which n of a pool [m] are kept: each with probability e^{(s - max s)/τ}, in turn, and again until n are or none is left.

    max s is that of what is still there. `chance` [m, m]: numbers in [0, 1), a row a round. Where max s is the largest score that
    there is at all, what is kept first is drawn from p(y) e^{s(y)/τ}/Z; of a small pool it is not (see `law`).
    """
    left, kept = list(range(len(scores))), []
    for row in chance.tolist():
        if len(kept) >= min(n, len(scores)):
            break
        top = max(float(scores[i]) for i in left)
        share = {i: torch.tensor((float(scores[i]) - top) / temperature).exp().item() for i in left}
        taken = [i for i in left if row[i] < share[i]][: n - len(kept)]
        kept += taken
        left = [i for i in left if i not in taken]
    return kept


def rejected(
    samples: Sequence[Sequence[Answer]], score: Score, chance: Tensor, *, n: int, temperature: float
) -> list[list[Answer]]:
    """n of each prompt's samples, in the order in which they are accepted; `chance` [P, m, m]."""
    each = [answer for answers in samples for answer in answers]
    scores = score(each).split([len(answers) for answers in samples])
    found = []
    for answers, own, random in zip(samples, scores, chance, strict=True):
        kept = accepted(own, n, random, temperature=temperature)
        found.append([answers[i]._replace(score=float(own[i])) for i in kept])
    return found


def law(logp: Tensor, score: Tensor, draws: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The log-probability of each of B answers to be the first that is kept of a pool, exactly: [B], [B] -> [B].

    draws [D, m]: every pool that can be drawn (`softq.mdp.tabular.every_draw`). A pool of one keeps what was drawn; as m grows
    its law goes to p(y) e^{s(y)/τ}/Z.
    """
    often = logp[draws].sum(-1).exp()
    share = ((score[draws] - score[draws].amax(-1, keepdim=True)) / temperature).exp()  # of being kept, if reached
    reached = torch.cat([torch.ones_like(share[:, :1]), (1 - share[:, :-1]).cumprod(-1)], -1)
    mass = often[:, None] * share * reached
    return logp.new_zeros(len(logp)).index_add(0, draws.flatten(), mass.flatten()).log()
