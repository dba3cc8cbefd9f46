"""Run searches on tasks whose best is known, in parallel processes; every finished one is a line of `raw.jsonl`.

A cell is a strategy on a task with a seed, by their names, measured against the noise-free truth.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import re
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, suppress
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from qra_search import plugins
from qra_search.app.config import make_config, read_pairs
from qra_search.errors import DISTRIBUTION, BadInput
from qra_search.executors.workers import export_variables, limit_threads
from qra_search.files import write_text
from qra_search.log.state import StudyState
from qra_search.space.budgets import resolve_budgets
from qra_search.space.space import DEFAULT_RANKS, SearchSpace
from qra_search.space.steps import AdjacentSteps
from qra_search.strategies import Strategy, make_strategy
from qra_search.study.result import SearchResult
from qra_search.study.study import Study

RAW_FILE = "raw.jsonl"
PACKAGES = ("numpy", "scipy", "torch", "botorch", "gpytorch", "pymoo", "moocore", DISTRIBUTION)
CHECKPOINTS = (10, 25, 50, 100, 200, 500, 1000, 2000)
"""Full evaluations spent (prior and low fidelity at their true share) at which a search is judged, as at its end."""
TASK_PATTERN = re.compile(r"([a-z]+)-(\d+)-([a-z]+)-([a-z]+)(?:-noise(less|\d+(?:\.\d+)?))?")
EXAMPLE_TASK = "interaction-32-layer-measured"
TUNINGS_PREFIX = "tunings-"
"""Before the name of a task whose real tunings were recorded."""


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

    Raises:
        ValueError, UnknownName: a task or a strategy does not exist; nothing has been run then.
    """
    for text in strategies:
        parse_strategy(text)
    for task in tasks:
        build_benchmark_task(task, seeds[0]).close()
    if not 1 <= evaluations < math.inf:
        raise BadInput(f"--evaluations must be a finite number of at least 1, got {evaluations:g}")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    known = {get_cell_key(row) for row in read_rows(folder) if "error" not in row}
    # Cells of one landscape lie together, so that each process finds its reference once.
    cells = [(task, s, seed, float(evaluations)) for task in tasks for seed in seeds for s in strategies]
    wanted = list(dict.fromkeys(cells))  # one that is named twice runs once
    todo = [cell for cell in wanted if cell not in known]
    if progress is not None and len(todo) < len(wanted):
        progress(f"resumed: {len(wanted) - len(todo)} of {len(wanted)} cells are finished, {len(todo)} left")
    failed = 0
    # Spawned, not forked: a fork of a process that has threads (torch) may hang.
    spawned = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    with export_variables(limit_threads(1)), spawned as pool, (folder / RAW_FILE).open("a") as raw:
        stamp = describe_environment()
        flying = [pool.submit(_run_cell_safely, *cell) for cell in todo]
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
    path = Path(out) / RAW_FILE
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


def _run_cell_safely(task: str, strategy: str, seed: int, evaluations: float) -> dict[str, Any]:
    """The row of one cell; an exception becomes its `error`, and the benchmark continues."""
    key = {"task": task, "strategy": strategy, "seed": seed, "evaluations": evaluations}
    try:
        row = run_cell(task, strategy, seed, evaluations)
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


def run_cell(task: str, strategy: str, seed: int, evaluations: float) -> dict[str, Any]:
    """Run one search and judge it at every checkpoint and at its end; returns a row of plain data.

    At a checkpoint the log is cut to what had been spent then, and the strategy's best plan by it (`SearchResult.best`)
    is taken at its noise-free loss.
    """
    with closing(build_benchmark_task(task, seed)) as landscape:
        space = landscape.space
        budgets = getattr(landscape, "budgets", None) or list_task_budgets(space)
        grid = sorted([*budgets, *((a + b) // 2 for a, b in zip(budgets, budgets[1:], strict=False))])
        smallest = space.decode(AdjacentSteps(space).smallest)
        fitting = [space.uniform_plans(budget) or [smallest] for budget in grid]
        reference = find_reference(task, seed, tuple(grid))
        study = Study(
            landscape,
            strategy=parse_strategy(strategy),
            evaluations=evaluations,
            memory_budget=budgets,
            seed=seed,
            charged=True,
        )
        begun = time.perf_counter()
        study.run()
        seconds = time.perf_counter() - begun
        state = study.state
        return {
            "seconds": round(seconds, 3),
            "spent": round(state.spent, 4),
            "budgets": list(budgets),
            "grid": grid,
            "reference": list(reference.losses),
            "reference_exact": reference.exact,
            "uniform": [min(map(landscape.true_loss, plans)) for plans in fitting],
            "checkpoints": [
                score_checkpoint(point, state, study.strategy, landscape, grid)
                for point in list_checkpoints(evaluations)
            ],
            "trials": len(state.trials),
            "failed": sum(trial.status == "failed" for trial in state.trials),
        }


@lru_cache(maxsize=1)
def find_reference(task: str, seed: int, budgets: tuple[int, ...]) -> Any:
    """The best plans known of a task's landscape; see `qra_eval.landscapes.reference`."""
    with closing(build_benchmark_task(task, seed)) as landscape:
        return landscape.find_reference_front(budgets)


def list_checkpoints(evaluations: float) -> list[float]:
    """The `CHECKPOINTS` below so many evaluations, and these.

    >>> list_checkpoints(20.0), list_checkpoints(25.0), list_checkpoints(4.5)
    ([10, 20], [10, 25], [4.5])
    """
    last = int(evaluations) if float(evaluations).is_integer() else evaluations
    return [point for point in CHECKPOINTS if point < last] + [last]


def score_checkpoint(
    point: float, state: StudyState, strategy: Strategy, landscape: Any, grid: Sequence[int]
) -> dict[str, Any]:
    """The best plan at each budget of the grid when at most `point` evaluations were spent."""
    then = truncate_state(state, point)
    # The strategy's own best plan, not the allocated one.
    result = replace(SearchResult.from_state(then, strategy), sensitivities=None)
    smallest = then.space.decode(AdjacentSteps(then.space).smallest)  # taken if nothing fits
    best = [result.best(budget) for budget in grid]
    return {
        "at": point,
        "spent": round(then.spent, 4),
        "trials": len(then.trials),
        "handed": [landscape.true_loss(found.plan if found else smallest) for found in best],
        "believed": [found.loss if found else None for found in best],
    }


def truncate_state(state: StudyState, point: float) -> StudyState:
    """The state as it stood when at most `point` full evaluations were spent."""
    spent = accumulate((trial.cost for trial in state.trials), initial=state.charge)
    return replace(state, trials=state.trials[: sum(total <= point + 1e-9 for total in spent) - 1])


def build_benchmark_task(name: str, seed: int) -> Any:
    """The landscape of a name, `FAMILY-LAYERS-GRANULARITY-SENSITIVITIES` or `tunings-TASK`, drawn by a seed; else
    ValueError.

    With `-noiseless` behind it, every evaluation shows the true loss; with `-noise0.1` two seeds of a plan differ by
    so many nats (deviation) instead of as measured.
    """
    if name.startswith(TUNINGS_PREFIX):
        options = {"task": name.removeprefix(TUNINGS_PREFIX), "seed": seed}
        config = make_config({"evaluator": "tunings", "options": options}, source=f"task {name}")
        return plugins.load("evaluators", "tunings")(config)
    parts = TASK_PATTERN.fullmatch(name)
    if parts is None:
        raise ValueError(
            f"unknown task {name!r}: write FAMILY-LAYERS-GRANULARITY-SENSITIVITIES, such as {EXAMPLE_TASK}"
        )
    family, layers, granularity, sensitivities, noise = parts.groups()
    options = {"family": family, "layers": int(layers), "sensitivities": sensitivities, "seed": seed}
    if noise is not None:
        options["noise"] = 0.0 if noise == "less" else float(noise)
    config = make_config(
        {"evaluator": "landscape", "options": options},
        {"space.granularity": granularity, "space.ranks": DEFAULT_RANKS, "search.seed": seed},
        source=f"task {name}",
    )
    return plugins.load("evaluators", "landscape")(config)


def list_task_budgets(space: SearchSpace) -> tuple[int, int, int]:
    """The three budgets of the protocol, in bytes: uniform 3-bit at rank 8, midway, uniform 4-bit at rank 8."""
    first, last = resolve_budgets(space, ("uniform3r8", "uniform4r8"))
    return first, (first + last) // 2, last


def parse_strategy(text: str) -> Strategy:
    """A strategy from `NAME` or `FILE.py:NAME`, with options behind it as YAML: `NAME?OPTION=VALUE&OPTION=VALUE`."""
    name, _, query = text.partition("?")
    options = read_pairs(query.split("&") if query else (), f"option of {name}", "population=8")
    return make_strategy(name, **options)
