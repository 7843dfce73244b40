"""Where reward comes from: a pair's margin in parts, how few tokens have it, and which types of token.

The reward of a completion is the sum of its tokens' β log π/π_ref (arXiv 2404.12358), so a margin is a sum over the tokens of
both completions, those of the rejected one taken negative, and splits without a rest.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from softq.inspection.columns import SIDES
from softq.inspection.figures import Figure, Finding, bootstrapped
from softq.inspection.shelf import Shelf

TOP = 5
"""How many tokens "the top" are."""

PARTS: Mapping[str, str] = {
    "shared": "tokens with which both completions begin",
    "first": "the token where they part",
    "end": "the end token",
    "top": f"the {TOP} tokens of each completion that of the rest have the largest |reward|",
    "punctuation": "punctuation and space among the rest",
    "rest": "all other tokens",
}
"""The parts of a margin. A token is in the first that it fits."""

KINDS: Mapping[str, str] = {
    "word": "tokens with a letter",
    "number": "tokens with a digit and no letter",
    "punctuation": "tokens with a sign, and neither letter nor digit",
    "space": "tokens of white space",
    "special": "special tokens that do not end a completion",
    "end": "the end tokens of completions that ended",
    "inside": "tokens inside a character that an earlier token began",
}

SPECIAL = re.compile(r"\s*(<\|[^<>]+\|>|</?[a-z_]+>|\[/?[A-Z_]+\])\s*")
COLUMNS = ["record", "completion", "position", "text", "shared", "reward"]
HALF = 0.5


class Actions(NamedTuple):
    """The tokens of some completions, in the order of the table: arrays [N], and `text` a list."""

    record: np.ndarray
    completion: np.ndarray
    row: np.ndarray  # which completion of these, from 0
    shared: np.ndarray  # bool
    end: np.ndarray  # bool: the last of a completion that ended
    reward: np.ndarray
    text: list[str]


def actions(tokens: pa.Table, table: pa.Table) -> Actions:
    """Of one part of "tokens", with the same part of "pairs" or "rows", which says what ended."""
    column = {name: tokens[name].to_numpy() for name in COLUMNS if name != "text"}
    first = column["position"] == 0
    last = np.append(first[1:], True)
    ended = np.array([], dtype=np.int64)
    for k, name in enumerate(
        [f"{side}_ended" for side in SIDES] if "chosen_ended" in table.column_names else ["ended"]
    ):
        of = table["completion"].to_numpy() if name == "ended" else k
        ended = np.append(ended, _key(table["record"].to_numpy(), of)[table[name].to_numpy()])
    end = last & np.isin(_key(column["record"], column["completion"]), ended)
    row = first.cumsum() - 1
    reward = column["reward"].astype(np.float64)
    return Actions(
        column["record"], column["completion"], row, column["shared"], end, reward, tokens["text"].to_pylist()
    )


def kinds(of: Actions) -> np.ndarray:
    """[N] the number of each token's type in KINDS."""
    names = list(KINDS)
    return np.array([names.index("end" if end else kind(text)) for text, end in zip(of.text, of.end, strict=True)])


def kind(text: str) -> str:
    """The type of a token that ends nothing, by what it adds to the text."""
    if not text:
        return "inside"
    if text.isspace():
        return "space"
    if SPECIAL.fullmatch(text):
        return "special"
    if any(character.isalpha() for character in text):
        return "word"
    return "number" if any(character.isnumeric() for character in text) else "punctuation"


def split(of: Actions) -> tuple[np.ndarray, np.ndarray]:
    """The records of pairs [P], and each one's margin in parts [P, PARTS], in reward: the parts sum to the margin."""
    record, pair = np.unique(of.record, return_inverse=True)
    found = np.zeros((len(record), len(PARTS)))
    np.add.at(found, (pair, part(of)), np.where(of.completion == 0, of.reward, -of.reward))
    return record, found


def part(of: Actions) -> np.ndarray:
    """[N] the number of the part that each token is in."""
    names, kind_of = list(PARTS), np.array(list(KINDS))[kinds(of)]
    parted = ~of.shared & (np.append(True, of.shared[:-1]) | (np.diff(of.row, prepend=-1) > 0))
    left = ~(of.shared | parted | of.end)
    top = left & (ranked(np.where(left, np.abs(of.reward), -1.0), of.row) < TOP)
    form = np.isin(kind_of, ["punctuation", "space"])
    return np.select([of.shared, parted, of.end, top, form], [names.index(name) for name in names[:-1]], len(names) - 1)


def ranked(values: np.ndarray, row: np.ndarray) -> np.ndarray:
    """[N] how many values of the same row stand before each, the largest first; of equal ones the earlier is first."""
    order = np.lexsort((-values, row))
    start = np.searchsorted(row, row)  # rows stand in order
    rank = np.empty(len(row), dtype=np.int64)
    rank[order] = np.arange(len(row)) - start
    return rank


def concentration(of: Actions) -> tuple[np.ndarray, np.ndarray]:
    """Of each completion [C] the Gini coefficient of |reward| over its tokens, and what share of Σ|reward| the TOP have.

    Gini is 0 where all tokens have the same and 1 - 1/n where one of n has all. Nan where all rewards are 0.
    """
    size = np.abs(of.reward)
    rank, count, total = ranked(size, of.row), np.bincount(of.row), np.bincount(of.row, size)
    with np.errstate(invalid="ignore"):
        gini = np.bincount(of.row, (count[of.row] - 1 - 2 * rank) * size) / (count * total)
        return gini, np.bincount(of.row, size * (rank < TOP)) / total


class Spent(NamedTuple):
    """What a scored data set comes to, a row a record [R, ...]; `gini` and `top` are means over its completions."""

    record: np.ndarray
    parts: np.ndarray | None  # [R, PARTS] of its margin; None where the data is not pairs
    gini: np.ndarray
    top: np.ndarray
    tokens: np.ndarray  # [R, KINDS] how many
    reward: np.ndarray  # [R, KINDS] Σ reward
    size: np.ndarray  # [R, KINDS] Σ |reward|


def spent(shelf: Shelf) -> Spent:
    """Read a scored data set part by part; records with a reward that is not finite are left out. It must have a reference;
    ValueError where it holds no token."""
    found = []
    for tokens, table in zip(shelf.parts("tokens", COLUMNS), shelf.parts(shelf.kind), strict=True):
        if tokens.num_rows:
            found.append(_spent(actions(tokens, table), shelf.kind == "pairs"))
    if not found:
        raise ValueError(f"{shelf.directory} holds no tokens: score data with completions")
    parts = [each.parts for each in found if each.parts is not None]
    numbers = {
        name: np.concatenate([getattr(each, name) for each in found]) for name in Spent._fields if name != "parts"
    }
    known = np.isfinite(numbers["size"].sum(1))
    numbers = {name: values[known] for name, values in numbers.items()}
    return Spent(parts=np.concatenate(parts)[known] if parts else None, **numbers)


def _spent(of: Actions, pairs: bool) -> Spent:
    record, at = np.unique(of.record, return_inverse=True)
    first = np.unique(of.row, return_index=True)[1]
    gini, top = (_means(values, at[first], len(record)) for values in concentration(of))
    tables = np.zeros((3, len(record), len(KINDS)))
    for table, values in zip(tables, (np.ones(len(at)), of.reward, np.abs(of.reward)), strict=True):
        np.add.at(table, (at, kinds(of)), values)
    return Spent(record, split(of)[1] if pairs else None, gini, top, tables[0], tables[1], tables[2])


def _means(values: np.ndarray, at: np.ndarray, count: int) -> np.ndarray:
    """Means by group, of what is a number."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.bincount(at[there], values[there], count) / np.bincount(at[there], minlength=count)


def figures(shelf: Shelf) -> list[Figure]:
    """All measures of credit; none without a reference. Intervals are over records."""
    if not shelf.compared:
        return []
    of, unit = spent(shelf), str(shelf.facts["unit"])
    found = [
        _figure("concentration/gini", lambda rows: _mean(of.gini[rows]), len(of.record), "")._replace(
            meaning="Gini coefficient of |reward| over the tokens of a completion: 0 evenly spread, 1 all in one token"
        ),
        _figure("concentration/top", lambda rows: _mean(of.top[rows]), len(of.record), "share")._replace(
            meaning=f"share of Σ|reward| that the {TOP} largest tokens of a completion have"
        ),
    ]
    if of.parts is not None:
        for k, (name, told) in enumerate(PARTS.items()):
            values = of.parts[:, k]
            figure = _figure(f"margin/{name}", lambda rows, values=values: _mean(values[rows]), len(values), unit)
            found.append(figure._replace(meaning=f"mean part of the margin that is from {told}"))
        found.append(_length(shelf, unit))
    return found + _by_kind(of, unit)


def _length(shelf: Shelf, unit: str) -> Figure:
    """What unequal lengths make of a margin: R_w - R_l = (n_w - n_l)(r_w + r_l)/2 + (r_w - r_l)(n_w + n_l)/2, where r = R/n is
    the mean reward of a token. This is the first summand; the second is 0 where the tokens of both are worth the same."""
    table = shelf.table("pairs", [f"{side}_{name}" for name in ("reward", "tokens") for side in SIDES])
    columns = np.array([column.to_numpy().astype(np.float64) for column in table.columns])
    w, low, n, m = columns[:, np.isfinite(columns).all(0)]
    values = (n - m) * (w / n + low / m) / 2
    figure = _figure("margin/length", lambda rows: _mean(values[rows]), len(values), unit)
    told = "the margin cut in another way: mean of (n_w - n_l)(r_w + r_l)/2 for n tokens of mean reward r, from unequal lengths"
    return figure._replace(meaning=told)


def _by_kind(of: Spent, unit: str) -> list[Figure]:
    found, all_sizes = [], of.size.sum(1)
    for k, (name, told) in enumerate(KINDS.items()):
        count, reward, size = of.tokens[:, k], of.reward[:, k], of.size[:, k]
        if not count.any():
            continue

        def mean(rows: np.ndarray, reward: np.ndarray = reward, count: np.ndarray = count) -> float:
            return _ratio(reward[rows].sum(), count[rows].sum())

        def share(rows: np.ndarray, size: np.ndarray = size) -> float:
            return _ratio(size[rows].sum(), all_sizes[rows].sum())

        for what, statistic, of_unit, meaning in (
            ("reward", mean, unit, f"mean reward of {told}"),
            ("share", share, "share", f"share of Σ|reward| that {told} have"),
        ):
            figure = _figure(f"kind/{name}/{what}", statistic, len(count), of_unit)
            found.append(figure._replace(of=int(count.sum()), meaning=meaning))
    return found


def findings(shelf: Shelf) -> list[Finding]:
    """A warning where the end tokens have more than half of the mean margin: a preference for when to stop, not what to say."""
    of = spent(shelf) if shelf.compared and shelf.kind == "pairs" else None
    if of is None or of.parts is None or not len(of.record):
        return []
    end, margin = of.parts[:, list(PARTS).index("end")], of.parts.sum(1)
    if not end.mean() > HALF * margin.mean() > 0:
        return []
    told = f"{end.mean() / margin.mean():.0%} of the mean margin ({margin.mean():.3g}) is from the end tokens"
    act = "compare the lengths of chosen and rejected; balance them, or train with a length-normalised or length-penalised loss"
    worst = np.argsort(-end, kind="stable")[:20]
    return [Finding("credit/end", "watch", told, act, of.record[worst].tolist())]


def _figure(name: str, statistic: Callable[[np.ndarray], float], count: int, unit: str) -> Figure:
    return Figure(f"credit/{name}", statistic(np.arange(count)), unit, count, "", bootstrapped(statistic, count))


def _mean(values: np.ndarray) -> float:
    there = values[~np.isnan(values)]
    return _ratio(there.sum(), len(there))


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else float("nan")


def _key(record: np.ndarray, completion: np.ndarray | int) -> np.ndarray:
    """One number for each completion of each record."""
    return record.astype(np.int64) * 2**15 + completion
