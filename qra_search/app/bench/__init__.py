"""Compare search strategies: tasks x strategies x paired seeds, rows of raw data, tables with statistics, a plot."""

from __future__ import annotations

from qra_search.app.bench.run import (
    build_task,
    list_task_budgets,
    parse_strategy,
    read_rows,
    run_benchmark,
    run_cell,
)
from qra_search.app.bench.tables import write_tables

__all__ = [
    "build_task",
    "parse_strategy",
    "read_rows",
    "run_benchmark",
    "run_cell",
    "list_task_budgets",
    "write_tables",
]
