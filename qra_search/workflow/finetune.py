"""Full tuning of a run's plan, and of the uniform plans that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from qra_search.config import SEARCH_ONLY, RunConfig, differences
from qra_search.errors import BadInput, RunFailed
from qra_search.evaluation.evaluator import EvaluationFailed, Evaluator
from qra_search.evaluation.protocols import NO_ADAPTER, ReloadFailed
from qra_search.files import write_json
from qra_search.integrations.trackers import flat, tracked
from qra_search.report import formatting
from qra_search.report.formatting import metric_text
from qra_search.report.terminal.live import View
from qra_search.runs.comparison import (
    TUNING,
    UNIFORM,
    Against,
    TestResult,
    TuningFailed,
    compare_on_test,
    opponents,
    read_test,
)
from qra_search.runs.folder import BASELINES, RunFolder
from qra_search.space.budgets import budget_in
from qra_search.space.levels import level_words
from qra_search.space.memory import format_bytes
from qra_search.space.space import Plan, SearchSpace
from qra_search.study.result import SearchResult
from qra_search.workflow.evaluator import build_evaluator, check_tunes, on_device
from qra_search.workflow.rows import rows_of_test, say_rows
from qra_search.workflow.run import write_report

PLAN_FILE = "plan.json"
UNCHANGING = {"test_rows", "checkpoint_every", "checkpoint_minutes", "sample_answers"}
"""Settings that change nothing of how a plan is tuned; the test rows of a comparison are recorded by themselves."""


def chosen_plan(folder: RunFolder, memory: str | None = None) -> Plan:
    """The plan of a run, or the best within a budget.

    Raises:
        BudgetTooSmall: no plan of the space fits the budget.
        BadInput: nothing that fits was evaluated, or the run has no plan yet.
    """
    if memory is None:
        return folder.plan()
    plan = folder.result().chosen(memory)
    if plan is None:
        raise BadInput(f"no plan of {folder.path} fits {memory}: search with this budget first")
    return plan


def limit_of(result: SearchResult, plan: Plan, memory: str | None = None) -> int:
    """The bytes that a comparison keeps to: the budget named, else the run's largest; the plan's own if it takes more.

    Raises:
        BudgetTooSmall: no plan of the space fits the budget.
    """
    if memory is not None:
        return budget_in(result.space, memory)
    return max([*result.memory_budgets[-1:], result.space.memory_bytes(plan)])


def place_of(folder: RunFolder, result: SearchResult, limit: int, memory: str | None = None) -> RunFolder:
    """Where what is tuned within so many bytes is kept: in the run's folder, or, for another budget, in one in it."""
    return folder if memory is None or limit in result.memory_budgets[-1:] else folder.record(limit)


def tune_with(
    evaluator: Evaluator,
    config: RunConfig,
    folder: RunFolder,
    view: View,
    plan: Plan,
    *,
    memory: str | None = None,
    against: Against = "best",
    seeds: int = 1,
    steps: int | None = None,
    track: Sequence[str] = (),
) -> list[TestResult]:
    """Tune a plan and its uniform opponents, write `test.json`, the adapter and the report.

    Another plan that was tuned in the same place is set aside.

    Args:
        config: the run's own, but for what may be set anew under `training`.
        memory: the budget that the plan was chosen for, if it is not the run's own: it has rivals and a record of its
            own (`place_of`).
        track: trackers that hear of every step, such as `tensorboard`.

    Raises:
        BadInput: the evaluator cannot tune, or the plan has no adapter.
        TuningFailed: the plan cannot be tuned; that is recorded like all else.
    """
    tuner = check_tunes(evaluator, config)
    if not any(plan.ranks):
        raise BadInput(NO_ADAPTER)
    result = folder.result()
    limit = limit_of(result, plan, memory)
    place = place_of(folder, result, limit, memory)
    others = opponents(result.space, limit, against, result)
    _make_room(place, result.space, plan)
    say_rows(evaluator, view)
    rivals = f" and {len(others)} uniform plan{'s' * (len(others) > 1)}" if others else ""
    view.say(f"tuning the plan{rivals}{f', with {seeds} seeds each' if seeds > 1 else ''}")

    def say_tuned(tested: TestResult, done: int, total: int) -> None:
        view.say(f"[{done}/{total}] {tested_text(tested, result.space)}")

    changed, tunings = training_changes(folder.config(), config), place.test_file.parent / TUNING
    told = dict(flat({"steps": steps, "seeds": seeds, "training": config.training.model_dump(mode="json")}))
    try:
        with tracked(track, tunings, told, view.say) as figures:
            tested = compare_on_test(
                tuner, plan, others, place.test_file, space=result.space, limit=limit, seeds=range(seeds),
                steps=steps, rows=rows_of_test(evaluator, config), training=changed, save=place.path,
                progress=view.progress, figures=figures, on_tuned=say_tuned, say=view.say,
            )  # fmt: skip
    except KeyboardInterrupt as stop:
        kept = f"{stop}, and what was tuned before" if str(stop) else "what was tuned so far is kept"
        view.say(f"Stopped: {kept}. Give the same command again to go on.")
        raise
    except TuningFailed:
        write_report(folder, config, result, folder.identity(), read_test(folder.test()))
        raise
    write_report(folder, config, result, folder.identity(), read_test(folder.test()))
    return tested


def training_changes(known: RunConfig, config: RunConfig) -> dict[str, Any]:
    """Settings of training, by name, in which a config differs from the run's, and that change what a tuning gives.

    Raises:
        BadInput: it differs in something else.
    """
    found = {}
    for path, (old, new) in differences(known, config).items():
        section, _, name = path.partition(".")
        if section == "training" and name in SEARCH_ONLY:
            raise BadInput(
                f"{path} is of the search's evaluations, and changes nothing of a full tuning: how long that is, "
                f"--steps or training.final_steps says"
            )
        if section == "training" and name not in UNCHANGING:
            found[name] = new
        elif section != "training" and path != "model.device":
            raise BadInput(f"{path} is {old!r} in this run: only fields of training can be set anew to tune its plan")
    return found


def check_reloads(folder: RunFolder, tested: Sequence[TestResult]) -> None:
    """Raises RunFailed if what was saved of the plan found is not what was tuned; all else is recorded by then."""
    for found in tested:
        if found.reload_error:
            raise RunFailed(
                f"the adapter in {folder.adapter} does not load back as it was tuned: {found.reload_error}; what was "
                f"measured is kept, but do not use the adapter: delete its folder, and the same command tunes it again"
            )


def tuned_baselines(
    folder: RunFolder, plan: Plan, against: Against, view: View, *, device: str | None = None
) -> list[tuple[Plan, Path]]:
    """Uniform plans with the folders of their tuned models; what is not tuned yet is tuned here.

    One that cannot be tuned, or not be loaded back as it was tuned, is left out, and `view` says so.

    Args:
        device: to tune on; default: the run's.

    Raises:
        BadInput: the run's evaluator cannot tune.
    """
    result = folder.result()
    others = opponents(result.space, limit_of(result, plan), against, result)
    places = [
        (other, folder.path / BASELINES / _folder_name(other))
        for other in others
        if other != plan and other.ranks[0] > 0  # without an adapter there is nothing to tune
    ]
    missing = [(other, place) for other, place in places if not (place / PLAN_FILE).is_file()]
    if missing:
        config = on_device(folder.config(), device)
        steps = (folder.test() or {}).get("steps")
        with closing(build_evaluator(config, view.progress)) as evaluator:
            tuner = check_tunes(evaluator, config)
            for other, place in missing:
                view.say(f"tuning {place.name}")
                place.mkdir(parents=True, exist_ok=True)
                try:
                    tuner.tune(other, steps=steps, folder=place, kept=place / TUNING, progress=view.progress)
                except (EvaluationFailed, ReloadFailed) as error:
                    (place / PLAN_FILE).unlink(missing_ok=True)  # so that it does not count as tuned
                    view.say(f"{place.name} is left out: {error}")
    return [(other, place) for other, place in places if (place / PLAN_FILE).is_file()]


def tested_text(tested: TestResult, space: SearchSpace) -> str:
    """A tuned plan in one line."""
    metrics = "".join(f", {name.replace('_', ' ')} {metric_text(tested, name)}" for name in tested.metrics)
    return (
        f"{formatting.plan_name(tested.plan, space)}: test loss {formatting.test_loss_text(tested)}{metrics}, "
        f"{format_bytes(tested.memory_bytes)}, {formatting.duration(tested.seconds)}"
    )


def _folder_name(uniform: Plan) -> str:
    return f"uniform-{level_words(uniform.bits[0]).replace(' ', '-')}-rank-{uniform.ranks[0]}"


def _make_room(place: RunFolder, space: SearchSpace, plan: Plan) -> None:
    """Set aside what was tuned of another plan; the uniform plans it was compared with are not tuned again."""
    place.path.mkdir(parents=True, exist_ok=True)
    if not place.adapter.is_dir() or place.tuned(space) == plan:
        return
    test = place.test()
    place.set_aside()
    if test is not None:
        uniform = [e | {"role": UNIFORM} for e in test["tuned"] if space.uniform_choice(Plan.from_dict(e["plan"]))]
        write_json(place.test_file, {**test, "tuned": uniform}, durable=True)
