"""The loss curves of a run's full tunings, as their folders hold them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qra_search.runs.comparison import TUNING

CURVE_FILE = "curve.jsonl"
SHOWN_POINTS = 60
"""Points of a line; of more steps each is the mean of several."""
SHOWN_CURVES = 8
"""Tunings that a chart shows."""
Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One tuning: its training loss, smoothed, and its validation loss where it was looked at, by step."""

    name: str
    loss: tuple[Point, ...]
    validation: tuple[Point, ...]


def read_curves(folder: str | Path) -> tuple[Curve, ...]:
    """The curves below a run's folder, by name; those without a finite loss are left out."""
    files = sorted((Path(folder) / TUNING).glob(f"*/{CURVE_FILE}"))
    curves = (_curve(file.parent.name, file.read_text().splitlines()) for file in files)
    return tuple(curve for curve in curves if curve.loss)[:SHOWN_CURVES]


def _curve(name: str, lines: Sequence[str]) -> Curve:
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # a tuning under way, whose last line is not whole yet
            break
    looks = tuple((r["step"], r["validation_loss"]) for r in rows if math.isfinite(r.get("validation_loss", math.nan)))
    return Curve(name, smoothed([(r["step"], r["loss"]) for r in rows if math.isfinite(r["loss"])]), looks)


def smoothed(points: Sequence[Point], most: int = SHOWN_POINTS) -> tuple[Point, ...]:
    """At most so many points, each the mean of as many of those given that follow each other."""
    size = math.ceil(len(points) / most) or 1
    parts = [points[at : at + size] for at in range(0, len(points), size)]
    return tuple((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts)
