"""Full tuning of a run's plan and its baselines: which they are; records that are missing are written."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from qra_search.app.baselines import Against, choose_next_rung, list_rungs, select_baselines
from qra_search.app.compare import Comparison, compare
from qra_search.app.config import RunConfig, make_config
from qra_search.app.dry_run import describe_tuning_time, warn_about_rows
from qra_search.app.evaluator import StepFigures, TunableEvaluator, check_can_tune
from qra_search.app.folder import Snapshot, read_plan_data
from qra_search.app.rates import append_trial, foretell_rate, make_trials_key, propose_next_trial, read_trials
from qra_search.app.report.formatting import format_plan
from qra_search.app.report.tables import summarize_record
from qra_search.app.tuning_folder import TuningFolder
from qra_search.errors import BadInput, EvaluationFailed, RunFailed, convert_to_bad_input
from qra_search.evaluator import Evaluator
from qra_search.schemas import Plan, TuningRecord, tuning_id
from qra_search.sections import FinetuneConfig
from qra_search.space.budgets import parse_uniform, resolve_budgets
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.serialization import plan_from_dict
from qra_search.study.study import Listener

SEARCH_ONLY_KEYS = frozenset({"training", "evaluation", "rows", "metric"})
"""Parts of an evaluator's description that say nothing of a full tuning, or are said of it anew."""
StepListener = Callable[[str, int, StepFigures], None]
"""Called with the id of a tuning, a step, counted from 1, and its figures by name."""


@dataclass(frozen=True)
class TuningRequest:
    """What is to be tuned in a run, each plan with each seed.

    Attributes:
        plans: the chosen one first, then its baselines, and 16-bit LoRA if it is asked for.
        budget_bytes: that the plan and its baselines keep to.
        rungs: of a ladder, cheapest first, of which no more are tuned than decide how small a plan may be.
    """

    run: Snapshot
    plans: tuple[Plan, ...]
    budget_bytes: int
    seeds: tuple[int, ...] = (0,)
    rungs: tuple[Plan, ...] = ()

    @property
    def plan(self) -> Plan:
        return self.plans[0]


def make_tuning_request(
    run: Snapshot,
    plan: Plan | str | Path | None = None,
    memory: int | str | None = None,
    *,
    seeds: int = 1,
    against: Against = "best",
    with_16_bit: bool = False,
) -> TuningRequest:
    """What `Run.finetune` tunes: a plan, its baselines, and 16-bit LoRA if it is asked for.

    Their budget is `memory`, or the run's largest, or the plan's own bytes if these are more. Raises BadInput if the
    plan has no adapter or cannot be shuffled, or no plan fits the budget.
    """
    if plan is not None and memory is not None:
        raise BadInput("--plan and --memory both choose a plan: give one of them")
    result, space = run.result, run.result.space
    with convert_to_bad_input():
        limit = None if memory is None else resolve_budgets(space, memory)[0]
        if plan is None:
            plan = run.choose_plan(limit)
        elif not isinstance(plan, Plan):
            plan = parse_uniform(space, str(plan)) or plan_from_dict(space, read_plan_data(Path(plan)))
    if not any(plan.ranks):
        raise BadInput(
            "the plan has rank 0 everywhere, so there is no adapter to tune and save: give one with some rank above 0"
        )
    budget_bytes = limit or max([*result.memory_budgets[-1:], space.memory_bytes(plan)])
    rungs: list[Plan] = []
    if against == "ladder":
        rungs = list_rungs(space, plan, result, limit)
        budget_bytes = space.memory_bytes(rungs[-1])
        against = "none"
    plans = [plan, *select_baselines(space, plan, budget_bytes, against, result)]
    if with_16_bit and (unquantized := space.unquantized.uniform(UNQUANTIZED_BITS, space.ranks[-1])):
        plans.append(unquantized)
    return TuningRequest(run, tuple(dict.fromkeys(plans)), budget_bytes, tuple(range(seeds)), tuple(rungs))


def collect_tuning_settings(config: RunConfig, evaluator: TunableEvaluator) -> dict[str, Any]:
    """What comparable tunings share, beside plan and seed: settings, model, backend and rows."""
    counts = evaluator.row_counts()
    described = {name: value for name, value in evaluator.describe().items() if name not in SEARCH_ONLY_KEYS}
    settings = {
        "training": config.training.model_dump(),
        "finetune": config.finetune.model_dump(exclude=set(FinetuneConfig.beside)),
        "evaluator": described,
        "data": evaluator.tuning_data(),
        "test_rows": counts["test"].had if "test" in counts else config.finetune.test_rows,
        "scored_rows": config.finetune.scored_rows,
    }
    return json.loads(json.dumps(settings))  # type: ignore[no-any-return]  # as it is read back


@dataclass(frozen=True)
class _TuningJob:
    """What all tunings of a command share."""

    evaluator: TunableEvaluator
    listener: Listener
    tunings: TuningRequest
    settings: Mapping[str, Any]
    on_step: StepListener | None

    def tune_if_missing(self, plan: Plan, seed: int, *, wait: bool) -> bool:
        """Write a record if it is missing; returns whether no other process is at it."""
        tuning = self.tunings.run.folder.tuning(tuning_id(plan, seed, self.settings))
        with tuning.lock(wait=wait) as is_ours:
            record = tuning.record()
            if record is None and not is_ours:
                self.listener.say(
                    f"tuning {tuning.id} is left for the end, because {tuning.owner} works on it"
                )
                return False
            record = record or self._tune_and_write(tuning, plan, seed)
        if record is not None:
            self.listener.say(summarize_record(record, self.evaluator.space, self.tunings.plan))
            if record.failed and plan == self.tunings.plan:
                raise RunFailed(
                    f"the plan could not be tuned with seed {seed}: {record.failed} (in {tuning.path})"
                )
        return True

    def compare_records(self) -> Comparison:
        run = self.tunings.run
        plan, budget_bytes = self.tunings.plan, self.tunings.budget_bytes
        found = compare(run.folder.records(), run.result.space, plan, budget_bytes, self.settings)
        assert found is not None  # the plan's record is there
        return found

    def _tune_and_write(self, tuning: TuningFolder, plan: Plan, seed: int) -> TuningRecord | None:
        """Tune, and write the record; None for a baseline that could not be tuned."""
        try:
            record = self.evaluator.tune(
                plan,
                seed=seed,
                folder=tuning.path,
                progress=self.listener.progress,
                on_step=self.on_step and partial(self.on_step, tuning.id),
            )
        except EvaluationFailed as error:
            if plan == self.tunings.plan:
                raise RunFailed(f"the plan could not be tuned with seed {seed}: {error}") from error
            self.listener.say(f"a baseline could not be tuned with seed {seed} and has no record: {error}")
            return None
        return _write_record(tuning, record, self.settings)


def tune_missing(
    evaluator: Evaluator,
    config: RunConfig,
    listener: Listener,
    tunings: TuningRequest,
    *,
    on_step: StepListener | None = None,
    untuned: bool = True,
) -> Comparison:
    """Tune what has no record yet, write its record as each tuning ends, and compare them.

    A tuning that was interrupted continues from its checkpoint. One that another process is at is left to it, and
    awaited at the end. Raises RunFailed if the plan cannot be tuned; of a baseline that is only said.
    """
    evaluator = check_can_tune(evaluator, config)
    settings = collect_tuning_settings(config, evaluator)
    warn_about_rows(evaluator, listener)
    count, seeds = len(tunings.plans) - 1, len(tunings.seeds)
    beside = f" and {count} other plan{'s' * (count > 1)}" if count else ""
    listener.say(f"tuning the plan{beside}{f', with {seeds} seeds each' if seeds > 1 else ''}")
    folder = tunings.run.folder
    known = {record.id for record in folder.records()}
    pairs = [(plan, seed) for seed in tunings.seeds for plan in tunings.plans]
    left = sum(tuning_id(plan, seed, settings) not in known for plan, seed in pairs)
    if left < len(pairs):
        listener.say(f"{len(pairs) - left} of {len(pairs)} tunings are finished, {left} left")
    if left:
        listener.say(f"estimated time: {describe_tuning_time(evaluator, left)}")
    job = _TuningJob(evaluator, listener, tunings, settings, on_step)
    try:
        if untuned:
            _measure_untuned(job)
        awaited = [(plan, seed) for plan, seed in pairs if not job.tune_if_missing(plan, seed, wait=False)]
        for plan, seed in awaited:
            tuning = folder.tuning(tuning_id(plan, seed, settings))
            listener.say(f"waiting for tuning {tuning.id}, because {tuning.owner} works on it")
            job.tune_if_missing(plan, seed, wait=True)
        _tune_rungs(job)
    except KeyboardInterrupt as stop:
        kept = f"{stop}, and finished tunings are kept" if str(stop) else "finished tunings are kept"
        listener.say(f"Stopped: {kept}. Give the same command again to continue.")
        raise
    return job.compare_records()


def _tune_rungs(job: _TuningJob) -> None:
    """Tune rungs of a ladder until it is known which is the smallest that is as good as the best."""
    rungs = list(job.tunings.rungs)
    tried: set[Plan] = set()
    while rungs and (plan := choose_next_rung(rungs, job.compare_records())) is not None:
        if plan in tried:  # it has no figures
            rungs.remove(plan)
            continue
        tried.add(plan)
        job.listener.say(f"tuning the next plan of the ladder, {format_plan(plan, job.evaluator.space)}")
        for seed in job.tunings.seeds:
            job.tune_if_missing(plan, seed, wait=True)


def _write_record(tuning: TuningFolder, record: TuningRecord, settings: Mapping[str, Any]) -> TuningRecord:
    if not (record.failed or math.isfinite(record.test_loss)):
        record = replace(record, failed=f"diverged: test loss is {record.test_loss}", row_nats=())
    if not math.isfinite(validation := record.validation_loss or 0.0):
        failed = record.failed or f"diverged: validation loss is {validation}"
        record = replace(record, failed=failed, validation_loss=None)
    record = replace(record, settings=dict(settings), finished_at=time.time())
    tuning.write(record)
    return record


def _measure_untuned(job: _TuningJob) -> None:
    """Write the record of the untuned model, if it is missing and the evaluator can say it."""
    plan = job.evaluator.space.unquantized.uniform(UNQUANTIZED_BITS, 0)
    if plan is None:
        return
    tuning = job.tunings.run.folder.tuning(tuning_id(plan, 0, job.settings))
    with tuning.lock() as is_ours:
        if not is_ours or tuning.record() is not None:
            return
        job.listener.progress("test the untuned model", 0, 1)
        try:
            record = job.evaluator.measure_untuned()
        except EvaluationFailed as error:
            job.listener.say(f"the untuned model could not be tested: {error}")
            return
        if record is not None:
            _write_record(tuning, record, job.settings)
        job.listener.progress("test the untuned model", 1, 1)


def select_comparison(
    run: Snapshot, comparison: Comparison, listener: Listener, tolerance: float | None = None
) -> Snapshot:
    """The run with a finished comparison as its answer, and the tolerance with which one of its rows is chosen to be
    deployed (None: the one before); if the selected tuning took more steps, the selection stays, and the listener is
    told how to change it."""
    own, folder = comparison.chosen.records[0], run.folder
    run = replace(run, records=tuple(folder.records()))
    selected, known = run.selected, run.selection
    if selected is not None and selected.steps > own.steps:
        listener.say(
            f"tuning {selected.id} of {selected.steps} steps stays selected, because the new tuning "
            f"{own.id} has only {own.steps}. To select the new one, run "
            f"`qra show {folder.path} --tuning {own.id}`"
        )
        return run
    if selected is not None and known is not None and known.is_named and selected.id != own.id:
        listener.say(
            f"tuning {selected.id}, which you selected by --tuning, is no longer selected. "
            f"To select it again, run `qra show {folder.path} --tuning {selected.id}`"
        )
    if tolerance is None and known is not None:
        tolerance = known.tolerance
    return replace(run, selection=folder.select(own, comparison.budget_bytes, tolerance=tolerance))


def choose_rate_by_trials(
    evaluator: TunableEvaluator, config: RunConfig, listener: Listener, tunings: TuningRequest
) -> RunConfig:
    """The settings with the learning rate that short trials foretell for the tuning's steps.

    Trials are kept in the run's folder for its task, model and settings, and made once for all its plans: of a uniform
    plan that is to be tuned, or else the plan, since the best rate hardly depends on bits and ranks. Of several
    processes none makes trials.
    """
    key = make_trials_key(collect_tuning_settings(config, evaluator))
    file, steps = tunings.run.folder.rates_file, evaluator.finetune_steps()
    space = evaluator.space
    plan = next((p for p in tunings.plans if space.contains(p) and space.uniform_choice(p)), tunings.plan)
    trials = read_trials(file, key)
    while (chosen := propose_next_trial(trials, steps)) is not None:
        rate, length = chosen
        alike = [
            trial for trial in trials if trial.steps == length and len(trial.curve) and trial.made == length
        ]
        beside = min(alike, key=lambda trial: trial.loss, default=None)
        trials.append(evaluator.try_rate(plan, rate, length, beside=beside, progress=listener.progress))
        append_trial(file, key, trials[-1])
    foretold = foretell_rate(trials, steps)
    listener.say(str(foretold))
    return make_config(config.model_dump(mode="json"), {"training.learning_rate": foretold.rate})


def choose_rate_by_tuning(
    build: Callable[[RunConfig], Evaluator],
    config: RunConfig,
    listener: Listener,
    tunings: TuningRequest,
    rates: Sequence[float],
) -> RunConfig:
    """The settings with the learning rate of lowest validation loss, after the plan is tuned in full at each.

    Its first seed is tuned; like any tuning it is resumed, never made twice, and kept. Fewer steps will not do, as the
    best rate falls with their number (docs/tuning.md).

    Raises:
        RunFailed: the plan cannot be tuned at any of the rates.
    """
    fields = config.model_dump(mode="json")
    # A rate is refused before any is tuned.
    configs = {rate: make_config(fields, {"training.learning_rate": rate}) for rate in rates}
    first = replace(tunings, plans=tunings.plans[:1], seeds=tunings.seeds[:1])
    losses: dict[float, float] = {}
    for n, (rate, tried) in enumerate(configs.items(), 1):
        listener.say(f"learning rate {rate:g}, {n} of {len(configs)}")
        try:
            comparison = tune_missing(build(tried), tried, listener, first, untuned=False)
        except RunFailed as error:
            listener.say(f"learning rate {rate:g}: {error}")
            continue
        loss = next(r for r in comparison.chosen.records if r.seed == first.seeds[0]).validation_loss
        if loss is None:
            raise BadInput(
                f"--rates compares validation losses, which evaluator {config.evaluator!r} does not measure: give one "
                "rate with --set training.learning_rate=..."
            )
        losses[rate] = loss
        listener.say(f"learning rate {rate:g}: validation loss {loss:.4f}")
    if not losses:
        raise RunFailed(
            f"no tuning ended at the learning rates {', '.join(f'{rate:g}' for rate in rates)} (reasons above): give "
            "lower ones with --rates"
        )
    best = min(losses, key=lambda rate: (losses[rate], rate))
    listener.say(f"learning rate {best:g} has the lowest validation loss")
    if len(losses) > 1 and best in (min(losses), max(losses)):
        listener.say(f"warning: {best:g} is at the edge of these rates, a better one may lie beyond")
    return configs[best]
