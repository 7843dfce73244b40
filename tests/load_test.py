"""From a directory to models: references, adapters, fingerprints, and what is said about layouts."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from tiny import ALONE, alone, gradients, odd_rows, tiny, tokenizer, tokens_of, weighed
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, T5Config, T5ForConditionalGeneration

from softq.lm import probe
from softq.lm import score as scoring
from softq.lm.layouts import LAYOUTS, run_packed, run_padded
from softq.lm.load import Loaded, Lora, load
from softq.lm.model import AdapterOff, CausalLM
from softq.lm.probe import verify_layout
from softq.lm.reference import fingerprint
from softq.lm.score import Models, score
from softq.mdp.readouts import KL, REF_LOGP
from softq.records import Tokens, Tree

TOKENS = odd_rows()
LORA = Lora(r=4, alpha=8)


def saved(directory: Path, name: str, **more) -> str:
    """A directory as transformers writes it, with a tokenizer."""
    tiny(name, torch.float32, **more).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("start"), "llama")


@pytest.fixture(scope="module")
def adapter(start: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter trained for three steps, as peft writes it: without a tokenizer."""
    found = load(start, lora=LORA)
    trained(found)
    directory = tmp_path_factory.mktemp("adapter")
    found.policy.model.save_pretrained(str(directory))
    return str(directory)


def trained(found: Loaded, steps: int = 3) -> None:
    learned = [parameter for parameter in found.models.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(learned, lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        weighed(score(found.models, TOKENS, (REF_LOGP,))["logp"]).backward()
        optimiser.step()


def both(found: Loaded) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        scored = score(found.models, TOKENS, (REF_LOGP,))
    return scored["logp"], scored["ref_logp"]


# --- the start as a reference ---


@pytest.mark.parametrize("lora", [None, LORA], ids=["copy", "adapter off"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_step_0_log_ratios_are_exactly_0(start: str, layout: str, dtype: str, lora: Lora | None) -> None:
    found = load(start, layout=layout, dtype=dtype, lora=lora)
    scored = score(found.models, TOKENS, (REF_LOGP,))  # with gradient, as training scores
    assert found.policy.layout == layout
    assert scored["logp"].abs().max() > 1
    assert (scored["logp"] - scored["ref_logp"]).abs().max() == 0


@pytest.mark.parametrize("lora", [None, LORA], ids=["copy", "adapter off"])
def test_training_moves_the_policy_and_not_its_reference(start: str, lora: Lora | None) -> None:
    found = load(start, lora=lora)
    before = both(found)
    trained(found)
    after = both(found)
    assert (after[0] - before[0]).abs().max() > 1e-2
    assert torch.equal(after[1], before[1])


def test_the_copy_is_frozen_and_shares_nothing(start: str) -> None:
    found = load(start)
    assert not any(parameter.requires_grad for parameter in found.models["ref"].parameters())
    assert all(parameter.requires_grad for parameter in found.policy.parameters())
    addresses = [{p.data_ptr() for p in found.models[name].parameters()} for name in ("policy", "ref")]
    assert not addresses[0] & addresses[1]


def test_no_reference(start: str) -> None:
    assert list(load(start, None).models.keys()) == ["policy"]


# --- adapters ---


def test_the_adapter_is_all_that_is_trained_and_stays_on(start: str) -> None:
    found = load(start, lora=LORA)
    assert isinstance(found.models["ref"], AdapterOff)
    assert list(found.models["ref"].parameters()) == []
    learned = {name for name, p in found.policy.named_parameters() if p.requires_grad}
    assert learned == {name for name, _ in found.policy.named_parameters() if "lora_" in name}
    assert len(learned) == 2 * 2 * 7, "two matrices for each of seven projections in each of two layers"
    trained(found)
    first = both(found)[0]
    assert torch.equal(both(found)[0], first)
    assert {name for name, p in found.policy.named_parameters() if p.requires_grad} == learned


@pytest.mark.parametrize("chunk", [2**24, 300])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_with_a_frozen_copy(
    start: str, chunk: int, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The switch leaves no trace in the policy's backward pass, recomputed chunks and layers included."""
    monkeypatch.setattr(scoring, "CHUNK", chunk)
    found = load(start, lora=LORA)
    trained(found)
    if checkpointing:
        found.policy.transformer.gradient_checkpointing_enable({"use_reentrant": False})
    base = load(start, None).policy.requires_grad_(False)

    def loss(models: Models) -> Tensor:
        scored = score(models, TOKENS, (REF_LOGP, KL))
        return (scored["logp"] - scored["ref_logp"]).sigmoid() + scored["kl"]

    want = gradients(found.policy, lambda: loss(Models({"policy": found.policy, "ref": base})))
    got = gradients(found.policy, lambda: loss(found.models))
    assert len(want[1]) == 28
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=0)
    for name, gradient in want[1].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(got[1][name], gradient, rtol=0, atol=0)


def test_the_switch_refuses_where_gradient_is_recorded(start: str) -> None:
    reference = load(start, lora=LORA).models["ref"]
    tree = Tree(torch.tensor([5, 6]), torch.tensor([-1, 0]))
    with pytest.raises(RuntimeError, match=r"score this reference under torch.no_grad\(\)"):
        reference.states(tree)
    with torch.no_grad():
        states = reference.states(tree)
    with pytest.raises(RuntimeError, match="the adapter is switched off for the whole model"):
        reference.logits(states)


def test_an_adapter_directory_continues_with_a_frozen_copy_as_reference(start: str, adapter: str) -> None:
    found = load(adapter)
    assert isinstance(found.models["ref"], CausalLM)
    assert not any(p.requires_grad for p in found.models["ref"].parameters())
    assert sum(p.requires_grad for p in found.policy.parameters()) == 28
    policy, reference = both(found)
    assert torch.equal(policy, reference)
    without = both(load(start))[1]
    assert (reference - without).abs().max() > 1e-2, "the reference is the model with its adapter"
    trained(found)
    after = both(found)
    assert torch.equal(after[1], reference)
    assert (after[0] - policy).abs().max() > 1e-2


def test_an_adapter_brings_its_models_tokenizer(start: str, adapter: str) -> None:
    assert not (Path(adapter) / "tokenizer_config.json").exists()
    assert load(adapter, None).tokenizer.get_vocab() == load(start, None).tokenizer.get_vocab()


def test_a_fresh_adapter_on_an_adapter_is_refused(adapter: str) -> None:
    with pytest.raises(ValueError, match="is an adapter, which training continues: leave lora out"):
        load(adapter, lora=LORA)


# --- another model ---


def test_another_model_as_reference(start: str, tmp_path: Path) -> None:
    found = load(start, saved(tmp_path, "gpt2"))
    assert not any(p.requires_grad for p in found.models["ref"].parameters())
    policy, reference = both(found)
    torch.testing.assert_close(policy, alone(tiny("llama", torch.float32), TOKENS), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reference, alone(tiny("gpt2", torch.float32), TOKENS), rtol=1e-5, atol=1e-5)


def test_what_is_said_of_a_reference_names_it(start: str, tmp_path: Path) -> None:
    found = load(start, saved(tmp_path, "gemma2"))
    assert found.notes == ("reference: layout plain, because it caps attention scores",)
    assert found.policy.layout == "packed"


def test_weights_that_are_not_whole_are_one_clear_line(start: str, tmp_path: Path) -> None:
    for file in Path(start).iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)
    with pytest.raises(ValueError, match="its weights are damaged, or not whole"):
        load(start, str(tmp_path))


def test_a_reference_of_another_vocabulary_is_refused(start: str, tmp_path: Path) -> None:
    other = saved(tmp_path, "llama", vocab_size=67)
    with pytest.raises(ValueError) as caught:
        load(start, other)
    expected = f"the reference {other} has 67 tokens, the policy 61: it must share the policy's tokenizer"
    assert str(caught.value) == expected


# --- noise ---

NOISY = {
    "llama": {"attention_dropout": 0.3},
    "gpt2": {"attn_pdrop": 0.3, "resid_pdrop": 0.3, "embd_pdrop": 0.3},
    "opt": {"dropout": 0.3, "layerdrop": 0.5},
    "falcon": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "mixtral": {"router_jitter_noise": 0.3},
}


@pytest.mark.parametrize("name", NOISY)
def test_dropout_is_off_and_the_model_in_train_mode(name: str) -> None:
    model = tiny(name, **NOISY[name])
    want = alone(copy.deepcopy(model), TOKENS)
    found = load(model, None, tokenizer=tokenizer())
    assert all(module.training for module in found.models.modules())
    torch.testing.assert_close(score(found.models, TOKENS)["logp"], want, rtol=1e-10, atol=1e-10)


def test_models_that_are_not_causal_or_draw_at_random_are_refused() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    bert = BertLMHeadModel(BertConfig(vocab_size=61, initializer_range=0.2, **sizes))
    for model in (bert, tiny("phimoe", torch.float32, num_local_experts=4)):
        with pytest.raises(ValueError, match="scores a token otherwise in a batch than alone"):
            load(model, None, tokenizer=tokenizer())


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    T5ForConditionalGeneration(T5Config(vocab_size=61, d_model=8, d_ff=8, num_layers=1)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is an encoder-decoder \(t5\)"):
        load(str(tmp_path))


# --- layouts ---


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("llama", ()),
        ("gemma2", ("layout plain, because it caps attention scores",)),
        ("mamba", ("layout plain, because transformers runs its attention by code of its own",)),
        (
            "recurrent_gemma",
            (
                "its body and head alone do not give its logits: scored through its own forward, which is slower",
                "layout plain, because its own forward is used",
            ),
        ),
    ],
)
def test_notes(name: str, notes: tuple[str, ...]) -> None:
    assert load(tiny(name, torch.float32), None, tokenizer=tokenizer()).notes == notes


@pytest.mark.parametrize("name", ALONE)
def test_the_probe_alone_would_find_what_the_table_knows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the table of unfit architectures: shared and right, or plain with the model's own attention, and right."""
    monkeypatch.setattr(probe, "UNFIT", {})
    model = tiny(name, **({"sliding_window": 64} if "sliding_window" in ALONE[name] else {}))
    attention = model.config._attn_implementation
    want = alone(model, TOKENS)
    found = load(model, None, tokenizer=tokenizer())
    if name in {"gemma2", "gpt_oss"}:
        assert found.notes[0].startswith("layout plain, because it can not run it (this model's attention uses s")
    assert (model.config._attn_implementation == attention) == (found.policy.layout == "plain")
    got = score(found.models, TOKENS)["logp"]
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6, check_dtype=False)


def test_layouts_by_name() -> None:
    with pytest.raises(ValueError, match="there is no layout 'tree'; known are auto, plain, padded, packed"):
        load(tiny("llama"), None, tokenizer=tokenizer(), layout="tree")
    with pytest.raises(ValueError, match="layout 'padded' is not valid for this model: it caps attention scores"):
        load(tiny("gemma2"), None, tokenizer=tokenizer(), layout="padded")
    with pytest.raises(ValueError, match="layout 'packed' is not valid for this model: its own forward is used"):
        load(tiny("recurrent_gemma"), None, tokenizer=tokenizer(), layout="packed")


def test_an_ordinary_call_stays_ordinary() -> None:
    """A model that is loaded with tree attention still heeds the padding of a batch, on the left as generation puts it."""
    model = tiny("llama")
    ids = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    with torch.no_grad():
        rows = [model(input_ids=ids[:1]).logits[0], model(input_ids=ids[1:, 4:]).logits[0]]
        written = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, min_new_tokens=5)
        assert load(model, None, tokenizer=tokenizer()).policy.layout == "packed"
        logits = model(input_ids=ids, attention_mask=mask).logits
        again = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, min_new_tokens=5)
    torch.testing.assert_close(logits[0], rows[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(logits[1, 4:], rows[1], rtol=1e-6, atol=1e-6)  # cosines of other positions, in float32
    assert torch.equal(again, written)


def test_what_is_saved_does_not_know_of_us(start: str, tmp_path: Path) -> None:
    found = load(start, None)
    found.policy.model.save_pretrained(str(tmp_path))
    assert "softq" not in (tmp_path / "config.json").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


# --- fingerprints ---


def test_fingerprints(start: str) -> None:
    found = load(start)
    mark = fingerprint(found.policy)
    assert mark == fingerprint(found.models["ref"]) == fingerprint(load(start, None).policy)
    assert mark != fingerprint(load(start, None, dtype="bfloat16").policy)
    weight = found.policy.transformer.model.layers[1].mlp.down_proj.weight
    with torch.no_grad():
        weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(9.0))
    assert fingerprint(found.policy) != mark == fingerprint(found.models["ref"])


def test_fingerprints_of_adapters(start: str) -> None:
    base = fingerprint(load(start, None).policy)
    found = load(start, lora=LORA)
    before = fingerprint(found.policy)
    assert fingerprint(found.policy, adapter=False) == base != before
    trained(found, steps=1)
    assert fingerprint(found.policy, adapter=False) == base
    assert fingerprint(found.policy) not in {base, before}


# --- verify_layout ---


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_right_layout_verifies_and_is_left_as_it_was(start: str, layout: str) -> None:
    found = load(start, layout=layout)
    said = verify_layout(found.models, TOKENS)
    assert said.startswith(f"layout {layout}: log-probs within ")
    assert float(said.split("within ")[1].split()[0]) < 1e-5
    assert float(said.split("gradient within ")[1].split()[0]) < 1e-5
    assert found.policy.layout == layout
    assert all(parameter.grad is None for parameter in found.models.parameters())


def test_plain_has_nothing_to_verify(start: str) -> None:
    said = verify_layout(load(start, layout="plain").models, TOKENS)
    assert said == "layout plain is the reference; nothing to compare"


def siblings_seen(body: nn.Module, tree: Tree) -> Tensor:
    """Every node continues the one before it."""
    return run_packed(body, Tree(tree.token, torch.arange(-1, len(tree.token) - 1)))


def last_node_off(body: nn.Module, tree: Tree) -> Tensor:
    """One state of many is another's."""
    states = run_padded(body, tree)
    return torch.cat([states[:-1], states[:1]])


def values_slightly_off(body: nn.Module, tree: Tree) -> Tensor:
    """A thousandth on every state: the gradient hardly turns."""
    return run_packed(body, tree) + 1e-3


def without_half_the_gradient(body: nn.Module, tree: Tree) -> Tensor:
    states = run_packed(body, tree)
    return (states + states.detach()) / 2


def gradient_of_no_number(body: nn.Module, tree: Tree) -> Tensor:
    states = run_packed(body, tree)
    return states + 0 * (states.detach() * 0 + states - states).abs().sqrt()


BROKEN = [siblings_seen, last_node_off, values_slightly_off, without_half_the_gradient, gradient_of_no_number]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_broken_layout_does_not_verify(start: str, broken, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a single action of very many is wrong, or nothing but the gradient."""
    found = load(start, layout="packed")
    monkeypatch.setitem(LAYOUTS, "packed", broken)
    tokens: Tokens = tokens_of([(n, [5], [6] * 30) for n in range(8)] + [(9, [7, 8, 9], [10, 11, 12])])
    with pytest.raises(ValueError, match=r"layout packed: .* that is more than rounding; use --layout plain"):
        verify_layout(found.models, tokens)
    assert found.policy.layout == "packed"


def test_under_the_uniform_reference_every_token_has_the_same_probability(start: str) -> None:
    """log π/π_ref = log π + log V a token; it has nothing to train, and it is known by its size."""
    found = load(start, "uniform")
    policy, reference = both(found)
    expected = torch.where(TOKENS.action, -math.log(found.policy.vocabulary), 0.0)
    torch.testing.assert_close(reference, expected.to(reference), rtol=0, atol=1e-6)
    assert not list(found.models["ref"].parameters())
    assert fingerprint(found.models["ref"]) == f"uniform over {found.policy.vocabulary}"  # pyright: ignore
    assert policy.std() > 0
