"""Is this run healthy: a level, a sentence and three numbers.

The three: does the reward prefer what people chose (accuracy), what did the chosen completions themselves gain or lose
(Δ log π: the question that is asked most), and how far did the policy go for it (KL). Margins are left out: they grow with β
and with training whether or not anything is well, and accuracy says what of them generalises. Without a reference there is no
reward: then what the policy itself prefers, how surprising it finds the text, and how sure it is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from softq.inspection.accuracy import WORST, half_ties
from softq.inspection.columns import SIDES
from softq.inspection.figures import Figure, Finding, as_json, bootstrapped
from softq.inspection.shelf import Shelf

LEVELS = ("expected", "watch", "act")


class Verdict(NamedTuple):
    """What a page says first."""

    level: str
    told: str
    act: str
    numbers: list[Figure]

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**self._asdict(), "numbers": [as_json(number) for number in self.numbers]}


def verdict(shelf: Shelf, findings: Sequence[Finding]) -> Verdict:
    """The worst finding decides; of several as bad, the first is told, before all of them that log-probs are not finite."""
    numbers, findings = three(shelf), [*broken(shelf), *findings]
    worst = max(findings, key=lambda finding: LEVELS.index(finding.level), default=None)
    if worst is None or worst.level == "expected":
        if shelf.compared:
            return Verdict("expected", _sentence(_plainly(numbers)), "", numbers)
        told = f"without a reference nothing says what training changed; {_plainly(numbers)}"
        return Verdict(
            "watch", _sentence(told), "score again with --reference, the model that training began from", numbers
        )
    others = sum(finding.level == worst.level for finding in findings) - 1
    more = f" ({others} more below)" if others else ""
    return Verdict(worst.level, _sentence(worst.told + more), worst.act, numbers)


def broken(shelf: Shelf) -> list[Finding]:
    """A finding where a log-prob is not finite: no figure of it says anything."""
    sides = [f"{side}_" for side in SIDES] if shelf.kind == "pairs" else [""]
    names = [before + name for before in sides for name in ("logp", *(["ref_logp"] if shelf.compared else []))]
    table = shelf.table(shelf.kind, ["record", *names])
    lost = ~np.all([np.isfinite(table[name].to_numpy()) for name in names], 0)
    if not lost.any():
        return []
    told = f"log-probs that are not finite, in {lost.sum()} of {len(lost)} {shelf.kind}: the figures leave them out"
    act = "see whether the weights of policy and reference are finite; if they are, score in --dtype float32"
    return [Finding("verdict/broken", "act", told, act, table["record"].to_numpy()[lost][:WORST].tolist())]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def three(shelf: Shelf) -> list[Figure]:
    """The three numbers."""
    names = ("tokens", "logp", "entropy", *(("ref_logp", "kl", "reward") if shelf.compared else ()))
    pairs = shelf.kind == "pairs"
    sides = SIDES if pairs else ("",)
    wanted = {(side, name): f"{side}_{name}" if side else name for side in sides for name in names}
    table = shelf.table(shelf.kind, list(wanted.values()))
    of = {key: table[column].to_numpy() for key, column in wanted.items()}
    return _compared(of, pairs) if shelf.compared else _alone(of, pairs)


Columns = Mapping[tuple[str, str], np.ndarray]


def _compared(of: Columns, pairs: bool) -> list[Figure]:
    side = SIDES[0] if pairs else ""
    with np.errstate(invalid="ignore"):
        moved = of[side, "logp"] - of[side, "ref_logp"]
        margin = of["chosen", "reward"] - of["rejected", "reward"] if pairs else moved
    what = "chosen completion" if pairs else "completion"
    found = [
        _mean("moved", moved, "nats", f"what a {what} gained (below 0: lost) in log-probability against the reference"),
        _mean(
            "kl", of[side, "kl"], "nats", f"KL(π‖π_ref) summed along a {what}: how far the policy is from its reference"
        ),
    ]
    if not pairs:
        return [_mean("reward", of[side, "reward"], "reward", "mean reward of a completion"), *found]
    meaning = "pairs whose chosen completion has the higher reward; a tie is half right"
    return [_mean("right", half_ties(np.where(np.isfinite(margin), margin, np.nan)), "share", meaning), *found]


def _alone(of: Columns, pairs: bool) -> list[Figure]:
    side, what = (SIDES[0], "chosen completions") if pairs else ("", "completions")
    tokens = of[side, "tokens"]
    found = [
        _ratio("surprise", -of[side, "logp"], tokens, f"-log π of a token of the {what}"),
        _ratio("entropy", of[side, "entropy"], tokens, f"the policy's entropy before a token of the {what}"),
    ]
    if not pairs:
        return [_mean("tokens", tokens, "tokens", "length of a completion"), *found]
    mean = {s: of[s, "logp"] / of[s, "tokens"] for s in SIDES}
    with np.errstate(invalid="ignore"):
        margin = mean["chosen"] - mean["rejected"]
    meaning = "pairs whose chosen completion has the higher log π a token; a tie is half right"
    return [_mean("right", half_ties(np.where(np.isfinite(margin), margin, np.nan)), "share", meaning), *found]


def _mean(name: str, values: np.ndarray, unit: str, meaning: str) -> Figure:
    values = values[np.isfinite(values)]
    return _drawn(name, lambda rows: float(values[rows].mean()) if len(rows) else np.nan, len(values), unit, meaning)


def _ratio(name: str, above: np.ndarray, below: np.ndarray, meaning: str) -> Figure:
    there = np.isfinite(above)
    above, below = above[there], below[there]
    return _drawn(name, lambda rows: float(above[rows].sum() / max(below[rows].sum(), 1)), len(above), "nats", meaning)


def _drawn(name: str, statistic: Callable[[np.ndarray], float], count: int, unit: str, meaning: str) -> Figure:
    value = statistic(np.arange(count)) if count else float("nan")
    return Figure(f"verdict/{name}", value, unit, count, meaning, bootstrapped(statistic, count))


def _plainly(numbers: Sequence[Figure]) -> str:
    """The three numbers as a person says them."""
    said = {figure.name.removeprefix("verdict/"): figure for figure in numbers if np.isfinite(figure.value)}
    parts = []
    if "right" in said:
        who = "the reward" if "moved" in said else "the policy"
        parts.append(f"of {said['right'].of:,} pairs {who} ranks {said['right'].value:.0%} as people did")
    if "moved" in said:
        value = said["moved"].value
        change = f"{'more' if value >= 0 else 'less'} likely than under the reference, by {abs(value):.3g} nats"
        what = "chosen answers" if "right" in said else f"{said['moved'].of:,} completions"
        parts.append(f"{what} became {change}" if abs(value) >= 5e-4 else f"{what} are as likely as before")
    if "surprise" in said:
        parts.append(f"a token of the text costs it {said['surprise'].value:.3g} nats")
    return ", and ".join(parts)
