"""Conformance vectors: what each method makes of small steps, and where it ends, for any library in any language.

conformance/README.md is the format, field by field. `vectors` makes the content of conformance/vectors.json, `entries` reads the
file as it is shipped, and `worst` says how far a method is from an entry.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softq.mdp.readouts import LOGP
from softq.mdp.tabular import TokenTree, along, token_tree
from softq.objectives import METHODS
from softq.objectives.policy_gradient import grpo
from softq.objectives.sums import weighted_sum
from softq.records import COLUMNS, Batch, FixedPoint, Labels, Method, Pairs, Scored, Tokens, implicit, no_credit, valued
from softq.training.loop import with_columns
from softq.training.plan import losses
from softq.verify.contract import FAMILIES, steps
from softq.verify.populations import Population, population
from softq.verify.tables import slope

Entry = Mapping[str, Any]

VERSION = 1
ABOUT = (
    "Conformance vectors, made by softq's lab in float64; README.md beside this file says what each field is. Log-probabilities "
    "in nats, one list a row, one number an action. L=sum_t log pi/ref, m=L_w-L_l, len=number of actions, h(x)=-log sigmoid(x), "
    "s=sigmoid, LP=sum_t log pi, LPref=sum_t log ref. Differences are |found-expected|/max(1,|expected|); suggested tolerance "
    "1e-12 in float64, 1e-5 in float32."
)
MAKERS: Mapping[str, Callable[..., Method]] = {**METHODS, "grpo": grpo}
OTHERS = ("ref", "dpo", "reverse")  # models beside the policy whose logits an entry may give
SHIPPED = Path(__file__).with_name("vectors.json")  # in a wheel
CHECKOUT = Path(__file__).parents[2] / "conformance" / "vectors.json"


def entries() -> list[Entry]:
    """The entries of the shipped file."""
    path = SHIPPED if SHIPPED.is_file() else CHECKOUT
    return json.loads(path.read_text(encoding="utf-8"))["entries"]


def vectors() -> dict[str, Any]:
    """The content of conformance/vectors.json, always the same."""
    made = [entry | {"expected": given(entry, method_of(entry))} for entry in [*steps(), *_populations()]]
    return {"about": ABOUT, "version": VERSION, "entries": made}


def method_of(entry: Entry) -> Method:
    """The method that an entry speaks of, at its parameters; "a+b" is a weighted sum."""
    names, parameters = entry["method"].split("+"), entry["parameters"]
    if len(names) == 1:
        return MAKERS[names[0]](**parameters)
    summands = [MAKERS[name](**parameters[name]) for name in names]
    return weighted_sum(list(zip(summands, parameters["weights"], strict=True)))


def batch_from(entry: Entry, dtype: torch.dtype = torch.float64) -> Batch:
    """The inputs of an entry as a step. The prompt of a row is one token: its number, above the vocabulary."""
    inputs = entry["inputs"]
    action = _action(inputs)
    prompt = torch.tensor(inputs["prompt"])
    ids = torch.zeros(len(action), action.shape[1] + 1, dtype=torch.int64)
    ids[:, 0] = prompt + inputs.get("vocabulary", 0)
    if "tokens" in inputs:
        ids[:, 1:] = _tensor(inputs["tokens"], action, torch.int64)
    tokens = Tokens(ids, action, torch.ones(len(action), dtype=torch.bool), prompt)
    feedback = None
    if "chosen" in inputs:
        feedback = Pairs(torch.tensor(inputs["chosen"]), torch.tensor(inputs["rejected"]))
    if "good" in inputs:
        row, mismatched = (torch.tensor(inputs[name], dtype=torch.int64) for name in ("row", "mismatched"))
        feedback = Labels(row, torch.tensor(inputs["good"]), mismatched)
    columns = {name: _tensor(inputs[name], action, dtype) for name in COLUMNS if name in inputs and name != "ref_logp"}
    return Batch(tokens, feedback, columns)


def scored_from(entry: Entry, method: Method, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Scored]:
    """What the loss differentiates by, and the scores made of it: log-probs [B, T] as they are given, or logits [B, T, V]."""
    inputs, batch = entry["inputs"], batch_from(entry, dtype)
    action = batch.tokens.action
    names = {readout.name for readout in method.needs}
    if "value" in inputs:
        leaf = _tensor(inputs["value"], action, dtype).requires_grad_()
        return leaf, {"value": leaf}
    if "logits" not in inputs:
        leaf = _tensor(inputs["logp"], action, dtype).requires_grad_()
        return leaf, {"logp": leaf} | {name: _tensor(inputs[name], action, dtype) for name in names}
    leaf = _tensor(inputs["logits"], action, dtype).requires_grad_()
    logits = {"policy": leaf} | {
        name: _tensor(inputs[f"{name}_logits"], action, dtype) for name in OTHERS if f"{name}_logits" in inputs
    }
    seen = {name: of[action].log_softmax(-1) for name, of in logits.items()}
    taken = batch.tokens.ids[:, 1:][action]
    where = action.nonzero(as_tuple=True)
    empty = torch.zeros(action.shape, dtype=dtype)
    return leaf, {r.name: empty.index_put(where, r.fn(seen, taken)) for r in (LOGP, *method.needs)}


def given(entry: Entry, method: Method, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """What a method gives on the inputs of an entry, in the form of its `expected`. Populations are always float64."""
    if "population" in entry["inputs"]:
        return {"fixed_points": [_rests(entry, method, policy) for policy in _stated(entry, method)]}
    batch = batch_from(entry, dtype)
    leaf, scored = scored_from(entry, method, dtype)
    credit = {} if method.credit is no_credit else method.credit(_before(method, leaf, batch), batch)
    inputs, memory = entry["inputs"], method.memory
    told = {name: torch.tensor(inputs[name], dtype=dtype) for name in memory if name in inputs}
    batch = with_columns(batch, {**memory, **told, **credit})
    weights = [term.weigh(batch) for term in method.terms]
    loss = losses(method, scored, batch, weights)
    (gradient,) = torch.autograd.grad(loss, leaf)
    action = batch.tokens.action

    def by_term(values: Sequence[Tensor]) -> dict[str, Any]:
        return {term.name: _listed(each, action) for term, each in zip(method.terms, values, strict=True)}

    return {
        "loss": loss.item(),
        "losses": by_term([term.loss(scored, batch) for term in method.terms]),
        "weights": by_term(weights),
        "gradient": _listed(gradient, action),
        "rewards": _listed(method.beta * (method.reward if valued(method) else implicit)(scored, batch), action),
        "scores": _listed(method.beta * method.reward(scored, batch), action),
        **{name: _listed(credit[name], action) for name in ("advantage", "value_target") if name in credit},
    }


def _before(method: Method, leaf: Tensor, batch: Batch) -> Scored:
    """What credit is made of: the values, as they are, or the log-probs of the policy that sampled."""
    return {"value": leaf.detach()} if valued(method) else {"logp": batch.columns["old_logp"]}


def worst(entry: Entry, method: Method, dtype: torch.dtype = torch.float64) -> float:
    """The largest |given - expected| / max(1, |expected|) over an entry; inf where a number is nan or missing.

    At a fixed point the gradient of the whole population, with respect to a table of logits, counts too: it is to be 0.
    """
    off = [_apart(given(entry, method, dtype), entry["expected"])]
    for point in entry["expected"].get("fixed_points", ()):
        whole = _whole(entry)
        policy = _table(whole.tree, whole.batch.tokens, point["logp"])
        gradient = slope(method, whole.at(policy), whole.batch).gradient
        off.append(_apart(gradient.tolist(), torch.zeros_like(gradient).tolist()))
    return max(off)


def written(content: Any, indent: str = "") -> str:
    """JSON in which a list of numbers is one line, so that a change is seen where it is."""
    if isinstance(content, Mapping):
        inner = [f"{indent} {json.dumps(key)}: {written(value, indent + ' ')}" for key, value in content.items()]
        return "{\n" + ",\n".join(inner) + f"\n{indent}}}" if inner else "{}"
    if isinstance(content, list) and any(isinstance(value, list | Mapping) for value in content):
        inner = [f"{indent} {written(value, indent + ' ')}" for value in content]
        return "[\n" + ",\n".join(inner) + f"\n{indent}]"
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def _populations() -> Iterator[dict[str, Any]]:
    """The entries that are a whole population and where a method comes to rest on it, without what is expected."""
    for family in FAMILIES:
        entry = {
            "name": f"{family.name}/fixed point",
            "method": family.method,
            "formula": family.formula,
            "parameters": dict(family.parameters),
            "layout": "one log-probability per completion",
        }
        rest = method_of(entry).fixed_point
        if rest is not None:
            yield entry | {"inputs": _population_inputs(population(rest), rest)}


def _population_inputs(whole: Population, rest: FixedPoint) -> dict[str, Any]:
    tokens, columns = whole.batch.tokens, whole.batch.columns
    ended = whole.tree.next < 0
    inputs: dict[str, Any] = {
        "population": rest.population,
        "prompt": tokens.prompt.tolist(),
        "vocabulary": whole.tree.vocabulary,
        "end": next(
            (a for a in range(whole.tree.vocabulary) if bool(ended[:, a].all()) and not bool(ended.all())), None
        ),
        "tokens": _listed(tokens.ids[:, 1:], tokens.action),
        "ref_logp": _listed(whole.scored()["ref_logp"], tokens.action),
    }
    if isinstance(whole.batch.feedback, Pairs):
        inputs |= {"chosen": whole.batch.pairs.chosen.tolist(), "rejected": whole.batch.pairs.rejected.tolist()}
    read = {model for readout in rest.reads for model in readout.models}
    others = {name: logits for name, logits in (whole.others or {}).items() if name in read}
    inputs |= {
        f"{name}_logits": _listed(_states(whole.tree, logits, tokens), tokens.action) for name, logits in others.items()
    }
    return inputs | {name: column.tolist() for name, column in columns.items()}


def _whole(entry: Entry) -> Population:
    """The population of an entry: the tree of its completions, and the reference as a table."""
    inputs, batch = entry["inputs"], batch_from(entry)
    prompts = sorted({(first,) for first in batch.tokens.ids[:, 0].tolist()})
    tree = token_tree(prompts, inputs["vocabulary"], batch.tokens.action.shape[1], inputs["end"])
    given = {name: inputs[f"{name}_logits"] for name in OTHERS if f"{name}_logits" in inputs}
    others = {name: _table(tree, batch.tokens, rows) for name, rows in given.items()}
    return Population(tree, _table(tree, batch.tokens, inputs["ref_logp"]), batch, others or None)


def _stated(entry: Entry, method: Method) -> list[Tensor]:
    if method.fixed_point is None:
        raise ValueError(f"{entry['name']} is about a fixed point, but the method states none")
    return _whole(entry).targets(method.fixed_point)


def _rests(entry: Entry, method: Method, policy: Tensor) -> dict[str, Any]:
    whole = _whole(entry)
    tokens = whole.batch.tokens
    logp = along(whole.tree, policy, tokens)
    return {
        "log_policy": logp.sum(-1).tolist(),
        "logp": _listed(logp, tokens.action),
        "loss": slope(method, whole.at(policy), whole.batch).loss.item(),
    }


def _table(tree: TokenTree, tokens: Tokens, rows: Sequence[Sequence[Any]]) -> Tensor:
    """[S, V] of what is given along all completions: a number an action (the inverse of `along`), or a list a state."""
    table = torch.zeros(tree.next.shape, dtype=torch.float64)
    number = {prefix: s for s, prefix in enumerate(tree.prefixes)}
    for ids, row in zip(tokens.ids.tolist(), rows, strict=True):
        for t, value in enumerate(row):
            where = slice(None) if isinstance(value, list) else ids[t + 1]
            table[number[tuple(ids[: t + 1])], where] = torch.tensor(value, dtype=table.dtype)
    return table


def _states(tree: TokenTree, table: Tensor, tokens: Tokens) -> Tensor:
    """[B, T, V] the rows of a table [S, V] that the completions pass through."""
    columns = [along(tree, table[:, [a]].expand_as(table), tokens) for a in range(tree.vocabulary)]
    return torch.stack(columns, -1)


def _action(inputs: Mapping[str, Any]) -> Tensor:
    """[B, T] bool: rows are as long as their lists."""
    given = next(name for name in ("tokens", "logp", "value") if name in inputs)
    length = torch.tensor([len(row) for row in inputs[given]])
    return torch.arange(int(length.max()))[None] < length[:, None]


def _tensor(values: Sequence[Any], action: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers as they are, or one list an action of each row, padded with 0."""
    if not isinstance(values[0], list):
        return torch.tensor(values, dtype=dtype)
    flat = torch.tensor([number for row in values for number in row], dtype=dtype)
    padded = flat.new_zeros(*action.shape, *flat.shape[1:])
    padded[action] = flat
    return padded


def _listed(values: Tensor, action: Tensor) -> list[Any]:
    """A list of numbers, or of the numbers of each row's actions; never -0."""
    values = values.detach() + 0
    if values.shape[:2] != action.shape:
        return values.tolist()
    return [row[mask].tolist() for row, mask in zip(values, action, strict=True)]


def _apart(found: Any, expected: Any) -> float:
    """The largest relative difference of two structures of numbers; inf where they are not built alike, or at nan."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping) and found.keys() == expected.keys():
        return max((_apart(found[key], expected[key]) for key in expected), default=0.0)
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        return max((_apart(*pair) for pair in zip(found, expected, strict=True)), default=0.0)
    if isinstance(expected, int | float) and isinstance(found, int | float):
        off = abs(found - expected) / max(1.0, abs(expected))
        return math.inf if math.isnan(off) else off
    return math.inf
