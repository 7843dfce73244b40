"""RewardBench's scores of DPO models beside those of `softq score`: the same pairs, the same weights, within 1e-4.

    python -m venv rewardbench && rewardbench/bin/pip install rewardbench==0.1.4 trl==0.17.0
    pip install -e .
    python bench/rewardbench_scores.py --python rewardbench/bin/python --data hh.jsonl.gz   # without --data: generated pairs

RewardBench (arXiv 2403.13787) pins an old transformers, so it runs in an environment of its own. What runs of it is what its
`scripts/run_dpo.py --not_quantized` runs on a CPU: `DPOInference.tokenize_row`, TRL's `DPODataCollatorWithPadding` in its batches
of 6, `DPOInference.inference_step` with a reference, and without one under each of its three `ref_free_norm`; a pair is right
where chosen > rejected. Rows of messages are laid out by its `prepare_dialogue_from_tokenizer`. Of softq it is `softq score`, and
`inspection.accuracy` on its tables. Not run: RewardBench's download of its own data, its 8-bit weights, its sections.

Two ways to write the same pairs must agree: plain text, and messages in RewardBench's layout handed to softq as plain text. A
third is shown and need not: the same messages as softq reads them, see docs/benchmarks.md. Ends with 1 where a score that must
agree is off by more than 1e-4, or a pair's result differs. In float32, where a sum of 1,000 nats is itself known to 6e-5, sums
may be four units in their last place apart.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4
PLACES = {"float64": 0.0, "float32": 4 * 2**-23}
"""By dtype of both models: units in the last place of a sum that two sums may be apart where those are more than 1e-4."""
PLAN = {"max_length": 2048, "batch": 6}
SIZES = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"max_position_embeddings": 4096, "tie_word_embeddings": True, "bos_token_id": None}
FREE = ("sum", "avg", "norm")
SIDES = ("chosen", "rejected")
BOS, START, END = "<|begin|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CASES: Mapping[str, tuple[str, str, bool]] = {  # RewardBench's rows, softq's rows, whether they must agree
    "plain text": ("text", "text", True),
    "messages, laid out by RewardBench": ("messages", "laid_out", True),
    "messages, as softq reads them": ("messages", "messages", False),
}
Scores = Mapping[str, Sequence[float]]  # "chosen", "rejected": L; "sum", "avg", "norm" of either: "sum_chosen", …


def prepare(work: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Policy, reference and tokenizer as both libraries load them, and the pairs as text and as messages."""
    import workload
    from transformers import AutoConfig

    pairs = workload.read_text(plan["data"]) if plan["data"] else workload.generated(workload.HH)
    random.Random(0).shuffle(pairs)
    tokenizer = spoken(workload.trained_tokenizer([text for pair in pairs for text in pair]))
    _, kept, straddled = workload.usable(pairs, tokenizer, work, plan["max_length"])
    kept = kept[: plan["pairs"]]
    workload.write_pairs(work / "text.jsonl", kept)
    roles = ("user", "assistant", "assistant")
    rows = [[[{"role": role, "content": text}] for role, text in zip(roles, pair, strict=True)] for pair in kept]
    names = ("prompt", *SIDES)
    lines = (json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    (work / "messages.jsonl").write_text("".join(lines))
    config: Any = AutoConfig.for_model("llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **SIZES)
    workload.write_models(config, tokenizer, work, "float32")
    for file in work.glob("*/tokenizer_config.json"):
        said = {**json.loads(file.read_text()), "chat_template": CHATML}
        said.pop("extra_special_tokens", None)  # the old transformers reads no list here; tokenizer.json has them
        file.write_text(json.dumps(said))
    return {"pairs": len(kept), "straddled": straddled}


def spoken(tokenizer: Any) -> Any:
    """A tokenizer that puts a BOS in front of a text, as RewardBench always does, and knows ChatML."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_special_tokens({"bos_token": BOS, "additional_special_tokens": [START, END]})
    bos = [(BOS, tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=bos)
    return tokenizer


def run_softq(work: Path, plan: Mapping[str, Any]) -> Scores:
    """`softq score` by its command, and what its tables hold."""
    from softq.inspection.accuracy import figures, free_margins
    from softq.inspection.shelf import Shelf

    output = work / f"softq_{plan['rows']}_{plan['dtype']}"
    models = ["--policy", str(work / "policy"), "--reference", str(work / "reference")]
    what = ["--data", str(work / f"{plan['rows']}.jsonl"), "--dtype", plan["dtype"], "--output", str(output)]
    done = subprocess.run([sys.executable, "-m", "softq", "score", *models, *what], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    shelf = Shelf(output)
    pairs = shelf.table("pairs")
    scores = {side: pairs[f"{side}_reward"].to_pylist() for side in SIDES}  # no β, so these are L in nats
    scores |= {f"sum_{side}": pairs[f"{side}_logp"].to_pylist() for side in SIDES}
    for side in SIDES:
        scores[f"avg_{side}"] = (pairs[f"{side}_logp"].to_numpy() / pairs[f"{side}_tokens"].to_numpy()).tolist()
    scores |= {f"{name}_margin": margin.tolist() for name, margin in free_margins(shelf).items()}
    return scores | {figure.name: [figure.value] for figure in figures(shelf)}


def run_rewardbench(work: Path, plan: Mapping[str, Any]) -> dict[str, Scores]:
    """RewardBench's own inference, by dtype and rows; this runs under --python."""
    import torch
    from rewardbench import prepare_dialogue_from_tokenizer  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "policy")  # its tokenizer.json as it is
    tokenizer.pad_token = tokenizer.eos_token
    text, messages = (read_rows(work / f"{name}.jsonl") for name in ("text", "messages"))
    answers = ({**row, **{side: row[side][0]["content"] for side in SIDES}} for row in messages)
    laid_out = [prepare_dialogue_from_tokenizer(row, tokenizer) for row in answers]
    write_layout(work / "laid_out.jsonl", laid_out)
    whole = [{**row, **{f"text_{side}": row["prompt"] + row[side] for side in SIDES}} for row in text]
    found = {}
    for dtype in PLACES:
        models = [
            AutoModelForCausalLM.from_pretrained(work / name, torch_dtype=getattr(torch, dtype))
            for name in ("policy", "reference")
        ]
        for name, rows in (("text", whole), ("messages", laid_out)):
            found[f"{dtype} {name}"] = their_scores(rows, models, tokenizer, plan["batch"])
    return found


def their_scores(rows: Sequence[Any], models: Sequence[Any], tokenizer: Any, size: int) -> Scores:
    """Scores of some rows, with the reference and without, in batches of `size` as `scripts/run_dpo.py` makes them."""
    from rewardbench import DPOInference  # pyright: ignore[reportMissingImports]
    from torch.utils.data import DataLoader
    from trl.trainer.utils import DPODataCollatorWithPadding  # pyright: ignore

    class Here:
        """All that it asks of accelerate."""

        device = "cpu"

    scores: dict[str, list[float]] = {}
    policy, reference = models
    for name in ("", *FREE):
        dpo = DPOInference(policy, None if name else reference, tokenizer, Here(), ref_free_norm=name or "norm")
        collate = DPODataCollatorWithPadding(tokenizer.pad_token_id, dpo.label_pad_token_id, dpo.is_encoder_decoder)
        tokenised: Any = [dpo.tokenize_row(row) for row in rows]
        for batch in DataLoader(tokenised, size, collate_fn=collate):
            for side, found in zip(SIDES, dpo.inference_step(batch, ref_free=bool(name)), strict=True):
                scores.setdefault(f"{name}_{side}".strip("_"), []).extend(found.float().tolist())
    return scores


def read_rows(file: Path) -> list[dict[str, Any]]:
    """JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_layout(file: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """RewardBench's texts as prompt and completions; the prompt is what it takes off in front."""
    made = [
        {"prompt": row["prompt"], **{side: row[f"text_{side}"].removeprefix(row["prompt"]) for side in SIDES}}
        for row in rows
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in made))


JOBS: Mapping[str, Callable[[Path, Mapping[str, Any]], Mapping[str, Any]]] = {
    "prepare": prepare,
    "softq": run_softq,
    "rewardbench": run_rewardbench,
}


def ask(python: str, job: str, work: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Run one job in a process of its own and return what it reports."""
    (work / "plan.json").write_text(json.dumps(plan))
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "SOFTQ_CACHE": str(work / "cache"),
        "WANDB_MODE": "disabled",
    }
    command = [python, __file__, "--child", job, "--work", str(work)]
    done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{job} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(ours: Scores, theirs: Scores, places: float) -> Iterator[tuple[str, bool]]:
    """Print a line a score: how far apart the two are at most, how far they may be, how many pairs they judge otherwise, and the
    share of pairs that are right. Yields each score's name and whether both are the same."""
    print(f"  {'score':20}{'apart':>10}{'may be':>10}{'other results':>15}{'softq':>9}{'RewardBench':>13}")
    longest = max(abs(value) for side in SIDES for value in theirs[f"sum_{side}"])
    for kind, told in (("", "with the reference"), *((free, f"without: {free}") for free in FREE)):
        sides = [f"{kind}_{side}".strip("_") for side in SIDES]
        margin = [a - b for a, b in zip(*(theirs[side] for side in sides), strict=True)]
        mine = ours.get(f"{kind}_margin") or [a - b for a, b in zip(*(ours[side] for side in sides), strict=True)]
        both = [(mine, margin), *((ours[side], theirs[side]) for side in sides if side in ours)]
        apart = max(abs(a - b) for left, right in both for a, b in zip(left, right, strict=True))
        room = max(TOLERANCE, places * longest) if kind in ("", "sum") else TOLERANCE
        other = sum((a > 0) != (b > 0) for a, b in zip(mine, margin, strict=True))
        figure = ours[f"accuracy/{f'free/{kind}' if kind else 'strict'}"][0]
        accuracy = sum(value > 0 for value in margin) / len(margin)
        print(f"  {told:20}{apart:10.1e}{room:10.1e}{other:15d}{figure:9.3f}{accuracy:13.3f}")
        yield told, apart <= room and not other and abs(figure - accuracy) < 1e-9


def compare(python: str, work: Path, plan: Mapping[str, Any]) -> list[str]:
    """All cases in all dtypes; what is not the same and must be."""
    wrong, theirs = [], ask(python, "rewardbench", work, plan)
    for dtype, places in PLACES.items():
        for name, (their_rows, our_rows, must) in CASES.items():
            print(f"\n{name}, {dtype}" + ("" if must else " (need not agree)"), flush=True)
            ours = ask(sys.executable, "softq", work, {**plan, "dtype": dtype, "rows": our_rows})
            lines = list(table(ours, theirs[f"{dtype} {their_rows}"], places))
            wrong += [f"{name}, {dtype}, {told}" for told, same in lines if must and not same]
    return wrong


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="RewardBench's DPO scores beside softq's", allow_abbrev=False)
    parser.add_argument("--python", help="the interpreter of an environment with rewardbench")
    parser.add_argument("--data", help="preference pairs of plain text, such as raw HH; default: generated pairs")
    parser.add_argument("--pairs", type=int, default=64, help="how many are scored (default 64)")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=JOBS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """All cases, or the one job of a child."""
    options = parsed()
    if options.child:
        work = Path(options.work)
        print(json.dumps(JOBS[options.child](work, json.loads((work / "plan.json").read_text()))))
        return
    if not options.python:
        raise SystemExit(
            "--python: give the interpreter of an environment with rewardbench (see the head of this file)"
        )
    with tempfile.TemporaryDirectory(dir=options.work) as directory:
        plan = {**PLAN, "data": options.data, "pairs": options.pairs}
        facts = ask(sys.executable, "prepare", Path(directory), plan)
        of = Path(options.data).name if options.data else "generated pairs"
        print(f"{of}: {facts['pairs']} pairs; left out as straddling the prompt's end: {facts['straddled']}")
        wrong = compare(options.python, Path(directory), plan)
    print("\n" + ("; ".join(f"not the same: {each}" for each in wrong) or "All that must agree does."))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
