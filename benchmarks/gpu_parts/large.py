"""A random model of Llama-3.1-8B's shape through every phase of a run: peaks beside those foretold from its shapes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from benchmarks.gpu_parts.common import make, measured, random_model
from qra_eval.costs.phases import CUDA_CONTEXT_BYTES
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator

SECTIONS: dict[str, dict[str, int]] = {
    "training": {"batch_size": 1, "max_length": 512},
    "evaluation": {"steps": 2, "validation_rows": 4},
    "finetune": {"steps": 2, "test_rows": 4},
}


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for the making of the folder, and for each phase; plans are the largest and the smallest of the space.

    `ratio` is the peak of the allocator over what is foretold without the driver's part, and on a CPU that of the host.
    Phases of which a row is there are not measured again: what they leave is in the folder.
    """
    done = {row["phase"] for row in options.known if "phase" in row}
    with measured(options.device) as found:
        model = random_model(options, "8B")
    if "write" not in done:
        yield {"phase": "write", **found}
    given: dict[str, Any] = {"dequantized_cache": options.dequantized_cache}
    estimate = make(options, model, options.backend, SECTIONS, weights=False, **given).estimate_search_cost()
    folder = options.folder / "tuned-large"

    @cache
    def evaluator() -> QuantizedLoRAEvaluator:
        return make(options, model, options.backend, SECTIONS, **given)

    def quantize() -> dict[str, Any]:
        evaluator().tuner.switcher.quantize_plan(evaluator().space.uniform_plans()[-1])
        return {"foretold_seconds": estimate["setup_seconds"]}

    def sensitivities() -> dict[str, Any]:
        evaluator().sensitivities()
        return {"foretold_seconds": estimate["sensitivities_seconds"]}

    def search() -> dict[str, Any]:
        smallest, *_, largest = evaluator().space.uniform_plans()
        losses = [evaluator().evaluate(plan).loss for plan in (largest, smallest)]
        return {"losses": losses, "foretold_seconds": 2 * estimate["evaluation_seconds"]}

    def tune() -> dict[str, Any]:
        tuned = evaluator().tune(evaluator().space.uniform_plans()[-1], folder=folder)
        return {"test_loss": tuned.test_loss}

    def load() -> dict[str, Any]:
        evaluator()
        return {}

    for work in (load, quantize, sensitivities, search, tune):
        name = work.__name__
        if name in done:
            continue
        if work is not load:
            evaluator()  # its loading is no part of the phase
        yield phase(name, work, options, estimate["phases"])


def phase(
    name: str, work: Callable[[], dict[str, Any]], options: argparse.Namespace, foretold: dict[str, Any]
) -> dict[str, Any]:
    """The row of a phase: what it took beside what was foretold."""
    with measured(options.device) as found:
        facts = work()
    device, host = foretold[name]["device"], foretold[name]["host"]
    on_device = found["reserved"] is not None
    ratio = found["reserved"] / (device - CUDA_CONTEXT_BYTES) if on_device else found["host"] / host
    row = {"phase": name, "backend": options.backend, "dequantized_cache": options.dequantized_cache, **found}
    return row | {"foretold_device": device, "foretold_host": host, "ratio": ratio, **facts}
