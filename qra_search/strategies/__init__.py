"""Search strategies by name; one file each."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from qra_search import plugins
from qra_search.errors import BadInput, bad_input, shortened, wrong_type
from qra_search.log.state import StudyState
from qra_search.strategies.base import Estimates, Strategy, average_replicates

__all__ = ["Estimates", "Strategy", "StudyState", "make_strategy", "average_replicates"]


def make_strategy(spec: str | Strategy | type[Strategy], /, **options: Any) -> Strategy:
    """A strategy from its name, its class, or itself.

    Args:
        options: keyword arguments of its constructor.

    Raises:
        BadInput: none of these, or an option that the strategy does not take, or not with this value.
        UnknownName: no strategy of that name.
    """
    if isinstance(spec, Strategy):
        if options:
            raise BadInput(
                f"options are given ({', '.join(options)}), and the strategy is an object already: give its name or "
                "class, or construct it with them"
            )
        return spec
    if isinstance(spec, type) and issubclass(spec, Strategy):
        name, factory = spec.name or spec.__name__, spec
    elif isinstance(spec, str):
        name, factory = spec, plugins.load("strategies", spec)
    else:
        raise wrong_type("strategy", spec, "the name of a strategy, or a Strategy, is needed")
    converted = _convert_options(factory, f"strategy {name!r}", options)
    try:
        with bad_input():
            strategy: Strategy = factory(**converted)
    except TypeError as error:
        raise BadInput(f"strategy {name!r} does not take these options: {error}") from None
    strategy.name = name
    return strategy


def _convert_options(factory: Callable[..., Any], what: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the types that a factory's parameters are annotated with: `"8"` as 8 for an `int`.

    A factory that takes any keyword is asked itself whether it knows one.
    """
    parameters = inspect.signature(factory).parameters.values()
    known = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in sorted(set(options) - set(known)):
            if not known:
                raise BadInput(f"unknown option of {what}: {name!r}: it takes none")
            raise BadInput(plugins.unknown_message(f"option of {what}:", name, known))
    try:
        kinds = typing.get_type_hints(factory if inspect.isroutine(factory) else factory.__init__)
    except NameError:  # an annotation that only type checkers resolve
        kinds = {}
    converted = dict(options)
    for name, value in options.items():
        try:
            converted[name] = TypeAdapter(kinds.get(name, Any)).validate_python(value)
        except PydanticSchemaGenerationError:  # a class of the strategy's own: it is asked itself
            continue
        except ValidationError as error:
            text = error.errors()[0]["msg"]
            raise BadInput(f"option {name!r} of {what} is {shortened(value)}: {text[:1].lower()}{text[1:]}") from None
    return converted
