"""What two completions of a pair do not share, by Python's difflib."""

from difflib import SequenceMatcher

import numpy as np


def differing(chosen: np.ndarray, rejected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ids [n], [m] -> bool [n], [m]: True where a token must be inserted, replaced or deleted to make one of the other.

    The matching blocks of SequenceMatcher(None, rejected, chosen): the longest first, then on both sides of it. autojunk is
    off: from 200 tokens on it would not look at frequent tokens, so that a mask would jump with the length of an answer.
    """
    inserted, deleted = np.ones(len(chosen), dtype=bool), np.ones(len(rejected), dtype=bool)
    matcher = SequenceMatcher(None, rejected.tolist(), chosen.tolist(), autojunk=False)
    for i, j, size in matcher.get_matching_blocks():
        deleted[i : i + size] = False
        inserted[j : j + size] = False
    return inserted, deleted
