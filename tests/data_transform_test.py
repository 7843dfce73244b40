"""softq.data.transform: small records by hand, then laws: nothing is lost, and chance depends on nothing but the seed."""

import itertools
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softq.data.example import Example, characters
from softq.data.rows import Dropped
from softq.data.transform import (
    best_of,
    demonstrations,
    flip,
    length_match,
    pairs_of,
    relabel,
    sample,
    sample_exactly,
    split,
    swap,
    unpair,
)

GONE = Dropped("a:9", "too_long")
PAIR = Example(
    "a:1",
    "p",
    ("good", "bad"),
    {"weight": (2.0,), "margin": (0.5,), "label_probability": (0.75,), "ref_logps": (-1.0, -2.0)},
    {},
    {"id": 7, "score_chosen": 9.0, "score_rejected": 3.0, "rejected-model": "m", "unchosen": 0},
)
GROUP = Example(
    "a:2", "p", ("x", "y", "z"), {"reward": (1.0, 3.0, 2.0), "ref_logps": (-1.0, -2.0, -3.0)}, {}, {"id": 8}
)
LABEL = Example("a:3", "p", ("x",), {"label": (1.0,), "weight": (2.0,)}, {"tools": ["t"]}, {"id": 9})


def group(*scores: float) -> Example:
    return Example("a:4", "p", tuple(f"c{i}" for i in range(len(scores))), {"reward": scores})


def pairs(n: int) -> list[Example]:
    return [Example(f"a:{i}", f"p{i % 7}", ("c" * (i % 5 + 1), "r" * (i % 3 + 1))) for i in range(n)]


def parts(records) -> tuple[list[Example], list[Dropped]]:
    records = list(records)
    return [r for r in records if isinstance(r, Example)], [r for r in records if isinstance(r, Dropped)]


def test_unpair_gives_the_chosen_as_good_and_the_rejected_as_bad():
    good, bad, gone = unpair([PAIR, GONE])
    other = {**PAIR.other, "margin": 0.5, "label_probability": 0.75}
    assert good == Example("a:1", "p", ("good",), {"weight": (2.0,), "ref_logps": (-1.0,), "label": (1.0,)}, {}, other)
    assert bad == Example("a:1", "p", ("bad",), {"weight": (2.0,), "ref_logps": (-2.0,), "label": (0.0,)}, {}, other)
    assert gone is GONE


def test_unpair_judges_a_group_at_the_threshold():
    labels = list(unpair([GROUP], threshold=2.0))
    assert [label.completions for label in labels] == [("x",), ("y",), ("z",)]
    assert [label.columns for label in labels] == [
        {"ref_logps": (-1.0,), "label": (0.0,)},
        {"ref_logps": (-2.0,), "label": (1.0,)},
        {"ref_logps": (-3.0,), "label": (0.0,)},  # 2 is not above 2
    ]
    assert [label.other for label in labels] == [{"id": 8, "score": score} for score in (1.0, 3.0, 2.0)]
    with pytest.raises(ValueError, match=r"^a:2: .*give the threshold"):
        list(unpair([GROUP]))


def test_best_against_worst():
    pair, middle = pairs_of([GROUP])
    scores = {"score_chosen": 3.0, "score_rejected": 1.0}
    assert pair == Example("a:2", "p", ("y", "x"), {"ref_logps": (-2.0, -1.0)}, {}, {"id": 8, **scores})
    assert middle == Dropped("a:2", "not_paired", field="completions[2]")


def test_all_pairs_in_which_the_scores_differ():
    found, gone = parts(pairs_of([group(1.0, 3.0, 1.0, 2.0), GONE], "all"))
    assert [pair.completions for pair in found] == [
        ("c1", "c0"),
        ("c3", "c0"),
        ("c1", "c2"),
        ("c1", "c3"),
        ("c3", "c2"),
    ]
    assert gone == [GONE]
    found, gone = parts(pairs_of([group(1.0, 3.0, 1.5)], "all", margin=1.5))
    assert [pair.completions for pair in found] == [("c1", "c0")]  # 3 - 1.5 is no more than 1.5
    assert gone == [Dropped("a:4", "not_paired", field="completions[2]")]


@pytest.mark.parametrize("how", ["best-worst", "all"])
def test_a_group_without_a_pair_is_dropped_whole(how):
    (gone,) = pairs_of([group(2.0, 2.0, 2.0)], how)
    assert (gone.where, gone.reason, gone.field) == ("a:4", "equal_scores", "")
    (gone,) = pairs_of([group(2.0, 2.5)], how, margin=1.0)
    assert gone.reason == "within_margin"
    assert gone.message == "the scores differ by 0.5; expected two that differ by more than 1"


def test_best_of_takes_the_first_of_equals():
    best, *gone = best_of([group(1.0, 3.0, 3.0)])
    assert best == Example("a:4", "p", ("c1",), {}, {}, {"score": 3.0})
    assert gone == [Dropped("a:4", "not_best", field=f"completions[{i}]") for i in (0, 2)]


def test_demonstrations_are_the_chosen():
    row, gone = demonstrations([PAIR._replace(other={"margin": "wide"})])
    other = {"margin": 0.5, "other_margin": "wide", "label_probability": 0.75}
    assert row == Example("a:1", "p", ("good",), {"weight": (2.0,), "ref_logps": (-1.0,)}, {}, other)
    assert gone == Dropped("a:1", "not_chosen", field="rejected")


def test_swap_turns_everything_that_has_a_side():
    columns = {"weight": (2.0,), "margin": (-0.5,), "label_probability": (0.25,), "ref_logps": (-2.0, -1.0)}
    other = {"id": 7, "score_rejected": 9.0, "score_chosen": 3.0, "chosen-model": "m", "unchosen": 0}
    assert swap(PAIR) == Example("a:1", "p", ("bad", "good"), columns, {}, other)
    assert swap(LABEL) == LABEL._replace(columns={"label": (0.0,), "weight": (2.0,)})


@pytest.mark.parametrize("example", [PAIR, LABEL])
def test_swapped_twice_is_the_same(example):
    assert swap(swap(example)) == example


def test_flip_tells_which():
    kept, turned = flip([PAIR, PAIR], 0.5, seed=4)
    assert kept == PAIR._replace(other={**PAIR.other, "flipped": False})
    assert turned == swap(PAIR)._replace(other={**swap(PAIR).other, "flipped": True})
    (again,) = flip([turned], 0.0, seed=1)
    assert (again.other["flipped"], again.other["other_flipped"]) == (False, True)


@pytest.mark.parametrize("transform", [flip, sample])
def test_a_share_is_the_same_however_the_stream_is_cut(transform):
    records = [*pairs(30), GONE, *pairs(30)]
    whole = list(transform(records, 0.3, seed=5))
    assert whole == list(transform(iter(records), 0.3, seed=5))
    for cut in (0, 1, 17, 31, 61):
        head, tail = transform(records[:cut], 0.3, seed=5), transform(records[cut:], 0.3, seed=5, start=cut)
        assert [*head, *tail] == whole
    assert whole != list(transform(records, 0.3, seed=6))
    assert whole[30] is GONE


def places(records) -> set[int]:
    return {i for i, r in enumerate(records) if isinstance(r, Example) and r.other.get("flipped", True)}


def test_a_share_is_about_that_share_and_grows():
    records, last = pairs(2000), set()
    for share in (0.0, 0.1, 0.5, 1.0):
        found = places(sample(records, share, seed=1))
        assert abs(len(found) - 2000 * share) <= 5 * (2000 * share * (1 - share)) ** 0.5
        assert last <= found
        last = found


def test_two_transforms_with_one_seed_are_independent():
    records = pairs(2000)
    flipped, sampled = places(flip(records, 0.5, seed=1)), places(sample(records, 0.5, seed=1))
    assert 400 < len(flipped & sampled) < 600


def test_exactly_n_in_their_order():
    records = [*pairs(20), GONE, *pairs(20)]
    last: set[int] = set()
    for n in (0, 1, 7, 40):
        found = list(sample_exactly(records, n, seed=2))
        assert len(found) == 41
        assert found[20] is GONE
        assert all(r == records[i] for i, r in enumerate(found) if isinstance(r, Example))
        assert len(places(found)) == n
        assert last <= places(found)
        last = places(found)
    with pytest.raises(ValueError, match="41 records were asked for and 40 are there"):
        sample_exactly(records, 41, seed=2)


def test_chance_is_the_same_in_every_process():
    assert sorted(places(sample(pairs(40), 0.2, seed=3))) == [7, 13, 18, 20, 21, 27, 39]
    program = "from softq.data.transform import *; from softq.data.example import Example as E;"
    program += "print([split(.5, seed=1)(E('', p, ())) for p in ['a', 'b', 'é', [{'role': 'user', 'content': 'a'}]]])"
    held = split(0.5, seed=1)
    prompts = ["a", "b", "é", [{"content": "a", "role": "user"}]]  # the order of a message's fields does not matter
    here = [held(Example("", prompt, ())) for prompt in prompts]
    for hashed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashed}
        said = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert said.stdout.strip() == str(here)


def test_split_never_separates_equal_prompts():
    held = split(0.3, seed=1)
    sides = {prompt: {held(e) for e in group} for prompt, group in by_prompt(pairs(70)).items()}
    assert all(len(side) == 1 for side in sides.values())
    texts = [Example("", "", (f"text {i}",)) for i in range(1000)]  # without a prompt each text is its own
    assert 230 < sum(map(held, texts)) < 370
    assert not any(map(split(0.0, seed=1), texts))
    assert all(map(split(1.0, seed=1), texts))


def by_prompt(examples):
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.prompt, []).append(example)
    return groups


def longer(examples) -> Counter:
    said = [tuple(map(characters, e.completions)) for e in examples]
    signs = [(chosen > rejected) - (chosen < rejected) for chosen, rejected in said]
    return Counter(signs)


def test_length_match_by_hand():
    lengths = [(9, 4), (9, 4), (4, 9), (9, 4), (5, 5), (0, 0), (99, 9)]
    records = [Example(f"a:{i}", "p", ("c" * c, "r" * r)) for i, (c, r) in enumerate(lengths)]
    found, gone = parts(length_match(records, seed=1))
    assert len(found) == 4  # one of each side, and the two of equal length; the last has no counterpart
    assert {"a:2", "a:4", "a:5"} < {example.where for example in found}
    assert {dropped.reason for dropped in gone} == {"length_matched"}
    assert "a:6" in {dropped.where for dropped in gone}


def test_length_counts_what_messages_say():
    call = {"role": "assistant", "content": None, "tool_calls": []}
    assert [characters(text) for text in ("", "ab", [{"role": "user", "content": "abc"}, call])] == [0, 2, 3]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60), st.integers(0, 5))
def test_length_match_balances(lengths, seed):
    records = [Example(f"a:{i}", "p", ("c" * c, "r" * r)) for i, (c, r) in enumerate(lengths)]
    found, gone = parts(length_match(records, seed=seed, width=0.5))
    assert longer(found)[1] == longer(found)[-1]
    assert longer(found)[0] == longer(records)[0]
    assert sorted([r.where for r in found + gone]) == sorted(r.where for r in records)
    assert parts(length_match(found, seed=seed, width=0.5))[0] == found


SCORES = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=6)


@given(SCORES, st.sampled_from(["best-worst", "all"]), st.sampled_from([0.0, 1.0]))
def test_every_completion_of_a_group_is_paired_or_dropped(scores, how, margin):
    found, gone = parts(pairs_of([group(*scores)], how, margin=margin))
    for pair in found:
        better, worse = (scores[int(completion[1:])] for completion in pair.completions)
        assert (pair.other["score_chosen"], pair.other["score_rejected"]) == (better, worse)
        assert better - worse > margin
    if how == "all":
        expected = [1 for a, b in itertools.combinations(scores, 2) if abs(a - b) > margin]
        assert len(found) == len(expected)
    assert len(found) == len({pair.completions for pair in found})
    paired = {completion for pair in found for completion in pair.completions}
    if not found:
        assert [dropped.reason for dropped in gone] == ["within_margin" if len(set(scores)) > 1 else "equal_scores"]
    else:
        assert len(gone) + len(paired) == len(scores)


@pytest.mark.parametrize("k", [2, 3, 5, 8])
def test_distinct_scores_make_all_pairs(k):
    assert len(list(pairs_of([group(*map(float, range(k)))], "all"))) == k * (k - 1) / 2


STREAMS = st.lists(st.sampled_from(["p", "q", "r", None]), max_size=20)


@given(STREAMS, st.floats(0, 1), st.integers())
def test_records_are_conserved(prompts, share, seed):
    stream = [GONE if p is None else PAIR._replace(where=f"a:{i}", prompt=p) for i, p in enumerate(prompts)]
    n = len([p for p in prompts if p is not None])
    for out in (
        flip(stream, share, seed=seed),
        sample(stream, share, seed=seed),
        sample_exactly(stream, n // 2, seed=seed),
    ):
        assert [r.where for r in out] == [r.where for r in stream]
    labels, gone = parts(unpair(stream))
    assert (len(labels), len(gone)) == (2 * n, len(stream) - n)
    rows, gone = parts(demonstrations(stream))
    assert (len(rows), len(gone)) == (n, len(stream))


@pytest.mark.parametrize(
    ("transform", "record", "expected"),
    [
        (unpair, LABEL, "a:3: the record is one of labels; to unpair, give pairs or groups"),
        (pairs_of, PAIR, "a:1: the record is one of pairs; to make pairs, give groups"),
        (best_of, PAIR, "a:1: the record is one of pairs; to take the best, give groups"),
        (demonstrations, GROUP, "a:2: the record is one of groups; to take demonstrations, give pairs"),
        (lambda r: flip(r, 1.0, seed=0), GROUP, "a:2: the record is one of groups; to swap, give pairs or labels"),
        (lambda r: length_match(r, seed=0), GROUP, "a:2: the record is one of groups; to match lengths, give pairs"),
        (unpair, Example("a:5", "p", ()), "a:5: the record is one of prompts; to unpair, give pairs or groups"),
        (unpair, Example("a:5", "p", ("s", "t"), {"step_label": (1.0, 0.0)}), "a:5: the record is one of steps; .*"),
    ],
)
def test_a_record_of_another_kind_is_refused_by_name(transform, record, expected):
    with pytest.raises(ValueError, match=f"^{expected}$"):
        list(transform([record]))


def test_settings_out_of_range_are_refused_at_once():
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="expected a number from 0 to 1"):
            sample([], wrong, seed=1)
    with pytest.raises(ValueError, match="expected one of best-worst, all"):
        pairs_of([], "first")
    with pytest.raises(ValueError, match="expected a number > 0"):
        length_match([], seed=1, width=0)


# Goals

SCORED = Example(
    "a:5",
    [{"role": "user", "content": "q"}],
    ([{"role": "assistant", "content": "good"}], [{"role": "assistant", "content": "bad"}]),
    {"weight": (2.0,), "margin": (0.5,)},
    {},
    {"score_chosen": 9.0, "score_rejected": 3.5},
)


def test_a_pair_with_scores_is_asked_for_both() -> None:
    asked, opposite = relabel([SCORED])
    assert isinstance(asked, Example)
    assert isinstance(opposite, Example)
    assert asked.prompt == [
        {"role": "system", "content": "Give an answer that scores 9; a better answer has a higher score."},
        {"role": "user", "content": "q"},
    ]
    assert opposite.prompt[0]["content"] == "Give an answer that scores 3.5; a better answer has a higher score."
    assert (asked.completions, opposite.completions) == (SCORED.completions, SCORED.completions[::-1])
    assert asked.columns == opposite.columns == {"weight": (2.0,)}  # the margin is of the judgement without a goal
    assert asked.other == {"score_chosen": 9.0, "score_rejected": 3.5, "margin": 0.5, "goal": 9.0}
    assert opposite.other == {"score_chosen": 3.5, "score_rejected": 9.0, "margin": 0.5, "goal": 3.5}
    assert SCORED.prompt == [{"role": "user", "content": "q"}]


@given(st.floats(-10, 10), st.floats(-10, 10))
def test_under_its_goal_the_chosen_completion_is_the_better_one(one: float, other: float) -> None:
    """R(x, y, g) = -(g - r(y))² is 0 for it and less for the other."""
    made = list(relabel([SCORED._replace(other={"score_chosen": one, "score_rejected": other})]))
    same = f"{one:g}" == f"{other:g}"
    for record in made if one > other and not same else []:
        assert isinstance(record, Example)
        gap = [record.other["goal"] - record.other[f"score_{side}"] for side in ("chosen", "rejected")]
        assert gap[0] == 0
        assert gap[1] != 0
    if one <= other or same:
        reason = "equal_scores" if same else "scores_contradict"
        assert [record.reason for record in made if isinstance(record, Dropped)] == [reason]


@pytest.mark.parametrize(
    "scores", [{"score_chosen": 9.0}, {"score_rejected": 3.0}, {"score_chosen": "9", "score_rejected": 3.0}, {}]
)
def test_a_pair_without_both_scores_is_left_out(scores: dict) -> None:
    """Also where one of two is there."""
    assert [r.reason for r in relabel([SCORED._replace(other=scores)]) if isinstance(r, Dropped)] == ["no_scores"]


def test_scores_that_are_said_alike_make_no_goals() -> None:
    """One prompt would ask for both completions."""
    near = SCORED._replace(other={"score_chosen": 7.00000011, "score_rejected": 7.0})
    assert [r.reason for r in relabel([near]) if isinstance(r, Dropped)] == ["equal_scores"]


def test_where_a_goal_stands() -> None:
    goal = "Give an answer that scores 9; a better answer has a higher score."
    system = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q", "name": "n"}]

    def asked(prompt, at="system"):
        record = next(iter(relabel([SCORED._replace(prompt=prompt)], at)))
        return record.prompt if isinstance(record, Example) else record.reason

    assert asked("q") == asked("q", "user") == f"{goal}\n\nq"
    assert asked(system) == [{"role": "system", "content": f"Be kind.\n\n{goal}"}, system[1]]
    assert asked(system, "user") == [system[0], {"role": "user", "content": f"{goal}\n\nq", "name": "n"}]
    assert asked(system[:1], "user") == "no_user_message"
    with pytest.raises(ValueError, match="expected one of system, user"):
        list(relabel([SCORED], "end"))


def test_log_probs_of_another_prompt_are_not_kept() -> None:
    with pytest.raises(ValueError, match="a:1: ref_logps are of the prompt without a goal"):
        list(relabel([PAIR]))
