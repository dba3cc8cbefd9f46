"""A random model of Llama-3.1-8B's shape through every phase of a run: peaks beside those foretold from its shapes."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from gpu_parts.common import make, measured, random_model

import qra_eval
from qra_eval.costs.phases import CUDA_CONTEXT

SECTIONS: dict[str, dict[str, int]] = {
    "training": {"batch_size": 1, "max_length": 512},
    "evaluation": {"steps": 2, "validation_rows": 4},
    "finetune": {"steps": 2, "test_rows": 4},
}


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for the making of the folder, and for each phase; plans are the largest and the smallest of the space.

    `ratio` is the peak of the allocator over what is foretold without the driver's part, and on a CPU that of the host.
    """
    with measured(options.device) as found:
        model = random_model(options, "8B")
    yield {"phase": "write", **found}
    given: dict[str, Any] = {"weight_cache": options.weight_cache}
    estimate = make(options, model, options.backend, SECTIONS, weights=False, **given).estimate()
    foretold = estimate["phases"]

    def phase(name: str, work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        with measured(options.device) as found:
            result = work()
        device, host = foretold[name]["device"], foretold[name]["host"]
        row = {"phase": name, "backend": options.backend, "weight_cache": options.weight_cache, **found}
        on_device = found["reserved"] is not None
        ratio = found["reserved"] / (device - CUDA_CONTEXT) if on_device else found["host"] / host
        return result, {**row, "foretold_device": device, "foretold_host": host, "ratio": ratio}

    evaluator, row = phase("load", lambda: make(options, model, options.backend, SECTIONS, **given))
    yield row
    _, row = phase("quantize", evaluator.quantized.prepare)
    yield {**row, "foretold_seconds": estimate["setup_seconds"]}
    _, row = phase("prior", evaluator.sensitivities)
    yield {**row, "foretold_seconds": estimate["sensitivities_seconds"]}
    space = evaluator.space
    largest, smallest = (space.uniform(pick(space.bits), pick(space.ranks)) for pick in (max, min))
    done, row = phase("search", partial(list, map(evaluator.evaluate, (largest, smallest))))
    yield {**row, "losses": [each.loss for each in done], "foretold_seconds": 2 * estimate["evaluation_seconds"]}
    folder = options.folder / "tuned-large"
    tuned, row = phase("tune", partial(evaluator.tune, largest, folder=folder))
    yield {**row, "test_loss": tuned.test_loss}
    del evaluator  # what is reloaded has the device for itself
    gc.collect()

    @torch.no_grad()
    def reload() -> list[int]:
        loaded, _ = qra_eval.load(folder, device=options.device)
        return list(loaded(input_ids=torch.ones(1, 32, dtype=torch.long, device=options.device)).logits.shape)

    _, row = phase("reload", reload)
    yield row
