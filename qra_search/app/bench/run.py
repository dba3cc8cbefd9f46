"""Run the cells of a benchmark in parallel processes; every finished one is a line of `raw.jsonl`, never run twice."""

from __future__ import annotations

import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import subprocess
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any

from qra_search.app.bench.cell import build_task, make_strategy_label, parse_strategy, run_cell
from qra_search.errors import DISTRIBUTION, BadInput
from qra_search.executors.devices import export_variables, limit_threads
from qra_search.files import write_text

RAW = "raw.jsonl"
REFERENCES = "references"
PACKAGES = ("numpy", "scipy", "torch", "botorch", "gpytorch", "pymoo", "moocore", DISTRIBUTION)


def run_benchmark(
    tasks: Sequence[str],
    strategies: Sequence[str],
    seeds: Sequence[int],
    evaluations: float,
    out: str | Path,
    workers: int = 2,
    *,
    progress: Callable[[str], None] | None = None,
) -> tuple[int, int]:
    """Run every cell that `out/raw.jsonl` does not hold yet, and those that failed once more.

    Returns how many cells ran, and how many of these failed.

    Args:
        tasks: names for `build_task`.
        strategies: texts for `parse_strategy`.
        seeds: each draws a landscape and seeds the search on it.
        evaluations: full evaluations that a search may spend.
        workers: processes, each with one thread.
        progress: is given one line for every finished cell.

    Raises:
        ValueError, UnknownName: a task or a strategy does not exist; nothing has been run then.
    """
    labels = {text: make_strategy_label(text) for text in strategies if parse_strategy(text)}
    for task in tasks:
        build_task(task, seeds[0]).close()
    if not 1 <= evaluations < math.inf:
        raise BadInput(f"evaluations is {evaluations:g}: a finite number of at least 1 is needed")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    known = {get_cell_key(row) for row in read_rows(folder) if "error" not in row}
    # Cells of one landscape lie together, so that its reference is found once and then read.
    cells = {(task, labels[s], seed): (task, s, seed) for task in tasks for seed in seeds for s in strategies}
    wanted = list(cells.values())  # one that is named twice runs once
    todo = [c for c in wanted if (c[0], labels[c[1]], c[2], float(evaluations)) not in known]
    if progress is not None and len(todo) < len(wanted):
        progress(f"resumed: {len(wanted) - len(todo)} of {len(wanted)} cells are finished, {len(todo)} left")
    failed = 0
    # Spawned, not forked: a fork of a process that has threads (torch) may hang.
    spawned = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    with export_variables(limit_threads(1)), spawned as pool, (folder / RAW).open("a") as raw:
        stamp = describe_environment()
        rest = (float(evaluations), str(folder / REFERENCES))
        flying = [pool.submit(_run_cell, *cell, *rest) for cell in todo]
        try:
            for done, future in enumerate(as_completed(flying), start=1):
                row = future.result() | {"environment": stamp}
                failed += "error" in row
                raw.write(json.dumps(row, allow_nan=False) + "\n")
                raw.flush()
                if progress is not None:
                    progress(_format_row(row, done, len(todo)))
        finally:
            for future in flying:
                future.cancel()  # after an interrupt: what was not begun is not waited for
    return len(todo), failed


def read_rows(out: str | Path) -> list[dict[str, Any]]:
    """Rows of `raw.jsonl` in a folder, the last of each cell; a last line cut short by a kill is left out."""
    path = Path(out) / RAW
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")
    if lines[-1]:
        # The next row must not be glued to half a line.
        write_text(path, "\n".join(lines[:-1]) + ("\n" if lines[:-1] else ""))
    rows: dict[tuple[str, str, int, float], dict[str, Any]] = {}
    for number, line in enumerate(lines[:-1], start=1):
        try:
            if line:
                row = json.loads(line)
                rows[get_cell_key(row)] = row
        except (ValueError, LookupError, TypeError):
            raise BadInput(f"{path}, line {number} is not a row of a benchmark: remove the line") from None
    return list(rows.values())


def get_cell_key(row: dict[str, Any]) -> tuple[str, str, int, float]:
    """What makes two rows the same cell."""
    return row["task"], row["strategy"], row["seed"], float(row["evaluations"])


def describe_environment() -> dict[str, Any]:
    """Commit, versions and kind of machine; nothing that names a person, a host or a folder."""
    versions = {}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "commit": _read_commit(),
        "python": platform.python_version(),
        "versions": versions,
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
    }


def _run_cell(
    task: str, strategy: str, seed: int, evaluations: float, references: str | None
) -> dict[str, Any]:
    """The row of one cell; an exception becomes its `error`, and the benchmark continues."""
    key = {"task": task, "strategy": make_strategy_label(strategy), "seed": seed, "evaluations": evaluations}
    try:
        row = run_cell(task, strategy, seed, evaluations, reference_cache=references)
    except Exception as error:  # a strategy under test may raise anything: its cell counts as failed
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return key | {"error": f"{type(error).__name__}: {error} ({where})"[:500]}
    return key | row


def _read_commit() -> str:
    """Commit of the code that runs, with `+` where tracked files differ from it; `unknown` outside a checkout."""
    options = ["describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]  # no tag describes it
    try:
        return subprocess.check_output(
            ["git", *options], cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _format_row(row: dict[str, Any], done: int, total: int) -> str:
    name = f"{done}/{total} {row['task']} {row['strategy']} seed {row['seed']}"
    if "error" in row:
        return f"{name}: FAILED, {row['error']}"
    last = row["checkpoints"][-1] if row["checkpoints"] else None
    losses = "" if last is None else f", at {last['at']}: " + " ".join(f"{x:.4f}" for x in last["handed"])
    return f"{name}: {row['seconds']:.1f} s{losses}"
