"""The chosen completions' log-probs fall: is it to be expected, and what is to be done (arXiv 2404.12358, 2410.08847).

Every preference loss may lower both sides of a pair, as long as the rejected one falls faster. Three questions part what must be
from what must not; `moved` has the terms.

Is the fall what leaving the reference costs? With own ≥ 0 it is; with own < 0 the policy turns from the chosen completions.
Is it out of hand? They cost half as many nats again (a perplexity p has become p^1.5), or, where the two completions part, most
of the mass that was on either token is on neither now.
Which pairs make it? Those that begin alike, or whose states are alike (CHES): what lowers one side lowers the other.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np

from softq.data.intervals import Z, mean, rank_correlation
from softq.inspection.accuracy import WORST
from softq.inspection.columns import SIDES
from softq.inspection.figures import Figure, Finding, bootstrapped
from softq.inspection.moved import DECILES, REGIONS, Moved, gained, moved
from softq.inspection.shelf import Shelf

LITTLE = 1.01  # completions that cost so many times the nats have not moved
FREE_FALL = 1.5  # completions that cost so many times the nats: a perplexity p has become p^1.5
FAR = 1.5  # completions that cost so many times what the reference's own tokens would: it was not made for them
TURNED = 0.1  # share of a fall beyond what leaving the reference costs, from which on it is the policy's own
GONE = 0.5  # the share of the mass where completions part that may go elsewhere
FEW = 10  # pairs, below which none are judged by themselves
TENTH = 0.9  # quantile of CHES from which on pairs are to be left out

HOLD = {"sft", "cpo", "orpo", "rpo", "dpop", "dpo_anchor", "apo_zero", "nca", "bco_pair", "sppo_hard"}
HOLD |= {"kto", "bco", "apo_unpaired", "nca_k"}
"""Losses that hold a chosen completion up by itself, not only beside a rejected one."""
LOWER = {"apo_down"}
"""Losses that mean to lower both."""

NAME, MEAN = "displacement", "mean change of Σ log π of "
Level = Literal["expected", "watch", "act"]


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
    highest = of.change.max(-1)
    return [
        *found,
        _mean("fell", np.less(of.change[:, 0], 0), "share", "pairs whose chosen completion lost likelihood"),
        _mean("both_fell", np.less(highest, 0), "share", "pairs of which both completions lost likelihood"),
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
    forced = "-Σ KL(π_ref‖π) along a chosen completion: what the reference's own tokens lose there"
    cost = "Σ log π over Σ log π_ref of chosen completions: 1.5 is a perplexity to the power of 1.5"
    far = "what a chosen completion costs under the reference, in what its own tokens would cost at the same states"
    return [
        _mean("forced", -of.kl_from_ref[:, 0], "nats", forced),
        _mean("own", of.own[:, 0], "nats", "what a chosen completion gained or lost beside that"),
        _ratio("cost", chosen, ref, cost, unit="times"),
        _ratio("far", -ref, of.ref_entropy[:, 0], far, unit="times"),
    ]


def _similarity(of: Moved) -> list[Figure]:
    found = []
    for name in ("ches", "ln_ches"):
        told = f"rank correlation of {name.upper().replace('_', '-')} with how far a chosen completion fell"
        known, value, interval = fall_with(getattr(of, name), of)
        if known:
            found.append(Figure(f"{NAME}/{name}", value, "", known, told, interval))
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
    """Of each tenth of a completion: the mean change of log π a token in nats, and its 95 % interval. nan: nothing is known."""

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
    """How the chosen completions of some pairs fared, in the figures of these names."""

    chosen: Figure
    rejected: Figure
    forced: Figure
    own: Figure
    cost: Figure
    far: Figure
    left: Figure | None  # of mass where the completions part; None where none do

    @property
    def fell(self) -> bool:
        """Whether they fell by more than chance, and more than a little."""
        return _surely_below(self.chosen) and self.cost.value > LITTLE

    @property
    def turned(self) -> bool:
        """Whether they fell by more than leaving the reference costs."""
        return _surely_below(self.own) and self.own.value < TURNED * self.chosen.value

    @property
    def free(self) -> bool:
        """Whether they cost half as many nats again, and are half as likely at most."""
        return self.cost.value >= FREE_FALL and self.chosen.value < -np.log(2)

    @property
    def gone(self) -> bool:
        """Whether most of the mass left both, where the completions part."""
        return self.left is not None and self.left.interval is not None and self.left.interval[0] > GONE


def fall_of(of: Moved) -> Fall:
    """Of some pairs."""
    known = {figure.name.removeprefix(f"{NAME}/"): figure for figure in (*_changes(of), *_mass(of), *_causes(of))}
    return Fall(**{name: known[name] for name in Fall._fields[:-1]}, left=known.get("left/fork"))


def findings(shelf: Shelf) -> list[Finding]:
    """One verdict: expected, watch or act. None without a reference, of rows, or of fewer than FEW pairs."""
    if shelf.kind != "pairs" or not shelf.compared:
        return []
    of = moved(shelf)
    if len(of.record) < FEW:
        return []
    found = verdict(of, shelf.facts.get("method"))
    went = gained(shelf) if found.level == "act" else []
    return [found._replace(told=f"{found.told}. Where they part “{went[0][0]}” gained most") if went else found]


def verdict(of: Moved, method: str | None) -> Finding:
    """What to think of the chosen completions' log-probs, and what to do. method: the loss of the policy, where it is known."""
    fall = fall_of(of)
    level, why = _judged(fall, method)
    alike = _alike(of)
    if alike is not None:
        held = "or raise the weight with which the loss holds" if _holds(method) else "or train with dpop, which holds"
        them = f"{alike.sum()} pairs, of which half or more is one beginning: {_harm(fall_of(of.some(alike)))}"
        told = f"{_told(fall)}{why}. Look at {them}"
        act = f"leave these {alike.sum()} pairs out, {held} the chosen ones up"
        return Finding(NAME, "act", told, act, _by(-of.change[:, 0], of, alike))
    told = f"{_told(fall)}{why}"
    act, records = ("", []) if level == "expected" else _remedy(of, fall, method)
    return Finding(NAME, level, told, act, records)


def _judged(fall: Fall, method: str | None) -> tuple[Level, str]:
    """The level, and why, as the end of a sentence."""
    if not fall.fell:
        strange = (
            ", though the reference was not made for them: nothing forces them to fall" if fall.far.value > FAR else ""
        )
        little = "fell by less than a hundredth of what they cost" if _surely_below(fall.chosen) else "did not fall"
        return "expected", f": they {little}{strange}"
    if fall.free or fall.gone:
        return "act", f": {_harm(fall)}"
    if method in LOWER:
        return "expected", f": {method} means them to fall"
    if _holds(method):
        return "watch", f": {method} is to hold them up"
    if fall.turned:
        return (
            "watch",
            f": leaving the reference costs {-fall.forced.value:.3g} of them, the rest is the policy turning away",
        )
    if fall.far.value > FAR:
        told = "they cost {:.2g} times what it would say itself, so nothing forces them to fall"
        return "watch", f": the reference was not made for them ({told.format(fall.far.value)})"
    return "expected", f": no more than leaving the reference costs at the same states ({-fall.forced.value:.3g} nats)"


def _alike(of: Moved) -> np.ndarray | None:
    """[P] bool: the pairs that begin alike, if there are some and what becomes of them is out of hand."""
    if of.similar.sum() < FEW:
        return None
    fall = fall_of(of.some(of.similar))
    return of.similar if fall.fell and (fall.free or fall.gone) else None


def _remedy(of: Moved, fall: Fall, method: str | None) -> tuple[str, list[int]]:
    """What to do, and the records that it is about: those of the highest CHES if that tells who falls, else who fell most."""
    acts = ["fine-tune the reference on the chosen completions first"] if fall.far.value > FAR else []
    _, _, sure = fall_with(of.ln_ches, of)
    chosen = np.zeros(len(of.record), dtype=bool)
    if sure is not None and sure[0] > 0:
        chosen = of.ln_ches >= np.nanquantile(of.ln_ches, TENTH)
        acts.append(f"leave out the {chosen.sum()} pairs whose completions are most alike (LN-CHES)")
    acts.append(
        f"raise the weight with which {method} holds them" if _holds(method) else "anchor them (dpop, rpo, dpo+sft)"
    )
    named = _by(of.ln_ches, of, chosen) if chosen.any() else _by(-of.change[:, 0], of, of.change[:, 0] < 0)[:WORST]
    return ", or ".join(acts), named


def _by(values: np.ndarray, of: Moved, rows: np.ndarray) -> list[int]:
    """The records of some pairs, the highest value first."""
    return of.record[rows][np.argsort(-values[rows], kind="stable")].tolist()


def _holds(method: str | None) -> bool:
    """Whether a loss, or one of its summands, holds the chosen completions up."""
    return bool({*(method or "").split("+")} & HOLD)


def _told(fall: Fall) -> str:
    low, high = fall.chosen.interval or (np.nan, np.nan)
    chosen, rejected = _became(fall.chosen), _became(fall.rejected)
    changed = f"Δ log π {fall.chosen.value:+.3g} nats ({low:+.3g} to {high:+.3g})"
    told = f"the chosen completions became {chosen}, {changed}; the rejected ones"
    return f"{told} {'too' if chosen == rejected else rejected}, {fall.rejected.value:+.3g}"


def _became(figure: Figure) -> str:
    return "likelier" if figure.value >= 0 else "less likely"


def _harm(fall: Fall) -> str:
    said = [f"they cost {fall.cost.value:.3g} times the nats"] if fall.free else []
    if fall.gone and fall.left is not None:
        said.append(f"{fall.left.value:.0%} of the mass where they part from the rejected ones has left both")
    return ", ".join(said)


def _surely_below(figure: Figure) -> bool:
    """Whether the whole interval is below 0."""
    return figure.interval is not None and figure.interval[1] < 0


def _figure(name: str, statistic: Callable[[np.ndarray], float], count: int, unit: str, meaning: str) -> Figure:
    value = statistic(np.arange(count))
    return Figure(f"{NAME}/{name}", value, unit, count, meaning, bootstrapped(statistic, count))


def _mean(name: str, values: np.ndarray, unit: str, meaning: str) -> Figure:
    return _figure(name, lambda rows: float(values[rows].mean()), len(values), unit, meaning)


def _ratio(name: str, above: np.ndarray, below: np.ndarray, meaning: str, *, unit: str = "nats") -> Figure:
    return _figure(name, lambda rows: _share(above[rows], below[rows]), len(above), unit, meaning)


def _share(above: np.ndarray, below: np.ndarray) -> float:
    total = below.sum()
    return float(above.sum() / total) if total else float("nan")
