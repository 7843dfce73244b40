"""The tree page as a reader meets it, in a headless Chromium: what is drawn, hovered, chosen and typed."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tree_page_test import EVIL, made

from softq.inspection.tree_page import tree_page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install '.[dev]')")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium, chromium-browser or google-chrome here")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """The page of two trees, of which the second has no reference. In the end it may have said and run nothing."""
    second = made()._replace(prompt="The other", columns={"logp": made().columns["logp"]})
    file = tmp_path / "tree.html"
    file.write_text(
        tree_page([made(), second], policy="p", method="beam", settings={"beams": 5}, beta=0.5), encoding="utf-8"
    )
    said = []
    page = browser.new_page(viewport={"width": 1280, "height": 844})
    page.set_default_timeout(10_000)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: request.url.startswith("file:") or said.append(request.url))
    page.goto(file.as_uri())
    yield page
    assert page.evaluate("window.hacked") is None
    page.close()
    assert said == []


def chips(page: Any) -> list[str]:
    """What the chips say, and what they are."""
    return page.evaluate(
        "[...document.querySelectorAll('.chip')].map(e => [...e.querySelectorAll('text')].map(t => t.textContent).join('|')"
        " + ' ' + e.getAttribute('class').replace('chip', '').trim())"
    )


def told(page: Any) -> dict[str, str]:
    rows = (
        "[...document.querySelectorAll('#tip dl div')].map(e => [e.children[0].textContent, e.children[1].textContent])"
    )
    return dict(page.evaluate(rows))


def test_runs_are_chips_and_ends_are_marked(page: Any) -> None:
    """One prompt, a token that all answers share, two ways to their ends, and one that was given up."""
    root, *rest = chips(page)
    assert root.endswith("root")
    assert sorted(rest) == sorted([f" {EVIL} best", " one| end|1 best end", " two| stop|2 end cut", "↵ given-up"])
    lefts = page.evaluate("[...document.querySelectorAll('.chip')].map(e => e.getBoundingClientRect().left)")
    assert lefts[0] < lefts[1] == lefts[2] < lefts[3] == lefts[4]
    widths = page.evaluate("[...document.querySelectorAll('.edge')].map(e => Number(e.getAttribute('stroke-width')))")
    assert widths == [pytest.approx(0.8 + 5.2 * 3 / 5, abs=0.01), 6.0, 0.8, 6.0]


def test_hover_tells_what_is_known(page: Any) -> None:
    page.locator("[data-node='3']").hover()
    assert told(page) == {
        "log π": "−0.200",
        "log π_ref": "−1.200",
        "reward": "+0.5000",
        "reward so far": "+0.3000",
        "log π so far": "−1.000",
        "visits": "4",
        "odd name": "0.500",
    }
    assert page.locator("#tip .text span").inner_text() == "token 3"
    assert page.locator("#tip p b").inner_text() == "Answer 1"
    page.locator("[data-node='1']").hover()
    rows = page.locator("#tip tbody tr").all_inner_texts()
    assert [row.split() for row in rows] == [["·one", "50%", "82%", "−0.25", "5"], ["·two", "30%", "30%", "0.00", "3"]]
    page.mouse.move(640, 800)
    assert page.locator("#tip").is_hidden()


def test_colours(page: Any) -> None:
    shades = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('.tk')].map(e => [e.dataset.node, e.firstChild.getAttribute('class')]))"
    )
    assert shades["3"] == "t p8"  # +0.5, the strongest but one, is the end of the scale
    assert shades["1"] == "t n4"
    assert shades["2"] == "t "
    page.select_option("#colour", "surprise")
    assert page.locator("[data-node='2'] rect").get_attribute("class").startswith("t s")


def test_keys(page: Any) -> None:
    page.locator("#tree").focus()
    at = lambda: page.evaluate("document.activeElement.dataset.node ?? null")  # noqa: E731
    walked = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
        walked.append(at())
    assert walked == ["0", "1", "2", "4", "3", "1", "0"]
    assert told(page)["log π"] == "−0.100"
    place = lambda: page.locator("#world").get_attribute("transform")  # noqa: E731
    seen = [place()]
    for key in ("+", "-", "-", "Shift+ArrowLeft"):
        page.keyboard.press(key)
        assert place() not in seen[-1:]
        seen.append(place())
    page.keyboard.press("2")
    assert page.locator("#answers button[aria-pressed=true]").inner_text().startswith("2")
    assert page.locator(".chip.called").count() == 2
    page.keyboard.press("Escape")
    assert page.locator(".called").count() == 0


def test_wheel_and_drag(page: Any) -> None:
    box = page.locator("[data-node='3']").bounding_box()
    x, y = box["x"] + 5, box["y"] + 5
    page.mouse.move(x, y)
    page.mouse.wheel(0, -400)
    larger = page.locator("[data-node='3']").bounding_box()
    assert larger["width"] > 1.5 * box["width"]
    assert larger["x"] < x < larger["x"] + larger["width"]
    page.mouse.move(600, 700)
    page.mouse.down()
    page.mouse.move(560, 740)
    page.mouse.up()
    moved = page.locator("[data-node='3']").bounding_box()
    assert (moved["x"] - larger["x"], moved["y"] - larger["y"]) == (pytest.approx(-40, abs=4), pytest.approx(40, abs=4))


def test_what_was_given_up_can_be_left_out(page: Any) -> None:
    page.locator("#pruned").uncheck()
    assert page.locator(".given-up").count() == 0
    assert page.locator(".tk").count() == 5


def test_the_best_goes_straight_and_nothing_lies_on_another(page: Any) -> None:
    boxes = page.evaluate(
        "[...document.querySelectorAll('.chip')]"
        ".map(e => [e.getAttribute('class'), e.querySelector('.box').getBoundingClientRect()])"
        ".map(([name, box]) => [name, box.left, box.top, box.right, box.bottom])"
    )
    straight = [(top + bottom) / 2 for name, _, top, _, bottom in boxes if "best" in name or "root" in name]
    assert len(straight) == 3
    assert max(straight) - min(straight) < 1
    for name, left, top, right, bottom in boxes:
        for other, left_, top_, right_, bottom_ in boxes:
            apart = right <= left_ or right_ <= left or bottom <= top_ or bottom_ <= top
            assert apart or (name, left, top) == (other, left_, top_)


def test_what_was_never_visited_is_told_of_and_not_drawn(browser: Any, tmp_path: Path) -> None:
    tree = made()
    more = {"visits": [9.0, 5.0, 3.0, 4.0, 2.0, 0.0], "value": [0.31, math.nan, -2.0, 0.0, 1.0, 0.125]}
    tree = tree._replace(columns={**tree.columns, **more})
    file = tmp_path / "visits.html"
    file.write_text(tree_page([tree], policy="p", method="mcts", settings={}, beta=0.5), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1280, "height": 844})
    page.goto(file.as_uri())
    assert page.locator("[data-node='5']").count() == 0
    page.locator("[data-node='0']").hover()
    assert page.locator("#tip tbody tr").all_inner_texts()[1].split() == ["↵", "5.0%", "37%", "−1.00", "+0.13", "0"]
    assert told(page)["value"] == "+0.3100"
    page.locator("[data-node='1']").hover()
    rows = [row.split() for row in page.locator("#tip tbody tr").all_inner_texts()]
    assert [row[-2:] for row in rows] == [["–", "5"], ["−2.00", "3"]]
    assert "value" not in told(page)
    page.close()


def test_another_prompt(page: Any) -> None:
    page.select_option("#which", "1")
    assert page.locator("#prompt").inner_text() == "The other"
    page.locator("[data-node='3']").hover()
    assert told(page) == {"log π": "−0.200", "log π so far": "−1.000"}
    assert page.locator("#colour option").all_inner_texts() == ["surprise, −log π"]


def test_light_and_dark(page: Any) -> None:
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
