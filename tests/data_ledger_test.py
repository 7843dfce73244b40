"""softq.data.ledger: every row and every token accounted for, in all and by source, and said in a few lines."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softq.data.encode import Account
from softq.data.example import Example
from softq.data.ledger import Ledger, place
from softq.data.rows import Dropped

EXAMPLE = Example("a.jsonl:1", "Q:", (" yes", " no"))
NOTHING = {"scored": 0, "context": 0, "cut": 0, "template_tail": 0, "dropped": 0}


def example(n: int, **more) -> Example:
    return Example(f"a.jsonl:{n}", f"Q{n}:", (" yes", " no"), **more)


def filled() -> Ledger:
    ledger = Ledger()
    first = Account(1234, 1000, 200, 30, 4, shared=100, completions=2, bos=True, one_bos=1, finished=1, compared=True)
    ledger.enter("a", example(1), first)
    ledger.enter("b", example(1), Account(6, 2, 4, completions=2, finished=2, merged=True, spelled=True))
    for n in range(7):
        ledger.enter("b", Dropped(f"b.json[{n}]", "too_long", "long"), Account(10, 10))
    ledger.enter("a", Dropped("a.jsonl:3", "bad_type"), Account())
    ledger.close()
    return ledger


def test_a_ledger_by_hand():
    names = [f"b.json[{n}]" for n in range(5)]
    a = {"in": 1234, "scored": 1000, "context": 200, "cut": 30, "template_tail": 4, "dropped": 0}
    b = {"in": 76, "scored": 2, "context": 4, "cut": 0, "template_tail": 0, "dropped": 70}
    assert filled().as_dict() == {
        "rows_in": 10,
        "rows_used": 2,
        "rows_dropped": {"too_long": 7, "bad_type": 1},
        "tokens": {name: a[name] + b[name] for name in a},
        "shared": 100,
        "merged": 1,
        "spelled": 1,
        "completions": 4,
        "bos": True,
        "one_bos": 1,
        "finished": 3,
        "compared": 1,
        "duplicates": 1,
        "examples": {"merged": ["a.jsonl:1"], "spelled": ["a.jsonl:1"], "too_long": names, "bad_type": ["a.jsonl:3"]},
        "sources": {
            "a": {"rows_in": 2, "rows_used": 1, "rows_dropped": {"bad_type": 1}, "tokens": a},
            "b": {"rows_in": 8, "rows_used": 1, "rows_dropped": {"too_long": 7}, "tokens": b},
        },
    }


def test_a_ledger_in_words():
    assert filled().lines() == [
        "rows        10 = 2 used + 8 dropped",
        "dropped     7 too_long: b.json[0], [1], [2], [3], [4], ...",
        "dropped     1 bad_type: a.jsonl:3",
        "by source   a 1 of 2, b 1 of 8",
        "tokens      1,310 = 1,002 scored + 204 context + 30 cut + 4 template_tail + 70 dropped",
        "shared      100 of them (8% of those of used rows) repeat a prompt and are computed once",
        "checked     4 completions, 3 with exactly one end token, 1 with exactly one BOS; "
        "1 rows against the tokenizer's own ids of the whole text",
        "duplicates  1 used rows, kept",
        "boundary    1 rows with a token across it, split there: a.jsonl:1",
        "special     1 rows spell a special token in their own text: a.jsonl:1",
    ]


def test_a_ledger_without_tokens():
    ledger = Ledger(tokenised=False)
    ledger.enter("a", EXAMPLE, Account())
    ledger.enter("a", Dropped("a.jsonl:2", "bad_type"), Account())
    ledger.close()
    assert ledger.lines() == [
        "rows        2 = 1 used + 1 dropped", "dropped     1 bad_type: a.jsonl:2", "duplicates  0 used rows, kept"
    ]  # fmt: skip
    written = ledger.as_dict()
    assert [written[name] for name in ("tokens", "shared", "merged", "spelled", "completions", "finished")] == [
        None
    ] * 6
    assert written["sources"]["a"]["tokens"] is None
    assert Ledger.of(written).lines() == ledger.lines()


def test_a_ledger_comes_back_from_json():
    for ledger in (filled(), Ledger()):
        again = Ledger.of(json.loads(json.dumps(ledger.as_dict())))
        assert again.as_dict() == ledger.as_dict()
        assert again.lines() == ledger.lines()
        again.close()


def test_a_loss_is_noticed():
    ledger = Ledger()
    ledger.enter("a", EXAMPLE, Account(5, 2, 2))
    with pytest.raises(AssertionError, match="the ledger lost tokens: 5 in"):
        ledger.close()
    with pytest.raises(AssertionError, match=r"the ledger lost rows: 1 in, 0 used, dropped \{\}"):
        Ledger(rows=1).close()
    ledger = filled()
    ledger.sources["b"].used += 1
    with pytest.raises(AssertionError, match="the ledger lost rows: 8 in, 2 used"):
        ledger.close()


def chat(content) -> Example:
    return Example("a:1", [{"role": "user", "content": "Q"}], ([{"role": "assistant", "content": content}],))


@pytest.mark.parametrize(("examples", "duplicates"), [
    ([example(1), example(2), example(3)], 0),
    ([example(1), example(1), example(1)], 2),
    ([example(1), example(2), example(1), example(2)], 2),
    ([EXAMPLE, EXAMPLE._replace(where="b:7", columns={"weight": (2.0,)}, other={"id": 1})], 1),  # the texts alone count
    ([EXAMPLE, EXAMPLE._replace(completions=(" no", " yes"))], 0),
    ([EXAMPLE, EXAMPLE._replace(prompt="Q: ", completions=("yes", " no"))], 0),
    ([chat("a"), chat("a"), chat("b"), chat(None)], 1),
    ([], 0),
])  # fmt: skip
def test_duplicates(examples, duplicates):
    ledger = Ledger()
    for one in examples:
        ledger.enter("a", one, Account())
    ledger.close()
    assert ledger.duplicates == duplicates


ACCOUNTS = st.builds(
    lambda scored, context, cut, tail: Account(scored + context + cut + tail, scored, context, cut, tail),
    *[st.integers(0, 50)] * 4,
)
ROWS = st.one_of(st.just(EXAMPLE), st.sampled_from(["too_long", "bad_type"]).map(lambda name: Dropped("a:1", name)))


@given(st.lists(st.tuples(st.sampled_from("abc"), ROWS, ACCOUNTS), max_size=20))
def test_sources_add_up_to_the_total(entries):
    ledger = Ledger()
    for entry in entries:
        ledger.enter(*entry)
    ledger.close()
    tallies = ledger.sources.values()
    assert ledger.rows == sum(tally.rows for tally in tallies) == len(entries)
    assert ledger.used == sum(tally.used for tally in tallies) == sum(row is EXAMPLE for _, row, _ in entries)
    assert ledger.tokens == {name: sum(tally.tokens[name] for tally in tallies) for name in ledger.tokens}
    assert ledger.tokens["dropped"] == sum(a.read for _, row, a in entries if row is not EXAMPLE)
    reasons = {reason: sum(tally.dropped.get(reason, 0) for tally in tallies) for reason in ledger.dropped}
    assert ledger.dropped == reasons
    assert sum(reasons.values()) + ledger.used == ledger.rows


@pytest.mark.parametrize(("where", "expected"), [
    ("pairs.jsonl:17", ("pairs.jsonl", 17)),
    ("pairs.json[16]", ("pairs.json", 16)),
    ("a:3/b[4].jsonl:5", ("a:3/b[4].jsonl", 5)),
    ("a\nb:1", ("a\nb", 1)),
    ("org/set[0]", ("org/set", 0)),
    ("pairs.jsonl", ("pairs.jsonl", None)),
])  # fmt: skip
def test_places(where, expected):
    assert place(where) == expected


def test_what_sharing_saves_is_a_share_of_the_tokens_that_are_used():
    ledger = Ledger(rows=2, used=1, dropped={"too_long": 1}, read=100, shared=10, examples={"too_long": ["a:2"]})
    ledger.tokens |= {"scored": 20, "context": 20, "dropped": 60}
    assert "shared      10 of them (25% of those of used rows) repeat a prompt and are computed once" in ledger.lines()
