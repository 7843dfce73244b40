"""What a run leaves behind: a model that loads anywhere, and a manifest that says how it came to be."""

import fcntl
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from softq.data.read import DROPPED, MERGED, Dataset
from softq.data.store import synced, write_json
from softq.lm.load import without_bars
from softq.lm.model import CausalLM
from softq.lm.reward import RewardModel
from softq.training import checkpoint, ranks
from softq.training.card import card
from softq.training.events import OutputError, RunError
from softq.training.history import CHECKPOINTS, MANIFEST, METRICS

LEDGER = "ledger.json"
SAMPLES = "samples.jsonl"
TRACKED = "trackers.json"
TRACKERS = ("tensorboard", "wandb")  # directories
OURS = [
    METRICS,
    SAMPLES,
    MANIFEST,
    TRACKED,
    *(prefix + name for prefix in ("", "eval_") for name in (LEDGER, DROPPED, MERGED)),
]


def refuse(directory: Path, *, overwrite: bool) -> None:
    """Raise OutputError where the directory can not be made or written, or holds anything that may not be replaced."""
    if directory.exists() and not directory.is_dir():
        raise OutputError(f"--output {directory} is a file; give a directory")
    there = next(path for path in (directory, *directory.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"--output {directory} can not be written: {there} is closed to you; give another")
    held = {path.name for path in directory.iterdir()} if directory.exists() else set()
    held = sorted(held - {f".{MANIFEST}.partial"})  # all that a run leaves which was killed at its very start
    if held and not overwrite:
        going_on = ", --resume" if MANIFEST in held and not finished(directory) else ""
        raise OutputError(
            f"--output {directory} is not empty (it holds {held[0]}); give another{going_on} or --overwrite"
        )


def finished(directory: Path) -> bool:
    """Whether a run wrote all it had to write there, and all of it still is: --overwrite may have begun to remove it."""
    document = left(directory) or {}
    return bool(document.get("finished")) and all((directory / name).exists() for name in document.get("files", ()))


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """The directory, made if need be, for this run alone: a lock that ends with the process, however it ends.

    Of several processes of a run the first holds it.
    """
    if not ranks.first():
        yield
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"--output {directory} can not be made: {error.strerror}") from error
    try:
        if not _locked(handle):
            raise OutputError(
                f"--output {directory} is in use by another run{_holder(directory)}; wait for it, or give another"
            )
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Whether the lock is ours. A file system that has no locks can not refuse one."""
    for pause in (0.05, 0.2, 0.0):  # who only looks whether there is a run holds it for a moment
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(pause)
        except OSError:
            return True
    return False


def _holder(directory: Path) -> str:
    process = (left(directory) or {}).get("process")
    return f" (process {process['pid']} on {process['host']})" if process else ""


def claim(directory: Path, *, overwrite: bool) -> None:
    """Take over a directory that an earlier run wrote, whose files it removes, or an empty one."""
    refuse(directory, overwrite=overwrite)
    try:
        if left(directory) is None:  # whatever is there, softq did not make it
            return
        for name in (name for name in _files(directory / MANIFEST) if name != MANIFEST):
            (directory / name).unlink(missing_ok=True)
        checkpoint.forget(directory, after=-1)  # each loses its name first, so that none is half there
        checkpoint.tidy(directory)
        if (directory / CHECKPOINTS).is_dir() and not any((directory / CHECKPOINTS).iterdir()):
            (directory / CHECKPOINTS).rmdir()
        for folder in TRACKERS:
            shutil.rmtree(directory / folder, ignore_errors=True)
        (directory / MANIFEST).unlink()  # last: it says whose the rest is
    except OSError as error:
        raise OutputError(f"--output {directory} can not be cleared: {error.strerror}") from error


def left(directory: Path) -> dict[str, Any] | None:
    """The manifest that a run of softq left there; None where there is none, or it is not softq's."""
    try:
        document = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        return document if "softq" in document["versions"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


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


def now() -> str:
    """The time, to a second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def manifest(understood: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run: settings, versions, and what was found."""
    libraries = ("softq", "torch", "transformers", "peft", "accelerate", "tokenizers")
    return {
        "finished": False,
        "process": {"host": socket.gethostname(), "pid": os.getpid()},
        "started": now(),
        "settings": dict(understood),
        **facts,
        "versions": {library: version(library) for library in libraries},
    }


def weights(policy: CausalLM) -> dict[str, Tensor] | None:
    """All of a sharded model's weights, on the first process's CPU; None where it is not sharded. Every process must ask."""
    if not any(isinstance(parameter, DTensor) for parameter in policy.parameters()):
        return None
    parameters = dict(policy.model.named_parameters())  # tied ones once, as transformers saves them
    twice = {name for name, _ in policy.model.named_parameters(remove_duplicate=False)} - set(parameters)
    found = {}
    for name, tensor in policy.model.state_dict().items():
        whole = ranks.full(tensor) if name not in twice else None
        if whole is not None and ranks.first():
            found[name] = whole.cpu()
    return found


def write_model(directory: Path, policy: CausalLM, state: dict[str, Tensor] | None) -> None:
    """Weights or adapter, and config. `state` are the weights, where they are not to be read off the model."""
    own: dict[str, Any] = {} if state is None else {"state_dict": state}
    with without_bars():
        policy.model.save_pretrained(str(directory), **own)


def write_words(
    directory: Path, policy: CausalLM, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int] = frozenset()
) -> None:
    """Tokenizer with template and, of what generates, the generation config with every end token."""
    try:
        tokenizer.save_pretrained(directory)
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise OSError(str(error)) from error  # what the tokenizers library means
    if isinstance(policy, RewardModel):
        return
    generation = policy.transformer.generation_config or GenerationConfig()
    generation.eos_token_id = end_tokens(policy, tokenizer, ends)
    generation.save_pretrained(directory)


def save(directory: Path, model: Callable[[Path], None], record: dict[str, Any]) -> None:
    """What `model` writes into the directory it is given, and a card; the manifest last.

    Written beside the directory and moved in file by file, so a file is there whole or not at all.
    """
    partial = None
    try:
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=directory))
        model(partial)
        (partial / "README.md").write_text(card(record), encoding="utf-8")
        files = sorted(str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file())
        # What --overwrite removes, should this stop here.
        write_json(directory / MANIFEST, {**record, "files": [*files, *OURS]})
        for name in files:
            synced(partial / name)
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial / name, directory / name)
        shutil.rmtree(partial)  # before the manifest says that all is done
        ours = [name for name in OURS if (directory / name).exists()]
        done = {key: value for key, value in record.items() if key != "process"}
        write_json(directory / MANIFEST, {**done, "finished": True, "ended": now(), "files": [*files, *ours]})
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        why += "; mend it, then the same again, of train with --resume"
        raise RunError(f"the result can not be written to {directory}: {why}") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def end_tokens(policy: CausalLM, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int] = frozenset()) -> list[int]:
    """Every token that ends a completion: the generation config's, the tokenizer's, and `ends`."""
    generation = policy.transformer.generation_config
    known: Any = None if generation is None else generation.eos_token_id
    known = [] if known is None else [known] if isinstance(known, int) else known
    own: Any = tokenizer.eos_token_id
    return sorted({*known, *([] if own is None else [own]), *ends})


def _files(path: Path) -> list[str]:
    """The files an earlier run says it wrote, inside its directory."""
    if not path.is_file():
        return []
    try:
        names = json.loads(path.read_text(encoding="utf-8")).get("files", OURS)
    except (ValueError, AttributeError):
        return []
    return [name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts]
