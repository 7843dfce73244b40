"""The study of the family: its arms, labels, claims and pictures by hand, and a very small study through all of it."""

import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from calls import called

from softq.cli.study import POLICIES
from softq.mdp.readouts import log_prob
from softq.objectives import METHODS
from softq.records import Method, Readout, Term
from softq.studies import family as study
from softq.studies import small_model
from softq.studies.arms import BETAS, CERTAIN, LONG, NOISE, ROBUST, START, Arms, arms, trial
from softq.studies.by_seed import claim
from softq.studies.claims import claims, crossing, verdict
from softq.studies.family import family, file_of, read
from softq.studies.family_plot import Box, Point, Scale, Tag, picture, placed, scaled
from softq.studies.family_table import cell, document, markdown
from softq.studies.family_text import summary
from softq.studies.ground import Ground, Recipe, ground, labelled, prepare, with_scores
from softq.studies.seeds import Spread, spread
from softq.studies.side_by_side import side_by_side
from softq.studies.trial import Result, Trial, answered, compared, tried
from softq.training.events import Note, OutputError, RunError

TINY = Recipe(
    demonstrations=128,
    fine_tuning=2,
    pairs=40,
    batch=4,
    steps=2,
    long_steps=3,
    learning_rate=1e-2,
    samples=2,
    held=6,
    injected=4,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    directory = tmp_path_factory.mktemp("study")
    (directory / "models").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_model, "LONGEST", 5)
        prepare(directory, TINY, 3)
        return ground(directory, TINY, 3)


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_model, "LONGEST", 5)


def results(
    figures: Mapping[str, Mapping[str, list[float]]], **paths: list[list[dict]]
) -> dict[str, dict[int, Result]]:
    """Planted: {trial: {figure: [a value a seed]}}; the seeds are 0, 1, …"""
    planted = {}
    for name, told in figures.items():
        count = len(next(iter(told.values())))
        path = paths.get(name.split()[0], [[]] * count) if name.endswith("long") else [[]] * count
        planted[name] = {
            seed: Result({figure: numbers[seed] for figure, numbers in told.items()}, path[seed], 2.0)
            for seed in range(count)
        }
    return planted


def only(**trials: Trial) -> Arms:
    return Arms(dict(trials), {}, {}, {}, {})


def test_the_arms_are_whole() -> None:
    all_of_them = arms(POLICIES)
    assert list(all_of_them.default) == POLICIES
    assert all(trial == Trial(name) for name, trial in all_of_them.default.items())
    trials = all_of_them.all()
    assert len(trials) == len(set(trials)) == len({trial.name for trial in trials})
    for one in trials:
        assert isinstance(METHODS[one.method](**dict(one.settings)), Method), one.name
    for by_flips in all_of_them.noise.values():
        assert list(by_flips) == list(NOISE)
        assert [trial.flips for trial in by_flips.values()] == list(NOISE)
    for name, by_beta in all_of_them.beta.items():
        assert len(by_beta) == 4
        assert all_of_them.default[name] in by_beta.values(), (
            f"{name}: its default β is one of the four, and is not run twice"
        )


def test_six_losses_under_noise_and_six_methods_at_four_betas() -> None:
    assert len(ROBUST) == len(BETAS) == 6
    known = {*(method for method, _, _ in ROBUST.values()), *BETAS, *(method for method, _ in (*LONG, *CERTAIN))}
    assert known <= set(METHODS), "every method that an arm names is one"


def test_what_is_told_of_the_flips() -> None:
    told = arms(["dpo"]).noise["cdpo"]
    assert [dict(trial.settings) for trial in told.values()] == [
        {"beta": 1.0},
        {"beta": 1.0, "label_smoothing": 0.1},
        {"beta": 1.0, "label_smoothing": 0.2},
        {"beta": 1.0, "label_smoothing": 0.3},
    ]
    assert arms(["sft"]).all() == [Trial("sft")]


def test_settings_that_are_defaults_are_no_settings() -> None:
    assert trial("dpo", {"beta": 0.1}) == Trial("dpo")
    assert trial("dpo", {"beta": 0.3, "label_smoothing": 0.0}, 0.1).name == "dpo beta=0.3 flips=0.1"
    assert Trial("ipo", (), None, True).name == "ipo truth long"
    assert Trial("dpo", (("beta", 0.3), ("label_smoothing", 0.1))).label == "dpo, β 0.3, label_smoothing 0.1"


def test_more_flips_swap_the_same_labels_and_more(small: Ground) -> None:
    def swapped(flips: float) -> set[int]:
        pairs = zip(labelled(small, flips), small.crowd, strict=True)
        return {n for n, (pair, own) in enumerate(pairs) if pair.completions[0] is own.completions[1]}

    some, more = swapped(0.2), swapped(0.5)
    assert swapped(0.0) == set()
    assert some < more
    assert 0.05 < len(some) / 40 < 0.4 < len(more) / 40 < 0.7
    assert labelled(small, None) == list(small.truth)


def test_the_truth_takes_the_answer_with_more_right_names(small: Ground) -> None:
    tokenizer, world = small.loaded.tokenizer, small.world
    for pair in [*small.truth, *small.held]:
        right = []
        for ids, action, _ in pair.completions:
            words = tokenizer.convert_ids_to_tokens(ids.tolist())
            start = int(action.argmax()) + 1
            right.append(world.correct(tuple(words[:start]), tuple(words[start:-1])))
        assert right[0] > right[1]


def test_scores_mean_what_a_method_takes_them_for(small: Ground) -> None:
    pairs = labelled(small, 0.2)
    assert with_scores(pairs, "dpo", 0.2)[0].columns == {}
    assert with_scores(pairs, "sppo", 0.2)[0].columns == {"reward": (0.8, pytest.approx(0.2))}
    assert with_scores(pairs, "rebel", 0.2)[0].columns == {"reward": (pytest.approx(math.log(4)), 0.0)}
    assert with_scores(pairs, "rebel", 0.0)[0].columns == {"reward": (pytest.approx(math.log(99)), 0.0)}


def test_a_training_is_a_function_of_its_seed_and_starts_from_the_start(small: Ground) -> None:
    first = tried(small, Trial("dpo", (("beta", 1.0),)))
    other = tried(small, Trial("dpo", (("beta", 1.0),), flips=0.0))
    again = tried(small, Trial("dpo", (("beta", 1.0),)))
    assert not first.failed
    assert first.figures == again.figures
    assert first.figures != other.figures
    assert first.figures["kl"] > 0
    assert first.path == []


def test_a_long_training_is_measured_on_the_way(small: Ground) -> None:
    found = tried(small, Trial("sft", flips=None, long=True))
    assert [look["step"] for look in found.path] == [1, 2, 3]
    assert found.path[-1]["reward"] == found.figures["reward"]


def test_kept_log_probs_of_the_reference_change_nothing(small: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tried(small, Trial("dpo"))
    monkeypatch.setattr("softq.studies.trial._kept", lambda method: False)
    run_again = tried(small, Trial("dpo"))
    assert kept.figures == pytest.approx(run_again.figures, abs=1e-4)


def test_figures_by_hand(small: Ground) -> None:
    """Against the model's own forward: one row at a time, the loss of transformers, sums in float64."""
    tried(small, Trial("dpo", (("beta", 0.5),)))
    reference: Any = small.loaded.models["ref"]
    models: list[Any] = [small.loaded.policy.transformer, reference.transformer]
    gained, a_token, likelier = [], [], []
    for pair in small.held:
        sides = []
        for ids, action, _ in pair.completions:
            row, taken = torch.tensor(ids)[None], torch.tensor(action)
            with torch.no_grad():
                logp = [model(row).logits[0, :-1].double().log_softmax(-1) for model in models]
            told = [log_prob(those, row[0, 1:])[taken].sum().item() for those in logp]
            sides.append((told[0] - told[1], told[0], int(action.sum())))
        (chosen, here, n), (rejected, there, k) = sides
        gained.append((chosen, rejected))
        a_token.append(chosen / n - rejected / k)
        likelier.append(here > there)
    found = compared(small)
    assert found["chosen"] == pytest.approx(sum(c for c, _ in gained) / 6, abs=1e-4)
    assert found["margin"] == pytest.approx(sum(c - r for c, r in gained) / 6, abs=1e-4)
    assert found["margin_a_token"] == pytest.approx(sum(a_token) / 6, abs=1e-5)
    assert found["ranking"] == pytest.approx(sum(c > r for c, r in gained) / 6)
    assert found["likelier"] == pytest.approx(sum(likelier) / 6)


def test_the_fine_tuned_model_is_at_no_distance_from_itself(small: Ground) -> None:
    small.loaded.policy.load_state_dict(small.start)
    said = answered(small)
    assert said["kl"] == pytest.approx(0, abs=1e-6)
    assert 0 < said["length"] <= 6
    assert 0 <= said["cut"] <= 1


def test_teachers_are_two_dpo_models_on_opposite_labels(small: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that reads them sees that the one likes what the other dislikes."""
    seen = []
    contrast = Readout(
        "contrast",
        ("policy", "dpo", "reverse"),
        "log_probs",
        lambda m, a: log_prob(m["dpo"], a) - log_prob(m["reverse"], a),
    )

    def loss(scored, batch):  # type: ignore[no-untyped-def]
        sums = scored["contrast"].sum(-1).detach()
        seen.append((sums[batch.pairs.chosen] - sums[batch.pairs.rejected]).mean().item())
        return -scored["logp"].sum(-1)[batch.pairs.chosen]

    term = Term("taught", "pair", loss, lambda batch: torch.ones(len(batch.pairs.chosen)))
    monkeypatch.setitem(METHODS, "taught", lambda: Method((term,), (contrast,)))  # type: ignore[arg-type]
    before = set(small.loaded.models)
    assert not tried(small, Trial("taught")).failed
    assert seen
    assert min(seen) > 0
    assert set(small.loaded.models) == before


def test_a_loss_that_is_not_finite_is_a_result(small: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    term = Term(
        "bad",
        "pair",
        lambda scored, batch: scored["logp"].sum(-1)[batch.pairs.chosen] * math.inf,
        lambda b: torch.ones(4),
    )
    monkeypatch.setitem(METHODS, "bad", lambda: Method((term,)))  # type: ignore[arg-type]
    found = tried(small, Trial("bad"))
    assert "not finite" in found.failed
    assert found.figures == {}


def test_a_study_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, methods = tmp_path / "out", ["kto", "sft", "sppo"]
    done: list[str] = []

    def counted(on: Ground, one: Trial) -> Result:
        if len(done) == 1:
            done.append("killed")
            raise KeyboardInterrupt
        done.append(one.name)
        return tried(on, one)

    monkeypatch.setattr(study, "tried", counted)
    with pytest.raises(KeyboardInterrupt):
        list(family(out, [5], methods, TINY, processes=1))
    assert not (out / "family.json").exists()
    *said, last = list(family(out, [5], methods, TINY, processes=1))
    assert done == ["kto flips=0.2", "killed", "sft flips=0.2", "sppo flips=0.2"]
    assert Note("1 of 1 models fine-tuned, by an earlier run") in said
    assert isinstance(last, Note)
    table = (out / "family.json").read_text()
    list(family(out, [5], methods, TINY, processes=1))
    assert done[4:] == []
    assert (out / "family.json").read_text() == table
    file_of(out, Trial("sft"), 5).unlink()
    before = read(file_of(out, Trial("kto"), 5))
    list(family(out, [5], methods, TINY, processes=1))
    assert done[4:] == ["sft flips=0.2"]
    assert read(file_of(out, Trial("kto"), 5)) == before
    figures = [{**row, "seconds": 0} for row in json.loads(table)["trainings"]]
    assert [{**row, "seconds": 0} for row in json.loads((out / "family.json").read_text())["trainings"]] == figures
    assert "| sppo |" in (out / "family.md").read_text()
    assert not list(out.rglob("*partial*"))


def test_another_recipe_or_something_else_is_left_alone(tmp_path: Path) -> None:
    claim(tmp_path / "new", TINY, "family")
    claim(tmp_path / "new", TINY, "family")
    with pytest.raises(OutputError, match="holds another study"):
        claim(tmp_path / "new", TINY._replace(steps=3), "family")
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="no earlier study's"):
        claim(tmp_path, TINY, "family")


def test_jobs_side_by_side_are_each_done_once(tmp_path: Path) -> None:
    """mkdir of what is there is an error: so would be a job that two processes took, and so is the last one."""
    places = [tmp_path / str(n) for n in range(5)]
    with pytest.raises(RunError, match="ended with code 1"):
        list(side_by_side(Path.mkdir, [*places, tmp_path], 2))
    assert all(place.is_dir() for place in places)
    assert list(side_by_side(Path.mkdir, [], 2)) == []


def test_verdicts() -> None:
    def found(low: float, high: float) -> Spread:
        return Spread({}, (low + high) / 2, 0.0, (low, high))

    assert verdict(found(0.01, 2), 0.1) == "shows"
    assert verdict(found(-1, 0.09), 0.1) == "does not show"
    assert verdict(found(-1, 0.11), 0.1) == "unclear"
    assert verdict(found(0.01, 0.05), 0.1) == "shows"
    assert verdict(Spread({0: 1.0}, 1.0, None, None), 0.1) == "unclear"


def test_where_a_path_crosses() -> None:
    path = [(0.0, 1.0), (10.0, 1.5), (20.0, 2.5), (40.0, 2.0)]
    assert crossing(path, 1.5) == 10
    assert crossing(path, 2.0) == 15
    assert crossing(path, 2.6) == 80
    assert crossing(path, 0.5) == 0


def test_claims_on_planted_numbers() -> None:
    """robust beats dpo in every world, though worlds differ by more; dpop's chosen are less likely than at the start."""
    dpo, robust = Trial("dpo", (("beta", 1.0),)), Trial("robust", (("beta", 1.0), ("label_smoothing", 0.2)))
    planned = Arms(
        {"dpo": Trial("dpo"), "dpop": Trial("dpop")}, {"dpo": {0.2: dpo}, "robust": {0.0: dpo, 0.2: robust}}, {}, {}, {}
    )
    found = claims(
        results(
            {
                START: {"reward": [1.0, 1.5, 2.0]},
                dpo.name: {"reward": [1.1, 1.6, 2.1]},
                robust.name: {"reward": [1.2, 1.71, 2.19]},
                "dpo flips=0.2": {"chosen": [-1.0, -1.2, -0.9]},
                "dpop flips=0.2": {"chosen": [-0.4, -0.5, -0.3]},
            }
        ),
        planned,
    )
    assert [(claim.says, claim.verdict) for claim in found] == [
        ("robust beats dpo under flips", "shows"),
        ("dpop holds the chosen likelihood up", "does not show"),
        ("dpop holds the chosen likelihood up", "shows"),
    ]
    assert summary(found).splitlines() == [
        "- **Shows**: robust beats dpo under flips; dpop holds the chosen likelihood up (1 of 2).",
        "- **Does not show**: dpop holds the chosen likelihood up (1 of 2).",
    ]
    assert found[0].spread.values == pytest.approx({0: 0.1, 1: 0.11, 2: 0.09})
    assert found[1].spread.mean == pytest.approx(-0.4)
    assert found[2].spread.values == pytest.approx({0: 0.6, 1: 0.7, 2: 0.6})


def test_a_smaller_beta_is_better_until_it_collapses() -> None:
    by_beta = {beta: Trial("dpo", (("beta", beta),)) for beta in (3.0, 1.0, 0.1, 0.01)}
    rewards = {3.0: [1.0, 1.2], 1.0: [1.5, 1.7], 0.1: [1.4, 1.7], 0.01: [1.0, 1.3]}
    figures = {START: {"reward": [0.9, 1.1]}} | {
        trial.name: {"reward": rewards[beta]} for beta, trial in by_beta.items()
    }
    better, collapse = claims(results(figures), Arms({}, {}, {"dpo": by_beta}, {}, {}))
    assert better.measure == "reward at β = 1, the best smaller one, less at 3"
    assert better.spread.values == pytest.approx({0: 0.5, 1: 0.5})
    assert better.verdict == "shows"
    assert collapse.measure == "reward at β = 1, the best larger one, less at 0.01"
    assert collapse.spread.values == pytest.approx({0: 0.5, 1: 0.4})


def test_fewer_steps_are_counted_to_a_share_of_dpos_best() -> None:
    """From 1 to dpo's best of 2, 90 % is 1.9: dpo is there at step 40, the other at step 10; log2 of 4 is 2 halvings."""
    path = [[{"step": 10, "reward": 1.0}, {"step": 40, "reward": 1.9}, {"step": 50, "reward": 2.0}]] * 2
    quick = [[{"step": 10, "reward": 1.9}, {"step": 50, "reward": 1.2}]] * 2
    trials = {name: Trial(name, long=True) for name in ("dpo", "aligndistil")}
    figures = {START: {"reward": [1.0, 1.0]}} | {trial.name: {"reward": [2.0, 2.0]} for trial in trials.values()}
    (found,) = claims(results(figures, dpo=path, aligndistil=quick), Arms({}, {}, {}, trials, {}))
    assert found.spread.values == pytest.approx({0: 2.0, 1: 2.0})
    assert found.verdict == "shows"


def test_a_cell_has_the_interval_of_the_change() -> None:
    """Rewards 1.2 and 2.2 from 1.0 and 2.1: gains .2 and .1, deviation .0707, t(1) = 12.706, half the interval .635."""
    planted = results(
        {START: {"reward": [1.0, 2.1], "kl": [0.0, 0.0]}, "dpo flips=0.2": {"reward": [1.2, 2.2], "kl": [0.5, 0.7]}}
    )
    assert cell(planted, Trial("dpo"), "reward") == "1.70 ±0.64"
    assert cell(planted, Trial("dpo"), "kl") == "0.60 ±1.27"
    assert cell({**planted, "dpo flips=0.2": {0: Result({}, failed="no")}}, Trial("dpo"), "reward") == "–"


def test_tables_hold_what_was_found(small: Ground) -> None:
    figures = {name: [0.5, 0.6] for name in ("reward", "kl", "length", "chosen", "ranking", "auc")}
    planted = results({START: figures, "dpo flips=0.2": {**figures, "reward": [1.5, 1.8]}, "sft flips=0.2": figures})
    planted["sft flips=0.2"][1] = Result({}, failed="the gradient's norm is nan")
    planned = only(dpo=Trial("dpo"), sft=Trial("sft"))
    page = markdown(planted, planned, claims(planted, planned), TINY)
    assert "| dpo | 1.65 ±1.27 | 0.55 ±0.64 |" in page
    assert "sft flips=0.2, seed 1: the gradient's norm is nan" in page
    assert page.index("**margins**") < page.index("| dpo |") < page.index("**demonstrations**") < page.index("| sft |")
    told = json.loads(document(planted, [], TINY))
    assert told["seeds"] == [0, 1]
    rows = {row["trial"]: row for row in told["trainings"]}
    assert rows["dpo flips=0.2"]["reward"] == [1.5, 1.8]
    assert rows["sft flips=0.2"]["reward"] == [0.5, None]


def test_the_scale_of_the_picture() -> None:
    scale = Scale((0.1, 10.0), (1.0, 2.0))
    assert scale.at(0.1, 2.0) == pytest.approx((58, 110))
    assert scale.at(10.0, 1.0) == pytest.approx((918, 648))
    assert scale.at(1.0, 1.5) == pytest.approx((488, 379))
    assert scale.at(0.0, 1.0)[0] == pytest.approx(58)


def test_what_is_far_out_is_told_in_words() -> None:
    """The best gained 1: what lost more than 0.3 is far out, and what is twenty times as far as the median."""

    def at(name: str, x: float, y: float) -> Point:
        return Point(name, "margins", x, y, (x, x), (y, y))

    points = [
        at("dpo", 1.0, 2.0),
        at("ipo", 1.1, 0.71),
        at("slic", 1.0, 0.69),
        at("exo", 21.0, 1.5),
        at("dpop", 0.001, 1.0),
    ]
    scale, far = scaled(points, 1.0)
    assert [point.name for point in far] == ["slic", "exo"]
    assert scale.x == pytest.approx((0.05 / 1.2, 1.1 * 1.4))
    assert scale.y == pytest.approx((0.71 - 0.129, 2.0 + 0.129))


def test_labels_find_room() -> None:
    """Thirty marks in a heap the size of a few labels: no two names lie on one another."""
    turns = [n * 2.4 for n in range(30)]
    anchors = [
        (480 + 6 * math.sqrt(n) * math.cos(turn), 350 + 6 * math.sqrt(n) * math.sin(turn))
        for n, turn in enumerate(turns)
    ]
    boxes = placed([Tag(anchor, ("dpo_anchor",), "halo") for anchor in anchors])
    assert len(boxes) == 30
    hidden = sum(box.overlap(other) for n, box in enumerate(boxes) for other in boxes[:n])
    assert hidden == 0
    assert Box(0, 0, 4, 4).overlap(Box(3, 2, 9, 9)) == 2


def test_the_picture_is_whole() -> None:
    names = POLICIES
    figures = {START: {"reward": [1.4, 1.5, 1.6], "kl": [0.0] * 3}}
    for n, name in enumerate(names):
        figures[Trial(name).name] = {
            "reward": [1.5 + n / 100, 1.6 + n / 100, 1.75],
            "kl": [0.5 + n / 10, 0.6 + n / 10, 0.5],
        }
    figures[Trial(names[-1]).name]["reward"] = [-1.0, -1.0, -1.0]
    trials = only(**{name: Trial(name) for name in names})
    root = ET.fromstring(picture(results(figures), trials))
    space = "{http://www.w3.org/2000/svg}"
    texts = [str(node.text) for node in root.iter(f"{space}text")]
    assert all(texts.count(name) == 1 for name in names[:-1])
    assert f"Beyond the picture, reward at KL: {names[-1]} −1.00 at 3.7" in texts
    assert "the fine-tuned model, from which all start: 1.50" in texts
    assert root.attrib["aria-label"]


def test_one_line_for_each_mistake(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "mine.txt").write_text("x")
    for words, said in (
        (["family"], "--output"),
        (["nothing", "--output", "x"], "invalid choice"),
        (["family", "--output", "x", "--methods", "ipoo"], "did you mean ipo?"),
        (["family", "--output", "x", "--seeds", "a"], "whole numbers"),
        (["family", "--output", str(tmp_path / "mine.txt")], "is a file"),
        (["family", "--output", str(tmp_path)], "no earlier study's"),
    ):
        code, _, error = called(["study", *words], capsys)
        assert (code, error.count("\n")) == (2, 1), words
        assert said in error
    assert spread({0: 1.0}).interval is None
