"""A JSON Schema of softq's YAML files, for editors: every setting of a run, and of each method only its own."""

import inspect
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import BaseModel, TypeAdapter

from softq.data.sources import DataSource
from softq.objectives import METHODS
from softq.training.methods import method_settings
from softq.training.settings import Settings

Schema = dict[str, Any]

OWN = r"[A-Za-z_][\w.]*:\w+"  # package.module:function
ANY: Schema = {"type": ["object", "null"]}
NUMBERS: Schema = {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 2}


def json_schema() -> Schema:
    """Draft 2020-12. A file need not be whole: flags may add what is missing, the method too.

    Names are spelled with underscores, as --print-config writes them; `softq train` also reads them with hyphens.
    """
    methods = {name: _properties(method_settings(name), f" ({_first(name)})") for name in METHODS}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "softq train --config",
        "type": "object",
        "properties": {"method": _method(methods), **_properties(Settings), **_wider()},
        "allOf": [*(_flat(name, own) for name, own in methods.items()), *_others(methods)],
        "unevaluatedProperties": False,
    }


def _properties(model: type[BaseModel], about: str = "") -> dict[str, Schema]:
    """The settings of a model by name, without pydantic's titles."""
    return {
        name: {**_bare(schema), "description": (schema.get("description") or name) + about}
        for name, schema in model.model_json_schema()["properties"].items()
    }


def _bare(schema: Any) -> Any:
    if isinstance(schema, Mapping):
        return {key: _bare(value) for key, value in schema.items() if key != "title"}
    return [_bare(item) for item in schema] if isinstance(schema, list) else schema


def _first(name: str) -> str:
    """The first line of a method's documentation."""
    return (inspect.getdoc(METHODS[name]) or name).split("\n")[0]


def _wider() -> dict[str, Schema]:
    """What a file may spell in more ways than one."""
    hints = {name: TypeAdapter(hint).json_schema() for name, hint in get_type_hints(DataSource).items()}
    entry = {"type": "object", "properties": hints, "required": ["path"], "additionalProperties": False}
    one: Schema = {"anyOf": [{"type": "string"}, entry]}
    run = _properties(Settings)
    several = {
        name: {
            "description": run[name]["description"],
            "anyOf": [*one["anyOf"], {"type": "array", "items": one, "minItems": run[name].get("minItems", 0)}],
        }
        for name in ("data", "eval_data")
    }
    pairs: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
    listed = {key: run["rename"][key] for key in ("type", "items")}
    models = {"description": run["models"]["description"], "anyOf": [{"type": "string"}, pairs]}
    return {
        **several,
        "models": models,
        "rename": {"description": run["rename"]["description"], "anyOf": [listed, pairs]},
    }


def _method(methods: Mapping[str, Mapping[str, Schema]]) -> Schema:
    """A name, a sum of names, a function of the user's own, or a list of {name: settings, weight: w}."""
    part = f"({'|'.join(methods)}|{OWN})"
    settings = {
        name: {"description": _first(name), **ANY, "properties": own, "additionalProperties": False}
        for name, own in methods.items()
    }
    item = {
        "type": "object",
        "properties": {"weight": {"type": "number", "minimum": 0}, **settings},
        "patternProperties": {f"^{OWN}$": ANY},
        "additionalProperties": False,
        "if": {"required": ["weight"]},
        "then": {"minProperties": 2, "maxProperties": 2},
        "else": {"minProperties": 1, "maxProperties": 1},
    }
    return {
        "description": "what is trained with: `softq methods`",
        "anyOf": [
            *({"const": name, "description": _first(name)} for name in methods),
            {"type": "string", "pattern": f"^{OWN}$", "description": "package.module:function"},
            {"type": "string", "pattern": rf"^{part}( *\+ *{part})+$", "description": "a sum, such as dpo+sft"},
            {"type": "array", "items": item, "minItems": 1},
        ],
    }


def _flat(name: str, own: Mapping[str, Schema]) -> Schema:
    """A method's settings: beside the run's where it stands alone, under its name in a sum."""
    within = {"properties": {f"{name}.{key}": schema for key, schema in own.items()}}
    return {
        "if": _says({"const": name}),
        "then": {"properties": own},
        "else": {"if": _says({"type": "string", "pattern": rf"(^|\+) *{name} *(\+|$)"}), "then": within},
    }


def _others(methods: Mapping[str, Mapping[str, Schema]]) -> list[Schema]:
    """The weights of sums; any settings for a function of the user's own, and for a file that leaves the method out."""
    every = {key: True for own in methods.values() for key in own}
    dotted = {f"{name}.{key}": True for name, own in methods.items() for key in own}
    weighted = {"weights": {"description": "of the summands", **NUMBERS}}
    return [
        {"if": _says({"type": "string", "pattern": r"\+"}), "then": {"properties": weighted}},
        {"if": _says({"type": "string", "pattern": f"^{OWN}$"}), "then": {"additionalProperties": True}},
        {
            "if": _says({"type": "string", "pattern": r"\+.*:|:.*\+"}),
            "then": {"patternProperties": {rf"^{OWN}\.\w+$": True}},
        },
        {
            "if": {"not": {"required": ["method"]}},
            "then": {"properties": {**every, **dotted, **weighted}},
        },
    ]


def _says(method: Schema) -> Schema:
    return {"properties": {"method": method}, "required": ["method"]}
