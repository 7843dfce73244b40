"""The pictures of the study of "From r to Q*"."""

import math
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from softq.inspection.plot import Panel, Series, plot
from softq.studies.dots import Ends, dots
from softq.studies.r_to_q_claims import ARMS, MEAN, SCORES, Results, searched
from softq.studies.seeds import spread

KINDS = {"plausible": "the crowd's errors", "random": "any wrong name", "garden path": "popular errors"}
LINES: Mapping[str, Any] = {"beam": "first", "best of n by likelihood": "second", "beam over the log-ratio": "other"}


def pictures(found: Results) -> dict[str, str]:
    """File name -> SVG."""
    return {
        f"r_to_q_{name}.svg": made(found)
        for name, made in {"credit": credit, "search": search, "formal": formal, "falling": falling}.items()
    }


def credit(found: Results) -> str:
    """AUC of finding the wrong word, by kind of error and score."""
    rows = {
        label: {
            said: _ends({seed: one.credit[kind][f"{score}_auc"] for seed, one in found.items()})
            for score, said in SCORES.items()
        }
        for kind, label in KINDS.items()
    }
    lowest = max(0, math.floor(10 * min(low for row in rows.values() for low, _, _ in row.values())))
    return dots(
        rows,
        title="Which score finds the word that is wrong?",
        axis="AUC: that it scores below another word; bars are 95 % over the seeds",
        ticks=[tick / 10 for tick in range(lowest, 11)],
    )


def search(found: Results) -> str:
    """True reward against beams, of both policies, and the length of the answers."""
    panels = [
        Panel(f"{said}: {what}", list(_lines(found, policy, figure)))
        for policy, said, figure, what in (
            ("dpo", "after dpo", "reward", "true reward"),
            ("sft", "before", "reward", "true reward"),
            ("dpo", "after dpo", "length", "tokens"),
        )
    ]
    return plot(
        panels, axis="beams, or samples", label="True reward against the number of beams", width=760, height=230
    )


def formal(found: Results) -> str:
    """True reward and length against beams, where a few answers begin with a set phrase."""
    shown: tuple[tuple[str, str, str, Any], ...] = (
        ("dpo, divided by length", "dpo", MEAN, "first"),
        ("dpo, by the sum", "dpo", "beam", "second"),
        ("before dpo, divided by length", "sft", MEAN, "other"),
    )
    panels = []
    for figure, title in (("reward", "true reward"), ("length", "tokens")):
        lines = []
        for name, policy, family, kind in shown:
            sizes = _sizes(found, "formal", policy, family)
            y = [fmean(searched(found, "formal", (policy, family, size), figure).values()) for size in sizes]
            lines.append(Series(name, sizes, y, kind))
        panels.append(Panel(title, lines))
    label = "True reward and length against the number of beams, with a set phrase"
    return plot(panels, axis="beams", label=label, width=640, height=230)


def falling(found: Results) -> str:
    """Implicit rewards of new pairs through training, an arm a panel."""
    panels = []
    for arm, said in ARMS.items():
        steps = [point["step"] for point in next(iter(found.values())).falling[arm]]
        lines = {
            side: [fmean(one.falling[arm][n][side] for one in found.values()) for n in range(len(steps))]
            for side in ("chosen", "rejected")
        }
        panels.append(
            Panel(
                said, [Series("chosen", steps, lines["chosen"]), Series("rejected", steps, lines["rejected"], "second")]
            )
        )
    label = "Rewards of chosen and rejected answers through training"
    return plot(
        panels, axis="step of dpo; β Σ log π/π_ref, mean over new pairs and seeds", label=label, width=860, height=210
    )


def _lines(found: Results, policy: str, figure: str) -> Iterator[Series]:
    """A line a family of decoders that was tried on a policy; one beam is greedy whatever it looks for."""
    for family, kind in LINES.items():
        sizes = _sizes(found, "search", policy, family)
        y = [fmean(searched(found, "search", (policy, family, size), figure).values()) for size in sizes]
        if sizes:
            yield Series(family, sizes, y, kind)


def _sizes(found: Results, crowd: str, policy: str, family: str) -> list[int]:
    """What a family of decoders was tried at."""
    tried = getattr(next(iter(found.values())), crowd)
    return sorted({row["size"] for row in tried if (row["policy"], row["family"]) == (policy, family)})


def _ends(values: Mapping[int, float]) -> Ends:
    one = spread(values)
    low, high = one.interval or (one.mean, one.mean)
    return low, one.mean, high
