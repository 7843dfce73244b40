"""Texts that are nearly the same: shingles, MinHash and banding, with the exact Jaccard index as the last word.

A. Broder, On the resemblance and containment of documents, 1997; Leskovec et al., Mining of Massive Datasets, 3.3-3.4.
"""

import re
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b

import numpy as np

ALIKE = 0.8  # two sets of shingles with this Jaccard index, or more, are near-duplicates
BANDS, DEPTH = 20, 5  # a pair of index J meets in a band with probability 1 - (1 - J^5)^20: 0.9996 at 0.8, 0.05 at 0.3
NEIGHBOURS = 16  # rows of one band are compared with so many next to them: where thousands meet, some may be missed
DOUBT = 0.12  # the index estimated from 100 hashes is off by 0.04 at 0.8; below ALIKE - DOUBT a pair is not looked at
COMMON, FEW, LOOKED = 0.05, 20, 2000  # what stands in more than 5 % of items, and in more than 20, is a template's
SPARSE = 15  # text with fewer than one white space in so many characters (Chinese, Thai) is cut by characters
CHUNK = 1 << 16  # shingles hashed at once

Alike = Callable[[int, int], bool]


class Sets:
    """Sets of shingles one after another, 4 bytes each: `parts` of them an item, and the item is their union."""

    def __init__(self, parts: int = 1) -> None:
        self.parts, self._flat, self._ends = parts, array("I"), array("q", [0])

    def __len__(self) -> int:
        return (len(self._ends) - 1) // self.parts

    def add(self, *parts: np.ndarray) -> None:
        """One more item."""
        for part in parts:
            self._flat.frombytes(part.tobytes())
            self._ends.append(len(self._flat))

    def only(self, items: Sequence[int]) -> "Sets":
        """Some of the items, in order."""
        if len(items) == len(self):
            return self
        chosen = Sets(self.parts)
        for item in items:
            chosen.add(*(self.part(item, part) for part in range(self.parts)))
        return chosen

    def common(self) -> np.ndarray:
        """The shingles of many items, sorted: a template, or boilerplate. Up to 2,000 items are looked at."""
        looked = range(0, len(self), -(-len(self) // LOOKED) or 1)
        each = [self.whole(item) for item in looked]
        found, counts = np.unique(np.concatenate(each or [_EMPTY]), return_counts=True)
        return found[counts > max(FEW, COMMON * len(looked))]

    def without(self, shingles: np.ndarray) -> "Sets":
        """All items, each without some of its shingles."""
        flat, rest = np.asarray(self._flat), Sets(self.parts)
        kept = np.concatenate([np.array([False]), ~np.isin(flat, shingles)])
        rest._flat.frombytes(flat[kept[1:]].tobytes())
        rest._ends = array("q", kept.cumsum()[np.asarray(self._ends)].tobytes())
        return rest

    def total(self) -> int:
        """How many shingles there are, a set's counted by themselves."""
        return len(self._flat)

    def part(self, item: int, part: int) -> np.ndarray:
        """One set, sorted."""
        begin, end = self._ends[item * self.parts + part : item * self.parts + part + 2]
        return np.asarray(self._flat[begin:end])

    def whole(self, item: int) -> np.ndarray:
        """The union of an item's sets, sorted."""
        begin, end = self._ends[item * self.parts], self._ends[(item + 1) * self.parts]
        return np.unique(np.asarray(self._flat[begin:end]))

    def signatures(self) -> np.ndarray:
        """The least of each of 100 hashes of an item's shingles, uint32 [items, 100]; an empty item's are the largest.

        Two items agree in a hash with a probability that is their Jaccard index.
        """
        flat, ends = np.asarray(self._flat), np.asarray(self._ends)[:: self.parts]
        least = np.full((len(self), BANDS * DEPTH), _NONE, np.uint32)
        filled = np.flatnonzero(np.diff(ends))
        while filled.size:
            n = max(1, int(np.searchsorted(ends[filled + 1], ends[filled[0]] + CHUNK, "right")))
            now, filled = filled[:n], filled[n:]
            x, begins = flat[ends[now[0]] : ends[now[-1] + 1]].astype(np.uint64), ends[now] - ends[now[0]]
            for i, (a, b) in enumerate(_HASHES):
                least[now, i] = np.minimum.reduceat((x * a + b) >> _HALF, begins)
        return least


def shingles(text: str) -> np.ndarray:
    """What a text consists of, as hashes uint32, sorted: its word 3-grams, without case, punctuation and white space.

    Where white space is rare they are character 5-grams. A text shorter than that is one shingle, an empty one none.
    """
    text = " ".join(text.lower().split())
    spaced = len(text) <= SPARSE * (text.count(" ") + 1) and (" " in text or text.isascii())
    words = re.findall(r"\w+", text) if spaced else []
    if words:
        n, data = 3, "\n".join(words).encode("utf-8", "surrogatepass").split(b"\n")
        codes = np.fromiter(map(zlib.crc32, data), np.uint64, len(data))
    else:
        n, codes = 5, np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    n = min(n, len(codes))
    if not n:
        return _EMPTY
    mixed = sum((codes[i : len(codes) - n + 1 + i] * _HASHES[i][0] for i in range(n)), np.uint64(0))
    return np.unique((mixed >> _HALF).astype(np.uint32))


def union(sets: Sequence[np.ndarray]) -> np.ndarray:
    """What is in any of the sets, sorted."""
    return np.unique(np.concatenate(sets)) if sets else _EMPTY


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|a ∩ b| / |a ∪ b| of two sorted sets; two empty sets are the same."""
    shared = np.intersect1d(a, b, assume_unique=True).size
    return shared / (a.size + b.size - shared) if a.size + b.size else 1.0


def groups(sets: Sets, alike: Alike, first: int = 0) -> list[list[int]]:
    """Items that are near-duplicates, directly or through others, in order; empty items never are.

    `alike` decides on the pairs that banding finds. With `first`, items before it are compared with those from it on.
    """
    above = list(range(len(sets)))

    def top(item: int) -> int:
        while above[item] != item:
            above[item] = item = above[above[item]]
        return item

    pairs = [np.empty(0, np.int64), *_meetings(sets.signatures(), first)] if len(sets) > 1 else []
    for pair in np.unique(np.concatenate(pairs)).tolist() if pairs else ():
        a, b = (top(item) for item in divmod(pair, len(sets)))
        if a != b and alike(*divmod(pair, len(sets))):
            above[max(a, b)] = min(a, b)
    members: dict[int, list[int]] = {}
    for item in range(len(sets)):
        members.setdefault(top(item), []).append(item)
    return [group for group in members.values() if len(group) > 1]


def _meetings(least: np.ndarray, first: int) -> Iterator[np.ndarray]:
    """Pairs a < b of items with the same hashes in some band that look alike by all of them, as a · items + b."""
    items, filled = len(least), np.flatnonzero((least != _NONE).any(1))
    least = least[filled] if len(filled) < items else least
    keys = [_mix(least[:, band * DEPTH : (band + 1) * DEPTH]) for band in range(BANDS)]
    for key, following in zip(keys, [*keys[1:], keys[0]], strict=True):
        order = np.lexsort((following, key))  # by the next band within one, so that the most alike are neighbours
        key = key[order]
        for step in range(1, min(NEIGHBOURS, len(key) - 1) + 1):
            here = np.flatnonzero(key[step:] == key[:-step])
            if not here.size:
                break
            a, b = np.sort([order[here], order[here + step]], axis=0)
            near = (least[a] == least[b]).mean(1) >= ALIKE - DOUBT
            a, b = filled[a[near]], filled[b[near]]
            crossing = (a < first) & (b >= first) if first else slice(None)
            yield (a * items + b)[crossing]


def _mix(codes: np.ndarray) -> np.ndarray:
    return (codes.astype(np.uint64) * np.array([a for a, _ in _HASHES[: codes.shape[1]]])).sum(1, dtype=np.uint64)


def _number(i: int) -> np.uint64:
    return np.uint64(int.from_bytes(blake2b(b"%d" % i, digest_size=8).digest(), "little"))


_NONE, _HALF, _EMPTY = np.uint32(0xFFFFFFFF), np.uint64(32), np.empty(0, np.uint32)
_HASHES = [(_number(2 * i) | np.uint64(1), _number(2 * i + 1)) for i in range(BANDS * DEPTH)]
"""x -> the upper half of a·x + b mod 2^64 (multiply-shift; Dietzfelbinger et al. 1997), the same on every machine."""
