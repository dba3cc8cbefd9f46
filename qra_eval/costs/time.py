"""What a search will take in time and memory, from a few batches and quantizations timed before anything is spent."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import torch

from qra_eval.models.loaded import computed_in
from qra_eval.prior.kept import PRIOR_ROWS
from qra_eval.quantized.bank import bank_file, bank_folder, tensor_bytes
from qra_eval.quantized.model import CALIBRATION_ROWS
from qra_eval.tuning import training
from qra_search.space.memory import UNQUANTIZED_BITS

if TYPE_CHECKING:
    from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator

PASSES = 2
"""Batches that are timed after one that warms up; the quickest counts."""
LIBRARIES = 600 << 20
"""Bytes of python, torch and transformers before any weight."""
COPIES = 3
"""Arrays of the size of a batch's logits that a training step holds: the logits, their log-softmax, its gradient."""


def estimate(evaluator: QuantizedLoRAEvaluator) -> dict[str, float]:
    """Seconds and bytes of a search that is yet to begin.

    Returns:
        `setup_seconds` (quantizing, nearly 0 where the cache has it), `prior_seconds`, `evaluation_seconds` (one at
        full fidelity), `peak_bytes` of this process (on a GPU: of its memory). Rough: within a half or so of the truth.
    """
    pace = seconds_per_token(evaluator)
    calibration = sum(map(len, evaluator.rows("calibration", CALIBRATION_ROWS)))
    cached = quantized(evaluator)
    setup = 0.0 if cached else quantization_seconds(evaluator)
    if evaluator.quantized.backend.calibrated and not cached:
        setup += pace * calibration
    return {
        "setup_seconds": setup,
        "prior_seconds": pace * prior_tokens(evaluator),
        "evaluation_seconds": pace * evaluator.evaluation_tokens(),
        "peak_bytes": float(peak_bytes(evaluator)),
    }


def seconds_per_token(evaluator: QuantizedLoRAEvaluator) -> float:
    """Seconds of a forward pass for each token, of the model in the dtype that evaluations compute in."""
    size = 2 * evaluator.settings.batch_size
    batches = training.bucketed(evaluator.rows("validation", size), size)
    tokens = sum(map(len, evaluator.rows("validation", size)))
    model, best = evaluator.model, float("inf")
    with computed_in(model, evaluator.quantized.compute):
        for _ in range(1 + PASSES):
            start = time.perf_counter()
            training.held_out_loss(model, batches, evaluator.device)
            best = min(best, time.perf_counter() - start)
    return best / tokens


def quantized(evaluator: QuantizedLoRAEvaluator) -> bool:
    """Whether the cache has every linear at every bit-width."""
    model = evaluator.quantized
    folder, linears = bank_folder(model.quantization.cache), model.linears
    widths = [b for b in evaluator.space.bits if b != UNQUANTIZED_BITS]
    return all(bank_file(folder, model.identity, model.backend, b, linears).is_file() for b in widths)


def quantization_seconds(evaluator: QuantizedLoRAEvaluator) -> float:
    """Seconds to quantize everything: one linear of each shape is timed at every bit-width."""
    linears = list(evaluator.quantized.linears.values())
    counts = Counter((m.out_features, m.in_features) for m in linears)
    examples = {(m.out_features, m.in_features): m for m in linears}
    total = 0.0
    for shape, count in counts.items():
        linear = examples[shape]
        hessian = torch.eye(shape[1], device=linear.weight.device) if evaluator.quantized.backend.calibrated else None
        for bits in (b for b in evaluator.space.bits if b != UNQUANTIZED_BITS):
            start = time.perf_counter()
            evaluator.quantized.backend.quantize(linear, bits, hessian=hessian)
            total += count * (time.perf_counter() - start)
    return total


def prior_tokens(evaluator: QuantizedLoRAEvaluator) -> float:
    """Tokens of the prior in units of one forward pass: one backward pass, one product for each width, and the probes,
    each of which runs the layers above one group: half of them on average."""
    from qra_eval.prior.measure import DEPTHS, PROBED_BITS

    rows = evaluator.rows("calibration", PRIOR_ROWS)
    tokens = sum(map(len, rows))
    space = evaluator.space
    kinds = Counter(group.kind for group in space.groups)
    widths = [b for b in space.bits if b != UNQUANTIZED_BITS]
    probes = sum(min(DEPTHS, n) for n in kinds.values()) * min(PROBED_BITS, len(widths))
    return (3 + len(widths)) * tokens + 0.5 * probes * tokens * min(1.0, evaluator.settings.batch_size / len(rows))


def peak_bytes(evaluator: QuantizedLoRAEvaluator) -> int:
    """Bytes at the height of a search: the model, all its quantized forms, what is kept dequantized, and a step."""
    space, settings = evaluator.space, evaluator.settings
    weights = sum(group.weights for group in space.groups)
    wide = len(space.bits) * weights * evaluator.quantized.compute.itemsize if evaluator.quantized.materialised else 0
    stored = int(space.memory.weight.sum())
    size = 2 * settings.batch_size
    longest = max(map(len, evaluator.rows("validation", settings.validation_rows)))
    config = evaluator.model.config.get_text_config()
    logits = COPIES * size * longest * config.vocab_size * 4
    # Of every linear's input one is kept for the backward pass, unless layers are computed anew.
    inputs = sum(linear.in_features for group in space.groups for linear in group.linears)
    kept = settings.batch_size * longest * inputs * evaluator.quantized.compute.itemsize
    activations = 0 if settings.gradient_checkpointing else 2 * kept
    libraries = LIBRARIES if evaluator.device.type == "cpu" else 0
    return libraries + tensor_bytes(evaluator.model) + stored + wide + logits + activations
