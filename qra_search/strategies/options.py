"""Options of a strategy, held against the names and types of its constructor's parameters before it is made."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from qra_search.errors import BadInput, shortened
from qra_search.plugins import unknown_message


def typed_options(factory: Callable[..., Any], what: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the types that a factory's parameters are annotated with: `"8"` as 8 for an `int`.

    A factory that takes any keyword is asked itself whether it knows one.

    Args:
        what: names the factory in messages, such as `strategy 'nsga2'`.

    Raises:
        BadInput: an option that it does not take (the message gives the nearest, and all), or not with this value.
    """
    parameters = inspect.signature(factory).parameters
    known = {n: p for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    rest = next((n for n, p in parameters.items() if p.kind is p.VAR_KEYWORD), None)
    unknown = sorted(set(options) - set(known)) if rest is None else []
    if unknown and not known:
        raise BadInput(f"unknown option of {what}: {unknown[0]!r}: it takes none")
    if unknown:
        raise BadInput(unknown_message(f"option of {what}:", unknown[0], known))
    hints = _hints(factory) if options else {}
    return {name: _typed(value, hints.get(name, hints.get(rest or "", Any)), name, what)
            for name, value in options.items()}  # fmt: skip


def _hints(factory: Any) -> dict[str, Any]:
    """Types of a factory's parameters by name; none if a name in them cannot be resolved, as one for mypy alone."""
    try:
        return typing.get_type_hints(factory if inspect.isroutine(factory) else factory.__init__)
    except NameError:
        return {}


def _typed(value: Any, kind: Any, name: str, what: str) -> Any:
    try:
        adapter = TypeAdapter(kind)
    except PydanticSchemaGenerationError:  # a class of the strategy's own: it is asked itself
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        text = error.errors()[0]["msg"]
        raise BadInput(f"option {name!r} of {what} is {shortened(value)}: {text[:1].lower()}{text[1:]}") from None
