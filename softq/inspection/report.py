"""One report of a scored data set: everything that the page, the terminal and --json show, as one JSON-able dict.

title, facts, verdict, curves, sections, reliability, pairs (columns and orders), strings and blocks (see `packed`), ledger,
data, settings, versions, method; and `other` with the same of a second policy on the same records.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from softq.inspection import calibration, displacement, ledger
from softq.inspection.aligned import aligned
from softq.inspection.curves import Curve
from softq.inspection.figures import Finding, as_json
from softq.inspection.listed import at, listed
from softq.inspection.packed import Item, Strings, blocks
from softq.inspection.sections import Section, agreed, sections
from softq.inspection.shelf import Shelf
from softq.inspection.verdict import LEVELS, verdict

NAMED = 5  # rows of the data that a check names


class Ran(NamedTuple):
    """What is known of the run that made a policy."""

    curves: Sequence[Curve] = ()
    findings: Sequence[Finding] = ()  # what was said while it trained
    settings: Mapping[str, Any] = {}
    versions: Mapping[str, str] = {}
    method: Mapping[str, str] | None = None  # name, formula, page


class Subject(NamedTuple):
    """A policy to compare with: its scores, and its run."""

    shelf: Shelf
    run: Ran | None = None


Report = dict[str, Any]


def report(shelf: Shelf, run: Ran | None = None, other: Subject | None = None) -> Report:
    """The report of a scored data set. ValueError where `other` is of other data."""
    strings, shown = Strings(), listed(shelf)
    items = aligned(shelf, other.shelf, shown.items) if other else []
    found = [*_told(run), *sections(shelf)]
    ran, together = run or Ran(), agreed(shelf, other.shelf) if other else None
    return {
        "title": title(shelf.facts),
        "facts": facts(shelf.facts),
        "verdict": verdict(shelf, of_the_run(found)).as_json(),
        "curves": [*map(_curve, ran.curves), *_along(shelf)],
        "sections": [section.as_json() for section in found],
        "reliability": _reliability(shelf),
        "pairs": shown.as_json(),
        "blocks": list(blocks(shelf, shown.items, strings)),
        "ledger": account(shelf),
        "data": [as_json(finding) for finding in wrong(found)],
        "settings": [[name, _plain(value)] for name, value in _settings(shelf.facts, ran).items()],
        "versions": [[name, value] for name, value in {**ran.versions, **shelf.facts["versions"]}.items()],
        "method": dict(ran.method) if ran.method else None,
        "other": _other(other, items, strings) if other else None,
        "agreement": together.as_json() if together else None,
        "strings": strings.all,
    }


def title(facts: Mapping[str, Any]) -> str:
    """POLICY against REFERENCE on DATA, by their short names."""
    reference = f" against {_short(facts['reference']['model'])}" if facts["reference"] else ""
    return f"{_short(facts['policy']['model'])}{reference} on {', '.join(map(_short, facts['data']))}"


def facts(of: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader wants to know of a scoring."""
    dropped = sum(of["ledger"]["rows_dropped"].values())
    return {
        "policy": of["policy"]["model"],
        "reference": of["reference"]["model"] if of["reference"] else None,
        **{name: of[name] for name in ("beta", "unit")},
        "kind": "pairs" if of["kind"] == "pairs" else "rows",
        "records": of["records"],
        "dropped": dropped,
        "data": list(of["data"]),
    }


def account(shelf: Shelf) -> dict[str, Any]:
    """The account of the rows that were scored, as the scoring wrote it."""
    of = shelf.facts["ledger"]
    dropped = [[reason, count, of["examples"].get(reason, [])[:NAMED]] for reason, count in of["rows_dropped"].items()]
    checks = [as_json(finding) for finding in ledger.findings(shelf)]
    return {"rows": of["rows_in"], "used": of["rows_used"], "dropped": dropped, "checks": checks}


def wrong(found: Sequence[Section]) -> list[Finding]:
    """What may be wrong with the data: every finding that names records and is not to be expected, the worst first."""
    named = [finding for section in found for finding in section.findings if len(finding.records)]
    return sorted(
        (finding for finding in named if finding.level != "expected"), key=lambda finding: -LEVELS.index(finding.level)
    )


def of_the_run(found: Sequence[Section]) -> list[Finding]:
    """The findings that a verdict is about. Pairs that no policy could learn at this β are the data's, not the run's."""
    return [finding for section in found if section.name != "ranking" for finding in section.findings]


def _told(run: Ran | None) -> Iterator[Section]:
    """What was said while the policy trained."""
    if run is not None and run.findings:
        yield Section("run", "While it trained", "What did the run itself warn of?", [], run.findings)


def _reliability(shelf: Shelf) -> list[dict[str, Any]]:
    """Bins as [low, high, count, rate, rate's low, rate's high]; low and high are σ of the least and of the largest |margin|."""
    return [
        {"name": name or "all pairs", "bins": [_bin(each) for each in bins]}
        for name, bins in calibration.curves(shelf).items()
    ]


def _bin(of: calibration.Bin) -> list[float]:
    return [*_numbers((of.least, of.most)), of.pairs, *_numbers((of.right, of.low, of.high))]


def _other(other: Subject, items: Sequence[Item | None], strings: Strings) -> dict[str, Any]:
    """The same of another policy, on the records that are shown of the first."""
    shelf, ran = other.shelf, other.run or Ran()
    found = [*_told(other.run), *sections(shelf)]
    return {
        "title": title(shelf.facts),
        "facts": facts(shelf.facts),
        "verdict": verdict(shelf, of_the_run(found)).as_json(),
        "sections": [section.as_json() for section in found],
        "curves": [*map(_curve, ran.curves), *_along(shelf)],
        "pairs": {"columns": at(shelf, items)},
        "blocks": list(blocks(shelf, items, strings)),
    }


def _curve(curve: Curve) -> dict[str, Any]:
    lines = [{"name": line.name, "points": [_numbers(point) for point in line.points]} for line in curve.lines]
    return {"title": curve.title, "unit": curve.unit, "x": "step", "from": curve.source, "lines": lines}


def _along(shelf: Shelf) -> Iterator[dict[str, Any]]:
    """Where along completions log π changed: a point a tenth, at its middle. Nothing without pairs and a reference."""
    lines = []
    for side, curve in displacement.by_position(shelf).items():
        points = [(5 + 10 * tenth, value) for tenth, value in enumerate(curve.mean) if math.isfinite(value)]
        lines.append({"name": side, "points": [_numbers(point) for point in points]})
    if any(line["points"] for line in lines):
        title = "Δ log π of a token, by its place in the completion"
        yield {"title": title, "unit": "nats", "x": "per cent of the completion", "from": "the scores", "lines": lines}


def _settings(of: Mapping[str, Any], ran: Ran) -> dict[str, Any]:
    scored = {
        "policy": of["policy"]["model"],
        "policy's fingerprint": of["policy"]["fingerprint"],
        "reference": of["reference"]["model"] if of["reference"] else "none",
        "reference's fingerprint": of["reference"]["fingerprint"] if of["reference"] else None,
        "β": of["beta"],
        "scored as": of["dtype"],
        "layout": of["layout"],
        "data": ", ".join(of["data"]),
        "content of the data": of["content"],
    }
    return {**scored, **{f"train: {name}": value for name, value in ran.settings.items()}}


def _short(name: str) -> str:
    """The last part of a path, or of a hub's name."""
    return Path(name).name or name


def _numbers(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _plain(value: Any) -> str:
    return "not known" if value is None else str(value)
