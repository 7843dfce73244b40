"""The laws of a model's reference: which model it is, and that its stored log-probs are what it says."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softq.lm.load import DTYPES
from softq.lm.reference import fingerprint
from softq.training.events import RunError
from softq.training.output import left
from softq.training.reference_cache import cached_reference
from softq.verify.law import Finding
from softq.verify.model import OnModel, log_prob_gap, log_probs, worst


def identity(on: OnModel) -> Finding | str:
    """The largest |log π/π_ref| of a token in nats, which is 0 unless the model is known to come from the reference."""
    if on.no_reference:
        return on.no_reference
    scored = log_probs(on)
    ratio = (scored["logp"] - scored["ref_logp"]).abs()
    largest, mean = float(ratio.max()), float(ratio.sum()) / int(on.batch.tokens.action.sum())
    if largest == 0:
        return Finding(0, 0, f"log π/π_ref is exactly 0 on {int(on.batch.tokens.action.sum())} actions")
    distance = f"up to {largest:.2g} nats a token apart ({mean:.2g} on average)"
    model, reference = on.settings.model, on.settings.reference
    if reference is None:
        why = "the model draws at random, or keeps something from one pass to the next"
        return Finding(largest, 0, f"policy and reference are the same weights, yet {distance}: {why}")
    mark = fingerprint(on.loaded.models["ref"])  # pyright: ignore[reportArgumentType]
    named = _named(left(Path(model)) or {})
    if named and named.get("fingerprint") == mark:
        return Finding(0, 0, f"{model} was trained against {reference}, as its manifest says; they are {distance}")
    if named:
        return Finding(largest, 0, f"{_another(on, named)}; the two are {distance}")
    if on.policy.adapted and fingerprint(on.policy, adapter=False) == mark:
        return Finding(0, 0, f"{model} is an adapter on {reference}; they are {distance}")
    said = f"{model} and {reference} are {distance}: if training should start from {model}, {reference} is the wrong reference"
    return Finding(largest, 0, f"{said}; if {model} was trained from it by another library, this is as it should be")


def _named(manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a manifest says of the reference of its run; of the model that it started from, where it read none."""
    base = {"model": "the model under its adapter", **(manifest.get("merge") or {})}
    merged = {"model": base["model"], "fingerprint": (base.get("fingerprints") or {}).get("base")}
    started = {"model": "the model that it started from", **(manifest.get("base") or {})}
    several = (manifest.get("reference") or {}, started, merged)
    return next((named for named in several if named.get("fingerprint")), None)


def _another(on: OnModel, named: Mapping[str, Any]) -> str:
    said = (
        f"the manifest of {on.settings.model} names another reference, {named['model']} ({named['fingerprint'][:8]}…)"
    )
    if named.get("dtype") not in (None, on.settings.dtype):
        said += f", in {named['dtype']}: a fingerprint is of one dtype, so compare with --dtype {named['dtype']}"
    return said


def kept(on: OnModel) -> Finding | str:
    """How far the reference's log-probs, stored and read back as --cache-reference does it, are from those scored now."""
    if on.no_reference:
        return on.no_reference
    more = [readout.name for readout in on.method.needs if "ref" in readout.models and readout.name != "ref_logp"]
    if more or on.method.takes == "labels+mismatched":
        why = f"{', '.join(more)} of it" if more else "completions under each other's prompts"
        return f"{on.name} can not use stored log-probs of a reference: it needs {why}"
    if on.settings.dtype not in DTYPES:
        return f"not checked for weights in {on.settings.dtype}"
    try:
        with tempfile.TemporaryDirectory() as place:
            for _ in ("scored and written", "read and sampled"):
                cache, _ = cached_reference(
                    Path(place),
                    on.records,
                    on.loaded.models,
                    fingerprint="of no other run",
                    dtype=on.settings.dtype,
                    tokens_per_micro=on.tokens_per_micro,
                )
            stored = cache.filled(on.batch).columns["ref_logp"]
    except RunError as error:  # it says that what it reads is not what was written
        said = str(error).partition(".safetensors ")[2].partition("; delete")[0]
        return Finding(float("inf"), on.rounding, f"the file of log-probs {said or error}")
    scored, action = log_probs(on)["ref_logp"].cpu(), on.batch.tokens.action
    return worst([log_prob_gap(on, stored.to(scored)[action], scored[action])], f"{int(action.sum())} actions: ")
