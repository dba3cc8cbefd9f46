"""One cell of a benchmark: a strategy on a task with a seed, by their names, measured against the noise-free truth."""

from __future__ import annotations

import hashlib
import inspect
import re
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from qra_search import plugins
from qra_search.app.config import make_config, read_yaml
from qra_search.errors import BadInput
from qra_search.log.state import StudyState
from qra_search.schemas import Proposal, Trial
from qra_search.space.budgets import resolve_budget
from qra_search.space.space import DEFAULT_RANKS, SearchSpace
from qra_search.space.steps import AdjacentSteps
from qra_search.strategies import Estimates, Strategy, make_strategy
from qra_search.study.result import SearchResult
from qra_search.study.study import Study

CHECKPOINTS = (10, 25, 50, 100, 200, 500, 1000, 2000)
"""Full evaluations spent (prior and low fidelity at their true share) at which a search is judged, as at its end."""
INTERVAL_90 = 1.6449
TASK = re.compile(r"([a-z]+)-(\d+)-([a-z]+)-([a-z]+)(?:-noise(less|\d+(?:\.\d+)?))?")
EXAMPLE = "interaction-32-layer-measured"
TUNINGS = "tunings-"
"""Before the name of a task whose real tunings were recorded."""


def run_cell(
    task: str, strategy: str, seed: int, evaluations: float, *, reference_cache: str | None = None
) -> dict[str, Any]:
    """Run one search and judge it at every checkpoint and at its end; returns a row of plain data.

    At a checkpoint the log is cut to what had been spent then, and the strategy's best plan by it (`SearchResult.best`)
    is taken at its noise-free loss.

    Args:
        reference_cache: folder where reference optima are kept between processes.
    """
    with closing(build_task(task, seed)) as landscape:
        space = landscape.space
        budgets = getattr(landscape, "budgets", None) or list_task_budgets(space)
        grid = sorted([*budgets, *((a + b) // 2 for a, b in zip(budgets, budgets[1:], strict=False))])
        smallest = space.decode(AdjacentSteps(space).smallest)
        fitting = [space.uniform_plans(budget) or [smallest] for budget in grid]
        reference = landscape.find_reference_front(tuple(grid), cache=reference_cache)
        timed = TimedStrategy(parse_strategy(strategy))
        study = Study(
            landscape, strategy=timed, evaluations=evaluations, memory_budget=budgets, seed=seed, charged=True
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
                score_checkpoint(point, state, timed, landscape, grid)
                for point in list_checkpoints(evaluations)
            ],
            **summarize_trials(state.trials, timed),
        }


def list_checkpoints(evaluations: float) -> list[float]:
    """The `CHECKPOINTS` below so many evaluations, and these.

    >>> list_checkpoints(20.0), list_checkpoints(25.0), list_checkpoints(4.5)
    ([10, 20], [10, 25], [4.5])
    """
    last = int(evaluations) if float(evaluations).is_integer() else evaluations
    return [point for point in CHECKPOINTS if point < last] + [last]


class TimedStrategy(Strategy):
    """A strategy that records how long each of its proposals took."""

    def __init__(self, inner: Strategy):
        self.inner = inner
        self.name = inner.name
        self.searches_extra = inner.searches_extra
        self.seconds: list[float] = []

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        begun = time.perf_counter()
        proposals = self.inner.propose(state, n)
        count = max(len(proposals), 1)
        self.seconds += [(time.perf_counter() - begun) / count] * count
        return proposals

    def estimate(self, state: StudyState) -> Estimates:
        return self.inner.estimate(state)


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


def summarize_trials(trials: tuple[Trial, ...], strategy: TimedStrategy) -> dict[str, Any]:
    """How the strategy behaved: time, replicates, low fidelity, failures, and how honest its predictions were."""
    scores = [
        abs(t.loss - t.proposal.predicted_loss) / t.proposal.predicted_std
        for t in trials
        if t.done and t.proposal.predicted_loss is not None and t.proposal.predicted_std
    ]
    seconds = None
    if strategy.seconds:
        mean = sum(strategy.seconds) / len(strategy.seconds)
        seconds = {"mean": round(mean, 5), "max": round(max(strategy.seconds), 5)}
    return {
        "trials": len(trials),
        "replicates": len(trials) - len({(t.plan, t.fidelity) for t in trials}),
        "low_fidelity": sum(t.fidelity < 1.0 for t in trials),
        "failed": sum(t.status == "failed" for t in trials),
        "proposals": len(strategy.seconds),
        "propose_seconds": seconds,
        "coverage_90": round(float(np.mean(np.array(scores) < INTERVAL_90)), 4) if scores else None,
    }


def build_task(name: str, seed: int) -> Any:
    """The landscape of a name, `FAMILY-LAYERS-GRANULARITY-SENSITIVITIES` or `tunings-TASK`, drawn by a seed; else
    ValueError.

    With `-noiseless` behind it, every evaluation shows the true loss; with `-noise0.1` two seeds of a plan differ by
    so many nats (deviation) instead of as measured.
    """
    if name.startswith(TUNINGS):
        options = {"task": name.removeprefix(TUNINGS), "seed": seed}
        config = make_config({"evaluator": "tunings", "options": options}, source=f"task {name}")
        return plugins.load("evaluators", "tunings")(config)
    parts = TASK.fullmatch(name)
    if parts is None:
        raise ValueError(
            f"unknown task {name!r}: write FAMILY-LAYERS-GRANULARITY-SENSITIVITIES, such as {EXAMPLE}, or "
            f"{TUNINGS}banking77"
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
    first, last = (resolve_budget(space, f"uniform{bits}r8") for bits in (3, 4))
    return first, (first + last) // 2, last


def parse_strategy(text: str) -> Strategy:
    """A strategy from `NAME` or `FILE.py`, with options behind it, read as YAML: `NAME?OPTION=VALUE&OPTION=VALUE`."""
    name, _, query = text.partition("?")
    options: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise BadInput(f"option {pair!r} is not OPTION=VALUE, in {text!r}")
        options[key] = read_yaml(value)
    return make_strategy(load_strategy(Path(name)) if name.endswith(".py") else name, **options)


def make_strategy_label(text: str) -> str:
    """The name of a strategy in rows and tables: as it was given; of one in a file, the file's name with a hash of the
    file, since one that was changed is another strategy."""
    name, mark, options = text.partition("?")
    if name.endswith(".py"):
        name = f"{Path(name).name}@{hashlib.sha256(Path(name).read_bytes()).hexdigest()[:6]}"
    return name + mark + options


def load_strategy(path: Path) -> type[Strategy]:
    """The one class of a Python file that is a strategy; raises BadInput if there is none, or several."""
    module = plugins.load_file(path)
    own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
    found = [kind for kind in own if issubclass(kind, Strategy) and not inspect.isabstract(kind)]
    if len(found) != 1:
        names = f"{len(found)} ({', '.join(kind.__name__ for kind in found)})" if found else "no"
        raise BadInput(
            f"strategy file {path} defines {names} classes that derive from qra_search.Strategy: define one"
        )
    return found[0]
