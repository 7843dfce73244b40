"""The laws of a user's own model: green on three architectures, and every planted bug is red where it should be."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import alone, tiny
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from softq.data import encode
from softq.lm import layouts
from softq.lm import score as scoring
from softq.lm.load import Lora, load
from softq.lm.probe import rows_of
from softq.lm.reference import fingerprint
from softq.objectives import weights
from softq.records import Batch, Pairs, Term
from softq.training import measure, reference_cache
from softq.training.settings import Call, build
from softq.verify import model_text
from softq.verify.law import Finding, Result, checked
from softq.verify.model import OnModel, on_model, own_log_probs
from softq.verify.model_laws import MODEL_LAWS

NAMES = [law.name for law in MODEL_LAWS]


def saved(directory: Path, name: str, words: Path, **more) -> Path:
    """A tiny model with large weights and the tokenizer of `words`, as transformers writes them."""
    tokenizer = AutoTokenizer.from_pretrained(words)
    ends = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
    tiny(name, torch.float32, vocab_size=len(tokenizer), **ends, **more).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, model_directory: Path) -> Callable[[str], Path]:
    """Where a model of an architecture stands."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = saved(tmp_path_factory.mktemp(name), name, model_directory)
        return made[name]

    return of


def subject(model: Path, data: Path, name: str = "dpo", rows: int = 3, **more) -> OnModel:
    settings, method, _ = build(name, {"model": str(model), "data": [str(data)], "output": "-", **more})
    return on_model(name, settings, method, Call(), rows)


@pytest.fixture
def llama(home: Callable[[str], Path], pairs_file: Path) -> OnModel:
    return subject(home("llama"), pairs_file)


def results(on: OnModel) -> dict[str, Result]:
    return {result.law.name: result for result in checked(MODEL_LAWS, on, "model")}


def red(on: OnModel) -> dict[str, str]:
    """The laws that are red, and what is noted of them."""
    return {name: result.finding.note for name, result in results(on).items() if not result.green}  # pyright: ignore


def finding(on: OnModel, name: str) -> Finding | str:
    return MODEL_LAWS[NAMES.index(name)].check(on)


# --- green ---


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_every_law_holds_in_float32(name: str, home: Callable[[str], Path], pairs_file: Path) -> None:
    """Rounding is seen where two computations differ, and is a hundredth of what is allowed."""
    found = results(subject(home(name), pairs_file))
    assert list(found) == NAMES
    for law, result in found.items():
        assert isinstance(result.finding, Finding), f"{law}: {result.finding}"
        assert result.green, f"{law}: {result.finding}"
        if law not in ("boundary", "reference at step 0"):
            assert result.finding.error < 0.01 * result.finding.bound, f"{law}: {result.finding}"
    errors = {law: result.finding.error for law, result in found.items()}  # pyright: ignore
    assert all(errors[law] > 0 for law in ("own forward", "layouts", "batch split", "causality", "generation", "bf16"))
    assert "packed log-probs" in found["layouts"].finding.note  # pyright: ignore
    assert "padded gradient" in found["layouts"].finding.note  # pyright: ignore


@pytest.mark.parametrize(
    ("method", "apply"),
    [
        ("ipo", {}),
        ("tdpo2", {"cached reference"}),
        ("kto", {"cached reference"}),
        ("sft", {"reference at step 0", "cached reference"}),
        ("dpo+sft", {}),
    ],
)
def test_any_method_is_a_subject(method: str, apply: set, home: Callable[[str], Path], pairs_file: Path) -> None:
    """All laws hold, and those that do not apply say why."""
    found = results(subject(home("llama"), pairs_file, method, rows=2))
    assert [name for name, result in found.items() if not result.green] == []
    assert {name for name, result in found.items() if isinstance(result.finding, str)} == set(apply)


def test_groups_are_a_subject(home: Callable[[str], Path], tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Say {n}:", "completions": [" the cat sat", " no", f" yes {n}"], "scores": [0.5, n / 2, 0.5]}
        for n in range(3)
    ]
    on = subject(home("llama"), written(tmp_path, rows), "infonca")
    assert red(on) == {}
    assert "rewards/margins" in finding(on, "margin").note  # pyright: ignore


def test_a_model_that_runs_plainly_is_a_subject(home: Callable[[str], Path], pairs_file: Path) -> None:
    found = results(subject(home("gemma2"), pairs_file, rows=2))
    assert [name for name, result in found.items() if not result.green] == []
    assert found["layouts"].finding == (
        "layout 'padded' is not valid for this model: it caps attention scores; "
        "layout 'packed' is not valid for this model: it caps attention scores"
    )


def test_an_adapter_in_float64_and_rows_that_were_cut(home: Callable[[str], Path], pairs_file: Path) -> None:
    on = subject(home("llama"), pairs_file, use_peft=True, dtype="float64", max_length=10, truncate="keep")
    assert not on.batch.tokens.ended.all()
    assert red(on) == {}
    assert finding(on, "own forward").bound == pytest.approx(1e-5)  # pyright: ignore


def test_models_and_generators_are_left_as_they_were(llama: OnModel) -> None:
    policy = llama.policy
    policy.transformer.config._attn_implementation = "eager"
    before = fingerprint(policy), policy.layout, torch.random.get_rng_state()
    results(llama)
    assert policy.transformer.config._attn_implementation == "eager"
    assert (fingerprint(policy), policy.layout) == before[:2]
    assert torch.equal(torch.random.get_rng_state(), before[2])
    assert all(parameter.grad is None for parameter in policy.parameters())


# --- planted ---


def shifted(by: int) -> Callable[..., encode.Completion]:
    """A completion whose mask is one off."""

    def completion(ids: np.ndarray, action: np.ndarray, ended: bool) -> encode.Completion:
        empty = np.zeros(1, dtype=bool)
        moved = np.concatenate([empty, action[:-1]] if by > 0 else [action[1:], empty])
        return encode_completion(ids, moved, ended)

    return completion


encode_completion = encode.Completion


@pytest.mark.parametrize(
    ("by", "note"),
    [
        (1, "pairs.jsonl:1: what is trained is ' cat sat', the completion is ' the cat sat'"),
        (-1, "pairs.jsonl:1: what is trained, ': the cat sat', lacks the end token"),
    ],
)
def test_a_mask_that_is_shifted_in_the_encoding(
    by: int, note: str, home: Callable[[str], Path], pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTQ_CACHE", str(tmp_path))
    monkeypatch.setattr(encode, "Completion", shifted(by))
    found = red(subject(home("llama"), pairs_file))
    assert set(found) == {"boundary"}
    assert found["boundary"].endswith(note)
    assert "the mask is shifted" in MODEL_LAWS[0].red


def test_log_probs_that_are_shifted_in_scoring(llama: OnModel, monkeypatch: pytest.MonkeyPatch) -> None:
    right = scoring._scatter
    monkeypatch.setattr(scoring, "_scatter", lambda values, action: right(values, action).roll(1, 1))
    found = red(llama)
    assert set(found) == {"own forward"}
    assert re.match(r"most in .*/pairs.jsonl:\d: policy \d", found["own forward"])
    assert "an action read one step off" in MODEL_LAWS[1].red
    assert isinstance(finding(llama, "generation"), str)


def test_log_probs_without_their_normaliser(llama: OnModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_input", lambda at, model, name, states: model.logits(states))
    assert set(red(llama)) == {"own forward", "normalisation"}


def test_a_reference_with_other_weights(llama: OnModel) -> None:
    with torch.no_grad():
        for parameter in llama.loaded.models["ref"].parameters():
            parameter.mul_(0.9)
    found = red(llama)
    assert set(found) == {"reference at step 0"}
    assert "policy and reference are the same weights, yet up to" in found["reference at step 0"]


def test_another_model_as_the_reference(home: Callable[[str], Path], pairs_file: Path) -> None:
    model, reference = home("llama"), home("gpt2")
    found = red(subject(model, pairs_file, reference=str(reference)))
    assert set(found) == {"reference at step 0"}
    assert f"if training should start from {model}, {reference} is the wrong reference" in found["reference at step 0"]


def test_a_layout_in_which_rows_see_each_other(
    home: Callable[[str], Path], pairs_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where three trees or more are packed: the probe at load has two."""
    right = layouts.run_packed

    def leaking(body: nn.Module, tree) -> Tensor:
        hidden = right(body, tree)
        return hidden + 0.01 * hidden.mean(0) if int((tree.parent < 0).sum()) > 2 else hidden

    monkeypatch.setitem(layouts.LAYOUTS, "packed", leaking)  # pyright: ignore
    found = red(subject(home("llama"), pairs_file, layout="plain"))
    assert set(found) == {"layouts"}
    assert "--layout plain" in MODEL_LAWS[2].red


def test_a_layout_that_loses_half_of_a_gradient(llama: OnModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log-probs are right, and so is the loss."""
    right = layouts.run_padded

    def losing(body: nn.Module, tree) -> Tensor:
        hidden = right(body, tree)
        return (hidden + hidden.detach()) / 2

    monkeypatch.setitem(layouts.LAYOUTS, "padded", losing)  # pyright: ignore
    found = red(llama)
    assert set(found) == {"layouts"}
    assert "padded gradient 4.9e-01 of its norm" in found["layouts"]


def changed(on: OnModel, loss: Callable, weigh: Callable = weights.per_pair) -> OnModel:
    """The same step under a method of one's own."""
    return on._replace(name="mine:own", method=on.method._replace(terms=(Term("own", "pair", loss, weigh),)))


def test_a_method_that_averages_in_its_loss(llama: OnModel) -> None:
    dpo = llama.method.terms[0].loss
    own = changed(
        llama,
        lambda scored, batch: dpo(scored, batch) / len(batch.pairs.chosen),
        lambda batch: torch.ones(len(batch.pairs.chosen)),
    )
    assert set(red(own)) == {"batch split"}
    assert "averages in its loss where `weigh` should" in MODEL_LAWS[3].red


def test_a_method_that_counts_padding(llama: OnModel) -> None:
    """A mean over all columns: of a part that is narrower it is another, too."""
    own = changed(llama, lambda scored, batch: -scored["logp"].mean(-1)[batch.pairs.chosen])
    assert set(red(own)) == {"batch split", "padding"}
    assert "`batch.tokens.action` is False" in MODEL_LAWS[4].red


def looking_ahead(module: nn.Module, inputs, kwargs, output):
    """A tenth of the next state, where there is one, in each state."""
    hidden = output.last_hidden_state
    ahead = torch.zeros_like(hidden)
    ahead[:, :-1] = hidden[:, 1:]
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.dim() == 2:
        ahead[:, :-1] *= mask[:, 1:, None]
    output.last_hidden_state = hidden + 0.1 * ahead
    return output


def test_a_model_that_looks_ahead(home: Callable[[str], Path], pairs_file: Path) -> None:
    """One row a record, so that nothing is shared; such a model can not generate what it scores either."""
    on = subject(home("llama"), pairs_file, "sft", layout="plain")
    on.policy.transformer.base_model.register_forward_hook(looking_ahead, with_kwargs=True)
    assert set(red(on)) == {"causality", "generation"}
    assert MODEL_LAWS[5].red.startswith("The model looks ahead")


def test_rewards_that_are_logged_with_the_wrong_sign(llama: OnModel, monkeypatch: pytest.MonkeyPatch) -> None:
    right = measure.implicit
    monkeypatch.setattr(measure, "implicit", lambda scored, batch: -right(scored, batch))
    assert set(red(llama)) == {"margin"}


def test_a_loss_that_is_not_that_of_its_margins(llama: OnModel) -> None:
    dpo = llama.method.terms[0].loss
    found = red(changed(llama, lambda scored, batch: 1.01 * dpo(scored, batch))._replace(name="dpo"))
    assert set(found) == {"margin"}


def test_a_reference_cache_that_is_stale(llama: OnModel, monkeypatch: pytest.MonkeyPatch) -> None:
    right = reference_cache._write

    def write(file: Path, said, index, logp) -> None:
        right(file, said, index, (values + 0.5 for values in logp))

    monkeypatch.setattr(reference_cache, "_write", write)
    found = red(llama)
    assert set(found) == {"cached reference"}
    assert found["cached reference"].startswith("the file of log-probs is stale: ")
    assert "(completion " in found["cached reference"]
    assert "5.0e-01 nats a token" in found["cached reference"]
    assert "--cache-reference would train against" in MODEL_LAWS[9].red


def test_a_reference_cache_that_is_read_wrongly(llama: OnModel, monkeypatch: pytest.MonkeyPatch) -> None:
    right = reference_cache.ReferenceCache.logp
    turned = lambda cache, keys: [values if values is None else values[::-1] for values in right(cache, keys)]  # noqa: E731
    monkeypatch.setattr(reference_cache.ReferenceCache, "logp", turned)
    assert set(red(llama)) == {"cached reference"}


def test_generation_that_differs(llama: OnModel) -> None:
    """A model that runs otherwise where it has a cache."""

    def warmer(module: nn.Module, inputs, kwargs, output):
        if kwargs.get("use_cache"):
            output.logits = output.logits * 0.99
        return output

    llama.policy.transformer.register_forward_hook(warmer, with_kwargs=True)
    assert set(red(llama)) == {"generation"}
    assert "samples from another distribution" in MODEL_LAWS[10].red


def test_bfloat16_is_what_a_model_loaded_in_it_gives(llama: OnModel) -> None:
    sums = []
    for dtype in ("float32", "bfloat16"):
        model = AutoModelForCausalLM.from_pretrained(llama.settings.model, dtype=dtype)
        sums.append(torch.stack([row.sum() for row in alone(model, llama.batch.tokens).float().detach()]))
    full, half = (values[::2] - values[1::2] for values in sums)
    found = finding(llama, "bf16")
    assert isinstance(found, Finding)
    assert found.error == pytest.approx(float((half - full).abs().max() / full.abs().mean()), rel=0.5)
    low = subject(Path(llama.settings.model), Path(str(llama.settings.data[0])), dtype="bfloat16")
    rounded = finding(low, "bf16")  # against float32 of the same weights, which are rounded already
    assert 0.1 * found.error < rounded.error < found.error  # pyright: ignore
    assert red(low) == {}


def test_margins_that_rounding_drowns(llama: OnModel) -> None:
    """Two tokens that the model likes equally well."""
    prompt = llama.batch.tokens.ids[0, :4]
    logp = own_log_probs(llama.policy, prompt)[-1]
    likes = logp.argsort()
    at = int(logp[likes].diff()[10:].argmin()) + 10
    sides = [(0, [*prompt.tolist(), int(token)], 4) for token in (likes[at + 1], likes[at])]
    batch = Batch(rows_of(sides), Pairs(torch.tensor([0]), torch.tensor([1])))
    result = next(checked(MODEL_LAWS[-1:], llama._replace(batch=batch), "model"))
    assert not result.green
    assert result.law.red.startswith("In bfloat16 rounding is as large as what the loss compares")


# --- where a reference comes from ---


@pytest.fixture(scope="module")
def moved(home: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The llama after some training, without a word on where it came from."""
    directory = tmp_path_factory.mktemp("moved")
    model = AutoModelForCausalLM.from_pretrained(home("llama"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.98)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(home("llama")).save_pretrained(directory)
    return directory


def mark(model: Path) -> str:
    return fingerprint(load(str(model), None).policy)


@pytest.mark.parametrize(
    ("facts", "green", "note"),
    [
        ({"reference": {"fingerprint": "R"}}, True, "was trained against"),
        ({"reference": None, "base": {"fingerprint": "R"}}, True, "was trained against"),
        ({"merge": {"fingerprints": {"base": "R"}}}, True, "was trained against"),
        (
            {"reference": {"model": "old", "fingerprint": "f" * 32}, "base": {"fingerprint": "R"}},
            False,
            "old (ffffffff…)",
        ),
        (
            {"reference": {"model": "old", "fingerprint": "f" * 32, "dtype": "bfloat16"}},
            False,
            "compare with --dtype bfl",
        ),
        ({}, False, "if training should start from"),
    ],
)
def test_a_manifest_says_whose_reference_it_is(
    facts: dict, green: bool, note: str, moved: Path, home: Callable[[str], Path], pairs_file: Path
) -> None:
    reference = home("llama")
    text = json.dumps({"versions": {"softq": "1"}, **facts}).replace('"R"', json.dumps(mark(reference)))
    (moved / "manifest.json").write_text(text)
    found = finding(subject(moved, pairs_file, reference=str(reference)), "reference at step 0")
    assert isinstance(found, Finding)
    assert (found.green, found.error > 0) == (green, not green)
    assert note in found.note
    assert "nats a token apart" in found.note


def test_the_reference_of_an_adapter_is_the_model_under_it(
    home: Callable[[str], Path], moved: Path, pairs_file: Path, tmp_path: Path
) -> None:
    (moved / "manifest.json").unlink(missing_ok=True)
    found = load(str(home("llama")), None, lora=Lora(r=4))
    with torch.no_grad():
        for name, parameter in found.policy.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    found.policy.model.save_pretrained(str(tmp_path))
    right = subject(tmp_path, pairs_file, reference=str(home("llama")))
    assert red(right) == {}
    assert f"is an adapter on {home('llama')}" in finding(right, "reference at step 0").note  # pyright: ignore
    assert not finding(subject(tmp_path, pairs_file, reference=str(moved)), "reference at step 0").green  # pyright: ignore


# --- what is trained is what the data says ---


def written(directory: Path, rows: list[dict]) -> Path:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def said(role: str, content: str) -> dict:
    return {"role": role, "content": content}


CHAT = {
    "prompt": [said("user", "stones?")],
    "chosen": [said("assistant", " yes\n"), said("user", "so?"), said("assistant", "no, dogs")],
    "rejected": [said("assistant", "rivers run")],
}


def test_answers_of_a_chat(home: Callable[[str], Path], tmp_path: Path) -> None:
    on = subject(home("llama"), written(tmp_path, [CHAT, CHAT]), chat_template="chatml")
    assert finding(on, "boundary") == Finding(0, 0, "4 of 4 rows read back")
    tokens = on.batch.tokens
    starts = tokens.action & ~torch.nn.functional.pad(tokens.action[:, :-1], (1, 0))
    wide = replace(tokens, action=tokens.action | starts.roll(-1, 1))  # with the line break of the prompt
    assert finding(on._replace(batch=replace(on.batch, tokens=wide)), "boundary").error == 4  # pyright: ignore
    first = tokens.action & (tokens.action.long().cumsum(-1) <= 3)  # of the first row, its first answer alone
    one = replace(tokens, action=torch.where(torch.arange(4)[:, None] == 0, first, tokens.action))
    assert finding(on._replace(batch=replace(on.batch, tokens=one)), "boundary").error == 1  # pyright: ignore


def test_sides_that_are_swapped(llama: OnModel) -> None:
    pairs = llama.batch.pairs
    swapped = replace(llama.batch, feedback=Pairs(pairs.rejected, pairs.chosen))
    found = finding(llama._replace(batch=swapped), "boundary")
    assert found.error == 6  # pyright: ignore
    assert found.note.endswith("what is trained is ' the cat sat', the completion is ' a dog ran home and yes it is'")  # pyright: ignore


@pytest.mark.parametrize(
    "row",
    [
        {"text": "rivers run to the sea"},
        {"prompt": "", "completion": "rivers run"},
        {"prompt": "stones", "completion": " are still<eos>"},
        {"prompt": "ston", "completion": "es are still"},
        {"prompt": "naïve", "completion": " €\n\n  don't  "},
        {"messages": [said("system", "no"), said("user", "a dog"), said("assistant", "birds"), said("assistant", "s")]},
    ],
)
def test_odd_demonstrations_are_read_back(row: dict, home: Callable[[str], Path], tmp_path: Path) -> None:
    on = subject(home("llama"), written(tmp_path, [row]), "sft", chat_template="chatml")
    assert finding(on, "boundary") == Finding(0, 0, "1 of 1 rows read back")


def test_a_tokenizer_that_does_not_give_text_back(llama: OnModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_text.Vocabulary, "text", lambda self, ids: " ".join(str(i) for i in reversed(ids)))
    assert finding(llama, "boundary") == model_text.SILENT


def test_data_that_changed_meanwhile(home: Callable[[str], Path], tmp_path: Path) -> None:
    path = written(tmp_path, [{"prompt": "Say:", "chosen": " no", "rejected": " yes"}] * 2)
    on = subject(home("llama"), path)
    path.write_text(path.read_text().splitlines()[0])
    assert red(on) == {
        "boundary": f"ValueError: {path}:2 is not in the data any more: it changed while this was running"
    }


# --- refused ---


def test_what_can_not_be_a_subject_is_one_line(home: Callable[[str], Path], tmp_path: Path) -> None:
    one = written(tmp_path, [{"prompt": "Say:", "chosen": " no", "rejected": " yes"}])
    with pytest.raises(ValueError, match="--bf16: the laws run the weights as they are"):
        subject(home("llama"), one, bf16=True)
    with pytest.raises(ValueError, match="kto compares records with each other, and the data holds one"):
        subject(home("llama"), one, "kto")


def test_stored_log_probs_take_the_references_place(home: Callable[[str], Path], tmp_path: Path) -> None:
    row = {"prompt": "Say:", "chosen": " no", "rejected": " yes", "ref_chosen_logps": -3.0, "ref_rejected_logps": -5.0}
    found = results(subject(home("llama"), written(tmp_path, [row] * 2)))
    assert [name for name, result in found.items() if not result.green] == []
    silent = {name: result.finding for name, result in found.items() if isinstance(result.finding, str)}
    assert set(silent) == {"reference at step 0", "cached reference"}
    assert "so no reference is loaded" in silent["cached reference"]
