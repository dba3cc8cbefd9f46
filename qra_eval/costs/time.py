"""What a search will take in time: a layer and the quantization of one linear, timed, times the tokens and weights."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from qra_eval.costs.cards import list_engine_bytes
from qra_eval.costs.phases import estimate_peaks
from qra_eval.models.linears import normalise
from qra_eval.quantized.bank import can_store
from qra_eval.quantized.blocks import Blocks
from qra_eval.sensitivities.cache import get_sensitivities_file
from qra_eval.sensitivities.measure import choose_probes, sample_probe_batch
from qra_eval.tasks.batches import Batch, make_batches
from qra_eval.tuning.fine_tuner import FineTuner
from qra_eval.tuning.training import BACKWARD
from qra_search.schemas import LevelName

CALIBRATION_FACTOR = 3.5
"""Times what its tokens say that the pass of the calibration rows takes: layers are run again backward, and moments and
the gradient at the head are computed. Measured on SmolLM2 and two cores: 219 s, for 63 s by the tokens."""
REPEATS = 3
"""Times that something is timed; the quickest counts, as the first warms up."""
TIMED_TOKENS = 16384
"""Largest vocabulary of the random model that is timed."""
TIMED_OUT, TIMED_IN = 512, 2048
"""Rows and columns of a made-up linear whose quantization is timed, at most; larger ones are extrapolated."""


def estimate_search(tuner: FineTuner, budget: int | None = None) -> dict[str, Any]:
    """Seconds and bytes of a search that is yet to begin; no weight of the model is needed.

    Args:
        budget: bytes of the largest plan that the search may put in place.

    Returns:
        `setup_seconds` (the pass of calibration rows, and quantizing one plan) and `sensitivities_seconds`, both 0 if
        the cache has them, `evaluation_seconds` (one at full fidelity) and `tuning_seconds` (one in full, but for the
        answers that it writes), rough: within a half or so of the truth. `phases`, with the peak of each in bytes of
        `device` and `host` (see `qra_eval.costs.phases`), and `engines` (see `qra_eval.costs.cards`).
    """
    model = tuner.quantized_model
    report = model.progress or (lambda *_: None)
    report("time a layer", 0, 1)  # minutes, of a large one on a CPU
    pace = measure_seconds_per_token(tuner)
    report("time a layer", 1, 1)
    quantizing, probing = estimate_quantization_seconds(tuner)
    passing = count_pass_tokens(model.plan_batches())
    measuring = pace * (count_sensitivities_tokens(tuner) + (CALIBRATION_FACTOR - 1) * passing) + probing
    setup = 0.0
    if not model.is_quantized():
        passes = model.backend.calibrated and not model.is_pass_shared
        calibrating = count_pass_tokens(model.calibration_batches()) if passes else 0.0
        setup = quantizing + CALIBRATION_FACTOR * pace * calibrating
    tuned = count_pass_tokens(tuner.get_final_batches(tuner.finetune_steps, 0))
    tested = sum(map(len, tuner.rows("test", tuner.finetune.test_rows)))
    return {
        "setup_seconds": setup,
        "sensitivities_seconds": 0.0 if get_sensitivities_file(tuner).is_file() else measuring,
        "evaluation_seconds": pace * tuner.count_evaluation_tokens(),
        "tuning_seconds": pace * (tuned + tested),
        "phases": {name: asdict(peak) for name, peak in estimate_peaks(tuner, budget).items()},
        "engines": list_engine_bytes(model),
    }


def _list_quantized(tuner: FineTuner) -> list[tuple[nn.Linear, Sequence[LevelName]]]:
    model = tuner.quantized_model
    modules = [(m, model.levels) for m in model.linears.values()]
    modules += [(t, model.table_levels) for t in model.tables.values()]
    storable = [(m, [b for b in levels if can_store(model.backend, b, m)]) for m, levels in modules]
    return [(m, levels) for m, levels in storable if levels]


def measure_seconds_per_token(tuner: FineTuner) -> float:
    """Seconds of a forward pass for each token: of one layer times their number, and of the head.

    If the model has no weights here, the layer is one of made-up weights.
    """
    model = tuner.quantized_model
    vocabulary = tuner.model.config.get_text_config().vocab_size
    blocks, timed = (model.blocks, vocabulary) if model.loaded.weights else _make_one_layer_model(tuner)
    size = 2 * tuner.settings.batch_size
    batch = make_batches(tuner.rows("validation", size), size)[-1]  # of the longest rows
    batch = replace(batch, input_ids=batch.input_ids.clamp(max=timed - 1))
    with blocks.cast_outer_modules(), torch.no_grad():
        flow = blocks.embed_batch(batch)
        with blocks.place_layer(0):
            layer = _measure_min_seconds(lambda: blocks.run_layer(0, flow), model.device)
        hidden = flow.hidden.to(model.device)
        head = _measure_min_seconds(lambda: blocks.compute_logits(flow, hidden), model.device)
    return (layer * len(model.blocks) + head * vocabulary / timed) / batch.tokens


def _measure_min_seconds(work: Callable[[], Any], device: torch.device) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _make_one_layer_model(tuner: FineTuner) -> tuple[Blocks, int]:
    """A model of one layer, of made-up weights; and the size of its vocabulary."""
    from transformers import AutoModelForCausalLM

    model = tuner.quantized_model
    config = copy.deepcopy(tuner.model.config)
    text = config.get_text_config()
    text.num_hidden_layers = 1
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    text.vocab_size = min(text.vocab_size, TIMED_TOKENS)
    for special in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, special, None)
    made: Any = AutoModelForCausalLM.from_config(config, dtype=model.compute).requires_grad_(False)
    return Blocks(normalise(made).to(model.device), model.device, model.compute), text.vocab_size


def estimate_quantization_seconds(tuner: FineTuner) -> tuple[float, float]:
    """Seconds to quantize everything at one level, and to probe it: a part of the first linear is timed."""
    model = tuner.quantized_model
    backend, quantized = model.backend, _list_quantized(tuner)
    first = quantized[0][0]
    rows, columns = min(first.out_features, TIMED_OUT), first.in_features
    while columns > TIMED_IN and columns % 512 == 0:  # the half is still whole blocks of any backend
        columns //= 2
    linear = nn.Linear(columns, rows, bias=False, device=model.device, dtype=model.dtype).requires_grad_(
        False
    )
    hessian = torch.eye(columns, device=model.device) if backend.calibrated else None
    levels = [bits for bits in model.levels if can_store(backend, bits, linear)]
    middle = levels[len(levels) // 2 :][:1]
    quantizing = _measure_min_seconds(
        lambda: backend.quantize_levels(linear, middle, hessian=hessian), model.device
    )
    probing = _measure_min_seconds(
        lambda: backend.probe_levels(linear, levels, hessian=hessian), model.device
    )
    # Feedback takes as long as the rows times the square of the columns, rounding to nearest as both.
    power = 2 if backend.calibrated else 1
    times = sum((m.out_features / rows) * (m.in_features / columns) ** power for m, _ in quantized)
    return times * quantizing, times * probing


def count_pass_tokens(batches: Sequence[Batch]) -> float:
    """Tokens of passes forward and backward, in units of one forward pass."""
    return (1 + BACKWARD) * sum(batch.tokens for batch in batches)


def count_sensitivities_tokens(tuner: FineTuner) -> float:
    """Tokens that the sensitivities take, in units of one forward pass: the pass of the plan's rows, and the probes.

    A probe runs the layers above one group: half of them on average.
    """
    model = tuner.quantized_model
    probes = 0.5 * len(choose_probes(tuner.space)) + len(model.tables)
    return count_pass_tokens(model.plan_batches()) + probes * sample_probe_batch(tuner).tokens
