"""The one place where a vocabulary is seen: chunks, readouts, and what runs where."""

import copy
from collections.abc import Callable

import pytest
import torch
from tiny import VOCABULARY, alone, gradients, odd_rows, tiny, tokenizer, weighed
from torch import Tensor, nn
from transformers import PreTrainedModel

from softq.lm import score as scoring
from softq.lm.load import load
from softq.lm.score import Models, score
from softq.mdp.readouts import ENTROPY, KL, KL_FROM_REF, LOG_COLLISION, REF_LOGP
from softq.mdp.tabular import TabularLM, along, every_trajectory, random_table
from softq.records import Readout, Tokens
from softq.verify.tables import TREE, rows, some_models

TOKENS = odd_rows()
ACTIONS = int(TOKENS.action.sum())
NORM = Readout("norm", ("policy",), "hidden", lambda states, action: states["policy"].pow(2).sum(-1))
STATE = Readout("state", ("policy",), "hidden", lambda states, action: states["policy"])
DISTANCE = Readout("distance", ("policy", "ref"), "hidden", lambda h, _: (h["policy"] - h["ref"]).abs().sum(-1))
EVERY = (REF_LOGP, ENTROPY, KL, KL_FROM_REF, LOG_COLLISION, NORM, STATE, DISTANCE)
close = {"rtol": 1e-10, "atol": 1e-10}


def pair(layout: str = "auto") -> Models:
    """A Llama and, as its reference, another one of the same vocabulary."""
    policy = load(tiny("llama"), None, tokenizer=tokenizer(), layout=layout).models["policy"]
    other = load(tiny("llama", num_hidden_layers=3), None, tokenizer=tokenizer(), layout=layout).models["policy"]
    return Models({"policy": policy, "ref": other.requires_grad_(False)})


def transformer(models: Models, name: str = "policy") -> PreTrainedModel:
    return models[name].transformer


def every_logit(model: PreTrainedModel, tokens: Tokens) -> Tensor:
    """[n, V] at the actions, row by row through the model's own forward."""
    parts = []
    for ids, action in zip(tokens.ids, tokens.action, strict=True):
        end = int(action.nonzero().max()) + 2
        logits = model(input_ids=ids[None, :end], use_cache=False).logits[0, :-1]
        parts.append(logits[action[: end - 1]])
    return torch.cat(parts)


def counted(module: nn.Module, size: Callable[[Tensor], int]) -> list[int]:
    """What goes through a module, call by call."""
    sizes: list[int] = []
    module.register_forward_hook(lambda _module, inputs, _out: sizes.append(size(inputs[0])))
    return sizes


def rows_of(states: Tensor) -> int:
    return states.numel() // states.shape[-1]


# --- chunks ---


@pytest.mark.parametrize("readout", EVERY, ids=lambda readout: readout.name)
@pytest.mark.parametrize("at_once", [1, 5])
def test_chunks_change_neither_values_nor_gradients(
    readout: Readout, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = pair()
    name = readout.name

    def both() -> tuple[Tensor, dict[str, Tensor]]:
        def numbers() -> Tensor:
            scored = score(models, TOKENS, (readout,))
            return torch.cat([scored["logp"].flatten(), scored[name].flatten()])

        return gradients(models["policy"], numbers)

    whole = both()
    monkeypatch.setattr(scoring, "CHUNK", at_once * VOCABULARY + 3)
    heads = [counted(transformer(models, m).lm_head, rows_of) for m in ("policy", "ref")]
    chunked = both()
    assert max(n for sizes in heads for n in sizes) == at_once
    torch.testing.assert_close(chunked[0], whole[0], **close)
    assert max(gradient.abs().max().item() for gradient in whole[1].values()) > 0.1
    for parameter, gradient in whole[1].items():
        torch.testing.assert_close(chunked[1][parameter], gradient, **close)


def test_a_chunk_larger_than_the_vocabulary_is_one_action(monkeypatch: pytest.MonkeyPatch) -> None:
    models = some_models()
    tokens = rows([0, 7, 30])
    whole = score(models, tokens, (KL,))
    monkeypatch.setattr(scoring, "CHUNK", 1)
    torch.testing.assert_close(score(models, tokens, (KL,))["kl"], whole["kl"], **close)


def test_logits_of_a_chunk_are_not_kept_for_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are made again: the head runs once more for every chunk during the backward pass."""
    monkeypatch.setattr(scoring, "CHUNK", 4 * VOCABULARY)
    models = pair()
    again: list[int] = []
    transformer(models).lm_head.register_forward_pre_hook(lambda _module, inputs: again.append(rows_of(inputs[0])))
    logp = score(models, TOKENS)["logp"]
    assert sum(again) == ACTIONS
    weighed(logp).backward()
    assert sum(again) == 2 * ACTIONS


# --- what runs where ---


@pytest.mark.parametrize("layout", ["plain", "padded", "packed"])
def test_the_head_runs_at_actions_only(layout: str) -> None:
    models = pair(layout)
    heads = {name: counted(transformer(models, name).lm_head, rows_of) for name in ("policy", "ref")}
    score(models, TOKENS, (REF_LOGP,))
    assert heads == {"policy": [ACTIONS], "ref": [ACTIONS]}


def test_every_state_goes_through_the_body_once() -> None:
    """Whatever the readouts: one pass a model, one token a distinct state of a record."""
    models = pair("packed")
    seen = {name: counted(transformer(models, name).get_input_embeddings(), torch.numel) for name in ("policy", "ref")}
    score(models, TOKENS, EVERY)
    states = {
        (number, *ids[: t + 1])
        for number, ids, action in zip(TOKENS.prompt.tolist(), TOKENS.ids.tolist(), TOKENS.action, strict=True)
        for t in range(int(action.nonzero().max()) + 1)
    }
    assert seen == {"policy": [len(states)], "ref": [len(states)]}
    assert len(states) < TOKENS.action.numel() / 2


def test_a_model_that_no_readout_sees_is_not_run() -> None:
    models = pair()
    seen = counted(transformer(models, "ref").get_input_embeddings(), torch.numel)
    score(models, TOKENS, (ENTROPY,))
    assert seen == []


# --- readouts ---


def test_readouts_of_two_models_against_their_definitions() -> None:
    models = pair()
    p, q = (every_logit(transformer(models, name), TOKENS).softmax(-1) for name in ("policy", "ref"))
    taken = TOKENS.ids[:, 1:][TOKENS.action][:, None]
    expected = {
        "logp": p.gather(1, taken)[:, 0].log(),
        "ref_logp": q.gather(1, taken)[:, 0].log(),
        "entropy": -(p * p.log()).sum(-1),
        "kl": (p * (p / q).log()).sum(-1),
        "kl_from_ref": (q * (q / p).log()).sum(-1),
        "log_collision": (p * p).sum(-1).log(),
    }
    scored = score(models, TOKENS, EVERY)
    assert (expected["kl"] - expected["kl_from_ref"]).abs().mean() > 0.05
    for name, values in expected.items():
        assert scored[name].shape == TOKENS.action.shape
        assert not scored[name][~TOKENS.action].any()
        torch.testing.assert_close(scored[name][TOKENS.action], values, **close)


@pytest.mark.parametrize("readout", [ENTROPY, KL, KL_FROM_REF], ids=lambda readout: readout.name)
def test_the_gradient_of_a_readout_is_that_of_its_definition(readout: Readout) -> None:
    models = pair()
    got = gradients(transformer(models), lambda: score(models, TOKENS, (readout,))[readout.name][TOKENS.action])

    def by_definition() -> Tensor:
        p, q = (every_logit(transformer(models, name), TOKENS).softmax(-1) for name in ("policy", "ref"))
        sums = {"entropy": -p * p.log(), "kl": p * (p / q).log(), "kl_from_ref": q * (q / p).log()}
        return sums[readout.name].sum(-1)

    want = gradients(transformer(models), by_definition)
    for name, gradient in want[1].items():
        torch.testing.assert_close(got[1][name], gradient, **close)


def test_hidden_readouts_see_the_input_of_the_head() -> None:
    """The state before an action, after the final norm: for a first action, the prompt's last token."""
    models = pair()
    scored = score(models, TOKENS, (NORM, STATE))
    assert scored["state"].shape == (*TOKENS.action.shape, 32)
    assert not scored["state"][~TOKENS.action].any()
    for b, t in TOKENS.action.nonzero().tolist()[::5]:
        inputs = TOKENS.ids[b : b + 1, : t + 1]
        state = transformer(models).base_model(input_ids=inputs).last_hidden_state[0, -1]
        torch.testing.assert_close(scored["state"][b, t], state, **close)
        torch.testing.assert_close(scored["norm"][b, t], (state * state).sum(), **close)


def test_a_missing_model_is_named() -> None:
    models = Models({"policy": some_models()["policy"]})
    far = Readout("far", ("policy", "teacher"), "log_probs", lambda logp, action: logp["teacher"])
    with pytest.raises(ValueError) as caught:
        score(models, rows([0]), (REF_LOGP, far))
    assert str(caught.value) == "a readout sees the model(s) ['ref', 'teacher'], but only ['policy'] are loaded"


def test_what_a_readout_can_not_see_is_named() -> None:
    raw = Readout("raw", ("policy",), "logits", lambda logits, action: logits["policy"])
    with pytest.raises(ValueError, match="readout 'raw' is at 'logits'; expected one of log_probs, hidden, value"):
        score(some_models(), rows([0]), (raw,))


# --- gradient ---


@pytest.mark.parametrize("chunk", [2**24, 4 * VOCABULARY])
def test_no_gradient_reaches_the_reference(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its weights would take one."""
    monkeypatch.setattr(scoring, "CHUNK", chunk)
    models = pair()
    models["ref"].requires_grad_(True)
    scored = score(models, TOKENS, EVERY)
    assert not scored["ref_logp"].requires_grad
    sum(scored[name].sum() for name in ("logp", "kl", "kl_from_ref", "distance")).backward()
    assert all(parameter.grad is None for parameter in models["ref"].parameters())
    assert all(parameter.grad is not None for parameter in models["policy"].parameters())


def test_values_of_another_model_take_no_gradient() -> None:
    models = Models({name: TabularLM(TREE, random_table(TREE, seed)) for seed, name in enumerate(("policy", "ref"))})
    worth = Readout("worth", ("policy", "ref"), "value", lambda values, action: values["policy"] - values["ref"])
    leaves = every_trajectory(TREE)
    scored = score(models, leaves, (worth,))
    p, q = (models[name].table for name in ("policy", "ref"))
    torch.testing.assert_close(scored["worth"], along(TREE, p - q, leaves), **close)
    scored["worth"].sum().backward()
    assert p.grad is not None
    assert q.grad is None


def test_without_gradient_nothing_is_recorded() -> None:
    with torch.no_grad():
        assert not any(values.requires_grad for values in score(pair(), TOKENS, EVERY).values())


# --- one river ---


def test_a_table_goes_the_same_way() -> None:
    models = some_models()
    leaves = every_trajectory(TREE)
    scored = score(models, leaves, (REF_LOGP, KL))
    p, q = (models[name].table.log_softmax(-1) for name in ("policy", "ref"))
    torch.testing.assert_close(scored["logp"], along(TREE, p, leaves), **close)
    torch.testing.assert_close(scored["ref_logp"], along(TREE, q, leaves), **close)
    divergence = (p.exp() * (p - q)).sum(-1, keepdim=True).expand_as(p)
    torch.testing.assert_close(scored["kl"], along(TREE, divergence, leaves), **close)


def test_a_table_of_a_transformers_logits_scores_as_it_does() -> None:
    """Every state of a token tree, read off a Llama of four tokens: one road, two models, equal numbers."""
    model = tiny("llama", vocab_size=4)
    table = torch.stack([model(input_ids=torch.tensor([prefix])).logits[0, -1] for prefix in TREE.prefixes]).detach()
    reference = TabularLM(TREE, random_table(TREE, 5)).requires_grad_(False)
    leaves = every_trajectory(TREE)
    needs = (REF_LOGP, ENTROPY, KL, KL_FROM_REF, LOG_COLLISION)
    by_table = score(Models({"policy": TabularLM(TREE, table), "ref": reference}), leaves, needs)
    network = load(copy.deepcopy(model), None, tokenizer=tokenizer()).models["policy"]
    by_network = score(Models({"policy": network, "ref": reference}), leaves, needs)
    for name, values in by_table.items():
        torch.testing.assert_close(by_network[name], values, **close)
    torch.testing.assert_close(by_network["logp"], alone(model, leaves), **close)
