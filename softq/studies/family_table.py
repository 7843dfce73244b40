"""What the study of the family found, as tables: one for people (Markdown), one for programs (JSON)."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from softq.objectives import METHODS
from softq.studies.arms import FLIPS, START, Arms, Results, shape_of
from softq.studies.claims import Claim, less, values
from softq.studies.family_text import CLAIMS, FIGURES, LONGER, NOISE, head, how_made, summary
from softq.studies.ground import Recipe
from softq.studies.seeds import spread
from softq.studies.trial import Trial

GAINED = ("reward", "length")
"""Figures whose interval is that of the change since the start of the same seed: worlds differ, and all methods share them."""
COLUMNS = ("reward", "kl", "length", "chosen", "ranking", "auc")
HEADS = ("true reward", "KL", "length", "log π of chosen", "ranking", "AUC")
DIGITS: Mapping[str, int] = {"length": 1, "ranking": 3, "auc": 3}  # behind the point; else 2


def markdown(results: Results, arms: Arms, found: Sequence[Claim], recipe: Recipe) -> str:
    """The page: what was found, every table, and how it was made."""
    parts = [
        head(results, recipe),
        "## What is said of them, and what was seen\n",
        summary(found),
        CLAIMS,
        _table(("claim", "measured", "difference", "verdict"), map(_row, found)),
        "## Every method by its defaults\n",
        _table(("method", *HEADS), _defaults(results, arms)),
        FIGURES,
        _failures(results),
        *([f"## Under flipped labels\n\n{NOISE}", _noise(results, arms)] if arms.noise else []),
        *(["## Four β\n", _table(("method", "β", *HEADS), _betas(results, arms))] if arms.beta else []),
        *([f"## {recipe.long_steps} steps\n", *_long(results, arms)] if arms.long or arms.certain else []),
        how_made(results, recipe),
    ]
    return "\n".join(part for part in parts if part)


def document(results: Results, found: Sequence[Claim], recipe: Recipe) -> str:
    """Every figure of every training and every claim, one line each: JSON."""
    seeds = list(results[START])
    trainings = [
        {
            "trial": name,
            **{figure: [_rounded(run.figures.get(figure)) for run in runs.values()] for figure in _figures(runs)},
            **({"path": [run.path for run in runs.values()]} if any(run.path for run in runs.values()) else {}),
            "seconds": [round(run.seconds, 1) for run in runs.values()],
            "failed": [run.failed for run in runs.values() if run.failed],
        }
        for name, runs in results.items()
    ]
    told = [{**claim._asdict(), "spread": claim.spread._asdict()} for claim in found]
    lines = [f'"seeds": {json.dumps(seeds)}', f'"recipe": {json.dumps(recipe._asdict())}']
    lines += [f'"{name}": [\n{_lines(rows)}\n]' for name, rows in (("trainings", trainings), ("claims", told))]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def cell(results: Results, trial: Trial | str, figure: str) -> str:
    """ "1.78 ±0.04": the mean over the seeds, and half of the 95 % interval; "–" where every training failed."""
    there = values(results, trial, figure)
    if not there:
        return "–"
    changed = less(there, values(results, START, figure)) if figure in GAINED and trial != START else there
    interval, digits = spread(changed).interval, DIGITS.get(figure, 2)
    half = "" if interval is None else f" ±{(interval[1] - interval[0]) / 2:.{digits}f}"
    return f"{spread(there).mean:.{digits}f}{half}".replace("-", "−")


def _cells(results: Results, trial: Trial | str) -> list[str]:
    return [cell(results, trial, figure) for figure in COLUMNS]


def _defaults(results: Results, arms: Arms) -> Iterator[list[str]]:
    """The start, then every method, relatives together, the highest reward of them first."""
    yield ["*fine-tuned, the start*", *_cells(results, START)]
    for shape in dict.fromkeys(shape_of(method) for method in METHODS):
        members = [method for method in arms.default if shape_of(method) == shape]
        if members:
            yield [f"**{shape.replace('_', ' ')}**"]
        for method in sorted(members, key=lambda name: -_reward(results, arms.default[name])):
            yield [method, *_cells(results, arms.default[method])]


def _reward(results: Results, trial: Trial) -> float:
    there = values(results, trial, "reward")
    return spread(there).mean if there else float("-inf")


def _shares(arms: Arms) -> list[float]:
    return sorted({flips for trials in arms.noise.values() for flips in trials})


def _noise(results: Results, arms: Arms) -> str:
    return _table(("true reward, KL", *(f"{flips:.0%} flipped" for flips in _shares(arms))), _noise_rows(results, arms))


def _noise_rows(results: Results, arms: Arms) -> Iterator[list[str]]:
    for name, trials in arms.noise.items():
        beta = dict(trials[FLIPS].settings)["beta"]
        shown = [f"{cell(results, one, 'reward')}, {cell(results, one, 'kl').split()[0]}" for one in trials.values()]
        yield [f"{name}, β {beta:g}", *shown]


def _betas(results: Results, arms: Arms) -> Iterator[list[str]]:
    for name, trials in arms.beta.items():
        for number, (beta, trial) in enumerate(sorted(trials.items(), reverse=True)):
            default = " (its default)" * (trial == arms.default[name])
            yield [name if not number else "", f"{beta:g}{default}", *_cells(results, trial)]


def _long(results: Results, arms: Arms) -> Iterator[str]:
    """Long trainings on the way: under flipped labels, and where labels are certain."""
    for trials, figures, of in (
        (arms.long, ("reward", "kl"), "true reward, KL after"),
        (arms.certain, ("margin", "reward"), "margin, true reward after"),
    ):
        if trials:
            yield LONGER[figures[0]]
            looks = [look["step"] for runs in results[next(iter(trials.values())).name].values() for look in runs.path]
            heads = (of, *(f"{step:.0f}" for step in dict.fromkeys(looks)))
            yield _table(heads, ([trial.label, *_path(results, trial, figures)] for trial in trials.values()))


def _path(results: Results, trial: Trial, figures: tuple[str, str]) -> Iterator[str]:
    runs = [run for run in results[trial.name].values() if not run.failed]
    for looks in zip(*(run.path for run in runs), strict=True):
        yield ", ".join(f"{sum(look[name] for look in looks) / len(looks):.2f}".replace("-", "−") for name in figures)


def _row(claim: Claim) -> list[str]:
    interval = claim.spread.interval
    span = "" if interval is None else f" ({interval[0]:.2g} to {interval[1]:.2g})"
    mark = {"shows": "**shows**", "does not show": "**does not show**"}.get(claim.verdict, claim.verdict)
    return [claim.says, claim.measure, f"{claim.spread.mean:+.2g}{span} {claim.unit}".replace("-", "−"), mark]


def _failures(results: Results) -> str:
    told = [
        f"- {name}, seed {seed}: {run.failed}"
        for name, runs in results.items()
        for seed, run in runs.items()
        if run.failed
    ]
    return "\n".join(["Not finite, and stopped:\n", *told, ""]) if told else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; short rows are filled up."""
    body = [[*row, *[""] * (len(heads) - len(row))] for row in rows]
    rule = ["---"] * len(heads)
    return "\n".join([*(f"| {' | '.join(row)} |" for row in [list(heads), rule, *body]), ""])


def _figures(runs: Mapping[int, Any]) -> list[str]:
    return list(dict.fromkeys(figure for run in runs.values() for figure in run.figures))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
