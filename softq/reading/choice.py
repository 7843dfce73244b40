"""With which reference and β a policy is read: as it was told, or as the run that made it says."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from softq.data.encode import Encoded
from softq.lm.load import Loaded
from softq.lm.reference import fingerprint
from softq.lm.tokenizer import adapted, load_tokenizer
from softq.training.history import NotARun, Run, run_at

HEAD = re.compile(r"---\n(.*?\n)---", re.DOTALL)
BASE = re.compile(r"^base_model:[ ]*(?:\n[ ]*-[ ]+)?([^\n\[]+)\n(?![ ]*-)", re.MULTILINE)  # a name, or a list of one
MODELS = ("config.json", "adapter_config.json")
UNKNOWN = "β is not known, so rewards are in nats: give --beta for those of training"


class Choice(NamedTuple):
    """What a policy is read with."""

    reference: str | None  # a name for `lm.load.load`; None: none
    beta: float | None  # reward per nat; None: not known, so rewards are in nats
    notes: tuple[str, ...]  # what to say of it
    fingerprint: str | None = None  # that the reference must have: the manifest's
    dtype: str | None = None  # in which it has that fingerprint
    method: str | None = None  # the loss that the policy was trained with; None: not known

    def check(self, loaded: Loaded) -> tuple[str, ...]:
        """ValueError unless the reference is the one that the policy was trained with; what to say where that can not be told."""
        if self.fingerprint is None:
            return ()
        model: Any = loaded.models["ref"]
        there = fingerprint(model)
        if there == self.fingerprint:
            return ()
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        if dtype != self.dtype:
            told = f"{self.reference} is read in {dtype}, and was in {self.dtype} when the policy was trained with it"
            return (f"{told}: whether its weights are the same can not be told",)
        raise ValueError(
            f"{self.reference} has changed since the policy was trained with it (fingerprint {there}, then "
            f"{self.fingerprint}); give --reference DIR of the weights as they were, or --reference {self.reference} to "
            "compare with these"
        )


def choice(policy: str, reference: str | None, beta: float | None) -> Choice:
    """What to read `policy` with; what is given wins, then what the policy's own manifest says. Other clues are told, not taken.

    `reference` "none" is none. ValueError for a β ≤ 0, for a name that is none, and where our manifest names a reference that can
    not be had again.
    """
    if beta is not None and not 0 < beta < math.inf:
        raise ValueError(f"--beta {beta:g}: expected a number above 0, reward per nat")
    for option, name in (("policy", policy), ("reference", reference)):
        if name is not None:
            _check_named(option, name)
    run = run_of(policy)
    known = run.beta if run is not None else None
    name, mark, notes = _reference(policy, reference, run)
    if name is not None and beta is None:
        told = f"β = {known:g}, as {policy} was trained with (--beta for another)" if known is not None else UNKNOWN
        notes = (told, *notes)
    method = run.method if run is not None else None
    return Choice(name, known if beta is None else beta, notes, *mark, method=method)


@contextmanager
def had_again(chosen: Choice, policy: str) -> Iterator[None]:
    """Loading in it says what to do where the reference that a manifest names is not there any more."""
    try:
        yield
    except ValueError as error:
        if chosen.fingerprint is None or not str(error).startswith(f"model {chosen.reference}:"):
            raise
        where = f"{policy} was trained with it: give --reference DIR, where it is now, or none"
        raise ValueError(f"{error}; {where}") from error


def same_words(reference: str, policy: PreTrainedTokenizerBase, records: Iterable[Encoded]) -> None:
    """ValueError where the ids of these records are other tokens to the reference's tokenizer, if it brings one.

    Added tokens may differ: a chat model often names what its base had in reserve.
    """
    try:
        other = load_tokenizer(reference).tokenizer
    except ValueError:  # weights alone are a reference too
        return
    added = {id for each in (policy, other) for id in each.added_tokens_decoder}
    ours, theirs = ({id: token for token, id in each.get_vocab().items()} for each in (policy, other))
    said = {id for record in records for each in record.completions for id in each.ids.tolist()}
    for id in sorted(said - added):
        if ours.get(id) != theirs.get(id):
            raise ValueError(
                f"reference {reference} has another tokenizer: {id} is {theirs.get(id)!r} there, and {ours.get(id)!r} in the "
                "policy's; give a reference that reads text as the policy does"
            )


def _check_named(option: str, name: str) -> None:
    """ValueError for no name at all, and for a directory that holds no model, but says where one is, or will be."""
    if not name.strip():
        raise ValueError(f"--{option} {name!r}: expected a directory or a name on the hub")
    home = Path(name)
    if not home.is_dir() or any((home / file).is_file() for file in MODELS):
        return
    inside = [path.name for path in home.glob("checkpoint-*") if path.is_dir()]
    if inside:
        last = home / max(inside, key=lambda each: (len(each), each))
        raise ValueError(f"--{option} {name} holds no model itself, only checkpoints; give one, such as {last}")
    run = run_of(name)
    if run is not None and run.state != "finished":
        raise ValueError(f"--{option} {name}: its training is not finished; go on with softq train … --resume")


def _reference(policy: str, given: str | None, run: Run | None) -> tuple[str | None, tuple[str, ...], tuple[str, ...]]:
    """The reference's name, the fingerprint that it must have and its dtype if they are known, and what to say of it."""
    if given is not None:
        return None if given == "none" else given, (), ()
    found = _trained_with(run) if run is not None else None
    if found is not None:
        return found[0], found[1:], (f"reference {found[0]}, as {policy} was trained with",)
    clue = run.model if run is not None else _clue(policy)
    told = (
        f"{policy} names {clue}: give --reference {quote(clue)} if that is" if clue else "give --reference if you have"
    )
    return None, (), (f"no reference: what compares with one is left out; {told} what it was trained from",)


def run_of(policy: str) -> Run | None:
    """The run of ours that made a policy; None for any other."""
    try:
        return run_at(Path(policy))
    except (NotARun, OSError):
        return None


def _trained_with(run: Run) -> tuple[str, str, str] | None:
    """The reference of one of our runs, its fingerprint and dtype; None where the method read none."""
    said = _json(run.directory / "manifest.json").get("reference")
    if said is None:
        return None
    if run.settings.get("reference_mixup"):
        raise ValueError(f"{run.directory}: its reference moved while it was trained; give --reference DIR, or none")
    if not isinstance(said, Mapping) or "fingerprint" not in said:
        raise ValueError(f"{run.directory}: its manifest.json tells no reference; give --reference DIR, or none")
    if said["fingerprint"] is None:
        raise ValueError(f"{run.directory}: its reference was log-probs in the data; give --reference DIR, or none")
    return str(run.settings.get("reference") or run.settings["model"]), str(said["fingerprint"]), str(said.get("dtype"))


def _clue(policy: str) -> str | None:
    """What a policy of another library may have been trained from: what its adapter, its config or its card names."""
    home = Path(policy)
    card = (
        home.parent if home.name.startswith("checkpoint-") else home
    ) / "README.md"  # TRL writes one for all of a run
    names = (adapted(policy), _json(home / "config.json").get("_name_or_path"), _base_model(card))
    return next((name for name in names if isinstance(name, str) and name.strip() and name != policy), None)


def _base_model(card: Path) -> str | None:
    """The one base model that the head of a model card names."""
    try:
        head = HEAD.match(card.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = BASE.search(head[1]) if head else None
    return found[1].strip().strip("'\"") if found else None


def _json(file: Path) -> Mapping[str, Any]:
    """The object that a file holds; empty where there is none: who needs what is in it says what is wrong with it."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, Mapping) else {}
