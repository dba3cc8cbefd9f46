"""What a search will take in time, which graphics cards it fits, and what can stay on the one at hand."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

import torch
from qra_backends import make_backend
from torch import nn

from qra_eval.costs.phases import CUDA_CONTEXT_BYTES, PeakMemory, estimate_peaks
from qra_eval.models.embeddings import find_embeddings
from qra_eval.models.gguf_families import list_family_issues
from qra_eval.models.linears import EXPERT_PATTERN, Granularity, normalize_linears
from qra_eval.quantized.bank import can_store
from qra_eval.quantized.blocks import Blocks
from qra_eval.quantized.model import QuantizedModel, count_free_bytes
from qra_eval.sensitivities.cache import get_sensitivities_file
from qra_eval.sensitivities.measure import choose_probes, sample_probe_batch
from qra_eval.tasks.batches import Batch, make_batches
from qra_eval.tuning.fine_tuner import FineTuner
from qra_eval.tuning.training import BACKWARD_COST
from qra_search.engines import ENGINES, unsupported_reason
from qra_search.errors import BadInput
from qra_search.sections import SpaceConfig
from qra_search.space.budgets import resolve_budgets
from qra_search.space.memory import UNQUANTIZED_BITS, format_bytes

CALIBRATION_FACTOR = 3.5
"""Times what its tokens say that the pass of the calibration rows takes: layers are run again backward, and moments and
the gradient at the head are computed. Measured on SmolLM2 and two cores: 219 s, for 63 s by the tokens."""
TIMING_REPEATS = 3
"""Times that something is timed; the quickest counts, as the first warms up."""
TIMED_VOCABULARY = 16384
"""Largest vocabulary of the random model that is timed."""
TIMED_OUT, TIMED_IN = 512, 2048
"""Rows and columns of a made-up linear whose quantization is timed, at most; larger ones are extrapolated."""
CARDS = {f"{gib} GB": gib for gib in (8, 12, 16, 24, 32, 48, 80, 141)}
"""Nominal memory of graphics cards, in GiB, of which about 3% cannot be used."""
USABLE_SHARE = 0.97
SMALLER_SETTINGS = " --set training.batch_size=1 --set training.gradient_checkpointing=true"
FALLBACK_BUDGETS = ("uniform4r8", "uniform3r8", "uniform2r4")
"""Budgets that are tried, the best first, where the plan asked for is too large."""
EXPERT_GRANULARITIES = ("module", "expert")
"""Granularities at which the experts of a layer choose for themselves."""


def estimate_search(tuner: FineTuner, budget: int | None = None) -> dict[str, Any]:
    """Seconds and bytes of a search that is yet to begin; no weight of the model is needed.

    Args:
        budget: bytes of the largest plan that the search may put in place.

    Returns:
        `setup_seconds` (the pass of calibration rows, and quantizing one plan) and `sensitivities_seconds`, both 0 if
        the cache has them, `evaluation_seconds` (one at full fidelity) and `tuning_seconds` (one in full, but for the
        answers that it writes), rough: within a half or so of the truth. `phases`, with the peak of each in bytes of
        `device` and `host` (see `qra_eval.costs.phases`), and `engines` (see `list_engine_bytes`).
    """
    model = tuner.quantized_model
    pace = measure_seconds_per_token(tuner)
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
    for _ in range(TIMING_REPEATS):
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
    text.vocab_size = min(text.vocab_size, TIMED_VOCABULARY)
    for special in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, special, None)
    made: Any = AutoModelForCausalLM.from_config(config, dtype=model.compute).requires_grad_(False)
    return Blocks(normalize_linears(made).to(model.device), model.device, model.compute), text.vocab_size


def estimate_quantization_seconds(tuner: FineTuner) -> tuple[float, float]:
    """Seconds to quantize everything at one level, and to probe it: a part of the first linear is timed."""
    model = tuner.quantized_model
    backend = model.backend
    modules = [(m, model.levels) for m in model.linears.values()]
    modules += [(t, model.table_levels) for t in model.tables.values()]
    quantized = [m for m, levels in modules if any(can_store(backend, b, m) for b in levels)]
    first = quantized[0]
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
    times = sum((m.out_features / rows) * (m.in_features / columns) ** power for m in quantized)
    return times * quantizing, times * probing


def count_pass_tokens(batches: Sequence[Batch]) -> float:
    """Tokens of passes forward and backward, in units of one forward pass."""
    return (1 + BACKWARD_COST) * sum(batch.tokens for batch in batches)


def count_sensitivities_tokens(tuner: FineTuner) -> float:
    """Tokens that the sensitivities take, in units of one forward pass: the pass of the plan's rows, and the probes.

    A probe runs the layers above one group: half of them on average.
    """
    model = tuner.quantized_model
    probes = 0.5 * len(choose_probes(tuner.space)) + len(model.tables)
    return count_pass_tokens(model.plan_batches()) + probes * sample_probe_batch(tuner).tokens


# -- graphics cards and engines -------------------------------------------------------------------
def list_cards(tuner: FineTuner, budget: int | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"name": name, "bytes": int(gib * USABLE_SHARE * 2**30), "settings": None}
        for name, gib in CARDS.items()
    ]
    for settings, phase, peak in _list_memory_saving_options(tuner, budget):
        for row in rows:
            if row["settings"] is None and peak.device <= row["bytes"]:
                row |= {"settings": settings or "as it is configured", "phase": phase}
                row |= {"peak_bytes": peak.device, "host_bytes": peak.host}
    return rows


def check_fit(tuner: FineTuner, budget: int | None) -> None:
    """Before anything is quantized: refuse what does not fit the GPU at hand, and choose what is kept ready on it.

    Dequantized weights are kept if training leaves room for them. Phases whose results are in the cache need no room.
    """
    model = tuner.quantized_model
    device = tuner.device
    if device.type != "cuda" or not model.loaded.weights:
        return
    free = count_free_bytes(device) + torch.cuda.memory_reserved(device)  # what it has reserved is free to it
    done = {"quantize": model.is_quantized(), "sensitivities": get_sensitivities_file(tuner).is_file()}

    def find_highest_peak() -> tuple[int, str]:
        peaks = estimate_peaks(tuner, budget)
        return max(
            (peak.device - CUDA_CONTEXT_BYTES, name) for name, peak in peaks.items() if not done.get(name)
        )

    most, phase = find_highest_peak()
    if most > free and model.keeps_dequantized:
        model.keeps_dequantized = False
        most, phase = find_highest_peak()
    if most > free:
        raise BadInput(
            f"{phase} takes {format_bytes(most)} of the GPU's memory, {format_bytes(free)} are free. "
            f"Add{SMALLER_SETTINGS}, lower --memory, or choose a smaller model "
            "(`qra doctor --model` lists what fits which card)"
        )


def _list_memory_saving_options(
    tuner: FineTuner, budget: int | None
) -> Iterator[tuple[str, str, PeakMemory]]:
    """Options that change the settings, the phase that takes most with them and its peak; the least changed first."""
    settings = tuner.settings
    small = {"gradient_checkpointing": True, "batch_size": 1}
    plans: list[tuple[str, int | None]] = [("", budget)]
    for plan in FALLBACK_BUDGETS:
        try:
            bytes_ = resolve_budgets(tuner.quantized_model.space, plan)[0]
        except BadInput:  # the space has no such bits or rank
            continue
        if budget is None or bytes_ < budget:
            plans.append((f"--memory {plan}", bytes_))
    try:
        for words, size in plans:
            for more, changes in (("", {}), (SMALLER_SETTINGS, small)):
                tuner.quantized_model.settings = settings.model_copy(update=changes)
                peaks = estimate_peaks(tuner, size, gpu=True)
                phase = max(peaks, key=lambda name: peaks[name].device)
                yield (words + more).strip(), phase, peaks[phase]
    finally:
        tuner.quantized_model.settings = settings


def check_engine(name: str, config: Any, linears: Iterable[str] = (), granularity: str = "module") -> None:
    """Raises ValueError if an engine cannot take a model of this config, whose searched linears have these names."""
    engine = ENGINES[name]
    reason = unsupported_reason(name, config.model_type)
    if reason is None and engine.format == "gguf":
        reason = "; ".join(list_family_issues(config)) or None
    has_experts_apart = granularity in EXPERT_GRANULARITIES and any(map(EXPERT_PATTERN.match, linears))
    if reason is None and engine.experts_together and has_experts_apart:
        reason = (
            f"engine {name} stores the experts of a layer as one tensor of one type and rank, but granularity "
            f"{granularity} chooses for each of them. Use --granularity fused or layer"
        )
    if reason is not None:
        raise ValueError(reason)


def list_engine_bytes(model: QuantizedModel) -> dict[str, int | str]:
    """Bytes of the smallest plan that each engine holds, at the ranks of the model's space; or why it takes none."""
    least: dict[str, int | str] = {}
    for name, engine in ENGINES.items():
        granularity = cast(Granularity, engine.granularity or model.granularity)
        if engine.experts_together and granularity in EXPERT_GRANULARITIES:
            granularity = "fused"
        config = SpaceConfig(bits=engine.bits, ranks=model.space.groups[0].ranks or model.space.ranks)
        try:
            check_engine(name, model.model.config, model.linears, granularity)
            tables = find_embeddings(model.model) if engine.embeddings != (UNQUANTIZED_BITS,) else {}
            backend = make_backend(engine.backend)
            space = model.make_space(config, backend, granularity, tables, engine.embeddings)
            least[name] = space.memory.minimum
        except (ValueError, ImportError) as error:
            least[name] = str(error)
    return least
