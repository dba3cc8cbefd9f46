"""The engines that a result can be meant for: how each stores weights, what it takes, and what serves it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Engine:
    """One engine.

    Attributes:
        backend: whose levels are what the engine stores.
        bits: widths that it has.
        granularity: what has to share one choice; None: as the model suggests.
        embeddings: widths that its embeddings and head may have; 16: left as they are.
        format: export format that the engine loads, with `options` of it.
        serve: the command that serves an export in a folder `{out}`.
        families: model types, as transformers names them, that the export can be written for; None: any.
        ropes: kinds of rotary embedding that it can be written for; None: any.
    """

    backend: str
    bits: tuple[int, ...]
    format: str
    serve: str
    granularity: str | None = None
    embeddings: tuple[int, ...] = (16,)
    options: dict[str, Any] = field(default_factory=dict)
    families: tuple[str, ...] | None = None
    ropes: tuple[str, ...] | None = None


ENGINES: dict[str, Engine] = {
    "llama.cpp": Engine(
        backend="gguf",
        bits=(2, 3, 4, 5, 6, 8),
        embeddings=(4, 5, 6, 8, 16),
        format="gguf",
        serve="llama-server -m {out}/model.gguf --lora {out}/adapter.gguf",
        families=("llama", "mistral", "qwen2", "qwen3"),
        ropes=("default", "llama3"),
    ),
    "transformers": Engine(
        backend="bitsandbytes-nf4",
        bits=(4, 16),
        format="bitsandbytes",
        serve='PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{out}"), "{out}/adapter")',
    ),
    "gptqmodel": Engine(
        backend="gptqmodel",
        bits=(2, 3, 4, 8),
        format="gptqmodel",
        options={"bits": "2,3,4,8"},
        serve="python -c 'from gptqmodel import GPTQModel; GPTQModel.load(\"{out}\")'",
    ),
}
"""By name, as `--engine` takes them."""


def engine_settings(name: str) -> dict[str, Any]:
    """Dotted fields of a config that an engine decides, with their values."""
    engine = ENGINES[name]
    settings: dict[str, Any] = {
        "quantization.backend": engine.backend,
        "quantization.embeddings": list(engine.embeddings),
        "space.bits": list(engine.bits),
    }
    return settings if engine.granularity is None else {**settings, "space.granularity": engine.granularity}


def refusal(name: str, *, family: str, rope: str) -> str | None:
    """Why an engine cannot take a model, or None if it can.

    Args:
        family: the model's type, as transformers names it.
        rope: kind of its rotary embedding, `default` if it is not scaled.
    """
    engine = ENGINES[name]
    if engine.families is not None and family not in engine.families:
        return (
            f"engine {name} is written for {', '.join(engine.families)}, and this model is {family}: take another "
            "model, or leave the engine out"
        )
    if engine.ropes is not None and rope not in engine.ropes:
        return f"engine {name} is written for rotary embeddings {', '.join(engine.ropes)}, and this model's is {rope}"
    return None
