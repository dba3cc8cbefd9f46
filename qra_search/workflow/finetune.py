"""Full tuning of a run's plan, and of the uniform plans that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from qra_search.config import RunConfig, differences
from qra_search.errors import BadInput, RunFailed
from qra_search.evaluation.evaluator import NO_ADAPTER, Evaluator
from qra_search.files import write_json
from qra_search.launched import standing
from qra_search.report.table import as_text
from qra_search.report.tables import as_html, tested_rich
from qra_search.runs.comparison import (
    FOUND,
    SIXTEEN,
    TUNING,
    UNIFORM,
    UNTUNED,
    Against,
    TestResult,
    opponents,
    read_test,
)
from qra_search.runs.contest import Contest, conditions
from qra_search.runs.folder import RunFolder
from qra_search.space.budgets import resolve_budget
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import Plan, SearchSpace
from qra_search.study.listener import Listener
from qra_search.study.result import SearchResult
from qra_search.trackers import tracked
from qra_search.workflow.comparing import compare_on_test
from qra_search.workflow.dry_run import rows_of_test, say_rows
from qra_search.workflow.evaluator import check_tunes
from qra_search.workflow.search import write_report


@dataclass(frozen=True, repr=False)
class Finetuned:
    """What `finetune` leaves: the plan found beside the uniform plans that it was compared with.

    Attributes:
        result: of the run.
        tested: every plan that was tuned, cheapest first.
        limit: bytes that the comparison keeps to.
        folder: where the tuned plan is kept: the run's folder, or one in it.
    """

    result: SearchResult
    tested: tuple[TestResult, ...]
    limit: int
    folder: RunFolder

    @property
    def found(self) -> TestResult:
        """The plan that was tuned for the budget."""
        return next(t for t in self.tested if t.role == FOUND)

    @property
    def uniform(self) -> list[TestResult]:
        """The uniform plans beside it, cheapest first."""
        return [t for t in self.tested if t.role == UNIFORM]

    def __rich__(self) -> Any:
        return tested_rich(self.result, self.tested, self.limit)

    def _repr_html_(self) -> str:
        return as_html(self)

    def __repr__(self) -> str:
        return f"Finetuned({str(self.folder.path)!r}, {len(self.tested)} plans tuned)"

    def __str__(self) -> str:
        return as_text(self)


def chosen_plan(folder: RunFolder, memory: int | str | None = None) -> Plan:
    """The plan of a run, or the best within a budget.

    Raises:
        BudgetTooSmall: no plan of the space fits the budget.
        BadInput: nothing that fits was evaluated, or the run has no plan yet.
    """
    if memory is None:
        return folder.plan()
    result = folder.result()
    plan = result.chosen(resolve_budget(result.space, memory))
    if plan is None:
        raise BadInput(f"no plan of {folder.path} fits {memory}: search with this budget first")
    return plan


def limit_of(result: SearchResult, plan: Plan, memory: int | str | None = None) -> int:
    """The bytes that a comparison keeps to: the budget named, else the run's largest; the plan's own if it takes more.

    Raises:
        BudgetTooSmall: no plan of the space fits the budget.
    """
    if memory is not None:
        return resolve_budget(result.space, memory)
    return max([*result.memory_budgets[-1:], result.space.memory_bytes(plan)])


def place_of(folder: RunFolder, result: SearchResult, limit: int, memory: int | str | None = None) -> RunFolder:
    """Where what is tuned within so many bytes is kept: in the run's folder, or, for another budget, in one in it."""
    return folder if memory is None or limit in result.memory_budgets[-1:] else folder.record(limit)


def contest_of(
    result: SearchResult,
    plan: Plan,
    memory: int | str | None = None,
    *,
    against: Against = "best",
    seeds: int = 1,
    with_16_bit: bool = False,
) -> Contest:
    """A plan and all that it is compared with, but for the conditions, which its evaluator knows.

    Args:
        memory: the budget that the plan was chosen for, if it is not the run's own.
        with_16_bit: tune adapters of the largest rank on the model in 16 bits as well.

    Raises:
        BadInput: the plan has no adapter, or no plan fits the budget.
    """
    if not any(plan.ranks):
        raise BadInput(NO_ADAPTER)
    space, limit = result.space, limit_of(result, plan, memory)
    sixteen = space.unquantized.uniform(UNQUANTIZED_BITS, space.ranks[-1]) if with_16_bit else None
    others = tuple(opponents(space, limit, against, result))
    return Contest(plan, others, limit, tuple(range(seeds)), sixteen=sixteen)


def tune_with(
    evaluator: Evaluator,
    config: RunConfig,
    folder: RunFolder,
    listener: Listener,
    result: SearchResult,
    contest: Contest,
    *,
    memory: int | str | None = None,
    track: Sequence[str] = (),
) -> Finetuned:
    """Tune a plan and its uniform opponents, write `test.json`, the adapter and the report.

    Another plan that was tuned in the same place, or this one with other settings, is set aside.

    Args:
        config: the run's own, but for what may be set anew for the tuning.
        result: of the run.
        contest: as `contest_of` makes it.
        memory: as there: the plan then has a record of its own (`place_of`).
        track: trackers that hear of every step, such as `tensorboard`.

    Raises:
        BadInput: the evaluator cannot tune, or another process tunes there.
        TuningFailed: the plan cannot be tuned; that is recorded like all else.
    """
    check_tunes(evaluator, config)
    shared = conditions(config, evaluator.describe(), evaluator.tuning_data())
    contest = replace(contest, rows=rows_of_test(evaluator, config), conditions=shared)
    place = place_of(folder, result, contest.limit, memory)
    with place.tuning_alone():
        _make_room(place, result.space, contest, listener)
        say_rows(evaluator, listener)
        _say_count(contest, listener)
        settings = config.model_dump(mode="json", include={"training", "finetune"})
        told = {"seeds": len(contest.seeds), **settings}
        try:
            with tracked(track, place.path / TUNING, told, listener.say) as figures:
                compare_on_test(
                    evaluator, contest, place.test_file, result.space, listener, save=place.path, figures=figures
                )
        except KeyboardInterrupt as stop:
            kept = f"{stop}, and what was tuned before" if str(stop) else "what was tuned so far is kept"
            listener.say(f"Stopped: {kept}. Give the same command again to go on.")
            raise
        finally:
            if place.test_file.is_file():
                write_report(folder, config, result, folder.identity(), read_test(folder.test()))
    return Finetuned(result, tuple(read_test(place.test())), contest.limit, place)


def _say_count(contest: Contest, listener: Listener) -> None:
    if standing()[1] > 1:
        listener.say(f"{standing()[1]} processes share the rows of each step")
    count, seeds = sum(contest.role(plan.key) == UNIFORM for plan in contest.plans), len(contest.seeds)
    rivals = f" and {count} uniform plan{'s' * (count > 1)}" if count else ""
    rivals += " and 16-bit LoRA" if contest.sixteen is not None else ""
    listener.say(f"tuning the plan{rivals}{f', with {seeds} seeds each' if seeds > 1 else ''}")


def check_tunable(known: RunConfig, config: RunConfig) -> None:
    """Raises BadInput if a config differs from the run's in what no tuning of its plan can be given."""
    for path, (old, _) in differences(known, config).items():
        section = path.partition(".")[0]
        if path == "evaluation.validation_rows":  # those of finetune.evaluate_every too
            continue
        if section == "evaluation":
            raise BadInput(f"{path} counts in a search alone: how long a plan is fine-tuned, finetune.steps says")
        if section not in ("training", "finetune") and path != "model.device":
            raise BadInput(
                f"{path} is {old!r} in this run: only fields of training and finetune can be set anew to tune its plan"
            )


def check_reloads(done: Finetuned) -> None:
    """Raises RunFailed if what was saved of the plan found is not what was tuned; all else is recorded by then."""
    for found in done.tested:
        if found.reload_error:
            raise RunFailed(
                f"the adapter in {done.folder.adapter} does not load back as it was tuned: {found.reload_error}; what "
                "was measured is kept, but do not use the adapter: delete its folder, and the same command tunes it "
                "again"
            )


def _make_room(place: RunFolder, space: SearchSpace, contest: Contest, listener: Listener) -> None:
    """Set aside what was tuned of another plan, with other settings or on other data, and say where it is then; nothing
    that was measured is overwritten.

    What other plans were compared with, now or before, is not tuned again.
    """
    test = place.test()
    same_plan = not place.adapter.is_dir() or place.tuned(space) == contest.found
    if place.half_aside or not same_plan or not (test is None or contest.counts(test) or not test.get("tuned")):
        aside = place.set_aside()
        listener.say(f"another plan, other settings or other data: what was tuned before is kept in {aside}")
    known = [] if place.test_file.is_file() else [folder.test() for folder in place.earlier()]
    test = next((test for test in known if test is not None and contest.counts(test)), None)
    if test is not None:
        others = [e for e in test["tuned"] if e["role"] in (UNTUNED, SIXTEEN)]
        others += [
            e | {"role": UNIFORM}
            for e in test["tuned"]
            if e not in others and space.uniform_choice(Plan.from_dict(e["plan"]))
        ]
        write_json(place.test_file, {**test, "tuned": others}, durable=True)
