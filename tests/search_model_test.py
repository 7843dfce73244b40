"""Every decoder on a transformers model: its numbers are those of the full score, whatever the layout and the grouping."""

from functools import cache
from tempfile import TemporaryDirectory

import pytest
import torch
from tiny import VOCABULARY, tiny, tokenizer
from torch import Tensor

from softq.lm.load import load, load_reward_model
from softq.lm.model import CausalLM
from softq.lm.reward import RewardModel
from softq.search.answer import Answer, Limits
from softq.search.best_of import Score
from softq.search.decoders import DECODERS
from softq.search.heard import Heard
from softq.search.scoring import logps, tokens_of

PROMPTS = [torch.tensor([5, 6, 7, 8, 9, 10, 11]), torch.tensor([12]), torch.tensor([13, 14, 15])]
LIMITS = Limits(8, frozenset([2]))


@cache
def models(layout: str) -> dict[str, CausalLM]:
    """Float32; the reference and the small pair are the policy moved by noise, so that ratios are moderate."""
    found = {}
    for seed, name in enumerate(("policy", "ref", "tuned", "untuned")):
        model = tiny("llama", torch.float32)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.6).add_(0.03 * torch.randn(parameter.shape, generator=generator))
            model.get_output_embeddings().weight[2] *= 3  # some answers end
        found[name] = load(model, None, tokenizer=tokenizer(), layout=layout).policy
    found["value"] = valued(layout)
    return found


def valued(layout: str) -> CausalLM:
    """A value, whose body is the policy's before it was moved."""
    with TemporaryDirectory() as home:
        tiny("llama", torch.float32).save_pretrained(home)
        torch.manual_seed(0)
        return load_reward_model(home, tokenizer=tokenizer(), layout=layout).policy


def longest(by: str) -> Score:
    assert by == "length"
    return lambda answers: torch.tensor([float(len(answer.tokens)) for answer in answers])


def searched(name: str, layout: str, prompts: list[Tensor], numbers: list[int] | None = None) -> list[list[Answer]]:
    on = Heard(models(layout), prompts, LIMITS, seed=3, numbers=numbers, judge=longest)
    own = {"greedy": {}, "beam_logratio": {}, "mcts": {}, "blockwise": {"branches": 3, "length": 3}}
    own["chunk_beam"] = {"n": 2, "beams": 2, "length": 3}
    own["best_of_n_judged"] = {"n": 2, "by": "length"}
    return DECODERS[name](on, **own.get(name, {"n": 2}))


def logp_of(name: str, answers: list[Answer]) -> Tensor:
    """What the voice that was searched says of answers, from full scores of each model."""
    found = models("plain")
    tokens = tokens_of(PROMPTS, answers)
    if name in ("realigned", "tuned"):
        weights = {"policy": 0.5, "ref": 0.5} if name == "realigned" else {"policy": 1.0, "tuned": 1.0, "untuned": -1.0}
        with torch.no_grad():
            said = {
                m: found[m].model(input_ids=tokens.ids).logits.log_softmax(-1) for m in weights
            }  # rows padded right
        mixed = torch.stack([weight * said[m] for m, weight in weights.items()]).sum(0).log_softmax(-1)[:, :-1]
        each = mixed.gather(-1, tokens.ids[:, 1:, None])[..., 0]
        return (each.double() * tokens.action).sum(-1)
    return logps({"policy": found["ref" if name == "rejection" else "policy"]}, tokens)[0]


NAMES = [name for name in DECODERS if name not in ("best_of_n_reward", "guided")]


@pytest.mark.parametrize("layout", ["packed", "padded", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_cached_numbers_are_those_of_the_full_score(name: str, layout: str) -> None:
    answers = [answer for each in searched(name, layout, PROMPTS) for answer in each]
    assert {answer.prompt for answer in answers} == {0, 1, 2}
    assert all(answer.ended == (answer.tokens[-1] == 2) for answer in answers)
    assert all(answer.ended or len(answer.tokens) == 8 for answer in answers)
    torch.testing.assert_close(
        torch.tensor([answer.logp for answer in answers], dtype=torch.float64),
        logp_of(name, answers),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_is_found_depends_on_no_layout_and_no_neighbour(name: str) -> None:
    together = [[answer.tokens for answer in each] for each in searched(name, "packed", PROMPTS)]
    assert [[answer.tokens for answer in each] for each in searched(name, "plain", PROMPTS)] == together
    for number, prompt in enumerate(PROMPTS):
        (alone,) = searched(name, "packed", [prompt], [number])
        assert [answer.tokens for answer in alone] == together[number]


def test_log_ratio_scores_are_the_implicit_reward() -> None:
    found = models("plain")
    for name in ("beam_logratio", "best_of_n", "rejection"):
        answers = [answer for each in searched(name, "packed", PROMPTS) for answer in each]
        logp, ref_logp = logps(found, tokens_of(PROMPTS, answers))
        assert ref_logp is not None
        expected = (logp - ref_logp).tolist()
        assert [answer.score for answer in answers] == pytest.approx(expected, abs=2e-5)
    answers = [answer for each in searched("chunk_beam", "packed", PROMPTS) for answer in each]
    logp, ref_logp = logps({"policy": found["tuned"], "ref": found["untuned"]}, tokens_of(PROMPTS, answers))
    assert ref_logp is not None
    assert [answer.score for answer in answers] == pytest.approx((logp - ref_logp).tolist(), abs=2e-5)


def own_value(ids: Tensor) -> float:
    """What the value says of a text [n], by its own forward."""
    model = valued("plain")
    assert isinstance(model, RewardModel)
    with torch.no_grad():
        return float(model.head(model.transformer.base_model(input_ids=ids[None]).last_hidden_state[0, -1]))


def test_a_reward_model_chooses_among_samples() -> None:
    on = Heard({"policy": models("packed")["policy"], "reward": models("packed")["value"]}, PROMPTS, LIMITS, seed=3)
    found = DECODERS["best_of_n_reward"](on, samples=6, n=6)
    for number, answers in enumerate(found):
        assert [answer.score for answer in answers] == sorted((answer.score for answer in answers), reverse=True)
        ids = torch.cat([PROMPTS[number], torch.tensor(answers[0].tokens)])
        assert answers[0].score == pytest.approx(own_value(ids), abs=1e-4)


@pytest.mark.parametrize("layout", ["packed", "padded", "plain"])
def test_a_value_judges_what_every_block_led_to(layout: str) -> None:
    """Caches drop what is not gone on from: of several short blocks the last score is still that of the whole text."""
    for number, (answer,) in enumerate(searched("blockwise", layout, PROMPTS)):
        ids = torch.cat([PROMPTS[number], torch.tensor(answer.tokens)])
        assert answer.score == pytest.approx(own_value(ids), abs=1e-4)


def test_a_text_ends_an_answer_at_the_token_that_completes_it() -> None:
    limits = Limits(8, frozenset([2]), lambda said: len(said) >= 2 and said[-1] % 2 == 0)
    for name in ("greedy", "sample", "beam", "beam_logratio"):
        on = Heard(models("packed"), PROMPTS, limits, seed=1)
        for answers in DECODERS[name](on):
            for answer in answers:
                evens = [k for k, token in enumerate(answer.tokens) if (k and token % 2 == 0) or token == 2]
                assert evens == ([len(answer.tokens) - 1] if answer.ended else [])


def test_best_of_sixteen_costs_one_prompt() -> None:
    long = [torch.arange(3, 53) % VOCABULARY]
    on = Heard(models("packed"), long, LIMITS)
    DECODERS["sample"](on, n=16)
    assert 0 < on.evaluations <= 16 * 7, (
        "states of the prompt are computed once and not counted; no state behind the last token"
    )
