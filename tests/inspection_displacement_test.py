"""Displacement: its numbers against the lab's tables and by hand, and its verdict on trainings whose truth is known."""

import copy
import json
import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from softq.data.encode import Completion, Encoded
from softq.inspection.displacement import by_position, fall_of, fall_with, figures, findings, verdict
from softq.inspection.moved import DECILES, Moved, gained, moved
from softq.inspection.pieces import Pieces
from softq.inspection.shelf import Shelf, put
from softq.inspection.tables import completion_table, pair_table, readouts, token_table
from softq.lm.load import load
from softq.lm.score import Models, score
from softq.mdp.tabular import along
from softq.objectives import METHODS
from softq.records import Tokens
from softq.training.loop import train
from softq.training.source import batches, tokens_of
from softq.training.update import AdamW
from softq.verify.tables import EVERY, TREE, rows, some_models

WORDS = Pieces(lambda ids: " ".join(f"w{n}" for n in ids))


def shelved(
    directory: Path, models: Models, tokens: Tokens, *, compared: bool = True, method: str | None = None
) -> Shelf:
    """Pairs, rows of one prompt number after another, as softq score writes them."""
    directory.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        scored = score(models, tokens, readouts(compared, True))
    pairs, beta = pair_table(completion_table(scored, tokens, WORDS, 0.1), scored, tokens), 0.1
    record = tokens.prompt[::2].tolist()
    blank = dict.fromkeys(("where", "source", "prompt"), [""] * len(record))
    put(directory, "pairs", 0, pairs | blank | {"record": record}, compared=compared)
    put(directory, "tokens", 0, token_table(scored, tokens, WORDS, beta), compared=compared)
    facts = {
        "format": "softq scores 1",
        "finished": True,
        "kind": "pairs",
        "parts": 1,
        "beta": beta,
        "unit": "reward",
        "method": method,
    }
    (directory / "score.json").write_text(json.dumps({**facts, "reference": "ref" if compared else None}))
    return Shelf(directory)


def lab(model: str) -> torch.Tensor:
    """[S, V] log-probs of the lab's policy or reference."""
    return some_models()[model].table.detach().log_softmax(-1)


def test_where_the_mass_went_by_hand(tmp_path: Path) -> None:
    tokens = rows([0, 5, 20, 22, 45, 50], [0, 0, 1, 1, 2, 2])
    expected: dict[str, float] = {}
    for p in range(3):
        first = next(
            t for t in range(tokens.action.shape[1]) if tokens.ids[2 * p, t + 1] != tokens.ids[2 * p + 1, t + 1]
        )
        state = some_models()["policy"].rows[tuple(tokens.ids[2 * p, : first + 1].tolist())]
        for token in {*range(4)} - {*tokens.ids[2 * p : 2 * p + 2, first + 1].tolist()}:
            gain = float(lab("policy")[state, token].exp() - lab("ref")[state, token].exp())
            expected[f" w{token}"] = expected.get(f" w{token}", 0.0) + gain
    most = sorted(expected.items(), key=lambda item: -item[1])
    found = gained(shelved(tmp_path, some_models(), tokens), 2)
    assert [text for text, _ in found] == [text for text, gain in most[:2] if gain > 0]
    assert found[0][1] == pytest.approx(most[0][1], abs=1e-6)


def test_every_number_is_its_definition_on_the_lab_s_tables(tmp_path: Path) -> None:
    tokens = rows([0, 5, 20, 22, 45, 50], [0, 0, 1, 1, 2, 2])
    of = moved(shelved(tmp_path, some_models(), tokens))
    change = along(TREE, lab("policy") - lab("ref"), tokens)
    kl = (lab("ref").exp() * (lab("ref") - lab("policy"))).sum(-1)
    entropy = -(lab("ref").exp() * lab("ref")).sum(-1)
    for values, expected in (
        (of.change, change),
        (of.kl_from_ref, along(TREE, kl[:, None].expand(-1, 4), tokens)),
        (of.ref_entropy, along(TREE, entropy[:, None].expand(-1, 4), tokens)),
        (of.regions.sum(-1), change),
        (of.deciles.sum(-1), change),
    ):
        assert values.ravel() == pytest.approx(expected.sum(-1).tolist(), abs=1e-6)
    assert of.sizes.sum(-1).tolist() == of.tokens.tolist() == of.counts.sum(-1).tolist()
    policy, ref = (along(TREE, lab(model), tokens) for model in ("policy", "ref"))
    parted = 0
    for p in range(3):
        first = next(
            t for t in range(tokens.action.shape[1]) if tokens.ids[2 * p, t + 1] != tokens.ids[2 * p + 1, t + 1]
        )
        for k in (0, 1):
            b, n = 2 * p + k, int(tokens.action[2 * p + k, :first].sum())
            assert of.fork[p, k] == pytest.approx(math.exp(policy[b, first]), abs=1e-6)
            assert of.ref_fork[p, k] == pytest.approx(math.exp(ref[b, first]), abs=1e-6)
            assert of.shared[p] == n
            expected = [change[b, :first].sum(), change[b, first], change[b, first + 1 :].sum()]
            assert of.regions[p, k] == pytest.approx([float(value) for value in expected], abs=1e-6)
            parted += n
    assert parted > 0  # some pair begins alike
    both = torch.logsumexp(policy.sum(-1).view(-1, 2), -1) - torch.logsumexp(ref.sum(-1).view(-1, 2), -1)
    assert of.left == pytest.approx(both.tolist(), abs=1e-12)


def test_over_the_references_own_samples_nothing_is_a_completions_own(tmp_path: Path) -> None:
    """E_ref[L] = -KL(π_ref‖π) by enumeration, from what is measured: each trajectory of the lab as a chosen one."""
    of = [[], []]
    for prompt in EVERY.prompt.unique().tolist():
        which = (EVERY.prompt == prompt).nonzero()[:, 0].tolist()
        pairs = [n for y in which for n in (y, which[0] if y != which[0] else which[1])]
        numbers = [n // 2 for n in range(len(pairs))]
        found = moved(shelved(tmp_path / str(prompt), some_models(), rows(pairs, numbers)))
        weight = np.exp(found.ref_logp[:, 0])
        assert weight.sum() == pytest.approx(1, abs=1e-12)
        assert (weight * found.own[:, 0]).sum() == pytest.approx(0, abs=1e-12)
        of[0].append((weight * found.change[:, 0]).sum())
        of[1].append(np.abs(found.own[:, 0]).max())
    assert max(of[0]) < -0.1
    assert min(of[1]) > 0.1  # of one completion it is not 0


def some(change: list[tuple[float, float]], **given: object) -> Moved:
    """Pairs whose log-probs under the reference are -20 nats, of 10 tokens, with these changes; the rest as given."""
    n, ref = len(change), np.full((len(change), 2), -20.0)
    zero = {name: np.zeros((n, 2)) for name in ("kl_from_ref",)}
    whole = {
        "record": np.arange(n) + 100,
        "logp": ref + np.array(change),
        "ref_logp": ref,
        "tokens": np.full((n, 2), 10),
        "shared": np.zeros(n, dtype=int),
        "ches": np.full(n, np.nan),
        "ln_ches": np.full(n, np.nan),
        "ref_entropy": np.full((n, 2), 20.0),
        **{name: np.zeros((n, 2, 3)) for name in ("regions", "sizes")},
        **{name: np.zeros((n, 2, DECILES)) for name in ("deciles", "counts")},
        **{name: np.full((n, 2), 0.4) for name in ("fork", "ref_fork")},
        **zero,
    }
    return Moved(**{**whole, **{name: np.asarray(values) for name, values in given.items()}})


def changes(chosen: float, rejected: float, count: int = 40) -> list[tuple[float, float]]:
    """Their means, with a little spread."""
    return [(chosen + 0.1 * (n % 5 - 2), rejected + 0.1 * (n % 3 - 1)) for n in range(count)]


def costs(nats: float, count: int = 40) -> np.ndarray:
    """KL(π_ref‖π) along the completions."""
    return np.full((count, 2), nats)


@pytest.mark.parametrize(
    ("of", "method", "level", "told", "act"),
    [
        (some(changes(2, -3)), "dpo", "expected", "they did not fall", ""),
        (some(changes(-0.02, -3)), "dpo", "expected", "they did not fall", ""),
        (some(changes(-0.15, -3)), "dpo", "expected", "less than a hundredth of what they cost", ""),
        (some(changes(2, -3), ref_entropy=costs(5)), None, "expected", "the reference was not made for them", ""),
        (some(changes(-2, -6), kl_from_ref=costs(2.1)), "dpo", "expected", "at the same states (2.1 nats)", ""),
        (some(changes(-2, -6), kl_from_ref=costs(1.9)), "dpo", "expected", "at the same states (1.9 nats)", ""),
        (
            some(changes(-2, -6), kl_from_ref=costs(0.5)),
            None,
            "watch",
            "the rest is the policy turning away",
            "anchor them",
        ),
        (
            some(changes(-2, -6), kl_from_ref=costs(2.1)),
            "dpo+sft",
            "watch",
            "dpo+sft is to hold",
            "raise the weight with",
        ),
        (some(changes(-2, -6), kl_from_ref=costs(2.1)), "apo_down", "expected", "apo_down means them to fall", ""),
        (
            some(changes(-2, -6), kl_from_ref=costs(2.1), ref_entropy=costs(10)),
            "dpo",
            "watch",
            "2 times what it would say itself",
            "fine-tune the reference on the chosen completions first",
        ),
        (some(changes(-12, -30), kl_from_ref=costs(13)), "dpo", "act", "they cost 1.6 times the nats", "anchor them"),
        (some(changes(-2, -6), kl_from_ref=costs(9), fork=costs(0.1)), "dpo", "act", "75% of the mass", "anchor them"),
    ],
)
def test_the_verdict_by_what_is_seen(of: Moved, method: str | None, level: str, told: str, act: str) -> None:
    found = verdict(of, method)
    assert (found.level, told in found.told, act in found.act) == (level, True, True), found
    assert bool(found.act) == bool(found.records) == (level != "expected")


def test_pairs_that_begin_alike_are_named_even_where_the_others_do_well() -> None:
    of = some([*changes(1, -3, 60), *changes(-15, -16, 20)], shared=np.repeat([0, 6], [60, 20]))
    found = verdict(of, "dpo")
    assert (found.level, "Look at 20 pairs, of which half or more is one beginning: they cost 1.75" in found.told) == (
        "act",
        True,
    )
    assert "leave these 20 pairs out, or train with dpop" in found.act
    assert {*found.records} == {*range(160, 180)}
    fell = dict(zip(of.record.tolist(), of.change[:, 0], strict=True))
    assert [fell[n] for n in found.records] == sorted(fell[n] for n in found.records)


def test_where_ches_tells_who_falls_its_highest_pairs_are_to_be_left_out() -> None:
    change = changes(-12, -20)
    found = verdict(some(change, ln_ches=[-chosen for chosen, _ in change], kl_from_ref=costs(12)), "dpo")
    assert "leave out the 8 pairs whose completions are most alike" in found.act
    assert found.records == [100, 105, 110, 115, 120, 125, 130, 135]
    other = verdict(some(change, ln_ches=[chosen for chosen, _ in change], kl_from_ref=costs(12)), "dpo")
    assert "most alike" not in other.act


def test_a_rank_correlation_has_bonett_and_wrights_interval() -> None:
    fall = np.arange(10.0)
    of = some([(-value, 0.0) for value in fall])
    n, rho, interval = fall_with(np.array([0, 1, 2, 3, 4, 5, 6, 7, 9, 8.0]), of)
    assert (n, rho) == (10, pytest.approx(1 - 6 * 2 / 990))
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / 7)
    assert interval == pytest.approx((math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)))
    assert fall_with(-fall, of)[1] == pytest.approx(-1)
    assert fall_with(np.where(fall < 4, np.inf, fall), of)[:2] == (6, pytest.approx(1))
    assert math.isnan(fall_with(np.full(10, np.nan), of)[1])


def test_by_position_by_hand_and_of_pairs_alone(tmp_path: Path) -> None:
    tokens = rows([0, 5, 20, 22, 45, 50], [0, 0, 1, 1, 2, 2])
    shelf = shelved(tmp_path / "both", some_models(), tokens)
    change = along(TREE, lab("policy") - lab("ref"), tokens)
    expected: dict[int, list[float]] = {}
    for b in (0, 2, 4):
        own = change[b][tokens.action[b]].tolist()
        for t, value in enumerate(own):
            expected.setdefault(10 * t // len(own), []).append(value)
    curve = by_position(shelf)["chosen"]
    for decile in range(10):
        assert curve.mean[decile] == pytest.approx(np.mean(expected.get(decile, [math.nan])), abs=1e-6, nan_ok=True)
    half = 1.959964 * np.std(expected[0], ddof=1) / math.sqrt(3)
    assert curve.high[0] - curve.mean[0] == pytest.approx(half, abs=1e-6)
    alone = shelved(tmp_path / "alone", some_models(), tokens, compared=False)
    assert (by_position(alone), figures(alone), findings(alone)) == ({}, [], [])


def test_figures_of_the_lab_have_their_sign_their_unit_and_an_interval(tmp_path: Path) -> None:
    tokens = rows([0, 5, 20, 22, 45, 50], [0, 0, 1, 1, 2, 2])
    shelf = shelved(tmp_path, some_models(), tokens)
    of, found = moved(shelf), {figure.name.removeprefix("displacement/"): figure for figure in figures(shelf)}
    assert found["chosen"].value == pytest.approx(of.change[:, 0].mean())
    assert found["rejected/token"].value == pytest.approx(of.change[:, 1].sum() / of.tokens[:, 1].sum())
    assert found["shared"].value == pytest.approx(of.regions[:, 0, 0].sum() / of.sizes[:, 0, 0].sum())
    assert found["left/fork"].value == pytest.approx(1 - of.fork.sum() / of.ref_fork.sum())
    assert found["forced"].value + found["own"].value == pytest.approx(found["chosen"].value)
    assert found["cost"].value == pytest.approx(of.logp[:, 0].sum() / of.ref_logp[:, 0].sum())
    assert found["fell"].value == (of.change[:, 0] < 0).mean()
    assert {figure.unit for figure in found.values()} == {"nats", "share", "times", ""}
    assert all(figure.interval[0] <= figure.value <= figure.interval[1] for figure in found.values() if figure.interval)


def test_ches_of_states_as_large_as_float32_holds_does_not_overflow(tmp_path: Path) -> None:
    large = Models({name: Large(model) for name, model in some_models().items()})
    tokens = rows([0, 5, 45, 50], [0, 0, 1, 1])
    plain, found = (shelved(tmp_path / name, of, tokens) for name, of in (("1", some_models()), ("2", large)))
    expected = plain.table("pairs")["ches"].to_numpy() * 1e60
    assert found.table("pairs")["ches"].to_numpy() == pytest.approx(expected, rel=1e-6)


class Large(torch.nn.Module):
    """States of 1e30 in float32, whose squares it does not hold."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.vocabulary = model, model.vocabulary

    def states(self, tree):
        return (self.model.states(tree) * 1e30).float()

    def logits(self, states):
        return states.double() / 1e30


# Trainings whose truth is known: eight topics, answers of six words, each of them right, wrong or idle.

END, TOPICS, LENGTH = 2, 8, 6
BETTER, WORSE, OTHERWISE = (0.6, 0.1, 0.3), (0.3, 0.4, 0.3), (0.05, 0.05, 0.9)
YES, SURELY = 51, 60
Shares = tuple[float, float, float]


def answered(topic: int, shares: Shares, rng: Random) -> Completion:
    """A prompt that names a topic, and an answer; eight of ten close with "yes"."""
    kinds = rng.choices((0, 1, 2), shares, k=LENGTH)
    closing = [YES] if rng.random() < 0.8 else []
    ids = np.array(
        [52 + topic, *(3 + 16 * kind + (3 * topic + 5 * t) % 16 for t, kind in enumerate(kinds)), *closing, END]
    )
    return Completion(ids, np.arange(1, len(ids)) > 0, True)


def demonstrations(shares: Shares) -> list[Encoded]:
    rng = Random(1)
    return [Encoded("", (answered(rng.randrange(TOPICS), shares, rng),)) for _ in range(600)]


def pairs(seed: int) -> list[Encoded]:
    """A better answer and a worse one: their words' right share is 0.6 and 0.3."""
    rng = Random(seed)
    topics = [rng.randrange(TOPICS) for _ in range(300)]
    return [Encoded("", tuple(answered(c, shares, rng) for shares in (BETTER, WORSE))) for c in topics]


def alike(seed: int) -> list[Encoded]:
    """One answer twice; the chosen one closes with "yes", the other with a word that the model can hardly tell from it."""
    sides = []
    for chosen in (pair.completions[0] for pair in pairs(seed)):
        start = chosen.ids[: LENGTH + 1]
        both = (np.array([*start, word, END]) for word in (YES, SURELY))
        sides.append(tuple(Completion(ids, np.arange(1, len(ids)) > 0, True) for ids in both))
    return [Encoded("", both) for both in sides]


def trained(
    model: PreTrainedModel, method: str, records: list[Encoded], steps: int, rate: float, **settings: float
) -> Models:
    loaded = load(model, "start", tokenizer=tokenizer(), layout="packed")
    update = AdamW(loaded.models, steps=steps, learning_rate=rate, schedule="linear", warmup_steps=5, betas=(0.9, 0.98))
    made = METHODS[method](**settings)
    source = batches(records, made, batch_size=16, epochs=steps * 16 / len(records), seed=0)
    for _ in train(loaded.models, made, source, update):
        pass
    return loaded.models


def fine_tuned(shares: Shares) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=END,
    )
    models = trained(AutoModelForCausalLM.from_config(config), "sft", demonstrations(shares), 120, 1e-2)
    return models["policy"].transformer


@pytest.fixture(scope="module")
def on_the_chosen() -> PreTrainedModel:
    return fine_tuned(BETTER)


def judged(directory: Path, start: PreTrainedModel, method: str, makes: Any, **settings: float) -> tuple[Any, Any]:
    """What is found, on held-out pairs, of a training from this start; and its figures."""
    models = trained(copy.deepcopy(start), method, makes(2), 60, 4e-4, beta=0.5, **settings)
    held = [completion for pair in makes(3) for completion in pair.completions]
    shelf = shelved(directory, models, tokens_of(held, [n // 2 for n in range(len(held))]), method=method)
    (found,) = findings(shelf)
    return found, fall_of(moved(shelf))


def test_after_fine_tuning_on_the_chosen_they_fall_and_that_is_expected(
    on_the_chosen: PreTrainedModel, tmp_path: Path
) -> None:
    found, fall = judged(tmp_path, on_the_chosen, "dpo", pairs)
    assert (found.level, found.act) == ("expected", "")
    assert "no more than leaving the reference costs" in found.told
    assert fall.chosen.value < 0
    assert fall.chosen.value == pytest.approx(fall.forced.value, abs=0.3)  # the theory: all of it
    assert fall.rejected.value < 3 * fall.chosen.value


def test_with_no_fine_tuning_nothing_forces_them_to_fall_and_they_rise(tmp_path: Path) -> None:
    found, fall = judged(tmp_path, fine_tuned(OTHERWISE), "dpo", pairs)
    assert (found.level, found.act) == ("expected", "")
    assert "the reference was not made for them" in found.told
    assert fall.chosen.value > 0.5
    assert fall.far.value > 2


def test_dpop_holds_them_up(on_the_chosen: PreTrainedModel, tmp_path: Path) -> None:
    found, fall = judged(tmp_path, on_the_chosen, "dpop", pairs, penalty=5.0)
    assert (found.level, found.act) == ("expected", "")
    assert "they did not fall" in found.told
    assert fall.rejected.value < fall.chosen.value


def test_pairs_that_are_the_same_up_to_a_like_word_lose_both_unless_they_are_held_up(
    on_the_chosen: PreTrainedModel, tmp_path: Path
) -> None:
    """The only way to tell two words of one direction apart is to leave it: the margin grows on what neither keeps."""
    planted = copy.deepcopy(on_the_chosen)
    words = planted.get_output_embeddings().weight
    with torch.no_grad():
        words[SURELY] = 1.1 * words[YES]
    found, fall = judged(tmp_path, planted, "dpo", alike)
    assert found.level == "act"
    assert "leave these 300 pairs out, or train with dpop" in found.act
    assert len(found.records) == 300
    assert fall.gone
    assert fall.rejected.value < fall.chosen.value < -1  # the margin did grow
    cured, held = judged(tmp_path / "dpop", planted, "dpop", alike, penalty=5.0)
    assert (cured.level, held.gone) == ("expected", False)
    assert held.chosen.value > 0 > held.rejected.value
