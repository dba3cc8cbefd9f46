"""Plans tuned in full one after the other, and each tested on data that the search never saw."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from qra_search.evaluation.evaluator import EvaluationFailed, Evaluator, Figures, ReloadFailed, Tuned
from qra_search.report import formatting
from qra_search.report.formatting import metric_text
from qra_search.runs.comparison import TUNING, TestResult, TuningFailed
from qra_search.runs.contest import Contest, TestFile, tuned_entry, tuning_name
from qra_search.runs.tuned import forget_checkpoints
from qra_search.space.memory import UNQUANTIZED_BITS, format_bytes
from qra_search.space.space import Plan, SearchSpace
from qra_search.study.listener import Listener


def compare_on_test(
    evaluator: Evaluator,
    contest: Contest,
    path: Path,
    space: SearchSpace,
    listener: Listener,
    *,
    save: Path | None = None,
    figures: Callable[[str], Figures] | None = None,
) -> list[TestResult]:
    """Tune every plan once for each seed, write `path` after each, and return what it holds.

    A comparison that was broken off is resumed: a plan already tuned with a seed and the same settings is not tuned
    again, one that failed is, and one that was cut off midway continues from its checkpoint. The found plan's first
    tuning is saved into the folder `save`; if that does not load back as it was tuned, this is recorded with what was
    measured. Uniform plans that were tuned alike before stay in the comparison, also if they are not compared now.

    Args:
        figures: by the name of a tuning, what hears of its steps.

    Raises:
        TuningFailed: the found plan cannot be tuned; another that cannot is recorded as such, and the rest continue.
    """
    file = TestFile(path, contest)
    if not file.has_untuned:
        listener.progress("test the untuned model", 0, 1)
        untuned = space.unquantized.uniform(UNQUANTIZED_BITS, 0)
        entry = None if untuned is None else _measured(evaluator.untuned, untuned, space, contest.seeds[0])
        if entry is not None:
            file.put_untuned(entry)
        listener.progress("test the untuned model", 1, 1)
    jobs = list(itertools.product(contest.seeds, contest.plans))

    def place_of(seed: int, plan: Plan) -> Path | None:
        return save if plan is contest.found and seed == contest.seeds[0] else None

    def known(seed: int, plan: Plan) -> dict[str, Any] | None:
        """The entry of a tuning that need not be made again: what it was to save is there."""
        folder = place_of(seed, plan)
        return file.find(plan, seed) if folder is None or (folder / "adapter").is_dir() else None

    ready = sum(known(*job) is not None for job in jobs)
    if ready:
        listener.say(f"resumed: {ready} of {len(jobs)} tunings are done, {len(jobs) - ready} left")
    for done, (seed, plan) in enumerate(jobs, start=1):
        folder, entry = place_of(seed, plan), known(seed, plan)
        if entry is None:
            name = tuning_name(plan, seed, space)
            own = path.parent / TUNING / name
            tune = partial(
                evaluator.tune, plan, seed=seed, folder=folder, kept=own,
                progress=listener.progress, figures=None if figures is None else figures(name),
            )  # fmt: skip
            entry = _measured(tune, plan, space, seed)
            assert entry is not None
            file.put(plan, entry)
            forget_checkpoints(own)
        listener.say(f"[{done}/{len(jobs)}] {tested_text(file.result(plan), space)}")
        if plan is contest.found and "failed" in entry:
            raise TuningFailed(f"the plan could not be tuned with seed {seed}: {entry['failed']} (kept in {path})")
    return file.results


def _measured(measure: Callable[[], Tuned | None], plan: Plan, space: SearchSpace, seed: int) -> dict[str, Any] | None:
    """The entry of `test.json` that says what came of a plan, a failure too; None if it cannot be measured."""
    start = time.perf_counter()
    try:
        tuned = measure()
        return None if tuned is None else tuned_entry(tuned)
    except ReloadFailed as error:
        return {**tuned_entry(error.tuned), "reload_error": str(error)}
    except EvaluationFailed as error:
        return {
            "plan": plan.to_dict(), "seed": seed, "test_loss": None, "metrics": {},
            "memory_bytes": space.of(plan).memory_bytes(plan), "seconds": time.perf_counter() - start,
            "failed": str(error),
        }  # fmt: skip


def tested_text(tested: TestResult, space: SearchSpace) -> str:
    """A tuned plan in one line."""
    metrics = "".join(f", {name.replace('_', ' ')} {metric_text(tested, name)}" for name in tested.metrics)
    return (
        f"{formatting.tested_name(tested, space)}: test loss {formatting.test_loss_text(tested)}{metrics}, "
        f"{format_bytes(tested.memory_bytes)}, {formatting.duration(tested.seconds)}"
    )
