"""How the groups of a space lie on a grid, kinds down and layers across, and what heat maps of a plan show there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from qra_search.app.report.canvas import DAMAGE_STEPS
from qra_search.schemas import Plan, Sensitivities, format_level, format_level_label
from qra_search.space.space import SearchSpace

WRAP = 32
"""Groups in a row if a space does not name kinds and layers."""
SCALE = 1e3
"""Damage is shown in thousandths of a nat."""
NEARLY_ALL = 0.9
"""Share of the linears with one rank above which a sentence says so in place of a map."""


@dataclass(frozen=True)
class Layout:
    """A grid of groups.

    Attributes:
        rows, columns: names of the rows (kinds) and of the columns (layers; `emb` for that of the embeddings).
        cells: for each row, the index of the group at each column; None if there is none.
        has_layers: whether rows are kinds and columns layers.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[int | None, ...], ...]
    has_layers: bool = True


def arrange_groups(space: SearchSpace) -> Layout:
    """Kinds by layers if every group has a kind and a layer of its own; else the groups in order, wrapped."""
    places = [(group.kind, group.depth) for group in space.groups]
    if all(depth is not None for _, depth in places) and len(set(places)) == len(places):
        kinds = list(dict.fromkeys(kind for kind, _ in places))
        depths = sorted({depth for _, depth in places if depth is not None})
        index = {place: i for i, place in enumerate(places)}
        cells = tuple(tuple(index.get((kind, depth)) for depth in depths) for kind in kinds)
        layers = {group.depth for group in space.groups if not group.is_embedding}
        heads = tuple(str(depth) if depth in layers else "emb" for depth in depths)
        return Layout(tuple(kind or "group" for kind in kinds), heads, cells)
    count = len(places)
    width = min(WRAP, count)
    starts = range(0, count, width)
    cells = tuple(tuple(i if i < count else None for i in range(start, start + width)) for start in starts)
    rows = tuple(f"groups {start} to {min(start + width, count) - 1}" for start in starts)
    return Layout(rows, tuple(map(str, range(width))), cells, has_layers=False)


@dataclass(frozen=True)
class HeatMap:
    """What the groups of a space are coloured by.

    Attributes:
        ramp: name of its colours, `bits`, `rank` or `damage`.
        steps: how many colours it has.
        levels: the step of each group.
        labels: what each group's cell says.
        legend: what each step stands for.
        embeddings: the groups that are embeddings.
    """

    ramp: str
    title: str
    remark: str
    steps: int
    levels: Sequence[int]
    labels: Sequence[str]
    legend: Sequence[str]
    embeddings: Collection[int] = ()

    @property
    def shared_sentence(self) -> str | None:
        """What the cells say if those of all linears say the same, or nearly all have one rank; None otherwise."""
        embeddings = dict.fromkeys(self.labels[g] for g in self.embeddings if self.labels[g])
        linears = Counter(label for g, label in enumerate(self.labels) if g not in self.embeddings)
        if not linears or len(embeddings) > 1:
            return None
        label, count = linears.most_common(1)[0]
        total = linears.total()
        if count < (NEARLY_ALL if self.ramp == "rank" else 1) * total:
            return None
        where = "all linears" if count == total else f"{count} of {total} linears"
        return f"{label} in {where}" + "".join(f", {other} in the embeddings" for other in embeddings)


def make_heat_maps(
    space: SearchSpace, plan: Plan, sensitivities: Sensitivities | None = None
) -> list[HeatMap]:
    """Bits and ranks of a plan, and the damage by the sensitivities if they were measured."""
    bits, ranks = (levels.tolist() for levels in space.encode(plan))
    embeddings = [g for g, group in enumerate(space.groups) if group.is_embedding]
    shown = [format_level_label(name) for name in plan.bits]
    ranked = ["" if g in embeddings and not rank else str(rank) for g, rank in enumerate(plan.ranks)]
    levels, steps = [*map(str, space.levels)], [f"rank {rank}" for rank in space.ranks]
    maps = [
        HeatMap("bits", "Bits", "of the frozen weights", len(space.bits), bits, shown, levels, embeddings),
        HeatMap("rank", "Rank", "of the adapter", len(space.ranks), ranks, ranked, steps, embeddings),
    ]
    if sensitivities is not None:
        maps.append(_make_damage_map(space, sensitivities, embeddings))
    return maps


def _make_damage_map(space: SearchSpace, known: Sensitivities, embeddings: Collection[int]) -> HeatMap:
    """The damage of each group alone at its fewest bits."""
    fewest = space.bits_allowed.argmax(1)
    at = format_level(space.bits[fewest[0]]) if len({*fewest.tolist()}) == 1 else "its fewest bits"
    damage = SCALE * np.maximum(np.take_along_axis(known.bits_damage, fewest[:, None], 1)[:, 0], 0.0)
    levels, legend = compute_damage_steps(damage)
    remark = f"rise of the loss with one group alone at {at}, in thousandths of a nat"
    labels = [_format_value(value) for value in damage]
    return HeatMap("damage", "Sensitivity", remark, DAMAGE_STEPS, levels.tolist(), labels, legend, embeddings)


def compute_damage_steps(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Levels (G,) of non-negative values on a logarithmic ramp, and a label for each level.

    What is below a thousandth of the largest value shares the first level.
    """
    values = np.maximum(np.asarray(values, dtype=float), 0.0)
    top = float(values.max(initial=0.0))
    low = max(float(values.min(initial=top)), top / 1000)
    if top <= 1.01 * low:
        return np.zeros(len(values), dtype=int), [_format_value(top)]
    edges = np.exp(np.linspace(math.log(low), math.log(top), DAMAGE_STEPS + 1))
    levels = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, DAMAGE_STEPS - 1)
    ends = zip(edges[:-1], edges[1:], strict=True)
    return levels, [f"{_format_value(a)} to {_format_value(b)}" for a, b in ends]


def _format_value(value: float) -> str:
    """Rounded to two figures, and written without an exponent from a thousandth to a million."""
    return f"{float(f'{value:.2g}'):.6g}"
