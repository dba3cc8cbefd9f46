"""The search space of a model: its groups of linears, and what the backend offers for them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from qra_backends.base import Backend
from torch import nn

from qra_eval.models.linears import FoundLinear, Granularity, find_group_kind
from qra_eval.quantized.bank import can_store
from qra_search.schemas import Group, LevelName, Linear, Plan
from qra_search.sections import SpaceConfig
from qra_search.space.memory import UNQUANTIZED_BITS, Level
from qra_search.space.space import SearchSpace

log = logging.getLogger(__name__)

ADAPTER_DTYPE = torch.bfloat16
AUTO_BITS = (1, 1.5, 2, 2.5, 3, 3.5, 4, 5)
"""Default bit-widths, as far as the backend has them."""
WIDEST_BITS = 8
"""Taken too of a backend without 5 bits."""
AUTO_TABLE_BITS = (*AUTO_BITS, UNQUANTIZED_BITS)
"""Default bit-widths of embeddings and head."""


def make_model_space(
    groups: Sequence[tuple[str, Sequence[FoundLinear]]],
    granularity: Granularity,
    config: SpaceConfig,
    backend: Backend,
    *,
    fixed_bytes: int,
    tables: Mapping[str, tuple[nn.Linear, Sequence[LevelName]]] = {},  # noqa: B006 - never written to
    depth: int = 0,
) -> SearchSpace:
    """The space over named groups of linears, and over tables, which come last.

    Args:
        granularity: that of the groups; the config's may be `auto`.
        fixed_bytes: bytes of everything that is not searched.
        depth: of the tables: one more than that of the last layer.
    """
    bits = list_auto_bits(backend) if config.bits == "auto" else config.bits
    own = list_levels(bits, backend, [member.module for _, members in groups for member in members])
    levels = [*own, *dict.fromkeys(b for _, some in tables.values() for b in some if b not in own)]
    ranks = tuple(sorted({*config.ranks, 0})) if tables else config.ranks
    of_linears = [
        Group(
            name=name,
            linears=tuple(_describe(f.name, f.module) for f in members),
            bits=_list_own_levels(members, own, len(levels), backend),
            ranks=None if ranks == config.ranks else config.ranks,
            kind=find_group_kind(name, granularity),
            depth=members[0].layer,
        )
        for name, members in groups
    ]
    of_tables = [
        Group(
            name=name,
            linears=(_describe(name, linear),),
            bits=tuple(some),
            ranks=(0,),
            kind=name.rpartition(".")[2],
            depth=depth,
            is_embedding=True,
        )
        for name, (linear, some) in tables.items()
    ]
    return SearchSpace(
        groups=(*of_linears, *of_tables),
        bits=[
            Level(name, UNQUANTIZED_BITS)
            if name == UNQUANTIZED_BITS
            else Level(
                name, backend.width(name), backend.identity(name)["spec"]["name"], backend.storage(name)
            )
            for name in levels
        ],
        ranks=ranks,
        fixed_bytes=fixed_bytes,
    )


def list_plan_levels(space: SearchSpace, plan: Plan) -> list[tuple[str, LevelName]]:
    """Every linear and table of a plan with its level."""
    groups = zip(space.groups, plan.bits, strict=True)
    return [(linear.name, bits) for group, bits in groups for linear in group.linears]


def _describe(name: str, linear: nn.Linear) -> Linear:
    return Linear(name=name, out_features=linear.out_features, in_features=linear.in_features)


def _list_own_levels(
    members: Sequence[FoundLinear], names: Sequence[LevelName], count: int, backend: Backend
) -> tuple[LevelName, ...] | None:
    """The levels that every linear of a group can be stored at; None if these are all `count` of the space."""
    own = tuple(name for name in names if all(can_store(backend, name, member.module) for member in members))
    if not own:
        raise ValueError(
            f"no level of the space can store all of {', '.join(f.name for f in members)}: choose other bits, another "
            "backend, or granularity module"
        )
    return None if len(own) == count else own


def list_table_levels(bits: Sequence[float], backend: Backend, linear: nn.Linear) -> tuple[LevelName, ...]:
    """The levels of these bit-widths in which a backend can store a table, by width."""
    widths = {name: backend.width(name) for name in backend.bits} | {UNQUANTIZED_BITS: UNQUANTIZED_BITS}
    wanted = sorted((name for name in widths if widths[name] in bits), key=widths.__getitem__)
    found = tuple(name for name in wanted if can_store(backend, name, linear))
    if not found:
        shape = linear.out_features, linear.in_features
        reasons = [f" ({reason})" for name in wanted if (reason := backend.unsupported_reason(name, *shape))]
        raise ValueError(
            f"backend {backend.name!r} cannot store embeddings of {shape[0]} x {shape[1]} in any of "
            f"{', '.join(map(str, bits))} bits{''.join(reasons[:1])}: add 16 to quantization.embeddings"
        )
    return found


def list_levels(
    bits: Sequence[float], backend: Backend, linears: Iterable[nn.Linear]
) -> tuple[LevelName, ...]:
    """The levels of these bit-widths that some linear can be stored at (all if none can); several of a width too."""
    shapes = {(linear.out_features, linear.in_features): linear for linear in linears}
    wanted = [name for name in backend.bits if backend.width(name) in bits]
    own = tuple(name for name in wanted if any(can_store(backend, name, m) for m in shapes.values()))
    lost = {backend.width(name) for name in wanted} - {backend.width(name) for name in own}
    if lost and own:
        first = next(name for name in wanted if backend.width(name) in lost)
        reason = backend.unsupported_reason(first, *next(iter(shapes)))
        words = ", ".join(map(str, sorted(lost)))
        log.warning(
            "%s bits are left out, as no linear of this model can be stored in them: %s", words, reason
        )
    return (*(own or wanted), UNQUANTIZED_BITS) if UNQUANTIZED_BITS in bits else own or tuple(wanted)


def list_auto_bits(backend: Backend) -> tuple[float, ...]:
    widths = {backend.width(name) for name in backend.bits}
    bits = tuple(b for b in AUTO_BITS if b in widths)
    return bits if AUTO_BITS[-1] in widths or WIDEST_BITS not in widths else (*bits, WIDEST_BITS)


def check_bits(bits: Sequence[float] | Literal["auto"], backend: Backend) -> None:
    """Raises ValueError if the backend lacks a bit-width, or is unavailable."""
    if bits == "auto":
        bits = list_auto_bits(backend)
    known = {UNQUANTIZED_BITS, *map(backend.width, backend.bits)}
    lacking = [b for b in bits if b not in known]
    if lacking:
        raise ValueError(
            f"bits {','.join(map(str, bits))}: backend {backend.name!r} has no {' or '.join(map(str, lacking))} bits: "
            f"choose from {', '.join(map(str, backend.bits))}, and 16 for unquantized"
        )
    wanted = [level for level in backend.bits if backend.width(level) in bits]
    reason = backend.unavailable_reason(wanted)  # asked last: it loads the library of the levels wanted
    if reason is not None:
        raise ValueError(f"backend {backend.name!r} cannot be used here: {reason}")
