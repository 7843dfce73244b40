"""The picture of the theory: its numbers are the worked example's, its widths and colours say the same, and all can be read."""

import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from softq.verify import draw
from softq.verify.draw import HEIGHT, WIDTH, example, tree_svg

SVG = "{http://www.w3.org/2000/svg}"
EDGES = {  # worked out by hand and checked elsewhere: r, Q* (KL), Q* (max-entropy), π_ref, A, π*
    "a": (0, 0.216890, -0.038522, 0.6, -1.212005, 0.053139),
    "b": (1, 1.859739, 1.401594, 0.4, 0.430844, 0.946861),
    "aa": (0.5, 0.5, 0.153426, 0.5, 0.283110, 0.880797),
    "ab": (-0.5, -0.5, -0.846574, 0.5, -0.716890, 0.119203),
    "ba": (-1, -1.0, -1.052680, 0.9, -1.859739, 0.021822),
    "bb": (2, 2.0, 0.848707, 0.1, 1.140261, 0.978178),
}
VALUES = {"": 1.428896, "a": 0.216890, "b": 0.859739}
LEAVES = {  # R, π_ref, π*, β·L
    "aa": (0.5, 0.30, 0.046805, -0.928896),
    "ab": (-0.5, 0.30, 0.006334, -1.928896),
    "ba": (0, 0.36, 0.020662, -1.428896),
    "bb": (3, 0.04, 0.926198, 1.571104),
}


@pytest.fixture(scope="module")
def root() -> ET.Element:
    return ET.fromstring(tree_svg())


def group(root: ET.Element, name: str) -> ET.Element:
    return next(g for g in root.iter(f"{SVG}g") if g.get("id") == name)


def said(element: ET.Element) -> list[str]:
    return ["".join(text.itertext()) for text in element.iter(f"{SVG}text")]


def numbers(words: list[str]) -> list[float]:
    return [float(word.replace("−", "-")) for word in words]


@pytest.mark.parametrize("name", EDGES)
def test_an_edge_shows_its_six_numbers(root: ET.Element, name: str) -> None:
    token, *cells = said(group(root, f"edge-{name}"))
    assert token == name[-1]
    assert cells[::2] == ["r", "Q*KL", "Q*ME", "πref", "A", "π*"]
    assert numbers(cells[1::2]) == pytest.approx(EDGES[name], abs=0.00501)


@pytest.mark.parametrize("name", EDGES)
def test_an_edge_is_as_wide_as_the_policy_between_dashes_as_far_apart_as_the_reference(
    root: ET.Element, name: str
) -> None:
    band, *dashes = group(root, f"edge-{name}").iter(f"{SVG}path")
    assert float(band.get("stroke-width", 0)) == pytest.approx(max(1.0, 26 * EDGES[name][5]), abs=0.006)
    ends = [float(re.findall(r"[\d.]+", dash.get("d", ""))[-2]) for dash in dashes]
    assert ends[1] - ends[0] == pytest.approx(26 * EDGES[name][3], abs=0.11)


@pytest.mark.parametrize("name", EDGES)
def test_an_edge_is_blue_where_the_advantage_is_positive_and_red_where_it_is_not(root: ET.Element, name: str) -> None:
    band = next(group(root, f"edge-{name}").iter(f"{SVG}path"))
    red, _, blue = bytes.fromhex(band.get("stroke", "")[1:])
    assert (blue > red) == (EDGES[name][4] > 0)


@pytest.mark.parametrize("name", VALUES)
def test_a_state_shows_its_value(root: ET.Element, name: str) -> None:
    title, label, value = said(group(root, f"state-{name}"))
    assert (title, label) == ("·".join("x" + name), "V*")
    assert numbers([value]) == pytest.approx([VALUES[name]], abs=0.005)


@pytest.mark.parametrize("name", LEAVES)
def test_an_answer_shows_what_it_is_worth(root: ET.Element, name: str) -> None:
    title, *cells = said(group(root, f"leaf-{name}"))
    assert title == name
    assert numbers(cells) == pytest.approx(LEAVES[name], abs=0.005)
    assert numbers(cells[1:3]) == pytest.approx(LEAVES[name][1:3], abs=0.0005)


def test_what_falls_is_the_divergence_from_the_reference(root: ET.Element) -> None:
    assert "Eref[β·L] = −β·KL(πref‖π*) = −1.309" in said(root)


def test_the_likeliest_path_is_added_up(root: ET.Element) -> None:
    lines = [read(group(root, name)) for name in ("step-1", "step-2", "sum")]
    assert lines == [
        "b at x 1.00 + 0.86 − 1.43 = 0.43",
        "b at x·b 2.00 + 0.00 − 0.86 = 1.14",
        "bb 3.00 − 1.43 = 1.57",
    ]
    for line in lines:  # the sums are right in the digits that are shown, too
        left, right = re.sub(r"^[^\d]*", "", line).replace("−", "-").split(" = ")
        signs = [1, *(1 if sign == "+" else -1 for sign in re.findall(r"[+-]", left))]
        terms = [float(term) for term in re.findall(r"[\d.]+", left)]
        assert sum(s * t for s, t in zip(signs, terms, strict=True)) == pytest.approx(float(right))
    struck = [(step, len(list(group(root, step).iter(f"{SVG}path")))) for step in ("step-1", "step-2", "sum")]
    assert struck == [("step-1", 1), ("step-2", 1), ("sum", 0)]


def read(element: ET.Element) -> str:
    """The words of a group, from left to right."""
    texts = sorted(element.iter(f"{SVG}text"), key=lambda text: box(text)[0])
    return " ".join("".join(text.itertext()) for text in texts)


def test_both_forms_are_named_and_explained(root: ET.Element) -> None:
    words = said(root)
    assert {"KL form", "Q*KL = r + V*(s′)", "A = Q*KL − V*(s)"} <= set(words)
    assert {"max-entropy form", "Q*ME = Q*KL + β log πref", "π* = softmax(Q*ME/β)"} <= set(words)


def box(text: ET.Element) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a text by a wide sans-serif font: digits 0.64 of its size, bold a tenth more."""
    kind = text.get("class", "")
    size = 25.0 if kind == "title" else 15.0
    wide = dict.fromkeys(" .,;:·’′()[]ijl|/", 0.3) | dict.fromkeys("rtfs*‖-", 0.45) | dict.fromkeys("−+=<>mwM", 0.84)
    bold = 1.1 if kind in ("title", "strong") else 1.0
    width = sum(wide.get(c, 0.64) for c in "".join(text.itertext())) * size * bold
    x, y = float(text.get("x", 0)), float(text.get("y", 0))
    left = {"end": x - width, "middle": x - width / 2}.get(text.get("text-anchor", ""), x)
    return left, y - 0.75 * size, left + width, y + 0.2 * size


def corners(root: ET.Element) -> Iterator[tuple[float, float]]:
    """The outermost points of all shapes and texts."""
    for text in root.iter(f"{SVG}text"):
        left, top, right, bottom = box(text)
        yield from ((left, top), (right, bottom))
    for rect in root.iter(f"{SVG}rect"):
        x, y, width, height = (float(rect.get(name, 0)) for name in ("x", "y", "width", "height"))
        yield from ((x, y), (x + width, y + height))
    for circle in root.iter(f"{SVG}circle"):
        x, y, r = (float(circle.get(name, 0)) for name in ("cx", "cy", "r"))
        yield from ((x - r, y - r), (x + r, y + r))
    for path in root.iter(f"{SVG}path"):
        for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.get("d", "")):
            yield float(x), float(y)
        for x in re.findall(r"H(-?[\d.]+)", path.get("d", "")):
            yield float(x), 1.0


def test_everything_is_inside_the_picture(root: ET.Element) -> None:
    assert root.get("viewBox") == f"0 0 {WIDTH} {HEIGHT}"
    points = list(corners(root))
    assert len(points) > 400
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in points)


def test_no_two_texts_overlap(root: ET.Element) -> None:
    texts = [(box(text), "".join(text.itertext())) for text in root.iter(f"{SVG}text")]
    assert len(texts) > 100
    for (a, first), (b, second) in itertools.combinations(texts, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{first!r} and {second!r} overlap"


def test_text_is_no_smaller_than_twelve_pixels() -> None:
    sizes = [float(size) for size in re.findall(r"font-size:([\d.]+)px", tree_svg())]
    assert sizes
    assert min(sizes) >= 12


def test_names_can_not_break_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = example()._replace(names='<"')
    monkeypatch.setattr(draw, "example", lambda: odd)
    words = said(ET.fromstring(tree_svg()))
    assert {"<", '"', "x·<", 'x·"', '<"', '"<'} <= set(words)


def test_the_picture_in_the_docs_is_the_one_that_is_drawn() -> None:
    assert tree_svg() == tree_svg()
    assert (Path(__file__).parents[1] / "docs" / "tree.svg").read_text(encoding="utf-8") == tree_svg()
