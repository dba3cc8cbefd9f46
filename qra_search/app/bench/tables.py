"""What a benchmark says, from its rows: shares of the possible gain, intervals, paired tests, and tables of these."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
MIN_GAIN = 1e-9
"""Of a plan over the best uniform one, in nats over three budgets; less is rounding, as if there is one group."""
MAX_SHARE = 1e6
"""In paired tests, which take no infinite values."""
TIE_MARGIN = 0.005
"""Shares of the possible gain that differ by less count as a tie."""
BOOTSTRAP_RESAMPLES = 2000
CONFIDENCE = 0.95


class MedianInterval(NamedTuple):
    """A median with its bootstrap interval."""

    median: float
    low: float
    high: float


class PairedTest(NamedTuple):
    """Wins, ties and losses of the first strategy against the second, and Wilcoxon's p adjusted after Holm."""

    first: str
    second: str
    win: int
    tie: int
    loss: int
    p: float


def write_tables(out: str | Path) -> dict[str, Any]:
    """Write a benchmark's `tables.md`; returns the medians of `collect_medians` by kind of task, as plain data."""
    folder = Path(out)
    rows = read_rows(folder)
    if not rows:
        raise ValueError(f"{folder} holds no result of a benchmark: run `qra bench --out {folder}` first")
    kinds = group_by_kind(rows)
    (folder / "tables.md").write_text(to_markdown(rows))
    medians = {kind: collect_medians(own) for kind, own in kinds.items()}
    return {"rows": len(rows), "medians": medians}


def group_by_kind(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by size, granularity and kind of sensitivities of their task."""
    by_kind: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: str(row["task"])):
        parts = row["task"].split("-")
        kind = "-".join(parts[1:]) if len(parts) > 3 and parts[1].isdigit() else row["task"]
        by_kind.setdefault(kind, []).append(row)
    return dict(sorted(by_kind.items()))


def collect_medians(rows: Sequence[Row]) -> dict[str, dict[float, float]]:
    """Median share left of every strategy at each of its checkpoints; those of failed cells are left out."""
    found: dict[str, dict[float, float]] = {}
    best = find_lowest_losses(rows)
    for point in collect_checkpoints(rows):
        for name, shares in collect_normalized_regrets(rows, point, best).items():
            median = bootstrap_median(shares.T).median
            found.setdefault(name, {}).update({point: median} if math.isfinite(median) else {})
    return found


def collect_checkpoints(rows: Sequence[Row]) -> list[float]:
    """The checkpoints at which a search of these rows was judged."""
    return sorted({look["at"] for row in rows for look in row.get("checkpoints", ())})


def to_markdown(rows: Sequence[Row]) -> str:
    made = [row["environment"] for row in rows if "environment" in row]
    commits = ", ".join(sorted({environment["commit"] for environment in made}))
    versions = ", ".join(
        f"{name} {version}" for name, version in (made[0]["versions"] if made else {}).items()
    )
    parts = [HEADING.format(rows=len(rows), commits=commits, versions=versions)]
    for kind, own in group_by_kind(rows).items():
        parts += [f"## {kind}", *_describe_kind(own)]
    return "\n\n".join(parts) + "\n"


def _describe_kind(rows: list[Row]) -> Iterator[str]:
    """What tasks of one kind say: notes, all tasks together, each task, and strategies in pairs."""
    tasks, seeds = {row["task"] for row in rows}, {row["seed"] for row in rows}
    best, points = find_lowest_losses(rows), collect_checkpoints(rows)
    shares = {point: collect_normalized_regrets(rows, point, best) for point in points}
    yield f"{len(tasks)} tasks, {len(seeds)} seeds."
    if errors := sorted({f"{row['strategy']}: {row['error']}" for row in rows if "error" in row}):
        yield "Failures: " + "; ".join(errors)
    if not points:
        return
    names = list(dict.fromkeys(name for own in shares.values() for name in own))
    # The best first, at the last checkpoint that all have.
    last = next((point for point in reversed(points) if len(shares[point]) == len(names)), points[0])
    names.sort(
        key=lambda name: bootstrap_median(shares[last][name].T).median if name in shares[last] else np.inf
    )
    yield "All tasks together (a cell is a task and a seed; cells, worst and lost are of the last checkpoint):"
    columns = ["strategy", "cells", *(f"after {point:g}" for point in points), "worst", "lost to uniform"]
    yield _format_table(columns, [_make_strategy_row(name, shares) for name in names])
    judged = {name: shares[last][name] for name in names if name in shares[last]}
    if pairs := compare_strategies(np.column_stack([own.ravel() for own in judged.values()]), list(judged)):
        yield (
            f"Win/tie/loss of the row against the column after {last:g} evaluations, over the tasks and seeds that "
            f"both have (within {TIE_MARGIN} is a tie; * where Wilcoxon's p, adjusted after Holm, is below 0.05):"
        )
        yield _format_table(["", *judged], _make_pair_matrix(pairs, list(judged)))


def _make_strategy_row(name: str, shares: dict[float, dict[str, np.ndarray]]) -> list[str]:
    last = [own[name] for own in shares.values() if name in own][-1]
    known = last[~np.isnan(last)]
    scores = [_format_score(bootstrap_median(own[name].T)) if name in own else "" for own in shares.values()]
    worst = f"{known.max():.3f}" if known.size else ""
    return [
        name,
        f"{known.size}",
        *scores,
        worst.replace("inf", FAILED),
        f"{(last > 1.0 + TIE_MARGIN).sum()}",
    ]


def _format_score(interval: MedianInterval) -> str:
    if math.isnan(interval.median):
        return ""
    if math.isinf(interval.median):
        return FAILED
    return f"{interval.median:.3f} ({interval.low:.3f}–{interval.high:.3f})"


def _format_table(columns: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *body))


def _make_pair_matrix(pairs: list[PairedTest], names: list[str]) -> list[list[str]]:
    cells: dict[tuple[str, str], str] = {}
    for pair in pairs:
        star = "*" if pair.p < 0.05 else ""
        cells[pair.first, pair.second] = f"{pair.win}/{pair.tie}/{pair.loss}{star}"
        cells[pair.second, pair.first] = f"{pair.loss}/{pair.tie}/{pair.win}{star}"
    return [[row, *(cells.get((row, column), "") for column in names)] for row in names]


def find_lowest_losses(rows: Sequence[Row]) -> Best:
    """The reference, or the best plan of any strategy at any time if that is better."""
    best: Best = {}
    for row in rows:
        if "error" not in row:
            known = np.array([row["reference"], *(look["handed"] for look in row["checkpoints"])]).min(0)
            key = row["task"], row["seed"]
            best[key] = np.minimum(best.get(key, known), known)
    return best


def compute_normalized_regret(row: Row, point: float, best: np.ndarray) -> float:
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
    return float(left.sum() / possible.sum()) if possible.sum() > MIN_GAIN else math.nan


def collect_normalized_regrets(rows: Sequence[Row], point: float, best: Best) -> dict[str, np.ndarray]:
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
        share = FAILED_SHARE if known is None else compute_normalized_regret(row, point, known)
        own[tasks.index(row["task"]), seeds.index(row["seed"])] = share
    return dict(sorted(shares.items()))


def bootstrap_median(values: np.ndarray) -> MedianInterval:
    """The median of values (N,) or of all of (seeds, tasks), and its percentile interval.

    Of a matrix the rows are resampled, since the cells of one seed are not independent of each other; nan is left
    out (a seed that one task lacks), and so is a seed that all tasks lack. Infinite if a cell failed, nan if none is
    left.
    """
    values = np.asarray(values, dtype=float)
    if np.isinf(values).any():
        return MedianInterval(FAILED_SHARE, FAILED_SHARE, FAILED_SHARE)
    values = values[~np.isnan(values.reshape(len(values), -1)).all(1)]
    if not len(values):
        return MedianInterval(math.nan, math.nan, math.nan)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(values), (BOOTSTRAP_RESAMPLES, len(values)))
    medians = np.nanmedian(values[rows].reshape(BOOTSTRAP_RESAMPLES, -1), axis=1)
    low, high = np.quantile(medians, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return MedianInterval(float(np.nanmedian(values)), float(low), float(high))


def compare_strategies(shares: np.ndarray, names: Sequence[str]) -> list[PairedTest]:
    """Every pair of strategies over the blocks of shares (N, K) that both have (nan: lacks it)."""
    shares = np.minimum(shares, MAX_SHARE)
    pairs = []
    for i, j in combinations(range(len(names)), 2):
        both = shares[~np.isnan(shares[:, [i, j]]).any(1)]
        if len(both) < 2:
            continue
        difference = both[:, i] - both[:, j]
        is_same = np.allclose(difference, 0, rtol=0, atol=1e-12)
        p = 1.0 if is_same else stats.wilcoxon(both[:, i], both[:, j], zero_method="zsplit").pvalue
        win = int((difference < -TIE_MARGIN).sum())
        loss = int((difference > TIE_MARGIN).sum())
        pairs.append(PairedTest(names[i], names[j], win, len(both) - win - loss, loss, p))
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
