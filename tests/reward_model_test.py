"""A reward model: what it reads, what transformers makes of its files, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SMALL, odd_rows, tiny, tokenizer, tokens_of
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from softq.lm.load import load, load_reward_model
from softq.lm.reference import fingerprint
from softq.lm.score import Models, score
from softq.mdp.readouts import VALUE
from softq.objectives import METHODS
from softq.objectives.links import logistic
from softq.objectives.sums import weighted_sum
from softq.records import Batch, Pairs, Tokens
from softq.training.events import Evaluated, Note, Saved
from softq.training.measure import measured, merged
from softq.training.run import run
from softq.training.settings import Call, build
from softq.verify.examples import EXAMPLE_LAWS

MODELS = ("llama", "qwen2", "gpt2", "gpt_neox", "gemma2", "mixtral")


def judge(name: str, labels: int = 1, **more: Any) -> PreTrainedModel:
    """Another library's classifier, with large weights."""
    torch.manual_seed(1)
    whole = tiny(name).config.to_dict() | {"num_labels": labels, **more}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**whole), dtype=torch.float32)
    with torch.no_grad():
        for parameter in (one for one in model.parameters() if one.dim() > 1):
            parameter.mul_(10)
    return model.eval()


def saved(model: PreTrainedModel, directory: Path) -> str:
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return str(directory)


def whole_rows(tokens: Tokens) -> list[Tensor]:
    """The ids of each row up to its last action's."""
    return [ids[: int(acts.nonzero()[-1]) + 2] for ids, acts in zip(tokens.ids, tokens.action, strict=True)]


# --- what it reads ---


def test_the_loss_by_hand() -> None:
    """r_w = 1.5 and r_l = -0.5 are the last values, whatever stands before; Δ = 0.25, μ = 0.1."""
    tokens = tokens_of([(0, [5], [6, 2]), (0, [5], [7, 8, 2])])
    value = torch.tensor([[9.0, 1.5, 0.0], [9.0, -9.0, -0.5]], dtype=torch.float64)
    batch = Batch(tokens, Pairs(torch.tensor([0]), torch.tensor([1])), {"margin": torch.tensor([0.25])})
    method = METHODS["rm"](center=0.1)
    expected = math.log1p(math.exp(-1.75)) + 0.1 * 1.0**2
    assert method.terms[0].loss({"value": value}, batch).tolist() == pytest.approx([expected], rel=1e-12)
    seen = merged([measured(method, {"value": value}, batch)])
    assert (seen["rewards/chosen"], seen["rewards/rejected"], seen["rewards/margins"]) == (1.5, -0.5, 2.0)
    assert (seen["rewards/accuracies"], seen["num_tokens"]) == (1.0, 5.0)
    assert not [name for name in seen if name.startswith("logps")]
    sure = Batch(tokens, batch.feedback, {"label_probability": torch.tensor([0.8])})
    soft = METHODS["rm"]().terms[0].loss({"value": value}, sure).item()
    assert soft == pytest.approx(0.8 * logistic(torch.tensor(2.0)).item() + 0.2 * logistic(torch.tensor(-2.0)).item())


def test_a_constant_of_the_head_does_not_matter_without_centring_and_equal_rows_tie() -> None:
    """Card of arXiv 2409.03650: decisions are antisymmetric, a bias is irrelevant, a tie is counted as wrong."""
    tokens = tokens_of([(0, [5], [6, 2]), (0, [5], [7, 2])])
    value = torch.tensor([[0.0, 0.7], [0.0, 0.2]], dtype=torch.float64)
    pairs, turned = (Batch(tokens, Pairs(torch.tensor([w]), torch.tensor([1 - w]))) for w in (0, 1))
    (rm,), (centred,) = METHODS["rm"]().terms, METHODS["rm"](center=0.1).terms
    assert rm.loss({"value": value + 3}, pairs).item() == pytest.approx(rm.loss({"value": value}, pairs).item())
    assert centred.loss({"value": value + 3}, pairs).item() > centred.loss({"value": value}, pairs).item() + 1
    right = [
        merged([measured(METHODS["rm"](), {"value": value}, one)])["rewards/accuracies"] for one in (pairs, turned)
    ]
    assert right == [1.0, 0.0]
    tied = merged([measured(METHODS["rm"](), {"value": 0 * value}, pairs)])
    assert (tied["rewards/accuracies"], tied["rewards/ties"]) == (0.0, 1.0)


@pytest.mark.parametrize("name", MODELS)
def test_the_value_of_a_row_is_what_transformers_says_of_the_row(name: str, tmp_path: Path) -> None:
    """In whatever layout is chosen, of rows that share prompts and differ in length; another library's head is kept."""
    theirs = judge(name)
    loaded = load_reward_model(saved(theirs, tmp_path))
    tokens = odd_rows()
    found = score(loaded.models, tokens, (VALUE,))
    assert set(found) == {"value"}
    theirs.config.pad_token_id = None
    for row, ids in enumerate(whole_rows(tokens)):
        with torch.no_grad():
            each = [theirs(input_ids=ids[None, :end]).logits.item() for end in range(2, len(ids) + 1)]
        acted = tokens.action[row, : len(ids) - 1]
        expected = torch.tensor(each)[acted]
        torch.testing.assert_close(found["value"][row, : len(ids) - 1][acted].detach(), expected, rtol=1e-4, atol=1e-4)
    assert not found["value"][~tokens.action].any()
    assert not loaded.policy.fresh  # pyright: ignore[reportAttributeAccessIssue]
    assert not [note for note in loaded.notes if "drawn" in note]


def test_gradient_reaches_body_and_head_and_is_that_of_plain_rows(tmp_path: Path) -> None:
    place = saved(judge("llama"), tmp_path)
    gradients = []
    for layout in ("plain", "packed", "padded"):
        loaded = load_reward_model(place, layout=layout)
        tokens = odd_rows()
        value = score(loaded.models, tokens, (VALUE,))["value"]
        (value * torch.linspace(-1, 1, value.numel()).view_as(value)).sum().backward()
        gradients.append({name: p.grad for name, p in loaded.policy.named_parameters()})
    assert set(gradients[0]) >= {"model.score.weight"}
    for name, plain in gradients[0].items():
        assert plain is not None, name
        assert plain.norm() > 0, name
        for other in gradients[1:]:
            torch.testing.assert_close(other[name], plain, rtol=1e-3, atol=1e-3 * plain.abs().max().item())


# --- from a language model, and back ---


def settings(model: Path | str, data: Path, output: Path, **more: Any) -> dict[str, Any]:
    base = {"model": str(model), "data": [str(data)], "output": str(output), "learning_rate": 3e-3, "batch_size": 4}
    return {**base, "eval_fraction": 0.2, "eval_steps": 4, "max_steps": 8, "num_train_epochs": 3, **more}


def trained(values: dict[str, Any], name: str = "rm", **call: Any) -> list[Any]:
    chosen, method, understood = build(name, values)
    return list(run(name, chosen, method, understood, Call(**call)))


@pytest.fixture(scope="module")
def output(model_directory: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rm") / "out"
    events = trained(settings(model_directory, pairs_file, place, center=0.01, learning_rate=1e-2, max_steps=12))
    said = "\n".join(event.text for event in events if isinstance(event, Note))
    assert "its head over tokens is left out, and one of one number drawn" in said
    assert "no padding token beside its end token" in said  # of this tokenizer they are one
    assert isinstance(events[-1], Saved)
    (last,) = [event for event in events[-2:] if isinstance(event, Evaluated)]
    assert last.metrics["eval_rewards/accuracies"] == 1.0
    return place


def test_transformers_loads_what_was_trained_and_reads_the_same_reward(output: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(output)
    words = AutoTokenizer.from_pretrained(output)
    ours = load_reward_model(str(output))
    prompt, answer = words("Say 3:")["input_ids"], words(" stones are still")["input_ids"]
    ids = [*prompt, *answer, words.eos_token_id]
    tokens = tokens_of([(0, prompt, [*answer, words.eos_token_id]), (0, prompt, answer)])
    with torch.no_grad():
        theirs = [model(input_ids=torch.tensor([row])).logits.item() for row in (ids, ids[:-1])]
        found = score(ours.models, tokens, (VALUE,))["value"]
    last = [len(ids) - 2, len(ids) - 3]
    assert [found[row, t].item() for row, t in enumerate(last)] == pytest.approx(theirs, abs=1e-5)
    assert abs(theirs[0] - theirs[1]) > 1e-3  # it is read behind the end token, not before it
    record = json.loads((output / "manifest.json").read_text())
    assert record["reward_model"]
    assert not record["verified"]["red"] if record["verified"] else True
    card = (output / "README.md").read_text()
    assert 'pipeline_tag: "text-classification"' in card
    assert "AutoModelForSequenceClassification.from_pretrained(name)" in card
    assert not (output / "generation_config.json").exists()


def test_a_batch_of_padded_rows_is_read_at_its_end_tokens(tmp_path: Path) -> None:
    """Where the tokenizer has a padding token of its own, the saved config knows it."""
    torch.manual_seed(0)
    tiny("llama", torch.float32).save_pretrained(tmp_path / "lm")
    tokenizer().save_pretrained(tmp_path / "lm")
    ours = load_reward_model(str(tmp_path / "lm"))
    ours.policy.model.save_pretrained(tmp_path / "rm")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert model.config.pad_token_id == SMALL["pad_token_id"]
    tokens = tokens_of([(0, [5, 6], [7, 8, 2]), (1, [9], [2])], pad=SMALL["pad_token_id"])
    with torch.no_grad():
        found = METHODS["rm"]().reward(score(ours.models, tokens, (VALUE,)), Batch(tokens))
        theirs = model(input_ids=tokens.ids, attention_mask=(tokens.ids != 0).long()).logits[:, 0]
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)


def test_training_goes_on_from_a_reward_model_with_its_head(output: Path, pairs_file: Path, tmp_path: Path) -> None:
    events = trained(settings(output, pairs_file, tmp_path / "more", max_steps=1, learning_rate=1e-9, eval_steps=1))
    assert not [event for event in events if isinstance(event, Note) and "drawn" in event.text]
    (seen,) = [event.metrics for event in events if isinstance(event, Evaluated)]
    assert seen["eval_rewards/accuracies"] == 1.0


def test_the_head_is_drawn_by_the_seed_and_is_no_part_of_where_a_run_starts(model_directory: Path) -> None:
    marks, heads = [], []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        policy = load_reward_model(str(model_directory)).policy
        marks.append(fingerprint(policy, adapter=False))
        heads.append(policy.head.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert len(set(marks)) == 1


# --- what is refused ---


def test_a_reward_model_is_no_policy(output: Path, model_directory: Path) -> None:
    with pytest.raises(ValueError, match="is a reward model: it has no head over tokens"):
        load(str(output), None)
    with pytest.raises(ValueError, match="is a reward model"):
        load(str(model_directory), str(output))


def test_a_classifier_of_several_labels_and_an_adapter_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tells 3 labels apart; a reward model has one"):
        load_reward_model(saved(judge("llama", 3), tmp_path / "three"))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "m", "peft_type": "LORA"}')
    with pytest.raises(ValueError, match="is an adapter; a reward model starts from a whole model: softq merge"):
        load_reward_model(str(tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("more", "call", "said"),
    [
        ({"use_peft": True}, {}, "--use-peft: rm trains a reward model whole"),
        ({"reference": "uniform"}, {}, "--reference: rm reads no reference; leave it out"),
        ({}, {"samples": 2}, "--samples 2: a reward model answers nothing; leave it out"),
    ],
)
def test_what_a_reward_model_has_no_use_for(
    more: dict, call: dict, said: str, model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        trained(settings(model_directory, pairs_file, tmp_path / "no", **more), **call)


def test_a_sum_with_a_policys_method_is_refused() -> None:
    with pytest.raises(ValueError, match="it can not be summed with a method that trains a policy"):
        weighted_sum([(METHODS["rm"](), 1.0), (METHODS["sft"](), 0.1)])


def test_models_without_a_value_say_so() -> None:
    with pytest.raises(ValueError, match=r"a readout sees the model\(s\) \['policy'\], but only \['ref'\] are loaded"):
        score(Models({"ref": torch.nn.Identity()}), odd_rows(), (VALUE,))


def test_the_law_of_the_reward_model_finds_a_turned_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    (law,) = [law for law in EXAMPLE_LAWS if law.name == "reward model"]
    found = law.check(None)
    assert not isinstance(found, str)
    assert found.green
    right = METHODS["rm"]()
    (term,) = right.terms

    def turned(scored: Any, batch: Batch) -> Tensor:
        return term.loss({"value": -scored["value"]}, batch)

    monkeypatch.setattr("softq.verify.examples.rm", lambda: right._replace(terms=(term._replace(loss=turned),)))
    off = law.check(None)
    assert not isinstance(off, str)
    assert not off.green
