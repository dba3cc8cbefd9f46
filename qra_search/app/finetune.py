"""Full tuning of a run's plan and its baselines: records that are missing are written, and nothing else."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from qra_search.app.compare import Comparison, compare
from qra_search.app.config import RunConfig, make_config
from qra_search.app.dry_run import report_rows
from qra_search.app.evaluator import check_can_tune
from qra_search.app.folder import RunFolder
from qra_search.app.report.tables import summarize_record
from qra_search.app.search import write_report
from qra_search.app.tuning_folder import TuningFolder
from qra_search.app.tunings import Tunings
from qra_search.errors import BadInput, RunFailed
from qra_search.evaluation.evaluator import EvaluationFailed, Evaluator, StepFigures
from qra_search.evaluation.tuning_record import TuningRecord, tuning_id
from qra_search.launched import get_rank_and_size
from qra_search.sections import FinetuneConfig
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.serialization import PLAN_NAME
from qra_search.space.space import Plan
from qra_search.study.listener import Listener
from qra_search.study.result import SearchResult

OF_A_SEARCH = frozenset({"training", "evaluation", "rows", "metric"})
"""Parts of an evaluator's description that say nothing of a full tuning, or are said of it anew."""
StepListener = Callable[[str, int, StepFigures], None]
"""Called with the id of a tuning, a step, counted from 1, and its figures by name."""


def collect_tuning_settings(config: RunConfig, evaluator: Evaluator) -> dict[str, Any]:
    """What comparable tunings share, beside plan and seed: settings, model, backend and rows."""
    counts = evaluator.row_counts()
    described = {name: value for name, value in evaluator.describe().items() if name not in OF_A_SEARCH}
    settings = {
        "training": config.training.model_dump(),
        "finetune": config.finetune.model_dump(exclude=set(FinetuneConfig.beside)),
        "evaluator": described,
        "data": evaluator.tuning_data(),
        "test_rows": counts["test"].had if "test" in counts else config.finetune.test_rows,
        "scored_rows": config.finetune.scored_rows,
    }
    return json.loads(json.dumps(settings))  # type: ignore[no-any-return]  # as it is read back


def count_recorded(
    evaluator: Evaluator, config: RunConfig, tunings: Tunings, rates: Sequence[float] = ()
) -> int:
    """How many tunings are finished, by an evaluator that need not have read the model's weights.

    Args:
        rates: learning rates to choose from: only those of the plan at each count, since the rest depend on the choice.
    """
    if rates:
        configs, first = make_rate_configs(config, rates), tunings.first_tuning
        return sum(count_recorded(evaluator, tried, first) for tried in configs.values())
    settings = collect_tuning_settings(config, evaluator)
    settings["evaluator"] |= {
        name: value for name, value in tunings.folder.identity().items() if name == "weights"
    }
    ids = (tuning_id(plan, seed, settings) for seed, plan in tunings)
    return sum(tunings.folder.tuning(id).record() is not None for id in ids)


def tune_missing(
    evaluator: Evaluator,
    config: RunConfig,
    listener: Listener,
    result: SearchResult,
    tunings: Tunings,
    *,
    discard: bool = False,
    on_step: StepListener | None = None,
    untuned: bool = True,
) -> Comparison:
    """Tune what has no record yet, write its record as each tuning ends, and the report at the end.

    A tuning that was interrupted continues from its checkpoint. One that another process is at is left to it, and
    awaited at the end. Raises RunFailed if the plan cannot be tuned; of a baseline that is only said.

    Args:
        untuned: measure the untuned model as well.
    """
    check_can_tune(evaluator, config)
    (folder := tunings.folder).records()  # a damaged one is refused before the hours begin
    settings = collect_tuning_settings(config, evaluator)
    report_rows(evaluator, listener)
    if get_rank_and_size()[1] > 1:
        listener.say(f"{get_rank_and_size()[1]} processes share the rows of each step")
    count, seeds = len(tunings.plans) - 1, len(tunings.seeds)
    beside = f" and {count} other plan{'s' * (count > 1)}" if count else ""
    listener.say(f"tuning the plan{beside}{f', with {seeds} seeds each' if seeds > 1 else ''}")
    if config.finetune.monitor == "task":
        rows = evaluator.row_counts()["validation"].had
        listener.say(f"the best adapters are those by the task's own measure, on {rows} validation rows")
    jobs = [(folder.tuning(tuning_id(plan, seed, settings)), plan, seed) for seed, plan in tunings]
    if recorded := sum(tuning.record() is not None for tuning, *_ in jobs):
        listener.say(f"{recorded} of {len(jobs)} tunings are finished, {len(jobs) - recorded} left")

    def tune_one(tuning: TuningFolder, plan: Plan, seed: int, *, wait: bool) -> bool:
        """Write a record if it is missing; returns whether no other process is at it."""
        with tuning.lock(wait=wait) as is_ours:
            record = tuning.record()
            if record is None and not is_ours:
                listener.say(
                    f"tuning {tuning.id} is left for the end, because {tuning.describe_holder()} is at it"
                )
                return False
            if record is None:
                try:
                    record = evaluator.tune(
                        plan,
                        seed=seed,
                        folder=tuning.path,
                        save_base=plan == tunings.plan,
                        progress=listener.progress,
                        on_step=on_step and partial(on_step, tuning.id),
                    )
                except EvaluationFailed as error:
                    if plan == tunings.plan:
                        raise RunFailed(f"the plan could not be tuned with seed {seed}: {error}") from error
                    listener.say(f"a baseline could not be tuned with seed {seed} and has no record: {error}")
                    return True
                record = _write(tuning, record, settings)
            elif (
                plan == tunings.plan
                and (tuning.path / PLAN_NAME).is_file()
                and not tuning.base_file.is_file()
            ):
                evaluator.write_base(
                    plan, tuning.path
                )  # it was tuned as a baseline, which is saved without it
            if discard and plan != tunings.plan:
                shutil.rmtree(tuning.adapter, ignore_errors=True)
            digests = record.metric_digests
            if changed := [
                name for name, own in evaluator.metric_digests().items() if digests.get(name, own) != own
            ]:
                listener.say(
                    f"warning: {', '.join(changed)} changed since tuning {tuning.id} was scored, its scores are old: "
                    f"delete {tuning.path} to tune and score it again"
                )
        listener.say(summarize_record(record, evaluator.space, tunings.plan))
        if plan == tunings.plan and record.failed:
            raise RunFailed(
                f"the plan could not be tuned with seed {seed}: {record.failed} (in {tuning.path})"
            )
        return True

    try:
        if untuned:
            _measure_untuned(evaluator, folder, settings, listener)
        for wait in (False, True):
            jobs = [job for job in jobs if not tune_one(*job, wait=wait)]
    except KeyboardInterrupt as stop:
        kept = f"{stop}, and finished tunings are kept" if str(stop) else "finished tunings are kept"
        listener.say(f"Stopped: {kept}. Give the same command again to continue.")
        raise
    finally:
        if folder.records():
            write_report(folder, result)
    found = compare(
        folder.records(), result.space, tunings.plan, tunings.budget_bytes, settings, result.sensitivities
    )
    assert found is not None  # the plan's record is there
    return found


def _write(tuning: TuningFolder, record: TuningRecord, settings: Mapping[str, Any]) -> TuningRecord:
    if not (record.failed or math.isfinite(record.test_loss)):
        record = replace(record, failed=f"diverged: test loss is {record.test_loss}", row_nats=())
    if not math.isfinite(validation := record.validation_loss or 0.0):
        record = replace(
            record, failed=record.failed or f"diverged: validation loss is {validation}", validation_loss=None
        )
    record = replace(record, settings=settings, finished_at=time.time())
    tuning.write(record)
    return record


def _measure_untuned(
    evaluator: Evaluator, folder: RunFolder, settings: Mapping[str, Any], listener: Listener
) -> None:
    """Write the record of the untuned model, if it is missing and the evaluator can say it."""
    plan = evaluator.space.unquantized.uniform(UNQUANTIZED_BITS, 0)
    if plan is None:
        return
    tuning = folder.tuning(tuning_id(plan, 0, settings))
    with tuning.lock() as is_ours:
        if not is_ours or tuning.record() is not None:
            return
        listener.progress("test the untuned model", 0, 1)
        try:
            record = evaluator.measure_untuned()
        except EvaluationFailed as error:
            listener.say(f"the untuned model could not be tested: {error}")
            return
        if record is not None:
            _write(tuning, record, settings)
        listener.progress("test the untuned model", 1, 1)


def make_rate_configs(config: RunConfig, rates: Sequence[float]) -> dict[float, RunConfig]:
    """The settings at each learning rate; one that is named twice counts once."""
    fields = config.model_dump(mode="json")
    return {rate: make_config(fields, {"training.learning_rate": rate}) for rate in rates}


def choose_rate(
    build: Callable[[RunConfig], Evaluator],
    config: RunConfig,
    listener: Listener,
    result: SearchResult,
    tunings: Tunings,
    rates: Sequence[float],
    *,
    discard: bool = False,
) -> RunConfig:
    """The settings with the learning rate of lowest validation loss, after the plan is tuned in full at each.

    Its first seed is tuned; like any tuning it is resumed, never made twice, and kept. A part of the steps would do for
    less, but the best rate falls with their number: Gemma 3 270M is best at 0.002 after 60 steps, and at 0.0005 after
    600, where 0.002 has half as much loss again (docs/tuning.md).

    Args:
        build: makes the evaluator of settings.
        discard: delete adapters and quantized bases of the other rates.

    Raises:
        RunFailed: the plan cannot be tuned at any of the rates.
    """
    if get_rank_and_size()[1] > 1:
        raise BadInput(
            "--rates needs a single process: run it without torchrun, then set training.learning_rate"
        )
    first = tunings.first_tuning
    found: list[tuple[float, float, TuningRecord]] = []
    configs = make_rate_configs(config, rates)  # a rate is refused before any is tuned
    for n, (rate, tried) in enumerate(configs.items(), 1):
        listener.say(f"learning rate {rate:g}, {n} of {len(configs)}")
        try:
            chosen = tune_missing(build(tried), tried, listener, result, first, untuned=False).chosen
        except RunFailed as error:
            listener.say(f"learning rate {rate:g}: {error}")
            continue
        record = next(record for record in chosen.records if record.seed == first.seeds[0])
        if record.validation_loss is None:
            raise BadInput(
                f"tuning {record.id} has no validation loss, as an older version made it: delete its folder"
            )
        found.append((record.validation_loss, rate, record))
        listener.say(f"learning rate {rate:g}: validation loss {record.validation_loss:.4f}")
    if not found:
        raise RunFailed(f"the plan cannot be tuned at any of {len(rates)} learning rates: give lower ones")
    _, best, record = min(found, key=lambda tried: tried[:2])
    listener.say(f"learning rate {best:g} has the lowest validation loss")
    # A run is compared, reported and exported by the settings of its last tuning.
    tunings.folder.tuning(record.id).write(replace(record, finished_at=time.time()))
    for other in (tunings.folder.tuning(tried.id) for *_, tried in found if discard and tried is not record):
        shutil.rmtree(other.adapter, ignore_errors=True)
        other.base_file.unlink(missing_ok=True)
    return configs[best]


def check_reloads(comparison: Comparison, folder: RunFolder) -> None:
    """Raises RunFailed if a saved adapter is not what was tuned; all else is recorded by then."""
    for tuned in comparison.tunings:
        for record in tuned.records:
            if record.reload_error:
                path = folder.tuning(record.id).path
                raise RunFailed(
                    f"the adapter in {path} differs from the tuned one when reloaded: {record.reload_error}; "
                    "do not use it: delete its folder, and run the same command again"
                )
