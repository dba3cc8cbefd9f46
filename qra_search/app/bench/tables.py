"""Tables and the anytime curves of a benchmark, made from its rows: the same tables as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qra_search.app.bench.run import read_rows
from qra_search.app.bench.scores import (
    FAILED_SHARE,
    TIE,
    Best,
    Interval,
    Pair,
    Row,
    bootstrap_median,
    collect_regrets,
    compare_pairs,
    find_best_known,
)

HEADING = """# Search strategies side by side

{rows} cells, commit {commits}; {versions}.

Share of the possible gain over the best uniform plan that is left, summed over three budgets: 0 is the best plan known,
1 the best uniform plan, above 1 loses to it. The plan is the strategy's best one, at its noise-free
loss. Medians with bootstrap 95% intervals over seeds. A strategy with a failed cell is shown as failed, and loses
its pairs there; a search that ended early keeps its last value."""
BEST_MARGIN = 1e-9
FAILED = "failed"

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
    tables.append(_make_behavior_table(rows))
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


def _make_behavior_table(rows: list[Row]) -> Table:
    """How the strategies behaved: time, replicates, low fidelity, failures, honesty of their predictions."""
    counted = ("trials", "replicates", "low_fidelity", "failed")
    names = ("trials", "replicates", "low fidelity", "failed trials", "failed cells", "90% interval covers")
    columns = ["strategy", "seconds a proposal", "slowest", *names]
    body: list[list[Cell]] = []
    for name in sorted({row["strategy"] for row in rows}):
        own = [row for row in rows if row["strategy"] == name]
        good = [row for row in own if "error" not in row]
        timed = [row for row in good if row["propose_seconds"]]
        covered = [row["coverage_90"] for row in good if row["coverage_90"] is not None]
        counts = [sum(row[key] for row in good) for key in counted]
        body.append(
            [
                name,
                _compute_median([row["propose_seconds"]["mean"] for row in timed]),
                max((row["propose_seconds"]["max"] for row in timed), default=None),
                *counts,
                len(own) - len(good),
                _compute_median(covered),
            ]
        )
    return Table("Conduct:", columns, body)


def _describe_reference(rows: list[Row], best: Best) -> str:
    reference = {(r["task"], r["seed"]): np.array(r["reference"]) for r in rows if "error" not in r}
    margins = [float((reference[key] - best[key]).max()) for key in best]
    beaten, by = sum(m > BEST_MARGIN for m in margins), max(margins, default=0.0)
    return (
        f"The reference was beaten on {beaten} of {len(margins)} landscapes, by at most {by:.2g} nats; the better plan "
        "then counts as the best known."
    )


def _compute_median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None


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
