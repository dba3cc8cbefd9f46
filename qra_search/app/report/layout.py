"""How the groups of a space lie on a grid, kinds down and layers across, and what heat maps of a plan show there."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from qra_search.app.report.colors import DAMAGE_STEPS
from qra_search.schemas import Plan, Sensitivities, format_level, format_level_label
from qra_search.space.space import SearchSpace

WRAP = 32
"""Groups in a row if a space does not name kinds and layers."""
UNITS = {"nats": 1.0, "thousandths of a nat": 1e3, "millionths of a nat": 1e6}
LEAST_SHARE = 0.1
"""Groups that may have less than a tenth of the unit of sensitivities."""


@dataclass(frozen=True)
class Layout:
    """A grid of groups.

    Attributes:
        rows, columns: names of the rows (kinds) and of the columns (layers; `emb` for that of the embeddings).
        cells: for each row, the index of the group at each column; None if there is none.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[int | None, ...], ...]


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
    rows = tuple(
        f"groups {s} to {min(s + width, count) - 1}" if count > 1 else space.names[0] for s in starts
    )
    return Layout(rows, tuple(map(str, range(width))), cells)


@dataclass(frozen=True)
class HeatMap:
    """What the groups of a space are coloured by.

    Attributes:
        ramp: name of its colours, `bits`, `rank` or `damage`.
        steps: how many colours it has.
        levels: the step of each group.
        labels: what each group's cell says.
        legend: what each step stands for.
        embeddings: the groups that are tables.
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
        """What the cells say, if those of all linears say the same; None if they differ."""
        tables = dict.fromkeys(self.labels[g] for g in self.embeddings if self.labels[g])
        linears = {label for g, label in enumerate(self.labels) if g not in self.embeddings}
        if len(linears) > 1 or len(tables) > 1 or not linears:
            return None
        return f"{linears.pop()} in all linears" + "".join(f", {label} in the embeddings" for label in tables)


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
        fewest = space.bits_allowed.argmax(1)
        at = format_level(space.bits[fewest[0]]) if len({*fewest.tolist()}) == 1 else "its fewest bits"
        damage = np.maximum(np.take_along_axis(sensitivities.bits_damage, fewest[:, None], 1)[:, 0], 0.0)
        unit, scale = choose_damage_unit(damage)
        steps_of_groups, legend = compute_damage_steps(damage * scale)
        remark = f"rise of the loss with one group alone at {at}, in {unit}"
        labels = [f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" for value in damage * scale]
        maps.append(
            HeatMap(
                "damage",
                "Sensitivity",
                remark,
                DAMAGE_STEPS,
                steps_of_groups.tolist(),
                labels,
                legend,
                embeddings,
            )
        )
    return maps


def choose_damage_unit(damage: np.ndarray) -> tuple[str, float]:
    """The largest unit in which most groups with a damage (G,) have 0.1 or more, and how many of it are a nat."""
    low = float(np.quantile(damage[damage > 0], LEAST_SHARE)) if damage.any() else 1.0
    return next((pair for pair in UNITS.items() if low * pair[1] >= 0.1), [*UNITS.items()][-1])


def compute_damage_steps(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Levels (G,) of non-negative values on a logarithmic ramp, and a label for each level.

    What is below a thousandth of the largest value shares the first level.
    """
    values = np.maximum(np.asarray(values, dtype=float), 0.0)
    top = float(values.max(initial=0.0))
    if top <= 0:
        return np.zeros(len(values), dtype=int), ["0"]
    low = max(float(values.min()), top / 1000)
    if top / low < 1.01:
        return np.zeros(len(values), dtype=int), [_format_value(top)]
    edges = np.exp(np.linspace(math.log(low), math.log(top), DAMAGE_STEPS + 1))
    levels = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, DAMAGE_STEPS - 1)
    return levels, [
        f"{_format_value(a)} to {_format_value(b)}" for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]


def _format_value(value: float) -> str:
    """Rounded to two figures, and written without an exponent from a thousandth to a million."""
    return f"{float(f'{value:.2g}'):.6g}"
