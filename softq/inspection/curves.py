"""What changed while a policy was trained: curves from the log of its run, and from its checkpoints scored as one trend.

A log is our metrics.jsonl, or the trainer_state.json of TRL and of whatever else stands on transformers' Trainer; both call a
number by the same name (`rewards/chosen`, `eval_rewards/chosen`).
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from softq.inspection.columns import SIDES
from softq.inspection.shelf import Shelf

OURS, THEIRS = "metrics.jsonl", "trainer_state.json"
POINTS = 300  # of a line: more are averaged

Point = tuple[float, float]


class Line(NamedTuple):
    """One line of a curve: (step, value)."""

    name: str
    points: list[Point]


class Curve(NamedTuple):
    """Lines of one unit over the steps of a run, and what they were read from."""

    title: str
    unit: str
    source: str  # OURS, THEIRS or "checkpoints"
    lines: list[Line]


class Plot(NamedTuple):
    """What a curve shows: names of a log by the name of their line."""

    title: str
    unit: str
    names: Mapping[str, str]


def _sides(family: str) -> dict[str, str]:
    return {side: f"{family}/{side}" for side in SIDES}


PLOTS = (
    Plot("Reward", "reward", _sides("rewards")),
    Plot("Margin", "reward", {"margin": "rewards/margins"}),
    Plot("Pairs right", "share", {"right": "rewards/accuracies"}),
    Plot("Log-probs of completions", "nats", _sides("logps")),
    Plot("KL", "nats", {"KL": "kl"}),
    Plot("Loss", "", {"loss": "loss"}),
)
HELD = "eval_"


def log_of(directory: Path) -> Path | None:
    """The log of the run that wrote a directory: ours, or theirs, there or in its newest checkpoint. None: there is none."""
    checkpoints = sorted(directory.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
    there = [directory / OURS, directory / THEIRS, *(path / THEIRS for path in reversed(checkpoints))]
    return next((path for path in there if path.is_file()), None)


def logged(path: Path, beta: float | None = None) -> list[Curve]:
    """The curves of a log. `beta`, reward per nat: with it Δ log π is drawn too, which is a reward over β.

    ValueError where it is no such log. What is not a finite number, and lines that a killed run left half written, are left out.
    """
    read = _ours if path.name == OURS else _theirs
    lines: dict[str, list[Point]] = {}
    for entry in read(path):
        for name, value in entry.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                lines.setdefault(name, []).append((entry["step"], float(value)))
    for name in [name for name in MOVED if name in lines and beta]:
        if not _without_reference(lines, name, beta or 1.0):
            lines[MOVED[name]] = [(step, value / (beta or 1.0)) for step, value in lines[name]]
    plots = (*PLOTS[:3], Plot("Displacement: Δ log π against the reference", "nats", _sides("moved")), *PLOTS[3:])
    return [curve for plot in plots if (curve := _drawn(plot, lines, path.name)).lines]


MOVED = {f"{held}rewards/{side}": f"{held}moved/{side}" for held in ("", HELD) for side in SIDES}
"""A reward, and the same in nats."""


def _without_reference(lines: Mapping[str, Sequence[Point]], name: str, beta: float) -> bool:
    """Whether a reward is β log π: what methods without a reference log under its name."""
    logps = dict(lines.get(name.replace("rewards", "logps"), ()))
    both = [(value, beta * logps[step]) for step, value in lines[name] if step in logps]
    return bool(both) and all(math.isclose(*each, rel_tol=1e-2) for each in both)


def _drawn(plot: Plot, lines: Mapping[str, Sequence[Point]], source: str) -> Curve:
    several = [(name, key) for name, key in plot.names.items()]
    several += [(f"{name}, held out", HELD + key) for name, key in plot.names.items()]
    return Curve(
        plot.title, plot.unit, source, [Line(name, thinned(lines[key])) for name, key in several if key in lines]
    )


def thinned(points: Sequence[Point], most: int = POINTS) -> list[Point]:
    """At most so many points: means of neighbours, as many in each as in any other to one."""
    if len(points) <= most:
        return list(points)
    return [tuple(map(float, part.mean(0))) for part in np.array_split(np.array(points), most)]  # pyright: ignore[reportReturnType]


def _ours(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                yield entry


def _theirs(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
        yield from (entry for entry in history if isinstance(entry.get("step"), int))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no trainer_state.json of transformers: it has no log_history; remove it"
        ) from error


def trend(scored: Iterable[tuple[int, Shelf, Sequence[int] | None]]) -> list[Curve]:
    """Checkpoints scored on the same records, in order: (step, scores, which records; None is all) as curves of means."""
    lines: dict[str, list[Point]] = {}
    unit = "reward"
    for step, shelf, records in scored:
        unit = shelf.facts["unit"]
        for name, value in means(shelf, records).items():
            lines.setdefault(name, []).append((step, value))
    plots = (
        Plot("Reward, by checkpoint", unit, _sides("reward") | {"completions": "reward"}),
        Plot("Margin, by checkpoint", unit, {"margin": "margin"}),
        Plot("Pairs right, by checkpoint", "share", {"right": "right"}),
        Plot(
            "Displacement: Δ log π against the reference, by checkpoint",
            "nats",
            _sides("moved") | {"completions": "moved"},
        ),
        Plot("KL(π‖π_ref) along a completion, by checkpoint", "nats", _sides("kl") | {"completions": "kl"}),
        Plot("Log-probs of completions, by checkpoint", "nats", _sides("logp") | {"completions": "logp"}),
    )
    return [curve for plot in plots if (curve := _drawn(plot, lines, "checkpoints")).lines]


def means(shelf: Shelf, records: Sequence[int] | None = None) -> dict[str, float]:
    """Means over records, of what is finite: "reward/chosen", "moved/chosen" (nats), "margin", "right" (ties half), …; of rows
    without the side."""
    table = shelf.table(shelf.kind)
    if records is not None:
        table = table.filter(pa.array(np.isin(table["record"].to_numpy(), np.asarray(records))))
    column = {name: table[name].to_numpy() for name in table.column_names if pa.types.is_floating(table[name].type)}
    found: dict[str, float] = {}
    for side, before in [(f"/{side}", f"{side}_") for side in SIDES] if shelf.kind == "pairs" else [("", "")]:
        of = {name: column.get(before + name) for name in ("logp", "ref_logp", "reward", "kl")}
        values = {name: of[name] for name in ("logp", "reward", "kl")}
        if of["logp"] is not None and of["ref_logp"] is not None:
            with np.errstate(invalid="ignore"):
                values["moved"] = of["logp"] - of["ref_logp"]
        finite = {name: value[np.isfinite(value)] for name, value in values.items() if value is not None}
        found |= {name + side: float(value.mean()) for name, value in finite.items() if len(value)}
    margin = column.get("margin", np.zeros(0))
    margin = margin[np.isfinite(margin)]
    if len(margin):
        found |= {"margin": float(margin.mean()), "right": float((np.sign(margin) + 1).mean() / 2)}
    return found
