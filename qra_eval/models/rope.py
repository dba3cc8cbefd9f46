"""The rotary embedding that a transformers config describes."""

from __future__ import annotations

from typing import Any


def rope(config: Any) -> dict[str, Any]:
    """Its parameters; those of layers that see all positions, where others have their own."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    found = found.get("full_attention", found)
    return {"rope_theta": getattr(config, "rope_theta", None) or 10000.0, **found}
