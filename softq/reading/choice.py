"""With which reference and β a policy is read: as it was told, or as the run that made it says."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from softq.lm.load import Loaded
from softq.lm.reference import fingerprint
from softq.lm.tokenizer import adapted
from softq.training.history import NotARun, Run, run_at


class Choice(NamedTuple):
    """What a policy is read with."""

    reference: str | None  # a name for `lm.load.load`; None: none
    beta: float | None  # reward per nat; None: not known, so rewards are in nats
    notes: tuple[str, ...]  # what to say of it
    fingerprint: str | None = None  # that the reference must have: the manifest's
    method: str | None = None  # the loss that the policy was trained with; None: not known

    def check(self, loaded: Loaded) -> None:
        """ValueError unless the reference is the one that the policy was trained with, where that is known."""
        if self.fingerprint is None:
            return
        there = fingerprint(loaded.models["ref"])  # pyright: ignore[reportArgumentType]
        if there != self.fingerprint:
            raise ValueError(
                f"{self.reference} has changed since the policy was trained with it (fingerprint {there}, then "
                f"{self.fingerprint}); give --reference DIR of the weights as they were, or --reference {self.reference} to "
                "compare with these"
            )


def choice(policy: str, reference: str | None, beta: float | None) -> Choice:
    """What to read `policy` with; what is given wins, then what the policy's own manifest says. Other clues are told, not taken.

    `reference` "none" is none. ValueError for a β ≤ 0, and where our manifest names a reference that can not be had again.
    """
    if beta is not None and not 0 < beta < math.inf:
        raise ValueError(f"--beta {beta:g}: expected a number above 0, reward per nat")
    run = run_of(policy)
    method = None if run is None else run.method
    notes = []
    if beta is None and run is not None and run.beta is not None:
        beta = run.beta
        notes.append(f"β = {beta:g}, as {policy} was trained with (--beta for another)")
    if beta is None:
        notes.append("β is not known, so rewards are in nats: give --beta for those of training")
    if reference is not None:
        return Choice(None if reference == "none" else reference, beta, tuple(notes), method=method)
    found = _trained_with(run) if run is not None else None
    if found is not None:
        name, mark = found
        return Choice(name, beta, (*notes, f"reference {name}, as {policy} was trained with"), mark, method)
    clue = _clue(policy)
    told = f"; {policy} names {clue}: give --reference {clue} if that is what it was trained from" if clue else ""
    return Choice(None, beta, (*notes, f"no reference: what compares with one is left out{told}"), method=method)


def run_of(policy: str) -> Run | None:
    """The run of ours that made a policy; None for any other."""
    try:
        return run_at(Path(policy))
    except (NotARun, OSError):
        return None


def _trained_with(run: Run) -> tuple[str, str] | None:
    """The reference of one of our runs and its fingerprint; None where the method read none."""
    said: Any = json.loads((run.directory / "manifest.json").read_text(encoding="utf-8")).get("reference")
    if said is None:
        return None
    if run.settings.get("reference_mixup"):
        raise ValueError(f"{run.directory}: its reference moved while it was trained; give --reference DIR, or none")
    if said["fingerprint"] is None:
        raise ValueError(f"{run.directory}: its reference was log-probs in the data; give --reference DIR, or none")
    return str(run.settings.get("reference") or run.settings["model"]), str(said["fingerprint"])


def _clue(policy: str) -> str | None:
    """What a policy of another library may have been trained from."""
    if base := adapted(policy):
        return base
    file = Path(policy) / "config.json"
    if not file.is_file():
        return None
    name = json.loads(file.read_text(encoding="utf-8")).get("_name_or_path")
    return name if name and name != policy else None
