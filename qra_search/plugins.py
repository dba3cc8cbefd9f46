"""Plug-ins by name: entry points of qra.strategies, .evaluators, .backends, .tasks and .exporters."""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
from collections.abc import Iterable
from typing import Any, Literal

from qra_search.errors import DISTRIBUTION, BadInput, describe

Kind = Literal[
    "strategies",
    "evaluators",
    "backends",
    "tasks",
    "exporters",
]
_SINGULAR = {
    "strategies": "strategy",
    "evaluators": "evaluator",
    "backends": "backend",
    "tasks": "task",
    "exporters": "export format",
}


class UnknownName(BadInput):
    """No plug-in of that name; the message gives the nearest and all names."""


def names(kind: Kind) -> list[str]:
    """Names of all installed plug-ins of a kind, sorted."""
    return sorted(_entry_points(kind))


def load(kind: Kind, name: str) -> Any:
    """The object that a plug-in name stands for.

    Raises:
        UnknownName: nothing of that name is installed.
        BadInput: it cannot be loaded.
    """
    found = _entry_points(kind)
    if name not in found:
        raise UnknownName(unknown_message(_SINGULAR[kind], name, found))
    try:
        return found[name].load()
    except Exception as error:  # another's code may raise anything
        what = f"{_SINGULAR[kind]} {name!r} ({found[name].value})"
        raise BadInput(f"the {what} cannot be loaded: {describe(error)}") from error


def unknown_message(what: str, name: str, known: Iterable[str]) -> str:
    """One line that says a name is unknown, gives the nearest, and lists what there is."""
    known = sorted(known)
    return (
        f"unknown {what} {name!r}: {did_you_mean(name, known)}"
        f"known are {', '.join(known) or f'none (is {DISTRIBUTION} installed?)'}"
    )


def did_you_mean(name: object, known: Iterable[str], most: int = 3) -> str:
    """`did you mean a or b? ` with the nearest of the known names, at most so many; empty if none is near.

    Those that a name is the initials of are nearest: `lr` of `learning_rate`.
    """
    known = list(known)
    short = [k for k in known if "_" in k and "".join(part[:1] for part in k.split("_")) == name]
    near = (short or difflib.get_close_matches(str(name), known, n=most, cutoff=0.5))[:most]
    return f"did you mean {' or '.join(near)}? " if near else ""


@functools.cache
def _entry_points(kind: Kind) -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=f"qra.{kind}")}
