"""What a run leaves behind: a model that loads anywhere, and a manifest that says how it came to be."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from softq.data.read import DROPPED, MERGED, Dataset
from softq.data.store import write_json
from softq.lm.load import without_bars
from softq.lm.model import CausalLM

LEDGER = "ledger.json"
MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
OURS = [METRICS, MANIFEST, *(prefix + name for prefix in ("", "eval_") for name in (LEDGER, DROPPED, MERGED))]


class OutputError(ValueError):
    """The output directory can not be used as asked."""


def refuse(directory: Path, *, overwrite: bool) -> None:
    """Raise OutputError where the directory can not be made or written, or holds anything that may not be replaced."""
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"--output {directory} is a file; give a directory")
    there = next(path for path in (directory, *directory.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"--output {directory} can not be written: {there} is closed to you; give another")
    held = sorted(path.name for path in directory.iterdir()) if directory.exists() else []
    if held and not overwrite:
        raise OutputError(f"--output {directory} is not empty (it holds {held[0]}); give another, or --overwrite")


def claim(directory: Path, *, overwrite: bool) -> None:
    """Make the directory, or take over one that an earlier run wrote, whose files it removes."""
    refuse(directory, overwrite=overwrite)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in _files(directory / MANIFEST):
            (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"--output {directory} can not be made: {error.strerror}") from error


def account(directory: Path, train: Dataset, held_out: Dataset | None) -> None:
    """What became of every row: ledger.json, dropped.jsonl and, where boundaries were cut, merged.jsonl."""
    for prefix, dataset in (("", train), ("eval_", held_out)):
        if dataset is None:
            continue
        write_json(directory / f"{prefix}{LEDGER}", dataset.ledger.as_dict())
        (directory / f"{prefix}{DROPPED}").write_bytes(b"")
        for name in (DROPPED, MERGED):
            if (dataset.directory / name).exists():
                shutil.copyfile(dataset.directory / name, directory / f"{prefix}{name}")


def manifest(understood: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run: settings, versions, and what was found."""
    libraries = ("softq", "torch", "transformers", "peft", "accelerate", "tokenizers")
    return {
        "finished": False,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": dict(understood),
        **facts,
        "versions": {library: version(library) for library in libraries},
    }


def save(
    directory: Path,
    policy: CausalLM,
    tokenizer: PreTrainedTokenizerBase,
    ends: frozenset[int],
    record: dict[str, Any],
) -> None:
    """Weights or adapter, config, tokenizer with template, generation config, card; the manifest last.

    Written beside the directory and moved in file by file, so a file is there whole or not at all.
    """
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=directory))
    try:
        with without_bars():
            policy.model.save_pretrained(str(partial))
        tokenizer.save_pretrained(partial)
        generation = policy.transformer.generation_config or GenerationConfig()
        generation.eos_token_id = end_tokens(policy, tokenizer, ends)
        generation.save_pretrained(partial)
        (partial / "README.md").write_text(card(record), encoding="utf-8")
        files = sorted(str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file())
        for name in files:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial / name, directory / name)
    finally:
        shutil.rmtree(partial)
    ours = [name for name in OURS if (directory / name).exists()]
    finished = {"finished": True, "ended": datetime.now(UTC).isoformat(timespec="seconds")}
    write_json(directory / MANIFEST, {**record, **finished, "files": [*files, *ours]})


def end_tokens(policy: CausalLM, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int] = frozenset()) -> list[int]:
    """Every token that ends a completion: the generation config's, the tokenizer's, and `ends`."""
    generation = policy.transformer.generation_config
    known: Any = None if generation is None else generation.eos_token_id
    known = [] if known is None else [known] if isinstance(known, int) else known
    own: Any = tokenizer.eos_token_id
    return sorted({*known, *([] if own is None else [own]), *ends})


def card(record: Mapping[str, Any]) -> str:
    """A model card for the hub: what was trained, on what, how, and what came of it."""
    settings, metrics = record["settings"], record.get("metrics", {})
    head = {
        "base_model": settings["model"],
        "library_name": "peft" if settings["use_peft"] else "transformers",
        "tags": ["softq", *settings["method"].split("+")],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", ""]
    lines += [f"# {settings['method']} on {Path(settings['model']).name}", ""]
    lines += [f"Trained with softq {record['versions']['softq']} ({settings['method']}) from `{settings['model']}`", ""]
    reference = record["reference"]
    said = f"{reference['model']} (fingerprint {reference['fingerprint']})" if reference else "none"
    lines += [f"- reference: {said}", f"- records used: {record['data']['records']}"]
    lines += [f"- {name}: {value:.4g}" for name, value in metrics.items() if name.startswith("eval_")]
    return "\n".join([*lines, "", "Every setting, version and data count is in `manifest.json`.", ""])


def _files(path: Path) -> list[str]:
    """The files an earlier run says it wrote, inside its directory."""
    if not path.is_file():
        return []
    try:
        names = json.loads(path.read_text(encoding="utf-8")).get("files", OURS)
    except (ValueError, AttributeError):
        return []
    return [name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts]
