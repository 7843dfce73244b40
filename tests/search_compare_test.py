"""softq search --compare: who judges, what controls cost and come to, and the files that are written."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from calls import called, jsonl
from search_cli_test import PROMPTS, policy, reference  # noqa: F401
from tiny import tiny, tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from softq.inspection.compute_plot import Curve, Point, compute_plot
from softq.lm.load import load
from softq.search.answer import Answer, Limits
from softq.search.decoders import DECODERS
from softq.search.heard import Heard
from softq.searching.compare import Arm, Comparison, Control, _controls, _Sample, figures, spent
from softq.searching.judges import Said, judge, judged
from softq.searching.opened import Opened
from softq.searching.prompts import Prompt
from softq.searching.run import Method
from softq.worlds.guidebook import guidebook


def said(text: str, prompt: str = "p", tokens: tuple[int, ...] = (5, 2), ended: bool = True) -> Said:
    return Said(Prompt("here:1", prompt, torch.tensor([4, 9])), text, Answer(0, 0, tokens, ended, 0.0, -1.0))


def test_what_samples_cost_is_what_the_search_counts() -> None:
    assert spent([(5, 6, 2), (5, 7, 2), (5, 6, 2), (8,)]) == [2, 3, 3, 3]
    loaded = load(tiny("llama", vocab_size=7), None, tokenizer=tokenizer())
    for n in (1, 3, 8):
        on = Heard({"policy": loaded.policy}, [torch.tensor([3, 5])], Limits(6, frozenset({2})), seed=1)
        (answers,) = DECODERS["sample"](on, n=n)
        assert on.evaluations == spent([answer.tokens for answer in answers])[-1]


def test_controls_spend_no_more_and_take_any_or_the_likeliest() -> None:
    one = [_Sample((5, 6, 2), -3.0, 1.0), _Sample((5, 7, 2), -1.0, 4.0), _Sample((9, 9, 9, 2), -0.5, 10.0)]
    other = [_Sample((5,) * 9, -1.0, 2.0), _Sample((6,) * 9, -0.5, 8.0), _Sample((7,) * 9, -4.0, 9.0)]
    random, likeliest = _controls([one, other], 3.0)
    assert (random.name, likeliest.name) == ("random", "likeliest")
    assert random.reward.tolist() == [2.5, 2.0]  # the first two of one, and one of the other although it costs more
    assert likeliest.reward.tolist() == [4.0, 2.0]
    assert (random.samples, random.evaluations) == (1.5, (3 + 8) / 2)
    assert _controls([one, other], 100.0)[1].reward.tolist() == [10.0, 8.0]


def test_figures_are_differences_a_prompt() -> None:
    rows = tuple({"tokens": n, "ended": n > 1, "logp": -1.0, "ref_logp": -2.0 - n} for n in (1, 2, 3))
    arm = Arm("beam:2", Method("beam", DECODERS["beam"], {"beams": 2}), rows, np.array([1.0, 2.0, 6.0]), 40.0, 0.5)
    control = Control("random", np.array([0.0, 2.0, 1.0]), 1.5, 39.0)
    (row,) = figures(Comparison((arm,), ((control,),)))
    assert row["reward"]["mean"] == 3.0
    assert row["reward"]["interval"][0] < 3.0 < row["reward"]["interval"][1]
    assert row["controls"]["random"]["above_it"]["mean"] == 2.0
    assert row["controls"]["random"]["reward"]["mean"] == 1.0
    assert (row["tokens"], row["ended"], row["log_ratio"]) == (2.0, pytest.approx(2 / 3), 3.0)
    assert (row["evaluations"], row["seconds"], row["settings"]) == (40.0, 0.5, {"beams": 2})


def test_equal_answers_are_judged_once_and_numbers_are_checked() -> None:
    asked = []
    by = lambda some: asked.extend(each.text for each in some) or [float(len(each.text)) for each in some]  # noqa: E731
    assert judged(by, [said("a"), said("abc", tokens=(7,)), said("a")]) == [1.0, 3.0, 1.0]
    assert asked == ["a", "abc"]
    with pytest.raises(ValueError, match="the judge gave 2 numbers for 1 answers"):
        judged(lambda some: [1.0, 2.0], [said("a")])
    with pytest.raises(ValueError, match="the judge says nan of 'a'"):
        judged(lambda some: [float("nan")], [said("a")])


def test_the_world_judges(tmp_path: Path) -> None:
    world = guidebook(3)
    prompt = world.held_out[0]
    country, *_ = [word for word in prompt if (word, "dish") in world.facts]
    topic = next(topic for topic in ("dish", "river", "capital", "festival") if topic in prompt)
    right = f"The {topic} is {' '.join(world.facts[country, topic])} . Old maps agree ."
    (tmp_path / "demo.json").write_text(json.dumps({"seed": 3}))
    of: Opened = None  # pyright: ignore[reportAssignmentType]
    by = judge("world", of, str(tmp_path / "dpo"))
    asked = " ".join(prompt)
    assert by([said(right, asked), said("Old maps agree", asked), said("Old maps agree", asked, ended=False)]) == [
        pytest.approx(0.9),
        pytest.approx(-0.1),
        0.0,
    ]
    assert judge("world:3", of, "elsewhere")([said(right, asked)]) == [pytest.approx(0.9)]
    with pytest.raises(ValueError, match="here:1: no question of the guidebook world"):
        by([said(right, "What now ?")])
    with pytest.raises(ValueError, match="tells its seed; give world:SEED"):
        judge("world", of, "elsewhere/dpo")
    with pytest.raises(ValueError, match="expected a seed"):
        judge("world:x", of, "elsewhere/dpo")


def test_functions_judge_as_trls_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "def long(prompts, completions):\n    return [len(c) + 100 * len(p) for p, c in zip(prompts, completions)]\nno = 1\n"
    (tmp_path / "mine_judging.py").write_text(code)
    of: Opened = None  # pyright: ignore[reportAssignmentType]
    assert judge(f"{tmp_path}/mine_judging.py:long", of, "-")([said("abc", "pp")]) == [203]
    monkeypatch.syspath_prepend(str(tmp_path))
    assert judge("mine_judging:long", of, "-")([said("abc", "pp")]) == [203]
    for name, why in {
        f"{tmp_path}/mine_judging.py:no": "has no function 'no'",
        f"{tmp_path}/none.py:long": "No such file",
        "nowhere_at_all:long": "No module named",
        "nowhere_at_all": "no such directory; expected world, path.py:function",
    }.items():
        with pytest.raises(ValueError, match=why):
            judge(name, of, "-")


def test_a_reward_model_judges_the_very_tokens(policy: Path, reference: Path, tmp_path: Path) -> None:  # noqa: F811
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(reference, num_labels=1)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(policy).save_pretrained(tmp_path)
    loaded = load(str(policy), None)
    by = judge(str(tmp_path), Opened(loaded, (), frozenset(), 99, None, ()), str(policy))
    found = by([said("", tokens=(5, 11, 0)), said("", tokens=(7,))])
    with torch.no_grad():
        states = [
            model.model(torch.tensor([[4, 9, *tokens]])).last_hidden_state[0, -1] for tokens in ((5, 11, 0), (7,))
        ]
        expected = [float(model.score(state)) for state in states]
    assert found == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-2


def test_the_picture_is_where_the_numbers_are() -> None:
    points = [Point("<a>", 10, 1.0, (0.5, 1.5), "k"), Point("b", 1000, 3.0, (2.5, 3.5), "k"), Point("c", 100, 2.0)]
    text = compute_plot(points, [Curve("random", [(1000, 1.0), (10, 1.0)])], title="<t>", reward="r", compute="c")
    svg = ElementTree.fromstring(text)
    dots = [
        (float(dot.get("cx", 0)), float(dot.get("cy", 0))) for dot in svg.iter("{http://www.w3.org/2000/svg}circle")
    ]
    (ax, ay), (bx, by), (cx, cy) = dots
    assert cx == pytest.approx((ax + bx) / 2, abs=0.2)  # 100 is half way from 10 to 1,000
    assert cy == pytest.approx((ay + by) / 2, abs=0.2)
    assert ax < bx and ay > by  # noqa: PT018
    words = [each.text for each in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"<a>", "b", "c", "<t>", "random", "10", "100", "1,000"} <= {*words}


def test_names_of_points_at_one_place_stand_apart() -> None:
    points = [Point(f"a long name {n}", 100 + n, 1.0 + 0.001 * n, (0.9, 1.1)) for n in range(5)]
    text = compute_plot([*points, Point("far", 1, 0.0)], [], title="t", reward="r", compute="c")
    names = [each for each in ElementTree.fromstring(text) if (each.get("class") or "") == "name"]
    places = {(each.get("text-anchor"), each.get("y")) for each in names if each.text != "far"}
    assert len(places) == 5


def test_compare_end_to_end(policy: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:  # noqa: F811
    (tmp_path / "judges.py").write_text(
        "def short(prompts, completions):\n    return [-len(c.split()) for c in completions]\n"
    )
    given = jsonl(tmp_path / "prompts.jsonl", [{"prompt": text} for text in PROMPTS])
    out = tmp_path / "out"
    words = ["search", "--policy", str(policy), "--reference", str(reference), "--prompts", str(given)]
    words += [
        "--compare",
        "greedy,beam:3,best_of_n:4",
        "--judge",
        f"{tmp_path}/judges.py:short",
        "--max-new-tokens",
        "6",
    ]
    code, said, told = called([*words, "--output", str(out)], capsys)
    assert code == 0, told
    assert [line.split()[0] for line in said.splitlines()[:4]] == ["decoder", "greedy", "beam:3", "best_of_n:4"]
    found = json.loads((out / "comparison.json").read_text())
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [row["name"] for row in found["decoders"]] == ["greedy", "beam:3", "best_of_n:4"]
    assert found["decoders"][2]["settings"] == {"samples": 4, "n": 1, "temperature": 1.0}
    for row in found["decoders"]:
        own = [each for each in answers if each["decoder"] == row["name"]]
        assert [each["prompt"] for each in own] == PROMPTS
        assert [each["judged"] for each in own] == [-len(each["completion"].split()) for each in own]
        assert row["reward"]["mean"] == pytest.approx(np.mean([each["judged"] for each in own]))
        assert row["log_ratio"] == pytest.approx(np.mean([each["logp"] - each["ref_logp"] for each in own]))
        for control in row["controls"].values():
            assert control["evaluations"] <= row["evaluations"] or control["samples"] < 2
    ElementTree.fromstring((out / "comparison.svg").read_text())
    code, _, told = called([*words, "--output", str(out)], capsys)
    assert (code, "is there; name another, or --overwrite" in told) == (2, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--compare", "beam:3"], "--compare needs --judge"),
        (["--judge", "world"], "--judge is read with --compare only"),
        (["--compare", "greedy:3", "--judge", "world"], "greedy has no setting that is a number"),
        (["--compare", "beam:x", "--judge", "world"], "--beams 'x'"),
        (["--compare", "bean", "--judge", "world"], "no decoder 'bean'; did you mean beam?"),
        (["--compare", "beam:5,beam", "--judge", "world"], "names beam twice"),
        (["--compare", "beam", "--method", "beam"], "leave out --method"),
        (["--compare", "beam", "--beams", "3", "--judge", "world"], "takes one number a decoder, such as beam:5"),
        (["--compare", "beam", "--judge", "world", "--tree", "t.html"], "--tree draws one decoder's search"),
    ],
)
def test_mistakes_are_one_line(words: list[str], told: str, policy: Path, capsys: pytest.CaptureFixture) -> None:  # noqa: F811
    code, said, line = called(["search", "--policy", str(policy), "--prompt", "no", *words], capsys)
    assert (code, said) == (2, "")
    assert told in line
    assert line.count("\n") == 1
