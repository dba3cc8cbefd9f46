"""The folder of one run: what may be begun or resumed in it, its result read back, and its tunings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from qra_search.allocate.sensitivities import Sensitivities, read_sensitivities
from qra_search.app.compare import Comparison, compare, select_tuned_plan
from qra_search.app.config import RunConfig, dump_config, find_differences, load_config, read_yaml
from qra_search.app.shown import ShownResult
from qra_search.app.tuning_folder import TuningFolder
from qra_search.errors import BadInput, convert_to_bad_input, describe_os_error
from qra_search.evaluation.tuning_record import TuningRecord
from qra_search.evaluator import Evaluator
from qra_search.files import write_text
from qra_search.log.lines import round_trip
from qra_search.log.state import StudyState, read_state
from qra_search.log.trial_log import TrialLog
from qra_search.plugins import UnknownName
from qra_search.space.budgets import resolve_budgets
from qra_search.space.serialization import PLAN_NAME, plan_to_dict, read_plan, read_plan_file
from qra_search.space.space import Plan
from qra_search.strategies import Strategy, make_strategy
from qra_search.strategies.simple import RandomStrategy
from qra_search.study.result import SearchResult

LOG_NAME, SENSITIVITIES_NAME, TUNINGS = "trials.jsonl", "sensitivities.json", "tunings"
OLD_FILE = "test.json"
"""A file that only runs of earlier versions have."""
MAY_CHANGE = ("search.evaluations", "finetune.")
"""Fields that may differ when a run is resumed: how far it goes, and how its plan is tuned afterwards."""
ROLES = ("plan", "uniform", "shuffled", "16-bit")
"""Names that a tuning with an adapter goes by, beside its id."""


class NoRun(BadInput):
    """The folder holds no run."""


class RunFolder:
    """One run on disk: `config.yaml`, `trials.jsonl`, what is made from them, and a folder for each tuning."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.sensitivities_file = self.path / SENSITIVITIES_NAME
        self.log_file = self.path / LOG_NAME
        self.plan_file = self.path / PLAN_NAME
        self.report_file = self.path / "report.html"
        self.tunings_folder = self.path / TUNINGS

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.resolve().name

    @property
    def has_run(self) -> bool:
        """Whether the folder holds a run: a journal, or settings and the sensitivities measured for them; raises
        BadInput if it cannot be looked into."""
        with convert_to_bad_input():
            begun = (
                self.log_file.is_file() and self.log_file.stat().st_size > 0
            )  # not one that could not be written
            return begun or (self.config_file.is_file() and self.sensitivities_file.is_file())

    def check(self) -> RunFolder:
        """The folder itself; raises NoRun if it holds no run."""
        if not self.has_run:
            files = f"{self.log_file.name}, nor {self.config_file.name} with {self.sensitivities_file.name}"
            what = "is not a folder" if not self.path.is_dir() else f"holds no {files}"
            raise NoRun(
                f"{self.path} is not a run: it {what}; give a folder that `qra plan` or `qra search` wrote"
            )
        return self

    def check_begin(self, config: RunConfig, *, resume: bool = False) -> None:
        """Raises BadInput if the folder holds a run and `resume` is off, or one whose config differs in what may not
        change; writes nothing."""
        has_run = self.has_run  # or it cannot be looked into
        if self.path.exists() and not self.path.is_dir():
            raise BadInput(f"{self.path} is a file: give a folder for the run, a new one or one to resume")
        if has_run and self.config_file.is_file():
            known = load_config(self.config_file)
            found = find_differences(known, config)
            changed = {k: v for k, v in found.items() if not resume or not k.startswith(MAY_CHANGE)}
            if changed:
                field, (old, new) = next(iter(changed.items()))
                more = f" (and {len(changed) - 1} more fields)" if len(changed) > 1 else ""
                raise BadInput(
                    f"{self.path} holds another run: {field} is {old!r} there and {new!r} here{more}; "
                    f"give another --out, or resume that run with `qra search {self.path}`, in Python open_run()"
                )
            if "search.evaluations" in found and config.search.evaluations < (spent := self.result().spent):
                raise BadInput(
                    f"{self.path} has spent {spent:g} evaluations already, which is more than "
                    f"{config.search.evaluations:g}: ask for more, or leave --evaluations out"
                )
        if has_run and not resume:
            raise BadInput(
                f"{self.path} already holds this run: resume it with `qra search {self.path}`, in Python open_run(), "
                f"or give another --out"
            )

    def begin(self, config: RunConfig, *, resume: bool = False) -> None:
        """Make the folder, or check that its run may be resumed; once the log is this process's own, `write_config`.

        Raises BadInput as `check_begin` does, and if nothing can be written there.
        """
        self.check_begin(config, resume=resume)
        try:
            read_yaml(dump_config(config))
        except ValueError as error:
            raise BadInput(f"these settings cannot be saved: {error}") from error
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise BadInput(
                f"the run's folder {self.path} cannot be written ({describe_os_error(error)}): give another place with "
                f"--out"
            ) from error

    def write_config(self, config: RunConfig) -> None:
        """Write the settings of the run; only the process that holds the lock of its log may."""
        write_text(self.config_file, dump_config(config), durable=True)

    def config(self) -> RunConfig:
        """The settings of the run, as resolved when it began; raises NoRun if it was searched in Python without any."""
        if not self.config_file.is_file():
            raise NoRun(
                f"{self.path} has no {self.config_file.name}: `qra plan` or `qra search` did not begin it; continue it "
                f"in Python, with the same Study"
            )
        return load_config(self.config_file)

    def result(self) -> SearchResult:
        """The result by the journal, or, before a search, by the sensitivities; raises NoRun without either."""
        state, _, study = self._state()
        options = self.config().search.options if self.config_file.is_file() else {}
        return ShownResult.from_state(state, _load_strategy(study.get("strategy", ""), options))

    def identity(self) -> dict[str, Any]:
        """What identifies the evaluator (model, data, settings), and the study's strategy and evaluations."""
        _, evaluator, study = self._state()
        return {**evaluator, **study}

    def find_sensitivities(self, evaluator: Evaluator) -> Sensitivities | None:
        """The sensitivities of the run, None if none are measured; raises BadInput if it is of another evaluator."""
        if not self.has_run:
            return None
        state, described, _ = self._state()
        known = {**described, "search space": state.space.signature}
        for key, value in {
            **round_trip(evaluator.describe()),
            "search space": evaluator.space.signature,
        }.items():
            if known.get(key) != value:
                raise BadInput(
                    f"{self.path} holds a run with {key} {known.get(key)!r}, not {value!r}: give another --out, or the "
                    f"settings of that run"
                )
        return state.sensitivities

    def _state(self) -> tuple[StudyState, dict[str, Any], dict[str, Any]]:
        """What the run knows, what identifies its evaluator, and the study's strategy and evaluations: by its journal,
        or, before a search, by its other files."""
        planned = self.config_file.is_file() and self.sensitivities_file.is_file()
        if self.check().log_file.is_file():
            with TrialLog(self.log_file) as log:
                if not planned or log.get_meta("space_data"):
                    state = read_state(log)
                    if state.sensitivities is None and not state.trials and planned:
                        state = replace(state, sensitivities=read_sensitivities(self.sensitivities_file)[1])
                    return state, log.get_meta("evaluator") or {}, log.get_meta("study") or {}
            # Its first line is damaged, and the other files have what that said; a search writes it again.
        (space, sensitivities, evaluator), search = (
            read_sensitivities(self.sensitivities_file),
            self.config().search,
        )
        budgets = resolve_budgets(space, search.memory)
        state = StudyState(space, (), sensitivities, budgets, search.seed, search.evaluations)
        return state, evaluator, {"strategy": search.strategy, "evaluations": search.evaluations}

    def plan(self) -> Plan:
        """The plan of `plan.json`, or, before it is written, what the log leads to; raises NoRun without either."""
        plan = self._find_plan(self.result())
        if plan is None:
            raise NoRun(f"{self.path} has no plan yet: resume its search with `qra search {self.path}`")
        return plan

    def _find_plan(self, result: SearchResult) -> Plan | None:
        return read_plan(result.space, self.plan_file) if self.plan_file.is_file() else result.choose_plan()

    def tuning(self, id: str) -> TuningFolder:
        """The folder of a tuning, which may be yet to be made."""
        return TuningFolder(self.tunings_folder / id)

    def records(self) -> list[TuningRecord]:
        """The records of all finished tunings, oldest first; raises BadInput if one is damaged."""
        if (self.path / OLD_FILE).is_file():
            raise BadInput(
                f"{self.path} was tuned by an earlier version: plan and fine-tune again in another folder"
            )
        files = sorted(self.tunings_folder.glob("*/record.json"))
        records = [record for file in files if (record := TuningFolder(file.parent).record()) is not None]
        return sorted(records, key=lambda record: (record.finished_at, record.id))

    def comparison(self, plan: Plan | None = None, budget_bytes: int | None = None) -> Comparison | None:
        """A tuned plan beside its baselines; None if it was not tuned.

        Args:
            plan: default: the run's, or, if that was not tuned, the last that was chosen in its place.
            budget_bytes: default: the run's largest budget.
        """
        records = self.records()
        if not records:
            return None
        result = self.result()
        own = None
        if plan is None:
            own = self._find_plan(result)
            plan = select_tuned_plan(records, result.space, own)
        if budget_bytes is None:
            budget_bytes = max(result.memory_budgets, default=0)
        if plan is None:
            return None
        found = compare(records, result.space, plan, budget_bytes, sensitivities=result.sensitivities)
        return replace(found, is_of_another=True) if found and own not in (None, plan) else found

    def find_tuning(self, name: str | None = None) -> TuningFolder:
        """The folder of a finished tuning with an adapter.

        Args:
            name: an id or its beginning; `uniform`, `shuffled` or `16-bit`: that of lowest test loss beside the run's
                plan; default: that of the run's plan. Of several seeds the first.

        Raises:
            BadInput: there is none; the message lists those that there are.
        """
        records = [record for record in self.records() if record.has_adapter]
        if name is None or name in ROLES:
            comparison = self.comparison(None if name else self.plan())
            tuned = None if comparison is None else comparison.find_role(name or "plan")
            found = [] if tuned is None else [record for record in tuned.records if record.has_adapter][:1]
        else:
            found = [record for record in records if record.id.startswith(name)]
        if len(found) != 1:
            what = f"no tuning {name!r}" if name else "no tuning of its plan"
            there = ", ".join(record.id for record in records) or "none"
            option = {"shuffled": " --against shuffled", "16-bit": " --with-16-bit"}.get(name or "", "")
            raise BadInput(
                f"{self.path} has {what} (tunings: {there}): run `qra finetune {self.path}{option}`, or give an id"
            )
        return self.tuning(found[0].id)


def is_code_trusted(folder: Path) -> bool:
    """Whether a run, by its folder or that of one of its tunings, may execute code that comes with its model."""
    run = RunFolder(folder.parent.parent if folder.parent.name == TUNINGS else folder)
    return run.config_file.is_file() and run.config().model.trust_remote_code


def read_plan_data(path: Path) -> dict[str, Any]:
    """The data of a `plan.json`, or of the best plan so far of a run without one; raises BadInput if there is none."""
    folder = RunFolder(path)
    if folder.has_run and not folder.plan_file.is_file():
        return plan_to_dict(folder.result().space, folder.plan())
    return read_plan_file(path)


def _load_strategy(name: str, options: Mapping[str, Any]) -> Strategy:
    """The strategy of a log; if it is not installed (it was given as an object), one that believes plain means."""
    try:
        return make_strategy(name, **options)
    except UnknownName:
        stand_in = RandomStrategy()
        stand_in.name = name
        return stand_in
