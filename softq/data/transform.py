"""Records to records: pairs, groups and labels into one another, and seeded choices among them.

A stream holds the records of a data set in order: an `Example`, or the `Dropped` that became of one, which passes
through. What a transform leaves out it yields as `Dropped`. Chance is a hash of its purpose, the seed and the record's
place in the stream (`Dropped` included), so it is the same in every process and however the stream is cut.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import combinations
from typing import Any

from softq.data.example import Example, Text, characters
from softq.data.rows import Dropped

Record = Example | Dropped

OF_PAIRS = ("margin", "label_probability")
"""Columns that compare two completions. Where the pair is taken apart they go on among the other fields."""

_SIDE = re.compile(r"(?<![^\W_])(chosen|rejected)(?![^\W_])")


def unpair(records: Iterable[Record], *, threshold: float | None = None) -> Iterator[Record]:
    """Pairs or groups -> labels, one per completion, in order: chosen is good; in a group, score > threshold is.

    Every label has its record's other fields and its weight; what is left of a group's score is the field "score".
    """

    def labels(example: Example) -> Iterator[Record]:
        if _expect(example, "to unpair", "pairs", "groups") == "pairs":
            good = [True, False]
        elif threshold is None:
            raise ValueError(f"{example.where}: a group is unpaired at a threshold on its scores; give the threshold")
        else:
            good = [score > threshold for score in example.columns["reward"]]
        for i, is_good in enumerate(good):
            label = _one(example, i)
            yield label._replace(columns={**label.columns, "label": (float(is_good),)})

    return _each(records, labels)


def pairs_of(records: Iterable[Record], how: str = "best-worst", *, margin: float = 0.0) -> Iterator[Record]:
    """Groups -> pairs, by score: the first best before the first worst, or "all" in which the scores differ.

    A pair's scores differ by more than `margin` and are its fields score_chosen and score_rejected. A group of K makes
    up to K (K - 1) / 2 pairs, each with the weight of the group. A group without a pair is dropped (equal_scores or
    within_margin); so is, as a field, a completion that is in none (not_paired).
    """
    if how not in PAIRINGS:
        raise ValueError(f"how is {how!r}; expected one of {', '.join(PAIRINGS)}")

    def pairs(example: Example) -> Iterator[Record]:
        _expect(example, "to make pairs", "groups")
        scores = example.columns["reward"]
        found = [(c, r) for c, r in PAIRINGS[how](scores) if scores[c] - scores[r] > margin]
        for c, r in found:
            other = _noted(example.other, score_chosen=scores[c], score_rejected=scores[r])
            yield _part(example, c, r)._replace(other=other)
        if found:
            yield from _left(example, {i for pair in found for i in pair}, "not_paired")
            return
        spread = max(scores) - min(scores)
        message = f"the scores differ by {spread:g}; expected two that differ by more than {margin:g}"
        yield Dropped(example.where, "within_margin" if spread > 0 else "equal_scores", message)

    return _each(records, pairs)


def best_of(records: Iterable[Record]) -> Iterator[Record]:
    """Groups -> rows: the completion with the highest score, of equals the first; each other one is not_best."""

    def best(example: Example) -> Iterator[Record]:
        _expect(example, "to take the best", "groups")
        scores = example.columns["reward"]
        first = scores.index(max(scores))
        yield _one(example, first)
        yield from _left(example, {first}, "not_best")

    return _each(records, best)


def demonstrations(records: Iterable[Record]) -> Iterator[Record]:
    """Pairs -> rows: the chosen completion; the rejected one is not_chosen."""

    def chosen(example: Example) -> Iterator[Record]:
        _expect(example, "to take demonstrations", "pairs")
        yield _one(example, 0)
        yield Dropped(example.where, "not_chosen", field="rejected")

    return _each(records, chosen)


def swap(example: Example) -> Example:
    """The opposite judgement: chosen <-> rejected, or good <-> bad, with every number and name that depends on it.

    label_probability p -> 1 - p, margin -> -margin, and an other field is renamed: score_chosen <-> score_rejected.
    """
    if _expect(example, "to swap", "pairs", "labels") == "pairs":
        columns = {name: values[::-1] for name, values in example.columns.items()}
        other = {_SIDE.sub(_opposite, name): value for name, value in example.other.items()}
        swapped = example._replace(completions=example.completions[::-1], other=other)
    else:
        columns, swapped = dict(example.columns), example
    for name in ("label", "label_probability"):
        columns |= {name: (1.0 - columns[name][0],)} if name in columns else {}
    columns |= {"margin": (-columns["margin"][0],)} if "margin" in columns else {}
    return swapped._replace(columns=columns)


def flip(records: Iterable[Record], share: float, *, seed: int, start: int = 0) -> Iterator[Record]:
    """Pairs or labels with noise: each is swapped with probability `share`; its field "flipped" tells.

    `start` is the place in the whole stream at which these records begin.
    """
    drawn = _drawn("flip", share, seed)

    def one(place: int, example: Example) -> Example:
        flipped = drawn(place)
        example = swap(example) if flipped else example
        return example._replace(other=_noted(example.other, flipped=flipped))

    return (r if isinstance(r, Dropped) else one(place, r) for place, r in enumerate(records, start))


def relabel(records: Iterable[Record], at: str = "system") -> Iterator[Record]:
    """Pairs -> two pairs with a goal each: asked for a score, the completion of that score is the better one.

    Reward-augmented relabelling, arXiv 2410.08067: the first asks for the score of the chosen completion, the second for
    that of the rejected one, which is then chosen: under R(x, y, g) = -(g - r(y))² both are right. Scores are the fields
    score_chosen and score_rejected; GOAL says the goal in six digits, as a system message (behind the record's own), with
    at="user" at the head of the user's first message, and at the head of a prompt that is a string. Left out: no_scores,
    equal_scores (as they are said: the two would contradict each other), scores_contradict (the chosen one has the lower
    score), no_user_message.
    """
    if at not in GOALS:
        raise ValueError(f"at is {at!r}; expected one of {', '.join(GOALS)}")

    def both(example: Example) -> Iterator[Record]:
        _expect(example, "to relabel", "pairs")
        if "ref_logps" in example.columns:
            raise ValueError(f"{example.where}: ref_logps are of the prompt without a goal; leave the field out")
        scores = [_score(example.other.get(f"score_{side}")) for side in ("chosen", "rejected")]
        if (reason := _unscored(scores)) is not None:
            message = (
                f"score_chosen and score_rejected are {scores[0]} and {scores[1]}; expected the first above the second"
            )
            yield Dropped(example.where, reason, message)
            return
        told = {name: example.columns[name][0] for name in OF_PAIRS if name in example.columns}
        columns = {name: values for name, values in example.columns.items() if name not in OF_PAIRS}
        plain = example._replace(columns=columns, other=_noted(example.other, **told))
        for pair, score in ((plain, scores[0]), (swap(plain), scores[1])):
            asked = GOALS[at](pair.prompt, GOAL.format(score))
            if asked is None:
                yield Dropped(example.where, "no_user_message", "the prompt has no user's message to hold the goal")
                return
            yield pair._replace(prompt=asked, other=_noted(pair.other, goal=score))

    return _each(records, both)


GOAL = "Give an answer that scores {:g}; a better answer has a higher score."
"""How a goal is asked for; at inference ask for the highest score of the data."""


def _as_system(prompt: Text, goal: str) -> Text | None:
    if isinstance(prompt, str):
        return f"{goal}\n\n{prompt}"
    first = prompt[0] if prompt else {}
    if first.get("role") != "system":
        return [{"role": "system", "content": goal}, *prompt]
    return [{**first, "content": f"{first.get('content') or ''}\n\n{goal}"}, *prompt[1:]]


def _as_user(prompt: Text, goal: str) -> Text | None:
    if isinstance(prompt, str):
        return f"{goal}\n\n{prompt}"
    at = next((n for n, message in enumerate(prompt) if message.get("role") == "user"), None)
    if at is None:
        return None
    asked = {**prompt[at], "content": f"{goal}\n\n{prompt[at].get('content') or ''}"}
    return [*prompt[:at], asked, *prompt[at + 1 :]]


GOALS: Mapping[str, Callable[[Text, str], Text | None]] = {"system": _as_system, "user": _as_user}
"""Where a goal stands in a prompt of messages; templates without a system role need "user"."""


def _score(value: Any) -> float | None:
    """A finite number, or None."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None


def _unscored(scores: Sequence[float | None]) -> str | None:
    """Why two scores, of chosen and rejected, make no goals; None where they do."""
    chosen, rejected = scores
    if chosen is None or rejected is None:
        return "no_scores"
    same = GOAL.format(chosen) == GOAL.format(rejected)
    return "equal_scores" if same else "scores_contradict" if chosen < rejected else None


def sample(records: Iterable[Record], share: float, *, seed: int, start: int = 0) -> Iterator[Record]:
    """Each record with probability `share`; a larger share keeps what a smaller one does. The rest is not_sampled."""
    drawn = _drawn("sample", share, seed)
    return (
        r if isinstance(r, Dropped) or drawn(place) else Dropped(r.where, "not_sampled")
        for place, r in enumerate(records, start)
    )


def sample_exactly(records: Iterable[Record], n: int, *, seed: int) -> Iterator[Record]:
    """`n` of the records in their order; a larger n keeps what a smaller one does. The rest is not_sampled.

    All records are held in memory.
    """
    held = list(records)
    places = [place for place, record in enumerate(held) if isinstance(record, Example)]
    if not 0 <= n <= len(places):
        raise ValueError(f"{n} records were asked for and {len(places)} are there; ask for 0 to {len(places)}")
    kept = set(sorted(places, key=lambda place: _draw("sample", seed, place))[:n])
    return _only(held, kept, "not_sampled")


def length_match(records: Iterable[Record], *, seed: int, width: float = 0.1) -> Iterator[Record]:
    """Pairs in which length tells nothing: for each ratio of lengths, chosen is longer as often as rejected.

    Pairs are put into bins by ⌊|log (chosen + 1) / (rejected + 1)| / width⌋, in characters of content. In each bin the
    side with more pairs loses, by lot, as many as it has more; pairs of equal length stay. (To drop every pair whose
    lengths differ much would keep the bias within what stays.) The rest is length_matched; all are held in memory.
    """
    if not width > 0:
        raise ValueError(f"width is {width:g}; expected a number > 0")
    held = list(records)
    bins: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for place, record in enumerate(held):
        if isinstance(record, Example):
            _expect(record, "to match lengths", "pairs")
            chosen, rejected = (characters(text) for text in record.completions)
            ratio = math.log((chosen + 1) / (rejected + 1))
            if ratio:
                bins[int(abs(ratio) / width)][ratio > 0].append(place)
    left = set()
    for sides in bins.values():
        keep = min(len(side) for side in sides)
        for side in sides:
            left |= set(sorted(side, key=lambda place: _draw("length_match", seed, place))[keep:])
    return _only(held, set(range(len(held))) - left, "length_matched")


def split(share: float, *, seed: int) -> Callable[[Example], bool]:
    """Whether an example is held out: a share of the prompts, so equal prompts are on the same side in every file.

    A text without a prompt counts as its own prompt.
    """
    drawn = _drawn("split", share, seed)
    return lambda example: drawn(json.dumps(example.prompt or example.completions, sort_keys=True, default=str))


def _best_worst(scores: Sequence[float]) -> list[tuple[int, int]]:
    return [(scores.index(max(scores)), scores.index(min(scores)))]


def _all(scores: Sequence[float]) -> list[tuple[int, int]]:
    return [(i, j) if scores[i] > scores[j] else (j, i) for i, j in combinations(range(len(scores)), 2)]


PAIRINGS = {"best-worst": _best_worst, "all": _all}
"""Scores -> which completions may be compared, as (better, worse)."""


def _each(records: Iterable[Record], transform: Callable[[Example], Iterable[Record]]) -> Iterator[Record]:
    for record in records:
        if isinstance(record, Dropped):
            yield record
        else:
            yield from transform(record)


def _only(records: Iterable[Record], kept: set[int], reason: str) -> Iterator[Record]:
    for place, record in enumerate(records):
        yield record if isinstance(record, Dropped) or place in kept else Dropped(record.where, reason)


def _left(example: Example, used: set[int], reason: str) -> Iterator[Dropped]:
    for i in range(len(example.completions)):
        if i not in used:
            yield Dropped(example.where, reason, field=f"completions[{i}]")


def _part(example: Example, *rows: int) -> Example:
    """Some completions, with what is known about them; the scores are left to the caller.

    Of two completions or more a column has one value, or one for each.
    """
    kept = {name: values for name, values in example.columns.items() if name != "reward"}
    columns = {name: v if len(v) == 1 else tuple(v[i] for i in rows) for name, v in kept.items()}
    return example._replace(completions=tuple(example.completions[i] for i in rows), columns=columns)


def _one(example: Example, row: int) -> Example:
    """One completion on its own; its score becomes the field "score"."""
    part, scores = _part(example, row), example.columns.get("reward")
    told = {name: part.columns[name][0] for name in OF_PAIRS if name in part.columns}
    told |= {} if scores is None else {"score": scores[row]}
    columns = {name: values for name, values in part.columns.items() if name not in OF_PAIRS}
    return part._replace(columns=columns, other=_noted(part.other, **told))


def _noted(other: Any, **fields: Any) -> dict[str, Any]:
    """The other fields and new ones; one that has a new one's name is kept as other_NAME."""
    noted = {name: value for name, value in other.items() if name not in fields} | fields
    for name in fields:
        if name in other:
            free = f"other_{name}"
            while free in noted:
                free = f"other_{free}"
            noted[free] = other[name]
    return noted


def _opposite(side: re.Match[str]) -> str:
    return "rejected" if side[0] == "chosen" else "chosen"


def _kind(example: Example) -> str:
    by_column = {"reward": "groups", "step_label": "steps", "label": "labels"}
    by_count = {0: "prompts", 1: "rows", 2: "pairs"}
    named = next((kind for name, kind in by_column.items() if name in example.columns), None)
    return named or by_count.get(len(example.completions), "no kind")


def _expect(example: Example, transform: str, *kinds: str) -> str:
    kind = _kind(example)
    if kind not in kinds:
        raise ValueError(f"{example.where}: the record is one of {kind}; {transform}, give {' or '.join(kinds)}")
    return kind


def _drawn(purpose: str, share: float, seed: int) -> Callable[[object], bool]:
    """Whether something is drawn, when each is with probability `share`."""
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share:g}; expected a number from 0 to 1")
    return lambda what: _draw(purpose, seed, what) < share


def _draw(purpose: str, seed: int, what: object) -> float:
    """A number in [0, 1) that depends on nothing else. The purpose keeps two transforms with one seed independent."""
    digest = blake2b(f"{purpose}\n{seed}\n{what}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
