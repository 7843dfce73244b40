"""Checks of preference data that need no model: what is wrong with its rows, or lopsided, before anyone trains."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from softq.data import intervals, near, wording
from softq.data.example import Example
from softq.data.intervals import Interval
from softq.data.survey import Survey, asked, repeated

MANY = 0.01  # of the rows: where more have a fault that few may have, it is a warning
ANSWERS = 0.5  # near-duplicate rows are near-duplicates as a whole, with completions at least this alike
SHARE, EFFECT, RANK = 0.05, 0.2, 0.1  # a length bias has its interval further than this from 1/2, 0 and 0
BOILERPLATE = 0.1  # of all text; more of it is worth a note
RARE = 0.2  # of the labels; balance that is worse, with its whole interval, is a warning


class Finding(NamedTuple):
    """What a check found."""

    check: str
    level: str  # "note" or "warning"
    message: str  # one line: the numbers that matter, and what to do
    rows: tuple[tuple[str, ...], ...] = ()  # Example.where: each row by itself, or all that belong together
    numbers: Mapping[str, float] = {}  # what the message says


def check(examples: Iterable[Example], kind: str, against: Iterable[Example] = ()) -> list[Finding]:
    """What there is to say about data of one kind, and which of its prompts stand in the data `against` too.

    `kind` is that of the format: pairs, groups, labels, rows, prompts or steps. The examples are read once. Of each row
    stay in memory its name, about 130 bytes and 4 for each of its words; comparing takes 500 and up to 8 a word more.
    Intervals are of 95 % and take rows as independent.
    """
    rows = Survey(kind)
    for example in examples:
        rows.add(example)
    found = [finding for find in CHECKS if len(rows) for finding in find(rows)]
    return [*found, *_leakage(rows, against)]


def _exact(rows: Survey) -> Iterator[Finding]:
    groups = repeated(rows.whole)
    n = sum(len(group) - 1 for group in groups)
    if n:
        message = f"exact repetitions of an earlier row: {_part(n, rows)}; keep one of each, or it counts several times"
        numbers = {"rows": n, "groups": len(groups)}
        yield Finding("exact_duplicates", _level(n, rows), message, rows.names(groups), numbers)


def _near(rows: Survey) -> Iterator[Finding]:
    """Rows that are repeated exactly stand in here once, and without what stands in many rows."""
    firsts = np.sort(np.unique(np.asarray(rows.whole), return_index=True)[1]).tolist()
    sets = rows.sets.only(firsts)
    common = sets.common()
    if len(common):
        total, sets = sets.total(), sets.without(common)
        share = 1 - sets.total() / total
        if share > BOILERPLATE:
            message = (
                f"{share:.1%} of the text (word 3-grams) is repeated in more than {near.COMMON:.0%} of the rows, as "
                "of a template; it is left out where near-duplicates are looked for"
            )
            yield Finding("repeated_text", "note", message, (), {"share": share})

    def alike(a: int, b: int) -> bool:
        answers = near.jaccard(sets.part(a, 1), sets.part(b, 1))
        return answers >= ANSWERS and near.jaccard(sets.whole(a), sets.whole(b)) >= near.ALIKE

    groups = [[firsts[item] for item in group] for group in near.groups(sets, alike)]
    n = sum(len(group) for group in groups)
    if n:
        message = (
            f"near-duplicates of each other, in {_count(len(groups), 'group')}: {_part(n, rows)} ({near.ALIKE:.0%} or "
            "more of their word 3-grams are shared); keep one of each, or keep each group on one side of a split"
        )
        numbers = {"rows": n, "groups": len(groups)}
        yield Finding("near_duplicates", _level(n - len(groups), rows), message, rows.names(groups), numbers)


def _opposite(rows: Survey) -> Iterator[Finding]:
    """After the same prompt A over B in one row and B over A in another, or the same answer good here and bad there."""
    groups: dict[tuple[int, ...], None] = {}
    for same in repeated(rows.prompts):
        verdicts: dict[tuple[int, ...], dict[bool, set[int]]] = defaultdict(lambda: defaultdict(set))
        for row in same:
            for about, verdict in _verdicts(rows, row):
                verdicts[about][verdict].add(row)
        groups |= {tuple(sorted(said[True] | said[False])): None for said in verdicts.values() if len(said) == 2}
    n = len({row for group in groups for row in group})
    if n:
        message = f"contradictions about the same completions of one prompt: {_part(n, rows)}; settle or drop them"
        numbers = {"rows": n, "groups": len(groups)}
        yield Finding("opposite_labels", "warning", message, rows.names(sorted(groups)), numbers)


def _verdicts(rows: Survey, row: int) -> Iterator[tuple[tuple[int, ...], bool]]:
    """Which completions a row judges, and how; what it does not rank it does not judge."""
    said = sorted((rows.completions[i], rows.scores[i]) for i in rows.of(row))
    if rows.kind == "labels":
        yield from (((about,), score > 0.5) for about, score in said if score == score)
    if rows.kind in {"pairs", "groups"}:
        yield from (((a, b), x > y) for (a, x), (b, y) in combinations(said, 2) if x > y or x < y)


def _lengths(rows: Survey) -> Iterator[Finding]:
    """Whether what is better is longer, or shorter."""
    of = {"pairs": _lengths_of_pairs, "labels": _lengths_of_labels, "groups": _lengths_of_groups}
    if rows.kind in of:
        yield from of[rows.kind](rows, *rows.lengths())


def _lengths_of_pairs(rows: Survey, lengths: np.ndarray, unit: str) -> Iterator[Finding]:
    more = lengths[0::2] - lengths[1::2]
    share = intervals.share(float((more > 0).sum() + (more == 0).sum() / 2), len(more))
    effect = intervals.paired_effect(more)
    means = {"mean": float(more.mean()), "median": float(np.median(more))}
    message = (
        f"the chosen completion is the longer one in {_percent(share)} of the pairs, ties half; it has "
        f"{means['mean']:+.1f} {unit} on average, {means['median']:+.1f} in the median{_effect('paired ', effect)}"
    )
    biased = share.beyond(0.5, SHARE) or (effect is not None and effect.beyond(0, EFFECT))
    yield _length_bias(message, biased, {**_numbers("share", share), **_numbers("effect", effect), **means})


def _lengths_of_labels(rows: Survey, lengths: np.ndarray, unit: str) -> Iterator[Finding]:
    scores = np.asarray(rows.scores)
    good, bad = lengths[scores > 0.5], lengths[scores <= 0.5]
    if not len(good) or not len(bad):
        return
    effect = intervals.effect(good, bad)
    means = {"mean": float(good.mean() - bad.mean()), "median": float(np.median(good) - np.median(bad))}
    message = (
        f"good completions have {good.mean():.1f} {unit} on average, bad ones {bad.mean():.1f}; {np.median(good):.1f} "
        f"and {np.median(bad):.1f} in the median{_effect('', effect)}"
    )
    biased = effect is not None and effect.beyond(0, EFFECT)
    yield _length_bias(message, biased, {**_numbers("effect", effect), **means})


def _lengths_of_groups(rows: Survey, lengths: np.ndarray, unit: str) -> Iterator[Finding]:
    scores = np.asarray(rows.scores)
    within = (slice(rows.begins[row], rows.begins[row + 1]) for row in range(len(rows)))
    ranks = [intervals.rank_correlation(lengths[group], scores[group]) for group in within]
    known = np.array([rank for rank in ranks if rank is not None])
    mean = intervals.mean(known)
    if mean is not None:
        message = (
            f"within a group the rank correlation of score and length in {unit} is {_number(mean)} on average, over "
            f"{_count(len(known), 'group')}"
        )
        yield _length_bias(message, mean.beyond(0, RANK), _numbers("rank_correlation", mean))


def _length_bias(message: str, biased: bool, numbers: Mapping[str, float]) -> Finding:
    advice = "; a policy may learn this in place of what was meant: balance the data, or watch its answers' length"
    return Finding("length_bias", "warning" if biased else "note", message + advice * biased, (), numbers)


def _balance(rows: Survey) -> Iterator[Finding]:
    """How many labels are good."""
    scores = np.asarray(rows.scores)
    if rows.kind in {"labels", "steps"} and len(scores):
        share = intervals.share(int((scores > 0.5).sum()), len(scores))
        message = f"{_percent(share)} of {_count(len(scores), 'label')} are good"
        uneven = share.beyond(0.5, 0.5 - RARE)
        advice = "; weigh the rarer kind up (kto: desirable_weight, undesirable_weight) or collect more of it"
        numbers = {"labels": len(scores), **_numbers("share", share)}
        yield Finding("label_imbalance", "warning" if uneven else "note", message + advice * uneven, (), numbers)


def _faults(rows: Survey) -> Iterator[Finding]:
    """What is wrong with rows one by one."""
    for name, (check, level, what, advice) in FAULTS.items():
        found = rows.named.get(name, [])
        if found:
            message = f"{what}: {_part(len(found), rows)}; {advice}"
            yield Finding(check, level or _level(len(found), rows), message, _each(found), {"rows": len(found)})


def _scripts(rows: Survey) -> Iterator[Finding]:
    counts = dict(sorted(rows.scripts.items(), key=lambda item: (-item[1], item[0])))
    table = ", ".join(f"{script} {n:,}" for script, n in counts.items())
    yield Finding("scripts", "note", f"rows by their main script: {table}", (), counts)


def _markers(rows: Survey) -> Iterator[Finding]:
    """Markers of chat templates where the template, or the tokenizer, is to set them."""
    of: dict[str, dict[str, list[str]]] = {"prompt": {}, "completion": {}}
    for name, found in rows.named.items():
        part, _, family = name.partition(" ")
        if part in of:
            of[part][family] = found
    framing = {family: found for family, found in of["prompt"].items() if family in wording.TURNS}
    if rows.chats and of["prompt"]:
        yield _marked("prompts", of["prompt"], "the chat template adds its own around them: strip them", rows)
    elif framing:
        yield _framed(framing, rows)
    if of["completion"]:
        yield _marked("completions", of["completion"], "a policy learns to write them: strip them", rows)


def _marked(part: str, of: Mapping[str, list[str]], advice: str, rows: Survey) -> Finding:
    found = list(dict.fromkeys(row for named in of.values() for row in named))
    numbers = {family: len(named) for family, named in sorted(of.items())}
    families = ", ".join(f"{family} {n:,}" for family, n in numbers.items())
    message = f"chat markers in the text of {part} ({families}): {_part(len(found), rows)}; {advice}"
    return Finding("template_text", "warning", message, _each(found), {"rows": len(found), **numbers})


def _framed(of: Mapping[str, list[str]], rows: Survey) -> Finding:
    """Prompts that are strings may bring a template's turns with them: then all of them should, and of one template."""
    forms: dict[str, tuple[str, ...]] = dict.fromkeys(rows.where, ())
    for family, found in sorted(of.items()):
        forms |= {row: (*forms[row], family) for row in found}
    counts = Counter(" and ".join(form) or "no template" for form in forms.values())
    usual = max(counts, key=lambda form: counts[form])
    said = ", ".join(f"{n:,} {form}" for form, n in counts.most_common())
    if len(counts) == 1:
        message = f"every prompt has the turns of a template in it ({said}); it is read as it stands, none is added"
        return Finding("template_text", "note", message, (), counts)
    odd = [row for row, form in forms.items() if (" and ".join(form) or "no template") != usual]
    message = f"prompts differ in the template whose turns are in them ({said}); a policy needs one: convert the others"
    return Finding("mixed_templates", "warning", message, _each(odd), counts)


def _leakage(rows: Survey, against: Iterable[Example]) -> Iterator[Finding]:
    """Prompts of other data that stand here too; blank ones, as of plain texts, are left out."""
    here: dict[int, list[str]] = defaultdict(list)
    there: dict[int, list[str]] = defaultdict(list)
    sets = near.Sets()
    for row, key in enumerate(rows.asked):
        if key and key not in here:
            sets.add(rows.sets.part(row, 0))
        if key:
            here[key].append(rows.where[row])
    first = len(sets)
    for example in against:
        prompt = wording.said(example.prompt)
        key = asked(prompt)
        if key and key not in here and key not in there:
            sets.add(near.shingles(prompt))
        if key:
            there[key].append(example.where)
    if there:
        yield _leaks(here, there, sets.without(sets.common()), first)


def _leaks(here: Mapping[int, list[str]], there: Mapping[int, list[str]], sets: near.Sets, first: int) -> Finding:
    """`sets` has the prompts of here, and from `first` on those that are only there."""
    equal = [key for key in there if key in here]
    names = [*here.values(), *(found for key, found in there.items() if key not in here)]

    def alike(a: int, b: int) -> bool:
        return near.jaccard(sets.part(a, 0), sets.part(b, 0)) >= near.ALIKE

    close = near.groups(sets, alike, first) if first else []
    n = sum(len(found) for found in there.values())
    same, similar = sum(len(there[key]) for key in equal), sum(len(names[i]) for g in close for i in g if i >= first)
    message = (
        f"of the {_count(n, 'prompt')} it is checked against {same:,} stand in this data too but for case and white "
        f"space, and {similar:,} are near-duplicates of prompts in it"
    )
    advice = ": take these rows out of one of the two, or the evaluation measures memory"
    rows = [(*here[key], *there[key]) for key in equal] + [
        tuple(row for i in group for row in names[i]) for group in close
    ]
    level = "warning" if rows else "note"
    numbers = {"prompts": n, "equal": same, "near": similar}
    return Finding("leakage", level, message + advice * bool(rows), tuple(rows), numbers)


def _level(n: int, rows: Survey) -> str:
    return "warning" if n > MANY * len(rows) else "note"


def _each(rows: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    return tuple((row,) for row in rows)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def _part(n: int, rows: Survey) -> str:
    return f"{n:,} of {_count(len(rows), 'row')} ({n / len(rows):.1%})"


def _percent(share: Interval) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"


def _number(interval: Interval) -> str:
    return f"{interval.value:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"


def _effect(paired: str, effect: Interval | None) -> str:
    return f"; {paired}Cohen's d {_number(effect)}" if effect is not None else ""


def _numbers(name: str, interval: Interval | None) -> dict[str, float]:
    if interval is None:
        return {}
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


FAULTS: Mapping[str, tuple[str, str | None, str, str]] = {
    "empty_completions": ("empty_completions", "warning", "a completion without text", "drop these rows"),
    "equal_completions": (
        "equal_completions", "warning", "completions that are equal but for white space around them",
        "drop these rows, in which nothing is preferred",
    ),
    "equal_scores": (
        "equal_scores", "note", "the same score for every completion", "nothing is learned from these rows"
    ),
    "margins": (
        "margins", "warning", "a margin of 0 or less, against the order of the pair", "swap or drop these rows"
    ),
    "leak begins": ("prompt_leak", "warning", "a completion begins with its prompt", "cut it off"),
    "leak contains": ("prompt_leak", "note", "a completion quotes its whole prompt", "read some: is it meant to?"),
    "leak header": ("prompt_leak", "warning", "a completion begins with a role such as 'Human:'", "cut it off"),
    "unbalanced_think": (
        "unbalanced_think", "warning", "<think> and </think> do not match in a completion", "repair or drop these rows"
    ),
    "placeholders": (
        "placeholders", "note", "{{name}} or {% … %} in the text", "read some: was a template not filled in?"
    ),
    "script of prompt": (
        "scripts", "note", "a completion in another script than its prompt", "read some: is it meant to be?"
    ),
    "script of completions": (
        "scripts", None, "completions in different scripts", "a policy may learn the script in place of what was meant"
    ),
}  # fmt: skip
"""Name in `Survey.named` -> check, level (None: by the number of rows), what is wrong, and what to do."""

CHECKS: Sequence[Callable[[Survey], Iterator[Finding]]] = (
    _exact, _near, _opposite, _lengths, _balance, _faults, _markers, _scripts,
)  # fmt: skip
