"""What a search will take in time and memory, from a few batches and quantizations timed before anything is spent."""

from __future__ import annotations

import time
from collections import Counter

import torch

from qra_eval.prior.kept import PRIOR_ROWS
from qra_eval.prior.measure import DEPTHS, PROBED_BITS
from qra_eval.quantized.bank import tensor_bytes
from qra_eval.quantized.model import CALIBRATION_ROWS
from qra_eval.tasks.batches import bucketed
from qra_eval.tasks.losses import held_out_loss
from qra_eval.tuning.workbench import Workbench
from qra_search.space.memory import UNQUANTIZED_BITS

PASSES = 2
"""Batches that are timed after one that warms up; the quickest counts."""
LIBRARIES = 600 << 20
"""Bytes of python, torch and transformers before any weight."""
COPIES = 3
"""Arrays of the size of a batch's logits that a training step holds: the logits, their log-softmax, its gradient."""


def estimate(workbench: Workbench) -> dict[str, float]:
    """Seconds and bytes of a search that is yet to begin.

    Returns:
        `setup_seconds` (quantizing, nearly 0 where the cache has it), `prior_seconds`, `evaluation_seconds` (one at
        full fidelity), `peak_bytes` of this process (on a GPU: of its memory). Rough: within a half or so of the truth.
    """
    pace = seconds_per_token(workbench)
    calibration = sum(map(len, workbench.rows("calibration", CALIBRATION_ROWS)))
    cached = workbench.quantized.quantized()
    setup = 0.0 if cached else quantization_seconds(workbench)
    if workbench.quantized.backend.calibrated and not cached:
        setup += pace * calibration
    return {
        "setup_seconds": setup,
        "prior_seconds": pace * prior_tokens(workbench),
        "evaluation_seconds": pace * workbench.evaluation_tokens(),
        "peak_bytes": float(peak_bytes(workbench)),
    }


def seconds_per_token(workbench: Workbench) -> float:
    """Seconds of a forward pass for each token, of the model in the dtype that evaluations compute in."""
    size = 2 * workbench.settings.batch_size
    batches = bucketed(workbench.rows("validation", size), size)
    tokens = sum(map(len, workbench.rows("validation", size)))
    model, best = workbench.model, float("inf")
    with workbench.quantized.unquantized():
        for _ in range(1 + PASSES):
            start = time.perf_counter()
            held_out_loss(model, batches, workbench.device)
            best = min(best, time.perf_counter() - start)
    return best / tokens


def quantization_seconds(workbench: Workbench) -> float:
    """Seconds to quantize everything: one linear of each shape is timed at every bit-width."""
    linears = list(workbench.quantized.linears.values())
    counts = Counter((m.out_features, m.in_features) for m in linears)
    examples = {(m.out_features, m.in_features): m for m in linears}
    total = 0.0
    for shape, count in counts.items():
        linear = examples[shape]
        hessian = torch.eye(shape[1], device=linear.weight.device) if workbench.quantized.backend.calibrated else None
        for bits in (b for b in workbench.space.bits if b != UNQUANTIZED_BITS):
            start = time.perf_counter()
            workbench.quantized.backend.quantize(linear, bits, hessian=hessian)
            total += count * (time.perf_counter() - start)
    return total


def prior_tokens(workbench: Workbench) -> float:
    """Tokens of the prior in units of one forward pass: one backward pass, one product for each width, and the probes,
    each of which runs the layers above one group: half of them on average."""
    rows = workbench.rows("calibration", PRIOR_ROWS)
    tokens = sum(map(len, rows))
    space = workbench.space
    kinds = Counter(group.kind for group in space.groups)
    widths = [b for b in space.bits if b != UNQUANTIZED_BITS]
    probes = sum(min(DEPTHS, n) for n in kinds.values()) * min(PROBED_BITS, len(widths))
    return (3 + len(widths)) * tokens + 0.5 * probes * tokens * min(1.0, workbench.settings.batch_size / len(rows))


def peak_bytes(workbench: Workbench) -> int:
    """Bytes at the height of a search: the model, all its quantized forms, what is kept dequantized, and a step."""
    space, settings = workbench.space, workbench.settings
    quantized = workbench.quantized
    wide = len(space.bits) * space.weights * quantized.compute.itemsize if quantized.materialised else 0
    stored = int(space.memory.weight.sum())
    size = 2 * settings.batch_size
    longest = max(map(len, workbench.rows("validation", settings.validation_rows)))
    config = workbench.model.config.get_text_config()
    logits = COPIES * size * longest * config.vocab_size * 4
    # Of every linear's input one is kept for the backward pass, unless layers are computed anew.
    inputs = sum(linear.in_features for group in space.groups for linear in group.linears)
    kept = settings.batch_size * longest * inputs * workbench.quantized.compute.itemsize
    activations = 0 if settings.gradient_checkpointing else 2 * kept
    libraries = LIBRARIES if workbench.device.type == "cpu" else 0
    return libraries + tensor_bytes(workbench.model) + stored + wide + logits + activations
