"""softq.data.check: what it finds against numbers by hand, and near-duplicates against sets of words by brute force."""

import math
import random
from itertools import combinations

import numpy as np
import pytest
from depth import tries
from hypothesis import given, settings
from hypothesis import strategies as st

from softq.data import intervals, near, wording
from softq.data.check import check
from softq.data.example import Example

Z = 1.959964
WORDS = "the a cat dog sat ran on under mat tree while rain wind fell blew and then nobody came home again".split()


def pair(where, prompt, chosen, rejected, **columns):
    return Example(where, prompt, (chosen, rejected), {name: (value,) for name, value in columns.items()})


def label(where, prompt, completion, good):
    return Example(where, prompt, (completion,), {"label": (float(good),)})


def group(where, prompt, **scores):
    """Completions by name, each with a score."""
    return Example(where, prompt, tuple(scores), {"reward": tuple(map(float, scores.values()))})


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


def found(name, examples, kind="pairs", against=()):
    return [finding for finding in check(examples, kind, against) if finding.check == name]


def one(name, examples, kind="pairs", against=()):
    (finding,) = found(name, examples, kind, against)
    assert "\n" not in finding.message
    return finding


def said(n, seed):
    """A text of n words that occur in no text of another seed."""
    chance = random.Random(seed)
    return " ".join(f"{chance.choice(WORDS)}{seed}x{chance.randrange(10**6)}" for _ in range(n))


# near-duplicates


def test_shingles_are_word_3_grams_without_case_and_punctuation():
    assert near.shingles("a b c").tolist() == [3166340710]  # the same on every machine
    assert len(near.shingles("The cat, SAT on")) == 2
    assert near.shingles("The cat, SAT on").tolist() == near.shingles("the  cat sat\non!").tolist()
    assert len(near.shingles("a b a b a b")) == 2  # aba, bab
    assert near.shingles("Yes!").tolist() == near.shingles("yes").tolist()
    assert len(near.shingles("yes")) == len(near.shingles("Yes, sir")) == len(near.shingles("?!")) == 1
    assert near.shingles("yes").tolist() != near.shingles("yes sir").tolist()
    assert not near.shingles(" \n").size


def test_text_without_white_space_is_cut_into_5_characters():
    assert len(near.shingles("你好世界" * 10)) == 4
    assert near.jaccard(near.shingles("今天天气很好我们去公园"), near.shingles("今天天气很好我们去学校")) == 5 / 9
    assert len(near.shingles("aaaaaaaaaaaaaaa bbbbbbbbbbbbbbbb")) == 7  # 32 > 15 * 2: aaaaa, five with the space, bbbbb


def test_jaccard_of_sets():
    a, b = np.array([1, 2, 3, 4], np.uint32), np.array([3, 4, 5], np.uint32)
    assert near.jaccard(a, b) == 2 / 5
    assert near.jaccard(a, a) == 1
    assert near.jaccard(a, a[:0]) == 0
    assert near.jaccard(a[:0], a[:0]) == 1


def test_signatures_estimate_the_jaccard_index():
    shared, estimates = 40, []
    for seed in range(40):  # 40 of 80 shingles: J = 1/2, so 4,000 hashes agree half the time, ± 0.008
        numbers = np.random.default_rng(seed).choice(1 << 32, 80, replace=False).astype(np.uint32)
        sets = near.Sets()
        sets.add(np.sort(numbers[:60]))
        sets.add(np.sort(numbers[60 - shared :]))
        a, b = sets.signatures()
        estimates.append((a == b).mean())
    assert abs(np.mean(estimates) - 0.5) < 0.03
    assert np.std(estimates) < 0.1


def test_signatures_of_chunks_and_of_empty_sets(monkeypatch):
    sets, chance = near.Sets(2), random.Random(1)
    for _ in range(50):
        sets.add(*(near.shingles(" ".join(chance.choices(WORDS, k=chance.choice([0, 0, 3, 30])))) for _ in range(2)))
    whole = sets.signatures()
    monkeypatch.setattr(near, "CHUNK", 7)
    assert (sets.signatures() == whole).all()
    for item in range(50):
        alone = near.Sets()
        alone.add(sets.whole(item))
        assert (alone.signatures()[0] == whole[item]).all()


def variants(seed):
    """Texts of which some are others with a few words changed."""
    chance = random.Random(seed)
    texts = []
    for _ in range(12):
        text = chance.choices([f"{word}{i}" for i in range(5) for word in WORDS], k=60)
        for _ in range(chance.randint(1, 6)):
            text = [chance.choice(WORDS) if chance.random() < 0.03 else word for word in text]
            texts.append(" ".join(text))
    return chance.sample(texts, len(texts))


def alike(a, b):
    a, b = ({tuple(words[i : i + 3]) for i in range(len(words) - 2)} for words in (a.split(), b.split()))
    return bool(a and b) and len(a & b) / len(a | b) >= 0.8


def components(n, edges):
    of = list(range(n))
    for a, b in edges:
        of = [of[a] if mark == of[b] else mark for mark in of]
    groups = [[i for i in range(n) if of[i] == mark] for mark in dict.fromkeys(of)]
    return sorted(group for group in groups if len(group) > 1)


@pytest.mark.parametrize("seed", range(8))
def test_near_duplicates_are_those_of_brute_force(seed):
    texts = ["", *variants(seed), " "]
    edges = [(a, b) for a, b in combinations(range(len(texts)), 2) if alike(texts[a], texts[b])]
    firsts = {text: i for i, text in reversed(list(enumerate(texts)))}
    expected = components(len(texts), [(a, b) for a, b in edges if {a, b} <= {*firsts.values()}])
    rows = [Example(str(i), text, ()) for i, text in enumerate(texts)]
    groups = one("near_duplicates", rows, "prompts").rows
    assert 2 < len(expected) < len(edges)
    assert [[int(row) for row in group] for group in groups] == expected


@pytest.mark.parametrize("seed", range(4))
def test_near_prompts_of_two_sets_are_those_of_brute_force(seed):
    texts = variants(seed)
    here, there = texts[::2], [text for text in texts[1::2] if text not in texts[::2]]
    edges = [(a, len(here) + b) for a, x in enumerate(here) for b, y in enumerate(there) if alike(x, y)]
    names = [*(f"h{i}" for i in range(len(here))), *(f"t{i}" for i in range(len(there)))]
    rows, against = [Example(names[i], text, ()) for i, text in enumerate(here)], []
    against = [Example(names[len(here) + i], text, ()) for i, text in enumerate(there)]
    finding = one("leakage", rows, "prompts", against)
    expected = components(len(names), edges)
    assert expected
    assert {frozenset(group) for group in finding.rows} == {frozenset(names[i] for i in g) for g in expected}
    assert finding.numbers == {"prompts": len(there), "equal": 0, "near": len({b for _, b in edges})}


def test_a_planted_near_duplicate_among_others():
    text = said(60, 0).split()
    near_text, far_text = text.copy(), text.copy()
    near_text[30] = "other"  # 58 3-grams each, 3 of them new, and 3 of the completions: 55 + 3 / 61 + 3 = 0.91
    far_text[10] = far_text[20] = far_text[40] = "other"  # 49 + 3 / 67 + 3 = 0.74
    rows = [pair(f"f:{i}", said(30, i), said(15, 100 + i), said(15, 200 + i)) for i in range(1, 40)]
    rows += [pair(f"{name}", " ".join(words), "yes it is", "no it is not") for name, words in
             [("a", text), ("b", near_text), ("c", far_text)]]  # fmt: skip
    finding = one("near_duplicates", rows)
    assert finding.rows == (("a", "b"),)
    assert finding.numbers == {"rows": 2, "groups": 1}
    assert "2 of 42 rows (4.8%)" in finding.message


def test_other_completions_of_one_long_prompt_are_no_near_duplicates():
    prompt = said(200, 1)
    rows = [pair("a", prompt, said(9, 2), said(9, 3)), pair("b", prompt, said(9, 4), said(9, 5))]
    assert not found("near_duplicates", rows)
    assert one("near_duplicates", [*rows, pair("c", prompt + " so", *rows[0].completions)]).rows == (("a", "c"),)


def test_exact_duplicates_are_a_finding_of_their_own():
    text = said(20, 1)
    rows = [pair("a", text, "x", "y"), pair("b", text, "y", "x"), pair("c", text, "x", "y"), pair("d", text, "x", "y")]
    assert one("exact_duplicates", rows).rows == (("a", "c", "d"),)
    assert one("exact_duplicates", rows).numbers == {"rows": 2, "groups": 1}
    assert one("near_duplicates", rows).rows == (("a", "b"),)  # the same words, another order
    assert not found("exact_duplicates", [pair("a", "p", "xy", "z"), pair("b", "p", "x", "yz")])
    assert not found("exact_duplicates", [label("a", "p", "c", True), label("b", "p", "c", False)], "labels")
    assert not found(
        "exact_duplicates", [pair("a", "p", "x", "y"), pair("b", user("p"), assistant("x"), assistant("y"))]
    )


def test_what_stands_in_many_rows_is_a_template_and_counts_for_nothing():
    template = said(90, 1)
    rows = [pair(f"f:{i}", f"{template} {said(6, 10 + i)}", "yes", "no") for i in range(21)]
    assert len(one("near_duplicates", rows[:20]).rows[0]) == 20  # 88 of 94 or more 3-grams
    assert not found("near_duplicates", rows)
    share = 21 * (88 + 2) / (21 * (94 + 2))  # of 94 3-grams in a prompt 88 are the template's, and yes and no are all
    assert one("repeated_text", rows).numbers["share"] == pytest.approx(share)
    again = pair("again", f"{rows[3].prompt} {said(1, 99)}", "yes", "no")  # 6 of 7 of the rest
    assert one("near_duplicates", [*rows, again]).rows == (("f:3", "again"),)
    others = [pair(f"g:{i}", said(20, 200 + i), said(5, 900 + i), said(5, 2000 + i)) for i in range(579)]
    assert len(one("near_duplicates", [*rows, *others]).rows[0]) == 21  # of 600: less than a twentieth
    assert one("near_duplicates", [*rows, *others]).level == "warning"
    assert (
        one("near_duplicates", [*rows[:6], *others]).level == "note"
    )  # 6 of 585 rows are in a group, 5 of them too many
    assert one("leakage", rows, against=[pair("e", f"{template} {said(6, 77)}", "yes", "no")]).numbers["near"] == 0


# labels


@pytest.mark.parametrize("form", [(str, str), (user, assistant)])
def test_pairs_that_contradict_each_other(form):
    ask, answer = form
    rows = [pair(where, ask(p), answer(c), answer(r)) for where, p, c, r in [
        ("1", "p", "A", "B"), ("2", "p", "B", "C"), ("3", "p", "B", "A"), ("4", "q", "B", "A"), ("5", "p", "A", "B"),
        ("6", "P", "B", "A"),
    ]]  # fmt: skip
    finding = one("opposite_labels", rows)
    assert (finding.level, finding.rows, finding.numbers) == ("warning", (("1", "3", "5"),), {"rows": 3, "groups": 1})
    assert not found("opposite_labels", [rows[i] for i in (0, 1, 3, 4, 5)])


def test_labels_that_contradict_each_other():
    rows = [
        label("1", "p", "A", True),
        label("2", "p", "B", False),
        label("3", "p", "A", False),
        label("4", "q", "B", 1),
    ]
    assert one("opposite_labels", rows, "labels").rows == (("1", "3"),)
    assert not found("opposite_labels", [*rows[:2], rows[3]], "labels")


def test_groups_that_contradict_each_other():
    rows = [
        group("1", "p", A=1, B=2, C=3),
        group("2", "p", C=5, D=1, A=5),
        group("3", "p", C=1, B=4),
        group("4", "p", A=7),
    ]
    assert one("opposite_labels", rows, "groups").rows == (("1", "3"),)  # a tie in 2 is no verdict
    assert not found("opposite_labels", [rows[0], rows[1]], "groups")


def test_balance_of_labels():
    def rows(good, bad):
        return [label(f"f:{i}", f"p{i}", f"c{i}", i < good) for i in range(good + bad)]

    finding = one("label_imbalance", rows(5, 5), "labels")
    half = Z * math.sqrt(0.25 / 10 + Z**2 / 400) / (1 + Z**2 / 10)
    assert finding.numbers == pytest.approx(
        {"labels": 10, "share": 0.5, "share_low": 0.5 - half, "share_high": 0.5 + half}
    )
    assert finding.message == "50.0% (23.7% to 76.3%) of 10 labels are good"
    assert finding.level == "note"
    assert one("label_imbalance", rows(9, 1), "labels").level == "note"  # 59.6 % to 98.2 %
    assert one("label_imbalance", rows(90, 10), "labels").level == "warning"
    assert one("label_imbalance", rows(10, 90), "labels").level == "warning"
    steps = [Example("s", "p", ("a", "b", "c", "d"), {"step_label": (1.0, 1.0, 1.0, 0.0)})]
    assert one("label_imbalance", steps, "steps").numbers["share"] == 0.75


def test_margins_against_the_order():
    rows = [
        pair("1", "p", "a", "b", margin=0.5),
        pair("2", "q", "a", "b", margin=-1),
        pair("3", "r", "a", "b", margin=0),
    ]
    assert one("margins", rows).rows == (("2",), ("3",))
    assert not found("margins", rows[:1])


# intervals and lengths


@pytest.mark.parametrize(("wins", "n"), [(0, 10), (3, 7), (17.5, 40), (40, 40)])
def test_wilson_bounds_are_where_the_normal_test_just_rejects(wins, n):
    value, low, high = intervals.share(wins, n)
    assert value == wins / n
    for bound in (low, high):
        assert (value - bound) ** 2 * n == pytest.approx(Z**2 * bound * (1 - bound), abs=1e-9)
    assert low <= value <= high
    assert low < high


def test_a_wilson_interval_from_the_literature():
    assert intervals.share(0, 10)[1:] == pytest.approx((0, 0.2775), abs=1e-4)  # Brown, Cai and DasGupta 2001: κ²/(n+κ²)


def test_effects_and_means_by_hand():
    half = Z * math.sqrt(6 / 9 + 1 / 12)
    assert intervals.effect(np.array([1.0, 2, 3]), np.array([2.0, 3, 4])) == pytest.approx((-1, -1 - half, -1 + half))
    assert intervals.paired_effect(np.array([1.0, 2, 3])) == pytest.approx((2, 2 - Z, 2 + Z))  # 1/3 + 4/6 = 1
    assert intervals.mean(np.array([1.0, 3, 5, 7])) == pytest.approx(
        (4, 4 - Z * math.sqrt(5 / 3), 4 + Z * math.sqrt(5 / 3))
    )
    assert intervals.paired_effect(np.array([2.0, 2.0])) is None
    assert intervals.effect(np.array([2.0]), np.array([2.0, 2.0])) is None
    assert intervals.mean(np.array([2.0])) is None


def test_rank_correlation_by_hand():
    assert intervals.rank_correlation(np.array([1, 5, 9]), np.array([2.0, 4, 400])) == pytest.approx(1)
    assert intervals.rank_correlation(np.array([1, 1, 2]), np.array([1, 2, 3])) == pytest.approx(
        1.5 / math.sqrt(1.5 * 2)
    )
    ranks = [1.5, 1.5, 3, 4], [1, 2, 3, 4]  # less 2.5: 1.5 + 0.5 + 0.25 + 2.25 = 4.5, of 4.5 and 5
    assert np.corrcoef(*ranks)[0, 1] == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert intervals.rank_correlation(np.array([7, 7, 8, 9]), np.arange(4)) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert intervals.rank_correlation(np.array([]), np.array([])) is None
    assert intervals.rank_correlation(np.array([3, 3]), np.array([1, 2])) is None
    assert intervals.rank_correlation(np.array([3]), np.array([1])) is None


def test_the_interval_as_a_whole_is_beyond():
    assert intervals.Interval(0.7, 0.6, 0.8).beyond(0.5, 0.05)
    assert intervals.Interval(0.3, 0.2, 0.4).beyond(0.5, 0.05)
    assert not intervals.Interval(0.7, 0.54, 0.86).beyond(0.5, 0.05)


def of_lengths(*lengths):
    return [pair(f"f:{i}", f"p{i}", "w " * a, "v " * b) for i, (a, b) in enumerate(lengths)]


def test_length_of_pairs():
    finding = one("length_bias", of_lengths((3, 1), (5, 2), (4, 4), (1, 2)))  # +2, +3, 0, -1: 2.5 of 4
    sd = math.sqrt((1 + 4 + 1 + 4) / 3)
    expected = {"share": 0.625, "mean": 1, "median": 1, "effect": 1 / sd}
    assert {name: finding.numbers[name] for name in expected} == pytest.approx(expected)
    assert finding.numbers["share_low"] == pytest.approx(intervals.share(2.5, 4).low)
    half = Z * math.sqrt(1 / 4 + (1 / sd) ** 2 / 8)
    assert finding.numbers["effect_high"] - finding.numbers["effect"] == pytest.approx(half)
    assert finding.level == "note"
    assert "62.5%" in finding.message
    assert "+1.0 words on average" in finding.message


def test_a_length_bias_of_pairs_is_a_warning_either_way():
    chance = random.Random(1)
    rows = [(chance.randint(5, 20), chance.randint(5, 20)) for _ in range(300)]
    assert one("length_bias", of_lengths(*rows)).level == "note"
    assert one("length_bias", of_lengths(*((max(row), min(row)) for row in rows))).level == "warning"
    assert one("length_bias", of_lengths(*((min(row), max(row)) for row in rows))).level == "warning"
    often = [(2, 1)] * 130 + [(1, 3)] * 70  # 65 % (58 % to 71 %), by -0.05 words where 1.4 is the sd
    assert one("length_bias", of_lengths(*often)).level == "warning"
    assert one("length_bias", of_lengths(*((b, a) for a, b in often))).level == "warning"
    rare = [(1, 2), (2, 1)] * 100 + [(40, 1)] * 40  # 58 %, by 6 words, where 14 is the sd
    assert one("length_bias", of_lengths(*rare)).level == "warning"


def test_text_without_white_space_is_measured_in_characters():
    finding = one("length_bias", [pair("f:1", "问", "好" * 40, "好" * 30)])
    assert finding.numbers["mean"] == 10
    assert "characters" in finding.message


def test_length_of_labels():
    rows = [
        label(f"f:{i}", f"p{i}", "w " * n, good)
        for i, (n, good) in enumerate([(2, 1), (3, 1), (4, 1), (1, 0), (2, 0), (3, 0)])
    ]
    finding = one("length_bias", rows, "labels")
    half = Z * math.sqrt(6 / 9 + 1 / 12)
    expected = {"mean": 1, "median": 1, "effect": 1, "effect_low": 1 - half, "effect_high": 1 + half}
    assert finding.numbers == pytest.approx(expected)
    assert finding.level == "note"
    assert (
        one("length_bias", [row._replace(prompt=f"{i}") for i in range(20) for row in rows], "labels").level
        == "warning"
    )
    assert not found("length_bias", rows[:3], "labels")


def test_length_of_groups():
    rows = [
        Example("1", "p", ("a", "a a", "a a a"), {"reward": (1.0, 2.0, 3.0)}),  # 1
        Example("2", "q", ("a", "a a", "a a a"), {"reward": (2.0, 2.0, 9.0)}),  # √3/2
        Example("3", "r", ("a", "a b", "a b c"), {"reward": (2.0, 2.0, 2.0)}),  # none
    ]
    finding = one("length_bias", rows, "groups")
    values = np.array([1, math.sqrt(3) / 2])
    half = Z * values.std(ddof=1) / math.sqrt(2)
    assert finding.numbers == pytest.approx(
        {"rank_correlation": values.mean(), "rank_correlation_low": values.mean() - half,
         "rank_correlation_high": values.mean() + half}
    )  # fmt: skip
    assert finding.level == "warning"
    assert not found("length_bias", rows[1:], "groups")  # one value has no interval


# leakage


def test_prompts_that_stand_in_the_evaluation_too():
    shared = said(30, 1)
    rows = [pair("t:1", f"{shared} one", "a", "b"), pair("t:2", "Who  is it?", "a", "b"), pair("t:3", "who is IT?", "c", "d"),
            pair("t:4", "", "a", "b")]  # fmt: skip
    against = [Example("e:1", user("who is it?"), ()), Example("e:2", "why?", ()), Example("e:3", f"{shared} two", ()),
               Example("e:4", " ", ())]  # fmt: skip
    finding = one("leakage", rows, against=against)
    assert finding.rows == (("t:2", "t:3", "e:1"), ("t:1", "e:3"))
    assert finding.numbers == {"prompts": 3, "equal": 1, "near": 1}
    assert finding.level == "warning"
    own = [Example(f"e:{i}", f"{said(30, 2)} {i}", ()) for i in range(3)]  # alike, but in the evaluation only
    assert one("leakage", rows, against=own).rows == ()
    clean = one("leakage", rows, against=against[1:2])
    assert (clean.level, clean.rows) == ("note", ())
    assert not found("leakage", rows)


# texts


def test_a_prompt_leaks_into_a_completion():
    asked = "What is the capital of France?"
    rows = [
        pair("begins", asked, f" {asked} Paris.", "Paris."),
        pair("contains", user(asked), assistant("Paris."), assistant(f"You asked: {asked}")),
        pair("turn", f"\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: {asked}\n\nAssistant:", f" {asked}", " Paris"),
        pair("header", asked, "Assistant: Paris", "Paris, I: think"),
        pair("short", "Paris?", "Paris? Yes.", "No."),
        pair("clean", asked, "Paris is the capital of France.", "My assistant: Paris"),
    ]
    begins, contains, header = found("prompt_leak", rows)
    assert (begins.level, begins.rows) == ("warning", (("begins",), ("turn",)))
    assert (contains.level, contains.rows) == ("note", (("contains",),))
    assert (header.level, header.rows) == ("warning", (("header",),))


@pytest.mark.parametrize(("text", "script"), [
    ("Good morning to you", "Latin"), ("Schöne Grüße überall", "Latin"), ("Доброе утро вам", "Cyrillic"),
    ("今天天气很好我们去公园吧", "Han"), ("東京都庁舎は新宿区にある", "Kana"), ("좋은 아침입니다 여러분", "Hangul"),
    ("صباح الخير جميعا", "Arabic"), ("בוקר טוב לכולם", "Hebrew"), ("Καλημέρα σε όλους", "Greek"),
    ("सुप्रभात आप सब लोगों को नमस्कार", "Devanagari"), ("สวัสดีตอนเช้าทุกคน", "Thai"), ("ＡＢＣＤＥＦＧＨＩＪＫ", "Latin"),
    ("ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ᏣᎳᎩ", "other"), ("12345 67890 !?", ""), ("only nine", ""),
])  # fmt: skip
def test_the_script_of_a_text(text, script):
    assert wording.script(wording.letters(text)) == script


def test_letters_are_counted_by_script():
    assert wording.letters("Hi, Мир 3!") == {"Latin": 2, "Cyrillic": 3}
    assert wording.letters("a[b]{c}") == {"Latin": 3}
    assert wording.letters("") == {}


def test_scripts_of_rows():
    english, russian, system = (
        "Good morning to you all",
        "Доброе утро всем вам",
        {"role": "system", "content": "a b " * 99},
    )
    rows = [
        pair("same", english, english, english + "!"),
        pair("both", english, russian, russian + "!"),
        pair("one", russian, russian, english),
        pair("short", russian, "да", "no"),
        pair("system", [system, *user(russian)], assistant(russian), assistant(russian + "!")),
    ]
    of_prompt, of_completions, table = found("scripts", rows)
    assert of_prompt.rows == (("both",), ("one",))
    assert (of_completions.level, of_completions.rows) == ("warning", (("one",),))
    assert table.numbers == {"Cyrillic": 4, "Latin": 1}
    assert table.message == "rows by their main script: Cyrillic 4, Latin 1"


def test_markers_in_messages():
    rows = [
        pair("1", user("[INST] Hi [/INST]"), assistant("Hello"), assistant("Go")),
        pair("2", user("<|im_start|>user\nHi<|im_end|>"), assistant("Hello"), assistant("Go</s>")),
        pair("3", user("a < b, list[INSTANCE], ### Instructions"), assistant("Hello"), assistant("\n\nHuman: Go")),
    ]
    prompts, completions = found("template_text", rows)
    assert prompts.rows == (("1",), ("2",))
    assert prompts.numbers == {"rows": 2, "llama2": 1, "chatml": 1}
    assert completions.rows == (("2",), ("3",))
    assert completions.numbers == {"rows": 2, "ends": 1, "hh": 1}
    assert {prompts.level, completions.level} == {"warning"}


def test_strings_bring_one_template_or_none():
    hh = [pair(f"f:{i}", f"\n\nHuman: {i}\n\nAssistant:", "a", "b") for i in range(3)]
    chatml, bare = pair("f:8", "<s><|im_start|>user\n1<|im_end|>", "a", "b"), pair("f:9", "9", "a", "b")
    (note,) = found("template_text", hh)
    assert (note.level, note.numbers) == ("note", {"hh": 3})
    mixed = one("mixed_templates", [*hh, chatml, bare])
    assert (mixed.level, mixed.rows) == ("warning", (("f:8",), ("f:9",)))
    assert mixed.numbers == {"hh": 3, "chatml": 1, "no template": 1}
    assert not found("mixed_templates", [bare]) + found("template_text", [bare])
    text = Example("t", "", ("### Instruction:\nGo\n### Response:\nNo",))
    assert one("template_text", [text], "rows").level == "note"


@pytest.mark.parametrize(("text", "fault"), [
    ("{{name}}, hello", True), ("{% if a %}x{% endif %}", True), ("a {{ user.name }} b", True),
    (r"\frac{{1}}{2}", False), ('{"a": {"b": 1}}', False), ("a {b} c", False), ("100 {% of 5", False),
])  # fmt: skip
def test_a_template_that_was_not_filled_in(text, fault):
    assert bool(found("placeholders", [pair("1", text, "a", "b")])) == fault
    assert bool(found("placeholders", [pair("1", "a", "b", text)])) == fault


@pytest.mark.parametrize(("prompt", "completion", "fault"), [
    ("p", "<think>so</think>yes", False), ("p", "<think>so", True), ("p", "so</think>yes", True),
    ("p", "</think>so<think>", True), ("p", "<think><think>so</think></think>", True), ("p<think>\n", "so</think>yes", False),
    ("p<think>\n", "yes", True), ("use <think> tags", "yes", False), ("p", "<think>a</think><think>b</think>", False),
])  # fmt: skip
def test_think_blocks(prompt, completion, fault):
    assert bool(found("unbalanced_think", [Example("1", prompt, (completion,))], "rows")) == fault


def test_empty_and_equal_completions():
    rows = [pair("1", "p", "a", " a\n"), pair("2", "p", "a", "A"), pair("3", "p", " ", "a"), pair("4", "p", "", " ")]
    assert one("equal_completions", rows).rows == (("1",), ("4",))
    assert one("empty_completions", rows).rows == (("3",), ("4",))
    call = [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}]
    assert not found("empty_completions", [pair("5", user("p"), call, assistant("a"))])
    groups = [
        group("1", "p", a=1, b=1),
        group("2", "p", a=1, b=2),
        Example("3", "p", ("a", "b", "a"), {"reward": (1.0, 2.0, 1.0)}),
    ]
    assert one("equal_scores", groups, "groups").rows == (("1",),)
    assert one("equal_completions", groups, "groups").rows == (("3",),)
    assert not found("equal_completions", [Example("1", "p", ("a", "a"))], "steps")


# laws

KINDS = {"pairs": 2, "groups": 3, "labels": 1, "rows": 1, "prompts": 0, "steps": 2}
COLUMNS = {"groups": "reward", "labels": "label", "steps": "step_label"}
TEXTS = st.text(st.characters()) | st.sampled_from(
    ["<think>", "{{a}}", "你好" * 20, "\n\nHuman: a\n\nAssistant:", "\ud800", "w " * 9]
)


@st.composite
def data(draw):
    kind = draw(st.sampled_from(sorted(KINDS)))
    form = draw(st.sampled_from([str, assistant]))
    texts = draw(st.lists(st.lists(TEXTS, min_size=1 + KINDS[kind], max_size=1 + KINDS[kind]), max_size=5))
    scores = st.lists(st.sampled_from([0.0, 1.0]), min_size=KINDS[kind], max_size=KINDS[kind])
    return kind, [
        Example(f"f:{i}", form(prompt), tuple(map(form, answers)), {COLUMNS.get(kind, "none"): tuple(draw(scores))})
        for i, (prompt, *answers) in enumerate(texts)
    ]


@settings(max_examples=tries(60), deadline=None)
@given(data())
def test_any_text_is_checked_and_always_alike(kind_and_rows):
    kind, rows = kind_and_rows
    findings = check(iter(rows), kind, iter(rows[:2]))
    assert findings == check(rows, kind, rows[:2])
    names = {row.where for row in rows}
    for finding in findings:
        assert finding.level in {"note", "warning"}
        assert "\n" not in finding.message
        assert {row for group in finding.rows for row in group} <= names
        assert all(math.isfinite(number) for number in finding.numbers.values())


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_no_findings(kind):
    assert check([], kind) == []
    (finding,) = check([], kind, [Example("e", "Who?", ())])
    assert finding.numbers == {"prompts": 1, "equal": 0, "near": 0}


def test_one_clean_row_has_notes_only():
    findings = check([pair("1", "Who is there?", "It is I.", "It is me.")], "pairs")
    assert [(finding.check, finding.level) for finding in findings] == [("length_bias", "note"), ("scripts", "note")]
