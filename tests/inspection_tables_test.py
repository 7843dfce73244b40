"""The columns of a scored batch, against what the definitions give one row at a time."""

import math

import pytest
import torch
from torch import Tensor

import softq.inspection.pieces as pieces_module
import softq.mdp.reading as reading_module
from softq.inspection.columns import PAIRS, TOKENS, TOP
from softq.inspection.pieces import Pieces
from softq.inspection.tables import ches, completion_table, pair_table, readouts, shared, token_table
from softq.lm.score import score
from softq.mdp.reading import hidden_of, reading_of
from softq.records import Tokens
from softq.verify.tables import rows, some_models

WORDS = ["a", "b", "c", "."]
PIECES = Pieces(lambda ids: "".join(WORDS[token] for token in ids))
BETA = 0.3


def batch() -> Tokens:
    """Two pairs on two prompts of the lab's tree."""
    return rows([0, 5, 45, 50], [0, 0, 1, 1])


def logits(model: str, tokens: Tokens, b: int, t: int) -> Tensor:
    """Of the state before action t of row b, by the table itself."""
    of = some_models()[model]
    prefix = tuple(tokens.ids[b, : t + 1].tolist())
    return of.table[of.rows[prefix]].detach()


def test_every_number_of_a_token_is_its_definition() -> None:
    tokens = batch()
    with torch.no_grad():
        table = token_table(score(some_models(), tokens, readouts(True, False)), tokens, PIECES, BETA)
    assert list(table) == list(TOKENS)
    n = 0
    for b in range(4):
        running = 0.0
        for position, t in enumerate(tokens.action[b].nonzero()[:, 0].tolist()):
            p, q = (logits(model, tokens, b, t).log_softmax(-1) for model in ("policy", "ref"))
            action = int(tokens.ids[b, t + 1])
            running += BETA * float(p[action] - q[action])
            expected = {
                "logp": p[action],
                "ref_logp": q[action],
                "reward": BETA * (p[action] - q[action]),
                "running": running,
                "entropy": -(p.exp() * p).sum(),
                "ref_entropy": -(q.exp() * q).sum(),
                "kl": (p.exp() * (p - q)).sum(),
                "kl_from_ref": (q.exp() * (q - p)).sum(),
                "gap": p.max() - p[action],
                "rank": (p > p[action]).sum(),
                "position": position,
                "token": action,
                "record": tokens.prompt[b],
                "completion": b % 2,
            }
            for name, value in expected.items():
                assert float(table[name][n]) == pytest.approx(float(value), abs=1e-12), name
            order = p.argsort(descending=True)[:TOP]
            assert table["top"][n] == order.tolist()
            assert table["top_logp"][n] == pytest.approx(p[order].tolist(), abs=1e-12)
            assert table["top_ref_logp"][n] == pytest.approx(q[order].tolist(), abs=1e-12)
            assert table["text"][n] == WORDS[action]
            n += 1
    assert n == len(table["logp"])


def test_sums_of_completions_and_pairs_are_those_of_their_tokens() -> None:
    tokens = batch()
    with torch.no_grad():
        scored = score(some_models(), tokens, readouts(True, True))
    each = token_table(scored, tokens, PIECES, BETA)
    table = completion_table(scored, tokens, PIECES, BETA)
    pairs = pair_table(table, scored, tokens)
    assert {*pairs} | {"record", "where", "source", "prompt"} == {*PAIRS}
    for k, side in enumerate(("chosen", "rejected")):
        for p in range(2):
            mine = [n for n in range(len(each["logp"])) if (each["record"][n], each["completion"][n]) == (p, k)]
            for name in ("logp", "ref_logp", "reward", "entropy", "kl", "kl_from_ref"):
                assert pairs[f"{side}_{name}"][p] == pytest.approx(sum(each[name][n] for n in mine), abs=1e-12)
            assert pairs[f"{side}_end_reward"][p] == pytest.approx(each["reward"][mine[-1]], abs=1e-12)
            assert pairs[f"{side}_tokens"][p] == len(mine)
    torch.testing.assert_close(pairs["margin"], pairs["chosen_reward"] - pairs["rejected_reward"])


def test_ches_by_hand_and_on_states() -> None:
    chosen, rejected = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
    assert ches(chosen, rejected).tolist() == [1 * 3 + 2 * -1 - (1 + 4)]
    assert ches(chosen, chosen).tolist() == [0.0]
    tokens = batch()
    with torch.no_grad():
        scored = score(some_models(), tokens, readouts(True, True))
    pairs = pair_table(completion_table(scored, tokens, PIECES, 1.0), scored, tokens)
    for p in range(2):
        sums = []
        for b in (2 * p, 2 * p + 1):
            states = [logits("ref", tokens, b, t) for t in tokens.action[b].nonzero()[:, 0].tolist()]
            sums.append((torch.stack(states).sum(0), len(states)))
        (w, n), (low, m) = sums
        assert pairs["ches"][p] == pytest.approx(float(w @ low - w @ w), abs=1e-10)
        assert pairs["ln_ches"][p] == pytest.approx(float((w / n) @ (low / m) - (w / n) @ (w / n)), abs=1e-10)


def test_what_completions_share_ends_where_they_part_and_where_one_ends() -> None:
    ids = torch.tensor([[5, 1, 2, 3, 0], [5, 1, 2, 4, 0], [6, 1, 2, 0, 0], [6, 1, 0, 0, 0]])
    action = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    found = shared(Tokens(ids, action, torch.tensor([True] * 4), torch.tensor([0, 0, 1, 1])))
    assert found.tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [True, False, False, False],  # the other ends here; its padding is no token
        [True, False, False, False],
    ]


def test_pieces_join_what_makes_one_character() -> None:
    letters = {1: b"a", 2: "é".encode()[:1], 3: "é".encode()[1:], 4: b" b", 5: b"\xff"}
    pieces = Pieces(lambda ids: b"".join(letters[n] for n in ids).decode("utf-8", "replace"))
    assert pieces.of(1, [2, 3, 4]) == ["é", "", " b"]
    assert pieces.of(1, [4, 5, 5]) == [" b", "\ufffd\ufffd", ""]
    assert pieces.alone(1, 4) == " b"


def test_a_tokenizer_that_writes_the_first_token_of_a_text_otherwise() -> None:
    pieces = Pieces(lambda ids: " ".join(WORDS[n] for n in ids))
    assert pieces.of(0, [1, 2]) == [" b", " c"]


def test_pieces_forget_before_they_grow_and_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_module, "KEPT", 2)
    pieces = Pieces(lambda ids: " ".join(WORDS[n] for n in ids))
    assert [pieces.alone(0, n) for n in (1, 2, 3, 1)] == [" b", " c", " .", " b"]
    assert len(pieces._known) <= 2


def test_a_reading_in_blocks_is_the_whole_reading_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    of = {
        name: torch.randn(7, 11, generator=torch.Generator().manual_seed(n)) for n, name in enumerate(("policy", "ref"))
    }
    action, fn = torch.arange(7), reading_of(TOP, True).fn
    whole = fn(of, action)
    for numbers in (23, 5):  # two states, and less than one
        monkeypatch.setattr(reading_module, "BLOCK", numbers)
        assert torch.equal(fn(of, action), whole)
    assert fn({name: values[:0] for name, values in of.items()}, action[:0]).shape == (0, whole.shape[1])


def test_without_a_reference_its_columns_are_absent() -> None:
    tokens = batch()
    with torch.no_grad():
        scored = score(some_models(), tokens, readouts(False, False))
    table = token_table(scored, tokens, PIECES, 1.0)
    assert set(TOKENS) - set(table) == {name for name, column in TOKENS.items() if column.compared}
    pairs = pair_table(completion_table(scored, tokens, PIECES, 1.0), scored, tokens)
    assert "margin" not in pairs
    assert all(math.isnan(value) for value in pairs["ches"])


def test_a_reading_keeps_the_best_tokens_and_no_more() -> None:
    logp = torch.tensor([0.0, 3.0, 1.0, 2.0, -1.0]).log_softmax(-1)
    read = reading_of(2, False).fn({"policy": logp[None]}, torch.tensor([2]))
    expected = [-(logp.exp() * logp).sum(), 2.0, logp[1], 1.0, 3.0, logp[1], logp[3]]
    assert read.tolist() == [pytest.approx([float(value) for value in expected])]


def test_a_state_is_read_as_it_is_at_least_in_float32() -> None:
    states = torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)
    read = hidden_of("policy").fn({"policy": states}, torch.tensor([0]))
    assert read.dtype == torch.float32
    assert read.tolist() == [[1.5, -2.0]]
