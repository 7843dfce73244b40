"""--models: frozen models that a method reads beside the policy, from the command line to the manifest and back."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from calls import called
from tiny import tiny, tokenizer
from torch import Tensor

from softq.lm.load import load
from softq.lm.probe import rows_of
from softq.lm.score import score
from softq.mdp.readouts import distillation_of, extrapolated, kl, step_size
from softq.training.card import card, command
from softq.training.events import Progress, Saved, Stopped
from softq.training.run import run
from softq.training.settings import Call, build, flattened

REQUIRED = {"model": "m", "data": ["d.jsonl"], "output": "o"}


def values_of(model: Path, data: Path, output: Path, **more: Any) -> dict[str, Any]:
    base = {"model": str(model), "data": [str(data)], "output": str(output), "learning_rate": 3e-3, "batch_size": 4}
    return {**base, "eval_fraction": 0, "max_steps": 4, **more}


def trained(name: str, values: dict[str, Any], **call: Any) -> list[Any]:
    settings, method, understood = build(name, values)
    return list(run(name, settings, method, understood, Call(**call)))


@pytest.fixture(scope="module")
def teachers(model_directory: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model trained by dpo, and one on the pairs with their sides swapped."""
    home = tmp_path_factory.mktemp("teachers")
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    (home / "swapped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in swapped))
    for name, data in (("dpo", pairs_file), ("reverse", home / "swapped.jsonl")):
        trained("dpo", values_of(model_directory, data, home / name, max_steps=6))
    return {name: str(home / name) for name in ("dpo", "reverse")}


def test_names_and_directories_of_flags_and_of_yaml() -> None:
    wanted = {"dpo": "a/b", "reverse": "c=d"}
    settings, _, understood = build("aligndistil", {**REQUIRED, "models": "dpo=a/b,reverse=c=d"})
    assert settings.models == understood["models"] == wanted
    assert build("aligndistil", {**REQUIRED, "models": wanted})[0].models == wanted
    _, values = flattened({"method": "aligndistil", "models": wanted, "model": "m"})
    assert values["models"] == wanted
    assert "--models dpo=a/b,reverse=c=d" in command({**understood, "models": wanted})
    for wrong in ("dpo", "dpo=", "=a", "dpo=a,dpo=b", "dpo=a,"):
        with pytest.raises(ValueError, match=r"--models: .* is not valid: expected names and models, each name once"):
            build("aligndistil", {**REQUIRED, "models": wrong})


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        (
            "aligndistil",
            {},
            "aligndistil reads the models dpo, reverse: give --models dpo=DIR,reverse=DIR; make them with softq train dpo on the "
            "data and with softq train dpo on what softq data FILE --swap writes",
        ),
        ("aligndistil", {"models": "dpo=a"}, "give --models dpo=a,reverse=DIR; make it with softq train dpo on what"),
        (
            "aligndistil",
            {"models": "dpo=a,reverse=b,old=c"},
            "--models old=c: aligndistil reads the models dpo, reverse alone",
        ),
        ("dpo", {"models": "old=c"}, "--models old=c: dpo reads no model but the policy and a reference; leave it out"),
        ("aligndistil", {"models": "dpo=a,reverse=b", "cache_reference": True}, "aligndistil reads no reference"),
        ("aligndistil", {"models": "dpo=a,reverse=b", "reference": "c"}, "aligndistil reads no reference"),
    ],
)
def test_what_is_missing_or_read_by_nothing_is_one_line(
    name: str, given: dict, message: str, model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        trained(name, values_of(model_directory, pairs_file, tmp_path / "out", **given))
    assert not (tmp_path / "out").exists()


def test_they_must_share_the_vocabulary(tmp_path: Path) -> None:
    tiny("llama", vocab_size=67).save_pretrained(tmp_path)
    expected = f"the model dpo {tmp_path} has 67 tokens, the policy 61: it must share the policy's tokenizer"
    with pytest.raises(ValueError, match=expected):
        load(tiny("llama"), None, tokenizer=tokenizer(), others={"dpo": str(tmp_path)})


def test_a_run_is_drawn_to_its_teacher(
    model_directory: Path, pairs_file: Path, teachers: dict[str, str], tmp_path: Path
) -> None:
    """The first logged loss is that of the transformers models' own logits, and it falls; teachers stay as they are."""
    out = tmp_path / "out"
    values = values_of(
        model_directory,
        pairs_file,
        out,
        models=teachers,
        max_steps=12,
        batch_size=20,
        num_train_epochs=12,
        tokens_per_micro=60,
    )
    events = trained("aligndistil", values)
    seen = [event.metrics["loss"] for event in events if isinstance(event, Progress)]
    assert isinstance(events[-1], Saved)
    assert seen[-1] < 0.5 * seen[0]
    loaded = load(str(model_directory), None, others=teachers)
    assert sorted(loaded.models) == ["dpo", "policy", "reverse"]
    assert seen[0] == pytest.approx(by_hand(loaded, pairs_file), rel=1e-4)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["reference"] is None
    marks = {name: of["fingerprint"] for name, of in manifest["models"].items()}
    assert marks.keys() == teachers.keys()
    assert marks["dpo"] != marks["reverse"]
    said = card(manifest)
    assert (
        f"The loss reads frozen models beside the policy: dpo: `{teachers['dpo']}`, fingerprint `{marks['dpo']}`"
        in said
    )


def by_hand(loaded: Any, pairs_file: Path) -> float:
    """mean over chosen completions of their mean β/α KL, by each model's own forward on each row by itself."""
    means = []
    for line in pairs_file.read_text().splitlines():
        row = json.loads(line)
        prompt, said = (loaded.tokenizer(text)["input_ids"] for text in (row["prompt"], row["chosen"]))
        ids = torch.tensor([[*prompt, *said, loaded.tokenizer.eos_token_id]])

        def logp(name: str, ids: Tensor = ids, start: int = len(prompt) - 1) -> Tensor:
            with torch.no_grad():
                return loaded.models[name].model(ids).logits[0, start:-1].double().log_softmax(-1)

        alpha = step_size(logp("dpo"), logp("reverse"), 20.0, 0.001)
        each = 0.1 / alpha * kl(logp("policy"), extrapolated(logp("dpo"), logp("reverse"), alpha))
        means.append(each.mean().item())
    return math.fsum(means) / len(means)


def test_another_teacher_is_not_resumed(
    model_directory: Path, pairs_file: Path, teachers: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    values = values_of(model_directory, pairs_file, out, models=teachers)
    polls = iter(range(9))
    assert isinstance(trained("aligndistil", values, stop=lambda: 15 if next(polls) >= 2 else 0)[-1], Stopped)
    other = {**values, "models": {**teachers, "dpo": str(model_directory)}}
    with pytest.raises(ValueError, match=r"--models was .*, is .*; the model dpo is another: its fingerprint was"):
        trained("aligndistil", other, resume=True)
    assert isinstance(trained("aligndistil", values, resume=True)[-1], Saved)


def test_an_adapter_learns_beside_them(
    model_directory: Path, pairs_file: Path, teachers: dict[str, str], tmp_path: Path
) -> None:
    values = values_of(model_directory, pairs_file, tmp_path / "out", models=teachers, use_peft=True, lora_r=4)
    seen = [
        event.metrics["loss"] for event in trained("aligndistil+sft", with_names(values)) if isinstance(event, Progress)
    ]
    assert seen[-1] < seen[0]


def with_names(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "aligndistil.ratio": 5.0, "weights": [1.0, 0.01]}


def test_the_layout_of_one_is_that_of_another(teachers: dict[str, str], model_directory: Path) -> None:
    """Packed and plain give the same distillation."""
    readout = distillation_of(0.1, 20.0, 0.001)
    tokens = rows_of([(0, [5, 6, 7, 8, 9], 2), (0, [5, 6, 9, 4], 2), (1, [11, 3, 12], 1)])
    found = [
        score(
            load(str(model_directory), None, others=teachers, layout=layout, dtype="float64").models, tokens, (readout,)
        )
        for layout in ("auto", "plain")
    ]
    assert found[0]["distillation"][tokens.action].min() > 0
    torch.testing.assert_close(found[0]["distillation"], found[1]["distillation"], rtol=1e-6, atol=1e-10)


def test_verify_holds_all_of_them_to_their_own_forward(
    model_directory: Path, pairs_file: Path, teachers: dict[str, str], capsys: pytest.CaptureFixture
) -> None:
    words = ["verify", "--method", "aligndistil", "--model", str(model_directory), "--data", str(pairs_file), "--json"]
    words += ["--models", ",".join(f"{name}={there}" for name, there in teachers.items()), "--rows", "3"]
    code, said, _ = called(words, capsys)
    assert code == 0
    found = {result["law"]: result for result in json.loads(said)["results"]}
    assert found["own forward"]["green"]
    assert found["layouts"]["green"]


def test_the_page_of_a_method_names_them(capsys: pytest.CaptureFixture) -> None:
    code, said, _ = called(["methods", "aligndistil"], capsys)
    assert code == 0
    assert "--models dpo=DIR,reverse=DIR" in " ".join(said.split())
