"""`softq score` beside TRL's precomputation of reference log-probs, run for the policy and for the reference.

    pip install -e '.[bench]'
    python bench/score_vs_trl.py --data hh.jsonl.gz            # without --data: generated pairs of such lengths
    python bench/score_vs_trl.py --data hh.jsonl.gz --memory 512

Both score the same pairs under the same two models of 12.6 M parameters in float32, and must agree on ids and on each of the
four sums of log-probs a pair, to 1e-4 nats or 4 units in the last place of TRL's float32. They alternate, one process a
contender and round; a ratio is taken within a round, and its median over the rounds told.

Timed: softq from encoded records to the written tables, with entropies, ranks, divergences, likeliest tokens, their texts and
CHES; TRL its own pass over the encoded pairs in its own batches, twice. Not timed on either side: imports, loading,
tokenisation, digests of weights and data, and one batch that warms up. Memory is the process's largest resident set.

`--memory N` scores N records and then the same four times over, and prints the largest resident set of each.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from contenders import largest_resident

TOLERANCE, PLACES = 1e-4, 4 * 2**-23
"""Nats that two sums may be apart, or, where TRL's float32 can not tell 1e-4, four units in the last place of the sum."""
SETTINGS = {"learning_rate": 1e-6, "beta": 0.1, "max_length": 1024, "shape": "12.6M", "vocabulary": 8192}
SETTINGS |= {"dtype": "float32", "checkpointing": False, "device": "cpu", "lengths": None}
SUMS = ("chosen_logp", "rejected_logp", "chosen_ref_logp", "rejected_ref_logp")
AGAIN = 4  # times over, for the memory


def run_softq(work: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Score and write; the sums are read back from the tables."""
    import pyarrow.parquet as pq
    import torch

    from softq import load, read
    from softq.reading.score import Scoring, pieces_of, scored_parts, tables
    from softq.training.loop import default_budget

    torch.set_num_threads(plan["threads"])
    loaded = load(str(work / "policy"), str(work / "reference"), dtype="float32", device="cpu")
    data = read(work / plan["file"], loaded.tokenizer, max_length=plan["max_length"])
    ids = [[(c.ids.tolist(), int(c.action.argmax()) + 1) for c in r.completions] for r in data.records[: plan["pairs"]]]
    with tempfile.TemporaryDirectory(dir=work) as output:
        of = Scoring(Path(output), data, loaded, plan["beta"], default_budget(loaded.models))
        tables(of, list(data.records[: plan["batch"]]), range(plan["batch"]), pieces_of(loaded.tokenizer))
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in scored_parts(of, range(of.parts)):
            pass
        took = time.perf_counter() - wall, time.process_time() - cpu
        pairs = pq.read_table(Path(output) / "pairs", columns=list(SUMS)).to_pydict()
        size = sum(file.stat().st_size for file in Path(output).rglob("*.parquet"))
    return said(ids, took, pairs) | {"bytes": size, "records": len(data.records)}


def run_trl(work: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
    """TRL's precomputation with its defaults, for one model and then for the other."""
    import torch
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]

    torch.set_num_threads(plan["threads"])
    took: list[tuple[float, float]] = []

    class Timed(DPOTrainer):
        """The trainer, with a clock around its precomputation."""

        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            first = self.data_collator([dataset[n] for n in range(plan["batch"])])
            self.compute_ref_log_probs(self.model, first)  # warms up
            wall, cpu = time.perf_counter(), time.process_time()
            found = super()._precompute_ref_logps(dataset, name, batch_size)
            took.append((time.perf_counter() - wall, time.process_time() - cpu))
            return found

    rows = [json.loads(line) for line in (work / plan["file"]).read_text().splitlines()]
    pairs, ids = {}, []
    for name, prefix in (("policy", ""), ("reference", "ref_")):
        trainer = Timed(
            AutoModelForCausalLM.from_pretrained(work / name, dtype=torch.float32),
            args=DPOConfig(
                output_dir=str(work / "trl"),
                per_device_train_batch_size=plan["batch"],
                max_length=plan["max_length"],
                precompute_ref_log_probs=True,
                bf16=False,
                use_cpu=True,
                dataloader_pin_memory=False,
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(work / "policy"),
        )
        made: Any = trainer.train_dataset
        sides = ("chosen", "rejected")
        pairs |= {f"{side}_{prefix}logp": [float(x) for x in made[f"ref_{side}_logps"]] for side in sides}
        ids = [[(row["prompt_ids"] + row[f"{s}_ids"], len(row["prompt_ids"])) for s in sides] for row in made]
    wall, cpu = (sum(part) for part in zip(*took, strict=True))
    return said(ids, (wall, cpu), pairs)


def said(ids: Sequence[Any], took: tuple[float, float], pairs: Mapping[str, Any]) -> dict[str, Any]:
    """What the parent reads."""
    digest = hashlib.sha256(json.dumps(ids).encode()).hexdigest()
    return {"ids": digest, "wall": took[0], "cpu": took[1], "peak": largest_resident(), "pairs": pairs}


def prepare(work: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
    """The models and pairs.jsonl."""
    import workload

    facts = workload.prepare(work)
    lines = (work / "pairs.jsonl").read_text().splitlines(keepends=True)[: plan["pairs"]]
    (work / "pairs.jsonl").write_text("".join(lines))
    (work / "again.jsonl").write_text("".join(lines) * AGAIN)
    return facts


JOBS = {"prepare": prepare, "softq": run_softq, "trl": run_trl}


def ask(job: str, work: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Run one job in a process of its own and return what it reports."""
    (work / "plan.json").write_text(json.dumps(plan))
    threads = str(plan["threads"])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "SOFTQ_CACHE": str(work / "cache"),
    }
    command = [sys.executable, __file__, "--child", job, "--work", str(work)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{job} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(work: Path, plan: Mapping[str, Any], rounds: int) -> list[str]:
    """Alternate; the lines to print."""
    turns = []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}, load average {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        turns.append({job: ask(job, work, plan) for job in ("softq", "trl")})
        ours, theirs = turns[-1]["softq"], turns[-1]["trl"]
        if ours["ids"] != theirs["ids"]:
            raise SystemExit("softq and TRL made different ids of the same strings")
    apart = max(agreed(turn["softq"]["pairs"], turn["trl"]["pairs"]) for turn in turns)
    pairs = plan["pairs"]
    lines = [f"{'':24}{'softq':24}{'TRL, two passes':24}ratio"]
    for name, of, better in (
        ("pairs per second", lambda run: pairs / run["wall"], lambda a, b: a / b),
        ("CPU-seconds per pair", lambda run: run["cpu"] / pairs, lambda a, b: a / b),
        ("peak MiB resident", lambda run: run["peak"] / 2**20, lambda a, b: a / b),
    ):
        sides = [[of(turn[job]) for turn in turns] for job in ("softq", "trl")]
        ratios = [better(a, b) for a, b in zip(*sides, strict=True)]
        lines.append(f"{name:24}" + "".join(f"{shown(values):24}" for values in sides) + shown(ratios))
    size = turns[0]["softq"]["bytes"] / pairs
    return [*lines, f"Sums within {apart:.0e} nats; softq wrote {size / 1000:.1f} kB of tables a pair."]


def agreed(ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]]) -> float:
    """How far apart the sums are, in nats, at most; ends the benchmark where that is too far."""
    both = [(a, b) for name in SUMS for a, b in zip(ours[name], theirs[name], strict=True)]
    for a, b in both:
        if not abs(a - b) <= max(TOLERANCE, PLACES * abs(b)):
            raise SystemExit(f"a sum of {a:.6f} nats is {b:.6f} for TRL: not the same computation")
    return max(abs(a - b) for a, b in both)


def shown(values: Sequence[float]) -> str:
    """Median (least to most)."""
    middle, *ends = (
        f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (median(values), min(values), max(values))
    )
    return f"{middle} ({ends[0]} to {ends[1]})" if len(values) > 1 else middle


def memory(work: Path, plan: Mapping[str, Any]) -> str:
    """The largest resident set at N records and at AGAIN times as many."""
    runs = [ask("softq", work, {**plan, "file": file}) for file in ("pairs.jsonl", "again.jsonl")]
    small, large = (f"{run['peak'] / 2**20:,.0f} MiB at {run['records']:,} records" for run in runs)
    return f"peak resident: {small}, {large}; {runs[1]['peak'] / runs[0]['peak']:.2f} x"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="softq score beside TRL's precomputation", allow_abbrev=False)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--data", help="preference pairs of plain text, such as raw HH; default: generated pairs")
    parser.add_argument("--pairs", type=int, default=160, help="pairs that are scored (default 160)")
    parser.add_argument("--batch", type=int, default=8, help="TRL's pairs a batch (default 8, which is its own)")
    parser.add_argument("--rounds", type=int, default=3, help="how often the two alternate (default 3)")
    parser.add_argument("--threads", type=int, default=threads, help=f"default: all, here {threads}")
    parser.add_argument("--memory", type=int, metavar="N", help="only this: softq's memory at N records and at 4 N")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=JOBS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """All rounds, or the one job of a child."""
    options = parsed()
    if options.child:
        work = Path(options.work)
        print(json.dumps(JOBS[options.child](work, json.loads((work / "plan.json").read_text()))))
        return
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        work = Path(directory)
        chosen = {name: getattr(options, name) for name in ("data", "batch", "threads")}
        plan = {**SETTINGS, **chosen, "pairs": options.memory or options.pairs, "file": "pairs.jsonl"}
        facts = ask("prepare", work, plan)
        of = f"{Path(options.data).name if options.data else 'generated pairs'}: {plan['pairs']} pairs, {plan['threads']} threads"
        states = f"{facts['states']:.0f} distinct states a pair, {facts['padded_tokens']:.0f} in TRL's batches"
        print(f"Qwen2 12.6M, float32; {of}; {states}", flush=True)
        print(memory(work, plan) if options.memory else "\n".join(compare(work, plan, options.rounds)))


if __name__ == "__main__":
    main()
