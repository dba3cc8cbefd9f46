"""A run as an object: search, fine-tune, report, export, load. The commands call these, and print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from qra_search import plugins
from qra_search.app.baselines import Against
from qra_search.app.compare import Comparison
from qra_search.app.config import RunConfig, make_config
from qra_search.app.evaluator import Workers, build_evaluator, start_workers
from qra_search.app.finetune import check_reloads, choose_rate, tune_missing
from qra_search.app.folder import RunFolder
from qra_search.app.report.finding import summarize_run
from qra_search.app.report.live import ProgressArgument, make_listener
from qra_search.app.search import begin_run, plan_run, search_run
from qra_search.app.settings import check_budget, check_task, find_missing_file
from qra_search.app.tracking import SearchTracker, find_trackers, open_trackers
from qra_search.app.tuning_folder import TuningFolder
from qra_search.app.tunings import change_settings, select_export, select_tunings
from qra_search.errors import BadInput, convert_to_bad_input
from qra_search.evaluation.evaluator import Evaluator
from qra_search.evaluation.tuning_record import TuningRecord
from qra_search.executors import Executor
from qra_search.launched import is_follower
from qra_search.sections import DEFAULT_EVALUATIONS
from qra_search.space.space import Plan
from qra_search.study.listener import Listener
from qra_search.study.result import SearchResult
from qra_search.study.study import Callback


class Run:
    """One run: a folder, its settings, and what is done with it; made by `qra_search.plan` or `open_run`.

    The model is loaded once and kept for the next step; `close`, or use in a `with` block, lets it go.

    Args:
        folder: of the run; it may be yet to be made.
        config: its settings.
        objects: model, tokenizer, task and metrics in memory, by these names.
    """

    def __init__(self, folder: str | Path, config: RunConfig, *, objects: Mapping[str, Any] | None = None):
        self.folder = RunFolder(folder)
        self.config = config
        self._objects = dict(objects or {})
        self._held: tuple[RunConfig, Evaluator] | None = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the model go; the next step loads it again."""
        if self._held is not None:
            self._held[1].close()
            self._held = None

    @property
    def path(self) -> Path:
        """Path of the run's folder."""
        return self.folder.path

    @property
    def result(self) -> SearchResult:
        """What the sensitivities and the search have found so far."""
        return self.folder.result()

    @property
    def plan(self) -> Plan:
        return self.folder.plan()

    @property
    def records(self) -> list[TuningRecord]:
        """Every finished tuning, oldest first."""
        return self.folder.records()

    @property
    def comparison(self) -> Comparison | None:
        """The tuned plan beside its baselines on test data; None before `finetune`."""
        return self.folder.comparison()

    def choose_plan(self, *, progress: ProgressArgument = None) -> SearchResult:
        """Measure the sensitivities unless the run has them, and write the allocated plan; see `plan`."""
        check_budget(self.config)
        check_task(self.config)
        exists = self.folder.has_run
        if (
            exists
            and self.folder.config_file.is_file()
            and "evaluations" not in self.config.search.model_fields_set
        ):
            self.config = self._change_evaluations(
                self.folder.config().search.evaluations
            )  # as its search has them
        with make_listener(progress) as listener, begin_run(self.config, self.folder, resume=exists):
            return plan_run(self.evaluator(listener), self.config, self.folder, listener)

    def search(
        self,
        evaluations: float | None = None,
        *,
        resume: bool = True,
        workers: int | Workers | None = None,
        batch: int | None = None,
        callbacks: Sequence[Callback] = (),
        track: str | Sequence[str] = (),
        progress: ProgressArgument = None,
    ) -> SearchResult:
        """Search from where the run stands, by short fine-tunings; as `qra search` does.

        Args:
            evaluations: full evaluations that may be spent in all; None: as the settings say.
            resume: False: refuse a folder in which a search has begun.
            workers: evaluate in so many worker processes; default: in this one.
            batch: so many proposals at a time, all awaited: the same trials with any number of workers.
            callbacks: hear of every event of the study.
            track: a tracker of accelerate, or several, such as `tensorboard` or `mlflow`.

        Raises:
            BadInput: what was given cannot be used; nothing was spent.
            StudyFailed: the search cannot go on, or nothing came of it.
        """
        check_task(self.config)
        config = self.config if evaluations is None else self._change_evaluations(evaluations)
        if workers is not None and self._objects:
            raise BadInput(
                "workers cannot share an in-memory model or task: give their paths, or leave workers out"
            )
        with make_listener(progress) as listener, ExitStack() as stack:
            stack.enter_context(begin_run(config, self.folder, resume=resume and self.folder.has_run))
            self.config = config  # a number that was refused is no setting
            log = stack.enter_context(open_trackers(track, self.path, self.config))
            executor: Executor | None = None
            if workers is None:
                evaluator = self.evaluator(listener)
            else:
                workers = Workers(workers) if isinstance(workers, int) else workers
                evaluator, executor = stack.enter_context(start_workers(self.config, workers, listener))
            return search_run(
                evaluator,
                self.config,
                self.folder,
                listener,
                executor=executor,
                batch=batch,
                callbacks=(*callbacks, SearchTracker(log)),
            )

    def finetune(
        self,
        plan: Plan | str | Path | None = None,
        *,
        memory: int | str | None = None,
        steps: int | None = None,
        epochs: float | None = None,
        seeds: int = 1,
        against: Against = "best",
        device: str | None = None,
        settings: Mapping[str, Any] | None = None,
        track: str | Sequence[str] = (),
        with_16_bit: bool = False,
        discard: bool = False,
        rates: Sequence[float] | None = None,
        progress: ProgressArgument = None,
        check: bool = True,
    ) -> Comparison:
        """Tune the plan and its baselines in full, save the adapters, and compare them on test data.

        Only tunings without a record are made. Of processes that `torchrun` started, all but the first help it, and
        end in here.

        Args:
            plan: another than the run's own: an object, a `plan.json`, a run's folder, or a uniform one (`uniform3r8`).
            memory: tune the best plan within this budget instead.
            steps: of the optimizer; None: as the settings say.
            epochs: passes over the train split, in place of steps.
            seeds: tune every plan with so many, each on rows of its own.
            against: baselines to tune as well: the `best` uniform plan that fits, the plan `shuffled` over linears of
                the same shape, `all` uniform plans that fit and that one, or `none`.
            device: another than the run's.
            settings: values by dotted field that are other than the run's, such as `{"training.schedule": "cosine"}`.
            track: as `search`.
            with_16_bit: tune adapters of the largest rank on the model in 16 bits as well, to see what bits cost.
            discard: delete the adapters of other plans and rates than the chosen ones once they are measured.
            rates: learning rates to choose from: the plan is tuned in full at each, and the one of lowest validation
                loss is kept for all else.
            check: False: do not raise if a saved adapter is not what was tuned; `check_reloads` does then.

        Raises:
            BadInput: what was given cannot be used.
            RunFailed: the plan cannot be tuned, or a saved adapter does not load back as it was tuned.
        """
        known = self.folder.check().config()
        find_trackers(track)  # before a model is loaded for nothing
        config = change_settings(
            known, steps=steps, epochs=epochs, device=device, rates=rates, settings=settings
        )
        tunings = select_tunings(
            self.folder, plan, memory, seeds=seeds, against=against, with_16_bit=with_16_bit
        )
        with make_listener(progress) as listener:
            if rates:
                config = choose_rate(
                    partial(self.evaluator, listener),
                    config,
                    listener,
                    self.result,
                    tunings,
                    rates,
                    discard=discard,
                )
            evaluator = self.evaluator(listener, config)
            if is_follower():
                evaluator.serve_tunings()
            with open_trackers(track, self.path, config) as log:
                comparison = tune_missing(
                    evaluator,
                    config,
                    listener,
                    self.result,
                    tunings,
                    discard=discard,
                    on_step=lambda id, step, figures: log({f"{id}/{k}": v for k, v in figures.items()}, step),
                )
        if check:
            check_reloads(comparison, self.folder)
        return comparison

    def report(self, out: str | Path | None = None) -> Path:
        """Write the HTML report, one file that needs no network, and return its path.

        Args:
            out: default: `report.html` in the run's folder.
        """
        from qra_search.app.report.page import write_page  # as in `write_report`

        with convert_to_bad_input():
            return write_page(self.folder, out)

    def export(
        self,
        format: str | None = None,
        out: str | Path | None = None,
        *,
        tuning: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        """Write a tuned plan for another tool; see docs/export.md for the formats.

        Args:
            format: default: that of the engine that the run was searched for, or `peft`.
            out: default: `exports/FORMAT` in the run's folder, with the id of a tuning that is named.
            tuning: as `load` takes it.
            options: of the format.

        Returns:
            `path`, `notes`, and by how much logits differ.

        Raises:
            BadInput: nothing is tuned, the format cannot hold this plan, or something is in the way.
        """
        found, name = select_export(self.folder, format, tuning)
        path = Path(out or self.path / "exports" / (f"{name}-{found.id}" if tuning else name))
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise BadInput(f"{path} exists already: give another place with --out, or remove it first")
        given = {option.replace("-", "_"): value for option, value in (options or {}).items()}
        with convert_to_bad_input():
            exporter = plugins.load("exporters", name).with_options(given)
            self.write_base(found)
            return exporter.export(found.path, path, **self._loaded_objects)

    def load(
        self, tuning: str | None = None, *, device: str = "auto", trust_remote_code: bool = False
    ) -> Any:
        """A tuned model, exactly as it was after tuning: (peft model, tokenizer).

        Args:
            tuning: an id (see `records`), `uniform`, `shuffled` or `16-bit`; default: that of the run's plan.

        Raises:
            BadInput: the evaluator loads no tuned models, or there is no such tuning.
        """
        found = self.folder.find_tuning(tuning)
        self.write_base(found)
        with convert_to_bad_input():
            load = getattr(plugins.load("evaluators", self.config.evaluator), "load", None)
            if load is None:
                raise BadInput(f"evaluator {self.config.evaluator!r} has no tuned models to load")
            return load(
                found.path, **self._loaded_objects, device=device, trust_remote_code=trust_remote_code
            )

    @property
    def _loaded_objects(self) -> dict[str, Any]:
        """The objects in memory that a tuned model is loaded with."""
        return {name: value for name, value in self._objects.items() if name in ("model", "tokenizer")}

    def write_base(self, tuning: TuningFolder) -> None:
        """Write the quantized base of a tuning, if it was saved without it."""
        if not tuning.base_file.is_file() and (record := tuning.record()) is not None:
            self.evaluator().write_base(record.plan, tuning.path)

    def evaluator(self, listener: Listener | None = None, config: RunConfig | None = None) -> Evaluator:
        """The evaluator of the run, built when it is first asked for; it belongs to the run, which closes it."""
        config, listener = config or self.config, listener or Listener()
        # How long a search may be is nothing to an evaluator: a longer one goes on with the model that is loaded.
        search = config.search.model_copy(update={"evaluations": DEFAULT_EVALUATIONS})
        wanted = config.model_copy(update={"search": search})
        if self._held is not None and self._held[0] != wanted:
            self.close()
        if self._held is None:
            if self.folder.has_run and (gone := find_missing_file(config)):
                raise BadInput(f"{self.path} needs {gone}, which no longer exists: restore it, or plan again")
            self._held = wanted, build_evaluator(config, listener.progress, objects=self._objects)
        evaluator = self._held[1]
        evaluator.progress = listener.progress
        return evaluator

    def __repr__(self) -> str:
        text = f": {summarize_run(self.result, self.comparison)}" if self.folder.has_run else ""
        return f"Run({str(self.path)!r}){text}"

    def _change_evaluations(self, count: float) -> RunConfig:
        return make_config(
            self.config.model_dump(mode="json"), {"search.evaluations": count}, source="options"
        )
