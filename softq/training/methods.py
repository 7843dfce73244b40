"""From a method's name to a method, and from its signature to its settings."""

import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from pydantic import BaseModel, ConfigDict, PydanticSchemaGenerationError, create_model

from softq.objectives import METHODS
from softq.objectives.sums import HOLDS
from softq.records import Method

MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def method_names(name: str) -> list[str]:
    """The summands of a method's name: "dpo+sft" -> ["dpo", "sft"]."""
    return [part.strip() for part in name.split("+")]


def maker(name: str) -> Callable[..., Any]:
    """What makes a method: an entry of METHODS, or `package.module:function`."""
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise ValueError(
            f"no method {name!r}{nearest(name, METHODS)}; `softq methods` lists them, and package.module:function is one too"
        )
    module, function = name.split(":", 1)
    try:
        make = vars(import_module(module)).get(function)
    except (ImportError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"method {name!r}: {error}; the module must be importable from the current directory"
        ) from error
    if not callable(make):
        raise ValueError(f"method {name!r}: module {module} has no function {function!r}")
    return make


def method_settings(name: str) -> type[BaseModel]:
    """A method's settings as a schema, read from the signature of what makes it. Typed, so strings become numbers."""
    fields: dict[str, Any] = {}
    try:
        parameters = inspect.signature(maker(name), eval_str=True).parameters.values()
        for parameter in parameters:
            if parameter.annotation is parameter.empty or parameter.kind in MANY:
                lacks = "stands for many; each needs a name" if parameter.kind in MANY else "needs a type annotation"
                raise ValueError(f"method {name!r}: parameter {parameter.name!r} {lacks}")
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (parameter.annotation, default)
        return create_model(f"{name} settings", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields)
    except (NameError, PydanticSchemaGenerationError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(f"method {name!r}: the type of a parameter can not be read: {said}") from error


def schema(name: str) -> dict[str, type[BaseModel]]:
    """Prefix -> settings: the method's own stand flat beside a run's; those of a sum stand under each summand's name."""
    names = method_names(name)
    if len(names) == 1:
        return {"": method_settings(name)}
    if len(set(names)) < len(names):
        raise ValueError(f"method {name!r} names a summand twice")
    return {f"{part}.": method_settings(part) for part in names}


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean …?', or nothing."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def made(name: str, values: dict[str, Any]) -> Method:
    """The method, made with these settings."""
    method = maker(name)(**values)
    if not isinstance(method, Method):
        raise ValueError(f"method {name!r} returned {type(method).__name__}; expected a softq.Method")
    if method.takes not in HOLDS:
        raise ValueError(f"method {name!r} takes {method.takes!r}; expected one of {', '.join(HOLDS)}")
    return method
