"""A short run of TRL's DPOTrainer, reproduced by softq step by step: loss, rewards and gradient norm within 1e-4.

    pip install -e '.[bench]'
    python bench/trl_step_by_step.py --data hh.jsonl.gz       # without --data: generated pairs of such lengths

Both start from the same random weights (a Qwen2 of 0.7 M parameters and a vocabulary of 8,192) with that start as the
reference, and take 20 steps of 8 pairs. Both end at their own weights: from step 2 on every number depends on all
gradients and updates before it. Ends with 1 where a number of any step is off by more than 1e-4 (relative above 1).

What it takes. Of TRL, beside model, data and β: `train_sampling_strategy="sequential"` (it shuffles by another generator
than softq), `bf16=False` (on by default: autocast rounds otherwise than softq's does), `logging_steps=1` (else its numbers
are means over ten steps), and float32 weights. All else is its default: linear decay to 0 without warm-up, AdamW
(0.9, 0.999, 1e-8) without weight decay, gradients clipped at norm 1, no dropout, gradient checkpointing. Of softq: steps
in the order of the file, where `softq train` draws them at random, so the loop is called (`softq.train`); and
`schedule="linear"`. Of the data: pairs whose prompt ends on a token boundary (elsewhere TRL drops the prompt's last token, softq
keeps it), no longer than max_length, in whole steps. Warm-up must be 0: TRL's first step of it has the rate 0, softq's has not.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import workload
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, Qwen2Config, TrainerCallback
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]

import softq
from softq.training.source import batch_of

TOLERANCE = 1e-4
COMPARED = (
    "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected",
    "grad_norm", "learning_rate",
)  # fmt: skip
Log = Mapping[str, float]


def prepare(work: Path, options: argparse.Namespace) -> int:
    """Weights, tokenizer and as many pairs as are wanted, in `work`. Returns how many pairs were left out as straddling."""
    pairs = workload.read_text(options.data) if options.data else workload.generated(workload.HH)
    random.Random(0).shuffle(pairs)
    tokenizer = workload.trained_tokenizer([text for pair in pairs for text in pair])
    _, kept, straddled = workload.usable(pairs, tokenizer, work, options.max_length)
    wanted = options.steps * options.batch
    if len(kept) < wanted:
        raise SystemExit(f"{len(kept)} usable pairs, {wanted} needed: lower --steps or --batch")
    workload.write_pairs(work / "pairs.jsonl", kept[:wanted])
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    config = Qwen2Config(
        vocab_size=workload.TEXT_VOCABULARY, num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
        eos_token_id=0, pad_token_id=1, bos_token_id=None, **sizes,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    return straddled


def run_trl(work: Path, options: argparse.Namespace) -> list[Log]:
    """What TRL logs of each step."""
    logs: list[Log] = []

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if "loss" in kwargs["logs"]:  # the last log is a summary of the run
                logs.append(dict(kwargs["logs"]))

    settings = DPOConfig(
        output_dir=str(work / "trl"),
        per_device_train_batch_size=options.batch,
        num_train_epochs=1,
        max_length=options.max_length,
        beta=options.beta,
        learning_rate=options.learning_rate,
        train_sampling_strategy="sequential",
        bf16=False,
        logging_steps=1,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows = [json.loads(line) for line in (work / "pairs.jsonl").read_text().splitlines()]
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(work / "model"),
        callbacks=[Watch()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return logs


def run_softq(work: Path, options: argparse.Namespace) -> list[Log]:
    """What softq logs of each step."""
    loaded = softq.load(str(work / "model"))
    records = softq.read(work / "pairs.jsonl", loaded.tokenizer, max_length=options.max_length).records
    method = softq.METHODS["dpo"](beta=options.beta)

    def source(models: Any) -> Iterator[Any]:
        for start in range(0, len(records), options.batch):
            numbers = range(start, start + options.batch)
            yield batch_of([records[n] for n in numbers], numbers, method)

    update = softq.AdamW(loaded.policy, steps=options.steps, learning_rate=options.learning_rate, schedule="linear")
    return [step.metrics for step in softq.train(loaded.models, method, source, update)]


def off(ours: Log, theirs: Log, names: Sequence[str] = COMPARED) -> float:
    """The largest difference of a step's numbers, relative where the number is above 1."""
    return max(abs(ours[name] - float(theirs[name])) / max(1.0, abs(float(theirs[name]))) for name in names)


def table(ours: Sequence[Log], theirs: Sequence[Log]) -> Iterator[str]:
    """A line a step, in Markdown."""
    yield "| step | loss, softq | loss, TRL | reward margin, softq | TRL | grad norm, softq | TRL | largest difference |"
    yield "|---|---|---|---|---|---|---|---|"
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True), start=1):
        shown = " | ".join(
            f"{float(log[name]):.6f}" for name in ("loss", "rewards/margins", "grad_norm") for log in (a, b)
        )
        yield f"| {number} | {shown} | {off(a, b):.0e} |"


def main() -> None:
    """Both runs, then the table."""
    parser = argparse.ArgumentParser(description="TRL's DPO step by step", allow_abbrev=False)
    parser.add_argument("--data", help="preference pairs of plain text, such as raw HH; default: generated pairs")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="pairs a step (default 8)")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="large, so that 20 steps move (default 1e-3)")
    parser.add_argument("--max-length", type=int, default=1024)
    options = parser.parse_args()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as directory:
        straddled = prepare(Path(directory), options)
        theirs, ours = run_trl(Path(directory), options), run_softq(Path(directory), options)
    print("\n".join(table(ours, theirs)))
    worst = max(off(a, b) for a, b in zip(ours, theirs, strict=True))
    print(
        f"\nEvery one of {', '.join(COMPARED)} within {worst:.0e} at each of {len(ours)} steps. Left out: {straddled} pairs."
    )
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
