"""Configs of TRL and LLaMA-Factory as settings of ours, with an account of every key: kept, changed, or not kept."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from softq.training.migration import factory, trl, trl_losses
from softq.training.migration.reading import call, evaluation, optimiser, rest
from softq.training.migration.tables import FACTORY, NULLS, OTHER_NAMES, OTHERS, TRL, Kind


class Migrated(NamedTuple):
    """A config of another library as ours."""

    method: str
    values: dict[str, Any]  # flat, as `settings.flattened` gives them; what the config does not name is missing
    options: dict[str, Any]  # of the command, by name: report_to, logging_steps, overwrite, ...
    lost: list[str]  # what can not be kept, or is not known, and may change the result
    changed: list[str]  # what is said in another way
    idle: list[str]  # what changes no result, and is left out

    @property
    def notes(self) -> list[str]:
        """The three lists as lines, each under a heading; what may change the result comes first."""
        groups = {"may change the result": self.lost, "said in another way": self.changed, "left out": self.idle}
        return [line for title, lines in groups.items() if lines for line in (f"{title}:", *(f"  {x}" for x in lines))]


def migrated(document: Any, *, method: str | None = None, processes: int = 1) -> Migrated:
    """Read a config. `method` says which of TRL's trainers it was for (dpo, kto, sft, cpo, orpo), where its keys do not tell.

    `processes` is how many the config was run on: TRL's batches are per device. A run trains as the other library would
    have, so its defaults are written out. ValueError: it is no config of theirs, or its loss is not ours.
    """
    if not isinstance(document, Mapping):
        raise ValueError(f"the config holds {type(document).__name__}; expected settings by name")
    named = {OTHER_NAMES.get(str(key), str(key)): value for key, value in document.items()}
    given = {key: value for key, value in named.items() if value is not None or key in NULLS}
    about, losses = (factory, factory) if _kind(given) is FACTORY else (trl, trl_losses)
    read = about.reading(given, method)
    about.model(read)
    about.data(read)
    names, weights = losses.method(read)
    if len(names) > 1:
        read.values["weights"] = weights
    optimiser(read, processes)
    evaluation(read)
    call(read)
    rest(read)
    return Migrated("+".join(names), read.values, read.options, read.lost, read.changed, read.idle)


def _kind(given: Mapping[str, Any]) -> Kind:
    """Whose config it is."""
    for mark, whose in OTHERS.items():
        if mark in given:
            raise ValueError(f"the key '{mark}' makes it {whose} config; expected one of TRL or LLaMA-Factory")
    if {"stage", "finetuning_type", "cutoff_len", "pref_loss", "pref_beta"} & set(given):
        return FACTORY
    if set(given) & (set(TRL.read) - {"beta"}):
        return TRL
    raise ValueError(f"none of its keys ({', '.join(list(given)[:5])}) is TRL's or LLaMA-Factory's")
