"""A scored pair in a notebook: its own text and numbers, in colour, and nothing that runs."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scored import scored

from softq.inspection.colour import shade

EVIL = "<script>x</script>\"'>"


class Seen(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_pair_is_its_text_in_colours(tmp_path: Path) -> None:
    pairs = [([("a", -1.0, -1.0)], [("b", -1.0, -1.0)])] * 2
    chosen = [("good", -0.5, -2.5), (" end\n", -2.0, -1.0)]  # rewards 1 and -1/2
    shelf = scored(tmp_path, [*pairs, (chosen, [("bad", -1.0, -1.0)])], per=2)
    found = shelf.pair(2)
    assert [token["text"] for token in found.sides["chosen"]] == ["good", " end\n"]
    seen = Seen(found._repr_html_())
    tokens = [of for tag, of in seen.tags if tag == "span"]
    colours = [re.search(r"background:rgb(\([^)]*\))", of["style"] or "") for of in tokens]
    assert [colour and colour[1] for colour in colours] == [str(shade(value, 1.0)) for value in (1.0, -0.5, 0.0)]
    assert (tokens[0]["title"] or "").startswith("reward 1, ")
    assert "good end⏎" in seen.text
    assert "chosen · 2 tokens · reward +0.5" in seen.text
    assert "margin +0.5 reward" in seen.text
    assert "full at 1 reward" in seen.text


def test_data_is_text(tmp_path: Path) -> None:
    shelf = scored(tmp_path, [([(EVIL, -1.0, -2.0)], [("b", -1.0, -1.0)])])
    html = shelf.pair(0)._repr_html_()
    seen = Seen(html)
    assert {tag for tag, _ in seen.tags} == {"div", "table", "tr", "td", "span"}
    assert EVIL in seen.text
    assert not any(name.startswith("on") or name in {"src", "href"} for _, of in seen.tags for name in of)


def test_without_a_reference_the_colour_is_log_pi(tmp_path: Path) -> None:
    shelf = scored(tmp_path, [([("a", -2.0, -1.0)], [("b", -0.5, -1.0)])], compared=False)
    seen = Seen(shelf.pair(0)._repr_html_())
    assert "full at 2 nats" in seen.text
    assert "margin" not in seen.text


def test_a_record_that_is_not_there(tmp_path: Path) -> None:
    shelf = scored(tmp_path, [([("a", -1.0, -1.0)], [("b", -1.0, -1.0)])])
    with pytest.raises(ValueError, match="holds no record 7: they go from 0 to 0"):
        shelf.pair(7)
