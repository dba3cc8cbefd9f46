"""Search strategies by name; one file each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qra_search import plugins
from qra_search.errors import BadInput, bad_input, needed
from qra_search.log.state import StudyState
from qra_search.strategies.base import Estimates, Strategy, mean_estimates
from qra_search.strategies.options import typed_options

__all__ = ["Estimates", "Strategy", "StudyState", "make_strategy", "mean_estimates"]


def make_strategy(spec: str | Strategy | type[Strategy], /, **options: Any) -> Strategy:
    """A strategy from its name (`additive`, or `optuna:tpe` with an argument after the colon), its class, or itself.

    Args:
        options: keyword arguments of its constructor.

    Raises:
        BadInput: none of these, or an option that the strategy does not take, or not with this value.
        UnknownName: no strategy of that name.
    """
    if isinstance(spec, Strategy):
        if options:
            raise BadInput(
                f"options are given ({', '.join(options)}), and the strategy is made already: give its name or class, "
                "or make it with them"
            )
        return spec
    if isinstance(spec, type) and issubclass(spec, Strategy):
        strategy = _made(spec.name or spec.__name__, spec, (), options)
        strategy.name = strategy.name or spec.__name__
        return strategy
    if not isinstance(spec, str):
        raise needed("strategy", spec, "the name of a strategy, or a Strategy, is needed")
    name, _, argument = spec.partition(":")
    strategy = _made(name, plugins.load("strategies", name), (argument,) if argument else (), options)
    strategy.name = spec
    return strategy


def _made(name: str, factory: Any, args: tuple[str, ...], options: Mapping[str, Any]) -> Strategy:
    typed = typed_options(factory, f"strategy {name!r}", options)
    try:
        with bad_input():
            strategy: Strategy = factory(*args, **typed)
    except TypeError as error:
        raise BadInput(f"strategy {name!r} does not take these options: {error}") from None
    return strategy
