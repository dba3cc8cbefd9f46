"""The search space of a model: its groups of linears, and what the backend offers for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from qra_backends.base import Backend

from qra_eval.models.linears import FoundLinear, Granularity, group_kind
from qra_search.config import SpaceConfig
from qra_search.space.groups import Group, Linear
from qra_search.space.levels import Level, LevelName
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import SearchSpace

ADAPTER_DTYPE = torch.bfloat16


def model_space(
    groups: Sequence[tuple[str, Sequence[FoundLinear]]],
    granularity: Granularity,
    config: SpaceConfig,
    backend: Backend,
    *,
    fixed_bytes: int,
) -> SearchSpace:
    """The space over named groups of linears.

    Args:
        granularity: that of the groups; the config's may be `auto`.
        fixed_bytes: bytes of everything that is not searched.
    """
    return SearchSpace(
        groups=tuple(
            Group(
                name=name,
                linears=tuple(
                    Linear(name=f.name, out_features=f.out_features, in_features=f.in_features) for f in members
                ),
                kind=group_kind(name, granularity),
                depth=members[0].layer,
            )
            for name, members in groups
        ),
        bits=[_level(name, backend) for name in levels_of(config.bits, backend)],
        ranks=config.ranks,
        fixed_bytes=fixed_bytes,
        adapter_bits=8 * ADAPTER_DTYPE.itemsize,
    )


def _level(name: LevelName, backend: Backend) -> Level:
    if name == UNQUANTIZED_BITS:
        return Level(UNQUANTIZED_BITS, UNQUANTIZED_BITS)
    return Level(name, backend.width(name), backend.describe(name), backend.storage(name))


def levels_of(bits: Sequence[int], backend: Backend) -> tuple[LevelName, ...]:
    """The levels of these bit-widths, of which the backend may have several for one."""
    own = tuple(name for name in backend.bits if backend.width(name) in bits)
    return (*own, UNQUANTIZED_BITS) if UNQUANTIZED_BITS in bits else own


def check_bits(bits: Sequence[int], backend: Backend) -> None:
    """Raises ValueError if the backend lacks a bit-width, or is unavailable."""
    reason = backend.unavailable()
    if reason is not None:
        raise ValueError(f"backend {backend.name!r} cannot be used here: {reason}")
    known = {UNQUANTIZED_BITS, *map(backend.width, backend.bits)}
    lacking = [b for b in bits if b not in known]
    if lacking:
        raise ValueError(
            f"backend {backend.name!r} has no {' or '.join(map(str, lacking))} bits: it has "
            f"{', '.join(map(str, backend.bits))}, and 16 for unquantized"
        )
