"""Colours that say what the numbers say, and text that can not break the picture."""

import xml.etree.ElementTree as ET

from softq.inspection.colour import HIGH, LOW, Line, ink, picture, shade


def test_shade_is_red_below_zero_and_blue_above() -> None:
    assert shade(-2.0, 2.0) == LOW
    assert shade(5.0, 2.0) == HIGH
    assert shade(0.0, 2.0) == (255, 255, 255)
    red, green, blue = shade(-1.0, 2.0)
    assert red > green
    assert red > blue


def test_ink_can_be_read() -> None:
    assert ink((255, 255, 255)) == "#1f2933"
    assert ink((20, 20, 20)) == "#ffffff"


def test_a_picture_is_well_formed_whatever_the_words() -> None:
    words = ["<script>alert('x')</script>", "a & b", '"quoted"']
    svg = picture(
        "t < u", [Line("score", words, [-1.0, 0.5, 1.0], framed=0, underlined=(0, 1)), Line("", ["q"], [None])], ["c"]
    )
    root = ET.fromstring(svg)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert all(word in texts for word in words)
    assert "<script" not in svg
    frames = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("stroke-width") == "2"]
    assert len(frames) == 1
    assert frames[0].get("fill") == "#d64541"
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) == 2


def test_long_lines_wrap_inside_the_picture() -> None:
    svg = picture("t", [Line("score", ["word"] * 60, [1.0] * 60)], [])
    boxes = ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect")
    edges = [float(box.get("x", 0)) + float(box.get("width", 0)) for box in boxes]
    assert max(edges) <= 880
