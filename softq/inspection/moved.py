"""How far the log-probs of pairs moved from the reference to the policy, and where: what `displacement` judges.

For a completion L = Σ_t l_t, l_t = log π/π_ref(a_t|s_t), in nats. A token that the reference itself would say at a state loses
KL(π_ref‖π)(s) on average (arXiv 2404.12358, eq 16), so L is a sum of two:

    forced = -Σ_t KL(π_ref‖π)(s_t)            what any token of the reference's loses, once the policy has left it
    own    =  Σ_t [l_t + KL(π_ref‖π)(s_t)]    what this completion gained or lost beside that

Over the reference's own samples `own` is 0 on average. So where the reference was fine-tuned on the chosen completions, those
must fall, and by `forced`, however good the policy is.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from softq.inspection.columns import SIDES
from softq.inspection.shelf import Shelf

REGIONS: Mapping[str, str] = {
    "shared": "tokens with which both completions begin",
    "fork": "the token where they part",
    "after": "tokens behind it",
}
DECILES = 10
NAMES = ["logp", "ref_logp", "tokens", "kl_from_ref"]
COLUMNS = ["record", "completion", "position", "shared", "logp", "ref_logp", "ref_entropy"]


class Moved(NamedTuple):
    """Of P pairs, in their order. The last axis but one of arrays [P, 2, …] is the side: chosen, rejected."""

    record: np.ndarray  # [P]
    logp: np.ndarray  # [P, 2] nats, Σ log π
    ref_logp: np.ndarray  # [P, 2] nats
    tokens: np.ndarray  # [P, 2]
    kl_from_ref: np.ndarray  # [P, 2] nats, Σ_t KL(π_ref‖π)(s_t) along the completion
    shared: np.ndarray  # [P] tokens with which both begin
    ches: np.ndarray  # [P]; nan where there is none
    ln_ches: np.ndarray  # [P]
    ref_entropy: np.ndarray  # [P, 2] nats, Σ_t H(π_ref)(s_t)
    regions: np.ndarray  # [P, 2, REGIONS] Σ l over the tokens of a region
    sizes: np.ndarray  # [P, 2, REGIONS] how many
    deciles: np.ndarray  # [P, 2, DECILES] Σ l over the tokens of a tenth of the completion
    counts: np.ndarray  # [P, 2, DECILES] how many
    fork: np.ndarray  # [P, 2] the policy's probability of the token where they part; nan where they do not
    ref_fork: np.ndarray  # [P, 2] the reference's

    @property
    def change(self) -> np.ndarray:
        """L: [P, 2] nats."""
        with np.errstate(invalid="ignore"):
            return self.logp - self.ref_logp

    @property
    def own(self) -> np.ndarray:
        """L + Σ_t KL(π_ref‖π)(s_t): [P, 2] nats."""
        return self.change + self.kl_from_ref

    @property
    def left(self) -> np.ndarray:
        """log of (π(y_w) + π(y_l)) / (π_ref(y_w) + π_ref(y_l)): [P] nats; below 0 mass left both."""
        return np.logaddexp(*self.logp.T) - np.logaddexp(*self.ref_logp.T)

    @property
    def similar(self) -> np.ndarray:
        """[P] bool: whether half of the shorter completion, or more, is the beginning of the other."""
        return 2 * self.shared >= self.tokens.min(-1)

    def some(self, rows: np.ndarray) -> "Moved":
        """Some of the pairs."""
        return Moved(*(values[rows] for values in self))


def moved(shelf: Shelf) -> Moved:
    """Read a scored data set of pairs that has a reference, part by part. Pairs whose log-probs are no numbers are left out."""
    columns = ["record", "shared", "ches", "ln_ches", *(f"{side}_{name}" for side in SIDES for name in NAMES)]
    both = zip(shelf.parts("pairs", columns), shelf.parts("tokens", COLUMNS), strict=True)
    found = [_moved(pairs, tokens) for pairs, tokens in both]
    whole = Moved(*(np.concatenate(values) for values in zip(*found, strict=True)))
    return whole.some(np.flatnonzero(np.isfinite(whole.change).all(-1)))


def _moved(pairs: pa.Table, tokens: pa.Table) -> Moved:
    column = {name: pairs[name].to_numpy() for name in pairs.column_names}
    sides = {name: np.stack([column[f"{side}_{name}"] for side in SIDES], -1) for name in NAMES}
    plain = {name: column[name].astype(np.float64) for name in ("ches", "ln_ches")}
    record, shared = column["record"], column["shared"]
    return Moved(record, shared=shared, **sides, **plain, **_along(tokens, record, shared, sides["tokens"]))


def _along(tokens: pa.Table, record: np.ndarray, shared: np.ndarray, length: np.ndarray) -> dict[str, np.ndarray]:
    """What must be read off the tokens of the pairs: the same fields of `Moved`."""
    of = {name: tokens[name].to_numpy() for name in COLUMNS}
    pair = np.searchsorted(record, of["record"])
    row = 2 * pair + of["completion"]
    with np.errstate(invalid="ignore"):
        change = of["logp"].astype(np.float64) - of["ref_logp"]
    parting = ~of["shared"] & (of["position"] == shared[pair])
    region = np.select([of["shared"], parting], [0, 1], 2)
    decile = of["position"].astype(np.int64) * DECILES // np.maximum(length.ravel()[row], 1)
    rows = 2 * len(record)

    def summed(values: np.ndarray | None, at: np.ndarray, width: int) -> np.ndarray:
        return np.bincount(row * width + at, values, rows * width).reshape(-1, 2, width)

    here = {name: np.full(rows, np.nan) for name in ("fork", "ref_fork")}
    for name, of_model in zip(here, ("logp", "ref_logp"), strict=True):
        here[name][row[parting]] = np.exp(of[of_model][parting].astype(np.float64))
    return {
        "ref_entropy": summed(of["ref_entropy"], np.zeros_like(row), 1)[..., 0],
        "regions": summed(change, region, len(REGIONS)),
        "sizes": summed(None, region, len(REGIONS)),
        "deciles": summed(change, decile, DECILES),
        "counts": summed(None, decile, DECILES),
        **{name: values.reshape(-1, 2) for name, values in here.items()},
    }


def gained(shelf: Shelf, count: int = 5) -> list[tuple[str, float]]:
    """Where the mass went: the tokens, of neither completion, that gained most probability where the pairs part, as text and
    Σ (π - π_ref) over the pairs. Of each state only the policy's likeliest tokens are known, so small gains are not seen."""
    gains: dict[str, float] = {}
    columns = [*COLUMNS[:4], "token", "top", "top_text", "top_logp", "top_ref_logp"]
    for pairs, tokens in zip(shelf.parts("pairs", ["record", "shared"]), shelf.parts("tokens", columns), strict=True):
        shared = pairs["shared"].to_numpy()[np.searchsorted(pairs["record"].to_numpy(), tokens["record"].to_numpy())]
        parting = ~tokens["shared"].to_numpy() & (tokens["position"].to_numpy() == shared)
        rows = tokens.filter(pa.array(parting)).to_pylist()
        said: dict[int, set[int]] = {}
        for row in rows:
            said.setdefault(row["record"], set()).add(row["token"])
        for row in (row for row in rows if row["completion"] == 0):
            lists = (row[name] for name in ("top", "top_text", "top_logp", "top_ref_logp"))
            for token, text, logp, ref_logp in zip(*lists, strict=True):
                if token not in said[row["record"]]:
                    gains[text] = gains.get(text, 0.0) + float(np.exp(logp) - np.exp(ref_logp))
    found = sorted(gains.items(), key=lambda item: -item[1])[:count]
    return [(text, gain) for text, gain in found if gain > 0]
