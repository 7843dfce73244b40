"""The page of a report as text: what data says stays text, and the file needs nothing but itself."""

import base64
import gzip
import hashlib
import json
import re

import pytest
from made_report import EVIL, LONG, figure, made

from softq.inspection.charts import curve, reliability, whiskers
from softq.inspection.page import html, names, scale, shown
from softq.inspection.standalone import embedded

CURVE = {"title": "t", "unit": "", "x": "step", "from": "f"}


@pytest.fixture(scope="module")
def page() -> str:
    return html(made(40, other=True))


def test_what_data_says_is_text_in_every_place(page: str) -> None:
    assert page.count("<script") == page.count("</script") == 2  # the data and the scripts, both ours
    assert "<img" not in page
    assert "&lt;img src=x onerror=window.hacked=1&gt;" in page  # in findings and settings
    assert "data/<b>" not in page
    assert "data/&lt;b&gt;" in page


def test_the_data_comes_back_as_it_was() -> None:
    report = made(64)
    (text,) = re.findall(r'<script type="application/json" id="report">(.*?)</script>', html(report), re.DOTALL)
    said = json.loads(text)
    assert said["pairs"] == report["pairs"]
    assert said["strings"] == report["strings"]
    assert said["blocks"] == report["blocks"]
    assert EVIL in said["strings"]


def test_nothing_in_the_data_can_end_its_element() -> None:
    texts = ["</script>", "<!--<script>", "a & b", "\u2028\u2029", "\ud800", "é"]
    text = embedded(texts)
    assert not re.search("[<>&\u2028\u2029\ud800]", text)
    assert "é" in text
    assert json.loads(text) == texts
    with pytest.raises(ValueError):
        embedded([float("nan")])


def test_only_the_page_s_own_script_and_style_may_run(page: str) -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    policy = policy.replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (body,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy
    assert " style=" not in page  # the policy would refuse it
    assert not re.search(r"\son\w+=\"", page)


def test_nothing_is_loaded(page: str) -> None:
    assert all(link.startswith("#") for link in re.findall(r'(?:href|src|action|data)="([^"]*)"', page))
    assert set(re.findall(r"https?://[^\s\"'<]*", page)) == {"http://www.w3.org/2000/svg"}  # a name, never fetched
    assert "@import" not in page
    assert "url(" not in page


def test_without_data_it_is_small() -> None:
    assert len(html(made(0)).encode()) < 100_000


def test_the_questions_come_in_order(page: str) -> None:
    titles = re.findall(r"<h[12][^>]*>(?:<svg.*?</svg>)?\s*(?:<span>)?([^<]+)", page, re.DOTALL)
    wanted = ["Healthy", "What changed", "What was learned", "What is wrong with the data", "Method and settings"]
    assert list(dict.fromkeys(titles)) == wanted


def test_levels_are_words(page: str) -> None:
    found = re.findall(r'class="finding (\w+)".*?<b>([\w ]+)</b>', page, re.DOTALL)
    assert set(found) == {("expected", "as expected"), ("watch", "worth a look"), ("act", "needs action")}


def test_a_section_is_headed_by_its_telling_figure() -> None:
    report = made(0)
    figure = {"name": "localisation/chance", "value": 0.07, "unit": "", "of": 9, "meaning": "a guess", "interval": None}
    found = {**figure, "name": "localisation/reward/top1", "value": 0.5}
    section = {"name": "localisation", "title": "Errors found", "told": "?", "figures": [figure, found], "findings": []}
    text = html({**report, "sections": [section]})
    assert re.search(r'class="headline"><span class="soft">errors found</span>0.500<', text)
    text = html({**report, "sections": [{**section, "figures": [figure, {**found, "value": None}]}]})
    assert re.search(r'class="headline"><span class="soft">chance</span>0.0700<', text)


def test_findings_lead_to_the_rows_that_the_page_has() -> None:
    report = made(10)
    report["data"][0]["records"] = [4, 6, 99]
    text = html(report)
    assert '<a href="#pair=4" title="pairs.jsonl:5 (record 4)">pairs.jsonl:5</a>' in text
    assert f'<a href="#pair=6" title="{LONG}pairs.jsonl:7 (record 6)">pairs.jsonl:7</a>' in text
    assert "<span>record 99</span>" in text
    assert "#pair=99" not in text


def test_without_a_reference_it_says_so() -> None:
    text = html(made(10, compared=False))
    assert "There is no reference model" in text
    assert "log-probability" in text
    assert "implicit reward, in" not in text
    assert "There is no reference model" not in html(made(10))


def test_both_policies_stand_in_the_figures(page: str) -> None:
    row = re.search(r"<code>displacement/rejected</code>.*?</tr>", page, re.DOTALL)
    assert row is not None
    assert row[0].count("−10.2") == 2
    assert "pairs that both policies order alike" in page


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.7139, "share", "71.4%"),
        (0.71, "share", "71%"),
        (-1.904, "nats", "−1.90"),
        (0.00012345, "", "0.000123"),
        (12345.6, "tokens", "12,346"),
        (512.0, "tokens", "512"),
        (None, "share", "–"),
        (float("nan"), "", "–"),
    ],
)
def test_numbers_as_people_write_them(value: float | None, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_negative_numbers_of_sentences_have_the_sign_of_figures() -> None:
    report = made(10)
    report["verdict"]["told"] = "It fell by -3.5 (-4 to -1e-3), which is -log 2 in run-3 of a/-5; -x."
    assert "It fell by −3.5 (−4 to −1e-3), which is −log 2 in run-3 of a/-5; -x." in html(report)


def test_the_strongest_colour_is_a_high_quantile() -> None:
    report = made(64)
    values = sorted(abs(value) for pair in _pairs(report) for side in pair.values() for value in side["reward"])
    assert scale(report)["reward"] == values[int(0.98 * (len(values) - 1))] / 1e4
    assert scale(made(3, compared=False))["reward"] == 1.0


def test_policies_of_one_name_are_told_apart() -> None:
    report = made(1, other=True)
    assert names(report) == ("aligned", "other")
    report["other"]["facts"]["policy"] = "b/aligned"
    assert names(report) == ("models/aligned", "b/aligned")


def test_a_curve_has_its_points_where_they_are() -> None:
    drawn = curve({**CURVE, "lines": [{"name": "a", "points": [[0, 0.0], [10, 1.0], [20, None], [30, 0.5]]}]})
    assert drawn is not None
    (line,) = drawn["lines"]
    starts = [part for part in line["path"].split("M") if part]
    assert len(starts) == 2  # a gap where there is no number
    points = [tuple(map(float, re.split("[ h]", each)[:2])) for part in starts for each in part.split("L")]
    assert [x for x, _ in points] == [44.0, pytest.approx(133.3), 312.0]
    down = [y for _, y in points]
    assert down[1] < down[2] < down[0]  # upwards is more
    assert down[2] == pytest.approx((down[0] + down[1]) / 2, abs=0.1)
    assert line["last"] == 0.5


def test_what_is_held_out_has_the_colour_of_its_curve() -> None:
    names = ["chosen", "rejected", "chosen, held out", "rejected, held out"]
    drawn = curve({**CURVE, "lines": [{"name": name, "points": [[0, 0.0], [1, 1.0]]} for name in names]})
    assert drawn is not None
    assert [(line["colour"], line["beside"]) for line in drawn["lines"]] == [
        (1, False),
        (2, False),
        (1, True),
        (2, True),
    ]


def test_a_finding_of_the_data_stands_there_once() -> None:
    report = made(10)
    report["data"].append(report["sections"][3]["findings"][0])
    text = html(report)
    assert text.count("58% of the mean margin") == 2
    assert text.count('id="finding-credit/end"') == 1
    assert text.count('<a href="#finding-credit/end">Which ones</a>') == 1
    assert text.count('<a href="#pair=8" ') == 1


def test_long_curves_are_means() -> None:
    points = [[n, float(n % 2)] for n in range(1200)]
    drawn = curve({**CURVE, "lines": [{"name": "a", "points": points}]})
    assert drawn is not None
    assert drawn["each"] == 8
    assert drawn["lines"][0]["path"].count("L") == 149
    assert drawn["lines"][0]["last"] == 0.5
    assert curve({**CURVE, "lines": [{"name": "a", "points": [[0, None]]}]}) is None


def test_whiskers_share_an_axis_by_unit() -> None:
    one, two, three, four = whiskers(
        [
            figure("a", 1.0, "nats", "", (0.0, 2.0)),
            figure("b", -2.0, "nats", "", (-4.0, 0.0)),
            figure("c", 0.75, "share", "", (0.5, 1.0)),
            figure("d", 1.0, "nats", ""),
        ]
    )
    assert one
    assert two
    assert three
    assert four is None
    assert (two["low"], one["high"]) == (5, 115)
    assert one["zero"] == one["low"] == two["high"] == pytest.approx(5 + 110 * 4 / 6, abs=0.1)
    assert three["x"] == 87.5
    assert three["zero"] == 60


def test_the_reliability_curve_is_on_the_line_where_the_reward_is_right() -> None:
    drawn = reliability([[0.6, 0.6, 10, 0.6, 0.5, 0.7], [0.9, 0.9, 40, 0.8, 0.7, 0.9]])
    on, below = drawn["dots"]
    x0, y0, x1, y1 = drawn["same"]
    assert on["y"] == pytest.approx(y0 + (y1 - y0) * (on["x"] - x0) / (x1 - x0), abs=0.2)
    assert below["y"] > y0 + (y1 - y0) * (below["x"] - x0) / (x1 - x0)  # px go down
    assert below["r"] > on["r"]


def _pairs(report: dict) -> list[dict]:
    return [pair for block in report["blocks"] for pair in json.loads(gzip.decompress(base64.b64decode(block)))]
