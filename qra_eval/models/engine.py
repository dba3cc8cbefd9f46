"""Whether the engine that a result is meant for can take a model; asked before anything is spent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qra_eval.models.gguf_families import family_reasons
from qra_eval.models.linears import EXPERT
from qra_search.engines import ENGINES, unsupported_reason

APART = ("module", "expert")
"""Granularities at which the experts of a layer choose for themselves."""


def check_engine(name: str, config: Any, *, linears: Iterable[str] = (), granularity: str = "module") -> None:
    """Raises ValueError if an engine cannot take a model.

    Args:
        config: transformers'.
        linears: the searched ones, by name.
        granularity: what of them shares one choice.
    """
    reason = unsupported_reason(name, config.model_type)
    if reason is None and ENGINES[name].format == "gguf":
        reason = "; ".join(family_reasons(config)) or None
    if reason is None and ENGINES[name].experts_together and granularity in APART and any(map(EXPERT.match, linears)):
        reason = (
            f"engine {name} has the experts of a layer in one tensor, of one type and rank, and granularity "
            f"{granularity} chooses for each: take --granularity fused, or layer"
        )
    if reason is not None:
        raise ValueError(reason)
