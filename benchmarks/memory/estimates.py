"""What large models take on a GPU in every phase, by the code that `--dry-run` uses; no weights, no GPU needed.

python -m benchmarks.memory.estimates
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, PretrainedConfig, Qwen3MoeConfig

from benchmarks.common import RESULTS, append_lines, find_commit
from qra_eval.costs.phases import estimate_peaks
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.space.budgets import resolve_budgets

LLAMA = {"vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": False}


def shapes() -> dict[str, PretrainedConfig]:
    """Published shapes: config.json of each model."""
    return {
        "Llama-3.1-8B": LlamaConfig(
            **LLAMA,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
        ),
        "Llama-3.1-70B": LlamaConfig(
            **LLAMA,
            hidden_size=8192,
            intermediate_size=28672,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
        ),
        "Qwen3-30B-A3B": Qwen3MoeConfig(
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=6144,
            moe_intermediate_size=768,
            num_hidden_layers=48,
            num_attention_heads=32,
            num_key_value_heads=4,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            max_position_embeddings=40960,
            tie_word_embeddings=False,
        ),
    }


RANKS = (4, 8, 16, 32)
CASES: list[tuple[str, str | None, tuple[int, ...], bool, float]] = [
    ("Llama-3.1-8B", None, RANKS, False, 12),
    ("Llama-3.1-8B", None, RANKS, True, 12),
    ("Llama-3.1-8B", "uniform4r16", RANKS, False, 12),
    ("Llama-3.1-70B", "uniform3r16", RANKS, False, 44),
    ("Llama-3.1-70B", "uniform3r16", RANKS, True, 44),
    ("Qwen3-30B-A3B", "uniform3r4", RANKS, True, 24),
    ("Qwen3-30B-A3B", "uniform3r4", (4,), False, 24),
    ("Qwen3-30B-A3B", "uniform3r4", (4,), True, 24),
]
"""Model, budget (None: 8 bits and rank 32 everywhere), ranks to choose from (the estimate takes the highest, whose
adapters take most in training), gradient checkpointing, and GiB asked for."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=512, help="of a row; a batch is one row")
    parser.add_argument("--scales", action="store_true", help="trained along with the adapters")
    options = parser.parse_args()
    print(
        f"| model | budget | ranks to | checkpointing | GiB of the GPU: {', '.join(PHASES)} | host, at most | asked |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, budget, ranks, checkpointing, asked in CASES:
            training = {
                "gradient_checkpointing": checkpointing,
                "max_length": options.tokens,
                "scales": options.scales,
            }
            row = foretold(Path(folder) / name, shapes()[name], budget, ranks, training)
            device, host = (
                ", ".join(f"{row['device'][phase]:.1f}" for phase in PHASES),
                max(row["host"].values()),
            )
            words = f"{budget or '8 bits, rank 32'} | {ranks[-1]} | {'yes' if checkpointing else 'no'}"
            print(f"| {name} | {words} | {device} | {host:.1f} | {asked:g} |", flush=True)
            facts = {"model": name, "budget": budget, "ranks": ranks, "checkpointing": checkpointing, **row}
            facts |= {
                "asked": asked,
                "tokens": options.tokens,
                "scales": options.scales,
                "commit": find_commit(),
            }
            append_lines(RESULTS / "estimates.jsonl", facts)


PHASES = ("load", "quantize", "sensitivities", "search", "tune")


def foretold(
    folder: Path,
    config: PretrainedConfig,
    budget: str | None,
    ranks: tuple[int, ...],
    training: dict[str, Any],
) -> dict[str, Any]:
    """Peaks in GiB by phase, of the device and of the host."""
    config.save_pretrained(folder)
    settings = {"space": {"ranks": ranks}, "training": {"batch_size": 1, **training}}
    evaluator = QuantizedLoRAEvaluator({"model": {"name": str(folder)}, **settings}, weights=False)
    size = None if budget is None else resolve_budgets(evaluator.space, budget)[0]
    peaks = estimate_peaks(evaluator.tuner, size, gpu=True)
    return {
        "plan": (size or evaluator.space.memory.maximum) / 2**30,
        "device": {name: peak.device / 2**30 for name, peak in peaks.items()},
        "host": {name: peak.host / 2**30 for name, peak in peaks.items()},
    }


if __name__ == "__main__":
    main()
