"""The house against an independent text: the one-file examples give the same loss, gradient and steps."""

import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from softq.data.encode import Encoded
from softq.data.read import read
from softq.lm.load import Loaded, load
from softq.objectives import METHODS
from softq.objectives.unpaired import kl_estimate
from softq.records import Method
from softq.training.loop import with_columns
from softq.training.plan import plan
from softq.training.source import batch_of

EXAMPLES = Path(__file__).parent.parent / "examples"
SETTINGS: Mapping[str, dict[str, Any]] = {
    "dpo": {"beta": 0.3},
    "kto": {"beta": 0.3, "desirable_weight": 1.2, "undesirable_weight": 0.9},
    "simpo": {"beta": 2.0, "gamma": 0.5},
}
AT_THE_START = {"dpo": "8 pairs, loss 0.6931", "kto": "8 pairs, loss 0.5000", "simpo": "8 pairs, loss "}
AT_THE_REFERENCE = {"dpo": 0.6931, "kto": (1.2 + 0.9) / 4}
Gradient = dict[str, Tensor]


@pytest.fixture(scope="module")
def another_directory(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is worse at everything: with it as the reference, log-ratios are positive, and KTO's baseline is."""
    directory = tmp_path_factory.mktemp("another")
    model = AutoModelForCausalLM.from_pretrained(model_directory)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(model_directory).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_gradient_are_those_of_the_one_file(
    name: str, model_directory: Path, another_directory: Path, pairs_file: Path
) -> None:
    """In float32 on a policy away from its reference, in several micro-batches of shared, packed prompts."""
    loaded = load(str(model_directory), str(another_directory))
    records = read(pairs_file, loaded.tokenizer).records[:8]
    total, ours = of_softq(METHODS[name](**SETTINGS[name]), loaded, records)
    policy = AutoModelForCausalLM.from_pretrained(model_directory)
    reference = AutoModelForCausalLM.from_pretrained(another_directory)
    loss = of_the_example(name, policy, reference, records)
    loss.backward()
    assert name not in AT_THE_REFERENCE or abs(loss.item() - AT_THE_REFERENCE[name]) > 0.01
    assert total == pytest.approx(loss.item(), rel=1e-5)
    theirs = {name: p.grad for name, p in policy.named_parameters()}
    assert ours.keys() == theirs.keys()
    for key, gradient in theirs.items():
        torch.testing.assert_close(ours[key], gradient, rtol=1e-3, atol=1e-6, msg=key)


def of_softq(method: Method, loaded: Loaded, records: list[Encoded]) -> tuple[float, Gradient]:
    """Loss and gradient of one step of all records, by the road of a training run."""
    batch = with_columns(batch_of(records, range(len(records)), method), method.memory)
    made = plan(method, loaded.models, batch, tokens_per_micro=80)
    assert len(made.micros) > 2
    total = 0.0
    for micro in made.micros:
        share = micro.share(loaded.models(micro.batch.tokens, method.needs))
        share.backward()
        total += share.item()
    if method.takes == "labels+mismatched":
        assert kl_estimate(loaded.models(batch.tokens, method.needs), batch) > 0.01  # or it would not be seen
    if made.whole:  # a coupled method's parts add up to the gradient only
        total = made.whole[1].item()
    return total, {name: p.grad.clone() for name, p in loaded.policy.model.named_parameters() if p.grad is not None}


def of_the_example(name: str, policy: PreTrainedModel, reference: PreTrainedModel, records: list[Encoded]) -> Tensor:
    """The same by the example."""
    pairs = []
    for record in records:
        start = int(record.completions[0].action.argmax()) + 1
        chosen, rejected = (completion.ids.tolist() for completion in record.completions)
        pairs.append((chosen[:start], chosen[start:], rejected[start:]))
    example = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    given = {
        "dpo": lambda: (policy, reference, pairs),
        "kto": lambda: (policy, reference, *example["judgements"](pairs)),
        "simpo": lambda: (policy, pairs),
    }[name]()
    return example[f"{name}_loss"](*given, **SETTINGS[name])


def test_kto_puts_every_completion_under_another_prompt(pairs_file: Path) -> None:
    """By hand: pair 0's prompt gets pair 1's completions, and the last pair's the first's."""
    judged, strangers = runpy.run_path(str(EXAMPLES / "kto.py"))["judgements"]([([1], [2], [3]), ([4], [5], [6])])
    assert judged == [([1], [2], True), ([1], [3], False), ([4], [5], True), ([4], [6], False)]
    assert strangers == [([1], [5]), ([1], [6]), ([4], [2]), ([4], [3])]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_example_runs(
    name: str, model_directory: Path, pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](str(model_directory), str(pairs_file), str(tmp_path / "out"))
    assert AT_THE_START[name] in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", SETTINGS)
def test_an_example_is_one_short_file_without_softq(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "import softq" not in text
    assert "from softq" not in text
