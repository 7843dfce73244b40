"""Long runs by value: settings reach what they set, a resumed run's past is its own, and what is said of it is true."""

import errno
import io
import json
import math
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from calls import called, jsonl
from resume_test import after, trained, values_of
from rich.console import Console
from tiny import tiny, tokenizer

from softq.cli import main as cli
from softq.cli import train as cli_train
from softq.cli.show import Show
from softq.cli.signals import asked
from softq.lm.load import Lora, load, reweigh
from softq.lm.reference import fingerprint
from softq.lm.tokenizer import load_tokenizer
from softq.objectives import METHODS
from softq.records import Batch, Method, Scored, Term
from softq.training import checkpoint, course, estimate, output, prepare, ranks, resume, run
from softq.training.chance import chance, set_chance
from softq.training.checkpoint import Checkpoint
from softq.training.events import Evaluated, Note, Progress, RunError, Sampled, Saved, Stopped
from softq.training.log import Best, Log
from softq.training.loop import TOKENS_PER_MICRO
from softq.training.settings import Call, Settings, build, flag
from softq.verify.tables import slope, some_models, some_step

ROWS = [{"prompt": f"Say {n}:", "chosen": " the cat" * (n % 3 + 1), "rejected": " no" * (n % 5 + 1)} for n in range(12)]


def going(model: Path, data: Path, place: Path, name: str = "dpo", **more: Any) -> course.Course:
    """All that a run's steps need; nothing is trained or written."""
    settings, method, _ = build(name, values_of(model, data, place, **more))
    spoken = load_tokenizer(settings.model)
    found = prepare.read_data(name, settings, method, spoken)
    loaded = prepare.load_models(name, settings, method, Call(), data=found, tokenizer=spoken.tokenizer, device="cpu")
    own = {"tokens_per_micro": 512}
    return course.course(settings, method, loaded, found, accelerator=ranks.join(bf16=False), **own)


def manifest_of(place: Path) -> dict[str, Any]:
    return json.loads((place / "manifest.json").read_text())


# --- settings reach what they set ---


@pytest.mark.parametrize(("given", "warmup"), [(1, 1), (0.2, 2), (3, 3), (0, 0)])
def test_settings_reach_the_optimiser(
    given: float, warmup: int, model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    more = {"adam_beta1": 0.8, "adam_beta2": 0.95, "weight_decay": 0.05, "max_grad_norm": 0.3}
    of = going(
        model_directory, pairs_file, tmp_path, lr_scheduler_type="cosine", warmup_steps=given, learning_rate=0.5, **more
    )
    matrices, vectors = of.update.optimizer.param_groups
    assert (matrices["betas"], matrices["weight_decay"], vectors["weight_decay"]) == ((0.8, 0.95), 0.05, 0.0)
    assert of.update.max_grad_norm == 0.3
    expected = [0.5 * (n + 1) / warmup for n in range(warmup)]
    expected += [0.25 * (1 + math.cos(math.pi * n / (10 - warmup))) for n in range(10 - warmup)]
    assert [of.update.rate(n) for n in range(10)] == pytest.approx(expected, abs=1e-12)


def test_settings_reach_the_adapter(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    more = {"use_peft": True, "lora_r": 4, "lora_alpha": 7, "lora_target_modules": ["q_proj", "up_proj"]}
    config = going(model_directory, pairs_file, tmp_path, **more).loaded.policy.model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.target_modules) == (4, 7, {"q_proj", "up_proj"})


def test_the_held_out_records_are_drawn_by_the_seed(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    settings = [build("sft", values_of(model_directory, pairs_file, tmp_path, seed=seed))[0] for seed in (1, 1, 2)]
    spoken = load_tokenizer(str(model_directory))
    method = build("sft", values_of(model_directory, pairs_file, tmp_path))[1]
    held = [[record.where for record in prepare.read_data("sft", s, method, spoken).held or ()] for s in settings]
    assert held[0] == held[1] != held[2]
    assert [len(set(part)) for part in held] == [4, 4, 4]


@pytest.mark.parametrize(
    ("name", "more", "told"),
    [
        ("dpo", {"beta": 0.3}, (True, False, 0.3)),
        ("dpo", {"reference_mixup": 0.5}, (True, True, 0.1)),
        ("dpo", {"reference": "another"}, (False, False, 0.1)),
        ("sft", {}, (False, False, 1.0)),
    ],
)
def test_the_watch_is_told_what_the_run_is(
    name: str,
    more: dict,
    told: tuple,
    model_directory: Path,
    pairs_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "Watch", dict)
    more = {key: str(model_directory) if value == "another" else value for key, value in more.items()}
    given = run._watch(going(model_directory, pairs_file, tmp_path, name, **more))
    assert given == dict(zip(("reference_is_start", "reference_moves", "beta"), told, strict=True))


def test_a_row_that_one_score_alone_pulls_on_is_run_backward() -> None:
    """Of a coupled method that reads the reference of all rows but the first."""

    def loss(scored: Scored, batch: Batch) -> torch.Tensor:
        read = torch.arange(len(scored["logp"])) > 0
        return (scored["logp"].sum(-1) - read * scored["ref_logp"].sum(-1)) ** 2

    def weigh(batch: Batch) -> torch.Tensor:
        return torch.full((len(batch.tokens.ended),), 1 / 8, dtype=torch.float64)

    dpo = METHODS["dpo"]()
    of, batch, term = some_models(), some_step(dpo), Term("toy", "row", loss, weigh)
    whole, parts = (
        slope(Method((term,), dpo.needs, coupled=True), of, batch, budget).gradient for budget in (10**9, 1)
    )
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)


# --- checks before the first step ---


def test_equal_weights_that_score_apart_are_an_error(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    of = going(model_directory, pairs_file, tmp_path)
    with torch.no_grad():
        of.loaded.models["ref"].head.weight.mul_(1.001)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    with pytest.raises(RunError, match=r"^step 0: policy and reference are the same weights, yet \S+ nats apart"):
        prepare.checked(of.settings, of.method, of.loaded, of.data, Call(), tokens_per_micro=512)


def test_a_loss_without_a_gradient_is_an_error(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    of = going(model_directory, pairs_file, tmp_path)
    (term,) = of.method.terms
    detached = term._replace(loss=lambda scored, batch: term.loss(scored, batch).detach())
    with pytest.raises(ValueError, match=r"^the loss has no gradient"):
        prepare.checked(
            of.settings, of.method._replace(terms=(detached,)), of.loaded, of.data, Call(), tokens_per_micro=512
        )


def test_the_code_of_every_module_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("gaps_a", "gaps_b", "gaps_c"):
        (tmp_path / f"{module}.py").write_text(f"name = '{module}'\n")
    names = ("gaps_a:f+gaps_b:f", "gaps_a:f+gaps_c:f", "gaps_b:f+gaps_a:f", "gaps_a:f")
    a_b, a_c, b_a, a = map(prepare._code, names)
    assert a_b == b_a
    assert len({a_b, a_c, a, prepare._code("dpo+sft")}) == 4
    assert prepare._code("dpo+sft") is None


# --- is it the same run ---


def same(**change: Any) -> dict[str, Any]:
    """A manifest, as far as it is compared."""
    _, _, settings = build("dpo", {"model": "m", "data": ["d"], "output": "o"})
    data = {"content": ["a", "b"], "weights": [1.0]}
    made = {"settings": settings, "data": data, "reference": {"fingerprint": "r"}, "base": None, "code": "c"}
    where = {"ranks": 1, "threads": 2, "device": "cpu", "layout": "packed", "process": {"host": "here", "pid": 1}}
    return {**made, **where, "versions": {"torch": "2"}, **change}


def test_every_setting_is_compared_but_those_that_may_differ() -> None:
    base = same()
    free = {"output", "data", "eval_data", "save_every", "keep", "best", "shard"}
    for key in (*Settings.model_fields, "beta", "label_smoothing", "of_a_later_version"):
        changed = same(settings={**base["settings"], key: "another"})
        expected = [] if key in free else [f"{flag(key)} was {base['settings'].get(key)}, is another"]
        assert resume.differences(base, changed) == expected, key
    assert resume.differences(base, same()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"content": ["a", "x"], "weights": [1.0]}}, "the data is not the same"),
        ({"data": {"content": ["a"], "weights": [1.0]}}, "the data is not the same"),
        ({"data": {"content": ["a", "b"], "weights": [2.0]}}, "the data is not the same"),
        ({"reference": {"fingerprint": "x"}}, "the reference is another: its fingerprint was r, is x"),
        ({"reference": None}, "the reference is another: its fingerprint was r, is None"),
        (
            {"base": {"fingerprint": "x"}},
            "the model that training starts from is another: its fingerprint was None, is x",
        ),
        ({"code": None}, "the method's own code has changed"),
    ],
)
def test_each_part_that_differs_is_named(change: dict[str, Any], said: str) -> None:
    (line,) = resume.differences(same(), same(**change))
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"process": {"host": "here", "pid": 2}}, ""),
        ({"versions": {"torch": "3"}}, "torch 2 -> 3"),
        ({"ranks": 2}, "ranks 1 -> 2"),
        ({"threads": 4}, "threads 2 -> 4"),
        ({"device": "cuda:0", "layout": "plain"}, "device cpu -> cuda:0, layout packed -> plain"),
        ({"process": {"host": "there", "pid": 1}}, "host here -> there"),
        ({"settings": {**same()["settings"], "shard": True}}, "shard False -> True"),
    ],
)
def test_what_keeps_it_from_being_equal_is_said(change: dict[str, Any], said: str) -> None:
    found = Checkpoint(Path("there"), {"step": 3, "manifest": same()})
    equal = f"equal to rounding, not bit for bit: {said}" if said else "bit for bit"
    assert resume.same_run(found, same(**change)) == [f"resumed after step 3 from there, {equal}"]


def test_other_data_to_evaluate_on_is_another_run(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    held = jsonl(tmp_path / "held.jsonl", ROWS[:4])
    more = {"eval_data": [str(held)], "eval_fraction": 0.05}
    values = values_of(model_directory, pairs_file, tmp_path / "out", **more)
    assert isinstance(trained("dpo", values, stop=after(2))[-1], Stopped)
    jsonl(held, ROWS[:5])
    with pytest.raises(ValueError, match="is of another run: the data is not the same"):
        trained("dpo", values, resume=True)


def test_figures_bear_the_names_of_their_sources(model_directory: Path, tmp_path: Path) -> None:
    rows = {"a": ROWS[:4], "b": ROWS[4:8], "c": ROWS[8:10], "d": ROWS[10:]}
    of = {name: {"path": str(jsonl(tmp_path / f"{name}.jsonl", part)), "name": name} for name, part in rows.items()}
    more = {"data": [of["a"], of["b"]], "eval_data": [of["c"], of["d"]], "eval_fraction": 0.05, "batch_size": 8}
    values = {**values_of(model_directory, tmp_path, tmp_path / "out", max_steps=1), **more}
    metrics = [event.metrics for event in trained("dpo", values) if isinstance(event, Progress | Evaluated)]
    names = [{name.partition("/")[0] for name in line if name.endswith("/rewards/margins")} for line in metrics]
    assert names == [{"a", "b"}, {"eval_c", "eval_d"}]


# --- what comes back, and what is kept ---


def test_every_generator_goes_on_where_it_was() -> None:
    random.gauss(0, 1)  # leaves a spare number, as NumPy's does
    np.random.standard_normal()
    state = chance()

    def draws() -> list[float]:
        legacy = [np.random.standard_normal() for _ in range(3)] + [np.random.random()]
        return [*(random.gauss(0, 1) for _ in range(3)), random.random(), *legacy, *torch.rand(3).tolist()]

    first = draws()
    assert draws() != first
    set_chance(state)
    assert draws() == first


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_has_its_own_chance_back(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, expected = {}, []
    for number in (0, 1):
        torch.manual_seed(number)
        tensors |= {f"chance/{number}/{name}": value for name, value in chance().items()}
        expected.append(torch.rand(()))
    found = SimpleNamespace(tensors=lambda: tensors, manifest={"ranks": 2}, step=3)
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: rank)
    resume.state_back(found, SimpleNamespace(restore=lambda state, done: None))  # pyright: ignore[reportArgumentType]
    assert torch.rand(()) == expected[rank]


def test_draws_in_a_loss_go_on_where_they_were(model_directory: Path, pairs_file: Path, tmp_path: Path) -> None:
    def ran(place: str, **call: Any) -> list[dict[str, float]]:
        settings, method, understood = build("dpo", values_of(model_directory, pairs_file, tmp_path / place))
        (term,) = method.terms
        drawn = lambda: 1 + torch.rand(()) + random.random() + np.random.random()  # noqa: E731
        shaken = term._replace(loss=lambda scored, batch: term.loss(scored, batch) * drawn())
        list(run.run("dpo", settings, method._replace(terms=(shaken,)), understood, Call(**call)))
        return [json.loads(line) for line in (tmp_path / place / "metrics.jsonl").read_text().splitlines()]

    whole = ran("whole")
    assert len({line["loss"] for line in whole if "loss" in line and line["loss"] > 0.1}) == 10
    assert [line["step"] for line in whole if "eval_loss" in line] == [3, 6, 9, 10]
    ran("parts", stop=after(4))
    for draw in (torch.rand, np.random.random, lambda _: random.random()):
        draw(1)
    assert ran("parts", resume=True) == whole


def test_a_disk_that_can_not_be_read_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint_at(tmp_path, 3)

    def fails(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "_sha256", fails)
    with pytest.raises(RunError, match=r"step-00000003 can not be read: Input/output error; mend it and --resume$"):
        checkpoint.newest(tmp_path)
    assert checkpoint.steps(tmp_path) == [3]


def checkpoint_at(place: Path, step: int) -> Path:
    """A checkpoint with logs of its own."""

    def models(directory: Path) -> None:
        (directory / "config.json").write_text(str(step))
        (directory / "model.safetensors").write_text("weights")
        (directory / "reference").mkdir()
        (directory / "reference" / "model.safetensors").write_text("reference")

    logs = [place / "metrics.jsonl", place / "samples.jsonl"]
    logs[0].write_text(f'{{"step": {step}, "loss": 0.5, "eval_loss": 0.4}}\n')
    logs[1].write_text(f'{{"step": {step}, "completion": "then"}}\n')
    return checkpoint.write(place, {"step": step, "manifest": {}}, {"x": torch.ones(1)}, models, logs)


def test_of_the_best_checkpoint_the_model_alone_is_copied(tmp_path: Path) -> None:
    there, result = checkpoint_at(tmp_path, 2), tmp_path / "result"
    result.mkdir()
    resume.copy_model(there, result)
    assert {path.name: path.read_text() for path in result.iterdir()} == {
        "config.json": "2",
        "model.safetensors": "weights",
    }
    (there / "config.json").write_text("3")
    with pytest.raises(
        RunError, match=r"step-00000002 is damaged: config.json is not what was written; --resume without"
    ):
        resume.copy_model(there, result)


def test_logs_are_cut_back_to_the_checkpoints(tmp_path: Path) -> None:
    there = checkpoint_at(tmp_path, 2)
    for name in ("metrics.jsonl", "samples.jsonl"):
        (tmp_path / name).write_text("behind it\n")
    log = Log(tmp_path, "eval_loss", writes=True, of=there)
    assert (log.step, log.best, log.metrics) == (2, Best(2, 0.4, log.metrics), {"loss": 0.5, "eval_loss": 0.4})
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (tmp_path / name).read_bytes() == (there / name).read_bytes()
    (there / "samples.jsonl").unlink()
    Log(tmp_path, None, writes=True, of=there)
    assert not (tmp_path / "samples.jsonl").exists()


@pytest.mark.parametrize(("metric", "step"), [("eval_loss", 2), ("eval_rewards/margins", 3)])
def test_of_equals_the_first_is_best(metric: str, step: int, tmp_path: Path) -> None:
    log = Log(tmp_path, metric, writes=False)
    for n, value in enumerate((3.0, 1.0, 4.0, 1.0, 4.0), 1):
        log.add(Evaluated(n, {metric: value}))
    assert log.best == Best(step, {2: 1.0, 3: 4.0}[step], {metric: {2: 1.0, 3: 4.0}[step]})


def test_a_resumed_runs_past_is_its_own(
    model_directory: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples, verdicts, time, start, and the micro-batches that it began with; killed behind a checkpoint, then gone on with."""
    clock = iter(range(0, 9999, 10))
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(course, "sampled", lambda *_, seed, **__: [{"seed": seed}])
    monkeypatch.setattr(run, "Watch", lambda **_: lambda step, metrics: [f"{step}"] if "loss" in metrics else [])
    monkeypatch.setattr(output, "now", lambda: "first")
    monkeypatch.setitem(TOKENS_PER_MICRO, "cpu", 40)
    values = values_of(model_directory, pairs_file, tmp_path / "out", save_every=2, eval_steps=1, max_steps=6)
    settings, method, understood = build("dpo", values)
    events = run.run("dpo", settings, method, understood, Call(samples=1))
    for event in events:
        if isinstance(event, Sampled) and event.step == 3:
            break
    events.close()  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(output, "now", lambda: "second")
    monkeypatch.setitem(TOKENS_PER_MICRO, "cpu", 1024)
    again = trained("dpo", values, resume=True, samples=1)
    assert [event.step for event in again if isinstance(event, Progress)] == [3, 4, 5, 6]
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert samples == [{"step": n, "seed": n} for n in range(1, 7)]
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "epoch" in line] == pytest.approx([n / 4 for n in range(1, 7)])
    manifest = manifest_of(tmp_path / "out")
    assert manifest["verdicts"] == [f"{n}" for n in range(1, 7)]
    assert manifest["seconds"] == 20 + 40  # two steps, and four
    assert (manifest["started"], manifest["ended"], manifest["tokens_per_micro"]) == ("first", "second", 40)


def test_damaged_checkpoints_do_not_count_when_the_oldest_go(
    model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    values = values_of(model_directory, pairs_file, out, save_every=2, keep=3)
    trained("dpo", values, stop=after(7))
    assert checkpoint.steps(out) == [4, 6, 7]
    for step in (6, 7):
        (checkpoint.at(out, step) / "config.json").write_text("{}")
    assert isinstance(trained("dpo", values, resume=True, stop=after(1))[-1], Stopped)
    assert checkpoint.steps(out) == [4, 5]


def test_a_best_checkpoint_that_is_damaged_is_said_at_once(
    model_directory: Path, pairs_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    values = values_of(model_directory, pairs_file, out, eval_steps=3, best="eval_loss")
    trained("dpo", values, stop=after(4))
    assert checkpoint.steps(out) == [3, 4]
    (checkpoint.at(out, 3) / "config.json").write_text("{}")
    with pytest.raises(
        RunError, match=r"of the best evaluation, of step 3, is not there whole: config.json is not what was"
    ):
        trained("dpo", values, resume=True)


def test_a_checkpoint_ends_where_the_template_does(model_directory: Path, tmp_path: Path) -> None:
    rows = [
        {
            "conversations": [{"from": "human", "value": f"Say {n}"}],
            "chosen": {"from": "gpt", "value": "the cat"},
            "rejected": {"from": "gpt", "value": "a dog ran"},
        }
        for n in range(6)
    ]
    data = jsonl(tmp_path / "share.jsonl", rows)
    values = values_of(model_directory, data, tmp_path / "out", chat_template="chatml", max_steps=2, save_every=1)
    trained("dpo", values)
    for place in (tmp_path / "out", checkpoint.at(tmp_path / "out", 1)):
        assert json.loads((place / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


def test_a_kept_reference_is_scored_as_the_policy_is(
    model_directory: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast or not, each has a file of its own; the held-out data has its own too."""
    monkeypatch.setenv("SOFTQ_CACHE", str(tmp_path / "cache"))
    held = jsonl(tmp_path / "held.jsonl", ROWS[:4])
    more = {"eval_data": [str(held)], "eval_fraction": 0.05, "max_steps": 1}
    values = values_of(model_directory, pairs_file, tmp_path, **more)
    seen = {}
    for kept in (False, True):
        for bf16 in (True, False):
            own = {"cache_reference": kept, "bf16": bf16, "output": str(tmp_path / f"{kept} {bf16}")}
            events = trained("dpo", {**values, **own})
            seen[kept, bf16] = [e.metrics["loss"] for e in events if isinstance(e, Progress)]
            seen[kept, bf16] += [e.metrics["eval_loss"] for e in events if isinstance(e, Evaluated)]
    for bf16 in (True, False):
        assert seen[True, bf16] == pytest.approx(seen[False, bf16], abs=1e-5)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 4


def test_an_adapter_of_another_model_is_not_put_on(model_directory: Path, tmp_path: Path) -> None:
    wide = load(str(model_directory), lora=Lora(4, 8))
    narrow = load(str(model_directory), lora=Lora(4, 8, ["q_proj"]))
    wide.policy.model.save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"is not an adapter of this model: it has \S*lora_A"):
        reweigh(narrow.policy, tmp_path)


def test_a_configuration_is_part_of_a_fingerprint(model_directory: Path) -> None:
    policy = load(str(model_directory), None).policy
    before = fingerprint(policy)
    policy.config.rms_norm_eps *= 2
    assert fingerprint(policy) != before


@pytest.mark.parametrize(("policy", "reference"), [(61, 70), (70, 61)])
def test_neither_vocabulary_may_be_larger(policy: int, reference: int, tmp_path: Path) -> None:
    tiny("llama", torch.float32, vocab_size=reference).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"has {reference} tokens, the policy {policy}"):
        load(tiny("llama", torch.float32, vocab_size=policy), str(tmp_path), tokenizer=tokenizer())


# --- taking over an output ---


def test_overwrite_removes_what_runs_write_and_nothing_outside(tmp_path: Path) -> None:
    out, beside = tmp_path / "out", tmp_path / "beside.txt"
    beside.write_text("mine")
    for name in ("tensorboard", "wandb", "mine", "checkpoints/.partial-1-2", ".partial-abc"):
        (out / name).mkdir(parents=True)
        (out / name / "file").write_text("")
    for name in ("model.safetensors", ".manifest.json.partial"):
        (out / name).write_text("")
    files = ["model.safetensors", "../beside.txt", str(beside), "manifest.json"]
    (out / "manifest.json").write_text(json.dumps({"files": files, "versions": {"softq": "0"}}))
    output.claim(out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["mine"]
    assert beside.read_text() == "mine"


# --- an estimate ---


def test_an_estimate_scales_by_tokens(
    model_directory: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a second a token, but a hundred in the first step; an evaluation's records take a second, for 5 of 7."""
    weighed = Path(f"{pairs_file},weight=2")
    held = jsonl(tmp_path / "held.jsonl", ROWS[:7])
    more = {"eval_data": [str(held)], "eval_fraction": 0.05, "num_train_epochs": 9}
    of = going(model_directory, weighed, tmp_path, batch_size=5, eval_steps=4, **more)
    lengths = estimate.lengths_of(of.data.records)
    made: list[int] = []

    def timed(_: object, numbers: list[int]) -> list[float]:
        made.extend(numbers)
        return [100.0, *(0.5 * sum(lengths[n % 20] for n in of.order.step(number)) for number in numbers[1:])]

    clock = iter((7.0, 8.0))
    monkeypatch.setattr(estimate, "_timed_steps", timed)
    monkeypatch.setattr(estimate, "evaluate", lambda *_, **__: None)
    monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(estimate, "_peak", lambda device: 3 << 20)
    said = estimate.estimate(of)
    held_lengths = [sum(len(c.ids) for c in record.completions) for record in of.data.held or ()]
    evaluation = sum(held_lengths) / sum(held_lengths[:5])
    assert len(lengths) == 20
    assert len(held_lengths) == 7
    assert said.seconds == pytest.approx(0.5 * 2 * sum(lengths) / 8 * 10 + 3 * evaluation, rel=1e-6)  # at 4, 8 and 10
    assert (said.steps, said.memory) == (10, 3 << 20)
    assert int(lengths.argmax()) in [n % 20 for n in of.order.step(made[0])]
    assert made[1:] == list(range(10))


def test_each_rehearsed_step_is_timed_by_itself_and_the_longest_rehearsal_ends(
    model_directory: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 1, 2, 3 … seconds: after six, 21 are over."""
    clock = iter(n * (n + 1) / 2 for n in range(99))
    monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(estimate, "train", lambda *_, **__: iter(range(16)))
    of = going(model_directory, pairs_file, tmp_path)
    assert estimate._timed_steps(of, list(range(16))) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("seconds", "said"), [(7290.0, "2 h 2 min"), (3599.0, "1 h 0 min"), (150.0, "2 min"), (80.0, "80 s")]
)
def test_an_estimate_in_words(seconds: float, said: str) -> None:
    assert str(estimate.Estimate(seconds, 1234, 5 << 20)) == f"estimate: {said} for 1,234 steps, 5 MiB at the peak"


# --- what is shown, and how a command ends ---


def test_steps_are_shown_at_their_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds a step."""
    monkeypatch.setattr(time, "monotonic", lambda: 100.0 + 2 * number)
    show = Show(5)
    show.console = Console(file=io.StringIO(), width=200, soft_wrap=True)
    for number in range(1, 13):
        show.one(Progress(number, 12, {"loss": number / 8}))
    show.one(
        Evaluated(12, {"eval_loss": 0.25, "eval_rewards/chosen": -0.5, "eval_rewards/rejected": -1.5, "loss": 9.0})
    )
    assert show.console.file.getvalue().splitlines() == [  # pyright: ignore[reportAttributeAccessIssue]
        "step 1/12  loss 0.125",
        "step 5/12  loss 0.625  14 s left",
        "step 10/12  loss 1.25  4 s left",
        "step 12/12  loss 1.5",
        "evaluated at step 12  loss 0.25  rewards/chosen -0.5 rejected -1.5",
    ]


def test_what_is_saved_is_published_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_train, "publish", lambda directory, name: f"{directory.name} as {name}")
    saved, stopped = Saved(tmp_path / "out"), Stopped(15, 3, tmp_path / "out")
    told = Note("published at out as me/mine, private if it is new")
    assert list(cli_train._published([saved], "me/mine")) == [saved, told]
    assert list(cli_train._published([stopped], "me/mine")) == [stopped]
    assert list(cli_train._published([saved], None)) == [saved]


def test_a_sweep_is_not_published(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["train", "dpo", "--model", "m", "--data", "d", "--output", str(tmp_path / "out"), "--seeds", "0,1"]
    expected = "softq: --push-to-hub publishes one run: leave out --seeds\n"
    assert called([*words, "--push-to-hub", "me/mine"], capsys) == (2, "", expected)


def test_ignored_signals_stay_ignored() -> None:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with asked() as stop:
            assert stop() == 0
            for number in before:
                signal.raise_signal(number)
            assert stop() == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("ends", "code", "said"),
    [
        (lambda words: signal.raise_signal(signal.SIGINT), 130, "stopped\n"),
        (lambda words: signal.raise_signal(signal.SIGTERM), 143, ""),
        (lambda words: 143, 143, ""),
    ],
)
def test_exit_codes_before_there_is_anything_to_save(
    ends: Any, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(cli, "import_module", lambda name: SimpleNamespace(run=ends))
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert called(["train"], capsys) == (code, "", said)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
