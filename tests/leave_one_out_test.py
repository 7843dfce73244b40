"""What a completion's log-ratio is without each token: exactly on tables, and against each row by itself on a small model."""

import pytest
import torch
from tiny import odd_rows, tiny, tokenizer, tokens_of
from torch import Tensor
from transformers import PreTrainedModel

from softq.lm.load import load
from softq.lm.score import Models
from softq.mdp.soft import soft_backup
from softq.mdp.tabular import along, random_table
from softq.reading.leave_one_out import log_ratios, without, worths
from softq.records import Tokens
from softq.verify.tables import EVERY, TREE, models


def test_a_row_without_a_token_by_hand() -> None:
    tokens = Tokens(
        torch.tensor([[5, 6, 7, 8, 9, 2], [5, 6, 3, 2, 0, 0]]),
        torch.tensor([[0, 1, 0, 1, 1], [0, 1, 1, 0, 0]]).bool(),  # 8 was not chosen, as what another speaker says
        torch.tensor([True, True]),
        torch.tensor([0, 1]),
    )
    left = without(tokens, torch.tensor([0, 0, 0, 1]), torch.tensor([1, 3, 4, 1]))
    assert left.ids[:, :5].tolist() == [[5, 6, 8, 9, 2], [5, 6, 7, 8, 2], [5, 6, 7, 8, 9], [5, 6, 2, 0, 0]]
    assert left.action.int().tolist() == [[0, 0, 1, 1, 0], [0, 1, 0, 1, 0], [0, 1, 0, 1, 0], [0, 1, 0, 0, 0]]
    assert left.ended.tolist() == [True, True, False, True]
    assert left.prompt.tolist() == [0, 0, 0, 1]
    with pytest.raises(ValueError, match="is no action"):
        without(tokens, torch.tensor([0]), torch.tensor([2]))


@pytest.mark.parametrize("rows_at_once", [1, 7, 10_000])
def test_on_tables_every_worth_is_exact(rows_at_once: int) -> None:
    policy, reference = (random_table(TREE, seed).log_softmax(-1) for seed in (3, 4))
    found = worths(models(policy, reference), EVERY, rows_at_once=rows_at_once)
    rows = {prefix: s for s, prefix in enumerate(TREE.prefixes)}

    def ratio(prompt: list[int], said: list[int]) -> float:
        at = [(rows[(*prompt, *said[:k])], token) for k, token in enumerate(said)]
        return sum(float(policy[s, a] - reference[s, a]) for s, a in at)

    for b in range(0, len(EVERY.ended), 5):
        actions = EVERY.action[b].nonzero()[:, 0].tolist()
        prompt, said = EVERY.ids[b, : actions[0] + 1].tolist(), [int(EVERY.ids[b, t + 1]) for t in actions]
        expected = [ratio(prompt, said) - ratio(prompt, said[:k] + said[k + 1 :]) for k in range(len(said))]
        assert found[b][EVERY.action[b]].tolist() == pytest.approx(expected, abs=1e-12)
    assert not found[~EVERY.action].any()


def test_a_worth_is_the_reward_where_nothing_follows_and_else_another_number() -> None:
    reference = random_table(TREE, 4).log_softmax(-1)
    best = soft_backup(TREE, random_table(TREE, 5), reference, beta=1.0)
    reward = along(TREE, best.advantage_kl, EVERY)
    found = worths(models(best.logp, reference), EVERY)
    count = EVERY.action.sum(-1, keepdim=True)
    last = EVERY.action & (EVERY.action.cumsum(-1) == count)
    assert found[last] == pytest.approx(reward[last], abs=1e-12)
    assert (found - reward)[EVERY.action & ~last].abs().max() > 0.5


def ratio_alone(of: tuple[PreTrainedModel, PreTrainedModel], ids: list[int], chosen: list[bool]) -> float:
    """Σ log π/π_ref of the ids that were chosen, by each model's own forward."""
    logp, ref = (model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1) for model in of)
    return sum(float(logp[t - 1, ids[t]] - ref[t - 1, ids[t]]) for t in range(1, len(ids)) if chosen[t])


@pytest.mark.parametrize("layout", ["packed", "plain"])
@torch.no_grad()
def test_a_small_model_by_brute_force(layout: str) -> None:
    both = tiny("llama"), tiny("llama", num_hidden_layers=3)
    loaded = [
        load(model, None, tokenizer=tokenizer(), layout=layout, dtype="float64").models["policy"] for model in both
    ]
    tokens = odd_rows()
    found = worths(Models({"policy": loaded[0], "ref": loaded[1]}), tokens, rows_at_once=5)
    for b in (1, 2, 5, 7):
        end = int(tokens.action[b].nonzero().max()) + 2
        ids, chosen = tokens.ids[b, :end].tolist(), [False, *tokens.action[b, : end - 1].tolist()]
        whole = ratio_alone(both, ids, chosen)
        for t in tokens.action[b].nonzero()[:, 0].tolist():
            left = ratio_alone(both, ids[: t + 1] + ids[t + 2 :], chosen[: t + 1] + chosen[t + 2 :])
            assert float(found[b, t]) == pytest.approx(whole - left, abs=1e-9)
    assert found.abs().max() > 0.1


def test_of_one_token_nothing_is_left() -> None:
    policy, reference = (random_table(TREE, seed) for seed in (3, 4))
    tokens = tokens_of([(0, [2], [3])])
    of = models(policy, reference)
    assert worths(of, tokens)[tokens.action].tolist() == pytest.approx(log_ratios(of, tokens).tolist())
    assert isinstance(log_ratios(of, tokens), Tensor)
