"""How spaces and results show themselves: by formatters that a module above them registers."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

T = TypeVar("T")
_formatters: dict[type, tuple[Callable[[Any], Any], Callable[[Any], str] | None]] = {}
_modules: list[str] = []


class Displayed:
    """Shows itself as its formatter says, in a terminal through rich and in a notebook as HTML; else as its repr."""

    __slots__ = ()

    def __rich__(self) -> Any:
        rich, _ = _formatter(type(self))
        return rich(self)

    def _repr_html_(self) -> str | None:
        _, html = _formatter(type(self))
        return None if html is None else html(self)


def register(kind: type[T], rich: Callable[[T], Any], html: Callable[[T], str] | None = None) -> None:
    """Set how objects of a type and its subclasses are shown.

    Args:
        rich: gives something that rich can print.
        html: gives the HTML for a notebook; None: a notebook shows the repr.
    """
    _formatters[kind] = rich, html


def register_from(module: str) -> None:
    """Name a module that calls `register`; it is imported when something is first shown."""
    _modules.append(module)


def _formatter(kind: type) -> tuple[Callable[[Any], Any], Callable[[Any], str] | None]:
    while _modules:
        import_module(_modules.pop())
    return next((_formatters[k] for k in kind.__mro__ if k in _formatters), (repr, None))
