"""The search space of a model: its groups of linears, and what the backend offers for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from qra_eval.models.linears import FoundLinear
from qra_search.config import SpaceConfig
from qra_search.space.memory import UNQUANTIZED_BITS, level_width
from qra_search.space.space import Group, Linear, SearchSpace

ADAPTER_DTYPE = torch.bfloat16


def model_space(
    groups: Sequence[tuple[str, Sequence[FoundLinear]]], config: SpaceConfig, backend: Any, *, fixed_bytes: int
) -> SearchSpace:
    """The space over named groups of linears.

    Args:
        fixed_bytes: bytes of everything that is not searched.
    """
    levels = levels_of(config.bits, backend)
    return SearchSpace(
        groups=tuple(
            Group(
                name=name,
                linears=tuple(
                    Linear(name=f.name, out_features=f.out_features, in_features=f.in_features) for f in members
                ),
                kind="layer" if config.granularity == "layer" else name.rpartition(".")[2],
                depth=members[0].layer,
            )
            for name, members in groups
        ),
        bits=levels,
        ranks=config.ranks,
        formats={b: backend.storage(b) for b in levels if b != UNQUANTIZED_BITS},
        backends=backend.labels(),
        fixed_bytes=fixed_bytes,
        adapter_bits=8 * ADAPTER_DTYPE.itemsize,
    )


def levels_of(bits: Sequence[int], backend: Any) -> tuple[int, ...]:
    """The levels of these bit-widths: more than widths where the backend stores one of them in several ways."""
    return tuple(level for level in (*backend.bits, UNQUANTIZED_BITS) if level_width(level) in bits)


def check_bits(bits: Sequence[int], backend: Any) -> None:
    """Raises ValueError where the backend lacks a bit-width, or is unavailable."""
    reason = backend.unavailable()
    if reason is not None:
        raise ValueError(f"backend {backend.name!r} cannot be used here: {reason}")
    lacking = [b for b in bits if b != UNQUANTIZED_BITS and b not in backend.bits]
    if lacking:
        raise ValueError(
            f"backend {backend.name!r} has no {' or '.join(map(str, lacking))} bits: it has "
            f"{', '.join(map(str, backend.bits))}, and 16 for unquantized"
        )
