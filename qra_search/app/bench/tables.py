"""What a benchmark says, from its rows: shares of the possible gain, intervals, paired tests, and tables of these."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from qra_search.app.bench.run import list_checkpoints, read_rows

HEADING = """# Search strategies side by side

{rows} cells, commit {commits}; {versions}.

Share of the possible gain over the best uniform plan that is left, summed over three budgets: 0 is the best plan known,
1 the best uniform plan, above 1 loses to it. The plan is the strategy's best one, at its noise-free
loss. Medians with bootstrap 95% intervals over seeds. A strategy with a failed cell is shown as failed, and loses
its pairs there; a search that ended early keeps its last value."""
FAILED = "failed"

Row = dict[str, Any]
Best = dict[tuple[str, int], np.ndarray]
"""Lowest noise-free loss known (B,) at each budget of the grid, by task and seed."""

FAILED_SHARE = np.inf
"""Share left of a cell that failed: it is shown as failed, and loses to every score."""
LEAST_GAIN = 1e-9
"""Of a plan over the best uniform one, in nats over three budgets; less is rounding, as if there is one group."""
LARGEST_SHARE = 1e6
"""In paired tests, which take no infinite values."""
TIE = 0.005
"""Shares of the possible gain that differ by less count as a tie."""
RESAMPLES = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """A median with its bootstrap interval."""

    median: float
    low: float
    high: float


class Pair(NamedTuple):
    """Wins, ties and losses of the first strategy against the second, and Wilcoxon's p adjusted after Holm."""

    first: str
    second: str
    win: int
    tie: int
    loss: int
    p: float


Cell = str | int | float | Interval | None


@dataclass(frozen=True)
class Table:
    """A caption, the names of the columns, and rows of as many cells."""

    caption: str
    columns: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Setting:
    """What tasks of one size, granularity and kind of sensitivities say.

    Attributes:
        medians: of every strategy at each of its checkpoints, (evaluations, share left).
    """

    kind: str
    notes: list[str]
    tables: list[Table]
    medians: dict[str, list[tuple[float, float]]]


def write_tables(out: str | Path) -> dict[str, Any]:
    """Write a benchmark's `tables.json` and `tables.md`; returns what the first holds."""
    folder = Path(out)
    rows = read_rows(folder)
    if not rows:
        raise ValueError(f"{folder} holds no finished cell: run the benchmark first")
    settings = make_settings(rows)
    data = {"rows": len(rows), "settings": [asdict(setting) for setting in settings]}
    (folder / "tables.json").write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    (folder / "tables.md").write_text(to_markdown(rows, settings))
    return data


def make_settings(rows: Sequence[Row]) -> list[Setting]:
    """The rows by kind of task (layers, granularity, sensitivities), each with its tables."""
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        parts = row["task"].split("-")
        kind = "-".join(parts[1:]) if len(parts) > 3 and parts[1].isdigit() else row["task"]
        by_kind.setdefault(kind, []).append(row)
    return [_make_setting(kind, chosen) for kind, chosen in sorted(by_kind.items())]


def _make_setting(kind: str, rows: list[Row]) -> Setting:
    best = find_best_known(rows)
    points = sorted({look["at"] for row in rows for look in row.get("checkpoints", ())})
    shares = {point: collect_regrets(rows, point, best) for point in points}
    medians = {
        name: {point: bootstrap_median(own[name].T) for point, own in shares.items() if name in own}
        for name in sorted({name for own in shares.values() for name in own})
    }
    # The best first, at the last checkpoint that all have.
    common = [point for point, own in shares.items() if len(own) == len(medians)] or points[:1]
    order = sorted(
        medians, key=lambda name: medians[name][common[-1]].median if common[-1] in medians[name] else np.inf
    )
    tables = [_make_summary_table(points, order, shares, medians)] if points else []
    for point in common[-1:]:
        last = {name: shares[point][name] for name in order if name in shares[point]}
        tables += _make_checkpoint_tables(point, rows, last)
    tasks, seeds = {row["task"] for row in rows}, {row["seed"] for row in rows}
    notes = [f"{len(tasks)} tasks, {len(seeds)} seeds.", _describe_reference(rows, best)]
    if errors := sorted({f"{row['strategy']}: {row['error']}" for row in rows if "error" in row}):
        notes.append("Failures: " + "; ".join(errors))
    curves: dict[str, list[tuple[float, float]]] = {}
    for name in order:
        finite = {at: one.median for at, one in medians[name].items() if np.isfinite(one.median)}
        curves[name] = list(finite.items())
    return Setting(kind, notes, tables, curves)


def _make_summary_table(
    points: list[float],
    order: list[str],
    shares: dict[float, dict[str, np.ndarray]],
    medians: dict[str, dict[float, Interval]],
) -> Table:
    """All tasks together, a strategy a line."""
    body: list[list[Cell]] = []
    for name in order:
        last = shares[max(medians[name])][name]
        known = last[~np.isnan(last)]
        worst = float(known.max()) if known.size else None
        body.append(
            [
                name,
                known.size,
                *(_make_score_cell(medians[name].get(point)) for point in points),
                FAILED if worst == FAILED_SHARE else worst,
                int((last > 1.0 + TIE).sum()),
            ]
        )
    columns = ["strategy", "cells", *(f"after {point:g}" for point in points), "worst", "lost to uniform"]
    caption = (
        "All tasks together (a cell is a task and a seed; cells, worst and lost are of the last checkpoint):"
    )
    return Table(caption, columns, body)


def _make_checkpoint_tables(point: float, rows: list[Row], shares: dict[str, np.ndarray]) -> list[Table]:
    """Tables by task, and of strategies in pairs, after `point` evaluations."""
    names = list(shares)
    body: list[list[Cell]] = []
    for i, task in enumerate(sorted({row["task"] for row in rows})):
        own = [shares[name][i] for name in names]
        if not all(np.isnan(values).all() for values in own):
            body.append([task, *(_make_score_cell(bootstrap_median(x)) for x in own)])
    tables = [Table(f"By task, after {point:g} evaluations:", ["task", *names], body)]
    if pairs := compare_pairs(np.column_stack([own.ravel() for own in shares.values()]), names):
        caption = (
            f"Win/tie/loss of the row against the column after {point:g} evaluations, over the tasks and seeds that "
            f"both have (within {TIE} is a tie; * where Wilcoxon's p, adjusted after Holm, is below 0.05):"
        )
        tables.append(Table(caption, ["", *names], _make_pair_matrix(pairs, names)))
    return tables


def _make_score_cell(interval: Interval | None) -> Cell:
    """An interval as a cell: `failed` if a cell that it is of failed."""
    if interval is None or np.isnan(interval.median):
        return None
    return FAILED if np.isinf(interval.median) else interval


def _make_pair_matrix(pairs: list[Pair], names: list[str]) -> list[list[Cell]]:
    cells: dict[tuple[str, str], str] = {}
    for pair in pairs:
        star = "*" if pair.p < 0.05 else ""
        cells[pair.first, pair.second] = f"{pair.win}/{pair.tie}/{pair.loss}{star}"
        cells[pair.second, pair.first] = f"{pair.loss}/{pair.tie}/{pair.win}{star}"
    return [[row, *(cells.get((row, column)) for column in names)] for row in names]


def _describe_reference(rows: list[Row], best: Best) -> str:
    reference = {(r["task"], r["seed"]): np.array(r["reference"]) for r in rows if "error" not in r}
    margins = [float((reference[key] - best[key]).max()) for key in best]
    beaten = sum(margin > LEAST_GAIN for margin in margins)
    by = max(margins, default=0.0)
    return (
        f"The reference was beaten on {beaten} of {len(margins)} landscapes, by at most {by:.2g} nats; the better plan "
        "then counts as the best known."
    )


def to_markdown(rows: Sequence[Row], settings: Sequence[Setting]) -> str:
    made = [row["environment"] for row in rows if "environment" in row]
    commits = ", ".join(sorted({environment["commit"] for environment in made}))
    versions = ", ".join(
        f"{name} {version}" for name, version in (made[0]["versions"] if made else {}).items()
    )
    lines = [HEADING.format(rows=len(rows), commits=commits, versions=versions)]
    for setting in settings:
        lines += ["", f"## {setting.kind}"]
        for note in setting.notes:
            lines += ["", note]
        for table in setting.tables:
            lines += ["", table.caption, ""]
            body = [[_format_cell(cell) for cell in row] for row in table.rows]
            lines += [
                "| " + " | ".join(row) + " |" for row in (table.columns, ["---"] * len(table.columns), *body)
            ]
    return "\n".join(lines) + "\n"


def _format_cell(cell: Cell) -> str:
    if isinstance(cell, Interval):
        return f"{cell.median:.3f} ({cell.low:.3f}–{cell.high:.3f})"
    return "" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def find_best_known(rows: Sequence[Row]) -> Best:
    """The reference, or the best plan of any strategy at any time if that is better."""
    best: Best = {}
    for row in rows:
        if "error" not in row:
            known = np.array([row["reference"], *(look["handed"] for look in row["checkpoints"])]).min(0)
            key = row["task"], row["seed"]
            best[key] = np.minimum(best.get(key, known), known)
    return best


def compute_regret(row: Row, point: float, best: np.ndarray) -> float:
    """Share of the possible gain over the best uniform plan that is left at a checkpoint, summed over three budgets.

    0 is the best known plan at every budget, 1 the best uniform one; above 1 loses to uniform. nan where there is
    nothing to gain.
    """
    looks = [look for look in row.get("checkpoints", ()) if look["at"] == point]
    if not looks:
        return FAILED_SHARE
    at = [row["grid"].index(budget) for budget in row["budgets"]]
    left = np.array(looks[0]["handed"])[at] - best[at]
    possible = np.array(row["uniform"])[at] - best[at]
    return float(left.sum() / possible.sum()) if possible.sum() > LEAST_GAIN else math.nan


def collect_regrets(rows: Sequence[Row], point: float, best: Best) -> dict[str, np.ndarray]:
    """The share left of every strategy that was let run to a checkpoint: float (tasks, seeds), each sorted; nan where a
    cell is missing, or has nothing to gain.

    Of several searches of a cell the shortest counts that was looked at there, or failed on the way.
    """
    tasks, seeds = sorted({row["task"] for row in rows}), sorted({row["seed"] for row in rows})
    reached = [row for row in rows if point in list_checkpoints(row["evaluations"])]
    reached.sort(key=lambda row: -row["evaluations"])
    shares: dict[str, np.ndarray] = {}
    for row in {(row["task"], row["strategy"], row["seed"]): row for row in reached}.values():
        own = shares.setdefault(row["strategy"], np.full((len(tasks), len(seeds)), np.nan))
        known = best.get((row["task"], row["seed"]))  # None: every strategy failed there
        share = FAILED_SHARE if known is None else compute_regret(row, point, known)
        own[tasks.index(row["task"]), seeds.index(row["seed"])] = share
    return dict(sorted(shares.items()))


def bootstrap_median(values: np.ndarray) -> Interval:
    """The median of values (N,) or of all of (seeds, tasks), and its percentile interval.

    Of a matrix the rows are resampled, since the cells of one seed are not independent of each other; nan is left
    out (a seed that one task lacks), and so is a seed that all tasks lack. Infinite if a cell failed, nan if none is
    left.
    """
    values = np.asarray(values, dtype=float)
    if np.isinf(values).any():
        return Interval(FAILED_SHARE, FAILED_SHARE, FAILED_SHARE)
    values = values[~np.isnan(values.reshape(len(values), -1)).all(1)]
    if not len(values):
        return Interval(math.nan, math.nan, math.nan)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(values), (RESAMPLES, len(values)))
    medians = np.nanmedian(values[rows].reshape(RESAMPLES, -1), axis=1)
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(np.nanmedian(values)), float(low), float(high))


def compare_pairs(shares: np.ndarray, names: Sequence[str]) -> list[Pair]:
    """Every pair of strategies over the blocks of shares (N, K) that both have (nan: lacks it)."""
    shares = np.minimum(shares, LARGEST_SHARE)
    pairs = []
    for i, j in combinations(range(len(names)), 2):
        both = shares[~np.isnan(shares[:, [i, j]]).any(1)]
        if len(both) < 2:
            continue
        difference = both[:, i] - both[:, j]
        is_same = np.allclose(difference, 0, rtol=0, atol=1e-12)
        p = 1.0 if is_same else stats.wilcoxon(both[:, i], both[:, j], zero_method="zsplit").pvalue
        win = int((difference < -TIE).sum())
        loss = int((difference > TIE).sum())
        pairs.append(Pair(names[i], names[j], win, len(both) - win - loss, loss, p))
    adjusted = adjust_p_values(np.array([pair.p for pair in pairs])).tolist()
    return [pair._replace(p=p) for pair, p in zip(pairs, adjusted, strict=True)]


def adjust_p_values(p_values: np.ndarray) -> np.ndarray:
    """P-values (N,) adjusted for N tests (Holm 1979).

    >>> adjust_p_values(np.array([0.01, 0.04, 0.03])).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted
