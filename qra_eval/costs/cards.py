"""Which graphics cards a run fits, and what to change if it does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qra_eval.costs.phases import Peak, foretell
from qra_eval.tuning.fine_tuner import FineTuner
from qra_search.errors import BadInput
from qra_search.space.budgets import resolve

CARDS = {
    "8 GB": 8, "12 GB": 12, "16 GB": 16, "24 GB": 24, "32 GB": 32, "48 GB": 48, "80 GB": 80, "141 GB": 141,
}  # fmt: skip
"""By the memory that they are sold with, in GiB of which about 3% are not to be had."""
USABLE = 0.97
SMALLER = " --set training.batch_size=1 --set training.gradient_checkpointing=true"
PLANS = ("uniform4r8", "uniform3r8", "uniform2r4")
"""Budgets that are tried, the best first, where the plan asked for is too large."""


def cards(tuner: FineTuner, budget: int | None) -> list[dict[str, Any]]:
    """What each card needs: see `Evaluator.cards`."""
    tried: list[tuple[str, str, Peak]] = []
    found: list[dict[str, Any]] = []
    ways = _ways(tuner, budget)
    for name, gib in reversed(CARDS.items()):
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


def _ways(tuner: FineTuner, budget: int | None) -> Iterator[tuple[str, str, Peak]]:
    """Settings in words, the phase that takes most with them and its peak; the most comfortable first."""
    settings = tuner.settings
    small = {"gradient_checkpointing": True, "batch_size": 1}
    plans: list[tuple[str, int | None]] = [("", budget)]
    for plan in PLANS:
        try:
            (bytes_,) = resolve(tuner.quantized.space, plan)
        except BadInput:  # the space has no such bits or rank
            continue
        if budget is None or bytes_ < budget:
            plans.append((f"--memory {plan}", bytes_))
    try:
        for words, size in plans:
            for more, changes in (("", {}), (SMALLER, small)):
                tuner.quantized.settings = settings.model_copy(update=changes)
                peaks = foretell(tuner, size, gpu=True)
                phase = max(peaks, key=lambda name: peaks[name].device)
                yield (words + more).strip() or "as it is configured", phase, peaks[phase]
    finally:
        tuner.quantized.settings = settings
