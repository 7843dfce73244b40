"""Value models: what their losses are, number by number, and that they are trained, saved and read as classifiers."""

import json
import math
from pathlib import Path

import pytest
import torch
from calls import called
from tiny import tokens_of
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from softq.lm.load import load_reward_model
from softq.mdp.readouts import VALUE
from softq.mdp.soft import mean_backup, soft_backup
from softq.mdp.tabular import along, at_the_end, every_trajectory, expected, random_table, token_tree
from softq.objectives.values import lambda_return, linear_exponential, soft_value, value
from softq.records import Batch
from softq.training.measure import measured, merged
from softq.verify.examples import EXAMPLE_LAWS
from softq.verify.law import Finding

# --- the losses ---


def rows(*rewards: float) -> Batch:
    """A completion of three tokens and one of two, of one prompt."""
    tokens = tokens_of([(0, [5], [6, 7, 2]), (0, [5], [8, 2])])
    return Batch(tokens, None, {"reward": torch.tensor(rewards, dtype=torch.float64)})


VALUES = torch.tensor([[0.4, -0.2, 9.0], [0.6, 5.0, 0.0]], dtype=torch.float64)


def test_lambda_returns_by_hand() -> None:
    """R behind the last token and before it; further up (1-λ) V' + λ G', whatever the value behind the end says."""
    batch = rows(1.0, -2.0)
    targets = lambda_return({"value": VALUES}, batch, lam=0.75)["value_target"]
    assert targets.tolist() == [pytest.approx([0.25 * -0.2 + 0.75 * 1, 1, 1]), [-2, -2, 0]]
    whole = lambda_return({"value": VALUES}, batch, lam=1.0)["value_target"]
    assert whole.tolist() == [[1, 1, 1], [-2, -2, 0]]


def test_a_turn_of_the_user_between_two_actions_is_passed_over() -> None:
    batch = rows(1.0, 3.0)
    action = batch.tokens.action.clone()
    action[0, 1] = False
    wide = Batch(
        type(batch.tokens)(batch.tokens.ids, action, batch.tokens.ended, batch.tokens.prompt), None, batch.columns
    )
    assert lambda_return({"value": VALUES}, wide, lam=0.5)["value_target"].tolist() == [[1, 0, 1], [3, 3, 0]]


def test_the_loss_of_value_by_hand() -> None:
    batch, method = rows(1.0, -2.0), value(lam=0.75)
    targets = method.credit({"value": VALUES}, batch)
    (term,) = method.terms
    whole = Batch(batch.tokens, None, {**batch.columns, **targets})
    losses = term.loss({"value": VALUES}, whole)
    assert losses.tolist() == [
        pytest.approx([(0.4 - 0.7) ** 2 / 2, 1.2**2 / 2, 32.0]),
        pytest.approx([2.6**2 / 2, 24.5, 0.0]),
    ]
    assert term.weigh(whole).tolist() == [[0.2] * 3, [0.2, 0.2, 0.0]]
    assert method.reward({"value": VALUES}, batch).tolist() == [9.0, 5.0]


def test_the_loss_of_soft_value_by_hand() -> None:
    """β² (e^z - 1 - z), z = (R - V)/β, with β = 0.5; what is logged is the value."""
    batch, method = rows(1.0, -2.0), soft_value(beta=0.5)
    losses = method.terms[0].loss({"value": VALUES}, batch)
    expected = [0.25 * (math.exp(z) - 1 - z) for z in (1.2, 2.4, -16.0, -5.2, -14.0)]
    assert losses[batch.tokens.action].tolist() == pytest.approx(expected, rel=1e-12)
    assert losses[1, 2] == 0
    seen = merged([measured(method, {"value": VALUES}, batch)])
    assert (seen["rewards/chosen"], seen["rewards/rejected"], seen["scores/chosen"]) == (9.0, 5.0, 9.0)


def test_the_exponential_goes_on_as_its_tangent_with_a_gradient() -> None:
    z = torch.tensor([-1e4, 0.0, 20.0, 25.0, 1e6], dtype=torch.float64, requires_grad=True)
    linear_exponential(z).sum().backward()
    steep = math.exp(20) - 1
    assert z.grad is not None
    assert z.grad.tolist() == pytest.approx([-1, 0, steep, steep, steep], rel=1e-12)
    at = linear_exponential(z.detach())
    assert at.tolist() == pytest.approx(
        [1e4 - 1, 0, steep - 20, steep - 20 + 5 * steep, steep - 20 + (1e6 - 20) * steep]
    )


def test_a_large_beta_is_the_square_and_the_end_of_samples_is_their_log_mean_exp() -> None:
    batch = rows(1.0, -2.0)
    far = soft_value(beta=1e4).terms[0].loss({"value": VALUES}, batch)
    square = (batch.columns["reward"][:, None] - VALUES).square() / 2 * batch.tokens.action
    torch.testing.assert_close(far, square, rtol=1e-3, atol=1e-6)
    scores = torch.tensor([3.0, -1.0, 0.5, 400.0], dtype=torch.float64)
    low, high = torch.tensor([-10.0, 500.0], dtype=torch.float64)
    for _ in range(60):  # where the slope is 0, by halves
        middle = ((low + high) / 2).requires_grad_()
        (slope,) = torch.autograd.grad(linear_exponential((scores - middle) / 0.3).sum(), middle)
        low, high = (middle.detach(), high) if slope < 0 else (low, middle.detach())
    assert high.item() == pytest.approx((0.3 * (torch.logsumexp(scores / 0.3, 0) - math.log(4))).item(), rel=1e-12)


def test_a_setting_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lam is 1.5; expected 0 ≤ lam ≤ 1"):
        value(lam=1.5)
    with pytest.raises(ValueError, match=r"beta is 0; expected beta > 0"):
        soft_value(beta=0)


def test_the_mean_backup_is_the_expectation_over_all_that_follows() -> None:
    tree = token_tree([(0,), (1, 1)], vocabulary=3, horizon=3, end=2)
    leaves, logp = every_trajectory(tree), random_table(tree, 3).log_softmax(-1)
    reward = random_table(tree, 4)
    q = mean_backup(tree, reward, logp)
    start = (logp[:2].exp() * q[:2]).sum(-1)
    sums = along(tree, reward, leaves).sum(-1)
    torch.testing.assert_close(start, expected(along(tree, logp, leaves).sum(-1), sums, leaves.prompt))
    soft = soft_backup(tree, at_the_end(tree, leaves, sums), logp, beta=1e5).q_kl
    torch.testing.assert_close(soft, mean_backup(tree, at_the_end(tree, leaves, sums), logp), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("wrong", ["a state too early", "not behind the end", "turned", "another temperature"])
def test_the_law_of_values_finds_it(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (law,) = [law for law in EXAMPLE_LAWS if law.name == "values"]
    right, soft = value(), soft_value(beta=0.5)
    (term,) = right.terms

    def early(scored, batch):
        return term.loss({"value": scored["value"].roll(1, -1)}, batch)

    def open_end(scored, batch):
        behind = batch.tokens.action.flip(-1).cumsum(-1).flip(-1) > 1
        return term.loss(scored, batch) * behind

    def turned(scored, batch):
        return soft.terms[0].loss({"value": -scored["value"]}, batch)

    loss = {"a state too early": early, "not behind the end": open_end}.get(wrong)
    if loss:
        monkeypatch.setattr(
            "softq.verify.examples.value", lambda **_: right._replace(terms=(term._replace(loss=loss),))
        )
    else:
        bad = soft_value(beta=0.6) if wrong == "another temperature" else soft
        if wrong == "turned":
            bad = soft._replace(terms=(soft.terms[0]._replace(loss=turned),))
        monkeypatch.setattr("softq.verify.examples.soft_value", lambda **_: bad)
    found = law.check(None)
    assert isinstance(found, Finding)
    assert not found.green


# --- the model ---


@pytest.mark.parametrize("method", ["value", "soft_value"])
def test_a_value_is_trained_from_scored_completions_and_read_by_transformers(
    method: str, model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    answers, scores = [" the cat", " a dog ran", " no"], [1.0, -1.0, 0.0]
    data = tmp_path / "scored.jsonl"
    lines = [json.dumps({"prompt": f"Say {n}:", "completions": answers, "scores": scores}) for n in range(6)]
    data.write_text("\n".join(lines))
    given = ["--model", str(model_directory), "--data", str(data), "--output", str(tmp_path / "out")]
    steps = ["--learning-rate", "5e-3", "--max-steps", "25", "--batch-size", "6", "--num-train-epochs", "25"]
    code, _, error = called(["train", method, *given, *steps, "--eval-fraction", "0"], capsys)
    assert (code, error) == (0, "")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = load_reward_model(str(tmp_path / "out"))
    prompt = words("Say 3:")["input_ids"]
    for answer, score in zip(answers, scores, strict=True):
        ids = [*prompt, *words(answer)["input_ids"], words.eos_token_id]
        tokens = tokens_of([(0, prompt, ids[len(prompt) :])])
        with torch.no_grad():
            found = ours.models(tokens, (VALUE,))["value"][0]
            each = [
                theirs(input_ids=torch.tensor([ids[:end]])).logits.item()
                for end in range(len(prompt) + 1, len(ids) + 1)
            ]
        assert found[len(prompt) - 1 :].tolist() == pytest.approx(each, abs=1e-4)
        assert each[-1] == pytest.approx(score, abs=0.25), "behind its end token an answer is worth its score"
    record = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert record["reward_model"]
    assert not record["verified"]["red"]
