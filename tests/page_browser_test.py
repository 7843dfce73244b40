"""The page as a reader meets it, in a headless Chromium: what is seen, hovered, typed and printed."""

import base64
import gzip
import json
import math
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from made_report import made

from softq.inspection.packed import BLOCK
from softq.inspection.page import html

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install '.[dev]')")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium, chromium-browser or google-chrome here")

REPORTS: dict[str, Callable[[], dict[str, Any]]] = {
    "pairs": lambda: made(120),
    "other": lambda: made(40, other=True),
    "alone": lambda: made(40, compared=False),
    "rows": lambda: made(40, kind="rows"),
    "large": lambda: made(10_000),
    "empty": lambda: made(0),
}
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    directory = tmp_path_factory.mktemp("pages")

    def file(name: str) -> Path:
        path = directory / f"{name}.html"
        if not path.exists():
            path.write_text(html(REPORTS[name]()), encoding="utf-8")
        return path

    return file


@pytest.fixture
def opened(browser: Any, files: Callable[[str], Path]) -> Iterator[Open]:
    """Opens a page of REPORTS. In the end no page may have said anything on its console, or have run what data says."""
    pages, said = [], []

    def opened(name: str, *, width: int = 1280, hash: str = "", scheme: str = "light") -> Any:
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        page.set_default_timeout(10_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "blob:")) or said.append(request.url))
        page.goto(files(name).as_uri() + hash)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        assert page.evaluate("window.hacked") is None
        page.close()
    assert said == []


def sides(name: str, record: int) -> dict[str, Any]:
    """The sides of a record's pair, from the block that the page carries."""
    report = REPORTS[name]()
    row = report["pairs"]["columns"]["record"].index(record)
    pair = json.loads(gzip.decompress(base64.b64decode(report["blocks"][row // BLOCK])))[row % BLOCK]
    for side in pair.values():
        side["words"] = [report["strings"][index] for index in side["text"]]
    return pair


def told(page: Any) -> dict[str, str]:
    """The numbers that stand beside a token."""
    return dict(
        page.evaluate(
            "[...document.querySelectorAll('#tip dl div')].map(e => [e.children[0], e.children[1]].map(c => c.textContent))"
        )
    )


def says(page: Any, text: str) -> None:
    """Waits until the status line says it. (The page's policy forbids what wait_for_function does.)"""
    playwright.expect(page.locator("#status")).to_contain_text(text)


def minus(text: str) -> str:
    return text.replace("-", "−")


def records(page: Any) -> list[int]:
    """The records of the list that are drawn, from above."""
    return page.evaluate("[...document.querySelectorAll('.pair header a')].map(e => Number(e.textContent.slice(1)))")


def test_ten_seconds(opened: Open) -> None:
    """The verdict and its three numbers are in the first window."""
    page = opened("pairs")
    assert page.locator("h1").inner_text() == "Healthy"
    numbers = page.locator(".numbers .value")
    assert [text.replace("\xa0", " ") for text in numbers.all_inner_texts()] == ["71.4%", "0.831 reward", "−1.90 nats"]
    for place in [page.locator("h1"), *numbers.all()]:
        box = place.bounding_box()
        assert 0 < box["y"] < box["y"] + box["height"] < 844
    assert page.locator("section h2").all_inner_texts() == [
        "What changed",
        "What was learned",
        "What is wrong with the data",
        "Method and settings",
    ]


def test_hover_shows_the_numbers_of_the_token(opened: Open) -> None:
    page = opened("pairs", hash="#pair=8")
    side = sides("pairs", 8)["rejected"]
    page.locator(".called .rejected .tok").nth(5).hover()
    numbers = told(page)
    assert numbers["log π"] == minus(f"{side['logp'][5] / 1e4:.3f}")
    assert numbers["log π_ref"] == minus(f"{side['ref_logp'][5] / 1e4:.3f}")
    assert numbers["reward"] == minus(f"{side['reward'][5] / 1e4:+.4f}")
    assert numbers["sum so far"] == minus(f"{sum(side['reward'][:6]) / 1e4:+.4f}")
    assert numbers["entropy"] == f"{side['entropy'][5] / 1e4:.3f}"
    assert numbers["KL"] == f"{side['kl'][5] / 1e4:.3f}"
    assert numbers["likelier ones"] == str(side["rank"][5])
    first = page.locator("#tip tbody tr").first.locator("th, td").all_inner_texts()
    own, ref = (math.exp(side[name][5][0] / 1e4) for name in ("top_logp", "top_ref_logp"))
    assert first[0].replace("·", " ") == side["words"][5]
    assert abs(float(first[1].rstrip("%")) / 100 - own) < 0.01
    assert abs(float(first[2].rstrip("%")) / 100 - ref) < 0.01
    beta = REPORTS["pairs"]()["facts"]["beta"]
    better = beta * (side["top_logp"][5][0] - side["top_ref_logp"][5][0]) / 1e4
    assert float(first[3].replace("−", "-")) == pytest.approx(better, abs=0.0051)
    assert page.locator("#tip .text span").inner_text() == f"token 6 of {len(side['text'])}"
    page.mouse.move(2, 2)
    assert page.locator("#tip").is_hidden()


def test_colours_say_what_the_numbers_say(opened: Open) -> None:
    page = opened("pairs", hash="#pair=8")
    side = sides("pairs", 8)["chosen"]
    classes = page.evaluate("[...document.querySelectorAll('.called .chosen .tok')].map(e => e.className)")
    found = [next((c[0] for c in each.split() if c[0] in "np" and c[1:].isdigit()), "") for each in classes]
    assert len(found) == len(side["reward"])
    large = max(map(abs, side["reward"])) / 4
    for reward, colour in zip(side["reward"], found, strict=True):
        assert colour != ("p" if reward < 0 else "n")
        assert colour or abs(reward) < large


def test_tokens_of_one_character_are_one(opened: Open) -> None:
    page = opened("pairs", hash="#pair=58")
    side = sides("pairs", 58)["chosen"]
    assert side["words"][:4] == ["👩‍🚀", "", "", ""]
    token = page.locator(".called .chosen .tok").first
    assert token.text_content() == "👩‍🚀"
    token.hover()
    assert told(page)["reward"] == minus(f"{sum(side['reward'][:4]) / 1e4:+.4f}")
    assert told(page)["log π"] == minus(f"{sum(side['logp'][:4]) / 1e4:.3f}")
    assert page.locator("#tip .text span").inner_text() == f"tokens 1 to 4 of {len(side['text'])}"
    rows = page.locator("#tip table").first.locator("tbody tr").all_inner_texts()
    assert [row.split()[-1] for row in rows] == [minus(f"{value / 1e4:+.4f}") for value in side["reward"][:4]]


def test_all_texts_are_shown_as_they_are(opened: Open) -> None:
    """The tokens in their order, letter by letter, with marks for what can not be seen; markup and scripts are text."""
    page = opened("pairs")
    for record in (6, 32, 58, 84, 110, 136, 162):
        page.evaluate(f"location.hash = '#pair={record}'")
        page.wait_for_selector(f".called[aria-label='record {record}'] .side")
        for name, side in sides("pairs", record).items():
            completion = page.locator(f".called .{name} .completion")
            whole = "".join(side["words"]) if side["words"] else "no tokens"
            assert completion.text_content() == "".join(c for c in whole if c not in "\u202e\u200b\x07")
    marks = page.evaluate("[...document.querySelectorAll('.called .mark')].map(e => e.dataset.mark)")
    assert marks == ["U+202E", "U+200B", "U+0007", "␍", "↵"]
    assert page.locator("main script, main img, main b b").count() == 0


def test_right_to_left(opened: Open) -> None:
    page = opened("pairs", hash="#pair=6")
    tokens = page.locator(".called .chosen .tok")
    first, second = tokens.nth(0).bounding_box(), tokens.nth(1).bounding_box()
    assert second["x"] < first["x"]
    tokens.nth(0).focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.dataset.at") == "1"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.at") == "0"


def test_orders(opened: Open) -> None:
    page = opened("pairs")
    report = REPORTS["pairs"]()
    columns = report["pairs"]["columns"]
    for number, order in enumerate(report["pairs"]["orders"]):
        page.select_option("#order", str(number))
        rows = sorted(range(120), key=lambda row: columns[order["by"]][row], reverse=order["descending"])
        assert records(page) == [columns["record"][row] for row in rows[:4]]
        assert order["told"] in page.locator("#status").inner_text()


def test_filter_and_search(opened: Open) -> None:
    page = opened("pairs")
    page.select_option("#source", "guide")
    assert page.locator("#status").inner_text().startswith("40 pairs")
    page.select_option("#source", "")
    page.fill("#search", "quiet museum")  # of the prompt
    wanted = REPORTS["pairs"]()["pairs"]["columns"]["prompt"].count("Name a quiet museum for a rainy afternoon.")
    says(page, f"{wanted} of 120 pairs")
    page.fill("#search", "DONAUDAMPF")  # of a completion only
    says(page, "1 of 120 pairs")
    page.wait_for_selector(".pair .tok")
    assert records(page) == [110]
    page.fill("#search", "")
    says(page, "120 pairs")
    page.fill("#search", "<script>alert(1)")
    says(page, "1 of 120 pairs")
    assert records(page) == [84]
    page.fill("#search", "nowhere to be found")
    says(page, "0 of 120 pairs")
    assert records(page) == []


def test_findings_lead_to_their_pairs_and_to_a_file(opened: Open) -> None:
    page = opened("pairs")
    finding = page.locator("#data .finding", has_text="labels are probably wrong")
    with page.expect_download() as download:
        finding.get_by_role("button", name="Save row numbers").click()
    assert download.value.suggested_filename == "noise-flipped.txt"
    lines = Path(download.value.path()).read_text(encoding="utf-8")
    assert lines == "pairs.jsonl:5\npairs.jsonl:11\npairs.jsonl:23\npairs.jsonl:37\n"
    finding.get_by_role("button", name="Show these 4").click()
    assert sorted(records(page)) == [4, 10, 22, 36]
    page.get_by_role("button", name="Not only those").click()
    assert page.locator("#status").inner_text().startswith("120 pairs")
    finding.get_by_role("link", name="pairs.jsonl:23").click()
    page.wait_for_selector(".called")
    assert page.url.endswith("#pair=22")
    assert 0 < page.locator(".called").bounding_box()["y"] < 400
    page.evaluate("location.hash = '#pair=1'")
    says(page, "Record 1 is not among")


def test_keyboard_only(opened: Open) -> None:
    page = opened("pairs")
    press = page.keyboard.press
    active = lambda script: page.evaluate(f"document.activeElement.{script}")  # noqa: E731
    press("Tab")
    press("Tab")
    assert active("textContent") == "To the pairs"
    press("Enter")
    for _ in range(20):
        press("Tab")
        if active("className").startswith("tok"):
            break
    assert active("dataset.at") == "0"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    press("ArrowRight")
    press("ArrowRight")
    assert active("dataset.at") == "2"
    assert page.locator("#tip .text span").inner_text().startswith("token 3 of")
    press("ArrowDown")
    assert int(active("dataset.at")) > 6
    press("ArrowUp")
    assert int(active("dataset.at")) < 6
    press("End")
    assert active("textContent") == "<|im_end|>"
    press("Escape")
    assert page.locator("#tip").is_hidden()
    before = active("closest('.pair').getAttribute('aria-posinset')")
    press("j")
    assert int(active("closest('.pair').getAttribute('aria-posinset')")) == int(before) + 1
    press("Tab")
    assert active("closest('.side').className") == "side rejected"


@pytest.mark.parametrize("name", ["pairs", "other", "alone", "rows", "empty"])
def test_a_phone(opened: Open, name: str) -> None:
    page = opened(name, width=390, scheme="dark")
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    if name != "empty":
        page.wait_for_selector(".tok")
    if name == "pairs":
        page.locator("#more").click()
        page.evaluate("location.hash = '#pair=110'")
        page.wait_for_selector(".called .tok")
        page.locator(".called .tok").first.click()
        box = page.locator("#tip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert box["y"] + box["height"] <= 844
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def luminance(colour: list[float]) -> float:
    line = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour[:3])]
    return 0.2126 * line[0] + 0.7152 * line[1] + 0.0722 * line[2]


def rgb(page: Any, selector: str, what: str) -> list[float]:
    """A colour in 0…255, and how opaque it is."""
    return page.evaluate(
        """([selector, what]) => {
            const canvas = new OffscreenCanvas(1, 1).getContext("2d");
            canvas.fillStyle = getComputedStyle(document.querySelector(selector))[what];
            canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data];
        }""",
        [selector, what],
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(opened: Open, scheme: str) -> None:
    """In both, and after the button, text has a contrast of at least 4.5 to 1, on the strongest colours too."""
    page = opened("pairs", scheme=scheme)
    page.wait_for_selector(".tok")
    for dark in (scheme == "dark", scheme != "dark"):
        paper, card = rgb(page, "body", "backgroundColor"), rgb(page, ".sheet", "backgroundColor")
        assert (luminance(paper) < 0.1) == dark
        ink = luminance(rgb(page, "body", "color"))
        for name in ("n8", "p8"):
            *colour, alpha = rgb(page, f".steps .{name}", "backgroundColor")
            ground = [alpha / 255 * c + (1 - alpha / 255) * under for c, under in zip(colour, card, strict=False)]
            assert contrast(ink, luminance(ground)) >= 4.5
        for selector in (
            ".soft",
            ".finding.act .level b",
            ".finding.watch .level b",
            ".finding.expected .level b",
            ".records a",
        ):
            assert contrast(luminance(rgb(page, selector, "color")), luminance(paper)) >= 4.5, selector
        page.click("#theme")


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def work(session: Any) -> float:
    """Seconds of work of the page so far."""
    return next(
        each["value"] for each in session.send("Performance.getMetrics")["metrics"] if each["name"] == "TaskDuration"
    )


def test_ten_thousand_pairs_stay_smooth(opened: Open) -> None:
    """Few are in the document at any time, a step of scrolling takes little work, and the last pair is reached."""
    page = opened("large")
    page.locator("#more").click()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})  # work, not waiting for a busy machine
    before = work(session)
    nodes = page.evaluate(
        """async () => {
            const found = [];
            for (let n = 0; n < 20; n++) {
                scrollBy(0, n % 5 ? 900 : 150000);
                for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
                found.push(document.getElementsByTagName("*").length);
            }
            return found;
        }"""
    )
    assert (work(session) - before) / 20 < 0.3
    assert max(nodes) < 5000
    assert len(records(page)) < 20
    page.evaluate("document.activeElement.blur(); location.hash = '#pair=19998'")
    page.wait_for_selector(".called .tok")
    assert 0 < page.locator(".called").bounding_box()["y"] < 400


def test_what_is_on_the_screen_stays_there(opened: Open) -> None:
    """Heights above are guesses until they are seen: the pair that is opened does not move away from where it is shown."""
    page = opened("large", hash="#pair=9000")
    page.wait_for_selector(".called .tok")
    before = page.locator(".called").bounding_box()["y"]
    page.mouse.wheel(0, -400)
    page.wait_for_timeout(150)
    assert page.locator(".called").bounding_box()["y"] == pytest.approx(before + 400, abs=3)
    boxes = page.evaluate("[...list.children].map(e => [e.getBoundingClientRect().top, e.offsetHeight])")
    for (top, height), (following, _) in pairwise(boxes):
        assert following == pytest.approx(top + height, abs=1.5)  # no gap, no overlap


def test_two_policies_on_the_same_pairs(opened: Open) -> None:
    page = opened("other", hash="#pair=8")
    page.wait_for_selector(".called .tok")
    report = made(40, other=True)
    theirs = json.loads(gzip.decompress(base64.b64decode(report["other"]["blocks"][0])))[4]["chosen"]
    said = page.locator(".called .chosen .said")
    assert said.count() == 2
    for place, side in zip(said.all(), (sides("other", 8)["chosen"], theirs), strict=True):
        place.locator(".tok").nth(3).hover()
        assert told(page)["reward"] == minus(f"{side['reward'][3] / 1e4:+.4f}")
    assert [place.inner_text().strip() for place in page.locator(".verdict .policy").all()] == [
        "aligned",
        "other",
    ]


def test_without_a_reference_surprise_has_the_colours(opened: Open) -> None:
    page = opened("alone")
    page.wait_for_selector(".tok")
    assert page.locator(".tok.s8").count() > 0
    assert page.locator(".tok.p8, .tok.n8").count() == 0
    page.locator(".tok").first.hover()
    assert set(told(page)) == {"log π", "log π so far", "entropy", "likelier ones"}
    assert page.locator("#tip thead th").all_inner_texts() == ["Likeliest here", "π"]


def test_completions_that_are_no_pairs(opened: Open) -> None:
    page = opened("rows")
    page.wait_for_selector(".tok")
    assert page.locator(".side").count() == 4
    assert page.locator(".side.rejected").count() == 0
    assert page.locator("#status").inner_text().startswith("40 completions")


def test_print_shows_verdict_figures_and_the_pairs_in_view(opened: Open) -> None:
    page = opened("pairs")
    page.locator("#more").click()
    page.emulate_media(media="print")
    assert page.locator(".bar, .tools, #more").evaluate_all(
        "all => all.every(e => getComputedStyle(e).display === 'none')"
    )
    assert page.locator("#list").bounding_box()["height"] < 6000  # of the pairs that are drawn, not of all
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".figures").first.is_visible()
    assert page.locator("h1").is_visible()
