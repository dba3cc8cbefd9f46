"""Which graphics cards a run fits, what to change if it does not, and what there is room to keep on the one at hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from qra_eval.costs.phases import CUDA_CONTEXT, Peak, foretell
from qra_eval.quantized.model import free_bytes
from qra_eval.sensitivities.cache import sensitivities_file
from qra_eval.tuning.fine_tuner import FineTuner
from qra_search.errors import BadInput
from qra_search.space.budgets import resolve_budgets
from qra_search.space.memory import format_bytes

CARDS = {
    "8 GB": 8, "12 GB": 12, "16 GB": 16, "24 GB": 24, "32 GB": 32, "48 GB": 48, "80 GB": 80, "141 GB": 141,
}  # fmt: skip
"""By the memory that they are sold with, in GiB of which about 3% are not to be had."""
PAIRS = {"2 x 24 GB": 24, "2 x 48 GB": 48, "2 x 80 GB": 80}
"""Over which layers are spread: the memory of each."""
USABLE = 0.97
SMALLER = " --set training.batch_size=1 --set training.gradient_checkpointing=true"
PLANS = ("uniform4r8", "uniform3r8", "uniform2r4")
"""Budgets that are tried, the best first, where the plan asked for is too large."""


def cards(tuner: FineTuner, budget: int | None) -> list[dict[str, Any]]:
    """What each card needs, and each pair of cards: see `Evaluator.cards`."""
    return [*_fits(tuner, budget, CARDS, 1), *_fits(tuner, budget, PAIRS, 2)]


def _fits(tuner: FineTuner, budget: int | None, kinds: dict[str, int], count: int) -> list[dict[str, Any]]:
    tried: list[tuple[str, str, Peak]] = []
    found: list[dict[str, Any]] = []
    ways = _ways(tuner, budget, count)
    for name, gib in reversed(kinds.items()):
        room = int(gib * USABLE * 2**30)
        fits = next((way for way in tried if way[2].device <= room), None)
        while fits is None:
            way = next(ways, None)
            if way is None:
                break
            tried.append(way)
            fits = way if way[2].device <= room else None
        row: dict[str, Any] = {"name": name, "bytes": room, "settings": None}
        if fits is not None:
            row |= {"settings": fits[0], "phase": fits[1], "peak_bytes": fits[2].device, "host_bytes": fits[2].host}
        found.append(row)
    return found[::-1]


def fit(tuner: FineTuner, budget: int | None) -> None:
    """Before anything is quantized: refuse what does not fit the GPU at hand, and choose what is kept ready on it.

    Dequantized weights are kept as far as training leaves room for them, and the unquantized model while it is
    calibrated and its sensitivities are measured. Phases whose results are in the cache need no room.

    Args:
        budget: bytes of the largest plan that will be put in place.

    Raises:
        BadInput: the highest peak is above what is free; the settings that fit are named.
    """
    model, device = tuner.quantized, tuner.device
    if device.type != "cuda" or not model.loaded.weights or model.loaded.trust_remote_code:
        return  # code of a model's own is not run on fake tensors
    every = dict.fromkeys([device, *model.blocks.devices])
    free = min(free_bytes(card) + torch.cuda.memory_reserved(card) for card in every)  # its own is free to a process
    done = {"quantize": model.quantized(), "sensitivities": sensitivities_file(tuner).is_file()}

    def highest() -> tuple[int, str]:
        peaks = foretell(tuner, budget)
        return max((peak.device - CUDA_CONTEXT, name) for name, peak in peaks.items() if not done.get(name))

    most, phase = highest()
    if most > free and model.keep_nothing():
        most, phase = highest()
    if most > free:
        ways = ((words, peak.device - CUDA_CONTEXT) for words, _, peak in _ways(tuner, budget, len(every)))
        words, least = next((way for way in ways if way[1] <= free), ("", 0))
        mend = f"take {words} ({format_bytes(least)})" if words else "choose a smaller model, or --bits 2,3 --ranks 4"
        raise BadInput(f"{phase} takes {format_bytes(most)} of the GPU's memory, {format_bytes(free)} are free: {mend}")
    model.blocks.keeps = True  # which the next foretells
    model.blocks.keeps = highest()[0] <= free


def _ways(tuner: FineTuner, budget: int | None, count: int) -> Iterator[tuple[str, str, Peak]]:
    """Settings in words, the phase that takes most with them and its peak; the most comfortable first."""
    settings = tuner.settings
    small = {"gradient_checkpointing": True, "batch_size": 1}
    plans: list[tuple[str, int | None]] = [("", budget)]
    for plan in PLANS:
        try:
            (bytes_,) = resolve_budgets(tuner.quantized.space, plan)
        except BadInput:  # the space has no such bits or rank
            continue
        if budget is None or bytes_ < budget:
            plans.append((f"--memory {plan}", bytes_))
    try:
        for words, size in plans:
            for more, changes in (("", {}), (SMALLER, small)):
                tuner.quantized.settings = settings.model_copy(update=changes)
                peaks = foretell(tuner, size, gpu=True, cards=count)
                phase = max(peaks, key=lambda name: peaks[name].device)
                said = (words + more).strip()
                if count > 1 and len(set(tuner.quantized.blocks.devices)) != count:
                    said = f"--device {','.join(f'cuda:{at}' for at in range(count))} {said}".strip()
                yield said or "as it is configured", phase, peaks[phase]
    finally:
        tuner.quantized.settings = settings
