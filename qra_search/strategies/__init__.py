"""Search strategies by name; one file each."""

from __future__ import annotations

import inspect
from typing import Any

from qra_search import plugins
from qra_search.errors import needed
from qra_search.log.state import StudyState
from qra_search.strategies.base import Estimates, Strategy, mean_estimates

__all__ = ["Estimates", "Strategy", "StudyState", "make_strategy", "mean_estimates"]


def make_strategy(spec: str | Strategy | type[Strategy], **options: Any) -> Strategy:
    """A strategy from its name (`additive`, or `optuna:tpe` with an argument after the colon), its class, or itself.

    Raises:
        BadInput: none of these.
        UnknownName: no strategy of that name.
        ValueError: an option that the strategy does not take.
    """
    if isinstance(spec, Strategy):
        return spec
    strategy: Strategy
    if isinstance(spec, type) and issubclass(spec, Strategy):
        strategy = spec(**options)
        strategy.name = strategy.name or spec.__name__
        return strategy
    if not isinstance(spec, str):
        raise needed("strategy", spec, "the name of a strategy, or a Strategy, is needed")
    name, _, argument = spec.partition(":")
    factory = plugins.load("strategies", name)
    args = (argument,) if argument else ()
    parameters = inspect.signature(factory).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for option in sorted(set(options) - set(parameters)):
            if not parameters:
                raise ValueError(f"unknown option of strategy {name!r}: {option!r}: it takes none")
            raise ValueError(plugins.unknown_message(f"option of strategy {name!r}:", option, parameters))
    try:
        strategy = factory(*args, **options)
    except TypeError as error:
        raise ValueError(f"strategy {name!r} does not take these options: {error}") from None
    strategy.name = spec
    return strategy
