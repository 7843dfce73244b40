"""What two completions of a pair do not share, as Python's difflib tells it."""

import numpy as np


def differing(chosen: np.ndarray, rejected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ids [n], [m] -> bool [n], [m]: True where a token must be inserted, replaced or deleted to make one of the other.

    The matching blocks of difflib's SequenceMatcher(None, rejected, chosen): the longest first, of equals the first in
    rejected, then in chosen; then on both sides of it. As with autojunk off: from 200 tokens on it would not look at frequent
    tokens, so that a mask would jump with the length of an answer. difflib itself is slow where tokens repeat;
    here n·m small integers are held.
    """
    inserted, deleted = np.ones(len(chosen), dtype=bool), np.ones(len(rejected), dtype=bool)
    run = _runs(rejected, chosen)
    edge = np.minimum(np.arange(1, 1 + max(run.shape)), min(run.shape)).astype(run.dtype)
    ahead = [(0, len(rejected), 0, len(chosen))]
    while ahead:
        i0, i1, j0, j1 = ahead.pop()
        if i0 == i1 or j0 == j1:
            continue
        inside = np.minimum(run[i0:i1, j0:j1], edge[: j1 - j0])  # a run counts from where this part begins
        np.minimum(inside, edge[: i1 - i0, None], out=inside)
        last = int(inside.argmax())
        i, j, size = i0 + last // (j1 - j0) + 1, j0 + last % (j1 - j0) + 1, int(inside.flat[last])
        if size:
            deleted[i - size : i] = inserted[j - size : j] = False
            ahead += [(i0, i - size, j0, j - size), (i, i1, j, j1)]
    return inserted, deleted


def _runs(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[n], [m] -> [n, m]: how many tokens of both, up to the i-th and the j-th, are the same."""
    run = np.zeros((len(one) + 1, len(other) + 1), dtype=np.min_scalar_type(min(len(one), len(other))))
    for i, token in enumerate(one.tolist()):
        np.multiply(run[i, :-1] + 1, other == token, out=run[i + 1, 1:])
    return run[1:, 1:]
