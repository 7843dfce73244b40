"""Decoding that values guide: by hand, by its laws and their mistakes, and on transformers against full scores."""

from collections.abc import Callable
from functools import cache
from itertools import repeat
from pathlib import Path

import pytest
import torch
from tiny import tiny, tokenizer
from torch import Tensor

from softq.lm.growing import Growing
from softq.lm.load import load, load_reward_model
from softq.lm.reward import RewardModel
from softq.mdp.tabular import TabularLM, random_table, token_tree
from softq.objectives.values import value
from softq.records import Batch
from softq.search.answer import Answer, Limits
from softq.search.beam import beam
from softq.search.decoders import DECODERS
from softq.search.guided import Guided, composed
from softq.search.heard import Heard
from softq.search.scoring import tokens_of
from softq.search.voice import Likelihood, Speaker
from softq.training.loop import train
from softq.training.update import AdamW
from softq.verify import value_laws
from softq.verify.law import Finding
from softq.verify.theory import TABLES
from softq.verify.value_laws import VALUE_LAWS

PROMPTS = [torch.tensor([5, 6, 7, 8, 9, 10, 11]), torch.tensor([12]), torch.tensor([13, 14, 15])]
LIMITS = Limits(7, frozenset([2]))
PARTS = {"value": 0.9, "other": -0.4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict]:
    """A policy and two values, one with another body than the policy's, in a layout."""
    names = {"value": "llama", "other": "gpt2"}
    for name, body in names.items():
        torch.manual_seed(4)
        tiny(body, torch.float32).save_pretrained(tmp_path_factory.getbasetemp() / name)

    @cache
    def made(layout: str) -> dict:
        policy = tiny("llama", torch.float32)
        with torch.no_grad():
            policy.get_output_embeddings().weight.mul_(0.3)
            policy.get_output_embeddings().weight[2] *= 3  # some answers end
        found: dict = {"policy": load(policy, None, tokenizer=tokenizer(), layout=layout).policy}
        for seed, name in enumerate(names):
            torch.manual_seed(seed)
            place = str(tmp_path_factory.getbasetemp() / name)
            found[name] = load_reward_model(place, tokenizer=tokenizer(), layout=layout).policy
            assert isinstance(found[name], RewardModel)
            with torch.no_grad():
                found[name].head.weight.mul_(30)
        return found

    return made


# --- by hand ---


TREE = token_tree([(0, 1)], 3, 2, end=2)


def test_the_candidates_are_tilted_by_what_they_are_worth_and_the_others_stay() -> None:
    logits, worth = torch.zeros(2, len(TREE.prefixes), 3, dtype=torch.float64)
    logits[0], worth[0] = torch.tensor([0.5, 0.0, 1.0]), torch.tensor([2.0, 100.0, 1.0])
    base = Speaker(TabularLM(TREE, logits), Growing([torch.tensor([0, 1])]), 9)
    voice = Guided(base, [(0.4, TabularLM(TREE, worth))], 9, top_k=2)
    assert voice.logits(voice.forest.last).tolist() == [pytest.approx([0.5 + 0.4 * 0.5, 0.0, 1.0 - 0.4 * 0.5])]


def test_what_was_chosen_knows_its_value_in_reward() -> None:
    """Σ w V(s ⊕ a) of every token that was weighed, whatever the strength; nothing of one that was not."""
    tree, prompts = token_tree([(0, 1), (2,)], 4, 4), [torch.tensor([0, 1]), torch.tensor([2])]
    given = {name: TabularLM(tree, random_table(tree, seed)) for seed, name in enumerate(("policy", "value", "brief"))}
    weighed = 0
    for seed in range(5):
        on = Heard(given, prompts, Limits(4, frozenset([3])), seed=seed)
        for number, answers in enumerate(DECODERS["guided"](on, values="value+brief=-0.5", strength=0.3, top_k=2, n=2)):
            for each in answers:
                for t, node in enumerate(on.forest.answered(each.node)):
                    row = given["policy"].rows[(*prompts[number].tolist(), *each.tokens[:t])]
                    token = each.tokens[t]
                    value = on.forest.column("value")[node]
                    if token in given["policy"].table[row].topk(2).indices:
                        worth = given["value"].table[row, token] - 0.5 * given["brief"].table[row, token]
                        assert value == pytest.approx(worth.item())
                        weighed += 1
                    else:
                        assert value.isnan()
        assert on.forest.column("value")[: int(on.forest.last[-1]) + 1].isnan().all()
    assert weighed > 30
    on = Heard(given, prompts, Limits(4))
    DECODERS["guided"](on, strength=0.0)
    assert "value" not in on.forest.columns


def test_a_candidate_that_was_chosen_is_not_computed_again() -> None:
    tree, prompts = token_tree([(0, 1), (2,)], 4, 4), [torch.tensor([0, 1]), torch.tensor([2])]
    policy, value = (TabularLM(tree, random_table(tree, seed)) for seed in (0, 1))
    for seed in range(5):
        on = Heard({"policy": policy, "value": value}, prompts, Limits(4), seed=seed)
        strange = 0  # chosen tokens that were no candidates have to be computed before what stands behind them
        for number, (answer,) in enumerate(DECODERS["guided"](on, top_k=2)):
            for t, token in enumerate(answer.tokens[:-1]):
                state = (*prompts[number].tolist(), *answer.tokens[:t])
                strange += token not in policy.table[policy.rows[state]].topk(2).indices.tolist()
        assert on.evaluations == 2 * 3 + 2 * (2 * 4) + strange


def test_names_and_weights_of_values() -> None:
    assert composed("value") == {"value": 1.0}
    assert composed("value=2 + brief=-0.5+kind") == {"value": 2.0, "brief": -0.5, "kind": 1.0}
    for wrong in ("", "value+", "value=high", "value=nan", "a+a=2"):
        with pytest.raises(ValueError, match=r"expected names, each once, with a weight or none: value\+brief=0.5"):
            composed(wrong)


def test_what_is_missing_or_does_not_fit_is_one_line() -> None:
    policy = TabularLM(TREE, random_table(TREE, 0))
    small = token_tree([(0, 1)], 2, 2)
    given = {"policy": policy, "small": TabularLM(small, random_table(small, 0))}
    on = Heard(given, [torch.tensor([0, 1])], Limits(2, frozenset([2])))
    with pytest.raises(ValueError, match="needs a value: give --value MODEL"):
        DECODERS["guided"](on)
    with pytest.raises(ValueError, match="the model 'small' reads 2 tokens, the policy says 3: a value shares"):
        DECODERS["guided"](on, values="small")
    with pytest.raises(ValueError, match="top_k is 0; expected at least 1"):
        Guided(on.policy, [(1.0, policy)], 9, top_k=0)


def test_a_language_model_is_no_value(models: Callable[[str], dict]) -> None:
    with pytest.raises(
        ValueError, match="the model 'policy' is a language model; give one that says values: softq train"
    ):
        DECODERS["guided"](Heard(models("plain"), PROMPTS, LIMITS), values="policy")


# --- the laws ---


@pytest.mark.parametrize("law", VALUE_LAWS, ids=lambda law: law.name)
def test_the_laws_hold_where_rewards_come_token_by_token(law) -> None:
    found = law.check(TABLES["token rewards"])
    assert isinstance(found, Finding)
    assert found.green, found


class Wrong(Guided):
    """With something planted: what a value says, or what is made of it."""

    how = ""

    def logits(self, nodes: Tensor) -> Tensor:
        base = self.base.logits(nodes) if self.how in ("turned", "not centred") else None
        if base is None:
            return super().logits(nodes)
        right = super().logits(nodes)
        if self.how == "turned":
            return 2 * base - right
        return right.scatter_add(-1, base.topk(self.top_k).indices, torch.ones_like(base))


@pytest.mark.parametrize(
    ("how", "red"),
    [
        ("turned", {"guided by V*", "bias of the mean"}),
        ("not centred", {"unmoved"}),
        ("the state before", {"guided by V*", "bias of the mean", "composed values"}),
        ("nothing behind the end", {"guided by V*", "bias of the mean", "unmoved"}),
        ("the first weight for all", {"composed values"}),
        ("weight squared", {"guided by V*", "bias of the mean", "composed values"}),
    ],
)
def test_each_law_finds_what_is_planted(how: str, red: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    on = TABLES["reward at the end"]

    def planted(weight: float, model: TabularLM, first: float) -> tuple[float, TabularLM]:
        table = model.table.detach()
        if how == "the state before":  # the value of the state in which an action is taken: the same for all
            before = torch.zeros(len(table), dtype=table.dtype)
            inner = on.tree.next >= 0
            before[on.tree.next[inner]] = table[inner]
            table = before[:, None].expand_as(table)
        if how == "nothing behind the end":
            table = table.where(on.tree.next >= 0, 0.0)
        weight = {"the first weight for all": first, "weight squared": weight * abs(weight)}.get(how, weight)
        return weight, TabularLM(on.tree, table)

    def made(base, parts, longest, **more) -> Guided:
        voice = Wrong(base, [planted(*part, parts[0][0]) for part in parts], longest, **more)
        voice.how = how
        return voice

    monkeypatch.setattr(value_laws, "Guided", made)
    found = {law.name for law in VALUE_LAWS if not _green(law.check(on))}
    assert found == red


def _green(finding: Finding | str) -> bool:
    assert isinstance(finding, Finding)
    return finding.green


# --- on transformers ---


def full(models: dict, answers: list[Answer], top_k: int) -> Tensor:
    """Σ log π of guided answers, from full forwards of every prefix and every candidate."""
    policy, sums = models["policy"], []
    for each in answers:
        ids, total = PROMPTS[each.prompt].tolist(), 0.0
        for token in each.tokens:
            logits = policy.transformer(input_ids=torch.tensor([ids])).logits[0, -1]
            chosen = logits.topk(top_k).indices.tolist()
            tilt = torch.zeros(top_k)
            for name, weight in PARTS.items():
                judge = models[name]
                longer = torch.tensor([[*ids, candidate] for candidate in chosen])
                tilt += (
                    weight * judge.head(judge.transformer.base_model(input_ids=longer).last_hidden_state[:, -1])[:, 0]
                )
            logits[chosen] += tilt - tilt.mean()
            total += logits.log_softmax(-1)[token].item()
            ids.append(token)
        sums.append(total)
    return torch.tensor(sums, dtype=torch.float64)


def searched(models: dict, prompts: list[Tensor], numbers: list[int] | None = None) -> list[list[Answer]]:
    on = Heard(models, prompts, LIMITS, seed=3, numbers=numbers)
    return DECODERS["guided"](on, n=2, top_k=6, values="value=0.9+other=-0.4")


@pytest.mark.parametrize("layout", ["packed", "padded", "plain"])
def test_cached_numbers_are_those_of_full_forwards(layout: str, models: Callable[[str], dict]) -> None:
    answers = [answer for each in searched(models(layout), PROMPTS) for answer in each]
    assert {answer.ended for answer in answers} == {True, False}
    with torch.no_grad():
        expected = full(models("plain"), answers, 6)
    torch.testing.assert_close(
        torch.tensor([a.logp for a in answers], dtype=torch.float64), expected, rtol=0, atol=1e-5
    )


def test_what_is_found_depends_on_no_layout_and_no_neighbour(models: Callable[[str], dict]) -> None:
    together = [[answer.tokens for answer in each] for each in searched(models("packed"), PROMPTS)]
    assert [[answer.tokens for answer in each] for each in searched(models("plain"), PROMPTS)] == together
    for number, prompt in enumerate(PROMPTS):
        (alone,) = searched(models("packed"), [prompt], [number])
        assert [answer.tokens for answer in alone] == together[number]


def test_without_strength_it_is_sampling_to_the_bit_and_asks_no_value(models: Callable[[str], dict]) -> None:
    found = models("packed")
    on, plain = (Heard(found, PROMPTS, LIMITS, seed=3) for _ in range(2))
    assert DECODERS["guided"](on, n=2, strength=0.0) == DECODERS["sample"](plain, n=2)
    assert on.evaluations == plain.evaluations > 0


def test_the_stronger_the_more_its_answers_are_worth(models: Callable[[str], dict]) -> None:
    means = []
    for strength in (-1.0, 0.0, 1.0):
        on = Heard(models("packed"), PROMPTS, LIMITS, seed=3)
        answers = [answer for each in DECODERS["guided"](on, n=8, strength=strength) for answer in each]
        judge = Heard({"reward": models("packed")["value"]}, PROMPTS, LIMITS)
        judge.forest, ids = on.forest, tokens_of(PROMPTS, answers)
        assert ids.action.any()
        means.append(judge.rewards(answers).mean().item())
    assert means == sorted(means)
    assert means[2] - means[0] > 1


def test_beams_are_guided_too(models: Callable[[str], dict]) -> None:
    """Beams drop and keep nodes; their scores are those of full forwards all the same."""
    found = models("packed")
    forest = Growing(PROMPTS)
    parts = [(weight, found[name]) for name, weight in PARTS.items()]
    voice = Guided(Speaker(found["policy"], forest, 20), parts, 20, top_k=6)
    answers = [answer for each in beam(Likelihood(voice), LIMITS, width=3, n=3) for answer in each]
    with torch.no_grad():
        expected = full(models("plain"), answers, 6)
    torch.testing.assert_close(
        torch.tensor([a.score for a in answers], dtype=torch.float64), expected, rtol=0, atol=1e-5
    )


def test_a_value_that_was_learned_from_samples_raises_what_they_were_scored_by(tmp_path: Path) -> None:
    """Samples of a policy, scored by how many of their tokens are even; a value of another body and seed; decoded with it."""
    policy = tiny("llama", torch.float32)
    with torch.no_grad():
        policy.get_output_embeddings().weight.mul_(0.6)
    loaded = load(policy, None, tokenizer=tokenizer())
    body = tiny("gpt2", torch.float32)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.mul_(0.1 if parameter.dim() > 1 else 1.0)  # their usual size: large ones learn slowly
    body.save_pretrained(tmp_path)
    torch.manual_seed(0)
    learner = load_reward_model(str(tmp_path), tokenizer=tokenizer())

    def answers(models: dict, seed: int, name: str, **settings) -> list[Answer]:
        on = Heard({"policy": loaded.policy, **models}, PROMPTS, Limits(3), seed=seed)
        return [answer for each in DECODERS[name](on, **settings) for answer in each]

    def even(found: list[Answer]) -> Tensor:
        return torch.tensor([sum(token % 2 == 0 for token in each.tokens) for each in found], dtype=torch.float32)

    seen = answers({}, 0, "sample", n=20)
    batch = Batch(tokens_of(PROMPTS, seen), None, {"reward": even(seen)})
    update = AdamW(learner.models, learning_rate=1e-2)
    losses = [step.metrics["loss"] for step in train(learner.models, value(), lambda _: repeat(batch, 30), update)]
    assert losses[-1] < losses[0] / 4
    means = []
    for strength in (-3.0, 0.0, 3.0):
        found = answers({"value": learner.policy}, 1, "guided", n=20, strength=strength)
        means.append(even(found).mean().item())
    assert means[2] > means[1] + 0.5 > means[0] + 1
