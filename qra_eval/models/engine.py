"""Whether the engine that a result is meant for can take a model; asked before anything is spent."""

from __future__ import annotations

from typing import Any

from qra_search.engines import refusal


def rope(config: Any) -> dict[str, Any]:
    """Parameters of a model's rotary embedding."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return {"rope_theta": getattr(config, "rope_theta", None) or 10000.0, **found}


def check_engine(name: str, config: Any) -> None:
    """Raises ValueError if an engine cannot take a model of this transformers config."""
    reason = refusal(name, family=config.model_type, rope=rope(config).get("rope_type", "default"))
    if reason is not None:
        raise ValueError(reason)
