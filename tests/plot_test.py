"""Curves stand where their numbers say, ticks are round, and no text can break the picture."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from softq.inspection.plot import Panel, Series, number, plot, ranges, ticks

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*series: Series, panels: int = 1) -> ET.Element:
    return ET.fromstring(plot([Panel("y", list(series))] * panels, axis="x, nats", label="a"))


def points(path: ET.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.get("d", ""))]


def test_a_point_is_drawn_where_its_numbers_are() -> None:
    """x from 0 to 2 over 356 px; y from 1 to 3, which is 0.88 to 3.12 over 94 px, downwards."""
    root = drawn(Series("a", [0, 1, 2], [1, 3, 2], dots=[(1, 3)]))
    (frame,) = root.iter(f"{SVG}svg") if root.tag != f"{SVG}svg" else list(root.iter(f"{SVG}svg"))[1:]
    assert (frame.get("x"), frame.get("width"), frame.get("height")) == ("52", "356", "94")
    (path,) = frame.iter(f"{SVG}path")
    assert points(path) == [(0, 89), (178, 5), (356, 47)]
    (dot,) = frame.iter(f"{SVG}circle")
    assert (dot.get("cx"), dot.get("cy")) == ("178", "5")


def test_the_range_is_that_of_what_is_not_grey() -> None:
    main, other = Series("a", [0, 1], [0, 100]), Series("b", [0, 1], [-1000, 5000], "other")
    assert ranges([main, other]) == ((0, 1), (-6, 106))
    assert ranges([other])[1] == (-1360, 5360)
    assert ranges([Series("a", [0, 1], [-1, -1])])[1] == (-1.06, 0.06)  # one value is shown with 0
    assert ranges([Series("a", [0, 1], [0, 0])])[1] == (-1.12, 1.12)
    with pytest.raises(ValueError, match="without a finite point"):
        ranges([Series("a", [0.0], [math.nan])])


def test_grey_is_behind_and_far_outside_is_still_a_number() -> None:
    root = drawn(Series("a", [0, 1], [0, 1]), Series("b", [0, 1], [1e300, 0], "other"))
    frame = list(root.iter(f"{SVG}svg"))[1]
    kinds = [path.get("class") for path in frame.iter(f"{SVG}path")]
    assert kinds == ["other line", "first line"]
    assert all(abs(y) < 1e4 for path in frame.iter(f"{SVG}path") for _, y in points(path))


def test_what_is_not_finite_is_a_gap() -> None:
    root = drawn(Series("a", [0, 1, 2, 3, 4], [0, 1, math.inf, 3, 4]))
    (path,) = list(root.iter(f"{SVG}svg"))[1].iter(f"{SVG}path")
    assert (path.get("d", "").count("M"), len(points(path))) == (2, 4)


def test_ticks_are_round_and_few() -> None:
    assert ticks(-60, 60, 5) == [-50, 0, 50]
    assert ticks(-20, 20, 5) == [-20, -10, 0, 10, 20]
    assert ticks(0.88, 3.12, 4) == [1, 2, 3]
    assert ticks(-0.44, 0.42, 4) == [-0.4, -0.2, 0, 0.2, 0.4], "0 alone is no scale"
    assert ticks(-0.0053, 0.0003, 4) == [-0.004, -0.002, 0]
    assert ticks(-6000, 6000, 5) == [-5000, 0, 5000]
    for low, high in ((-1.2, 1.2), (3.0, 3.001), (-4e7, 5e7), (1e-9, 3e-9), (0.0, 7.0)):
        found = ticks(low, high, 4)
        assert 1 <= len(found) <= 4
        assert low <= min(found) <= max(found) <= high


def test_numbers_are_short() -> None:
    said = [number(value) for value in (0.0, -0.05, 600.0, -4000.0, 2e7, 2.5e-4, 0.004)]
    assert said == ["0", "−0.05", "600", "−4,000", "2e7", "2.5e-4", "0.004"]


def test_words_can_not_break_the_picture() -> None:
    said = '<b> & "q"'
    root = ET.fromstring(plot([Panel(said, [Series(said, [0, 1], [0, 1])])], axis=said, label=said, title=said))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts.count(said) == 4
    assert root.get("aria-label") == said


def test_panels_stand_side_by_side_with_one_legend() -> None:
    root = drawn(Series("a", [0, 1], [0, 1]), Series("b", [0, 1], [1, 0], "second"), panels=2)
    frames = list(root.iter(f"{SVG}svg"))[1:]
    left, right = (float(frame.get("x", 0)) for frame in frames)
    width = float(frames[0].get("width", 0))
    assert left + width < right
    assert right + width == pytest.approx(420 - 12, abs=0.1)
    assert [text.text for text in root.iter(f"{SVG}text") if text.text in {"a", "b"}] == ["a", "b"]
