"""Which graphics cards a run fits, what to change if it does not, and what can stay on the one at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from qra_backends import make_backend

from qra_eval.costs.phases import CUDA_CONTEXT, Peak, estimate_peaks
from qra_eval.models.embeddings import find_embeddings
from qra_eval.models.gguf_families import list_family_issues
from qra_eval.models.linears import EXPERT, Granularity
from qra_eval.quantized.model import QuantizedModel, count_free_bytes
from qra_eval.sensitivities.cache import get_sensitivities_file
from qra_eval.tuning.fine_tuner import FineTuner
from qra_search.engines import ENGINES, unsupported_reason
from qra_search.errors import BadInput
from qra_search.sections import SpaceConfig
from qra_search.space.budgets import resolve_budget
from qra_search.space.memory import UNQUANTIZED_BITS, format_bytes

CARDS = {f"{gib} GB": gib for gib in (8, 12, 16, 24, 32, 48, 80, 141)}
"""Nominal memory of graphics cards, in GiB, of which about 3% cannot be used."""
USABLE = 0.97
SMALLER = " --set training.batch_size=1 --set training.gradient_checkpointing=true"
PLANS = ("uniform4r8", "uniform3r8", "uniform2r4")
"""Budgets that are tried, the best first, where the plan asked for is too large."""


def list_cards(tuner: FineTuner, budget: int | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"name": name, "bytes": int(gib * USABLE * 2**30), "settings": None} for name, gib in CARDS.items()
    ]
    for settings, phase, peak in _list_memory_savings(tuner, budget):
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
        return max((peak.device - CUDA_CONTEXT, name) for name, peak in peaks.items() if not done.get(name))

    most, phase = find_highest_peak()
    if most > free and model.keeps_dequantized:
        model.keeps_dequantized = False
        most, phase = find_highest_peak()
    if most > free:
        raise BadInput(
            f"{phase} takes {format_bytes(most)} of the GPU's memory, {format_bytes(free)} are free: add{SMALLER}, a "
            "lower --memory, or choose a smaller model (`qra doctor --model` lists what fits which card)"
        )


def _list_memory_savings(tuner: FineTuner, budget: int | None) -> Iterator[tuple[str, str, Peak]]:
    """Options that change the settings, the phase that takes most with them and its peak; the least changed first."""
    settings = tuner.settings
    small = {"gradient_checkpointing": True, "batch_size": 1}
    plans: list[tuple[str, int | None]] = [("", budget)]
    for plan in PLANS:
        try:
            bytes_ = resolve_budget(tuner.quantized_model.space, plan)
        except BadInput:  # the space has no such bits or rank
            continue
        if budget is None or bytes_ < budget:
            plans.append((f"--memory {plan}", bytes_))
    try:
        for words, size in plans:
            for more, changes in (("", {}), (SMALLER, small)):
                tuner.quantized_model.settings = settings.model_copy(update=changes)
                peaks = estimate_peaks(tuner, size, gpu=True)
                phase = max(peaks, key=lambda name: peaks[name].device)
                yield (words + more).strip(), phase, peaks[phase]
    finally:
        tuner.quantized_model.settings = settings


APART = ("module", "expert")
"""Granularities at which the experts of a layer choose for themselves."""


def check_engine(name: str, config: Any, linears: Iterable[str] = (), granularity: str = "module") -> None:
    """Raises ValueError if an engine cannot take a model of this config, whose searched linears have these names."""
    engine = ENGINES[name]
    reason = unsupported_reason(name, config.model_type)
    if reason is None and engine.format == "gguf":
        reason = "; ".join(list_family_issues(config)) or None
    has_experts_apart = granularity in APART and any(map(EXPERT.match, linears))
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
        if engine.experts_together and granularity in APART:
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
