"""Going on from a checkpoint: is it the same run, and everything back where it was."""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from softq.lm.load import Loaded, reweigh
from softq.training import checkpoint, ranks
from softq.training.chance import chance, set_chance
from softq.training.checkpoint import Checkpoint
from softq.training.course import Course, Rest
from softq.training.events import OutputError, RunError
from softq.training.log import Log
from softq.training.output import MANIFEST, METRICS, SAMPLES, left, weights, write_model, write_words
from softq.training.settings import flag
from softq.training.update import AdamW

FREE = {"method", "output", "data", "eval_data", "save_every", "keep", "best", "shard"}
"""Settings that need no comparing, or may differ when a run goes on. Data is compared by its content."""
RUNS_AS = ("ranks", "threads", "device", "layout")
"""What a run's rounding depends on, beside its versions, its machine and whether it is sharded."""
OPTIMIZER, MEMORY, CHANCE, REFERENCE = "optimizer/", "memory/", "chance/", "reference"


def other_settings(then: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = FREE) -> list[str]:
    """How the settings of two runs differ, in words."""
    if then["method"] != now["method"]:
        return [f"it is of {then['method']}, not of {now['method']}"]
    return [
        f"{flag(key)} was {then.get(key)}, is {now.get(key)}"
        for key in dict.fromkeys((*then, *now))
        if key not in free and json.dumps(then.get(key)) != json.dumps(now.get(key))
    ]


def differences(then: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = FREE) -> list[str]:
    """How two runs differ, by their manifests, in words; nothing where they go the same way."""
    said = other_settings(then["settings"], now["settings"], free)
    if any(then["data"].get(part) != now["data"].get(part) for part in ("content", "weights")):
        said.append("the data is not the same (its tokens, masks, columns, order or weights)")
    for part, what in (("reference", "reference"), ("base", "model that training starts from")):
        was, new = ((side.get(part) or {}).get("fingerprint") for side in (then, now))
        if was != new:
            said.append(f"the {what} is another: its fingerprint was {was}, is {new}")
    was, new = (side.get("models") or {} for side in (then, now))
    for name in new:
        if (mark := (was.get(name) or {}).get("fingerprint")) != new[name]["fingerprint"]:
            said.append(f"the model {name} is another: its fingerprint was {mark}, is {new[name]['fingerprint']}")
    if then.get("code") != now.get("code"):
        said.append("the method's own code has changed")
    return said


def same_start(directory: Path, now: Mapping[str, Any]) -> None:
    """Where there is no checkpoint: what is there must be what this run left when it died, since it is replaced.

    OutputError where it is not a run's, or a finished one's; ValueError where it is another run's.
    """
    if not (directory / MANIFEST).exists():
        return
    then = left(directory)
    if then is None or "settings" not in then:
        raise OutputError(f"--output {directory} holds a {MANIFEST} that no run of softq left; give another")
    if then.get("finished"):
        gone = next((name for name in then["files"] if not (directory / name).exists()), "nothing")
        raise OutputError(
            f"--output {directory} is of a finished run that lost {gone}; put it back, give another, or --overwrite"
        )
    if other := differences(then, now):
        raise ValueError(
            f"--resume: {directory} is of another run: {'; '.join(other)}; use the same, or another --output"
        )


def same_run(found: Checkpoint, now: Mapping[str, Any]) -> list[str]:
    """ValueError unless the checkpoint is of this run; what to say, and what keeps it from being equal bit for bit."""
    then = found.manifest
    if other := differences(then, now):
        raise ValueError(
            f"--resume: {found.directory} is of another run: {'; '.join(other)}; use the same, or another --output"
        )
    was, new = (
        {**side["versions"], **{part: side[part] for part in RUNS_AS}, "shard": side["settings"]["shard"]}
        | {"host": side["process"]["host"]}
        for side in (then, now)
    )
    changed = [f"{part} {was.get(part)} -> {value}" for part, value in new.items() if was.get(part) != value]
    best, other = (side["settings"]["best"] for side in (then, now))
    notes = [f"--best was {best}, is {other}: it decides which weights are written"] * (best != other)
    said = f"equal to rounding, not bit for bit: {', '.join(changed)}" if changed else "bit for bit"
    return [f"resumed after step {found.step} from {found.directory}, {said}", *notes]


def keep(run: Course, log: Log, record: Mapping[str, Any], rest: Rest) -> Path:
    """Write a checkpoint. Every process must call it; the first writes."""
    loaded, output = run.loaded, Path(run.settings.output)
    tensors = {f"{OPTIMIZER}{name}": value for name, value in run.update.state().items()}
    tensors |= {f"{MEMORY}{name}": value.detach().cpu() for name, value in rest.memory.items()}
    for rank, state in enumerate(ranks.gathered([chance()])):
        tensors |= {f"{CHANCE}{rank}/{name}": value for name, value in state.items()}
    policy = loaded.policy
    reference = loaded.models["ref"] if run.settings.reference_mixup else None
    states = weights(policy), weights(reference) if reference else None  # pyright: ignore[reportArgumentType]

    def models(directory: Path) -> None:
        write_model(directory, policy, states[0])
        write_words(directory, policy, loaded.tokenizer, run.data.train.template_ends)
        if reference:
            write_model(directory / REFERENCE, reference, states[1])  # pyright: ignore[reportArgumentType]

    if ranks.first():
        said = {"step": rest.step, "evaluated": rest.evaluated, "manifest": record}
        checkpoint.write(output, said, tensors, models, log.paths)
    ranks.wait()
    return checkpoint.at(output, rest.step)


def copy_model(found: Path, directory: Path) -> None:
    """The policy's files of a checkpoint, which is verified, into another directory."""
    if damage := checkpoint.damaged(found):
        raise RunError(f"the best evaluation's checkpoint {found} is damaged: {damage}; --resume without --best")
    ours = {checkpoint.TENSORS, checkpoint.RECORD, METRICS, SAMPLES}
    for path in found.iterdir():
        if path.is_file() and path.name not in ours:
            shutil.copyfile(path, directory / path.name)


def weights_back(found: Checkpoint, loaded: Loaded, moving: bool) -> None:
    """The policy's weights as they were and, where it moves, the reference's. Before models are sharded."""
    reweigh(loaded.policy, found.directory)
    if moving:
        reweigh(loaded.models["ref"], found.directory / REFERENCE)  # pyright: ignore[reportArgumentType]


def state_back(found: Checkpoint, update: AdamW) -> dict[str, Tensor]:
    """Optimiser and random numbers as they were; returns the method's memory."""
    tensors = found.tensors()

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    try:
        update.restore(part(OPTIMIZER), found.step)
    except KeyError as error:
        raise RunError(
            f"{found.directory} has an optimiser state for {error}, which this model does not train"
        ) from error
    if found.manifest["ranks"] == ranks.count():
        set_chance(part(f"{CHANCE}{ranks.rank()}/"))
    return part(MEMORY)
