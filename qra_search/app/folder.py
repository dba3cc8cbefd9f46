"""The folder of one run: what may be begun or resumed in it, and all that its files say, read once for a command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qra_search.app.compare import Comparison, compare
from qra_search.app.config import RunConfig, dump_config, find_differences, load_config
from qra_search.app.rates import RateForecast, foretell_rate, make_trials_key, read_trials
from qra_search.app.tuning_folder import TuningFolder
from qra_search.errors import BadInput, convert_to_bad_input, describe_os_error
from qra_search.evaluator import Evaluator
from qra_search.files import read_json, write_json, write_text
from qra_search.log.journal import TrialLog, convert_through_json
from qra_search.log.state import StudyState, read_state
from qra_search.plugins import UnknownName
from qra_search.schemas import Plan, Sensitivities, TuningRecord
from qra_search.space.budgets import resolve_budgets
from qra_search.space.memory import format_bytes
from qra_search.space.serialization import (
    PLAN_NAME,
    plan_from_dict,
    plan_to_dict,
    read_plan_file,
    read_sensitivities,
)
from qra_search.strategies import Strategy, make_strategy
from qra_search.strategies.simple import RandomStrategy
from qra_search.study.result import SearchResult

LOG_NAME, SENSITIVITIES_NAME, TUNINGS_FOLDER = "trials.jsonl", "sensitivities.json", "tunings"
CHANGEABLE_FIELDS = ("search.evaluations", "finetune.")
"""Fields that may differ when a run is resumed: how far it goes, and how its plan is tuned afterwards."""


class NoRun(BadInput):
    """The folder holds no run."""


class Selection(BaseModel):
    """The tuning whose comparison a run shows: `selection.json`.

    Attributes:
        tuning: its id.
        budget_bytes: that the plans beside it keep to.
        tolerance: as `is_as_good` takes it.
        is_named: the user named it, so it is deployed, whatever stands beside it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["qra-selection/1"] = "qra-selection/1"
    tuning: str
    budget_bytes: int
    tolerance: float | None = None
    is_named: bool = False


class RunFolder:
    """One run on disk: `config.yaml`, `trials.jsonl`, what is made from them, and a folder for each tuning."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.sensitivities_file = self.path / SENSITIVITIES_NAME
        self.log_file = self.path / LOG_NAME
        self.plan_file = self.path / PLAN_NAME
        self.report_file = self.path / "report.html"
        self.rates_file = self.path / "rates.jsonl"
        self.selection_file = self.path / "selection.json"
        self.tunings_folder = self.path / TUNINGS_FOLDER

    @property
    def has_run(self) -> bool:
        """Whether the folder holds a run: a journal, or settings and the sensitivities measured for them; raises
        BadInput if it cannot be looked into."""
        with convert_to_bad_input():
            # An empty log could not be written, and holds none.
            begun = self.log_file.is_file() and self.log_file.stat().st_size > 0
            return begun or self.is_planned

    @property
    def is_planned(self) -> bool:
        return self.config_file.is_file() and self.sensitivities_file.is_file()

    def check(self) -> RunFolder:
        """The folder itself; raises NoRun if it holds no run."""
        if not self.has_run:
            what = f"it holds neither {LOG_NAME} nor config.yaml with {SENSITIVITIES_NAME}"
            what = what if self.path.is_dir() else "there is no such folder"
            raise NoRun(
                f"{self.path} is not a run, as {what}: give the folder that `qra plan` or `qra search` wrote"
            )
        return self

    def check_can_begin(self, config: RunConfig, *, resume: bool = False) -> None:
        """Raises BadInput if the folder holds a run and `resume` is off, or one whose config differs in what may not
        change; writes nothing."""
        has_run = self.has_run  # or it cannot be looked into
        if self.path.exists() and not self.path.is_dir():
            raise BadInput(f"{self.path} is a file: give a folder for the run, a new one or one to resume")
        if has_run and self.config_file.is_file():
            known = load_config(self.config_file)
            found = find_differences(known, config)
            changed = {k: v for k, v in found.items() if not resume or not k.startswith(CHANGEABLE_FIELDS)}
            if changed:
                field, (old, new) = next(iter(changed.items()))
                more = f" (and {len(changed) - 1} more fields)" if len(changed) > 1 else ""
                raise BadInput(
                    f"{self.path} holds another run: {field} is {old!r} there and {new!r} here{more}; "
                    f"give another --out, or resume that run with `qra search {self.path}` (in Python: open_run)"
                )
            spent = self._read_state()[0].spent if "search.evaluations" in found else 0.0
            if config.search.evaluations < spent:
                raise BadInput(
                    f"{self.path} has spent {spent:g} evaluations already, which is more than "
                    f"{config.search.evaluations:g}: ask for more, or leave --evaluations out"
                )
        if has_run and not resume:
            raise BadInput(
                f"{self.path} already holds this run: resume it with `qra search {self.path}` (in Python: open_run)"
            )

    @contextmanager
    def begin(self, config: RunConfig, *, resume: bool = False) -> Iterator[None]:
        """Make the folder, or check that its run may be resumed; it is removed if this process made it and left it
        empty. Once the log is this process's own, `write_config`.

        Raises BadInput as `check_can_begin` does, and if nothing can be written; nothing was spent.
        """
        self.check_can_begin(config, resume=resume)
        is_made = True
        try:
            try:
                self.path.mkdir(parents=True)
            except FileExistsError:  # of several that try, one makes it
                is_made = False
            TemporaryFile(dir=self.path).close()
        except OSError as error:
            problem = describe_os_error(error)
            raise BadInput(f"the run's folder {self.path} cannot be written ({problem})") from error
        try:
            yield
        finally:
            if is_made:
                with suppress(OSError):  # it holds something
                    self.path.rmdir()

    def write_config(self, config: RunConfig) -> None:
        """Write the settings of the run; only the process that holds the lock of its log may."""
        write_text(self.config_file, dump_config(config), durable=True)

    def config(self) -> RunConfig:
        """The settings of the run, as resolved when it began; raises NoRun if it was searched in Python without any."""
        if not self.config_file.is_file():
            raise NoRun(
                f"{self.path} has no config.yaml, which this command needs: give the folder of a run that `qra plan` "
                "or `qra search` began"
            )
        return load_config(self.config_file)

    def read(self, result: SearchResult | None = None) -> Snapshot:
        """What the run's files say, but for the result if it is at hand; raises NoRun if no run has begun there, and
        BadInput if a file is damaged."""
        config = self.config() if self.config_file.is_file() else None
        state, evaluator, study = self._read_state(config)
        if result is None:
            if config is not None and not state.memory_budgets:  # the journal, if there is one, holds them
                budgets = resolve_budgets(state.space, config.search.memory)
                state = replace(state, memory_budgets=budgets)
            strategy = _load_strategy(study.get("strategy", ""), config.search.options if config else {})
            result = SearchResult.from_state(state, strategy)
        known = self.plan_file.is_file()
        plan = plan_from_dict(result.space, read_plan_file(self.plan_file)) if known else result.choose_plan()
        records = tuple(self.records())
        return Snapshot(self, config, result, {**evaluator, **study}, plan, records, self._read_selection())

    def find_sensitivities(self, evaluator: Evaluator) -> Sensitivities | None:
        """The sensitivities of the run, None if none are measured; raises BadInput if it is of another evaluator."""
        if not self.has_run:
            return None
        state, described, _ = self._read_state()
        known = {**described, "search space": state.space.signature}
        given = {**convert_through_json(evaluator.describe()), "search space": evaluator.space.signature}
        for key, value in given.items():
            if known.get(key) != value:
                held = f"{self.path} holds a run with {key} {known.get(key)!r}, not {value!r}"
                raise BadInput(f"{held}: give another --out, or the settings of that run")
        return state.sensitivities

    def _read_state(
        self, config: RunConfig | None = None
    ) -> tuple[StudyState, dict[str, Any], dict[str, Any]]:
        """What the run knows, what identifies its evaluator, and the study's strategy and evaluations: by its journal,
        or, before a search, by its other files."""
        if self.check().log_file.is_file():
            with TrialLog(self.log_file) as log:
                if not self.is_planned or log.get_meta("space"):
                    state = read_state(log)
                    if state.sensitivities is None and not state.trials and self.is_planned:
                        state = replace(state, sensitivities=read_sensitivities(self.sensitivities_file)[1])
                    return state, log.get_meta("evaluator") or {}, log.get_meta("study") or {}
        space, sensitivities, evaluator = read_sensitivities(self.sensitivities_file)
        search = (config or self.config()).search
        state = StudyState(
            space, sensitivities=sensitivities, seed=search.seed, evaluations=search.evaluations
        )
        return state, evaluator, {"strategy": search.strategy, "evaluations": search.evaluations}

    def tuning(self, id: str) -> TuningFolder:
        """The folder of a tuning, which may be yet to be made."""
        return TuningFolder(self.tunings_folder / id)

    def records(self) -> list[TuningRecord]:
        """The records of all finished tunings, oldest first; raises BadInput if one is damaged."""
        files = sorted(self.tunings_folder.glob("*/record.json"))
        records = [record for file in files if (record := TuningFolder(file.parent).record()) is not None]
        return sorted(records, key=lambda record: (record.finished_at, record.id))

    def select(self, record: TuningRecord, budget_bytes: int, **more: Any) -> Selection:
        """Make a tuning the one whose comparison the run shows; `more` are fields of the selection."""
        size = max(budget_bytes, record.memory_bytes)
        selection = Selection(tuning=record.id, budget_bytes=size, **more)
        write_json(self.selection_file, selection.model_dump(), durable=True)
        return selection

    def _read_selection(self) -> Selection | None:
        try:
            data = read_json(self.selection_file)
            return None if data is None else Selection.model_validate(data)
        except ValidationError:
            command = f"`qra show {self.path} --tuning ID`"
            raise BadInput(f"{self.selection_file} is damaged: remove it, then use {command}") from None


@dataclass(frozen=True)
class Snapshot:
    """What the files of a run said when they were read: once for a command.

    Attributes:
        config: None of a study that was begun in Python.
        identity: what identifies the evaluator (model, data, settings), and the study's strategy and evaluations.
        plan: that of `plan.json`, or, before it is written, what the log leads to.
        records: of all finished tunings, oldest first.
    """

    folder: RunFolder
    config: RunConfig | None
    result: SearchResult
    identity: dict[str, Any]
    plan: Plan | None
    records: tuple[TuningRecord, ...]
    selection: Selection | None

    @cached_property
    def selected(self) -> TuningRecord | None:
        """The record of the selected tuning; None if there is none, or its folder was deleted."""
        id = None if self.selection is None else self.selection.tuning
        return next((record for record in self.records if record.id == id), None)

    def find_rate_forecast(self) -> RateForecast | None:
        """The learning rate of the selected tuning, as trials foretold it; None if there were none for it."""
        if self.selected is None:
            return None
        trials = read_trials(self.folder.rates_file, make_trials_key(self.selected.settings))
        foretold = foretell_rate(trials, self.selected.steps)
        return foretold if trials and foretold.rate == self.selected.learning_rate else None

    def require_plan(self) -> Plan:
        """The plan; raises NoRun if there is none yet."""
        if self.plan is None:
            raise NoRun(f"{self.folder.path} has no plan yet: resume it with `qra search {self.folder.path}`")
        return self.plan

    def choose_plan(self, budget_bytes: int | None) -> Plan:
        """The plan of the run, or the best within a budget; raises BadInput if there is none."""
        if budget_bytes is None:
            return self.require_plan()
        plan = self.result.choose_plan(budget_bytes)
        if plan is None:
            size = format_bytes(budget_bytes)
            raise BadInput(f"no plan of {self.folder.path} fits {size}: search with this budget first")
        return plan

    def comparison(self) -> Comparison | None:
        """The selected tuning beside its baselines; None if nothing is selected."""
        selected, space = self.selected, self.result.space
        if selected is None or self.selection is None:
            return None
        budget_bytes = self.selection.budget_bytes
        found = compare(self.records, space, selected.plan, budget_bytes, selected.settings)
        if found is None:
            return None
        is_tuned = self.plan in {None, *(record.plan for record in self.records)}
        return replace(
            found,
            is_selected=True,
            is_of_another=not is_tuned,
            tolerance=self.selection.tolerance,
            is_named=self.selection.is_named,
        )

    def find_tuning(self, name: str | None = None) -> TuningFolder:
        """The folder of a finished tuning with an adapter.

        Args:
            name: an id or its beginning; `uniform`, `shuffled` or `16-bit`: that of lowest test loss beside the
                selected one, of several seeds the first; default: what is to be deployed (`Comparison.deployed`).

        Raises:
            BadInput: there is none; the message lists those that there are.
        """
        records = [record for record in self.records if record.has_adapter]
        is_role = name in (None, "plan", "uniform", "shuffled", "16-bit")
        if is_role:
            comparison = self.comparison()
            tuned = None
            if comparison is not None:
                tuned = comparison.deployed if name is None else comparison.find_by_role(name)
            found = [] if tuned is None else [record for record in tuned.records if record.has_adapter][:1]
        else:
            found = [record for record in records if record.id.startswith(str(name))]
        if len(found) != 1:
            path = self.folder.path
            ids = ", ".join(record.id for record in found or records) or "none"
            if found:
                raise BadInput(f"several tunings of {path} begin with {name!r} ({ids}): give more of the ID")
            if records and not is_role:
                raise BadInput(f"{path} has no tuning {name!r}: choose one of {ids}")
            what = f"no tuning {name!r}" if name else "no selected tuning"
            option = {"shuffled": " --against shuffled", "16-bit": " --with-16-bit"}.get(name or "", "")
            raise BadInput(f"{path} has {what} (tunings: {ids}): run `qra finetune {path}{option}`")
        return self.folder.tuning(found[0].id)


def read_plan_data(path: Path) -> dict[str, Any]:
    """The data of a `plan.json`, or of the best plan so far of a run without one; raises BadInput if there is none."""
    folder = RunFolder(path)
    if folder.has_run and not folder.plan_file.is_file():
        snapshot = folder.read()
        return plan_to_dict(snapshot.result.space, snapshot.require_plan())
    return read_plan_file(path)


def _load_strategy(name: str, options: Mapping[str, Any]) -> Strategy:
    """The strategy of a log; if it is not installed (it was given as an object), one that believes plain means."""
    try:
        return make_strategy(name, **options)
    except UnknownName:
        stand_in = RandomStrategy()
        stand_in.name = name
        return stand_in
