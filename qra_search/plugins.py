"""Plug-ins by name: entry points of qra.strategies, .evaluators, .backends, .tasks, .exporters and .names."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError, create_model

from qra_search.errors import BadInput, format_error, shorten

DEFAULT_EVALUATOR = "quantized-lora"
IN_MEMORY_PREFIX = "in-memory:"
"""What stands in a config for a model or rows that were given as an object begins so; its type follows."""
Kind = Literal["strategies", "evaluators", "backends", "tasks", "exporters", "names"]
_SINGULAR = {
    "strategies": "strategy",
    "evaluators": "evaluator",
    "backends": "backend",
    "tasks": "task",
    "exporters": "export format",
    "names": "check of names",
}


class UnknownName(BadInput):
    """No plug-in of that name; the message gives the nearest and all names."""


def list_names(kind: Kind) -> list[str]:
    return sorted(_find_entry_points(kind))


def find_entry_point(kind: Kind, name: str) -> importlib.metadata.EntryPoint:
    """The entry point of a plug-in, whose code is not imported; raises UnknownName if there is none."""
    found = _find_entry_points(kind)
    if name not in found:
        raise UnknownName(describe_unknown(_SINGULAR[kind], name, found))
    return found[name]


def load(kind: Kind, name: str) -> Any:
    """The object that a plug-in name stands for; raises UnknownName, or BadInput if it cannot be loaded."""
    entry = find_entry_point(kind, name)
    try:
        return entry.load()
    except Exception as error:  # another's code may raise anything
        what = f"{_SINGULAR[kind]} {name!r} ({entry.value})"
        raise BadInput(f"the {what} cannot be loaded: {format_error(error)}") from error


def check_names(evaluator: str, *, model: str | None = None, task: str | None = None) -> None:
    """Raise BadInput for a model or a task that an evaluator does not know, before the evaluator is imported.

    An evaluator says so by an entry point of its name in `qra.names`; without one nothing is checked.
    """
    if evaluator in list_names("names"):
        load("names", evaluator)(model=model, task=task)


def is_object_path(text: str) -> bool:
    return text.rpartition(":")[0].endswith(".py")


def load_object(text: str) -> Any:
    """The object of `FILE.py:NAME` or `module:NAME`; raises BadInput if it cannot be loaded."""
    place, _, name = text.rpartition(":")
    if not place or not name:
        raise BadInput(
            f"{text!r} does not name an object: write FILE.py:NAME or module:NAME, such as mine.py:my_metric"
        )
    is_file = place.endswith(".py")
    try:
        module = _load_file(Path(place)) if is_file else importlib.import_module(place)
    except Exception as error:  # another's code may raise anything
        what = place if is_file else f"module {place}"
        raise BadInput(f"{what} could not be loaded: {format_error(error)}") from error
    if not hasattr(module, name):
        near = suggest_names(name, [known for known in vars(module) if not known.startswith("_")])
        raise BadInput(f"{place} defines no {name!r}: {near}give the name of a class or function in it")
    return getattr(module, name)


def _load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"qra_file_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the names in its annotations
    spec.loader.exec_module(module)
    return module


def describe_unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One line that says a name is unknown, gives the nearest, and lists what there is."""
    known = sorted(known)
    choices = f"choose one of {', '.join(known)}" if known else "there are none"
    return f"unknown {what} {name!r}: {suggest_names(name, known)}{choices}"


def call_with_options(
    factory: Callable[..., Any], what: str, options: Mapping[str, Any], **others: Any
) -> Any:
    """What a factory makes of options, as the types that its parameters are annotated with: `"8"` is 8 for an `int`.

    A factory that takes any keyword is asked itself whether it knows one.

    Raises:
        BadInput: an option that it does not take, or not with this value.
    """
    parameters = inspect.signature(factory).parameters.values()
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in others]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in sorted(set(options) - set(known)):
            raise BadInput(describe_unknown(f"option of {what}:", name, known))
    try:
        kinds = typing.get_type_hints(factory if inspect.isroutine(factory) else factory.__init__)
    except NameError:  # an annotation that only type checkers resolve
        kinds = {}
    settings = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())
    fields: Any = {name: (kinds.get(name, Any), ...) for name in options}
    try:
        converted = dict(create_model("Options", __config__=settings, **fields)(**options))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        reason = first["msg"][:1].lower() + first["msg"][1:]
        raise BadInput(f"option {name!r} of {what} is {shorten(options[name])}: {reason}") from None
    try:
        return factory(**others, **converted)
    except TypeError as error:
        raise BadInput(f"{what} cannot be called with these options: {error}") from None


def suggest_names(name: object, known: Iterable[str], most: int = 3) -> str:
    """`did you mean a or b? ` with the nearest of the known names, at most so many; empty if none is near.

    Those that a name is the initials of are nearest: `lr` of `learning_rate`.
    """
    known = list(known)
    short = [k for k in known if "_" in k and "".join(part[:1] for part in k.split("_")) == name]
    near = (short or difflib.get_close_matches(str(name), known, n=most, cutoff=0.5))[:most]
    return f"did you mean {' or '.join(near)}? " if near else ""


@functools.cache
def _find_entry_points(kind: Kind) -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=f"qra.{kind}")}
