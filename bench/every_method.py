"""Every method on real pairs: twenty steps each, none with a number that is not finite, and what a step costs beside dpo's.

    python bench/every_method.py --data pairs.jsonl
    python bench/every_method.py                        # generated pairs of HH's lengths

All methods start from the same random weights and take turns: step k of each, then step k + 1, so all see the same moments of
a busy machine; each turn begins with another method. The cost is the step's CPU time over that of dpo's step of the same turn,
which holds the same records, in the median. Pairs are converted where a method takes something else, as `softq train` converts
them, and it is said. AlignDistil's teachers are made first, by as many steps of dpo, the second on swapped labels. Ends with 1
where a number is not finite.

What may cost more than dpo: rows beside the pairs (kto's mismatched completions), a second pass (coupled methods whose step is
cut into micro-batches), more models, or more of the vocabulary than the log-prob of the token taken. It is said in the table.
"""

import argparse
import copy
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase
from workload import GENERATED_ROWS, HH, SHAPES, TEXT_VOCABULARY, generated, qwen2, trained_tokenizer, write_pairs

import softq
from softq.data.example import Example, Text
from softq.data.files import read_rows
from softq.data.formats import Reading, parse_rows
from softq.data.read import template
from softq.lm.load import load, load_reward_model
from softq.lm.score import Models
from softq.records import Batch, Method, valued
from softq.training.loop import Step, train
from softq.training.source import batch_of, conversion
from softq.training.update import AdamW

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "dpo": {"label_smoothing": 0.1},
    "ipo": {"length_average": False},
    "kto": {"baseline": "running"},
    "bco": {"shift": "batch"},
    "reward_regression": {"value": "fitted"},
    "gamma_dpo": {"gamma": 0.0},
}
"""Further settings whose step is another computation."""
SOFT = 0.9
"""The label probability of every pair, for dpo on labels that are not certain."""


class Runner(NamedTuple):
    """One method in training, a step at a time."""

    name: str
    method: Method
    steps: Iterator[Step]
    seconds: list[float]
    worst: list[float]  # metrics that are not finite


def options_of(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", help="pairs, in any format that softq reads; default: generated ones")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--shape", choices=SHAPES, default="4.5M", help="of the model, its parameters")
    parser.add_argument("--methods", help="a,b,…; default: all")
    return parser.parse_args(words)


def main() -> int:
    """Train all, print a row each."""
    options = options_of()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        tokenizer, file = prepared(options, Path(work))
        data = softq.read(file, tokenizer, max_length=1024)
        if data.kind != "pairs":
            raise SystemExit(f"{file}: {data.kind}; this needs pairs")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            qwen2({"shape": options.shape, "vocabulary": TEXT_VOCABULARY}), dtype=torch.float32
        )
        start = load(model, "start", tokenizer=tokenizer).models
        model.save_pretrained(Path(work) / "model")
        rewarding = load_reward_model(str(Path(work) / "model"), tokenizer=tokenizer)
        start["valued"] = rewarding.policy  # for methods that train a reward model
        numbers = drawn(options, len(data.records))
        teachers = {
            name: teacher(start, data.records, numbers, swap) for name, swap in (("dpo", False), ("reverse", True))
        }
        runners = list(made(options, start, teachers, data.records, numbers))
        for step in range(options.steps):
            first = step * len(runners) // options.steps  # so that nobody is always first
            for runner in runners[first:] + runners[:first]:
                one_step(runner)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(
        f"{len(data.records):,} pairs; {options.steps} steps of {options.batch_size}; Qwen2, {size:.1f} M parameters; one thread"
    )
    rows = [row(runner, runners[0].seconds) for runner in runners]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(rows[0]))]
    for cells in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    return int(any(runner.worst for runner in runners))


def prepared(options: argparse.Namespace, work: Path) -> tuple[PreTrainedTokenizerBase, str]:
    """A tokenizer trained on the texts, and the file of the pairs."""
    if not options.data:
        pairs = generated(HH)[:GENERATED_ROWS]
        write_pairs(work / "pairs.jsonl", pairs)
        return trained_tokenizer([text for pair in pairs for text in pair]), str(work / "pairs.jsonl")
    rows = parse_rows(read_rows(options.data), Reading())[1]
    examples = [example for example in rows if isinstance(example, Example)]
    tokenizer = trained_tokenizer(
        [words(text) for example in examples for text in (example.prompt, *example.completions)]
    )
    if not isinstance(examples[0].prompt, str):
        tokenizer.chat_template = template("chatml")
    return tokenizer, options.data


def words(text: Text) -> str:
    """A text, or what its messages say."""
    return text if isinstance(text, str) else "\n".join(str(message.get("content") or "") for message in text)


def drawn(options: argparse.Namespace, records: int) -> list[list[int]]:
    """The records of each step."""
    order = torch.randperm(records, generator=torch.Generator().manual_seed(0)).tolist()
    size = options.batch_size
    return [[order[(k * size + i) % records] for i in range(size)] for k in range(options.steps)]


def running(
    models: Models, method: Method, records: Any, numbers: list[list[int]], swapped: bool = False
) -> Iterator[Step]:
    """Training on these steps."""

    def source(models: Any) -> Iterator[Batch]:
        for step in numbers:
            chosen = [records[n] for n in step]
            if swapped:
                chosen = [record._replace(completions=record.completions[::-1]) for record in chosen]
            yield batch_of(chosen, step, method)

    update = AdamW(models, learning_rate=1e-4)
    return train(models, method, source, update)


def teacher(start: Models, records: Any, numbers: list[list[int]], swapped: bool) -> torch.nn.Module:
    """A frozen model after dpo on these steps."""
    policy = copy.deepcopy(start["policy"]).requires_grad_(True)
    for _ in running(
        Models({"policy": policy, "ref": start["ref"]}), softq.METHODS["dpo"](), records, numbers, swapped
    ):
        pass
    return policy.requires_grad_(False)


def made(
    options: argparse.Namespace,
    start: Models,
    teachers: Mapping[str, torch.nn.Module],
    records: Any,
    numbers: list[list[int]],
) -> Iterator[Runner]:
    """A runner a method, dpo first; what is converted is printed."""
    wanted = options.methods.split(",") if options.methods else list(softq.METHODS)
    named = {name: softq.METHODS[name]() for name in dict.fromkeys(["dpo", *wanted])}
    for name, settings in VARIANTS.items():
        if name in wanted:
            said = " ".join(f"{key}={value}" for key, value in settings.items())
            named[f"{name} {said}"] = softq.METHODS[name](**settings)
    soft = [record._replace(columns={**record.columns, "label_probability": (SOFT,)}) for record in records]
    unsure = f"dpo label_probability={SOFT}"
    if "dpo" in wanted:
        named[unsure] = softq.METHODS["dpo"]()
        print(
            f"{unsure}: the chosen completion of every pair is the better one with probability {SOFT}", file=sys.stderr
        )
    frozen = {"ref": start["ref"], **teachers}
    for name, method in named.items():
        if told := conversion("pairs", method, name):
            print(f"{name}: {told}", file=sys.stderr)
        policy = copy.deepcopy(start["valued" if valued(method) else "policy"]).requires_grad_(True)
        seen = {model for readout in method.needs for model in readout.models} - {"policy"}
        models = Models({"policy": policy, **{model: frozen[model] for model in sorted(seen)}})
        yield Runner(name, method, running(models, method, soft if name == unsure else records, numbers), [], [])


def one_step(runner: Runner) -> None:
    """A step, its CPU time, and what of it is not finite."""
    began = time.process_time()
    step = next(runner.steps)
    runner.seconds.append(time.process_time() - began)
    runner.worst.extend(value for value in step.metrics.values() if not math.isfinite(value))
    runner.worst.extend(float(value) for value in step.memory.values() if not torch.isfinite(value).all())


def row(runner: Runner, dpo: list[float]) -> tuple[str, ...]:
    """Name, CPU milliseconds a step, over dpo's step of the same turn, whether all was finite, and why it may cost more."""
    each = statistics.median(runner.seconds)
    ratio = statistics.median(mine / its for mine, its in zip(runner.seconds, dpo, strict=True))
    why = []
    if runner.method.takes == "labels+mismatched":
        why.append("mismatched rows")
    if runner.method.coupled:
        why.append("coupled")
    more = [readout.name for readout in runner.method.needs if readout.name != "ref_logp"]
    why += [f"reads {name}" for name in more]
    finite = "finite" if not runner.worst else f"NOT FINITE: {runner.worst[:3]}"
    return runner.name, f"{1000 * each:.0f} ms", f"{ratio:.2f} x", finite, ", ".join(why)


if __name__ == "__main__":
    sys.exit(main())
