"""Tables of a benchmark, made from its raw rows: Markdown for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qra_search.bench.measures import Row, best_known, hypervolume_regret, paired, scores, share_left
from qra_search.bench.plots import write_html, write_svg
from qra_search.bench.run import read_rows
from qra_search.bench.statistics import TIE, bootstrap_median, mean_ranks, pairwise

BEST_MARGIN = 1e-9


class NoRows(ValueError):
    """The folder holds no finished cell."""


def make_tables(out: str | Path, *, plotlyjs: bool | str = True) -> dict[str, Any]:
    """Write `tables.json`, `tables.md`, `anytime.html` and `anytime.svg` into a benchmark's folder; returns the tables.

    Args:
        plotlyjs: True puts plotly's code into the HTML (4 MB, works offline); `cdn` links it.

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
    write_html(folder / "anytime.html", tables, plotlyjs=plotlyjs)
    write_svg(folder / "anytime.svg", tables)
    return tables


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """All tables as plain data, one `setting` for each number of evaluations and kind of task (granularity, prior)."""
    settings: dict[tuple[float, str], list[Row]] = {}
    for row in rows:
        settings.setdefault((float(row["evaluations"]), _kind(row["task"])), []).append(row)
    return {
        "rows": len(rows),
        "commits": sorted({row["environment"]["commit"] for row in rows if "environment" in row}),
        "versions": next((row["environment"]["versions"] for row in rows if "environment" in row), {}),
        "settings": [
            {"evaluations": evaluations, "kind": kind, **_setting(chosen)}
            for (evaluations, kind), chosen in sorted(settings.items())
        ],
    }


def _kind(task: str) -> str:
    parts = task.split("-")
    return "-".join(parts[2:]) if len(parts) == 4 else task


def _setting(rows: list[Row]) -> dict[str, Any]:
    names = tuple(sorted({row["strategy"] for row in rows}))
    points = sorted({look["at"] for row in rows for look in row.get("checkpoints", ())})
    at = []
    for point in points:
        left, regret = scores(rows, point), scores(rows, point, hypervolume_regret)
        keys, matrix = paired(left, names)
        entry: dict[str, Any] = {
            "evaluations": point,
            "blocks": len(keys),
            "pooled": {name: _pooled(left, regret, name) for name in names},
            "tasks": _by_task(left, names),
        }
        if len(keys) > 1 and len(names) > 1:
            ranks = mean_ranks(matrix, names)
            entry["ranks"] = {
                "mean": dict(zip(names, ranks.mean.tolist(), strict=True)),
                "friedman_p": _finite(ranks.friedman_p),
                "critical_difference": ranks.critical_difference,
            }
            entry["pairs"] = pairwise(matrix, names)
        at.append(entry)
    return {
        "strategies": list(names),
        "tasks": sorted({row["task"] for row in rows}),
        "seeds": len({row["seed"] for row in rows}),
        "checkpoints": at,
        "conduct": {name: _conduct([row for row in rows if row["strategy"] == name]) for name in names},
        "reference_beaten": _reference_beaten(rows),
        "prior_rank_correlation": _prior_quality(rows),
    }


def _pooled(left: dict, regret: dict, name: str) -> dict[str, Any]:
    """Median over tasks and seeds of one strategy; the seeds are what is resampled."""
    shares, regrets = _by_seed(left, name), _by_seed(regret, name)
    interval = bootstrap_median(shares)
    return {
        "median": interval.median,
        "low": interval.low,
        "high": interval.high,
        "worst": float(np.nanmax(shares)),
        "cells": int(np.isfinite(shares).sum()),
        "lost_to_uniform": int((shares > 1.0 + TIE).sum()),
        "hypervolume_regret": float(np.nanmedian(regrets)),
    }


def _by_task(left: dict, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = {}
    for task in sorted({task for task, _ in left}):
        for name in names:
            values = np.array([v[name] for (t, _), v in sorted(left.items()) if t == task and name in v])
            if len(values):
                interval = bootstrap_median(values)
                entry = {"median": interval.median, "low": interval.low, "high": interval.high, "seeds": len(values)}
                tables.setdefault(task, {})[name] = entry
    return tables


def _by_seed(table: dict, name: str) -> np.ndarray:
    """Scores (seeds, tasks) of one strategy; nan where a cell is missing."""
    seeds, tasks = sorted({seed for _, seed in table}), sorted({task for task, _ in table})
    return np.array([[table.get((task, seed), {}).get(name, np.nan) for task in tasks] for seed in seeds])


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
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.get("prior_rank_correlation") is not None:
            values.setdefault(row["task"], []).append(row["prior_rank_correlation"])
    return {task: float(np.median(v)) for task, v in sorted(values.items())}


def to_markdown(tables: dict[str, Any]) -> str:
    """The tables as Markdown."""
    lines = [
        "# Search strategies side by side",
        "",
        f"{tables['rows']} cells, commit {', '.join(tables['commits'])}; "
        + ", ".join(f"{k} {v}" for k, v in tables["versions"].items())
        + ".",
        "",
        "Share of the possible gain over the best uniform plan that is left, summed over three budgets: 0 is the best "
        "plan known, 1 the best uniform plan, above 1 loses to it. The plan is the one that the strategy would hand "
        "over, at its noise-free loss. Medians with bootstrap 95% intervals over seeds. A cell that failed counts as "
        "1; one that ended early keeps its last value.",
    ]
    for setting in tables["settings"]:
        lines += _setting_markdown(setting)
    return "\n".join(lines) + "\n"


def _setting_markdown(setting: dict[str, Any]) -> list[str]:
    points = setting["checkpoints"]
    if not points:
        return ["", f"## {setting['kind']}", "", "Every cell failed: " + _errors(setting)]
    names = sorted(setting["strategies"], key=lambda n: points[-1]["pooled"][n]["median"])
    lines = [
        "",
        f"## {setting['kind']}, {setting['evaluations']:g} evaluations",
        "",
        f"{len(setting['tasks'])} tasks, {setting['seeds']} seeds. All tasks together:",
        "",
        *_table(
            [
                "strategy",
                *(f"after {p['evaluations']:g}" for p in points),
                "worst",
                "lost to uniform",
                "hypervolume regret",
            ],
            [
                [
                    name,
                    *(_interval(p["pooled"][name]) for p in points),
                    f"{points[-1]['pooled'][name]['worst']:.2f}",
                    f"{points[-1]['pooled'][name]['lost_to_uniform']} of {points[-1]['pooled'][name]['cells']}",
                    f"{points[-1]['pooled'][name]['hypervolume_regret']:.4f}",
                ]
                for name in names
            ],
        ),
    ]
    for point in points:
        lines += ["", f"By task, after {point['evaluations']:g} evaluations:", ""]
        body = [
            [task, *(_interval(by_name[n]) if n in by_name else "" for n in names)]
            for task, by_name in point["tasks"].items()
        ]
        lines += _table(["task", *names], body)
    ranked = [p for p in points if "ranks" in p]
    if ranked:
        lines += ["", "Mean rank over paired task-seed blocks (1 is best):", ""]
        body = [[n, *(f"{p['ranks']['mean'][n]:.2f}" for p in ranked)] for n in names]
        body.append(["critical difference", *(f"{p['ranks']['critical_difference']:.2f}" for p in ranked)])
        body.append(["Friedman p", *(_p(p["ranks"]["friedman_p"]) for p in ranked)])
        body.append(["blocks", *(str(p["blocks"]) for p in ranked)])
        lines += _table(["strategy", *(f"after {p['evaluations']:g}" for p in ranked)], body)
        last = ranked[-1]
        lines += [
            "",
            f"Pairs after {last['evaluations']:g} evaluations (a difference within {TIE} is a tie; Wilcoxon, Holm):",
            "",
        ]
        lines += _table(
            ["first", "second", "win", "tie", "loss", "median difference", "p"],
            [
                [c["first"], c["second"], str(c["win"]), str(c["tie"]), str(c["loss"]),
                 f"{c['median_difference']:+.3f}", _p(c["p"])]
                for c in last["pairs"]
            ],
        )  # fmt: skip
    lines += ["", "Conduct:", "", *_conduct_table(setting, names)]
    beaten = setting["reference_beaten"]
    lines += [
        "",
        f"The reference was beaten on {beaten['beaten']} of {beaten['landscapes']} landscapes, by at most {beaten['by']:.2g} nats; the better plan then counts as the best known.",
    ]
    if setting["prior_rank_correlation"]:
        lines += ["", "Rank correlation of the prior with the truth, over random plans of equal bytes: "
                  + ", ".join(f"{k} {v:.2f}" for k, v in setting["prior_rank_correlation"].items()) + "."]  # fmt: skip
    if _errors(setting):
        lines += ["", "Failures: " + _errors(setting)]
    return lines


def _conduct_table(setting: dict[str, Any], names: Sequence[str]) -> list[str]:
    header = ["strategy", "seconds a proposal", "of a processor", "slowest", "trials", "replicates", "low fidelity",
              "failed trials", "failed cells", "cut short", "90% interval covers"]  # fmt: skip
    body = []
    for name in names:
        c = setting["conduct"][name]
        times = [c["seconds_per_proposal"], c["cpu_seconds_per_proposal"], c["slowest_proposal"]]
        counts = [
            c["trials"],
            c["replicates"],
            c["low_fidelity"],
            c["failed_trials"],
            c["failed_cells"],
            c["incomplete_cells"],
        ]
        cover = "" if c["coverage_90"] is None else f"{c['coverage_90']:.2f}"
        body.append([name, *("" if t is None else f"{t:.3f}" for t in times), *map(str, counts), cover])
    return _table(header, body)


def _table(header: list[str], body: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *body)]


def _interval(entry: dict[str, Any]) -> str:
    return f"{entry['median']:.3f} ({entry['low']:.3f}–{entry['high']:.3f})"


def _p(value: float | None) -> str:
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _errors(setting: dict[str, Any]) -> str:
    return "; ".join(f"{name}: {e}" for name, c in setting["conduct"].items() for e in c["errors"])


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
