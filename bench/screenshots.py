"""The pictures of the page in README and docs, made from the demo.

    softq demo && python bench/screenshots.py        # reads demo/, writes docs/page.png, docs/tokens.png, each also -dark

Scores the demo's held-out answers with one wrong name beside the right ones, writes their page, and takes it in a headless
Chromium: how it begins, and a pair with what is known of its lowest token.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

DOCS = Path(__file__).resolve().parents[1] / "docs"
WIDE, TALL = 1280, 800
BLAMED = """() => [...document.querySelectorAll("#list .rejected .tok")].slice(0, 40).map((token) =>
  [Number(token.className.match(/\\bn(\\d+)/)?.[1] ?? 0), token]).sort((a, b) => b[0] - a[0])[0][1]"""
"""The token of the lowest reward of the first rejected answer shown."""


def main() -> None:
    """Score, inspect, take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", default="demo", help="what softq demo wrote")
    demo = Path(parser.parse_args().demo)
    softq = [sys.executable, "-m", "softq"]
    scores = demo / "scores"
    score = ["score", "--policy", demo / "dpo", "--data", demo / "injected.jsonl", "--output", scores]
    for command in (score, ["inspect", scores]):
        subprocess.run([*softq, *map(str, command)], check=True)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for dark in (False, True):
            taken(browser, (scores / "report.html").resolve(), dark)
        browser.close()


def taken(browser: Browser, page: Path, dark: bool) -> None:
    """Both pictures in one colour scheme."""
    ending = "-dark" if dark else ""
    shown = browser.new_page(viewport={"width": WIDE, "height": TALL}, color_scheme="dark" if dark else "light")
    shown.goto(page.as_uri())
    shown.screenshot(path=DOCS / f"page{ending}.png")
    shown.locator("#tools").scroll_into_view_if_needed()
    shown.evaluate("scrollTo(0, document.querySelector('#tools').getBoundingClientRect().top + scrollY - 260)")
    shown.wait_for_selector("#list .rejected .tok")
    token = shown.evaluate_handle(BLAMED).as_element()
    assert token is not None
    token.hover()
    shown.wait_for_timeout(300)
    shown.screenshot(path=DOCS / f"tokens{ending}.png")
    shown.close()


if __name__ == "__main__":
    main()
