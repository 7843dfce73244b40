"""How hard the suite tries: a third of the examples and seeds, all of them with HYPOTHESIS_PROFILE=deep."""

import os

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"


def tries(most: int) -> int:
    """How many examples are tried, of so many at most."""
    return most if DEEP else max(3, most // 3)
