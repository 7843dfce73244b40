"""A step cut into the parts of processes and micro-batches: each record in one of them, their gradients the step's."""

import random

import pytest
import torch
from tiny import tokens_of

from softq.training import ranks
from softq.training.loop import with_columns
from softq.training.plan import plan, shares
from softq.verify.contract import CONTRACT
from softq.verify.tables import slope, some_models, some_step


def test_what_is_shared_out_is_shared_out_whole_once_and_evenly() -> None:
    draw = random.Random(0)
    for count in (1, 2, 3, 5):
        for _ in range(20):
            rows = [
                (n, [n + 3] * draw.randint(1, 9), [5] * draw.randint(1, 9))
                for n in range(draw.randint(1, 12))
                for _ in range(draw.randint(1, 3))
            ]
            draw.shuffle(rows)
            tokens = tokens_of(rows)
            parts = shares(tokens, 20, count)
            assert len(parts) == count
            every = [row for part in parts for micro in part for row in micro.tolist()]
            assert sorted(every) == list(range(len(rows)))
            again = shares(tokens, 20, count)
            assert [[m.tolist() for m in part] for part in parts] == [[m.tolist() for m in part] for part in again]
            size = {n: _states([row for row in rows if row[0] == n]) for n in {n for n, _, _ in rows}}
            loads = []
            for part in parts:
                held = [sorted({rows[row][0] for row in micro.tolist()}) for micro in part]
                assert all(len(records) == 1 or sum(map(size.get, records)) <= 20 for records in held)
                assert len({n for records in held for n in records}) == sum(map(len, held))
                loads.append(sum(size[n] for records in held for n in records))
            assert sum(loads) == sum(size.values())
            assert max(loads) - min(loads) <= max(size.values())


def _states(rows: list) -> int:
    """Of one record: the distinct prefixes of its rows, up to the last state that acts."""
    return len({tuple((prompt + answer)[:n]) for _, prompt, answer in rows for n in range(1, len(prompt + answer))})


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("name", [name for name, line in CONTRACT.items() if not line.method.coupled])
def test_shares_add_up_and_one_for_nothing_adds_nothing(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    method, of = CONTRACT[name].method, some_models()
    batch = with_columns(some_step(method), method.memory)
    loss, whole = slope(method, of, batch)
    monkeypatch.setattr(ranks, "count", lambda: count)
    total, sums, numbers = 0.0, torch.zeros_like(whole), set()
    for rank in range(count):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        micros = plan(method, of, batch, tokens_per_micro=7).micros
        numbers.add(len(micros))
        for micro in micros:
            of.zero_grad()
            share = micro.share(of(micro.batch.tokens, method.needs))
            share.backward()
            sums += of["policy"].table.grad
            total += share.item()
            if not len(micro.rows):
                assert not of["policy"].table.grad.any()
    assert len(numbers) == 1  # every process runs as many
    torch.testing.assert_close(sums, whole, rtol=1e-10, atol=1e-12)
    assert total == pytest.approx(loss.item(), rel=1e-10)
