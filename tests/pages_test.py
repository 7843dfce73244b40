"""The pages of methods: every docstring says what it must, curves are those of the losses, and the files are the code's."""

import inspect
import math
import re
from pathlib import Path

import pytest
import torch
from calls import called

from softq.mdp.readouts import REF_LOGP
from softq.objectives import METHODS
from softq.objectives.margins import contrast
from softq.objectives.weights import per_pair
from softq.records import Batch, Method, Scored, Term, implicit
from softq.verify.contract import CONTRACT
from softq.verify.curves import curves
from softq.verify.pages import LABELS, Page, drawn, facts, file_name, index, linked, markdown, page, scored

DOCS = Path(__file__).parent.parent / "docs/methods"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def of(name: str) -> Page:
    return page(name, METHODS[name], METHODS[name]())


# What a docstring says


@pytest.mark.parametrize("name", METHODS)
def test_a_docstring_has_a_paper_a_formula_and_four_paragraphs(name: str) -> None:
    found = of(name)
    assert found.paper or name == "sft", "the first line, or the prose, names the paper: arXiv 2305.18290"
    assert ": " in found.head, "the first line ends with the formula, after a colon"
    assert tuple(found.labelled) == LABELS, "Assumes, Rests, TRL, Choose it: one paragraph each, in this order"
    for label, text in found.labelled.items():
        assert len(text.split()) >= 2, f"{label} says nothing"


@pytest.mark.parametrize("name", METHODS)
def test_it_rests_nowhere_only_if_the_lab_knows_no_place(name: str) -> None:
    found = of(name)
    line, said = found.line, found.labelled["Rests"]
    assert not (said.startswith("nowhere") and line.method.fixed_point), "the method states a fixed point"
    proved = "the law `" in line.why  # of an end that is no distribution
    if line.method.fixed_point is None and (line.rests is None or math.isinf(line.rests)) and not proved:
        assert re.search("nowhere|closed form", said), "the lab knows of no place; say so, and why"


@pytest.mark.parametrize("name", METHODS)
def test_what_scores_are_has_a_unit(name: str) -> None:
    method = METHODS[name]()
    assert re.search(r"\bnats\b|\breward\b|no unit", scored(method))
    assert method.reward is implicit or re.search(r"nats|no unit|in reward", inspect.getdoc(method.reward) or ""), (
        "the function that is given as `reward` says in its docstring what it is and its unit"
    )


# What a picture shows


def test_dpo_is_drawn_as_it_is() -> None:
    (curve,) = curves(METHODS["dpo"](beta=0.5)).own
    assert (curve.x[0], curve.x[-1], curve.x[24]) == (-12, 12, 0)
    for x, loss, gradient in zip(curve.x, curve.loss, curve.gradient, strict=True):
        assert loss == pytest.approx(math.log1p(math.exp(-0.5 * x)), abs=1e-12)
        assert gradient == pytest.approx(-0.5 / (1 + math.exp(0.5 * x)), abs=1e-12)
    assert curve.rests == []


def test_labels_have_a_curve_each() -> None:
    good, bad = curves(METHODS["kto"](beta=0.1)).own
    assert (good.name, bad.name) == ("good", "bad")
    for one, sign in ((good, 1), (bad, -1)):
        assert one.loss == pytest.approx([1 / (1 + math.exp(sign * 0.1 * x)) for x in one.x], abs=1e-12)
        assert one.gradient[24] == pytest.approx(-sign * 0.1 / 4, abs=1e-12)


def test_demonstrations_are_drawn_below_probability_1() -> None:
    (curve,) = curves(METHODS["sft"]()).own
    assert curve.x[-1] == pytest.approx(0, abs=1e-6)
    assert curve.loss == pytest.approx([-x for x in curve.x], abs=1e-12)
    assert curve.gradient == pytest.approx([-1.0] * len(curve.x))


def pairwise_method(loss, beta: float = 1.0) -> Method:
    def values(scored: Scored, batch: Batch) -> torch.Tensor:
        ratio = implicit(scored, batch)
        return loss(ratio[batch.pairs.chosen], ratio[batch.pairs.rejected])

    return Method((Term("own", "pair", values, per_pair),), (REF_LOGP,), beta=beta)


def test_sides_that_do_not_only_differ_have_a_curve_each_and_rest_where_they_rest() -> None:
    found = curves(pairwise_method(lambda w, l: (w - 2) ** 2 + 3 * (l + 1) ** 2))  # noqa: E741
    chosen, rejected = found.own
    assert (chosen.name, rejected.name) == ("chosen", "rejected")
    assert chosen.loss == pytest.approx([(x - 2) ** 2 + 3 for x in chosen.x])
    assert rejected.gradient == pytest.approx([6 * (x + 1) for x in rejected.x])
    assert (chosen.rests, rejected.rests) == ([pytest.approx(2)], [pytest.approx(-1)])
    assert [one.gradient[24] for one in found.dpo] == pytest.approx([-0.5, 0.5])


def test_a_hinge_rests_where_it_becomes_flat_and_a_hill_is_no_rest() -> None:
    (hinge,) = curves(pairwise_method(lambda w, l: (0.7 - (w - l)).relu())).own  # noqa: E741
    assert hinge.rests == [pytest.approx(0.7)]
    (hill,) = curves(pairwise_method(lambda w, l: -((w - l) ** 2))).own  # noqa: E741
    assert hill.rests == []


def test_where_next_to_nothing_happens_the_range_is_narrower() -> None:
    assert curves(METHODS["dpo"]()).reach == 6
    assert curves(METHODS["wpo"]()).reach == pytest.approx(0.06)
    assert curves(METHODS["forward_kl_dpo"]()).reach == pytest.approx(0.6)


@pytest.mark.parametrize("name", [n for n, line in CONTRACT.items() if line.rests and math.isfinite(line.rests)])
def test_the_dot_is_where_the_contract_says_that_a_pair_rests(name: str) -> None:
    line = CONTRACT[name]
    found = curves(line.method).own
    if len(found) == 1 and line.method.takes != "rows":  # which is drawn with a teacher of its own
        assert found[0].rests == [pytest.approx(line.rests, abs=1e-6)]


# What is written


def test_text_is_escaped_for_markdown_and_papers_are_links() -> None:
    said = linked("E[x_t] < V* of L'_w, `a*b`, arXiv 2305.18290")
    assert said == r"E\[x_t\] \< V\* of L'\_w, `a*b`, [arXiv 2305.18290](https://arxiv.org/abs/2305.18290)"


def test_a_page_of_ones_own_says_what_can_be_known() -> None:
    def mine(margin: float = 2.0) -> Method:
        """Mine: (margin - m)².

        Assumes: a margin
        that is known.
        """

        def loss(scored: Scored, batch: Batch) -> torch.Tensor:
            return (margin - contrast(implicit(scored, batch), batch)) ** 2

        return Method((Term("mine", "pair", loss, per_pair),), (REF_LOGP,), columns=("weight",))

    found = page("own.file:mine", mine, mine(3.0), {"margin": 3.0})
    assert found.labelled == {"Assumes": "a margin that is known."}
    assert dict(facts(found))["Settings"] == "margin=3"
    assert "nothing is stated" in dict(facts(found))["Verify"]
    _, caption = drawn(found)
    assert caption == "Dots: where descent comes to rest, at 3 nats."
    text = markdown(found, caption)
    assert "(own.file.mine.svg)" in text
    assert "**Assumes** a margin" in text
    assert "| [own.file:mine](own.file.mine.md) |  | (margin - m)² | pairs |" in index({"Mine": [found]})


def test_defaults_that_have_another_line_in_the_contract_speak_of_that_line() -> None:
    assert of("aot").line.name == "aot_hard"
    assert of("dpo").line.name == "dpo"
    assert page("dpo", METHODS["dpo"], METHODS["dpo"](label_smoothing=0.1), {"label_smoothing": 0.1}).line.name == ""


def test_the_files_are_those_of_the_code(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Texts to the letter, pictures to a tenth of a pixel. Else: softq methods --pages docs/methods."""
    code, _, err = called(["methods", "--pages", str(tmp_path)], capsys)
    assert code == 0, err
    names = {"README.md", *(f"{file_name(name)}.{kind}" for name in METHODS for kind in ("md", "svg"))}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert {path.name for path in DOCS.iterdir()} == names
    for name in sorted(names):
        made, kept = (path.joinpath(name).read_text(encoding="utf-8") for path in (tmp_path, DOCS))
        if name.endswith(".md"):
            assert made == kept, f"{name} is not that of the code: softq methods --pages docs/methods"
            continue
        assert NUMBER.sub("#", made) == NUMBER.sub("#", kept), f"{name} is not that of the code"
        numbers = zip(NUMBER.findall(made), NUMBER.findall(kept), strict=True)
        assert all(abs(float(a) - float(b)) < 0.15 for a, b in numbers), f"{name} is not that of the code"
