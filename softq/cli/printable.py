"""Text that a terminal does not act upon."""

import re

_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would act upon; line ends and tabs stay."""
    return _UNSHOWN.sub(lambda sign: repr(sign[0])[1:-1], text)
