"""Every label judged by a policy that never saw its prompt: `softq score --cross-fit K`.

Pairs are dealt into K folds, all pairs of a prompt into one. For each fold dpo is trained on the others, from the policy's
reference (or, without one, from the policy itself), and its margins of the fold's pairs are kept: what they say of the labels is
`inspection.noise`. A fold that is done is not trained again; several processes make each training together.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase, set_seed

from softq.data.encode import Encoded
from softq.data.read import Dataset
from softq.data.store import write_json
from softq.inspection.noise import FACTS, estimated, facts_at, wrong
from softq.inspection.shelf import put
from softq.reading.choice import Choice, run_of
from softq.reading.score import PART
from softq.records import Method
from softq.training import ranks
from softq.training.course import Course, course, steps
from softq.training.events import OutputError
from softq.training.loop import default_budget
from softq.training.methods import method_names
from softq.training.plan import scored_whole
from softq.training.prepare import Data, load_models
from softq.training.samples import prompt_of
from softq.training.settings import Call, Settings, build
from softq.training.source import batch_of

GIVEN = (
    *("beta", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2"),
    *("max_grad_norm", "batch_size", "num_train_epochs", "max_steps", "seed", "gradient_checkpointing", "bf16"),
)
"""What may be said of the trainings, by the names of `softq train dpo`."""
TAKEN = (*GIVEN, "dtype", "use_peft", "lora_r", "lora_alpha", "lora_target_modules")
"""What is taken over from the run that made the policy, if that was dpo."""


class CrossFit(NamedTuple):
    """What is to be trained, fold by fold."""

    folds: int
    settings: Settings
    method: Method
    said: Mapping[str, Any]  # what was given or taken over, by name
    trust_remote_code: bool

    def line(self) -> str:
        """For people."""
        settings = ", ".join(f"{name} {value}" for name, value in self.said.items())
        return f"cross-fit: {self.folds} trainings of dpo from {self.settings.model}: {settings or 'its defaults'}"


class Fold(NamedTuple):
    """The labels of a fold were judged."""

    pairs: int
    agreed: int  # labels that its policy agrees with
    done: int
    of: int


def cross_fit(
    policy: str,
    chosen: Choice,
    folds: int,
    given: Sequence[str],
    run: Mapping[str, Any],
    *,
    trust_remote_code: bool = False,
) -> CrossFit:
    """What `--cross-fit FOLDS --fit NAME=VALUE …` asks for. `run` are the settings that the trainings share with the scoring.
    ValueError for what can not be."""
    if folds < 2:
        raise ValueError(f"--cross-fit {folds}: expected at least 2 folds, of which one is left out each time")
    start = policy if chosen.reference in (None, "uniform") else chosen.reference
    values = {} if chosen.beta is None else {"beta": chosen.beta}
    values = {**_recipe(policy), **values, **_named(given)}
    settings, method, _ = build("dpo", {**run, **values, "model": start, "eval_fraction": 0.0})
    return CrossFit(folds, settings, method, values, trust_remote_code)


def _recipe(policy: str) -> dict[str, Any]:
    """The settings of the run that made the policy; none where that was not dpo."""
    made = run_of(policy)
    if made is None or "dpo" not in method_names(made.method):
        return {}
    named = {name: made.settings[name] for name in TAKEN if made.settings.get(name) is not None}
    return {name: value for name, value in named.items() if not name.startswith("lora_") or named.get("use_peft")}


def _named(given: Sequence[str]) -> dict[str, Any]:
    pairs = [each.partition("=") for each in given]
    for name, equals, value in pairs:
        if name not in GIVEN or not equals or not value:
            raise ValueError(f"--fit {name}{equals}{value}: expected NAME=VALUE, NAME one of {', '.join(GIVEN)}")
    return {name: value for name, _, value in pairs}


def folds_of(records: Sequence[Encoded], count: int, seed: int) -> np.ndarray:
    """[P] which fold each pair is in, from 0: drawn by the seed, all pairs of a prompt together, and about equal in size.
    ValueError for fewer prompts than folds."""
    prompts: dict[bytes, list[int]] = {}
    for n, record in enumerate(records):
        prompts.setdefault(blake2b(prompt_of(record).tobytes(), digest_size=16).digest(), []).append(n)
    if len(prompts) < count:
        raise ValueError(
            f"--cross-fit {count}: the data has {len(prompts)} different prompts, and a fold needs one at least"
        )
    groups, fold, size = list(prompts.values()), np.zeros(len(records), np.int16), np.zeros(count, np.int64)
    for g in np.random.default_rng(seed).permutation(len(groups)).tolist():
        smallest = int(size.argmin())
        fold[groups[g]] = smallest
        size[smallest] += len(groups[g])
    return fold


def check_data(of: CrossFit, data: Dataset) -> None:
    """ValueError for data that can not be cross-fitted."""
    if data.kind != "pairs":
        raise ValueError(f"--cross-fit reads pairs, and the data holds {data.kind}; leave it out")
    folds_of(data.records, of.folds, of.settings.seed)


def crossed(
    directory: Path, of: CrossFit, data: Dataset, tokenizer: PreTrainedTokenizerBase, said: Mapping[str, Any]
) -> Iterator[Fold]:
    """Train, judge and write, fold by fold, into the scored directory of these data; `said` is what it says of its cross-fit, as
    `described`."""
    fold = folds_of(data.records, of.folds, of.settings.seed)
    if ranks.first():
        write_json(directory / FACTS, {**said, "finished": False})
    margin = np.zeros(len(fold))
    for k in range(of.folds):
        out = np.flatnonzero(fold == k)
        file = _file(directory, k)
        if not ranks.gathered([file.exists()])[0]:
            found = margins(trained(of, data, tokenizer, np.flatnonzero(fold != k)), data, out)
            if ranks.first():
                file.parent.mkdir(exist_ok=True)
                write_json(file, found)
            ranks.wait()
        margin[out] = json.loads(file.read_text(encoding="utf-8"))
        yield Fold(len(out), int((margin[out] > 0).sum()), k + 1, of.folds)
    if ranks.first():
        _write(directory, said, fold, margin)
    ranks.wait()


def described(of: CrossFit, data: Dataset, fingerprint: str) -> dict[str, Any]:
    """What tells a cross-fit from another; `fingerprint` is that of the weights it starts from."""
    return {
        "folds": of.folds,
        "start": {"model": of.settings.model, "fingerprint": fingerprint},
        "beta": of.method.beta,
        "settings": {name: of.settings.model_dump()[name] for name in TAKEN if name != "beta"},
        "content": data.records.digest(),
    }


def check_same(directory: Path, said: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Whether this very cross-fit is there and finished. Another one is removed, if that was asked for; else OutputError."""
    before = facts_at(directory)
    other = [name for name in said if before is not None and before.get(name) != said[name]]
    if other and not overwrite:
        raise OutputError(
            f"--output {directory} holds a cross-fit of other {other[0]}; give another directory, or --overwrite"
        )
    if other and ranks.first():
        removed(directory)
    ranks.wait()
    return bool(before and not other and before["finished"])


def removed(directory: Path) -> None:
    """Take a cross-fit, or what there is of one, out of a scored directory."""
    for file in [directory / FACTS, *(directory / "noise").glob("*.*")]:
        file.unlink(missing_ok=True)


def trained(of: CrossFit, data: Dataset, tokenizer: PreTrainedTokenizerBase, numbers: np.ndarray) -> Course:
    """A policy trained on these records of the data."""
    set_seed(of.settings.seed)
    accelerator = ranks.join(bf16=of.settings.bf16)
    part = Data(data, data.records.take(numbers), None, None, ())
    call = Call(trust_remote_code=of.trust_remote_code)
    device = str(accelerator.device)
    loaded = load_models("dpo", of.settings, of.method, call, data=part, tokenizer=tokenizer, device=device)
    budget = of.settings.tokens_per_micro or default_budget(loaded.models)
    going = course(of.settings, of.method, loaded, part, accelerator, budget)
    for _ in steps(going, call, start=0, evaluated=True, memory=None):
        pass
    return going


def margins(going: Course, data: Dataset, numbers: np.ndarray) -> list[float]:
    """Of these records, the chosen completion's reward less the rejected one's."""
    found: list[float] = []
    for part in np.array_split(numbers, -(-len(numbers) // PART)):
        batch = batch_of(list(data.records.take(part)), part.tolist(), going.method)
        scored = scored_whole(going.method, going.models, batch, going.tokens_per_micro)
        reward = going.method.beta * (scored["logp"].double() - scored["ref_logp"].double()).sum(-1)
        found += (reward[batch.pairs.chosen] - reward[batch.pairs.rejected]).tolist()
    return found


def _write(directory: Path, said: Mapping[str, Any], fold: np.ndarray, margin: np.ndarray) -> None:
    """The table, and what was estimated over all of it."""
    flips = estimated(margin)
    columns = {"record": np.arange(len(fold)), "fold": fold, "margin": margin, "wrong": wrong(margin, flips)}
    for part in range(-(-len(fold) // PART)):
        rows = slice(part * PART, (part + 1) * PART)
        put(directory, "noise", part, {name: values[rows] for name, values in columns.items()}, compared=True)
    rate = {"rate": flips.rate, "rate_low": flips.low, "rate_high": flips.high, "scale": flips.scale}
    write_json(directory / FACTS, {**said, **rate, "finished": True})
    for file in (directory / "noise").glob("fold-*.json"):
        file.unlink()


def _file(directory: Path, fold: int) -> Path:
    return directory / "noise" / f"fold-{fold}.json"
