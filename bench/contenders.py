"""One function a library: train on the same pairs, and say how long it took and how much memory the process held.

Each imports its library inside the function: the other one's must not count as its memory.
"""

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Plan = Mapping[str, Any]

FIRST = ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "grad_norm")
"""What both must agree on after the first step."""


class Clock:
    """Wall time, CPU time and memory of one process, and what it did."""

    def __init__(self, torch: Any, plan: Plan) -> None:
        torch.set_num_threads(plan["threads"])
        self.cuda = torch.cuda if plan["device"] == "cuda" else None
        self.memory = {"imported": resident()}
        self.logs: list[dict[str, float]] = []
        self.started = self.took = (0.0, 0.0)

    def ready(self) -> None:
        """All is loaded; the next thing is the first step."""
        self.memory["ready"] = resident()

    def step(self, metrics: Mapping[str, float]) -> None:
        """A step is done. The first one warms up: time runs from its end to the end of the last."""
        if self.cuda:
            self.cuda.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        if not self.logs:
            self.started = wall, cpu
        self.took = wall - self.started[0], cpu - self.started[1]
        self.logs.append(dict(metrics))

    def report(self, ids: Sequence[Any]) -> dict[str, Any]:
        """What the parent reads. ids: of each pair, of each side, its ids and how many of them are the prompt."""
        peak = self.cuda.max_memory_allocated() if self.cuda else largest_resident()
        return {
            "ids": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
            "wall": self.took[0],
            "cpu": self.took[1],
            "memory": {**self.memory, "peak": peak},
            "losses": [log["loss"] for log in self.logs],
            "first": {name: self.logs[0][name] for name in FIRST},
        }


def run_softq(work: Path, plan: Plan, steps: int) -> dict[str, Any]:
    """softq as a user has it."""
    import torch

    from softq import METHODS, AdamW, load, read, train
    from softq.training.source import batch_of

    clock = Clock(torch, plan)
    loaded = load(str(work / "policy"), str(work / "reference"), dtype=plan["dtype"], device=plan["device"])
    if plan["checkpointing"]:
        loaded.policy.transformer.gradient_checkpointing_enable({"use_reentrant": False})
    data = read(work / "pairs.jsonl", loaded.tokenizer, max_length=plan["max_length"])
    records = data.records[: steps * plan["batch"]]
    ids = [[(c.ids.tolist(), int(c.action.argmax()) + 1) for c in record.completions] for record in records]
    method = METHODS["dpo"](beta=plan["beta"])

    def source(models: Any) -> Iterator[Any]:
        for start in range(0, len(records), plan["batch"]):
            numbers = range(start, start + plan["batch"])
            yield batch_of([records[n] for n in numbers], numbers, method)

    update = AdamW(loaded.policy, steps=steps, learning_rate=plan["learning_rate"], schedule="constant")
    clock.ready()
    for step in train(loaded.models, method, source, update):
        clock.step(step.metrics)
    return clock.report(ids) | {"layout": loaded.policy.layout}


def run_trl(work: Path, plan: Plan, steps: int) -> dict[str, Any]:
    """TRL's trainer with its defaults, but for what must be equal."""
    import torch
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportMissingImports, reportPrivateImportUsage]

    clock = Clock(torch, plan)

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.ready()

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if "loss" in kwargs["logs"]:  # the last log is a summary of the run
                clock.step(kwargs["logs"])

    def model(name: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(work / name, dtype=getattr(torch, plan["dtype"]))

    settings = DPOConfig(
        output_dir=str(work / "trl"),
        per_device_train_batch_size=plan["batch"],
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        max_length=plan["max_length"],
        beta=plan["beta"],
        learning_rate=plan["learning_rate"],
        lr_scheduler_type="constant",
        optim="adamw_torch_fused" if plan["fused_adamw"] else "adamw_torch",
        bf16=False,
        gradient_checkpointing=plan["checkpointing"],
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_cpu=plan["device"] == "cpu",
        dataloader_pin_memory=plan["device"] != "cpu",
        logging_steps=1,  # softq reports every step, too
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows = [json.loads(line) for line in (work / "pairs.jsonl").read_text().splitlines()]
    trainer = DPOTrainer(
        model("policy"),
        model("reference"),
        settings,
        train_dataset=Dataset.from_list(rows[: steps * plan["batch"]]),
        processing_class=AutoTokenizer.from_pretrained(work / "policy"),
        callbacks=[Watch()],
    )
    trainer.remove_callback(PrinterCallback)
    sides = ("chosen_ids", "rejected_ids")
    encoded: Any = trainer.train_dataset
    ids = [[(row["prompt_ids"] + row[side], len(row["prompt_ids"])) for side in sides] for row in encoded]
    trainer.train()
    return clock.report(ids)


def largest_resident() -> int:
    """Bytes, at its highest so far. The parent must be small: what it holds at exec counts here, too."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident() -> int:
    """Bytes now, where the system says so; else at its highest so far."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else largest_resident()
