"""A random mixture of 128 experts and 24 layers (Qwen3-MoE, narrow): searched, tuned, exported, and reloaded.

python benchmarks/evaluator/mixture.py --out runs/mixture

Every step is the command that a user would type; kept are its seconds and the peak of its resident memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from commit import commit
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from qra_eval import load
from qra_eval.models.tiny import byte_tokenizer

RESULTS = Path(__file__).parents[1] / "results" / "mixture.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/mixture"))
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--format", default="merged", help="of the export")
    options = parser.parse_args()
    model, run = options.out / "model", options.out / "run"
    make(model, options.layers, options.experts)
    row: dict[str, Any] = {"layers": options.layers, "experts": options.experts, "commit": commit()}
    settings = ["--set", "training.steps=2", "--set", "training.batch_size=4", "--set", "training.validation_rows=8"]
    settings += ["--set", "training.max_length=64", "--set", "training.final_steps=4", "--set", "training.test_rows=8"]
    settings += ["--set", f"quantization.cache={options.out / 'bank'}"]
    command = ["search", "--model", str(model), "--task", "arithmetic", "--bits", "2,4", "--ranks", "4,8"]
    row["search"] = timed(*command, "--memory", "uniform4r4", "-n", "16", "--out", str(run), *settings)
    facts = json.loads((run / "plan.json").read_text())
    row["groups"] = len(facts["groups"])
    row["kinds"] = sorted({"expert" if ".experts." in group["name"] else "other" for group in facts["groups"]})
    row["finetune"] = timed("finetune", str(run))
    row["export"] = timed("export", str(run), "--format", options.format, "--out", str(options.out / "export"))
    tuned, tokenizer = load(run)
    ids = torch.tensor([tokenizer("1 + 1 =")["input_ids"]])
    with torch.no_grad():
        logits = tuned(input_ids=ids).logits
    row["reloaded"] = bool(torch.isfinite(logits).all())
    print(json.dumps(row, indent=1))
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")


def make(folder: Path, layers: int, experts: int) -> None:
    """Random weights, as a folder that anyone would load; left as it is if it is there."""
    if (folder / "config.json").exists():
        return
    tokenizer = byte_tokenizer()
    config = Qwen3MoeConfig(
        vocab_size=320, hidden_size=128, intermediate_size=256, moe_intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_experts=experts, num_experts_per_tok=8,
        max_position_embeddings=512, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def timed(*arguments: str) -> dict[str, float]:
    """Seconds, and GiB of resident memory at the peak, of one command."""
    print("qra", *arguments, file=sys.stderr, flush=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    start = time.perf_counter()
    subprocess.run([Path(sys.executable).parent / "qra", *arguments], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"seconds": round(time.perf_counter() - start, 1), "peak_gib": round(max(before, peak) / 2**20, 3)}


if __name__ == "__main__":
    main()
