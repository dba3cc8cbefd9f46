"""The tables of a benchmark as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qra_search.bench.statistics import TIE

CONDUCT = {
    "seconds a proposal": ("seconds_per_proposal", ".3f"),
    "of a processor": ("cpu_seconds_per_proposal", ".3f"),
    "slowest": ("slowest_proposal", ".3f"),
    "trials": ("trials", "d"),
    "replicates": ("replicates", "d"),
    "low fidelity": ("low_fidelity", "d"),
    "failed trials": ("failed_trials", "d"),
    "failed cells": ("failed_cells", "d"),
    "cut short": ("incomplete_cells", "d"),
    "90% interval covers": ("coverage_90", ".2f"),
}
"""Columns of the table of conduct: which figure each has, and how it is written."""


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
        reason = _errors(setting) or "none reached a checkpoint"
        return ["", f"## {setting['kind']}", "", f"Every cell failed: {reason}"]
    names = _in_order(setting)
    last = {n: [p["pooled"][n] for p in points if n in p["pooled"]][-1] for n in names}
    body = [
        [
            name,
            _cells(setting, name),
            *(_interval(p["pooled"][name]) if name in p["pooled"] else "" for p in points),
            f"{last[name]['worst']:.2f}",
            f"{last[name]['lost_to_uniform']} of {last[name]['cells']}",
            f"{last[name]['hypervolume_regret']:.4f}",
        ]
        for name in names
    ]
    lines = [
        "",
        f"## {setting['kind']}",
        "",
        f"{len(setting['tasks'])} tasks, {setting['seeds']} seeds. All tasks together (a cell is a task and a seed; a "
        "strategy that was not let run so far has no figure):",
        "",
        *_table(["strategy", "cells", *_after(points), "worst", "lost to uniform", "hypervolume regret"], body),
    ]
    for point in points:
        lines += ["", f"By task, after {point['evaluations']:g} evaluations:", ""]
        present = [n for n in names if n in point["pooled"]]
        body = [
            [task, *(_interval(by_name[n]) if n in by_name else "" for n in present)]
            for task, by_name in point["tasks"].items()
        ]
        lines += _table(["task", *present], body)
    ranked = [p for p in points if "ranks" in p]
    if ranked:
        lines += ["", "Mean rank over the task-seed blocks that all of them have (1 is best):", ""]
        ranks = [p["ranks"]["mean"] for p in ranked]
        often = [n for n in names if any(n in mean for mean in ranks)]
        body = [[n, *(f"{mean[n]:.2f}" if n in mean else "" for mean in ranks)] for n in often]
        body.append(["critical difference", *(f"{p['ranks']['critical_difference']:.2f}" for p in ranked)])
        body.append(["Friedman p", *(_p(p["ranks"]["friedman_p"]) for p in ranked)])
        body.append(["blocks", *(str(p["blocks"]) for p in ranked)])
        lines += _table(["strategy", *_after(ranked)], body)
    for point in points:
        if point.get("pairs"):
            lines += [
                "",
                f"Win/tie/loss of the row against the column after {point['evaluations']:g} evaluations, over the "
                f"blocks that both have (within {TIE} is a tie; * where Wilcoxon's p, adjusted after Holm, is below "
                "0.05):",
                "",
                *_matrix(point["pairs"], [n for n in names if n in point["pooled"]]),
            ]
    lines += ["", "Conduct:", "", *_conduct_table(setting, names)]
    beaten = setting["reference_beaten"]
    lines += [
        "",
        f"The reference was beaten on {beaten['beaten']} of {beaten['landscapes']} landscapes, by at most "
        f"{beaten['by']:.2g} nats; the better plan then counts as the best known.",
    ]
    if setting["prior_rank_correlation"]:
        lines += ["", "Rank correlation of the prior with the truth, over random plans of equal bytes: "
                  + ", ".join(f"{k} {v:.2f}" for k, v in setting["prior_rank_correlation"].items()) + "."]  # fmt: skip
    if _errors(setting):
        lines += ["", "Failures: " + _errors(setting)]
    return lines


def _in_order(setting: dict[str, Any]) -> list[str]:
    """The strategies that have any figure, best first: by the last checkpoint that all of them reached."""
    points = setting["checkpoints"]
    names = [n for n in setting["strategies"] if any(n in p["pooled"] for p in points)]
    shared = [p for p in points if all(n in p["pooled"] for n in names)] or points[:1]
    pooled = shared[-1]["pooled"]
    return sorted(names, key=lambda n: pooled[n]["median"] if n in pooled else float("inf"))


def _cells(setting: dict[str, Any], name: str) -> str:
    """How many cells a strategy has at its checkpoints: one number, or the first and the last."""
    counts = [p["pooled"][name]["cells"] for p in setting["checkpoints"] if name in p["pooled"]]
    return str(counts[0]) if len(set(counts)) == 1 else f"{counts[0]} to {counts[-1]}"


def _matrix(pairs: list[dict[str, Any]], names: Sequence[str]) -> list[str]:
    cells: dict[tuple[str, str], str] = {}
    for c in pairs:
        star = "*" if c["p"] < 0.05 else ""
        cells[c["first"], c["second"]] = f"{c['win']}/{c['tie']}/{c['loss']}{star}"
        cells[c["second"], c["first"]] = f"{c['loss']}/{c['tie']}/{c['win']}{star}"
    return _table(["", *names], [[row, *(cells.get((row, column), "") for column in names)] for row in names])


def _conduct_table(setting: dict[str, Any], names: Sequence[str]) -> list[str]:
    body = []
    for name in names:
        values = [(setting["conduct"][name][key], form) for key, form in CONDUCT.values()]
        body.append([name, *("" if value is None else format(value, form) for value, form in values)])
    return _table(["strategy", *CONDUCT], body)


def _after(points: Sequence[dict[str, Any]]) -> list[str]:
    return [f"after {p['evaluations']:g}" for p in points]


def _table(header: list[str], body: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *body)]


def _interval(entry: dict[str, Any]) -> str:
    return f"{entry['median']:.3f} ({entry['low']:.3f}–{entry['high']:.3f})"


def _p(value: float | None) -> str:
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _errors(setting: dict[str, Any]) -> str:
    return "; ".join(f"{name}: {e}" for name, c in setting["conduct"].items() for e in c["errors"])
