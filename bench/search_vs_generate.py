"""Beam search and sampling of softq beside `generate` of transformers: same model, same prompts, same sequences.

    python bench/search_vs_generate.py --data hh.jsonl.gz      # without --data: generated prompts of such lengths

64 prompts as they are, their last 16 tokens (short), and four of them joined, at most 512 tokens (long); 64 new tokens; 5 beams
ranked by the sum of log-probabilities (`length_penalty=0` there), and 16 samples of each prompt. A model of 12.6 M parameters
with random weights, float32 on a CPU, bfloat16 with --device cuda. Prompts go in the order of their lengths on both sides,
through `generate` in batches of each of --batches, of which the fastest counts; through softq all at once.

The contenders alternate, a process each and round; a ratio is taken within a round, its median told. Not timed: imports,
loading, and one small batch that warms up. Where the best sequences differ, both sums are told by the full score: with random
weights two may tie to the last digit. Memory is the process's largest resident set, or that of the GPU's allocator.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch
from contenders import largest_resident
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar
from workload import HH, generated, qwen2, read_text, trained_tokenizer

from softq.lm.growing import Growing
from softq.lm.load import load
from softq.search.answer import Answer, Limits
from softq.search.beam import beam
from softq.search.sampling import sample
from softq.search.scoring import logps, tokens_of
from softq.search.voice import Likelihood, Speaker

PROMPTS, NEW, BEAMS, SAMPLES = 64, 64, 5, 16
SHORT, LONG, JOINED = 16, 512, 4
END, PAD = 0, 1
SCALE = 2.5  # of the random weights: with transformers' own scale all tokens are about as likely
JOBS = ("softq", "generate")


def main() -> int:
    """Run all rounds in processes of their own; print a row a workload."""
    options = options_of()
    if options.child:
        print(json.dumps(child(options)))
        return 0
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as work:
        prepare(Path(work), options.data, options.shape)
        print(
            f"Qwen2 {options.shape}, {options.device}, {options.threads} threads; {PROMPTS} prompts, {NEW} new tokens"
        )
        for kind in options.kinds:
            for task in options.tasks:
                print(row(options, Path(work), kind, task), flush=True)
    return 0


def options_of() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", help="preference pairs of plain text, such as raw HH; default: generated ones")
    parser.add_argument("--shape", default="12.6M", help="of the model (default 12.6M)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 64], help="of generate (default 8 64)")
    parser.add_argument("--kinds", nargs="+", default=["hh", "short", "long"])
    parser.add_argument("--tasks", nargs="+", default=["beam", "sample"])
    parser.add_argument("--child", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(work: Path, data: str | None, shape: str) -> None:
    """Write model, tokenizer and prompts."""
    pairs = read_text(Path(data).as_posix()) if data else generated(HH)
    tokenizer = trained_tokenizer([text for pair in pairs for text in pair])
    ids = [tokenizer(prompt)["input_ids"] for prompt, _, _ in pairs[: JOINED * PROMPTS]]
    kinds = {
        "hh": ids[:PROMPTS],
        "short": [each[-SHORT:] for each in ids[:PROMPTS]],
        "long": [list(chain(*ids[JOINED * k : JOINED * (k + 1)]))[:LONG] for k in range(PROMPTS)],
    }
    (work / "prompts.json").write_text(json.dumps(kinds))
    config = qwen2({"shape": shape, "vocabulary": 8192})
    config.initializer_range *= SCALE
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")


def row(options: argparse.Namespace, work: Path, kind: str, task: str) -> str:
    """One workload, all rounds."""
    rounds = []
    for _ in range(options.rounds):
        ours = job(options, work, kind, task, "softq", 0)
        theirs = min(
            (job(options, work, kind, task, "generate", b) for b in options.batches), key=lambda each: each["wall"]
        )
        rounds.append((ours, theirs))
    ours, theirs = rounds[-1]
    wall, cpu, memory = (sorted(o[name] / t[name] for o, t in rounds) for name in ("wall", "cpu", "memory"))
    told = [
        f"{kind} {task}: {1 / median(wall):.2f} times generate's throughput ({1 / wall[-1]:.2f} to {1 / wall[0]:.2f})"
    ]
    told += [f"CPU time {median(cpu):.2f}", f"memory {median(memory):.2f}", f"its best batch {theirs['batch']}"]
    told += [f"{median(o['wall'] for o, _ in rounds):.1f} s"]
    if task == "beam":
        told += [agreement(work, kind, ours["found"], theirs["found"])]
    return "; ".join(told)


def job(options: argparse.Namespace, work: Path, kind: str, task: str, name: str, batch: int) -> dict[str, Any]:
    """A contender in a process of its own."""
    words = [sys.executable, __file__, "--child", name, "--work", str(work), "--kinds", kind, "--tasks", task]
    words += ["--threads", str(options.threads), "--device", options.device, "--batch", str(batch)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(options: argparse.Namespace) -> dict[str, Any]:
    """Warm up, run, measure."""
    torch.set_num_threads(options.threads)
    (kind,), (task,) = options.kinds, options.tasks
    prompts = [torch.tensor(ids) for ids in json.loads((options.work / "prompts.json").read_text())[kind]]
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    run = (softq_of if options.child == "softq" else generate_of)(options, task)
    with torch.no_grad():
        run(prompts[:2])
        wall, cpu = time.perf_counter(), time.process_time()
        found = run([prompts[n] for n in order])
        if options.device == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - wall, time.process_time() - cpu
    memory = torch.cuda.max_memory_allocated() if options.device == "cuda" else largest_resident()
    in_order = [ids for _, ids in sorted(zip(order, found, strict=True))]
    return {"wall": took[0], "cpu": took[1], "memory": memory, "found": in_order, "batch": options.batch}


def softq_of(options: argparse.Namespace, task: str) -> Any:
    """Prompts -> the best ids of each."""
    dtype = "float32" if options.device == "cpu" else "bfloat16"
    policy = load(str(options.work / "model"), None, dtype=dtype, device=options.device).policy

    def run(prompts: Sequence[Tensor]) -> list[list[int]]:
        voice = Speaker(policy, Growing(prompts), max(map(len, prompts)) + NEW)
        limits = Limits(NEW, frozenset([END]))
        found = beam(Likelihood(voice), limits, width=BEAMS) if task == "beam" else sample(voice, limits, n=SAMPLES)
        return [list(answers[0].tokens) for answers in found]

    return run


def generate_of(options: argparse.Namespace, task: str) -> Any:
    """Prompts -> the best ids of each."""
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    model: Any = AutoModelForCausalLM.from_pretrained(options.work / "model", dtype=dtype)
    model.to(options.device).eval()
    how: Mapping[str, Any] = {"do_sample": False, "num_beams": BEAMS, "length_penalty": 0.0}
    if task == "sample":
        how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "num_return_sequences": SAMPLES}
    config = GenerationConfig(max_new_tokens=NEW, eos_token_id=END, pad_token_id=PAD, **how)

    def run(prompts: Sequence[Tensor]) -> list[list[int]]:
        found = []
        for start in range(0, len(prompts), options.batch):
            part = prompts[start : start + options.batch]
            width = max(map(len, part))
            ids = torch.full((len(part), width), PAD)
            mask = torch.zeros(len(part), width, dtype=torch.int64)
            for n, prompt in enumerate(part):
                ids[n, width - len(prompt) :], mask[n, width - len(prompt) :] = prompt, 1
            out = model.generate(
                ids.to(options.device), attention_mask=mask.to(options.device), generation_config=config
            )
            each = out[:: 1 if task == "beam" else SAMPLES, width:].tolist()
            found += [row[: row.index(END) + 1] if END in row else row for row in each]
        return found

    return run


def agreement(work: Path, kind: str, ours: list[list[int]], theirs: list[list[int]]) -> str:
    """How many sequences are the same, and where not by how much ours are likelier."""
    prompts = [torch.tensor(ids) for ids in json.loads((work / "prompts.json").read_text())[kind]]
    other = [n for n in range(len(prompts)) if ours[n] != theirs[n]]
    if not other:
        return "all sequences the same"
    policy = load(str(work / "model"), None, tokenizer=PreTrainedTokenizerFast.from_pretrained(work / "model")).policy
    sums = []
    for found in (ours, theirs):
        rows = [Answer(n, -1, tuple(found[n]), False, 0.0, 0.0) for n in other]
        sums.append(logps({"policy": policy}, tokens_of(prompts, rows))[0])
    gap = sums[0] - sums[1]
    same = f"{len(prompts) - len(other)} of {len(prompts)} sequences the same"
    return f"{same}, the others' sums apart by {gap.min():.1e} to {gap.max():.1e}"


if __name__ == "__main__":
    sys.exit(main())
