"""The chosen completions' log-probs fall: is it to be expected, and what is to be done (arXiv 2404.12358, 2410.08847).

Every preference loss may lower both sides of a pair, as long as the rejected one falls faster. Three questions part what must be
from what must not; `moved` has the terms.
  Is the fall what leaving the reference costs?   own ≥ 0: nothing but that; own < 0: the policy turns from the chosen completions.
  Is it out of hand?     They cost half as many nats again (a perplexity p has become p^1.5), or where the two completions part, most
                         of the mass on either token is on neither now.
  Which pairs make it?   Those that begin alike, or whose states are alike (CHES): what lowers one side lowers the other.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from softq.data.intervals import Z, mean, rank_correlation
from softq.inspection.accuracy import WORST
from softq.inspection.columns import SIDES
from softq.inspection.figures import Figure, Finding, bootstrapped
from softq.inspection.moved import DECILES, REGIONS, Moved, moved
from softq.inspection.shelf import Shelf

FREE_FALL = 1.5  # completions that cost so many times the nats: a perplexity p has become p^1.5
FAR = 1.5  # completions that cost so many times what the reference's own tokens would: it was not made for them
GONE = 0.5  # the share of the mass where completions part that may go elsewhere
FEW = 10  # pairs, below which none are judged by themselves
TENTH = 0.9  # quantile of CHES from which on pairs are to be left out

HOLD = {"sft", "cpo", "orpo", "rpo", "dpop", "dpo_anchor", "apo_zero", "nca", "bco_pair", "sppo_hard"}
HOLD |= {"kto", "bco", "apo_unpaired", "nca_k"}
"""Losses that hold a chosen completion up by itself, not only beside a rejected one."""
LOWER = {"apo_down"}
"""Losses that mean to lower both."""

ALL, MEAN = slice(None), "mean change of Σ log π of "


def figures(shelf: Shelf) -> list[Figure]:
    """Every measure of how far the log-probs of the pairs moved; none without a reference. Intervals are over pairs."""
    if shelf.kind != "pairs" or not shelf.compared:
        return []
    of = moved(shelf)
    return [*_changes(of), *_places(of), *_mass(of), *_causes(of), *_similarity(of)] if len(of.record) else []


def _changes(of: Moved) -> list[Figure]:
    found = []
    for k, side in enumerate(SIDES):
        change, tokens = of.change[:, k], of.tokens[:, k]
        found += [
            _mean(f"{side}", change, "nats", f"{MEAN}the {side} completions from the reference to the policy"),
            _ratio(f"{side}/token", change, tokens, f"the same a token of the {side} completions"),
        ]
    fell = of.change < 0
    return [
        *found,
        _mean("fell", fell[:, 0], "share", "pairs whose chosen completion lost likelihood"),
        _mean("both_fell", fell.all(-1), "share", "pairs of which both completions lost likelihood"),
    ]


def _places(of: Moved) -> list[Figure]:
    found = []
    for n, (name, told) in enumerate(REGIONS.items()):
        for k, side in enumerate(SIDES[:1] if name == "shared" else SIDES):
            if of.sizes[:, k, n].any():
                meaning = f"mean change of log π of {told}" + ("" if name == "shared" else f", {side}")
                label = name if name == "shared" else f"{side}/{name}"
                found.append(_ratio(label, of.regions[:, k, n], of.sizes[:, k, n], meaning))
    return found


def _mass(of: Moved) -> list[Figure]:
    found = [_mean("left", of.left, "nats", "mean change of log (π(chosen) + π(rejected)): below 0 mass left both")]
    parted = np.isfinite(of.fork).all(-1)
    if not parted.any():
        return found
    now, before = of.fork[parted].sum(-1), of.ref_fork[parted].sum(-1)
    told = "share of the reference's mass on the two tokens where completions part that is on neither in the policy"
    lost = _figure("left/fork", lambda rows: 1 - _share(now[rows], before[rows]), len(now), "share", told)
    return [*found, lost]


def _causes(of: Moved) -> list[Figure]:
    chosen, ref = of.logp[:, 0], of.ref_logp[:, 0]
    surprise = "what a chosen completion costs under the reference, in what its own tokens would cost at the same states"
    return [
        _mean("forced", -of.kl_from_ref[:, 0], "nats", "-Σ KL(π_ref‖π) along a chosen completion: what the "
              "reference's own tokens lose there"),
        _mean("own", of.own[:, 0], "nats", "what a chosen completion gained or lost beside that"),
        _ratio("cost", chosen, ref, "Σ log π over Σ log π_ref of chosen completions: 1.5 is a perplexity to the power "
               "of 1.5", "times"),
        _ratio("far", -ref, of.ref_entropy[:, 0], surprise, "times"),
    ]


def _similarity(of: Moved) -> list[Figure]:
    found = []
    for name in ("ches", "ln_ches"):
        told = f"rank correlation of {name.upper().replace('_', '-')} with how far a chosen completion fell"
        known, value, interval = fall_with(getattr(of, name), of)
        if known:
            found.append(Figure(f"displacement/{name}", value, "", known, told, interval))
    similar = of.similar
    if similar.any():
        told = f"{MEAN}chosen completions of which half begins the other one too"
        found.append(_mean("chosen/similar", of.change[similar, 0], "nats", told))
    return found


def fall_with(values: np.ndarray, of: Moved) -> tuple[int, float, tuple[float, float] | None]:
    """Spearman's ρ of `values` [P] with -L of the chosen ones: of how many pairs, ρ, and its 95 % interval.

    tanh(atanh ρ ± Z √((1 + ρ²/2)/(n - 3))) (Bonett and Wright, 2000). What is no number does not count.
    """
    known = np.isfinite(values)
    n, rho = int(known.sum()), rank_correlation(values[known], -of.change[known, 0])
    if rho is None or n < 4:
        return n, float("nan"), None
    half = Z * np.sqrt((1 + rho**2 / 2) / (n - 3))
    middle = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
    return n, rho, (float(np.tanh(middle - half)), float(np.tanh(middle + half)))


class Curve(NamedTuple):
    """Of each tenth of a completion: the mean change of log π a token, nats, and its 95 % interval. nan where nothing is known."""

    mean: list[float]
    low: list[float]
    high: list[float]


def by_position(shelf: Shelf) -> Mapping[str, Curve]:
    """Where along a completion log π changed, by side: ten points each. Empty without a reference, or of rows.

    Each completion counts once in each tenth that it has tokens in, so a long one counts no more than a short one.
    """
    if shelf.kind != "pairs" or not shelf.compared:
        return {}
    of = moved(shelf)
    with np.errstate(invalid="ignore", divide="ignore"):
        each = of.deciles / of.counts
    return {side: _curve(each[:, k]) for k, side in enumerate(SIDES)}


def _curve(each: np.ndarray) -> Curve:
    points = []
    for n in range(DECILES):
        there = each[np.isfinite(each[:, n]), n]
        value = float(there.mean()) if len(there) else np.nan
        points.append(mean(there) or (value, np.nan, np.nan))
    return Curve(*map(list, zip(*points, strict=True)))


class Fall(NamedTuple):
    """How the chosen completions of some pairs fared. Numbers with their intervals: (value, low, high)."""

    chosen: tuple[float, float, float]  # L, nats
    rejected: tuple[float, float, float]
    own: tuple[float, float, float]  # nats
    forced: float  # nats
    cost: float  # times
    far: float  # times
    left: tuple[float, float, float]  # share

    @property
    def fell(self) -> bool:
        """Whether they fell by more than chance."""
        return self.chosen[2] < 0

    @property
    def free(self) -> bool:
        """Whether they cost half as many nats again."""
        return self.cost >= FREE_FALL

    @property
    def gone(self) -> bool:
        """Whether most of the mass left both, where the completions part."""
        return self.left[1] > GONE


def fall_of(of: Moved) -> Fall:
    """From the figures of some pairs."""
    known = {figure.name: figure for figure in (*_changes(of), *_mass(of), *_causes(of))}

    def read(name: str) -> tuple[float, float, float]:
        figure = known.get(f"displacement/{name}")
        return (np.nan,) * 3 if figure is None else (figure.value, *(figure.interval or (np.nan, np.nan)))

    single = {name: read(name)[0] for name in ("forced", "cost", "far")}
    several = {name: read(name) for name in ("chosen", "rejected", "own")}
    return Fall(**several, **single, left=read("left/fork"))


def findings(shelf: Shelf) -> list[Finding]:
    """One verdict: expected, watch or act. None without a reference, of rows, or of fewer than FEW pairs."""
    if shelf.kind != "pairs" or not shelf.compared:
        return []
    of = moved(shelf)
    return [verdict(of, shelf.facts.get("method"))] if len(of.record) >= FEW else []


def verdict(of: Moved, method: str | None) -> Finding:
    """What to think of the chosen completions' log-probs, and what to do. method: the loss of the policy, where it is known."""
    fall, loss = fall_of(of), _loss(method)
    culprits = _culprits(of)
    if culprits is not None:
        return culprits._replace(told=f"{_told(fall)}; {culprits.told}")
    if not fall.fell:
        return Finding("displacement", "expected", f"{_told(fall)}: nothing to do")
    if fall.free or fall.gone:
        return Finding("displacement", "act", f"{_told(fall)}. {_harm(fall)}", _act(of, fall, loss), _worst(of))
    if loss == "lower":
        return Finding("displacement", "expected", f"{_told(fall)}, as {method} means them to")
    if loss == "hold":
        told = f"{_told(fall)}, which {method} is to prevent"
        return Finding("displacement", "watch", told, _act(of, fall, loss), _worst(of))
    if fall.own[2] < 0:
        told = (
            f"{_told(fall)}: {-fall.own[0]:.3g} nats more than leaving the reference costs ({-fall.forced:.3g}), so the "
            "policy turns from them"
        )
        return Finding("displacement", "watch", told, _act(of, fall, loss), _worst(of))
    if fall.far > FAR:
        told = f"{_told(fall)}, and the reference was not made for them: they cost {fall.far:.2g} times what it would say"
        return Finding("displacement", "watch", told, _act(of, fall, loss), _worst(of))
    told = f"{_told(fall)}: no more than leaving the reference costs at the same states ({-fall.forced:.3g} nats)"
    return Finding("displacement", "expected", told, "nothing, while the margin grows and sampled answers stay good")


def _culprits(of):
    return None


def _loss(method):
    return None


def _told(fall):
    return f"{fall}"


def _harm(fall):
    return ""


def _act(of, fall, loss):
    return ""


def _worst(of):
    return ()


def _figure(name, statistic, count, unit, meaning):
    return Figure(f"displacement/{name}", statistic(np.arange(count)), unit, count, meaning, bootstrapped(statistic, count))


def _mean(name, values, unit, meaning):
    return _figure(name, lambda rows: float(values[rows].mean()), len(values), unit, meaning)


def _ratio(name, above, below, meaning, unit="nats"):
    return _figure(name, lambda rows: _share(above[rows], below[rows]), len(above), unit, meaning)


def _share(above, below):
    total = below.sum()
    return float(above.sum() / total) if total else float("nan")
