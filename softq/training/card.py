"""The model card of an output: what was trained, by which method and command, on what, and what came of it."""

import inspect
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from softq.data.sources import DataSource
from softq.lm.tokenizer import adapted
from softq.training.methods import maker, method_names
from softq.training.settings import Settings, flag

Record = Mapping[str, Any]

_HUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~!&$])")
_OPTION = re.compile(",(?=[a-z]+=)")


REWARD = """from transformers import AutoModelForSequenceClassification, AutoTokenizer

name = "."  # this directory, or its name on the hub
model = AutoModelForSequenceClassification.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name)
text = PROMPT + COMPLETION  # as the template renders them, up to the end token and no further: its state is what is read
reward = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0]"""


def card(record: Record) -> str:
    """The README of an output, from what its manifest says: YAML for the hub, then Markdown for people.

    A record of `softq train`, of `softq merge` (its facts under `merge`), or of both: an adapter that softq trained.
    """
    parts = [_head(record), f"# {_text(_title(record))}"]
    if "settings" in record:
        parts += _trained(record)
        parts += [_verified(record["verified"])] if record.get("verified") else []
    if "merge" in record:
        parts += _merged(record["merge"])
    if "metrics" in record:
        parts += ["## Results", _results(record["metrics"])]
    if "settings" in record:
        parts += ["## Data", *_data(record["data"]), "## Reproduce", *_reproduce(record)]
    parts += ["## Use", _fenced("python", _use(record)), "Every setting, version and count is in `manifest.json`."]
    return "\n\n".join(parts) + "\n"


def command(settings: Record) -> str:
    """`softq train …` with everything that makes the run what it is: the method's settings, and the run's that are not
    the defaults. One setting a line."""
    fields = Settings.model_fields
    own = {name: value for name, value in settings.items() if name not in fields and name != "method"}
    run = {name: settings[name] for name in fields if name in settings and settings[name] != fields[name].get_default()}
    required = {name: value for name, value in run.items() if fields[name].is_required()}
    words = [_flag(name, value) for name, value in {**required, **own, **run}.items() if value not in (None, [], {})]
    return " \\\n  ".join([f"softq train {shlex.quote(settings['method'])}", *words])


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return flag(name) if value else "--no-" + flag(name)[2:]
    if name == "weights":
        value = ",".join(map(repr, value))
    if isinstance(value, Mapping):
        value = ",".join(f"{key}={of}" for key, of in value.items())
    if not isinstance(value, list | tuple):
        word = shlex.quote(str(value))
        return f"{flag(name)}={word}" if str(value).startswith("-") else f"{flag(name)} {word}"
    return " ".join([flag(name), *(shlex.quote(_spelled(one)) for one in value)])


def _spelled(source: Any) -> str:
    """A source as it is written on the command line."""
    if not isinstance(source, Mapping):
        return str(source)
    return ",".join([source["path"], *(f"{key}={value}" for key, value in source.items() if key != "path")])


def _head(record: Record) -> str:
    """What the hub reads: names that it knows, and no others."""
    settings, start = record.get("settings"), _start(record)
    adapter = _adapter(record)
    tags = ["softq"]
    if settings is not None:
        tags += [name.rpartition(":")[2] for name in method_names(settings["method"])]
        tags += ["lora"] * record.get("adapter", settings["use_peft"])
    head: dict[str, Any] = {"base_model": start} if _on_hub(start) else {}
    task = "text-classification" if record.get("reward_model") else "text-generation"
    head |= {"library_name": "peft" if adapter else "transformers", "pipeline_tag": task}
    head["tags"] = [*tags, *(["merge"] if "merge" in record else [])]
    paths = [_spelled(source) for source in (settings or {}).get("data", ())]
    named = [path for path in (_OPTION.split(path)[0] for path in paths) if DataSource(path).hub]
    head |= {"datasets": list(dict.fromkeys(named))} if named else {}
    return "\n".join(["---", *(f"{key}: {_quoted(value)}" for key, value in head.items()), "---"])


def _adapter(record: Record) -> bool:
    """Whether what stands beside the card is an adapter: a fresh one, or one that was continued."""
    settings = record.get("settings") or {"use_peft": False}
    return "merge" not in record and record.get("adapter", settings["use_peft"])


def _start(record: Record) -> str:
    """The whole model at the bottom of it all."""
    name = record["merge"]["base"] if "merge" in record else record["settings"]["model"]
    return adapted(name) or name


def _on_hub(name: str) -> bool:
    return bool(_HUB.fullmatch(name)) and not Path(name).exists()


def _title(record: Record) -> str:
    start = Path(_start(record)).name
    return f"{record['settings']['method']} on {start}" if "settings" in record else f"{start}, with an adapter merged"


def _trained(record: Record) -> Iterator[str]:
    """The method with its settings, where it started and what it was compared with."""
    settings = record["settings"]
    kind = "A LoRA adapter" if _adapter(record) else "A language model"
    kind = "A reward model" if record.get("reward_model") else kind
    yield (
        f"{kind}, trained from {_code(settings['model'])} with softq {record['versions']['softq']} by "
        f"{_code(settings['method'])}:"
    )
    names = method_names(settings["method"])
    weights = settings.get("weights") or [None] * len(names)
    yield "\n".join(_method(settings, name, weight) for name, weight in zip(names, weights, strict=True))
    reference = record["reference"]
    if reference is None:
        others = record.get("models") or {}
        read = "the model" if record.get("reward_model") else "the policy"
        yield f"No reference model: the loss reads {read} alone." if not others else _others(others)
        return
    known = Path(str(reference["model"])).exists() or _on_hub(str(reference["model"]))
    said = _code(reference["model"]) if known else _text(reference["model"])
    mark = f", fingerprint {_code(reference['fingerprint'])}" if reference["fingerprint"] else ""
    yield f"Reference: {said}{mark}."
    if record.get("models"):
        yield _others(record["models"])


def _others(models: Record) -> str:
    """Further models that the loss reads."""
    named = [
        f"{_text(name)}: {_code(of['model'])}, fingerprint {_code(of['fingerprint'])}" for name, of in models.items()
    ]
    return f"The loss reads frozen models beside the policy: {'; '.join(named)}."


def _verified(verified: Record) -> str:
    """What `softq verify` says of the method with these settings."""
    said = f"Its loss was held to {verified['laws']} laws on tables with exact answers (`softq verify`, softq "
    said += f"{_text(verified['softq'])}) before training: "
    if not verified["red"]:
        open_end = "; where its training ends is not stated" if "fixed point" in verified["not_stated"] else ""
        return said + f"all are kept{open_end}."
    return said + "**not kept:** " + "; ".join(f"{_text(law)} ({_text(why)})" for law, why in verified["red"].items())


def _method(settings: Record, name: str, weight: float | None) -> str:
    """One summand of the loss: the first line of its documentation, and its settings."""
    try:
        said = (inspect.getdoc(maker(name)) or "").splitlines()[:1]
    except ValueError:  # a method of one's own, whose module is not here
        said = []
    prefix = "" if weight is None else f"{name}."
    skipped = {"method", "weights", *Settings.model_fields}
    own = {key: value for key, value in settings.items() if key not in skipped and key.startswith(prefix)}
    given = ", ".join(_code(f"{key.removeprefix(prefix)}={value}") for key, value in own.items())
    parts = [
        *map(_text, said),
        *([f"Weight {weight:g}."] if weight is not None else []),
        *([f"With {given}."] * bool(given)),
    ]
    return f"- {_code(name)}: " + " ".join(parts)


def _merged(facts: Record) -> Iterator[str]:
    yield (
        f"The adapter {_code(facts['adapter'])} is merged into {_code(facts['base'])} in {facts['dtype']}. Over a fixed "
        f"sample of tokens the log-probabilities of the merged model are within {facts['difference']['max']:.1e} nats of "
        f"the adapter's ({facts['difference']['mean']:.1e} on average; the adapter itself changes them by "
        f"{facts['moved']['mean']:.1e}). Fingerprints:"
    )
    yield _table(("of", "fingerprint"), [(name, _cell(mark)) for name, mark in facts["fingerprints"].items()])


def _results(metrics: Mapping[str, Any]) -> str:
    """The last figures by name, those of the evaluation first."""
    held = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
    step = {name: value for name, value in metrics.items() if not name.startswith("eval_")}
    rows = [(_cell(name), *(_figure(part.get(name, "")) for part in (held, step))) for name in {**held, **step}]
    return _table(("metric", "held out", "last step"), rows)


def _data(data: Record) -> Iterator[str]:
    """Rows and tokens that came in, and what became of them."""
    ledger = data["ledger"]
    every = {"all": ledger} if len(ledger["sources"]) > 1 else {}
    rows = [_counted(name, counts) for name, counts in {**ledger["sources"], **every}.items()]
    yield _table(("source", "rows in", "used", "dropped", "tokens in", "scored"), rows)
    dropped = [f"{count:,} {_text(reason)}" for reason, count in ledger["rows_dropped"].items()]
    told = f"{data['records']:,} records were trained on, {data['held_out']:,} held out to evaluate on."
    yield told + (f" Dropped: {', '.join(dropped)}." if dropped else "")


def _counted(name: str, counts: Record) -> tuple[str, ...]:
    tokens = counts["tokens"] or {"in": 0, "scored": 0}
    numbers = (
        counts["rows_in"],
        counts["rows_used"],
        sum(counts["rows_dropped"].values()),
        tokens["in"],
        tokens["scored"],
    )
    return ("all" if name == "all" else _cell(name), *(f"{number:,}" for number in numbers))


def _reproduce(record: Record) -> Iterator[str]:
    yield _fenced("bash", command(record["settings"]) + _then(record))
    spent = f" in {record['seconds']:,.0f} seconds" if "seconds" in record else ""
    versions = ", ".join(f"{library} {number}" for library, number in record["versions"].items())
    yield f"Run on {_text(record['device'])}{spent}, layout {_text(record['layout'])}, with {_text(versions)}."


def _then(record: Record) -> str:
    if "merge" not in record:
        return ""
    facts = record["merge"]
    return f"\nsoftq merge {shlex.quote(facts['adapter'])} --output MERGED --dtype {facts['dtype']}"


def _use(record: Record) -> str:
    if record.get("reward_model"):
        return REWARD
    adapter = _adapter(record)
    kind = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    imports = ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer"]
    return "\n".join(
        [
            *(imports if adapter else ["from transformers import AutoModelForCausalLM, AutoTokenizer"]),
            "",
            'name = "."  # this directory, or its name on the hub',
            f"model = {kind}.from_pretrained(name)",
            "tokenizer = AutoTokenizer.from_pretrained(name)",
        ]
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: words to the left, numbers to the right."""
    rule = [":--", *["--:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, rule, *rows])


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    """Prose in which nothing is a mark."""
    return _MARKS.sub(r"\\\1", _seen(value))


def _code(value: Any) -> str:
    """A code span, whatever backticks it holds (CommonMark 6.1)."""
    text = _seen(value)
    fence = "`" * (_longest(text) + 1)
    pad = " " if text[:1] in {"`", " "} or text[-1:] in {"`", " "} else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _cell(value: Any) -> str:
    """A code span in a table, where a bar would end the cell."""
    return _code(value).replace("|", r"\|")


def _fenced(language: str, text: str) -> str:
    fence = "`" * max(3, _longest(text) + 1)
    return f"{fence}{language}\n{_UNSEEN.sub(_unless_line, text)}\n{fence}"


def _unless_line(sign: re.Match[str]) -> str:
    return sign[0] if sign[0] == "\n" else _escape(sign)


def _longest(text: str) -> int:
    """Of its runs of backticks."""
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _quoted(value: Any) -> str:
    """A value that YAML reads as what it is."""
    return _UNSEEN.sub(_escape, json.dumps(value, ensure_ascii=False))


def _seen(value: Any) -> str:
    """On one line, with every sign that can not be seen written out."""
    return _UNSEEN.sub(_escape, str(value))


def _escape(sign: re.Match[str]) -> str:
    return f"\\u{ord(sign[0]):04x}"
