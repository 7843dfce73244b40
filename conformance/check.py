"""Hold any implementation to vectors.json: python conformance/check.py answers.json [tolerance]

answers.json maps names of entries to any of the fields of their `expected`, such as {"dpo/golden": {"loss": 0.726, ...}}; of a
fixed point, {"log_policy": [...]}. In Python: `off = differences(answer)`, answer(entry) -> such fields, or None.
"""

import json
import math
import sys
from pathlib import Path


def entries():
    """The entries of the file."""
    return json.loads(Path(__file__).with_name("vectors.json").read_text(encoding="utf-8"))["entries"]


def apart(found, expected):
    """The largest |found - expected| / max(1, |expected|) of numbers, lists or objects; inf where they do not match."""
    if isinstance(expected, dict) and isinstance(found, dict):  # fields that are left out are not checked
        return max((apart(value, expected.get(key)) for key, value in found.items()), default=math.inf)
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        return max((apart(*pair) for pair in zip(found, expected, strict=True)), default=0.0)
    if isinstance(expected, int | float) and isinstance(found, int | float) and math.isfinite(found):
        return abs(found - expected) / max(1.0, abs(expected))
    return math.inf


def differences(answer):
    """{name: {field: how far off}} of every entry that is answered; with several fixed points, the nearest is meant."""
    off = {}
    for entry in entries():
        found = answer(entry)
        points = entry["expected"].get("fixed_points", [entry["expected"]])
        if found is not None:
            each = [{field: apart(value, point.get(field)) for field, value in found.items()} for point in points]
            off[entry["name"]] = min(each, key=lambda fields: max(fields.values(), default=math.inf))
    return off


if __name__ == "__main__":
    answers, tolerance = json.loads(Path(sys.argv[1]).read_text()), float((sys.argv[2:] or [1e-12])[0])
    off = differences(lambda entry: answers.pop(entry["name"], None))
    wrong = [name for name, fields in off.items() if not (fields and max(fields.values()) <= tolerance)]
    for name, fields in off.items():
        print("WRONG" if name in wrong else "right", name, {field: f"{value:.1e}" for field, value in fields.items()})
    print(
        f"{len(off)} entries answered, {len(wrong)} wrong, {len(entries()) - len(off)} not answered; unknown: {[*answers]}"
    )
    sys.exit(bool(wrong or answers or not off))
