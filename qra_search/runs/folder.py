"""The folder of one run: its files, what may be begun or resumed in it, and its result read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from qra_search.allocate.measured import Measured, plain_identity, read_sensitivities
from qra_search.allocate.sensitivities import Sensitivities
from qra_search.config import RunConfig, differences, dump_config, load_config
from qra_search.errors import BadInput
from qra_search.evaluation.evaluator import Evaluator, Tuned
from qra_search.files import read_json, write_json, write_text
from qra_search.log.recorded import STUDY, record, recorded_state
from qra_search.log.state import StudyState
from qra_search.log.trial_log import TrialLog
from qra_search.plugins import UnknownName
from qra_search.runs.contest import Contest, TestFile, conditions, tuned_entry
from qra_search.runs.plan_file import read_plan
from qra_search.runs.tuned import EARLIER, TunedFolder, TuningBusy
from qra_search.space.budgets import resolve_budgets
from qra_search.space.serialization import plan_to_dict
from qra_search.space.space import Plan
from qra_search.strategies import Strategy, make_strategy
from qra_search.strategies.random import RandomStrategy
from qra_search.study.candidates import EvaluatedPlan
from qra_search.study.result import SearchResult

LOG_NAME = "trials.jsonl"
SENSITIVITIES_NAME = "sensitivities.json"
WITHIN = "within-"
"""Begins the name of a folder with what was tuned within another budget."""


class NoRun(BadInput):
    """The folder holds no run."""


class RunExists(BadInput):
    """The folder holds another run, or one that has to be resumed explicitly."""


class RunFolder(TunedFolder):
    """One run on disk: `config.yaml`, `trials.jsonl`, and what is made from them."""

    def __init__(self, path: str | Path):
        super().__init__(path)
        self.config_file = self.path / "config.yaml"
        self.sensitivities_file = self.path / SENSITIVITIES_NAME
        self.log_file = self.path / LOG_NAME
        self.result_file = self.path / "result.json"
        self.report_file = self.path / "report.html"

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.resolve().name

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run: a journal, or settings and the sensitivities measured for them."""
        return self.log_file.is_file() or (self.config_file.is_file() and self.sensitivities_file.is_file())

    @property
    def has_trials(self) -> bool:
        """Whether a search has proposed anything here."""
        return self.log_file.is_file() and bool(self._state()[0].trials)

    def check(self) -> RunFolder:
        """The folder itself.

        Raises:
            NoRun: it holds no run.
        """
        if not self.exists:
            files = f"{self.log_file.name}, nor {self.config_file.name} with {self.sensitivities_file.name}"
            what = "is not a folder" if not self.path.is_dir() else f"holds no {files}"
            raise NoRun(f"{self.path} is no run: it {what}; give a folder that `qra plan` or `qra search` wrote")
        return self

    def check_begin(self, config: RunConfig, *, resume: bool = False) -> None:
        """Raises RunExists if the folder holds a run and `resume` is off, or one whose config differs in what may not
        change; writes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise RunExists(f"{self.path} is a file: give a folder for the run, a new one or one to resume")
        if self.exists and self.config_file.is_file():
            known = load_config(self.config_file)
            found = differences(known, config)
            changed = {k: v for k, v in found.items() if not (resume and _may_change(k))}
            if changed:
                field, (old, new) = next(iter(changed.items()))
                more = f" (and {len(changed) - 1} more fields)" if len(changed) > 1 else ""
                raise RunExists(
                    f"{self.path} holds another run: {field} is {old!r} there and {new!r} here{more}; "
                    f"give another --out, or resume that run with `qra search {self.path}`"
                )
            if "search.evaluations" in found and config.search.evaluations < (spent := self.result().spent):
                raise RunExists(
                    f"{self.path} has spent {spent:g} evaluations already, which is more than "
                    f"{config.search.evaluations:g}: ask for more, or leave --evaluations out"
                )
        if self.exists and not resume:
            raise RunExists(
                f"{self.path} already holds this run: resume it with `qra search {self.path}`, or give another --out"
            )

    def begin(self, config: RunConfig, *, resume: bool = False) -> None:
        """Make the folder, or check that its run may be resumed; once the log is this process's own, `keep_config`.

        Raises:
            RunExists: as `check_begin`.
            BadInput: nothing can be written there.
        """
        self.check_begin(config, resume=resume)
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=self.path).close()

    def keep_config(self, config: RunConfig) -> None:
        """Write the settings of the run; who holds the lock of its log does.

        Raises:
            BadInput: they cannot be written.
        """
        with self._writing():
            write_text(self.config_file, dump_config(config), durable=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BadInput(
                f"the run's folder {self.path} cannot be written ({(error.strerror or str(error)).lower()}): give "
                f"another place with --out"
            ) from error

    def config(self) -> RunConfig:
        """The settings of the run, as resolved when it began.

        Raises:
            NoRun: it has none (a log written through the Python API).
        """
        if not self.config_file.is_file():
            raise NoRun(f"{self.path} has no {self.config_file.name}: only a run of `qra search` can be resumed")
        return load_config(self.config_file)

    @property
    def run(self) -> RunFolder:
        """The run that what is tuned here is part of: a record, or what was set aside, lies in its run's folder."""
        inside = self.path.name.startswith((WITHIN, EARLIER)) and not self.config_file.is_file()
        return RunFolder(self.path.parent) if inside else self

    @property
    def trusts_code(self) -> bool:
        """Whether the run was begun with leave to run code that comes with its model."""
        run = self.run
        return run.config_file.is_file() and run.config().model.trust_remote_code

    def engine(self) -> str | None:
        """Name of the engine that the run was searched for."""
        run = self.run
        return run.config().engine if run.config_file.is_file() else None

    def record(self, limit: int) -> RunFolder:
        """Where what is tuned within another budget than the run's own is kept: a folder in this one, which is
        exported as a run is."""
        size = f"{limit / 2**20:.3f}".rstrip("0").rstrip(".")
        return RunFolder(self.path / f"{WITHIN}{size}MiB")

    def records(self) -> list[RunFolder]:
        """The folders of `record` that hold a comparison, by name."""
        return [RunFolder(file.parent) for file in sorted(self.path.glob(f"{WITHIN}*MiB/test.json"))]

    def result(self) -> SearchResult:
        """The result as the journal has it, or, before a search, what the sensitivities say; beliefs are those of
        `result.json` while it counts the same trials.

        Raises:
            NoRun: the folder holds no run.
        """
        state, identity = self._state()
        written = read_json(self.result_file)
        strategy = identity.get("strategy", "")
        if state.trials and not (written and written.get("trials") == len(state.trials) and "candidates" in written):
            written = None
        if state.trials and (written is None or state.pending):
            return SearchResult.from_state(state, _strategy(strategy))
        candidates = tuple(_candidate(c) for c in written["candidates"]) if state.trials and written else ()
        return SearchResult(
            state.space, state.trials, candidates, state.memory_budgets, state.sensitivities, strategy, state.seed,
            state.spent,
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        """What identifies the evaluator (model, data, settings), and the study's strategy and evaluations."""
        return self._state()[1]

    def known_sensitivities(self, evaluator: Evaluator) -> Sensitivities | None:
        """The sensitivities of the run; None if none are measured.

        Raises:
            RunExists: the run is of another evaluator or space.
        """
        if not self.exists:
            return None
        state, identity = self._state()
        own = plain_identity(evaluator.describe())
        other = next((key for key, value in own.items() if identity.get(key) != value), None)
        if other is not None or state.space.signature != evaluator.space.signature:
            what = (
                f"{other} {identity.get(other)!r}, not {own[other]!r}" if other is not None else "another search space"
            )
            raise RunExists(f"{self.path} holds a run with {what}: give another --out, or the settings of that run")
        return state.sensitivities

    def _state(self) -> tuple[StudyState, dict[str, Any]]:
        """The study and the identity of the run, by its journal, or, before a search, by its settings and
        sensitivities.

        Raises:
            NoRun: the folder holds no run.
        """
        planned = self.config_file.is_file() and self.sensitivities_file.is_file()
        if self.check().log_file.is_file():
            with TrialLog(self.log_file) as log:
                state, identity = recorded_state(log), identity_in(log)
            if state.sensitivities is None and not state.trials and planned:
                state = replace(state, sensitivities=read_sensitivities(self.sensitivities_file).sensitivities)
            return state, identity
        measured, search = read_sensitivities(self.sensitivities_file), self.config().search
        budgets = resolve_budgets(measured.space, search.memory)
        state = StudyState(
            measured.space, (), measured.sensitivities, budgets, seed=search.seed, evaluations=search.evaluations
        )
        study = {"strategy": search.strategy, "evaluations": search.evaluations}
        return state, {**measured.evaluator, **study}

    def write_plan(self, config: RunConfig, measured: Measured, plan: Plan | None) -> None:
        """Write what makes a run without a search: the sensitivities, the plan unless one is there, and the settings.

        Raises:
            BadInput: they cannot be written.
        """
        with self._writing():
            if not self.exists:
                measured.write(self.sensitivities_file)
            if plan is not None and not self.plan_file.is_file():
                write_json(self.plan_file, plan_to_dict(measured.space, plan))
        self.keep_config(config)

    def write(self, result: SearchResult) -> Path | None:
        """Write `result.json`, `sensitivities.json` and `plan.json`.

        What was tuned for another plan than the one that is now best is moved into `earlier-1`, `earlier-2`, ..., and
        that folder returned; a plan that was tuned keeps its file, which says more than the search knows, and so does
        one that is being tuned.
        """
        kept = aside = None
        try:
            with self.tuning_alone():
                tuned = self.tuned(result.space) if self.adapter.is_dir() and not self.half_aside else None
                if tuned is not None and tuned == result.chosen():
                    kept = self.plan_file.read_text()
                elif self.adapter.is_dir() or self.half_aside:
                    aside = self.set_aside()
        except TuningBusy:  # its files are its own
            kept = self.plan_file.read_text() if self.plan_file.is_file() else None
        identity = self.identity()
        result.write(self.path, evaluator={k: v for k, v in identity.items() if k not in ("strategy", "evaluations")})
        if kept is not None:
            write_text(self.plan_file, kept)
        return aside

    def plan(self) -> Plan:
        """The plan that is handed over: that of `plan.json` if it was tuned, or is what the log leads to.

        A search that was killed, or goes on, has left the file of the one before it.

        Raises:
            NoRun: the run has no plan yet.
        """
        result, plan = self.result(), None
        written = (read_json(self.result_file) or {}).get("trials")
        if self.plan_file.is_file() and (self.adapter.is_dir() or not result.trials or written == len(result.trials)):
            plan = read_plan(result.space, self.plan_file)
        elif result.memory_budgets or result.candidates:
            plan = result.chosen()
        if plan is None:
            raise NoRun(f"{self.path} has no plan yet: its search has not ended; go on with `qra search {self.path}`")
        return plan

    def keep_tuned(self, config: RunConfig, evaluator: Evaluator, tuned: Tuned) -> None:
        """Make a run of a folder that a plan was tuned into from Python, with no search: its settings, a log without
        trials, and the plan's test. Nothing if the comparison there is of a run that goes on.

        Args:
            config: the settings that it was tuned with.
        """
        if self.test_file.is_file() or self.run is not self:
            return
        limit = tuned.memory_bytes
        if self.exists:
            limit = max([*self.result().memory_budgets[-1:], limit])
        else:
            search = config.search.model_copy(update={"memory": (str(limit),)})
            config = config.model_copy(update={"search": search})
            self.begin(config)
            asked = {"strategy": search.strategy, "evaluations": search.evaluations}
            with TrialLog(self.log_file) as log:
                record(log, evaluator.space, asked, evaluator=evaluator.describe(), budgets=[limit], seed=search.seed)
                self.keep_config(config)
        rows = len(tuned.row_tokens) or config.finetune.test_rows
        shared = conditions(config, evaluator.describe(), evaluator.tuning_data())
        contest = Contest(tuned.plan, (), limit, (tuned.seed,), rows, shared)
        TestFile(self.test_file, contest).put(tuned.plan, tuned_entry(tuned))


def identity_in(log: TrialLog) -> dict[str, Any]:
    """What a log says of the evaluator and the study."""
    return {**(log.meta("evaluator") or {}), **(log.meta(STUDY) or {})}


def find_runs(folder: str | Path) -> list[RunFolder]:
    """The runs at or below a folder, by path."""
    places = {file.parent for name in (LOG_NAME, SENSITIVITIES_NAME) for file in Path(folder).rglob(name)}
    return [run for run in map(RunFolder, sorted(places)) if run.exists]


def _may_change(path: str) -> bool:
    """Whether a field may differ when a run is resumed: how far it goes, and how its plan is tuned afterwards."""
    return path == "search.evaluations" or path.startswith("finetune.")


def _strategy(name: str) -> Strategy:
    """The strategy of a log; if it is not installed (it was given as an object), one that believes plain means."""
    try:
        return make_strategy(name)
    except UnknownName:
        stand_in = RandomStrategy()
        stand_in.name = name
        return stand_in


def _candidate(data: Mapping[str, Any]) -> EvaluatedPlan:
    std = float("nan") if data["loss_std"] is None else data["loss_std"]
    plan = Plan.from_dict(data["plan"])
    return EvaluatedPlan(plan, data["loss"], std, data["memory_bytes"], data["observed"], data["evaluations"])
