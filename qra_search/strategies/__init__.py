"""Search strategies by name; one file each."""

from __future__ import annotations

from typing import Any

from qra_search import plugins
from qra_search.errors import BadInput, convert_to_bad_input, wrong_type
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
        name = spec.name or spec.__name__
        factory = spec
    elif isinstance(spec, str):
        name = spec
        factory = plugins.load("strategies", spec)
    else:
        raise wrong_type("strategy", spec, "the name of a strategy, or a Strategy, is needed")
    with convert_to_bad_input():
        strategy: Strategy = plugins.call_with_options(factory, f"strategy {name!r}", options)
    strategy.name = name
    return strategy
