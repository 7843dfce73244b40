"""Which labels are likely wrong: those that policies contradict which were trained on other prompts (`softq score --cross-fit`).

Let m be a pair's margin under a policy that never saw its prompt, ε the share of labels that are flipped whatever the pair, and s
how sure a nat of margin makes (Angluin and Laird's noise, 1988, on Bradley and Terry's model):
    P(label | m) = ε + (1 - 2ε) σ(s m)                   ε and s by maximum likelihood over all pairs; ε's interval by profile
    P(wrong | label, m) = ε (1 - σ(s m)) / P(label | m)
A label that goes against a small margin is a close call; one that goes against a large margin is likely wrong. Pairs whose label
is likelier wrong than right are suspected: no threshold is set by hand. What all folds learn wrongly looks like wrong labels too.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from softq.data.intervals import share
from softq.inspection.accuracy import WORST, half_ties, mean_figure
from softq.inspection.figures import Figure, Finding
from softq.inspection.shelf import Shelf

FACTS = "noise.json"
MOST = 0.495  # ε of labels that are next to worthless; at ½ nothing is known of any
WITHIN = 1.92  # nats of likelihood below the best one, within which 95 % of profiles hold the truth (Wilks, 1938)
LOOSE = 0.2  # an interval of ε that is wider tells nothing
FEW = 0.02  # of the labels: more that are wrong are worth acting on


class Flips(NamedTuple):
    """How often labels are flipped, as margins tell."""

    rate: float  # ε
    low: float  # its 95 % interval
    high: float
    scale: float  # s, per reward


def estimated(margin: np.ndarray) -> Flips:
    """ε and s of margins [P] > 0 where they agree with the label: the best of a grid, and of a finer one around it. ValueError
    where no margin differs from 0."""
    typical = float(np.median(np.abs(margin[margin != 0]))) if margin.any() else 0.0
    if not typical:
        raise ValueError("cross-fit: every margin is 0, which tells no label from its opposite; train longer or faster")
    coarse = _best(margin, np.linspace(0, MOST, 100), np.geomspace(1 / 32, 32, 41) / typical)
    rates = np.linspace(max(0.0, coarse.low - 0.005), min(MOST, coarse.high + 0.005), 100)
    return _best(margin, rates, coarse.scale * np.geomspace(1 / 3, 3, 81))


def _best(margin: np.ndarray, rates: np.ndarray, scales: np.ndarray) -> Flips:
    found = likelihood(margin, rates, scales)
    e, s = np.unravel_index(found.argmax(), found.shape)
    inside = rates[found.max(1) >= found.max() - WITHIN]
    return Flips(float(rates[e]), float(inside.min()), float(inside.max()), float(scales[s]))


def likelihood(margin: np.ndarray, rates: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Σ log P(label | m) of margins [P], for each ε [E] and s [S]: [E, S]."""
    with np.errstate(divide="ignore"):
        columns = [np.log(rates[:, None] + (1 - 2 * rates[:, None]) * _sigmoid(s * margin)).sum(1) for s in scales]
    return np.stack(columns, 1)


def wrong(margin: np.ndarray, flips: Flips) -> np.ndarray:
    """P(wrong | label, m): [P] -> [P]."""
    right = _sigmoid(flips.scale * margin)
    flipped = flips.rate * (1 - right)
    return flipped / np.maximum(flipped + (1 - flips.rate) * right, np.finfo(float).tiny)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -700, 700)))


def facts(shelf: Shelf) -> Mapping[str, Any] | None:
    """What `noise.json` says; None where labels were not cross-fitted to the end."""
    said = facts_at(shelf.directory)
    return said if said and said["finished"] else None


def facts_at(directory: Path) -> Mapping[str, Any] | None:
    """`noise.json` of a scored directory; None where there is none."""
    file = directory / FACTS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def ranked(shelf: Shelf) -> pa.Table:
    """Every pair, the likeliest wrong label first: record, where, margin, wrong, suspected and, where there is a reference, what
    that prefers. Needs a cross-fit."""
    noise = shelf.table("noise")
    table = pa.table({name: noise[name] for name in ("record", "margin", "wrong")})
    table = table.append_column("where", shelf.table("pairs", ["where"])["where"])
    table = table.append_column("suspected", pa.array(suspected(noise["wrong"].to_numpy())))
    if shelf.compared:
        table = table.append_column("reference", pa.array(preferred(shelf)))
    return table.take(pa.array(np.argsort(-table["wrong"].to_numpy(), kind="stable")))


def chances(shelf: Shelf) -> dict[int, float] | None:
    """Of each record, the probability that its label is wrong; None without a cross-fit."""
    if shelf.kind != "pairs" or facts(shelf) is None:
        return None
    noise = shelf.table("noise", ["record", "wrong"])
    return dict(zip(noise["record"].to_pylist(), noise["wrong"].to_pylist(), strict=True))


def suspected(wrong: np.ndarray) -> np.ndarray:
    """Likelier wrong than right: [P] -> [P] bool."""
    return wrong > 0.5


def preferred(shelf: Shelf) -> np.ndarray:
    """What the reference itself prefers: log π_ref a token of the chosen one less the rejected one's: [P] nats. Below 0 it is
    against the label."""
    names = [f"{side}_{name}" for side in ("chosen", "rejected") for name in ("ref_logp", "tokens")]
    w, n, low, m = (column.to_numpy() for column in shelf.table("pairs", names).columns)
    return w / n - low / m


def figures(shelf: Shelf) -> list[Figure]:
    """How many labels are wrong, how many pairs are suspected and how sure that is; how often the reference disagrees."""
    if shelf.kind != "pairs":
        return []
    said = facts(shelf)
    return [*(_fitted(shelf, said) if said else []), *(_referred(preferred(shelf)) if shelf.compared else [])]


def _fitted(shelf: Shelf, said: Mapping[str, Any]) -> list[Figure]:
    noise = shelf.table("noise")
    chance, margin = noise["wrong"].to_numpy(), noise["margin"].to_numpy()
    found = suspected(chance)
    sure = float(chance[found].mean()) if found.any() else np.nan
    rate = Figure(
        "noise/rate",
        said["rate"],
        "share",
        len(margin),
        "labels that are wrong, by maximum likelihood of cross-fitted margins; what the policies have learned wrongly counts too",
        (said["rate_low"], said["rate_high"]),
    )
    return [
        rate,
        mean_figure("noise/suspected", found, "pairs whose label is likelier wrong than right"),
        Figure(
            "noise/sure",
            sure,
            "share",
            int(found.sum()),
            "of the suspected labels are wrong by the estimate itself, which takes the policies' sureness at its word",
        ),
        mean_figure(
            "noise/accuracy",
            half_ties(margin),
            "labels that a policy agrees with which never saw their prompt; a tie is half",
        ),
    ]


def _referred(margin: np.ndarray) -> list[Figure]:
    against = 1 - half_ties(np.round(margin[np.isfinite(margin)], 9))  # a uniform reference prefers nothing
    meaning = "pairs whose rejected completion the reference holds for the likelier one, per token; a tie is half"
    return [mean_figure("noise/reference_disagrees", against, meaning)]


def findings(shelf: Shelf) -> list[Finding]:
    """The suspected labels, with what to do, or why none can be told; and those that the reference speaks against the most."""
    if shelf.kind != "pairs":
        return []
    said = facts(shelf)
    return [*([_suspects(shelf, said)] if said else []), *(_disagreeing(shelf) if shelf.compared else [])]


def _disagreeing(shelf: Shelf) -> list[Finding]:
    margin = preferred(shelf)
    against = int((margin < -1e-9).sum())
    if not against:
        return []
    worst = shelf.table("pairs", ["record"])["record"].to_numpy()[np.argsort(margin, kind="stable")]
    told = f"the reference holds the rejected completion for the likelier one, per token, in {against} of {len(margin)} pairs"
    act = "no fault by itself; labels that it speaks against the most are worth reading (--cross-fit K tells wrong ones better)"
    return [Finding("noise/reference", "expected", told, act, worst[: min(against, WORST)].tolist())]


def _suspects(shelf: Shelf, said: Mapping[str, Any]) -> Finding:
    noise = shelf.table("noise")
    chance, margin = (noise[name].to_numpy() for name in ("wrong", "margin"))
    worst = noise["record"].to_numpy()[np.argsort(-chance, kind="stable")].tolist()
    _, low, _ = share(float(half_ties(margin).sum()), len(margin))
    rate = f"{said['rate']:.1%} ({said['rate_low']:.1%} to {said['rate_high']:.1%})"
    if low <= 0.5 or said["rate_high"] - said["rate_low"] > LOOSE:
        agreed = f"{half_ties(margin).mean():.1%} of {len(margin)} labels"
        told = f"cross-fitted policies agree with {agreed}: which ones are wrong can not be told from them"
        act = "train them longer or faster (--fit learning_rate=… num_train_epochs=…), or give more pairs"
        return Finding("noise/unknown", "watch", told, act)
    count = int(suspected(chance).sum())
    if not count:
        told = f"an estimated {rate} of {len(margin)} labels are wrong; none is likelier wrong than right"
        return Finding("noise/suspected", "expected", told)
    told = (
        f"an estimated {rate} of {len(margin)} labels are wrong; {count} are likelier wrong than right, and of these "
        f"{chance[suspected(chance)].mean():.0%} are wrong at best"
    )
    act = f"read the first of them; then drop or swap them, or train with dpo's label_smoothing or robust at {said['rate']:.2g}"
    return Finding("noise/suspected", "act" if said["rate_low"] > FEW else "watch", told, act, worst[:count])
