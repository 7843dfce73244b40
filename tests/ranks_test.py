"""One process, two, three, sharded or not: the same run. Its metrics line for line, its weights, its checkpoints."""

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import _rms_norm, tokens_of
from together import free_port, together
from torch.distributed.tensor import DTensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from softq.cli.main import main
from softq.lm.load import load
from softq.objectives import METHODS
from softq.training import checkpoint, ranks
from softq.training.events import Progress, RunError, Saved, Stopped
from softq.training.run import run
from softq.training.settings import Call, build
from softq.training.shard import shard

close = {"rtol": 1e-10, "atol": 1e-12}
LORA = {"use_peft": True, "lora_r": 4}
MOVING = {"reference_mixup": 0.6, "reference_every": 2}
ALONE = {
    "batch_size": 1,
    "max_steps": 3,
    "eval_fraction": 0.05,
}  # a step has fewer records than processes, so has the rest
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "two sources, weights per pair, clipped": ("dpo", {"data": "weighed", "max_grad_norm": 0.01}),
    "two parts and one": ("dpo", {"batch_size": 3, "tokens_per_micro": 1, "gradient_checkpointing": True}),
    "one record a step, one held out": ("dpo+sft", ALONE),
    "kto": ("kto", {"tokens_per_micro": 40}),
    "aot": ("aot", {**LORA, **MOVING}),
    "groups": ("infonca", {"data": "groups"}),
    "sft": ("sft", {**LORA, "gradient_checkpointing": True}),
    "wpo": ("wpo", {"tokens_per_micro": 40}),
    "reward model": ("rm", {"center": 0.1, "tokens_per_micro": 40}),
    "tdpo2": ("tdpo2", LORA),
    "moving": ("dpo", MOVING),
    "kept reference": ("dpo", {"cache_reference": True}),
    "memory": ("mine_ranked:running", {}),
    "float32": ("dpo", {"dtype": "float32", "learning_rate": 1e-6}),
}
TIED = ("rewards/accuracies", "rewards/ties")
SEEN = ("moving", "memory", "aot")
"""What two sharded processes need not show: a reference that moves and a memory, which `resumed` shards too; and what three
sharded ones show."""
LAYOUTS: dict[str, tuple[int, dict[str, Any], list[str]]] = {
    "two": (2, {}, list(CASES)),
    "two sharded": (2, {"shard": True}, [case for case in CASES if case not in SEEN]),
    "three": (3, {}, ["one record a step, one held out", "kto"]),
    "three sharded": (3, {"shard": True}, ["aot", "memory"]),
}
COMPARED = [(layout, case) for layout, (_, _, cases) in LAYOUTS.items() for case in cases]

MINE = """
import os
import torch
from softq import Method, Term
from softq.mdp.readouts import REF_LOGP
from softq.objectives.margins import contrast
from softq.objectives.weights import per_pair
from softq.records import implicit


def running(noise: float = 0.0, leaves: int = 0) -> Method:
    "A method with memory; with chance in its loss; and one that rank 1 does not survive."
    calls = 0

    def loss(scored, batch):
        nonlocal calls
        gap = contrast(implicit(scored, batch), batch)
        calls += scored["logp"].requires_grad
        if leaves and calls > leaves and os.environ.get("RANK") == "1" and os.environ.get("LEAVES"):
            if os.environ["LEAVES"] == "at once":
                os._exit(0)
            gap = gap * torch.nan
        return torch.nn.functional.softplus(1.0 - gap + batch.columns["shift"] + noise * torch.rand(()))

    def remember(memory, scored, batch):
        return {"shift": 0.9 * memory["shift"] + 0.1 * scored["logp"].mean().cpu()}

    zero = torch.zeros((), dtype=torch.float64)
    return Method((Term("running", "pair", loss, per_pair),), (REF_LOGP,), memory={"shift": zero}, remember=remember)
"""


@pytest.fixture(scope="module", autouse=True)
def _exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Norms that do not round float64 to float32, and a module of a user's own."""
    own = tmp_path_factory.mktemp("own")
    (own / "mine_ranked.py").write_text(MINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaRMSNorm, "forward", _rms_norm)
        patch.syspath_prepend(own)
        patch.setenv("PYTHONPATH", str(own))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def files(model_directory: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The model, and data of three kinds."""
    at = tmp_path_factory.mktemp("files")
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    for name, part in (("a", rows[::2]), ("b", rows[1::2])):
        text = "".join(json.dumps({**row, "weight": 0.5 + n % 3}) + "\n" for n, row in enumerate(part))
        (at / f"{name}.jsonl").write_text(text)
    groups = [
        {"prompt": f"Say {n}:", "completions": [" the cat" * (n % 4 + 1), " a dog", " no"], "scores": [n, 1, 2.5]}
        for n in range(20)
    ]
    (at / "groups.json").write_text(json.dumps(groups))
    weighed = [{"path": str(at / "a.jsonl"), "name": "a", "weight": 1.5}, {"path": str(at / "b.jsonl"), "name": "b"}]
    data = {"pairs": [str(pairs_file)], "weighed": weighed, "groups": [str(at / "groups.json")]}
    return {"model": str(model_directory), "data": data}


def values_of(files: dict[str, Any], output: Path, **more: Any) -> dict[str, Any]:
    base = {"learning_rate": 3e-3, "batch_size": 5, "eval_fraction": 0.2, "eval_steps": 2, "max_steps": 4}
    own = {"data": files["data"][more.pop("data", "pairs")], "model": files["model"], "output": str(output)}
    return {**base, "num_train_epochs": 3, "dtype": "float64", "lora_r": 16, **own, **more}


def trained(files: dict[str, Any], name: str, output: Path, call: dict[str, Any] | None = None, **more: Any) -> list:
    settings, method, understood = build(name, values_of(files, output, **more))
    return list(run(name, settings, method, understood, Call(**(call or {}))))


@pytest.fixture(scope="module")
def outputs(files: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case in one process and in several, in directories LAYOUT/CASE. Each layout scores references itself."""
    root = tmp_path_factory.mktemp("outputs")

    def every(layout: str, cases: list[str], more: dict[str, Any]) -> None:
        os.environ["SOFTQ_CACHE"] = str(root / layout / "cache")
        for case in cases:
            name, own = CASES[case]
            assert isinstance(trained(files, name, root / layout / case, **own, **more)[-1], Saved)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTQ_CACHE", "")
        every("one", list(CASES), {})

        def work(count: int) -> None:
            for layout, (processes, more, cases) in LAYOUTS.items():
                if processes == count:
                    every(layout, cases, more)

        patch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")  # what an environment asks of accelerate
        patch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # is nothing that it can ask of a run
        for count in (2, 3):
            together(count, lambda count=count: work(count), seconds=300)
    return root


@pytest.mark.parametrize(("layout", "case"), COMPARED, ids=lambda value: value.replace(" ", "-"))
def test_a_run_is_the_same_on_any_number_of_processes(outputs: Path, layout: str, case: str) -> None:
    one, many = outputs / "one" / case, outputs / layout / case
    rel, absolute = (1e-5, 1e-6) if case == "float32" else (1e-10, 1e-12)
    lines = [[json.loads(line) for line in (at / "metrics.jsonl").read_text().splitlines()] for at in (one, many)]
    assert len(lines[0]) == len(lines[1]) > 4
    if case == "kept reference":  # it is the start to rounding, where margins of step 1 are neither above 0 nor not
        lines = [[{k: v for k, v in line.items() if k not in TIED} for line in of] for of in lines]
    for line, other in zip(*lines, strict=True):
        assert list(other) == list(line)
        assert other == pytest.approx(line, rel=rel, abs=absolute)
    losses = [line["loss"] for line in lines[0] if "loss" in line]
    assert len(set(losses)) == len(losses)
    tolerance = {"rtol": 0, "atol": 1e-6} if case == "float32" else close
    same_tensors(one / weights_of(one), many / weights_of(one), **tolerance)
    names = [sorted(path.name for path in at.iterdir()) for at in (one, many)]
    assert names[0] == names[1]
    manifest = json.loads((many / "manifest.json").read_text())
    assert (manifest["finished"], manifest["ranks"]) == (True, LAYOUTS[layout][0])


def weights_of(output: Path) -> str:
    lora = (output / "adapter_model.safetensors").exists()
    return "adapter_model.safetensors" if lora else "model.safetensors"


def same_tensors(file: Path, other: Path, without: str = "-", **tolerance: float) -> None:
    """The same names, shapes, dtypes and values, in the same order of the file."""
    one, many = ({n: t for n, t in load_file(at).items() if not n.startswith(without)} for at in (file, other))
    assert list(one) == list(many)
    for name, value in one.items():
        torch.testing.assert_close(many[name], value, **tolerance, msg=lambda said, name=name: f"{name}: {said}")


KEPT: dict[str, Any] = {"max_steps": 6, "eval_steps": 3, "data": "pairs", **MOVING}
"""A run with all that a checkpoint can hold: weights, moments, a reference that moved; and the method has a memory."""
KINDS = {"": {}, " sharded": {"shard": True}}


def after(polls: int, rank: int) -> dict[str, Any]:
    """SIGTERM for one rank only, seen when it is asked for the given time; the first is before the first step."""
    seen = itertools.count()
    return {"stop": lambda: signal.SIGTERM if next(seen) >= polls and ranks.rank() == rank else 0}


@pytest.fixture(scope="module")
def resumed(files: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """KEPT in directories FROM and FROM to COUNT: stopped after 3 steps on so many processes, gone on with on others."""
    root = tmp_path_factory.mktemp("resumed")

    def goes(output: str, kind: str, call: dict[str, Any], **more: Any) -> list:
        last = trained(files, "mine_ranked:running", root / output, call, **KEPT, **KINDS[kind], **more)[-1]
        return [output, type(last).__name__, last.step if isinstance(last, Stopped) else 6]

    def on_two() -> list[list]:
        said = [goes(f"2{kind}", kind, after(3, rank=1)) for kind in KINDS]
        said += [goes(f"1 to 2{kind}", kind, {"resume": True}) for kind in KINDS]
        for kind in KINDS:
            goes(f"noisy{kind}", kind, after(3, rank=1), noise=0.1)
            goes(f"noisy{kind}", kind, {"resume": True}, noise=0.1)
            goes(f"noisy{kind} whole", kind, {}, noise=0.1)
        return said

    goes("whole", "", {})
    goes("1", "", after(3, rank=0))
    for kind in KINDS:
        shutil.copytree(root / "1", root / f"1 to 2{kind}")
    every = together(2, on_two, seconds=200)
    ends = [[f"2{kind}", "Stopped", 3] for kind in KINDS] + [[f"1 to 2{kind}", "Saved", 6] for kind in KINDS]
    assert every == [ends, ends]
    for kind, count in itertools.product(KINDS, (1, 3)):
        shutil.copytree(root / f"2{kind}", root / f"2{kind} to {count}")
    together(3, lambda: [goes(f"2{kind} to 3", kind, {"resume": True}) for kind in KINDS], seconds=200)
    for kind in KINDS:
        goes(f"2{kind} to 1", "", {"resume": True})
    return root


@pytest.mark.parametrize("road", ["1 to 2", "1 to 2 sharded", "2 to 1", "2 sharded to 1", "2 to 3", "2 sharded to 3"])
def test_a_run_goes_on_on_another_number_of_processes(resumed: Path, road: str) -> None:
    one, many = resumed / "whole", resumed / road
    lines = [[json.loads(line) for line in (at / "metrics.jsonl").read_text().splitlines()] for at in (one, many)]
    assert [line["step"] for line in lines[1]] == [1, 2, 3, 3, 4, 5, 6, 6]
    for line, other in zip(*lines, strict=True):
        assert other == pytest.approx(line, rel=1e-10, abs=1e-12)
    same_tensors(one / "model.safetensors", many / "model.safetensors", **close)


@pytest.mark.parametrize("kind", KINDS)
def test_on_the_same_number_it_goes_on_bit_for_bit(resumed: Path, kind: str) -> None:
    parts, whole = resumed / f"noisy{kind}", resumed / f"noisy{kind} whole"
    assert (parts / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    other = resumed / "whole" / "metrics.jsonl"
    assert (parts / "metrics.jsonl").read_text() != other.read_text()  # there is chance in it


@pytest.mark.parametrize("kind", KINDS)
def test_the_checkpoint_of_many_is_that_of_one(resumed: Path, kind: str) -> None:
    one, many = checkpoint.at(resumed / "1", 3), checkpoint.at(resumed / f"2{kind}", 3)
    assert checkpoint.damaged(many) is None
    files = [sorted(str(path.relative_to(at)) for path in at.rglob("*")) for at in (one, many)]
    assert files[0] == files[1]
    for name in ("model.safetensors", "reference/model.safetensors"):
        same_tensors(one / name, many / name, **close)
    assert (one / "config.json").read_bytes() == (many / "config.json").read_bytes()
    same_tensors(one / "training.safetensors", many / "training.safetensors", without="chance/", **close)
    names = set(load_file(many / "training.safetensors"))
    assert {"chance/0/torch", "chance/1/torch", "memory/shift"} <= names
    assert any(name.startswith("optimizer/exp_avg_sq/") for name in names)


def test_the_reference_is_sharded_as_the_policy_is(files: dict[str, Any]) -> None:
    """Of each model a process holds half of the numbers before a step and behind it, and of its blocks between passes."""

    def held() -> list[dict[str, int]]:
        accelerator = ranks.join(bf16=False)
        of = load(files["model"], dtype="float64", copied=True).models
        parts = {f"{name} blocks": model.get_submodule("model.model.layers") for name, model in of.items()} | dict(of)
        seen = [_held(parts)]
        shard(of, str(accelerator.device))
        seen.append(_held(parts))
        scored = of(tokens_of([(0, [5, 6, 7], [8, 9]), (0, [5, 6, 7], [4])]), METHODS["dpo"]().needs)
        seen.append(_held(parts))
        scored["logp"].sum().backward()
        return [*seen, _held(parts)]

    both = together(2, held)
    for whole, before, between, behind in both:
        assert before == behind
        for name in ("policy", "ref"):
            assert both[0][1][name] + both[1][1][name] == whole[name]
            assert before[f"{name} blocks"] == whole[f"{name} blocks"] // 2
            assert before[name] <= whole[name] // 2 + 16  # the vocabulary is odd, and the width 32
            assert between[f"{name} blocks"] == before[f"{name} blocks"]
            assert between[name] > before[name]  # what is outside of blocks stays whole until the backward pass


def _held(of: dict[str, torch.nn.Module]) -> dict[str, int]:
    """The numbers that this process holds of each module."""
    parameters = {name: module.parameters() for name, module in of.items()}
    local = {name: [p.to_local() if isinstance(p, DTensor) else p for p in each] for name, each in parameters.items()}
    return {name: sum(p.numel() for p in each) for name, each in local.items()}


def test_a_process_that_ends_ends_the_run_and_alone_it_goes_on(
    files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"leaves": 3, "save_every": 2, "max_steps": 5}
    monkeypatch.setenv("LEAVES", "at once")

    def work() -> str:
        with pytest.raises(RunError) as caught:
            trained(files, "mine_ranked:running", tmp_path / "lost", **more)
        return str(caught.value)

    said, gone = together(2, work, seconds=60)
    assert said.startswith("another process of this run ended")
    assert gone is None
    monkeypatch.delenv("LEAVES")
    found, _ = checkpoint.newest(tmp_path / "lost")
    assert found is not None
    assert found.step == 2
    events = trained(files, "mine_ranked:running", tmp_path / "lost", {"resume": True}, **more)
    assert [event.step for event in events if isinstance(event, Progress)] == [3, 4, 5]
    trained(files, "mine_ranked:running", tmp_path / "whole", **more)
    same_tensors(tmp_path / "whole" / "model.safetensors", tmp_path / "lost" / "model.safetensors", **close)


def test_both_launchers_and_a_loss_that_is_not_finite_on_one_rank(files: dict[str, Any], tmp_path: Path) -> None:
    """torchrun runs real processes; what `accelerate launch` gives a process is its environment, and forks get that."""
    more = {"leaves": 3, "save_every": 2, "max_steps": 5}
    values = values_of(files, tmp_path / "run", **more)
    words = [f"--{key.replace('_', '-')}={value}" for key, value in values.items() if key not in ("data", "lora_r")]
    words = ["train", "mine_ranked:running", *words, "--data", values["data"][0]]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = _launched([*torchrun, "-m", "softq", *words], LEAVES="nan")
    assert ended.returncode == 1
    assert "softq: rank 1: step 3: the loss of " in ended.stderr, ended.stderr
    assert "is not finite" in ended.stderr
    assert "[rank" not in ended.stderr  # no traceback of either

    said = together(2, lambda: _called([*words, "--resume"]), seconds=60, given=_given_by_accelerate(tmp_path))
    assert [code for code, _ in said] == [0, 0]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["finished"], manifest["ranks"], manifest["resumed"][0]["step"]) == (True, 2, 2)
    assert "".join(out for _, out in said).count("step 5/5") == 1  # one process speaks
    trained(files, "mine_ranked:running", tmp_path / "one", **more)
    same_tensors(tmp_path / "one" / "model.safetensors", tmp_path / "run" / "model.safetensors", rtol=0, atol=1e-4)


def _launched(words: list[str], **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *words]
    env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=150, check=False)


def _given_by_accelerate(work: Path) -> list[dict[str, str]]:
    """The environment that each of two processes of `accelerate launch` finds itself in, but for the launcher's own store."""
    script = "import json, os, pathlib; pathlib.Path(os.environ['RANK']).write_text(json.dumps(dict(os.environ)))"
    (work / "tell.py").write_text(script)
    launch = ["--multi_gpu", "--num_processes=2", "--num_machines=1"]  # no GPU is needed
    launch += ["--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={free_port()}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        ended = _launched(["accelerate.commands.launch", *launch, "tell.py"])
    assert ended.returncode == 0, ended.stderr
    told = [json.loads((work / str(rank)).read_text()) for rank in range(2)]
    return [{key: value for key, value in each.items() if key != "TORCHELASTIC_USE_AGENT_STORE"} for each in told]


def _called(words: list[str]) -> tuple[int, str]:
    """Exit code and stdout of `softq WORDS` in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as end:
        main(words)
    return int(end.value.code or 0), out.getvalue()


@pytest.mark.parametrize(("what", "name"), ranks.WRAPPERS.items())
def test_launchers_that_wrap_the_model_are_refused(what: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{what}", "true")
    with pytest.raises(ValueError, match=f"^{name} is switched on by the launcher; .* --shard$"):
        ranks.join(bf16=False)


def test_processes_that_do_not_find_each_other_do_not_train_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="the launcher started 2 processes, but 1 found each other"):
        ranks.join(bf16=False)
