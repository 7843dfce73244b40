"""The report as one HTML file that needs nothing else: no network, no other file, and no script but its own.

What data says is text everywhere: Jinja2 escapes it, the scripts set it as text, and the file's own policy
(Content-Security-Policy) lets no script run whose hash it does not name, and nothing load.
"""

import base64
import gzip
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from softq.inspection.charts import curve, reliability, whiskers
from softq.inspection.colour import HIGH, LOW
from softq.inspection.packed import BLOCK, UNIT
from softq.inspection.standalone import embedded, environment, policy, scripted
from softq.inspection.values import GAUGE

SCRIPTS = ("write.js", "data.js", "tokens.js", "tip.js", "pairs.js", "page.js")
SHADES = 8  # steps of colour on either side of 0
SAMPLE = 32  # blocks that are looked at for the scale of the colours
CLIPPED = 0.98  # of the tokens have a colour short of the strongest, which the rest share

LEVELS: Mapping[str, str] = {
    "expected": "Healthy",
    "watch": "Worth a look",
    "act": "Needs action",
}
"""A verdict's level in large words."""

SIGNS: Mapping[str, str] = {"expected": "as expected", "watch": "worth a look", "act": "needs action"}
"""A finding's level, in the same words."""

HEADLINES: Mapping[str, str] = {
    "accuracy/strict": "pairs right",
    "displacement/chosen": "chosen",
    "ranking/R": "chosen is likelier",
    "calibration/error": "error",
    "credit/concentration/top": "in five tokens",
    "segments/sentence/largest": "in one sentence",
    "localisation/reward/top1": "errors found",
    "values/identified": "ended",
    "noise/rate": "wrong",
    "noise/reference_disagrees": "reference disagrees",
}
"""What a section's most telling figure is called beside its title; where it has none of these, the first is told by its name."""

CHANGED = ("run", "displacement", "fresh")
DATA = ("noise", "labels", "ledger")
"""Sections that answer "what changed" and "what is wrong with the data"; the others tell what was learned."""


def html(report: Mapping[str, Any]) -> str:
    """The page of a report (the dict that softq.inspection.report makes)."""
    templates = environment()
    templates.filters |= {"shown": shown, "number": count, "prose": prose}
    templates.globals["signs"] = SIGNS
    other = report.get("other")
    colours = {"low": LOW, "high": HIGH, "shades": SHADES}
    style = templates.get_template("page.css").render(colours)
    script = scripted(SCRIPTS)
    return templates.get_template("page.html").render(
        colours,
        report=report,
        gauge=GAUGE,
        other=other,
        names=names(report),
        places=_places(report["pairs"]["columns"]),
        elsewhere={finding["name"] for finding in report["data"]},
        facts=_facts(report),
        style=style,
        script=script,
        policy=policy(script, style),
        data=embedded(_for_scripts(report)),
        scale=scale(report),
        levels=LEVELS,
        curves=_curves(report),
        reliability=[
            {"name": each["name"], **reliability(each["bins"])} for each in report["reliability"] if each["bins"]
        ],
        sections=_sections(report),
        numbers=_numbers(report),
    )


def shown(value: float | None, unit: str = "") -> str:
    """A figure's number as people write it: shares in percent, others with three digits; – where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if unit == "share":
        text = f"{100 * value:.1f}".removesuffix(".0") + "%"
    elif value == int(value) or abs(value) >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:#.3g}".removesuffix(".")
    return text.replace("-", "−")


def prose(sentence: str) -> str:
    """A sentence whose negative numbers, and -log, have the sign that figures have."""
    return re.sub(r"(?<![^\s(])-(?=\d|log\b)", "−", sentence)


def count(value: int) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,}"


def names(report: Mapping[str, Any]) -> tuple[str, str]:
    """What the policy and the one beside it are called: the last parts of their paths, told apart if those are the same."""
    both = [str(each["facts"]["policy"]) for each in (report, report.get("other")) if each]
    short = [name.rstrip("/").rsplit("/", 1)[-1] for name in both]
    if len(short) == 1:
        return short[0], ""
    return (
        (short[0], short[1]) if short[0] != short[1] else (both[0], both[1] if both[0] != both[1] else f"{both[1]} (2)")
    )


def scale(report: Mapping[str, Any]) -> dict[str, float]:
    """What the strongest colour stands for: of |reward|, and of -log π where there is no reward."""
    found: dict[str, list[float]] = {"reward": [], "logp": []}
    for of in (report, report.get("other")):
        for side in _sample(of["blocks"] if of else ()):
            for name, values in found.items():
                values += [abs(value) for value in side[name] or () if value is not None]
    return {name: (_quantile(values) or UNIT) / UNIT for name, values in found.items()}


def _sample(blocks: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    for block in blocks[:: max(1, len(blocks) // SAMPLE)][:SAMPLE]:
        for pair in json.loads(gzip.decompress(base64.b64decode(block))):
            yield from (side for side in (pair or {}).values() if side)


def _quantile(values: Sequence[float]) -> float:
    return sorted(values)[int(CLIPPED * (len(values) - 1))] if values else 0.0


def _for_scripts(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the scripts read of the report; the rest stands in the page already."""
    other = report.get("other")
    theirs = {name: other.get(name) for name in ("pairs", "blocks", "strings")} if other else None
    return {
        "names": names(report),
        "betas": [of["facts"]["beta"] or 1 for of in (report, other) if of],
        "unit": report["facts"]["unit"],
        "kind": report["facts"]["kind"],
        "scale": scale(report),
        "shades": SHADES,
        "block": BLOCK,
        "pairs": report["pairs"],
        "strings": report["strings"],
        "blocks": report["blocks"],
        "other": theirs,
    }


def _places(columns: Mapping[str, Any]) -> dict[int, str | None]:
    """Where in the files the records of the page stand."""
    records = columns.get("record") or []
    return dict(zip(records, columns.get("where") or [None] * len(records), strict=True))


def _facts(report: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The facts as rows to read, in their order."""
    found = []
    for name, value in report["facts"].items():
        found.append((name, ", ".join(map(str, value)) if isinstance(value, list | tuple) else value))
    return [(name, "none" if value is None else value) for name, value in found]


def _curves(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    other = {chart["title"]: chart for chart in (report.get("other") or {}).get("curves", ())}
    drawn = [({**chart}, curve(chart, other.get(chart["title"]))) for chart in report["curves"]]
    return [{**chart, "drawn": picture} for chart, picture in drawn if picture]


def _numbers(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The verdict's numbers, each with the same one of the other policy."""
    other = report.get("other")
    theirs = {figure["name"]: figure for figure in other["verdict"]["numbers"]} if other else {}
    return [{**figure, "other": theirs.get(figure["name"])} for figure in report["verdict"]["numbers"]]


def _sections(report: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The sections by the question that they answer, their figures in groups: accuracy/length/1 and /2 are one."""
    other = {section["name"]: section for section in (report.get("other") or {}).get("sections", ())}
    found: dict[str, list[dict[str, Any]]] = {"changed": [], "learned": [], "data": []}
    every = [*report["sections"], *([report["agreement"]] if report.get("agreement") else ())]
    for section in every:
        name = section["name"]
        place = "changed" if name in CHANGED else "data" if name in DATA else "learned"
        found[place].append({**section, "headline": _headline(section), "groups": _groups(section, other.get(name))})
    return found


def _headline(section: Mapping[str, Any]) -> dict[str, Any] | None:
    """The figure that stands beside a section's title, and what it is called there."""
    known = [figure for figure in section["figures"] if figure["value"] is not None]
    figure = next((figure for figure in known if figure["name"] in HEADLINES), known[0] if known else None)
    if figure is None:
        return None
    return {**figure, "called": HEADLINES.get(figure["name"], figure["name"].rsplit("/", 1)[-1].replace("_", " "))}


def _groups(section: Mapping[str, Any], other: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    theirs = {figure["name"]: figure for figure in other["figures"]} if other else {}
    groups: dict[str, list[dict[str, Any]]] = {}
    for figure in section["figures"]:
        parts = figure["name"].split("/")
        groups.setdefault(parts[1] if len(parts) > 2 else "", []).append(figure)
    return [{"name": name, "rows": _rows(figures, theirs)} for name, figures in groups.items()]


def _rows(figures: Sequence[Mapping[str, Any]], theirs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    beside = [theirs.get(figure["name"]) for figure in figures]
    drawn = whiskers([*figures, *(figure for figure in beside if figure)])
    rest = iter(drawn[len(figures) :])
    return [
        {**figure, "drawn": mark, "other": one and {**one, "drawn": next(rest)}}
        for figure, mark, one in zip(figures, drawn, beside, strict=False)
    ]
