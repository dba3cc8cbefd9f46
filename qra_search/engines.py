"""The engines that a result can be meant for: how each stores weights, what it takes, and what serves it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Engine:
    """One engine.

    Attributes:
        granularity: what shares one choice unless something else is said; None: as the model suggests.
        granularities: those that it can run; None: any.
        embeddings: widths that its embeddings and head may have; 16: left as they are.
        format: export format that the engine loads.
        serve: the command that serves an export in a folder `{out}`, with an adapter of at most `{rank}`.
        ranks: the largest ranks that it can be told to make room for; None: any.
        families: model types, as transformers names them, that the export can be written for; None: any.
        experts_together: whether the experts of a layer have to share one choice.
    """

    backend: str
    bits: tuple[int, ...]
    format: str
    serve: str
    granularity: str | None = None
    granularities: tuple[str, ...] | None = None
    ranks: tuple[int, ...] | None = None
    embeddings: tuple[int, ...] = (16,)
    families: tuple[str, ...] | None = None
    experts_together: bool = False


FUSED_KINDS = (
    ("qkv", re.compile(r"w?(q|k|v|query|key|value)(_?proj|_lin|_layer)?")),
    ("gate_up", re.compile(r"(gate|up)(_?proj)?|w1|w3")),
)
"""Kinds of linears that some engines run as one matrix, which must then share one format."""

PLAIN_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types of plain linears whose exports are tested."""
ENGINES: dict[str, Engine] = {
    "llama.cpp": Engine(
        backend="gguf",
        bits=(2, 3, 4, 5, 6, 8),
        embeddings=(4, 5, 6, 8, 16),
        format="gguf",
        serve="llama-server -m {out}/model.gguf --lora {out}/adapter.gguf",
        families=(*PLAIN_MODEL_TYPES, "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi", "phi3"),
        experts_together=True,
    ),
    "transformers": Engine(
        backend="bitsandbytes-nf4",
        bits=(4, 16),
        format="peft",
        serve="import qra_eval.pretrained; from peft import PeftModel; from transformers import AutoModelForCausalLM; "
        'PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{out}"), "{out}/adapter", '
        "autocast_adapter_dtype=False)",
    ),
    "vllm": Engine(
        backend="compressed-tensors",
        bits=(4, 8),
        granularity="fused",
        granularities=("fused", "layer"),
        ranks=(1, 8, 16, 32, 64, 128, 256, 320, 512),
        format="compressed-tensors",
        serve="vllm serve {out} --enable-lora --lora-modules tuned={out}/adapter --max-lora-rank {rank}",
        families=PLAIN_MODEL_TYPES,
    ),
}
"""Engines by name, as `--engine` takes them."""


RUNTIME_BYTES = {"transformers": 71 << 20, "llama.cpp": 33 << 20}
"""Bytes of tokenizer, keys, values and buffers of one answer of SmolLM2 (`benchmarks/results/serving`)."""
DIRECT_BACKENDS = ("trellis", "mixed")
"""How backends begin whose codes transformers multiplies by as they are; others' weights are kept in 16 bits."""


def estimate_resident_bytes(name: str, plan_bytes: int, *, backend: str, weights: int) -> int | None:
    """Resident memory beyond an engine's libraries while it generates one answer; None if it was never measured.

    Within 7% of what was measured on SmolLM2, and 11% below it on a model of 1.5 billion weights. llama.cpp holds types
    that it repacks, such as Q4_0, once more.
    """
    if name not in RUNTIME_BYTES:
        return None
    decoded = 2 * weights if name == "transformers" and not backend.startswith(DIRECT_BACKENDS) else 0
    return plan_bytes + decoded + RUNTIME_BYTES[name]


def find_engine_rank(name: str, rank: int) -> int:
    """The smallest of the largest ranks that an engine can be told, with room for `rank`; ValueError if it has none."""
    ranks = ENGINES[name].ranks or (rank,)
    if rank > max(ranks):
        raise ValueError(
            f"rank {rank} is above {max(ranks)}, the largest that engine {name} takes: plan with lower ranks"
        )
    return min(most for most in ranks if most >= rank)


def unsupported_reason(name: str, family: str) -> str | None:
    """Why an engine cannot take a model of a family, its type as transformers names it; None if it can."""
    engine = ENGINES[name]
    if engine.families is not None and family not in engine.families:
        return (
            f"engine {name} supports the model types {', '.join(engine.families)}, but this model is "
            f"{family}: use another model, or plan without --engine"
        )
    return None


def advise_replan(name: str) -> str:
    return f"export as merged, or plan again with `qra plan --engine {name}`, whose --dry-run shows the smallest plan"


def serve_command(engine: str, out: Path) -> str:
    file = out / "adapter" / "adapter_config.json"
    config: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    rank = max([config.get("r", 1), *config.get("rank_pattern", {}).values()])
    return ENGINES[engine].serve.format(out=out, rank=find_engine_rank(engine, rank))
