"""Tables of a benchmark, made from its raw rows: Markdown for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qra_search.bench.markdown import to_markdown
from qra_search.bench.measures import Row, best_known, hypervolume_regret, scores
from qra_search.bench.plots import anytime_figure
from qra_search.bench.run import read_rows
from qra_search.bench.statistics import TIE, bootstrap_median, mean_ranks, pairwise
from qra_search.report.figures.canvas import to_svg

BEST_MARGIN = 1e-9
RANKED = 0.1
"""A strategy that has fewer of the blocks is left out of the ranks, which are over blocks that all of them have."""


class NoRows(ValueError):
    """The folder holds no finished cell."""


def make_tables(out: str | Path) -> dict[str, Any]:
    """Write `tables.json`, `tables.md` and `anytime.svg` into a benchmark's folder; returns the tables.

    Raises:
        NoRows: nothing has been run there.
    """
    folder = Path(out)
    rows = read_rows(folder)
    if not rows:
        raise NoRows(f"{folder} holds no finished cell: run the benchmark first")
    tables = summarise(rows)
    (folder / "tables.json").write_text(json.dumps(tables, indent=1, allow_nan=False) + "\n")
    (folder / "tables.md").write_text(to_markdown(tables))
    (folder / "anytime.svg").write_text(to_svg(anytime_figure(tables), theme="screen"))
    return tables


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """All tables as plain data, one `setting` for each kind of task (layers, granularity, prior)."""
    settings: dict[str, list[Row]] = {}
    for row in rows:
        settings.setdefault(_kind(row["task"]), []).append(row)
    return {
        "rows": len(rows),
        "commits": sorted({row["environment"]["commit"] for row in rows if "environment" in row}),
        "versions": next((row["environment"]["versions"] for row in rows if "environment" in row), {}),
        "settings": [{"kind": kind, **_setting(chosen)} for kind, chosen in sorted(settings.items())],
    }


def _kind(task: str) -> str:
    parts = task.split("-")
    return "-".join(parts[1:]) if len(parts) > 3 and parts[1].isdigit() else task


def rows_at(rows: Sequence[Row], point: float) -> list[Row]:
    """One row for every strategy, task and seed that was let run to a checkpoint: the shortest search that was.

    A search of fewer evaluations says nothing there; one that was cut short or failed on the way does.
    """
    chosen: dict[tuple[str, str, int], Row] = {}
    for row in sorted(rows, key=lambda row: -row["evaluations"]):
        if row["evaluations"] >= point:
            chosen[row["task"], row["strategy"], row["seed"]] = row
    return list(chosen.values())


def _setting(rows: list[Row]) -> dict[str, Any]:
    names = sorted({row["strategy"] for row in rows})
    points = sorted({look["at"] for row in rows for look in row.get("checkpoints", ())})
    best = best_known(rows)
    return {
        "strategies": names,
        "tasks": sorted({row["task"] for row in rows}),
        "seeds": len({row["seed"] for row in rows}),
        "checkpoints": [_checkpoint(rows_at(rows, point), point, best) for point in points],
        "conduct": {name: _conduct([row for row in rows if row["strategy"] == name]) for name in names},
        "reference_beaten": _reference_beaten(rows),
        "prior_rank_correlation": _prior_quality(rows),
    }


def _checkpoint(rows: list[Row], point: float, best: dict[tuple[str, int], np.ndarray]) -> dict[str, Any]:
    names = sorted({row["strategy"] for row in rows})
    left = scores(rows, point, best, names)
    regret = scores(rows, point, best, names, hypervolume_regret)
    matrix = left.reshape(-1, len(names))
    matrix = matrix[np.isfinite(matrix).any(1)]
    often = np.isfinite(matrix).mean(0) >= RANKED
    complete = matrix[np.isfinite(matrix[:, often]).all(1)][:, often]
    entry: dict[str, Any] = {
        "evaluations": point,
        "blocks": len(complete),
        "pooled": {name: _pooled(left[..., k].T, regret[..., k]) for k, name in enumerate(names)},
        "tasks": {
            task: {
                name: bootstrap_median(own) | {"seeds": int(np.isfinite(own).sum())}
                for name, own in zip(names, left[i].T, strict=True)
                if np.isfinite(own).any()
            }
            for i, task in enumerate(sorted({row["task"] for row in rows}))
        },
    }
    if len(names) > 1:
        entry["pairs"] = pairwise(matrix, names)
    if len(complete) > 1 and often.sum() > 1:
        entry["ranks"] = mean_ranks(complete, [name for name, ranked in zip(names, often, strict=True) if ranked])
    return entry


def _pooled(shares: np.ndarray, regrets: np.ndarray) -> dict[str, Any]:
    """Median over tasks and seeds of one strategy; the seeds (first axis of the shares) are what is resampled."""
    return {
        **bootstrap_median(shares),
        "worst": float(np.nanmax(shares)),
        "cells": int(np.isfinite(shares).sum()),
        "lost_to_uniform": int((shares > 1.0 + TIE).sum()),
        "hypervolume_regret": float(np.nanmedian(regrets)),
    }


def _conduct(rows: list[Row]) -> dict[str, Any]:
    good = [row for row in rows if "error" not in row]
    timed = [row for row in good if row["propose_seconds"]]
    covered = [row["coverage_90"] for row in good if row["coverage_90"] is not None]
    return {
        "cells": len(rows),
        "errors": sorted({row["error"] for row in rows if "error" in row}),
        "failed_cells": len(rows) - len(good),
        "incomplete_cells": sum(not row["complete"] for row in good),
        "trials": sum(row["trials"] for row in good),
        "replicates": sum(row["replicates"] for row in good),
        "low_fidelity": sum(row["low_fidelity"] for row in good),
        "failed_trials": sum(row["failed"] for row in good),
        "seconds_per_proposal": _median([row["propose_seconds"]["mean"] for row in timed]),
        "cpu_seconds_per_proposal": _median([row["propose_cpu_seconds"]["mean"] for row in timed]),
        "slowest_proposal": max((row["propose_seconds"]["max"] for row in timed), default=None),
        "coverage_90": _median(covered),
    }


def _reference_beaten(rows: list[Row]) -> dict[str, Any]:
    """Where a strategy found better than the reference: how often, and by how many nats at most."""
    best = best_known(rows)
    reference = {(r["task"], r["seed"]): np.array(r["reference"]) for r in rows if "error" not in r}
    margins = [float((reference[key] - best[key]).max()) for key in best]
    return {
        "landscapes": len(margins),
        "beaten": sum(m > BEST_MARGIN for m in margins),
        "by": max(margins, default=0.0),
    }


def _prior_quality(rows: list[Row]) -> dict[str, float]:
    known = [row for row in rows if row.get("prior_rank_correlation") is not None]
    return {
        task: float(np.median([row["prior_rank_correlation"] for row in known if row["task"] == task]))
        for task in sorted({row["task"] for row in known})
    }


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None
