"""Compare search strategies: tasks x strategies x paired seeds, rows of raw data, tables with statistics, a plot."""

from __future__ import annotations

from qra_search.bench.cell import CHECKPOINTS, run_cell
from qra_search.bench.run import Progress, environment, read_rows, run_benchmark
from qra_search.bench.tables import make_tables
from qra_search.bench.tasks import Task, parse_strategy, task_budgets, task_named

__all__ = [
    "CHECKPOINTS",
    "Progress",
    "Task",
    "environment",
    "make_tables",
    "parse_strategy",
    "read_rows",
    "run_benchmark",
    "run_cell",
    "task_budgets",
    "task_named",
]
