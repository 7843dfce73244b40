"""DPO in softq beside DPO in TRL: pairs per second, CPU-seconds per pair, peak memory, and the share of GEMM peak.

    pip install -e '.[bench]'
    python bench/dpo_vs_trl.py --data hh.jsonl.gz              # without --data: generated pairs of such lengths
    python bench/dpo_vs_trl.py --data hh.jsonl.gz --cases all --json

Both train the same weights on the same pairs in the same batches in the same order: β 0.1, AdamW of the same kind,
constant learning rate, gradients clipped at norm 1, no dropout, the reference run on the fly, one loss reported a step.
Each tokenises the same strings by itself; a hash of ids and of where completions start must agree. First both run one
step, from a policy that is not its reference, so that the loss is not just log 2; losses more than 1e-4 apart end the
benchmark. Then they alternate, one process a contender and round, so that peak memory is its own.

Timed: all steps after one warm-up step, with batch assembly, metrics and optimiser, without imports, loading and
tokenisation. CPU-seconds are those of all threads of the process. Memory is the process's largest resident set from its
start to its end, imports and tokenisation included (on a GPU: the most that torch had allocated); where it stood after
the imports and before the first step is printed with it. Ratios are taken within a round, then their median. Use an idle
machine: threads that wait for a core spin, so that whoever runs just then takes several times as long, CPU time included.

Share of GEMM peak: the FLOPs that the steps need (`workload.forward_flops`: matrix products of each distinct state up to
a last action, logits at actions, 3 passes for the policy and 1 for the reference; nothing for padding, repeated prompts
or recomputation), over time, over the best rate of a large square product in the same dtype with the same threads. TRL's
share counts the same needed FLOPs: what it does beyond them is time, not work.

Not measured: quality (the losses are equal), long runs, several devices, LoRA, a cached reference.
softq runs with its automatic layout, TRL with its defaults but for what must be equal: order of rows, precision, kind of
AdamW, and checkpointing, which is on by default in TRL and here off for both, or on for both in the case of that name.
`bf16` is weights and optimiser in bfloat16 on both sides, not autocast over float32 weights.
`vocab-50k` widens the model's vocabulary; the text keeps to the 8,192 ids of its tokenizer.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from contenders import Plan, run_softq, run_trl

SETTINGS = {"learning_rate": 1e-6, "beta": 0.1, "max_length": 1024}
LOSS_TOLERANCE = 1e-4
LEAST_REWARD = 1e-3  # of the first batch: with a reward of 0 a policy is its own reference, and its loss log 2
PACKAGES = ("torch", "transformers", "trl", "softq")


@dataclass(frozen=True)
class Case:
    """What differs between the measurements."""

    about: str
    shape: str = "12.6M"
    vocabulary: int = 8192
    dtype: str = "float32"
    checkpointing: bool = False
    device: str = "cpu"
    lengths: tuple[tuple[float, float], ...] | None = None  # median and log-σ of each text's; None: the data's own


LONG, SHORT = (600, 0.1), (20, 0.3)
CASES: Mapping[str, Case] = {
    "main": Case("fp32, no checkpointing"),
    "checkpointing": Case("fp32, gradient checkpointing for both", checkpointing=True),
    "bf16": Case("bfloat16, no checkpointing", dtype="bfloat16"),
    "long-prompt": Case("fp32, prompts of about 600 tokens, completions of about 20", lengths=(LONG, SHORT, SHORT)),
    "long-completion": Case("fp32, prompts of about 20 tokens, completions of about 600", lengths=(SHORT, LONG, LONG)),
    "vocab-50k": Case("fp32, a vocabulary of 50,000", vocabulary=50_000),
    "gpu-0.5b": Case("bfloat16 on a GPU, random weights", "Qwen2.5-0.5B", 151_936, "bfloat16", device="cuda"),
    "gpu-1.5b": Case("bfloat16 on a GPU, random weights", "Qwen2.5-1.5B", 151_936, "bfloat16", device="cuda"),
}


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One case: prepare, prove that both compute the same, then alternate."""
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        work = Path(directory)
        plan = {**SETTINGS, **asdict(CASES[name])}
        plan |= {key: getattr(options, key) for key in ("data", "pairs", "batch", "threads")}
        say(f"{name}: preparing")
        facts = ask("prepare", work, plan)
        plan |= {"fused_adamw": facts["fused_adamw"]}
        proof = proved(name, plan, *(ask(side, work, plan, 1) for side in ("softq", "trl")))
        rounds = []
        for number in range(options.rounds):
            say(f"{name}: round {number + 1} of {options.rounds}, load average {os.getloadavg()[0]:.1f}")
            steps = 1 + plan["pairs"] // plan["batch"]
            rounds.append({job: ask(job, work, plan, steps) for job in ("gemm", "softq", "trl")})
            agree_on_ids(name, rounds[-1]["softq"], rounds[-1]["trl"])
    plan["data"] = Path(plan["data"]).name if plan["data"] and not plan["lengths"] else "generated pairs"
    return {"case": name, "plan": plan, "facts": facts, **proof, **compared(rounds, plan, facts)}


def ask(job: str, work: Path, plan: Plan, steps: int = 0) -> dict[str, Any]:
    """Run one job in a process of its own and return what it reports."""
    (work / "plan.json").write_text(json.dumps(plan))
    threads = str(plan["threads"])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0") if plan["device"] == "cuda" else "",
    }
    command = [sys.executable, __file__, "--child", job, "--work", str(work), "--steps", str(steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{job} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(job: str, work: Path, steps: int) -> dict[str, Any]:
    """The job of this process."""
    contenders = {"softq": run_softq, "trl": run_trl}
    if job in contenders:
        return contenders[job](work, json.loads((work / "plan.json").read_text()), steps)
    import workload  # it loads torch and softq, which neither the parent nor TRL's process may hold

    return {"prepare": workload.prepare, "gemm": workload.gemm}[job](work)


def proved(name: str, plan: Plan, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """That the first step is the same: ids, loss, log-probabilities, norm of the gradient. In bf16 only the ids must be."""
    agree_on_ids(name, ours, theirs)
    a, b = ours["first"], theirs["first"]
    difference = abs(a["loss"] - b["loss"])
    relative = max(abs(a[key] - b[key]) / abs(b[key]) for key in ("logps/chosen", "logps/rejected", "grad_norm"))
    say(f"{name}: first loss {a['loss']:.6f}, TRL's {b['loss']:.6f}; log-probs and gradient norm within {relative:.0e}")
    if plan["dtype"] == "float32" and difference > LOSS_TOLERANCE:
        raise SystemExit(f"{name}: the first losses are {difference:.1e} apart: not the same computation")
    if max(abs(b["rewards/chosen"]), abs(b["rewards/rejected"])) < LEAST_REWARD:
        raise SystemExit(f"{name}: the policy is its own reference, so that any loss is log 2: nothing is proved")
    return {"loss_difference": difference, "first": {"softq": a, "trl": b, "relative_difference": relative}}


def agree_on_ids(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Both must have trained on the same ids, with completions that start at the same places."""
    if ours["ids"] != theirs["ids"]:
        raise SystemExit(f"{name}: softq and TRL made different ids of the same strings")


def compared(rounds: Sequence[Mapping[str, Any]], plan: Plan, facts: Mapping[str, float]) -> dict[str, Any]:
    """Numbers by side, and their ratios, all as [median, least, most] over the rounds."""
    pairs = plan["pairs"]
    peak = max(turn["gemm"]["flops"] for turn in rounds)

    def side(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
        return {
            "pairs_per_second": spread([pairs / run["wall"] for run in runs]),
            "cpu_seconds_per_pair": spread([run["cpu"] / pairs for run in runs]),
            **{f"{at}_mib": spread([run["memory"][at] / 2**20 for run in runs]) for at in runs[0]["memory"]},
            "gemm_share": spread([facts["gflop"] * 1e9 * pairs / run["wall"] / peak for run in runs]),
        }

    turns = [(turn["softq"], turn["trl"]) for turn in rounds]
    apart = max(abs(a - b) for ours, theirs in turns for a, b in zip(ours["losses"], theirs["losses"], strict=True))
    return {
        "speed_ratio": spread([theirs["wall"] / ours["wall"] for ours, theirs in turns]),
        "cpu_ratio": spread([ours["cpu"] / theirs["cpu"] for ours, theirs in turns]),
        "memory_ratio": spread([ours["memory"]["peak"] / theirs["memory"]["peak"] for ours, theirs in turns]),
        "softq": side([ours for ours, _ in turns]),
        "trl": side([theirs for _, theirs in turns]),
        "gemm_peak_gflops": peak / 1e9,
        "largest_loss_difference": apart,
        "layout": rounds[0]["softq"]["layout"],
    }


def spread(values: Sequence[float]) -> list[float]:
    """[median, least, most]."""
    return [median(values), min(values), max(values)]


def table(result: Mapping[str, Any]) -> str:
    """One case for people."""
    plan, facts, sides = result["plan"], result["facts"], (result["softq"], result["trl"])
    peak = "peak MiB on the GPU" if plan["device"] == "cuda" else "peak MiB resident"
    rows = [
        ("", "softq", "TRL", "ratio"),
        ("pairs per second", *(shown(side["pairs_per_second"]) for side in sides), shown(result["speed_ratio"])),
        ("CPU-seconds per pair", *(shown(side["cpu_seconds_per_pair"]) for side in sides), shown(result["cpu_ratio"])),
        (peak, *(shown(side["peak_mib"]) for side in sides), shown(result["memory_ratio"])),
        ("  MiB before the first step", *(shown(side["ready_mib"]) for side in sides), ""),
        ("  MiB after the imports", *(shown(side["imported_mib"]) for side in sides), ""),
        ("share of GEMM peak", *(shown(side["gemm_share"]) for side in sides), ""),
        ("tokens computed per pair", f"{facts['states']:.0f}", f"{facts['padded_tokens']:.0f}", ""),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    head = (
        f"{result['case']}: {CASES[result['case']].about}. Qwen2 {plan['shape']}, vocabulary {plan['vocabulary']:,}; "
        f"{plan['data']}: {plan['pairs']} pairs, {plan['batch']} a step; {plan['threads']} threads; layout {result['layout']}"
    )
    foot = (
        f"First loss {result['first']['softq']['loss']:.6f}, {result['loss_difference']:.0e} from TRL's; every later loss "
        f"within {result['largest_loss_difference']:.0e}. Needed: {facts['gflop']:.1f} GFLOP a pair; GEMM peak "
        f"{result['gemm_peak_gflops']:.0f} GFLOP/s. Left out: {facts['straddled']} pairs whose prompt does not end on a token."
    )
    return "\n".join(["", head, *lines, foot])


def shown(values: Sequence[float]) -> str:
    """Median (least to most), to three digits or whole numbers."""
    middle, *ends = (f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values)
    return middle if {*ends} == {middle} else f"{middle} ({ends[0]} to {ends[1]})"


def one_line(results: Sequence[Mapping[str, Any]]) -> str:
    """All results as JSON; the first case's four numbers stand on top."""
    first = results[0]
    top = {
        "speed_ratio": first["speed_ratio"][0],
        "memory_ratio": first["memory_ratio"][0],
        "loss_difference": first["loss_difference"],
        "gemm_share": first["softq"]["gemm_share"][0],
    }
    versions = {package: version(package) for package in PACKAGES}
    return json.dumps({**top, "versions": versions, "cases": {result["case"]: result for result in results}})


def say(line: str) -> None:
    """Progress goes to standard error."""
    print(line, file=sys.stderr, flush=True)


def has_gpu() -> bool:
    """Asked in another process: this one stays small."""
    asked = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", asked]).returncode == 0


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="DPO in softq beside DPO in TRL", allow_abbrev=False)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--data", help="preference pairs of plain text, such as raw HH; default: generated pairs")
    parser.add_argument("--pairs", type=int, default=160, help="timed pairs; one more batch warms up (default 160)")
    parser.add_argument("--batch", type=int, default=8, help="pairs a step (default 8)")
    parser.add_argument("--rounds", type=int, default=3, help="how often the two alternate (default 3)")
    parser.add_argument("--threads", type=int, default=threads, help=f"default: all, here {threads}")
    parser.add_argument(
        "--cases", default="main", help=f"all, or some of {', '.join(CASES)} with commas (default main)"
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of tables")
    parser.add_argument("--work", help="a directory for models and pairs meanwhile (default: the temporary directory)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pairs < options.batch or options.pairs % options.batch:
        parser.error(f"--pairs {options.pairs} is no multiple of --batch {options.batch}")
    if unknown := set(options.cases.split(",")) - {*CASES, "all"}:
        parser.error(f"--cases: {', '.join(unknown)} is unknown; known are all, {', '.join(CASES)}")
    return options


def main() -> None:
    """Every case that this machine can run, or the one job of a child."""
    options = parsed()
    if options.child:
        print(json.dumps(child(options.child, Path(options.work), options.steps)))
        return
    results = []
    for name in CASES if options.cases == "all" else options.cases.split(","):
        if CASES[name].device == "cuda" and not has_gpu():
            say(f"{name}: skipped, torch sees no GPU")
            continue
        results.append(measure(name, options))
        if not options.json:
            print(table(results[-1]), flush=True)
    if options.json and results:
        print(one_line(results))


if __name__ == "__main__":
    main()
