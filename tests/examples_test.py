"""The house against an independent text: the one-file example gives the same loss, gradient and steps."""

import runpy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from softq.data.read import read
from softq.lm.load import load
from softq.objectives import METHODS
from softq.training.plan import plan
from softq.training.source import batch_of

EXAMPLE = Path(__file__).parent.parent / "examples" / "dpo.py"


def test_loss_and_gradient_are_those_of_the_one_file_dpo(model_directory: Path, pairs_file: Path) -> None:
    """In float32 on a policy away from its reference, in three micro-batches of shared, packed prompts."""
    loaded = load(str(model_directory))
    with torch.no_grad():
        for parameter in loaded.policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    records = read(pairs_file, loaded.tokenizer).records[:8]
    method = METHODS["dpo"](beta=0.3)
    batch = batch_of(records, range(8), method)
    total = 0.0
    made = plan(method, loaded.models, batch, tokens_per_micro=80)
    assert len(made.micros) > 2
    for micro in made.micros:
        share = micro.share(loaded.models(micro.batch.tokens, method.needs))
        share.backward()
        total += share.item()
    ours = {name: p.grad.clone() for name, p in loaded.policy.model.named_parameters()}

    policy = AutoModelForCausalLM.from_pretrained(model_directory)
    policy.load_state_dict(loaded.policy.model.state_dict())
    pairs = []
    for record in records:
        start = int(record.completions[0].action.argmax()) + 1
        chosen, rejected = (completion.ids.tolist() for completion in record.completions)
        pairs.append((chosen[:start], chosen[start:], rejected[start:]))
    example = runpy.run_path(str(EXAMPLE))
    loss = example["dpo_loss"](policy, AutoModelForCausalLM.from_pretrained(model_directory), pairs, beta=0.3)
    loss.backward()
    assert abs(loss.item() - 0.6931) > 0.01
    assert total == pytest.approx(loss.item(), rel=1e-5)
    theirs = {name: p.grad for name, p in policy.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_the_example_runs(
    model_directory: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    runpy.run_path(str(EXAMPLE))["main"](str(model_directory), str(pairs_file), str(tmp_path / "out"))
    assert "8 pairs, loss 0.6931" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").is_file()
