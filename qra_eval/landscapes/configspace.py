"""A search space as one of ConfigSpace, for optimizers of other packages, and their configurations as plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qra_search.errors import BadInput
from qra_search.schemas import Plan
from qra_search.space.space import SearchSpace

if TYPE_CHECKING:
    import ConfigSpace


def make_configuration_space(space: SearchSpace, seed: int | None = None) -> ConfigSpace.ConfigurationSpace:
    """A `ConfigurationSpace` with the bits and the rank of every group, and the space's extra parameters, as ordinals.

    Names are `bits:GROUP`, `rank:GROUP` and the names of the extra parameters. A memory budget is not part of it: check
    `space.memory_bytes(make_plan(space, configuration))`.

    Raises:
        BadInput: ConfigSpace is not installed.
    """
    try:
        from ConfigSpace import ConfigurationSpace, OrdinalHyperparameter
    except ImportError as error:
        raise BadInput("ConfigSpace is not installed: pip install ConfigSpace") from error
    parameters = []
    for group in space.groups:
        bits = [name for name in space.bits if group.bits is None or name in group.bits]
        parameters.append(OrdinalHyperparameter(f"bits:{group.name}", bits))
        parameters.append(OrdinalHyperparameter(f"rank:{group.name}", list(group.ranks or space.ranks)))
    for name, parameter in space.extra.items():
        parameters.append(
            OrdinalHyperparameter(name, list(parameter.values), default_value=parameter.default)
        )
    made = ConfigurationSpace(seed=seed)
    made.add(parameters)
    return made


def make_plan(space: SearchSpace, configuration: Mapping[str, Any]) -> Plan:
    plan = Plan(
        tuple(configuration[f"bits:{group.name}"] for group in space.groups),
        tuple(configuration[f"rank:{group.name}"] for group in space.groups),
        tuple((name, configuration[name]) for name in space.extra),
    )
    space.encode(plan)
    return plan
