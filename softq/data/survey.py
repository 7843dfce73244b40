"""What the checks of data need to remember of its rows, so that they read them once."""

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np

from softq.data import near, wording
from softq.data.example import Example

SCORES: Mapping[str, str] = {"labels": "label", "steps": "step_label", "groups": "reward"}
"""Kind of data -> the column that says how good a completion is."""


class Survey:
    """What is kept of examples of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.where: list[str] = []
        self.begins = array("q", [0])  # where a row's completions begin in those below
        self.characters, self.words = array("q"), array("q")
        self.scores = array("d")  # how good a completion is, nan where unknown
        self.prompts, self.asked = array("Q"), array("Q")  # digests: the prompt, and its words; 0 for a blank one
        self.whole, self.completions = array("Q"), array("Q")  # digests: the row, each completion
        self.sets = near.Sets(2)  # the shingles of a row's prompt, and of its completions
        self.scripts: Counter[str] = Counter()
        self.chats = 0  # rows of messages
        self.named: dict[str, list[str]] = defaultdict(list)  # fault or marker -> rows

    def __len__(self) -> int:
        return len(self.where)

    def add(self, example: Example) -> None:
        """Enters one row."""
        prompt, answers = wording.said(example.prompt), [wording.said(text) for text in example.completions]
        identities = [wording.identity(text) for text in (example.prompt, *example.completions)]
        scores = _scores(example, self.kind)
        self.where.append(example.where)
        self.begins.append(self.begins[-1] + len(answers))
        self.characters.extend(len(answer) for answer in answers)
        self.words.extend(len(answer.split()) for answer in answers)
        self.scores.extend(scores)
        self.prompts.append(_digest(identities[0]))
        self.asked.append(asked(prompt))
        self.whole.append(_digest(*identities, repr(scores).encode()))
        self.completions.extend(_digest(identity) for identity in identities[1:])
        self.sets.add(near.shingles(prompt), near.union([near.shingles(answer) for answer in answers]))
        self.chats += not isinstance(example.prompt, str)
        question = wording.question(example.prompt)
        letters = [wording.letters(text) for text in (question, *answers)]
        self.scripts[wording.script(sum(letters, Counter())) or "none"] += 1
        faults = _faults(example, self.kind, prompt, answers) | _markers(prompt, answers)
        faults |= {f"leak {how}" for answer in answers if (how := wording.leak(question, answer))}
        for name in faults | _scripts([wording.script(counts) for counts in letters]):
            self.named[name].append(example.where)

    def of(self, row: int) -> range:
        """The places of a row's completions."""
        return range(self.begins[row], self.begins[row + 1])

    def lengths(self) -> tuple[np.ndarray, str]:
        """The length of every completion, in words, or in characters where white space does not part words."""
        characters, words = np.asarray(self.characters, float), np.asarray(self.words, float)
        sparse = characters.sum() > near.SPARSE * words.sum()
        return (characters, "characters") if sparse else (words, "words")

    def names(self, groups: Sequence[Sequence[int]]) -> tuple[tuple[str, ...], ...]:
        """Groups of rows by name."""
        return tuple(tuple(self.where[row] for row in group) for group in groups)


def asked(prompt: str) -> int:
    """Equal for prompts that differ in case and white space only; 0 for a blank one."""
    words = prompt.casefold().split()
    return _digest(" ".join(words).encode("utf-8", "surrogatepass")) if words else 0


def repeated(keys: Sequence[int] | array) -> list[list[int]]:
    """The places of each value that stands in several, in order."""
    values = np.asarray(keys, np.uint64)
    order = np.argsort(values, kind="stable")
    runs = np.split(order, np.flatnonzero(np.diff(values[order])) + 1)
    return sorted(run.tolist() for run in runs if len(run) > 1)


def _scores(example: Example, kind: str) -> list[float]:
    """How good each completion is: the chosen one 1 and the rejected one 0, a label or a score."""
    n = len(example.completions)
    scores = (1.0, 0.0) if kind == "pairs" else example.columns.get(SCORES.get(kind, ""), ())
    return list(scores) if len(scores) == n else [math.nan] * n


def _faults(example: Example, kind: str, prompt: str, answers: Sequence[str]) -> set[str]:
    """What is wrong with a row by itself."""
    stripped, opened = [answer.strip() for answer in answers], "<think>" * prompt.rstrip().endswith("<think>")
    faults = {
        "empty_completions": not all(stripped),
        "equal_completions": kind in {"pairs", "groups"} and len(set(stripped)) < len(stripped),
        "equal_scores": kind == "groups" and len(set(_scores(example, kind))) == 1,
        "margins": kind == "pairs" and any(margin <= 0 for margin in example.columns.get("margin", ())),
        "unbalanced_think": not all(wording.balanced(opened + answer) for answer in answers),
        "placeholders": any(wording.unfilled(text) for text in (prompt, *answers)),
    }
    return {name for name, holds in faults.items() if holds}


def _markers(prompt: str, answers: Sequence[str]) -> set[str]:
    """Whose markers stand in the prompt and in the completions; a text without prompt is one and the other."""
    part = "completion" if prompt.strip() else "prompt"
    found = {f"{part} {family}" for answer in answers for family in wording.markers(answer)}
    return found | {f"prompt {family}" for family in wording.markers(prompt)}


def _scripts(scripts: Sequence[str]) -> set[str]:
    """Whether a row's prompt and completions, or its completions, differ in script."""
    of_answers = {script for script in scripts[1:] if script}
    found = {"script of completions"} if len(of_answers) > 1 else set()
    return found | ({"script of prompt"} if scripts[0] and of_answers - {scripts[0]} else set())


def _digest(*parts: bytes) -> int:
    """64 bits: among a million different texts two are taken for equal with a probability of 3e-8."""
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return int.from_bytes(digest.digest(), "little")
